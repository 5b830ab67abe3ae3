package edge

import (
	"encoding/hex"
	"strings"
	"time"

	"tailrace/edge/bridge"
	"tailrace/storage"
	"tailrace/uplink/wire"
)

// Status is the node as GET /api/v1/status tells it.
type Status struct {
	Node      string        `json:"node"`
	Version   string        `json:"version"`
	Started   time.Time     `json:"started"`
	UptimeSec int64         `json:"uptime_s"`
	Ready     bool          `json:"ready"`
	Alarms    []Alarm       `json:"alarms"` // what is wrong with the disk now
	Store     StoreStatus   `json:"store"`
	Uplink    *UplinkStatus `json:"uplink"` // null without hubs
	Topics    []TopicStatus `json:"topics"`
	MQTT      MQTTStatus    `json:"mqtt"`
	Bridges   []BridgeState `json:"bridges"`
	Devices   int           `json:"devices_known"`
	Rules     []RuleStatus  `json:"routes"`
}

// StoreStatus describes the log.
type StoreStatus struct {
	StoreID  string        `json:"store_id"`
	Epoch    int32         `json:"epoch"`
	BootID   string        `json:"boot_id"`
	Device   string        `json:"device"`
	Medium   string        `json:"medium"`
	FreeDisk int64         `json:"free_bytes"` // of the file system; -1 unknown
	MaxBytes int64         `json:"max_bytes"`  // budget of all classes together; 0 none
	Flash    FlashStatus   `json:"flash"`
	Classes  []ClassStatus `json:"classes"`
	Repairs  []string      `json:"repairs"` // what this start had to repair
	Losses   []LossStatus  `json:"losses"`  // acknowledged, gone, and not yet in the hub's ledger
}

// ClassStatus is one storage class.
type ClassStatus struct {
	Class     string `json:"class"`
	Records   uint64 `json:"records"` // durable since start
	Commits   uint64 `json:"commits"`
	Fsyncs    uint64 `json:"fsyncs"`
	Written   uint64 `json:"written_bytes"` // to segment files since start, framing included
	Failures  uint64 `json:"failures"`
	Refused   uint64 `json:"refused"`
	DiskBytes int64  `json:"disk_bytes"`
	MaxBytes  int64  `json:"max_bytes"`
	Reserve   int64  `json:"reserve_bytes"` // allocated for giving data up on a full disk; 0 while in use
	Full      bool   `json:"full"`          // publishes are refused for lack of room
	Evicted   uint64 `json:"evicted"`       // records given up before the hub had them
	Segments  int    `json:"segments"`
	Broken    string `json:"broken,omitempty"`
}

// LossStatus is one lost range.
type LossStatus struct {
	Topic     string    `json:"topic"`
	Partition int       `json:"partition"`
	From      int64     `json:"from"`
	To        int64     `json:"to"`
	Reason    string    `json:"reason"`
	At        time.Time `json:"at"`
}

// UplinkStatus is the link to the hub.
type UplinkStatus struct {
	Connected  bool      `json:"connected"`
	Hub        string    `json:"hub"`
	Since      time.Time `json:"since"`
	LastError  string    `json:"last_error,omitempty"`
	Reconnects int64     `json:"reconnects"`
	RTTMicros  int64     `json:"rtt_us"`
	BytesSent  int64     `json:"bytes_sent"`
	LagRecords int64     `json:"lag_records"`
	// Links are the classes of links: what each may use, has used, and will.
	Links []LinkInfo `json:"links,omitempty"`
	// Refused are the streams that the hub does not take from this node, and why.
	Refused []RefusedStream `json:"refused_topics,omitempty"`
}

// LinkInfo is one class of links.
type LinkInfo struct {
	Name      string    `json:"name"`
	Interface string    `json:"interface,omitempty"` // in use; empty = this class is not
	RateLimit int64     `json:"rate_limit_bytes"`    // per second, 0 = none
	Monthly   int64     `json:"monthly_bytes"`       // 0 = no budget
	Used      int64     `json:"used_bytes"`
	Left      int64     `json:"left_bytes"`
	Forecast  int64     `json:"forecast_bytes"` // used at the end of the period, at the mean rate so far
	Ends      time.Time `json:"period_ends,omitzero"`
	Held      string    `json:"held,omitempty"` // why something waits
}

// RefusedStream is a stream that the hub does not take.
type RefusedStream struct {
	Topic  string `json:"topic"`
	Reason string `json:"reason"`
}

// TopicStatus is one partition. appended >= durable >= acked.
type TopicStatus struct {
	Topic     string    `json:"topic"`
	Partition int       `json:"partition"`
	Start     int64     `json:"start"`
	Appended  int64     `json:"appended"`
	Durable   int64     `json:"durable"`
	Acked     int64     `json:"acked"`       // at the hub, without a hole; the start while the hub was not heard
	Lag       int64     `json:"lag"`         // records that the hub shall have and has not
	LagSecs   float64   `json:"lag_seconds"` // age of the oldest of them
	Mode      string    `json:"mode"`        // in-order, live-first, on-demand, refused (by the hub)
	Priority  int32     `json:"priority"`
	Bytes     int64     `json:"bytes"`
	FirstTime time.Time `json:"first_time,omitzero"`
	LastTime  time.Time `json:"last_time,omitzero"`
}

