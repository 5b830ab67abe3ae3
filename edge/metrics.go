package edge

import (
	"bytes"
	"fmt"
	"net/http"
	"strconv"

	"github.com/VictoriaMetrics/metrics"

	"tailrace/uplink/wire"
)

// metric is one family: what an operator may conclude is in its help.
type metric struct{ name, kind, help string }

var (
	mAppended   = metric{"tailrace_appended_offset", "gauge", "One past the last record in memory. Above durable: a commit is under way."}
	mDurable    = metric{"tailrace_durable_offset", "gauge", "One past the last record on disk: everything below was acknowledged to devices."}
	mAcked      = metric{"tailrace_acked_offset", "gauge", "Everything below is durable at the hub. Standing still below durable: the link or the hub does not take data."}
	mStart      = metric{"tailrace_start_offset", "gauge", "First record still held on this node."}
	mLag        = metric{"tailrace_lag_records", "gauge", "Records on this node that the hub does not have yet."}
	mLagSeconds = metric{"tailrace_lag_seconds", "gauge", "Age of the oldest record that the hub does not have yet; 0 = it has all."}
	mWireRecs   = metric{"tailrace_wire_records_total", "counter", "Records sent to the hub since start, by topic."}
	mWireBytes  = metric{"tailrace_wire_bytes_total", "counter", "Bytes of the frames that carried them, compressed. Over tailrace_wire_records_total: bytes per record on the wire."}
	mSketchMade = metric{"tailrace_sketch_rows_total", "counter", "Rows of a stream's sketch written since start: what the hub lacked for longer than a window, in brief."}
	mSketchSent = metric{"tailrace_sketch_sent_rows_total", "counter", "Of a stream's sketch, rows sent to the hub since start; one sent again counts again. Far below tailrace_sketch_rows_total: the link does not even carry the brief."}
	mSketchLost = metric{"tailrace_sketch_dropped_rows_total", "counter", "Rows of a stream's sketch given up before the hub had them, as known since start. They are in the loss ledger, too."}
	mLinkUsed   = metric{"tailrace_link_used_bytes", "gauge", "Bytes that a class of links has carried in this month's period, both ways, packet headers included."}
	mLinkBudget = metric{"tailrace_link_budget_bytes", "gauge", "What it may carry in a period; 0 = no budget."}
	mLinkCast   = metric{"tailrace_link_forecast_bytes", "gauge", "What it will have carried at the end of the period, at the mean rate so far."}
	mLinkHeld   = metric{"tailrace_link_held", "gauge", "1 while the budget or the schedule of the link in use keeps something back; status says what."}
	mLagBytes   = metric{"tailrace_lag_bytes", "gauge", "About how many bytes of batches the hub does not have yet."}
	mRecords    = metric{"tailrace_records_total", "counter", "Records made durable since start."}
	mCommits    = metric{"tailrace_commits_total", "counter", "Group commits since start. Records per commit is the gain of group commit."}
	mFsyncs     = metric{"tailrace_fsyncs_total", "counter", "Fsyncs of segment files since start. On flash each costs a page and the journal."}
	mWritten    = metric{"tailrace_written_bytes_total", "counter", "Bytes written to segment files since start."}
	mBatches    = metric{"tailrace_record_bytes_total", "counter", "Bytes of record batches made durable since start."}
	mPayload    = metric{"tailrace_payload_bytes_total", "counter", "Bytes that devices sent, as values of records made durable since start."}
	mFailures   = metric{"tailrace_commit_failures_total", "counter", "Commits that failed: the disk refuses. Any increase needs a look at the disk."}
	mDisk       = metric{"tailrace_disk_bytes", "gauge", "Bytes of segment files."}
	mBudget     = metric{"tailrace_disk_budget_bytes", "gauge", "Disk budget of the class; 0 = none."}
	mFree       = metric{"tailrace_disk_free_bytes", "gauge", "Free bytes on the file system of the log."}
	mDevice     = metric{"tailrace_device_written_bytes_total", "counter", "Bytes the whole disk has written since start, journal and other programs included: what wears the flash."}
	mDeviceRate = metric{"tailrace_device_bytes_per_payload_byte", "gauge", "Device bytes per byte that devices sent, since start. High on SD cards: raise commit_interval."}
	mFsyncRate  = metric{"tailrace_fsyncs_per_minute", "gauge", "Fsyncs of segment files over the last minute."}
	mLife       = metric{"tailrace_flash_life_years", "gauge", "What storage.endurance lasts from new at the rate since start."}
	mAlarm      = metric{"tailrace_alarm", "gauge", "1 while the alarm is on: disk_full, disk_error, evicting, wear, file_system, refused_topic, budget."}
	mReserve    = metric{"tailrace_disk_reserve_bytes", "gauge", "Bytes kept allocated so that data can be given up on a full disk; 0 while they are in use."}
	mScrubbed   = metric{"tailrace_storage_scrubbed_bytes_total", "counter", "Bytes of the log read to find rot since start."}
	mScrubFound = metric{"tailrace_storage_scrub_damaged_total", "counter", "Segments in which that met damage since start."}
	mHealed     = metric{"tailrace_storage_repaired_segments_total", "counter", "Segments repaired while the node ran, since start."}
	mLost       = metric{"tailrace_lost_records_total", "counter", "Acknowledged records that this node gave up or lost since start."}
	mRefused    = metric{"tailrace_ingest_refused_total", "counter", "Publishes and logins refused, by reason. unmatched and rule: look at the routes."}
	mRule       = metric{"tailrace_route_records_total", "counter", "Publishes accepted by each route."}
	mRuleReject = metric{"tailrace_route_rejected_total", "counter", "Publishes refused by each route."}
	mRuleTime   = metric{"tailrace_route_time_missing_total", "counter", "Publishes without a readable event time, stored with the time of arrival."}
	mRuleDup    = metric{"tailrace_route_duplicates_total", "counter", "Publishes known by the device's own sequence number and not stored again."}
	mRuleNoSeq  = metric{"tailrace_route_sequence_missing_total", "counter", "Publishes whose sequence number was not found or too old to tell; stored, perhaps again."}
	mRuleClamp  = metric{"tailrace_route_time_clamped_total", "counter", "Event times more than an hour ahead or before 1970: a device's clock is wrong."}
	mConns      = metric{"tailrace_mqtt_connections", "gauge", "Open MQTT connections."}
	mSessions   = metric{"tailrace_mqtt_sessions", "gauge", "Known MQTT sessions, connected or away."}
	mPublished  = metric{"tailrace_mqtt_published_total", "counter", "Publishes accepted from MQTT clients."}
	mDups       = metric{"tailrace_mqtt_duplicates_total", "counter", "Re-sent publishes that were durable already and not stored again."}
	mAmbiguous  = metric{"tailrace_mqtt_ambiguous_total", "counter", "Re-sent publishes stored although they may have been stored before."}
	mDropped    = metric{"tailrace_mqtt_dropped_total", "counter", "Deliveries to MQTT subscribers dropped: too slow or away too long."}
	mThrottled  = metric{"tailrace_mqtt_throttled_total", "counter", "Times a client above its publish rate was not read for a while."}
	mConnRef    = metric{"tailrace_mqtt_connections_refused_total", "counter", "Connections closed unread: limits before login (all, or one address)."}
	mQuarantine = metric{"tailrace_mqtt_quarantined", "gauge", "Devices that are kept out for a while; status tells which and why."}
	mQuarTotal  = metric{"tailrace_mqtt_quarantines_total", "counter", "Times a device was put into quarantine, by reason."}
	mBroken     = metric{"tailrace_access_broken", "gauge", "1 while passwords or rules of access cannot be read: nobody has any right."}
	mPanics     = metric{"tailrace_mqtt_panics_total", "counter", "Connections closed by a bug of the server. Please report."}
	mDevices    = metric{"tailrace_devices_known", "gauge", "Devices in the registry."}
	mForgotten  = metric{"tailrace_devices_forgotten_total", "counter", "Devices forgotten for lack of room since start: raise devices.max, or look for invented names."}
	mLinkUp     = metric{"tailrace_link_connected", "gauge", "1 while a session with a hub is open."}
	mLinkRTT    = metric{"tailrace_link_rtt_seconds", "gauge", "Round trip to the hub."}
	mLinkSent   = metric{"tailrace_link_bytes_total", "counter", "Bytes sent to the hub since start."}
	mLinkRedial = metric{"tailrace_link_reconnects_total", "counter", "Reconnects to hubs since start."}
	mBridgeUp   = metric{"tailrace_bridge_connected", "gauge", "1 while the bridge is connected to its broker."}
	mBridgeIn   = metric{"tailrace_bridge_stored_total", "counter", "Messages of the broker made durable."}
	mBridgeLag  = metric{"tailrace_bridge_lag_records", "gauge", "Messages of the broker received and not yet durable. At receive_maximum: the disk is the brake."}
	mBridgeDup  = metric{"tailrace_bridge_duplicates_total", "counter", "Messages redelivered by the broker that were durable already and not stored again."}
	mBridgeRed  = metric{"tailrace_bridge_redelivered_total", "counter", "Messages that the broker marked as redelivered. Above duplicates: stored, perhaps again."}
	mBridgeLast = metric{"tailrace_bridge_last_message_timestamp_seconds", "gauge", "When the newest message of the broker came; 0 = none since start."}
	mBridgeLost = metric{"tailrace_bridge_sessions_lost_total", "counter", "Times the broker had forgotten our session: what was published meanwhile is not coming."}
	mBridgeTry  = metric{"tailrace_bridge_reconnects_total", "counter", "Reconnects to the broker since start."}
	mBridgeDrop = metric{"tailrace_bridge_refused_total", "counter", "Messages of the broker that can never be stored (no route, too large), acknowledged and dropped."}
	mInfo       = metric{"tailrace_info", "gauge", "Version, node and medium of the log as labels."}
)

