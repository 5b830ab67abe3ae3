package hub

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"tailrace/storage"
	"tailrace/uplink"
	"tailrace/uplink/hub/internal/saved"
	"tailrace/uplink/link"
	"tailrace/uplink/wire"
)

// nodeTable is what the hub knows of its nodes beside their records: who is
// connected, what each has, when it was heard. The durable part is one small
// entry per node, written when a session begins or ends and at most every
// saveInterval while it lasts; it describes a node to people and is never used
// to decide what has arrived.
type nodeTable struct {
	mu    sync.Mutex // guards the map and every node in it
	nodes map[string]*node
}

type node struct {
	adopting sync.Mutex // before nodeTable.mu: held from a decision on the node's epochs until they are adopted

	saved         savedNode
	sessions      int       // sessions between Connected and Disconnected
	endedAt       time.Time // of the last session
	info          link.SessionInfo
	boot          wire.ID
	sequence      uint64
	answered      bool      // the boot has said something after its Hello
	displaced     []wire.ID // boots that a later one took over from, newest last; at most maxDisplaced
	status        wire.Status
	statusAt      time.Time
	refusedTopics map[string]string  // of its last inventory: what is not taken, and why
	forks         []string           // partitions whose log is not the one stored here
	refused       map[wire.ID]string // boots whose log is another copy, and why; at most maxDisplaced
	other         string             // why another machine of this name was refused last, while this one was connected
	otherAt       time.Time
	wire          map[string]*link.WireCount // by topic, since the hub's start
	drains        map[assignKey]*drain       // without the node; since its session began
	drainedAt     time.Time                  // of the last report
	savedAt       time.Time
}

const (
	maxDisplaced = 16
	maxForks     = 64
	saveInterval = time.Minute
	darkAfter    = 40 * time.Second // without a sign of life; a node sends a heartbeat every 15 s
	nodePrefix   = "node/"          // followed by the node id in the key of a KindRegistry entry
)

// savedNode is the value of a KindRegistry entry "node/<id>". On disk for good:
// fields are added, never renumbered.
type savedNode struct {
	FirstSeen  int64            `cbor:"1,keyasint"` // ms since 1970
	LastSeen   int64            `cbor:"2,keyasint"`
	Software   string           `cbor:"3,keyasint,omitempty"`
	Remote     string           `cbor:"4,keyasint,omitempty"`
	Fenced     string           `cbor:"5,keyasint,omitempty"` // why; empty = it is not
	FencedAt   int64            `cbor:"6,keyasint,omitempty"`
	AcceptNext bool             `cbor:"7,keyasint,omitempty"`
	Partitions []savedPartition `cbor:"8,keyasint,omitempty"`
}

// savedPartition is what a node said it has.
type savedPartition struct {
	Topic     string `cbor:"1,keyasint"`
	Partition int    `cbor:"2,keyasint"`
	Start     int64  `cbor:"3,keyasint"`
	Next      int64  `cbor:"4,keyasint"`
	MaxTime   int64  `cbor:"5,keyasint,omitempty"`
	Bytes     int64  `cbor:"6,keyasint,omitempty"`
	Oldest    int64  `cbor:"7,keyasint,omitempty"` // ms since 1970 of the oldest record the hub lacks

	Mode     wire.Mode `cbor:"8,keyasint,omitempty"`
	Priority int32     `cbor:"9,keyasint,omitempty"`
	ID       uint32    `cbor:"10,keyasint,omitempty"` // the node's number for it in its last session
}

func (n *node) partition(topic string, partition int) *savedPartition {
	for i := range n.saved.Partitions {
		if p := &n.saved.Partitions[i]; p.Topic == topic && p.Partition == partition {
			return p
		}
	}
	if len(n.saved.Partitions) >= wire.MaxPartitions {
		return nil
	}
	n.saved.Partitions = append(n.saved.Partitions, savedPartition{Topic: topic, Partition: partition})
	return &n.saved.Partitions[len(n.saved.Partitions)-1]
}

