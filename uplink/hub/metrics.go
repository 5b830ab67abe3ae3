package hub

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/VictoriaMetrics/metrics"

	"tailrace/storage/storehttp"
	"tailrace/uplink/wire"
)

// family is one metric as it is exposed. help tells an operator what to
// conclude; METRICS.md repeats it with the alerts that go with it.
type family struct{ name, kind, help string }

// Metrics of the hub, in the order of /metrics. Series of a node that is dark
// stay: a series that vanishes fires no alert.
var families = []family{
	{"tailrace_hub_info", "gauge", "Always 1; labels tell software, store and store epoch. A store epoch that grew means the store lost its tail."},
	{"tailrace_hub_ready", "gauge", "1 while the hub takes work, 0 while it starts or stops."},
	{"tailrace_node_connected", "gauge", "1 while a node has a session. 0 for long: the node is dark, see tailrace_node_last_contact_timestamp_seconds."},
	{"tailrace_node_last_contact_timestamp_seconds", "gauge", "When a node was last heard. Alert when it is older than three times the node's habit."},
	{"tailrace_node_fenced", "gauge", "1 while a node is refused because its log is a copy; somebody must look."},
	{"tailrace_node_refused_topics", "gauge", "Topics of a node that node_rules do not let it write. Above 0: a node is misconfigured, or not what it says."},
	{"tailrace_node_rtt_seconds", "gauge", "Round trip to a connected node."},
	{"tailrace_node_clock_offset_seconds", "gauge", "Node's clock minus the hub's. Far from 0: its timestamps are not to be trusted."},
	{"tailrace_node_disk_bytes", "gauge", "Bytes of a node's log, as last reported."},
	{"tailrace_node_disk_budget_bytes", "gauge", "Disk budget of a node's log, 0 = none. Disk near budget with lag: data will be lost by policy."},
	{"tailrace_node_devices", "gauge", "Devices connected to a node, as last reported."},
	{"tailrace_node_refused_total", "counter", "Publishes a node refused since its boot. Any increase: devices are told no."},
	{"tailrace_node_link_used_bytes", "gauge", "Bytes that a class of links of a node has carried in its period, as last reported."},
	{"tailrace_node_link_budget_bytes", "gauge", "What it may carry in a period, 0 = no budget."},
	{"tailrace_node_link_forecast_bytes", "gauge", "What it will have carried at the end of the period. Above the budget: raise it, or send less."},
	{"tailrace_node_link_held", "gauge", "1 while a budget or a schedule of the link in use keeps something back at the node."},
	{"tailrace_lag_records", "gauge", "Records a node has that are not here, by topic. Not shrinking while connected: the link is too slow or stuck."},
	{"tailrace_lag_bytes", "gauge", "Bytes a node reported as not here, by topic."},
	{"tailrace_lag_seconds", "gauge", "Age of the oldest record of a node that is not here, by topic; 0 = nothing is missing."},
	{"tailrace_lag_drain_seconds", "gauge", "When the lag of a node and topic is gone at the rate of the last reports, 0 = there is none. No series while it does not shrink."},
	{"tailrace_at_node_records", "gauge", "Records of a node and topic that are not here on purpose: on demand, or refused. Not in tailrace_lag_records."},
	{"tailrace_wire_records_total", "counter", "Records received by node and topic since start."},
	{"tailrace_wire_bytes_total", "counter", "Bytes of the frames that carried them, compressed. Over tailrace_wire_records_total: bytes per record on the wire."},
	{"tailrace_complete_timestamp_seconds", "gauge", "Largest record time stored of a node and topic: complete to this time when tailrace_lag_records is 0."},
	{"tailrace_lost_records_total", "counter", "Records declared lost, by node, topic and reason. Any increase is a loss of data; GET /api/v1/losses tells which."},
	{"tailrace_hub_records_total", "counter", "Records of nodes made durable since start."},
	{"tailrace_hub_received_bytes_total", "counter", "Bytes of batches received from nodes since start, uncompressed."},
	{"tailrace_hub_batches_received_total", "counter", "Batches received from nodes since start."},
	{"tailrace_hub_batches_stored_total", "counter", "Batches stored since start; far fewer than received: merging works."},
	{"tailrace_hub_stored_bytes_total", "counter", "Bytes of batches stored since start, after merging and compression."},
	{"tailrace_hub_duplicate_records_total", "counter", "Records received again and dropped. Grows a little at reconnects; steady growth: a node does not hear its acks."},
	{"tailrace_hub_appends_refused_total", "counter", "Appends refused for order, epoch, name or damage since start. Any increase: see the log."},
	{"tailrace_hub_appends_failed_total", "counter", "Appends the disk refused since start. Any increase: the disk is full or failing; nodes keep their data."},
	{"tailrace_hub_fenced_total", "counter", "Sessions refused because a node's log is a copy, since start."},
	{"tailrace_hub_handshakes_total", "counter", "Connections of nodes since start: kind whole, or resumed by a TLS ticket (cheaper); early, of those resumed, said Hello before the handshake was over. Whole ones after a restart: link-ticket-keys was lost."},
	{"tailrace_hub_forks_total", "counter", "Partitions found to differ from what is stored here, since start."},
	{"tailrace_relay_transactions_total", "counter", "Transactions committed to the Kafka cluster since start. Grows with shards and linger, not with nodes."},
	{"tailrace_relay_transaction_seconds_total", "counter", "Time in them; divide by transactions for the mean. Rising: the cluster is slow or far."},
	{"tailrace_relay_records_total", "counter", "Records of nodes committed to the cluster since start."},
	{"tailrace_relay_batches_total", "counter", "Batches they were merged into. Records over batches is what a broker sees at once."},
	{"tailrace_relay_aborted_total", "counter", "Transactions given up since start: the state of their shard was read again, nodes send again. Any steady increase: see the log."},
	{"tailrace_relay_fenced_total", "counter", "Of them those that another hub had fenced: it has taken the shard over."},
	{"tailrace_relay_throttled_seconds_total", "counter", "For how long brokers told the hub to wait. Any increase: raise its quota."},
	{"tailrace_relay_dead_letters_total", "counter", "Records that the cluster refused: they are in the dead-letter topic and in the loss ledger. Any increase: see the log."},
	{"tailrace_relay_takeovers_total", "counter", "Takeovers of shards by this hub since start."},
	{"tailrace_relay_takeover_seconds_total", "counter", "Time in them: fencing, and reading progress."},
	{"tailrace_relay_takeover_seconds", "gauge", "Of the last one. Nodes of that shard waited so long, and the group's session time before it."},
	{"tailrace_relay_shards", "gauge", "Shards that this hub serves."},
	{"tailrace_relay_shards_waiting", "gauge", "Shards that it has to serve and is still taking over. Above 0 for long: the cluster does not answer."},
	{"tailrace_relay_lag_seconds", "gauge", "How long the oldest batch at this hub waits for its commit. Above a few seconds: the cluster does not take records."},
	{"tailrace_relay_queued_bytes", "gauge", "Bytes of batches that wait for a commit."},
	{"tailrace_relay_connections", "gauge", "Connections to brokers."},
	{"tailrace_relay_requests_total", "counter", "Requests to brokers since start."},
	{"tailrace_hub_handshakes_begun_total", "counter", "Handshakes of nodes begun since start, over QUIC and TCP."},
	{"tailrace_hub_handshakes_ended_total", "counter", "Those in which the node proved who it is. Far fewer than begun: work for nothing, see the failed ones."},
	{"tailrace_hub_handshakes_failed_total", "counter", "Those that failed, by reason: timeout (the node was heard no more, or the hub is short of CPU), error (certificates, closes)."},
	{"tailrace_hub_handshakes_refused_total", "counter", "Those not begun, by reason: hub (limits.max_handshakes, or the hub is short of CPU), address (limits.max_handshakes_per_address). They come again; steady growth: raise the limit, or find who knocks."},
	{"tailrace_hub_handshakes_retried_total", "counter", "Nodes asked to show that they receive at their address before a handshake begins. Grows when many come at once."},
	{"tailrace_hub_handshakes", "gauge", "Handshakes under way."},
	{"tailrace_topic_records", "gauge", "Records between log start and end, by topic."},
	{"tailrace_topic_bytes", "gauge", "Bytes kept, by topic."},
	{"tailrace_topic_appended_offset", "gauge", "One past the last appended offset, summed over partitions."},
	{"tailrace_topic_durable_offset", "gauge", "One past the last durable offset, summed over partitions. Behind appended for long: the disk hangs."},
	{"tailrace_storage_commits_total", "counter", "Commits by storage class since start."},
	{"tailrace_storage_fsyncs_total", "counter", "Fsyncs of segments by storage class since start."},
	{"tailrace_storage_commit_seconds_total", "counter", "Time spent in commits by storage class; divide by commits for the mean."},
	{"tailrace_storage_written_bytes_total", "counter", "Bytes written to segments by storage class since start."},
	{"tailrace_storage_commit_failures_total", "counter", "Commits that failed by storage class since start. Any increase: the disk is failing."},
	{"tailrace_storage_refused_total", "counter", "Appends refused by storage class because the budget or the disk is full."},
	{"tailrace_storage_waiting_bytes", "gauge", "Bytes submitted and not durable yet, by storage class."},
	{"tailrace_storage_segments", "gauge", "Segment files by storage class."},
	{"tailrace_storage_disk_bytes", "gauge", "Bytes of segments by storage class."},
	{"tailrace_storage_budget_bytes", "gauge", "Disk budget by storage class, 0 = none."},
	{"tailrace_storage_evicted_records_total", "counter", "Records given up for the disk budget, by storage class, since start."},
	{"tailrace_storage_scrubbed_bytes_total", "counter", "Bytes of the log read to find rot, by storage class, since start."},
	{"tailrace_storage_scrub_damaged_total", "counter", "Segments in which that met damage, by storage class, since start."},
	{"tailrace_storage_repaired_segments_total", "counter", "Segments repaired while the hub ran, by storage class, since start."},
	{"tailrace_storage_damaged_records_total", "counter", "Records lost to damage of the disk, by storage class, since start. Any increase: replace the disk."},
	{"tailrace_storage_compacted_bytes", "gauge", "Bytes of the files of compacted partitions, part of the disk bytes, by storage class."},
	{"tailrace_storage_compactions_total", "counter", "Compactions of partitions since start, by storage class."},
	{"tailrace_storage_compacted_away_records_total", "counter", "Records that a later one of their key has superseded, taken out since start, by storage class."},
	{"tailrace_topic_compact_dirty_bytes", "gauge", "Bytes of a compacted topic that are not compacted yet."},
	{"tailrace_http_records_read_total", "counter", "Records given out by HTTP since start."},
	{"tailrace_http_records_written_total", "counter", "Records stored by HTTP since start."},
	{"tailrace_http_writes_refused_total", "counter", "POSTs of records refused since start."},
	{"tailrace_http_readers_refused_total", "counter", "Record queries and tails refused because limits.max_readers was reached."},
	{"tailrace_http_requests_total", "counter", "HTTP requests by status class since start."},
	{"tailrace_devices", "gauge", "Devices known at the centre."},
}