// exposition collects samples by family, since the text format wants a family in one piece.
type exposition struct {
	order   []string
	samples map[string]*bytes.Buffer
}

func (e *exposition) family(m metric) *bytes.Buffer {
	b := e.samples[m.name]
	if b == nil {
		b = &bytes.Buffer{}
		fmt.Fprintf(b, "# HELP %s %s\n# TYPE %s %s\n", m.name, m.help, m.name, m.kind)
		e.samples[m.name] = b
		e.order = append(e.order, m.name)
	}
	return b
}

// add writes one sample; labels are pairs of name and value.
func (e *exposition) add(m metric, v float64, labels ...string) {
	name := m.name
	if len(labels) > 0 {
		name += "{"
		for i := 0; i+1 < len(labels); i += 2 {
			if i > 0 {
				name += ","
			}
			name += labels[i] + "=" + strconv.Quote(labels[i+1])
		}
		name += "}"
	}
	metrics.WriteGaugeFloat64(e.family(m), name, v)
}

func (n *Node) serveMetrics(w http.ResponseWriter, _ *http.Request) {
	e := &exposition{samples: map[string]*bytes.Buffer{}}
	n.collect(e)
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	for _, name := range e.order {
		w.Write(e.samples[name].Bytes())
	}
	metrics.WriteProcessMetrics(w)
}