// get finds or makes a node. Called with mu held.
func (t *nodeTable) get(id string, now time.Time) *node {
	n := t.nodes[id]
	if n == nil {
		n = &node{saved: savedNode{FirstSeen: now.UnixMilli()}}
		t.nodes[id] = n
	}
	return n
}

func (h *Hub) loadNodes() error {
	var err error
	h.store.RangeState(storage.KindRegistry, func(key string, value []byte) bool {
		id, ok := cutPrefix(key, nodePrefix)
		if !ok {
			return true
		}
		n := &node{}
		if e := saved.Decode(value, &n.saved); e != nil {
			err = fmt.Errorf("registry entry %q: %w", key, e)
			return false
		}
		h.nodes.nodes[id] = n
		return true
	})
	return err
}

// saveNode stores what describes a node. wait = until it is durable.
func (h *Hub) saveNode(ctx context.Context, id string, wait bool) error {
	h.nodes.mu.Lock()
	n := h.nodes.nodes[id]
	if n == nil {
		h.nodes.mu.Unlock()
		return nil
	}
	n.savedAt = h.cfg.Now()
	value := saved.Encode(n.saved)
	h.nodes.mu.Unlock()
	return h.central.saveNote(ctx, id, value, wait)
}

// takeInventory notes what a node said it has. Called with mu held.
func (n *node) takeInventory(inv wire.Inventory) {
	list := make([]savedPartition, 0, len(inv.Partitions))
	for _, p := range inv.Partitions {
		list = append(list, savedPartition{Topic: p.Topic, Partition: p.Partition, Start: p.Start, Next: p.Next, MaxTime: p.MaxTime, Bytes: p.Bytes, Mode: p.Mode, Priority: p.Priority, ID: p.ID})
	}
	n.saved.Partitions = list
}

// takeStatus notes a report. Called with mu held.
func (n *node) takeStatus(st wire.Status, now time.Time) {
	n.status, n.statusAt = st, now
	n.takeDrains(st, now)
	for i := range n.saved.Partitions { // what is not reported has no backlog
		n.saved.Partitions[i].Oldest, n.saved.Partitions[i].Bytes = 0, 0
	}
	for _, b := range st.Backlog {
		if p := n.partition(b.Topic, b.Partition); p != nil {
			p.Next, p.Start = max(p.Next, b.Next), max(p.Start, b.Start)
			p.Oldest = b.OldestMS
			p.Bytes = b.Bytes
		}
	}
}

// NodeInfo is a node as GET /api/v1/nodes shows it.
type NodeInfo struct {
	Node        string  `json:"node"`
	State       string  `json:"state"` // "connected", "dark" (no session, or silent for darkAfter), "fenced"
	Dark        bool    `json:"dark"`
	Fenced      string  `json:"fenced,omitempty"` // why nothing is taken from it, and what to do
	FirstSeen   string  `json:"first_seen"`
	LastSeen    string  `json:"last_seen"`
	LastSeenAgo float64 `json:"last_seen_seconds"` // seconds ago; means nothing without last_seen
	Remote      string  `json:"remote,omitempty"`
	Software    string  `json:"software,omitempty"`
	Since       string  `json:"connected_since,omitempty"`
	StoreID     string  `json:"store_id"`
	Epoch       string  `json:"epoch,omitempty"` // the node's current one
	Epochs      int     `json:"epochs"`
	Boot        string  `json:"boot,omitempty"`
	RTTSeconds  float64 `json:"rtt_seconds,omitempty"`
	ClockOffset float64 `json:"clock_offset_seconds,omitempty"` // node's clock minus the hub's
	LagRecords  int64   `json:"lag_records"`
	LagBytes    int64   `json:"lag_bytes"`   // as the node last reported
	LagSeconds  float64 `json:"lag_seconds"` // age of the oldest record that is not here, 0 = none
	// DrainSeconds is when all lag is gone; null = not known, see the topics.
	DrainSeconds *float64        `json:"drain_seconds"`
	Lost         int64           `json:"lost_records"`
	Stored       int64           `json:"stored_records"`
	RecordsIn    int64           `json:"session_records"`
	BytesIn      int64           `json:"session_bytes"`
	WireBytes    int64           `json:"session_wire_bytes"`
	Status       *NodeStatusInfo `json:"status,omitempty"`         // last report
	Refused      []RefusedTopic  `json:"refused_topics,omitempty"` // the node may not write them here; everything else goes on
	OtherCopy    string          `json:"other_copy,omitempty"`     // another machine uses this node's name and is refused: when and why
	Forks        []string        `json:"forks,omitempty"`          // partitions that are not asked for: their log is not the one stored here
	Topics       []NodeTopicInfo `json:"topics"`
}