// hubMetrics holds the counters that have no other home.
type hubMetrics struct {
	h             *Hub
	set           *metrics.Set // of other subsystems: the Kafka listener
	fenced, forks *metrics.Counter
	requests      [6]*metrics.Counter // by status/100
}

func newMetrics(h *Hub) *hubMetrics {
	set := metrics.NewSet() // for the counters' atomics only: exposed by families
	m := &hubMetrics{h: h, set: metrics.NewSet(), fenced: set.NewCounter("fenced"), forks: set.NewCounter("forks")}
	for i := range m.requests {
		m.requests[i] = set.NewCounter("requests" + strconv.Itoa(i))
	}
	return m
}

// sample is one series' value.
type sample struct {
	labels string
	value  float64
}

// labels writes name="value" pairs; values come from nodes and may hold anything.
func labels(pairs ...string) string {
	var b strings.Builder
	for i := 0; i < len(pairs); i += 2 {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, `%s="%s"`, pairs[i], escapeLabel.Replace(strings.ToValidUTF8(pairs[i+1], "\ufffd")))
	}
	return b.String()
}

var escapeLabel = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`)

func (m *hubMetrics) collect() map[string][]sample {
	h := m.h
	out := map[string][]sample{}
	add := func(name string, v float64, pairs ...string) {
		out[name] = append(out[name], sample{labels(pairs...), v})
	}
	id, epoch := h.central.Identity()
	add("tailrace_hub_info", 1, "software", h.cfg.Software, "store", id.String(), "store_epoch", strconv.Itoa(int(epoch)))
	add("tailrace_hub_ready", b2f(h.Ready()))
	for _, n := range h.Nodes() {
		l := []string{"node", n.Node}
		add("tailrace_node_connected", b2f(!n.Dark), l...)
		h.nodes.mu.Lock()
		var seen int64
		if s := h.nodes.nodes[n.Node]; s != nil {
			seen = s.saved.LastSeen
		}
		h.nodes.mu.Unlock()
		add("tailrace_node_last_contact_timestamp_seconds", float64(seen)/1000, l...)
		add("tailrace_node_fenced", b2f(n.Fenced != ""), l...)
		add("tailrace_node_refused_topics", float64(len(n.Refused)), l...)
		if !n.Dark {
			add("tailrace_node_rtt_seconds", n.RTTSeconds, l...)
			add("tailrace_node_clock_offset_seconds", n.ClockOffset, l...)
		}
		if s := n.Status; s != nil {
			add("tailrace_node_disk_bytes", float64(s.DiskBytes), l...)
			add("tailrace_node_disk_budget_bytes", float64(s.DiskBudget), l...)
			add("tailrace_node_devices", float64(s.Devices), l...)
			add("tailrace_node_refused_total", float64(s.Refused), l...)
			for _, k := range s.Links {
				l := []string{"node", n.Node, "link", k.Name}
				add("tailrace_node_link_used_bytes", float64(k.Used), l...)
				add("tailrace_node_link_budget_bytes", float64(k.Monthly), l...)
				add("tailrace_node_link_forecast_bytes", float64(k.Forecast), l...)
				add("tailrace_node_link_held", b2f(k.Held != ""), l...)
			}
		}
		for _, t := range perTopic(n.Topics) {
			l := []string{"node", n.Node, "topic", t.Topic}
			add("tailrace_lag_records", float64(t.LagRecords), l...)
			add("tailrace_lag_bytes", float64(t.LagBytes), l...)
			add("tailrace_lag_seconds", t.LagSeconds, l...)
			if t.DrainSeconds != nil {
				add("tailrace_lag_drain_seconds", *t.DrainSeconds, l...)
			}
			if t.AtNode > 0 || t.Mode == wire.ModeOnDemand.String() {
				add("tailrace_at_node_records", float64(t.AtNode), l...)
			}
			add("tailrace_wire_records_total", float64(t.WireRecords), l...)
			add("tailrace_wire_bytes_total", float64(t.WireBytes), l...)
			if ms, err := parseStamp(t.CompleteTime); err == nil {
				add("tailrace_complete_timestamp_seconds", float64(ms)/1000, l...)
			}
		}
	}
	for k, v := range h.central.LossTotals() {
		add("tailrace_lost_records_total", float64(v.Records), "node", k.Node, "topic", k.Topic, "reason", k.Reason)
	}
	e := h.central.Stats()
	add("tailrace_hub_records_total", float64(e.Records))
	add("tailrace_hub_received_bytes_total", float64(e.BytesIn))
	add("tailrace_hub_batches_received_total", float64(e.BatchesIn))
	add("tailrace_hub_batches_stored_total", float64(e.BatchesStored))
	add("tailrace_hub_stored_bytes_total", float64(e.BytesStored))
	add("tailrace_hub_duplicate_records_total", float64(e.Duplicates))
	add("tailrace_hub_appends_refused_total", float64(e.Refused))
	add("tailrace_hub_appends_failed_total", float64(e.Failed))
	add("tailrace_hub_fenced_total", float64(m.fenced.Get()))
	add("tailrace_hub_forks_total", float64(m.forks.Get()))
	hs := h.links.Handshakes()
	add("tailrace_hub_handshakes_total", float64(hs.Full), "kind", "whole")
	add("tailrace_hub_handshakes_total", float64(hs.Resumed), "kind", "resumed")
	add("tailrace_hub_handshakes_total", float64(hs.Early), "kind", "early")
	if c, ok := h.central.(*clustered); ok {
		s := c.r.Stats()
		add("tailrace_relay_transactions_total", float64(s.Transactions))
		add("tailrace_relay_transaction_seconds_total", s.Committing.Seconds())
		add("tailrace_relay_records_total", float64(s.Records))
		add("tailrace_relay_batches_total", float64(s.Batches))
		add("tailrace_relay_aborted_total", float64(s.Aborted))
		add("tailrace_relay_fenced_total", float64(s.Fenced))
		add("tailrace_relay_throttled_seconds_total", s.Throttled.Seconds())
		add("tailrace_relay_dead_letters_total", float64(s.Dead))
		add("tailrace_relay_takeovers_total", float64(s.Takeovers))
		add("tailrace_relay_takeover_seconds_total", s.TakingOver.Seconds())
		add("tailrace_relay_takeover_seconds", s.LastTakeover.Seconds())
		add("tailrace_relay_shards", float64(s.Served))
		add("tailrace_relay_shards_waiting", float64(s.Waiting))
		add("tailrace_relay_lag_seconds", s.Lag.Seconds())
		add("tailrace_relay_queued_bytes", float64(s.QueuedBytes))
		add("tailrace_relay_connections", float64(s.Connections))
		add("tailrace_relay_requests_total", float64(s.Requests))
	}
	d := h.links.Door()
	add("tailrace_hub_handshakes_begun_total", float64(d.Begun))
	add("tailrace_hub_handshakes_ended_total", float64(d.Ended))
	add("tailrace_hub_handshakes_failed_total", float64(d.TimedOut), "reason", "timeout")
	add("tailrace_hub_handshakes_failed_total", float64(d.Failed), "reason", "error")
	add("tailrace_hub_handshakes_refused_total", float64(d.Refused), "reason", "hub")
	add("tailrace_hub_handshakes_refused_total", float64(d.Crowded), "reason", "address")
	add("tailrace_hub_handshakes_retried_total", float64(d.Retries))
	add("tailrace_hub_handshakes", float64(d.UnderWay))
	for _, t := range h.store.Topics() {
		var appended, durable int64
		for _, p := range t.Partitions() {
			durable += p.HighWatermark()
			appended += max(p.Next(), p.HighWatermark())
		}
		info := storehttp.Describe(storehttp.OfTopic(t), false)
		l := []string{"topic", t.Name()}
		add("tailrace_topic_records", float64(info.Records), l...)
		add("tailrace_topic_bytes", float64(info.Bytes), l...)
		add("tailrace_topic_appended_offset", float64(appended), l...)
		add("tailrace_topic_durable_offset", float64(durable), l...)
		if t.Compacted() {
			var dirty int64
			for _, p := range t.Partitions() {
				dirty += p.CompactStatus().Dirty
			}
			add("tailrace_topic_compact_dirty_bytes", float64(dirty), l...)
		}
	}
	for _, c := range h.store.Stats().Classes {
		l := []string{"class", c.Class}
		add("tailrace_storage_commits_total", float64(c.Commits), l...)
		add("tailrace_storage_fsyncs_total", float64(c.Fsyncs), l...)
		add("tailrace_storage_commit_seconds_total", float64(c.CommitNanos)/1e9, l...)
		add("tailrace_storage_written_bytes_total", float64(c.WrittenBytes), l...)
		add("tailrace_storage_commit_failures_total", float64(c.Failures), l...)
		add("tailrace_storage_refused_total", float64(c.Refused), l...)
		add("tailrace_storage_waiting_bytes", float64(c.WaitingBytes), l...)
		add("tailrace_storage_segments", float64(c.Segments), l...)
		add("tailrace_storage_disk_bytes", float64(c.DiskBytes), l...)
		add("tailrace_storage_budget_bytes", float64(c.MaxBytes), l...)
		add("tailrace_storage_evicted_records_total", float64(c.EvictedRecords), l...)
		add("tailrace_storage_scrubbed_bytes_total", float64(c.ScrubbedBytes), l...)
		add("tailrace_storage_scrub_damaged_total", float64(c.ScrubDamaged), l...)
		add("tailrace_storage_repaired_segments_total", float64(c.Healed), l...)
		add("tailrace_storage_damaged_records_total", float64(c.DamagedRecords), l...)
		add("tailrace_storage_compacted_bytes", float64(c.CompactBytes), l...)
		add("tailrace_storage_compactions_total", float64(c.Compactions), l...)
		add("tailrace_storage_compacted_away_records_total", float64(c.CompactedAway), l...)
	}
	a := h.api.Stats()
	add("tailrace_http_records_read_total", float64(a.RecordsRead))
	add("tailrace_http_records_written_total", float64(a.RecordsWritten))
	add("tailrace_http_writes_refused_total", float64(a.WritesRefused))
	add("tailrace_http_readers_refused_total", float64(a.ReadersRefused))
	for i := 2; i < len(m.requests); i++ {
		add("tailrace_http_requests_total", float64(m.requests[i].Get()), "code", strconv.Itoa(i)+"xx")
	}
	add("tailrace_devices", float64(h.devices.reg.Len()))
	return out
}

// perTopic sums the partitions of each topic.
func perTopic(list []NodeTopicInfo) []NodeTopicInfo {
	var out []NodeTopicInfo
	for _, t := range list { // sorted by topic
		if n := len(out); n > 0 && out[n-1].Topic == t.Topic {
			o := &out[n-1]
			o.LagRecords += t.LagRecords
			o.LagBytes += t.LagBytes
			o.LagSeconds = max(o.LagSeconds, t.LagSeconds)
			o.AtNode += t.AtNode
			if o.DrainSeconds != nil && (t.DrainSeconds == nil || *t.DrainSeconds > *o.DrainSeconds) {
				o.DrainSeconds = t.DrainSeconds
			}
			o.CompleteTime = max(o.CompleteTime, t.CompleteTime) // RFC 3339 in UTC sorts by time
			continue
		}
		out = append(out, t)
	}
	return out
}

func b2f(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// WriteMetrics writes the exposition format 0.0.4.
func (h *Hub) WriteMetrics(w io.Writer) {
	all := h.metrics.collect()
	var b bytes.Buffer
	for _, f := range families {
		if len(all[f.name]) == 0 {
			continue
		}
		fmt.Fprintf(&b, "# HELP %s %s\n# TYPE %s %s\n", f.name, f.help, f.name, f.kind)
		list := all[f.name]
		slices.SortFunc(list, func(x, y sample) int { return strings.Compare(x.labels, y.labels) })
		for _, s := range list {
			name := f.name
			if s.labels != "" {
				name += "{" + s.labels + "}"
			}
			b.WriteString(name)
			b.WriteByte(' ')
			b.WriteString(strconv.FormatFloat(s.value, 'g', -1, 64))
			b.WriteByte('\n')
		}
	}
	h.metrics.set.WritePrometheus(&b)
	metrics.WriteProcessMetrics(&b)
	w.Write(b.Bytes())
}

func (h *Hub) serveMetrics(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	h.WriteMetrics(w)
}