// MQTTStatus is the MQTT server.
type MQTTStatus struct {
	Connections   int    `json:"connections"`
	Sessions      int    `json:"sessions"`
	Subscriptions int    `json:"subscriptions"`
	Published     uint64 `json:"published"`
	Refused       uint64 `json:"refused"`
	Duplicates    uint64 `json:"duplicates"` // re-sends recognised
	LoginsRefused uint64 `json:"logins_refused"`
	Throttled     uint64 `json:"throttled"` // times a client above its rate was not read for a while
	// Quarantined devices are kept out for a while; the reason is the last offence.
	Quarantined []QuarantinedDevice `json:"quarantined"`
	// AccessBroken: passwords or rules cannot be read, and nobody has any right.
	AccessBroken string `json:"access_broken,omitempty"`
}

// BridgeState is one bridge.
type BridgeState struct {
	Name       string    `json:"name"`
	Connected  bool      `json:"connected"`
	Broker     string    `json:"broker"`
	Since      time.Time `json:"since"`
	Received   uint64    `json:"received"`
	Stored     uint64    `json:"stored"`
	Refused    uint64    `json:"refused"`
	Redelivery uint64    `json:"redelivered"`
	Duplicates uint64    `json:"duplicates"` // redelivered, durable already, not stored again
	Failed     uint64    `json:"failed"`     // could not be stored now; the broker sends them again
	LostState  uint64    `json:"sessions_lost"`
	State      string    `json:"state"` // connecting, connected, waiting
	NextTry    time.Time `json:"next_try,omitzero"`
	Lag        int64     `json:"lag"` // received and not yet durable
	LastAt     time.Time `json:"last_message,omitzero"`
	Bytes      uint64    `json:"bytes"`
	Reconnects uint64    `json:"reconnects"`
	LastError  string    `json:"last_error,omitempty"`
}

// RuleStatus is one route; the default is the last.
type RuleStatus struct {
	Rule        string `json:"rule"`
	Records     uint64 `json:"records"`
	Rejected    uint64 `json:"rejected"`
	TimeArrival uint64 `json:"without_event_time"`
	TimeClamped uint64 `json:"event_time_clamped"`
	Duplicates  uint64 `json:"duplicates"`       // known by their sequence number, not stored again
	NoSequence  uint64 `json:"without_sequence"` // a sequence number was wanted and not found, or too old to tell; stored
}

// Status may be called at any time after Ready.
func (n *Node) Status() Status {
	now := n.cfg.Now()
	s := Status{
		Node: n.cfg.Node, Version: n.cfg.Version, Started: n.started.UTC(), UptimeSec: int64(now.Sub(n.started).Seconds()), Ready: n.serving.Load(),
		Alarms: n.checkAlarms(), Store: n.storeStatus(), Topics: []TopicStatus{}, Bridges: []BridgeState{}, Devices: n.registry.Len(),
	}
	var lag int64
	n.eachPartition(func(t TopicStatus) {
		lag += t.Lag
		s.Topics = append(s.Topics, t)
	})
	if n.link != nil {
		l := n.link.State()
		s.Uplink = &UplinkStatus{Connected: l.Connected, Hub: l.Hub, Since: l.Since.UTC(), LastError: l.LastError, Reconnects: l.Reconnects,
			RTTMicros: l.RTT.Microseconds(), BytesSent: l.BytesSent, LagRecords: lag}
		for _, b := range n.budgets.status() {
			i := LinkInfo{Name: b.Name, Interface: b.Interface, RateLimit: b.RateLimit, Monthly: b.Monthly, Used: b.Used, Left: max(0, b.Monthly-b.Used), Forecast: b.Forecast, Held: b.Held}
			if b.EndsMS > 0 {
				i.Ends = time.UnixMilli(b.EndsMS).UTC()
			}
			s.Uplink.Links = append(s.Uplink.Links, i)
		}
		for _, r := range l.Refused {
			s.Uplink.Refused = append(s.Uplink.Refused, RefusedStream{r.Topic, r.Reason})
		}
	}
	m := n.mqtt.Stats()
	s.MQTT = MQTTStatus{Connections: m.Connections, Sessions: m.Sessions, Subscriptions: m.Subscriptions, Published: m.Published, Refused: m.Refused, Duplicates: m.Duplicates, LoginsRefused: m.LoginsRefused, Throttled: m.Throttled}
	s.MQTT.Quarantined, _ = n.ingest.suspects.list()
	if err := n.auth.policy.Load().broken; err != nil {
		s.MQTT.AccessBroken = err.Error()
	}
	for _, b := range n.bridges {
		s.Bridges = append(s.Bridges, bridgeState(b.Stats()))
	}
	for _, r := range n.router.Stats() {
		s.Rules = append(s.Rules, RuleStatus{r.Rule, r.Records.Load(), r.Rejected.Load(), r.TimeArrival.Load(), r.TimeClamped.Load(), r.Duplicates.Load(), r.NoSequence.Load()})
	}
	return s
}

