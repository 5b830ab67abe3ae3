package hub

import (
	"time"

	"tailrace/uplink/link"
	"tailrace/uplink/wire"
)

// drain follows how fast the lag of a node's partition goes down, report by report.
type drain struct {
	at   time.Time
	lag  int64
	rate float64 // records per second less; below 0 it grows
}

// drainMemory is over how long a rate is averaged.
const drainMemory = 60 * time.Second

// report takes a report.
func (d *drain) report(lag int64, now time.Time) {
	if dt := now.Sub(d.at).Seconds(); !d.at.IsZero() && dt > 0 {
		rate := float64(d.lag-lag) / dt
		weight := min(1, dt/drainMemory.Seconds())
		if d.rate == 0 {
			weight = 1
		}
		d.rate += (rate - d.rate) * weight
	}
	d.at, d.lag = now, lag
}

// seconds is when lag records are here at this rate; nil = not at this rate, or not known.
func (d *drain) seconds(lag int64) *float64 {
	var s float64
	switch {
	case lag == 0:
		return &s
	case d == nil || d.rate <= 0:
		return nil
	}
	s = float64(lag) / d.rate
	return &s
}

// takeDrains follows a report. Called with the table's mu held.
func (n *node) takeDrains(st wire.Status, now time.Time) {
	if n.drains == nil {
		n.drains = map[assignKey]*drain{}
	}
	for k, d := range n.drains { // what is not reported has no backlog
		if d.at.Before(n.drainedAt) {
			delete(n.drains, k)
		}
	}
	n.drainedAt = now
	for _, b := range st.Backlog {
		if b.Kept {
			continue
		}
		k := assignKey{topic: b.Topic, partition: b.Partition}
		d := n.drains[k]
		if d == nil {
			if len(n.drains) >= wire.MaxPartitions {
				continue
			}
			d = &drain{}
			n.drains[k] = d
		}
		d.report(b.Records, now)
	}
}

// WireCount implements link.Meter.
func (s sink) WireCount(id, topic string) *link.WireCount {
	s.h.nodes.mu.Lock()
	defer s.h.nodes.mu.Unlock()
	n := s.h.nodes.get(id, s.h.cfg.Now())
	c := n.wire[topic]
	if c == nil {
		if n.wire == nil {
			n.wire = map[string]*link.WireCount{}
		}
		c = new(link.WireCount)
		n.wire[topic] = c
	}
	return c
}

// NodeLinkInfo is a class of links of a node, as it last reported.
type NodeLinkInfo struct {
	Name      string `json:"name"`
	Interface string `json:"interface,omitempty"` // in use; empty = this class is not
	RateLimit int64  `json:"rate_limit_bytes"`    // per second, 0 = none
	Monthly   int64  `json:"monthly_bytes"`       // 0 = no budget
	Used      int64  `json:"used_bytes"`          // in this period, both ways, packet headers included
	Left      int64  `json:"left_bytes"`
	Forecast  int64  `json:"forecast_bytes"` // at the end of the period, at the mean rate so far
	Ends      string `json:"period_ends,omitempty"`
	Held      string `json:"held,omitempty"` // why something waits
}

func linkInfos(list []wire.LinkBudget) (out []NodeLinkInfo) {
	for _, l := range list {
		out = append(out, NodeLinkInfo{truncate(l.Name, 100), truncate(l.Interface, 100), l.RateLimit, l.Monthly, l.Used, max(0, l.Monthly-l.Used), l.Forecast, stamp(l.EndsMS), truncate(l.Held, 200)})
	}
	return out
}