// NodeStatusInfo is the last report of a node.
type NodeStatusInfo struct {
	At           string         `json:"at"`
	UptimeSec    int64          `json:"uptime_seconds"`
	DiskBytes    int64          `json:"disk_bytes"`
	DiskBudget   int64          `json:"disk_budget_bytes"`
	DiskFree     int64          `json:"disk_free_bytes"`
	WrittenBytes int64          `json:"written_bytes"`
	Fsyncs       int64          `json:"fsyncs"`
	Devices      int64          `json:"devices"`
	Records      int64          `json:"records"`
	Refused      int64          `json:"refused"`
	Dropped      int64          `json:"dropped"`
	ClockTrusted bool           `json:"clock_trusted"`
	Links        []NodeLinkInfo `json:"links,omitempty"` // classes of links with their budgets
	Notes        []string       `json:"notes,omitempty"`
}

// NodeTopicInfo is the state of one topic partition of a node.
type NodeTopicInfo struct {
	Topic            string  `json:"topic"`
	Partition        int     `json:"partition"`
	CentralTopic     string  `json:"central_topic"`
	CentralPartition int     `json:"central_partition"`
	Mode             string  `json:"mode"`                     // in-order, live-first, on-demand, refused
	Priority         int32   `json:"priority"`                 // 1 and above: urgent
	BackfillTopic    string  `json:"backfill_topic,omitempty"` // of a live-first topic: where its gaps are
	Backfilled       int64   `json:"backfilled_records"`       // of stored_records, in backfill_topic
	Next             int64   `json:"next"`                     // one past the node's last durable offset, as last heard
	CompleteTo       int64   `json:"complete_to"`              // every offset below is stored or declared lost
	CompleteTime     string  `json:"complete_time,omitempty"`  // largest record time stored
	LagRecords       int64   `json:"lag_records"`
	LagBytes         int64   `json:"lag_bytes"`
	LagSeconds       float64 `json:"lag_seconds"`
	AtNode           int64   `json:"at_node_records"` // not here on purpose: on demand, or refused; not in lag_records
	Stored           int64   `json:"stored_records"`
	Lost             int64   `json:"lost_records"`

	// DrainSeconds is when the lag is gone at the rate of the last reports; null = not at this
	// rate, or not known, 0 = there is none.
	DrainSeconds *float64 `json:"drain_seconds"`

	// What the topic took on the wire since the hub started, all partitions together: records
	// received, and bytes of the frames that carried them, compressed.
	WireRecords   int64   `json:"wire_records"`
	WireBytes     int64   `json:"wire_bytes"`
	WirePerRecord float64 `json:"wire_bytes_per_record"`
}

