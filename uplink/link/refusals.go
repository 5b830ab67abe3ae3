package link

import (
	"maps"

	"tailrace/uplink/wire"
)

// RefusedTopic is a partition that the hub does not take from this node.
type RefusedTopic struct {
	Topic     string
	Partition int
	Reason    string
}

// planned gives a plan to the Receiver, and says what the node must hear of it; nil =
// nothing. The first plan is made before anything runs; later the caller has mu.
func (hs *hubSession) planned(inv *wire.Inventory, plan *Plan) wire.Message {
	mode := plan.Mode
	if len(plan.Refused) > 0 {
		if mode = maps.Clone(mode); mode == nil {
			mode = map[string]wire.Mode{}
		}
		for topic := range plan.Refused {
			mode[topic] = wire.ModeRefused
		}
	}
	hs.recv.Plan(*inv, plan.Progress, mode, plan.Rate)
	m := &wire.Refusals{}
	for i := range inv.Partitions {
		if why, ok := plan.Refused[inv.Partitions[i].Topic]; ok {
			m.Refused = append(m.Refused, wire.Refusal{Partition: inv.Partitions[i].ID, Reason: clip(why)})
		}
	}
	if len(m.Refused) == 0 && !hs.refusing {
		return nil
	}
	hs.refusing = len(m.Refused) > 0
	return m
}

// A RefusalTaker is a Source that wants to know what the hub does not take.
type RefusalTaker interface {
	Refused(list []RefusedTopic)
}

// setRefused notes what the hub does not take; a new session begins with nothing.
func (c *Client) setRefused(list []RefusedTopic) {
	c.mu.Lock()
	c.refused = list
	c.mu.Unlock()
	if t, ok := c.cfg.Source.(RefusalTaker); ok {
		t.Refused(list)
	}
}

// refused takes what the hub does not take.
func (s *session) refused(m *wire.Refusals) {
	s.mu.Lock()
	names := make(map[uint32]*uplinkPartition, len(s.partitions))
	for i := range s.partitions {
		names[s.partitions[i].id] = &s.partitions[i]
	}
	out := make([]RefusedTopic, 0, len(m.Refused))
	for _, r := range m.Refused {
		if p := names[r.Partition]; p != nil {
			out = append(out, RefusedTopic{p.topic, p.index, r.Reason})
		}
	}
	s.mu.Unlock()
	for _, r := range out {
		s.log.Warn("the hub does not take this topic from this node", "topic", r.Topic, "partition", r.Partition, "reason", r.Reason)
	}
	s.c.setRefused(out)
}