func bridgeState(b bridge.Stats) BridgeState {
	return BridgeState{Name: b.Name, Connected: b.Connected, Broker: b.Broker, Since: b.Since.UTC(), Received: b.Received, Stored: b.Stored,
		Refused: b.Refused, Redelivery: b.Redelivery, Reconnects: b.Reconnects, LastError: b.LastError, Duplicates: b.Duplicates, Failed: b.Failed,
		LostState: b.LostState, State: b.State, NextTry: b.NextTry, Lag: b.Waiting, LastAt: b.LastAt, Bytes: b.Bytes}
}

func (n *Node) storeStatus() StoreStatus {
	id := n.store.Identity()
	s := StoreStatus{StoreID: hex.EncodeToString(id.StoreID[:]), Epoch: id.Epoch.Number, BootID: hex.EncodeToString(id.BootID[:]),
		Device: n.medium.Device, Medium: n.medium.Kind, FreeDisk: -1, Classes: []ClassStatus{}, Repairs: []string{}, Losses: []LossStatus{}}
	if free, ok := freeBytes(n.cfg.Storage.Dir); ok {
		s.FreeDisk = free
	}
	st := n.store.Stats()
	s.MaxBytes, s.Flash = st.MaxBytes, n.wear.status(n.cfg.Now(), st)
	for _, c := range st.Classes {
		cs := ClassStatus{Class: c.Class, Records: c.Records, Commits: c.Commits, Fsyncs: c.Fsyncs, Written: c.WrittenBytes, Failures: c.Failures, Refused: c.Refused,
			DiskBytes: c.DiskBytes, MaxBytes: c.MaxBytes, Segments: c.Segments,
			Reserve: c.Reserve, Full: c.Full, Evicted: c.EvictedRecords}
		if c.Broken != nil {
			cs.Broken = c.Broken.Error()
		}
		s.Classes = append(s.Classes, cs)
	}
	for _, r := range id.Recovered {
		s.Repairs = append(s.Repairs, r.Class+"/"+r.File+": "+r.What+" "+r.Detail)
	}
	for _, l := range n.store.Losses() {
		s.Losses = append(s.Losses, LossStatus{l.Topic, l.Index, l.From, l.To, l.Reason.String(), l.At.UTC()})
	}
	return s
}

func (n *Node) eachPartition(f func(TopicStatus)) {
	for _, t := range n.store.Topics() {
		for _, p := range t.Partitions() {
			s := TopicStatus{Topic: t.Name(), Partition: p.Index(), Start: p.Start(), Acked: n.source.ackedOffset(p), Durable: p.HighWatermark(), Appended: p.Next(), Bytes: p.Bytes()}
			mode, priority := n.streams.replication(t.Name())
			if n.source.isRefused(t.Name()) {
				mode = wire.ModeRefused
			}
			if s.Mode, s.Priority = mode.String(), priority; mode != wire.ModeOnDemand && mode != wire.ModeRefused {
				b := n.source.lagOf(t.Name(), p)
				if s.Lag = b.Records; b.OldestMS > 0 {
					s.LagSecs = max(0, float64(n.cfg.Now().UnixMilli()-b.OldestMS)/1000)
				}
			}
			if ts, ok := p.StartTime(); ok {
				s.FirstTime = time.UnixMilli(ts).UTC()
			}
			if ts, ok := p.LastTime(); ok {
				s.LastTime = time.UnixMilli(ts).UTC()
			}
			f(s)
		}
	}
}

// wireStatus is the report to the hub.
func (n *Node) wireStatus() wire.Status {
	now := n.cfg.Now()
	_, backlog := n.source.lag()
	backlog = append(backlog, n.source.kept()...)
	m := n.mqtt.Stats()
	st := wire.Status{UptimeSec: int64(now.Sub(n.started).Seconds()), Devices: int64(m.Connections), Refused: int64(m.Refused)}
	st.Clock = wire.Clock{UnixNano: now.UnixNano(), Trusted: n.clockTrusted()}
	if free, ok := freeBytes(n.cfg.Storage.Dir); ok {
		st.DiskFree = free
	}
	for _, c := range n.store.Stats().Classes {
		st.DiskBytes += c.DiskBytes
		st.DiskBudget += c.MaxBytes
		st.WrittenBytes += int64(c.WrittenBytes)
		st.Fsyncs += int64(c.Fsyncs)
		st.Records += int64(c.Records)
	}
	st.Links = n.budgets.status()
	for _, a := range n.checkAlarms() {
		st.Notes = append(st.Notes, strings.TrimSpace(a.Kind+" "+a.Class)+": "+a.Message)
	}
	for _, l := range n.store.Losses() {
		if l.Reason == storage.LossEvicted {
			st.Dropped += l.To - l.From
		}
	}
	for i := range backlog {
		b := &backlog[i]
		if b.Records == 0 && !b.Kept {
			continue
		}
		st.Backlog = append(st.Backlog, *b)
		if len(st.Backlog) == maxReportedBacklogs {
			break
		}
	}
	return st
}

// maxReportedBacklogs keeps a status report small on a node with many topics.
const maxReportedBacklogs = 256