// Nodes describes every node ever seen, by name.
func (h *Hub) Nodes() []NodeInfo {
	live := map[string]link.NodeState{}
	if h.links != nil {
		for _, s := range h.links.Nodes() {
			live[s.Node] = s
		}
	}
	lost := map[string]int64{}
	for k, v := range h.central.LossTotals() {
		lost[k.Node] += v.Records
	}
	now := h.cfg.Now()
	h.nodes.mu.Lock()
	defer h.nodes.mu.Unlock()
	out := make([]NodeInfo, 0, len(h.nodes.nodes))
	for id, n := range h.nodes.nodes {
		if n.sessions == 0 && !h.here(id) {
			continue
		}
		info := h.describe(id, n, now)
		info.Lost = lost[id]
		if s, ok := live[id]; ok && n.sessions > 0 {
			info.RTTSeconds, info.ClockOffset = s.RTT.Seconds(), s.ClockOffset.Seconds()
			info.RecordsIn, info.BytesIn, info.WireBytes = s.Records, s.BytesReceived, s.WireBytes
			if !s.LastHeard.IsZero() && now.Sub(s.LastHeard) > darkAfter && info.State == "connected" {
				// A killed node says no farewell: its session lasts until it times out.
				info.State, info.Dark = "dark", true
			}
			if !s.LastHeard.IsZero() && s.LastHeard.UnixMilli() > n.saved.LastSeen {
				info.LastSeen, info.LastSeenAgo = stamp(s.LastHeard.UnixMilli()), max(0, now.Sub(s.LastHeard).Seconds())
			}
		}
		out = append(out, info)
	}
	slices.SortFunc(out, func(a, b NodeInfo) int { return cmp.Compare(a.Node, b.Node) })
	return out
}

// describe is called with the table's mu held.
func (h *Hub) describe(id string, n *node, now time.Time) NodeInfo {
	storeID, _ := h.central.Identity()
	info := NodeInfo{
		Node: id, State: "dark", Dark: true, Fenced: n.saved.Fenced,
		FirstSeen: stamp(n.saved.FirstSeen), LastSeen: stamp(n.saved.LastSeen),
		LastSeenAgo: max(0, float64(now.UnixMilli()-n.saved.LastSeen)/1000),
		Remote:      n.saved.Remote, Software: n.saved.Software, StoreID: storeID.String(),
		Forks: slices.Clone(n.forks), Topics: []NodeTopicInfo{},
	}
	if n.sessions > 0 {
		info.State, info.Dark, info.Since, info.Boot = "connected", false, stamp(n.info.Since.UnixMilli()), n.boot.String()
	}
	if n.saved.Fenced != "" {
		info.State = "fenced"
	}
	if n.other != "" {
		info.OtherCopy = stamp(n.otherAt.UnixMilli()) + ": " + n.other
	}
	info.Refused = refusedList(n.refusedTopics)
	epochs, _ := h.central.known(id) // none of a node that another hub serves
	info.Epochs = len(epochs)
	if len(epochs) > 0 {
		info.Epoch = epochs[len(epochs)-1].ID.String()
	}
	if !n.statusAt.IsZero() {
		s := n.status
		info.Status = &NodeStatusInfo{At: stamp(n.statusAt.UnixMilli()), UptimeSec: s.UptimeSec, DiskBytes: s.DiskBytes, DiskBudget: s.DiskBudget,
			DiskFree: s.DiskFree, WrittenBytes: s.WrittenBytes, Fsyncs: s.Fsyncs, Devices: s.Devices, Records: s.Records, Refused: s.Refused,
			Dropped: s.Dropped, ClockTrusted: s.Clock.Trusted, Links: linkInfos(s.Links), Notes: slices.Clone(s.Notes)}
	}
	info.Topics = h.topicInfos(id, n, epochs, now)
	info.DrainSeconds = new(float64)
	for _, t := range info.Topics {
		info.LagRecords += t.LagRecords
		info.LagBytes += t.LagBytes
		info.LagSeconds = max(info.LagSeconds, t.LagSeconds)
		info.Stored += t.Stored
		if t.LagRecords > 0 && info.DrainSeconds != nil {
			if t.DrainSeconds == nil {
				info.DrainSeconds = nil
			} else {
				*info.DrainSeconds = max(*info.DrainSeconds, *t.DrainSeconds)
			}
		}
	}
	return info
}