// collectAlarms shows those that are on, and every kind so that a rule finds it.
func (n *Node) collectAlarms(e *exposition) {
	on := n.checkAlarms()
	for _, kind := range alarmKinds {
		any := false
		for _, a := range on {
			if a.Kind == kind {
				any = true
				e.add(mAlarm, 1, "alarm", kind, "class", a.Class)
			}
		}
		if !any {
			e.add(mAlarm, 0, "alarm", kind, "class", "")
		}
	}
}

func (n *Node) collect(e *exposition) {
	e.add(mInfo, 1, "version", n.cfg.Version, "node", n.cfg.Node, "medium", n.medium.Kind)
	n.eachPartition(func(t TopicStatus) {
		l := []string{"topic", t.Topic, "partition", strconv.Itoa(t.Partition)}
		e.add(mStart, float64(t.Start), l...)
		e.add(mAppended, float64(t.Appended), l...)
		e.add(mDurable, float64(t.Durable), l...)
		e.add(mAcked, float64(t.Acked), l...)
		e.add(mLag, float64(t.Lag), l...)
		e.add(mLagSeconds, t.LagSecs, l...)
	})
	_, backlog := n.source.lag()
	for _, b := range backlog {
		e.add(mLagBytes, float64(b.Bytes), "topic", b.Topic, "partition", strconv.Itoa(b.Partition))
	}
	st := n.store.Stats()
	for _, c := range st.Classes {
		e.add(mRecords, float64(c.Records), "class", c.Class)
		e.add(mBatches, float64(c.RecordBytes), "class", c.Class)
		e.add(mPayload, float64(c.PayloadBytes), "class", c.Class)
		e.add(mCommits, float64(c.Commits), "class", c.Class)
		e.add(mFsyncs, float64(c.Fsyncs), "class", c.Class)
		e.add(mWritten, float64(c.WrittenBytes), "class", c.Class)
		e.add(mFailures, float64(c.Failures), "class", c.Class)
		e.add(mDisk, float64(c.DiskBytes), "class", c.Class)
		e.add(mBudget, float64(c.MaxBytes), "class", c.Class)
		e.add(mReserve, float64(c.Reserve), "class", c.Class)
		e.add(mScrubbed, float64(c.ScrubbedBytes), "class", c.Class)
		e.add(mScrubFound, float64(c.ScrubDamaged), "class", c.Class)
		e.add(mHealed, float64(c.Healed), "class", c.Class)
		e.add(mLost, float64(c.EvictedRecords), "class", c.Class, "reason", "evicted")
		e.add(mLost, float64(c.DamagedRecords), "class", c.Class, "reason", "damaged")
	}
	if free, ok := freeBytes(n.cfg.Storage.Dir); ok {
		e.add(mFree, float64(free))
	}
	f := n.wear.status(n.cfg.Now(), st)
	e.add(mFsyncRate, f.FsyncsPerMinute)
	if f.DeviceBytes >= 0 {
		e.add(mDevice, float64(f.DeviceBytes))
	}
	if f.PerPayloadByte > 0 {
		e.add(mDeviceRate, f.PerPayloadByte)
	}
	if f.LifeYears > 0 {
		e.add(mLife, f.LifeYears)
	}
	n.collectAlarms(e)
	for i := range n.ingest.refused {
		e.add(mRefused, float64(n.ingest.refused[i].Load()), "reason", refusalNames[i])
	}
	for _, r := range n.router.Stats() {
		e.add(mRule, float64(r.Records.Load()), "route", r.Rule)
		e.add(mRuleReject, float64(r.Rejected.Load()), "route", r.Rule)
		e.add(mRuleTime, float64(r.TimeArrival.Load()), "route", r.Rule)
		e.add(mRuleDup, float64(r.Duplicates.Load()), "route", r.Rule)
		e.add(mRuleNoSeq, float64(r.NoSequence.Load()), "route", r.Rule)
		e.add(mRuleClamp, float64(r.TimeClamped.Load()), "route", r.Rule)
	}
	m := n.mqtt.Stats()
	e.add(mConns, float64(m.Connections))
	e.add(mSessions, float64(m.Sessions))
	e.add(mPublished, float64(m.Published))
	e.add(mDups, float64(m.Duplicates))
	e.add(mAmbiguous, float64(m.Ambiguous))
	e.add(mDropped, float64(m.Dropped))
	e.add(mThrottled, float64(m.Throttled))
	e.add(mConnRef, float64(m.ConnectionsRefused))
	out, quarantines := n.ingest.suspects.list()
	e.add(mQuarantine, float64(len(out)))
	for reason, times := range quarantines {
		e.add(mQuarTotal, float64(times), "reason", reason)
	}
	broken := 0.0
	if n.auth.policy.Load().broken != nil {
		broken = 1
	}
	e.add(mBroken, broken)
	e.add(mPanics, float64(m.Panics))
	e.add(mDevices, float64(n.registry.Len()))
	e.add(mForgotten, float64(n.registry.Evicted()))
	if n.link != nil {
		l := n.link.State()
		up := 0.0
		if l.Connected {
			up = 1
		}
		e.add(mLinkUp, up)
		for _, b := range n.budgets.status() {
			e.add(mLinkUsed, float64(b.Used), "link", b.Name)
			e.add(mLinkBudget, float64(b.Monthly), "link", b.Name)
			e.add(mLinkCast, float64(b.Forecast), "link", b.Name)
			held := 0.0
			if b.Held != "" {
				held = 1
			}
			e.add(mLinkHeld, held, "link", b.Name)
		}
		sent := map[string]int64{}
		for _, w := range n.link.Wire() {
			sent[w.Topic] += int64(w.Records)
			e.add(mWireRecs, float64(w.Records), "topic", w.Topic)
			e.add(mWireBytes, float64(w.Wire), "topic", w.Topic)
		}
		if n.sketcher != nil {
			n.sketcher.counts(func(name string, made, lost int64) {
				e.add(mSketchMade, float64(made), "topic", name)
				e.add(mSketchSent, float64(sent[name+wire.SketchSuffix]), "topic", name)
				e.add(mSketchLost, float64(lost), "topic", name)
			})
		}
		e.add(mLinkRTT, l.RTT.Seconds())
		e.add(mLinkSent, float64(l.BytesSent))
		e.add(mLinkRedial, float64(l.Reconnects))
	}
	for _, b := range n.bridges {
		s := b.Stats()
		up := 0.0
		if s.Connected {
			up = 1
		}
		e.add(mBridgeUp, up, "bridge", s.Name)
		e.add(mBridgeIn, float64(s.Stored), "bridge", s.Name)
		e.add(mBridgeDrop, float64(s.Refused), "bridge", s.Name)
		e.add(mBridgeLag, float64(s.Waiting), "bridge", s.Name)
		e.add(mBridgeDup, float64(s.Duplicates), "bridge", s.Name)
		e.add(mBridgeRed, float64(s.Redelivery), "bridge", s.Name)
		last := 0.0
		if !s.LastAt.IsZero() {
			last = float64(s.LastAt.UnixMilli()) / 1000
		}
		e.add(mBridgeLast, last, "bridge", s.Name)
		e.add(mBridgeLost, float64(s.LostState), "bridge", s.Name)
		e.add(mBridgeTry, float64(s.Reconnects), "bridge", s.Name)
	}
}