// topicInfos joins what a node says it has with what is stored of it, over all
// its epochs.
func (h *Hub) topicInfos(id string, n *node, epochs []wire.EpochInfo, now time.Time) []NodeTopicInfo {
	progress, _ := h.central.Progress(context.Background(), id) // nothing of a node that another hub serves
	byKey := map[assignKey]*NodeTopicInfo{}
	get := func(topic string, partition int) *NodeTopicInfo {
		k := assignKey{topic: topic, partition: partition}
		t := byKey[k]
		if t == nil {
			t = &NodeTopicInfo{Topic: topic, Partition: partition}
			byKey[k] = t
		}
		return t
	}
	maxTime := map[*NodeTopicInfo]int64{}
	for _, p := range progress {
		t := get(p.Topic, p.Partition)
		t.CentralTopic, t.CentralPartition = p.Central.Topic, p.Central.Partition
		t.Stored += p.Stored
		t.Backfilled += p.Backfill
		t.Lost += p.Held.Count() - p.Stored
		maxTime[t] = max(maxTime[t], p.MaxTime)
	}
	for _, s := range n.saved.Partitions {
		get(s.Topic, s.Partition)
	}
	for k, t := range byKey {
		held := heldNow(epochs, progress, k.topic, k.partition)
		t.CompleteTo = held.Missing(0, uplink.Forever)[0].From
		s := n.partition(k.topic, k.partition)
		if s == nil {
			continue
		}
		t.Next = max(s.Next, t.CompleteTo) // more may have come since it reported
		t.Priority, t.Mode = s.Priority, s.Mode.String()
		missing := max(0, s.Next-s.Start-held.Within(s.Start, s.Next).Count())
		switch {
		case n.refusedTopics[t.Topic] != "":
			t.Mode, t.AtNode, missing = wire.ModeRefused.String(), missing, 0
		case s.Mode == wire.ModeOnDemand:
			t.AtNode, missing = missing, 0
		case s.Mode == wire.ModeLiveFirst || t.Backfilled > 0:
			t.BackfillTopic = companionOf(t.Topic)
		}
		if t.LagRecords = missing; t.LagRecords > 0 {
			t.LagBytes = s.Bytes
			oldest := cmp.Or(s.Oldest, maxTime[t])
			if oldest > 0 {
				t.LagSeconds = max(0, float64(now.UnixMilli()-oldest)/1000)
			}
		}
	}
	out := make([]NodeTopicInfo, 0, len(byKey))
	for t, ms := range maxTime {
		if ms > 0 {
			t.CompleteTime = stamp(ms)
		}
	}
	for k, t := range byKey {
		var d *drain
		if n.sessions > 0 {
			d = n.drains[k]
		}
		t.DrainSeconds = d.seconds(t.LagRecords)
		if w := n.wire[k.topic]; w != nil {
			if t.WireRecords, t.WireBytes = w.Records.Load(), w.Wire.Load(); t.WireRecords > 0 {
				t.WirePerRecord = float64(t.WireBytes) / float64(t.WireRecords)
			}
		}
		out = append(out, *t)
	}
	slices.SortFunc(out, func(a, b NodeTopicInfo) int {
		return cmp.Or(cmp.Compare(a.Topic, b.Topic), cmp.Compare(a.Partition, b.Partition))
	})
	return out
}

// heldNow is what is stored or declared of the log that the node has now: an offset
// belongs to the newest epoch that begins at or below it.
func heldNow(epochs []wire.EpochInfo, progress []Progress, topic string, partition int) uplink.RangeSet {
	var held uplink.RangeSet
	for i, at := range uplink.EpochRanges(epochs, topic, partition) {
		for _, p := range progress {
			if p.Epoch == epochs[i].ID && p.Topic == topic && p.Partition == partition {
				held.AddSet(p.Held.Within(at.From, at.To))
			}
		}
	}
	return held
}

// stamp writes ms since 1970 as the API does; empty for 0.
func stamp(ms int64) string {
	if ms == 0 {
		return ""
	}
	return time.UnixMilli(ms).UTC().Format("2006-01-02T15:04:05.000Z07:00")
}
