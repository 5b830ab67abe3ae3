package link

import (
	"maps"
	"slices"
	"sync"
	"sync/atomic"
)

// WireCount counts what a topic took on the wire: records, their batches as they are
// stored, and the frames that carried them, compressed. Packets, acknowledgements and
// what was lost and sent again come on top. Counters only grow.
type WireCount struct {
	Records, Raw, Wire atomic.Int64
}

func (c *WireCount) add(records, raw, wire int64) {
	c.Records.Add(records)
	c.Raw.Add(raw)
	c.Wire.Add(wire)
}

// A Meter is a Sink that counts by node and topic. It is asked once per session and partition.
type Meter interface {
	WireCount(node, topic string) *WireCount
}

// meters are counters by topic.
type meters struct {
	mu sync.Mutex
	m  map[string]*WireCount
}

func (m *meters) of(topic string) *WireCount {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := m.m[topic]
	if c == nil {
		if m.m == nil {
			m.m = map[string]*WireCount{}
		}
		c = new(WireCount)
		m.m[topic] = c
	}
	return c
}

// TopicWire is what a topic took on the wire since the start.
type TopicWire struct {
	Topic              string
	Records, Raw, Wire int64
}

// Wire is what each topic took on the wire since the start, by name.
func (c *Client) Wire() []TopicWire {
	c.wire.mu.Lock()
	defer c.wire.mu.Unlock()
	out := make([]TopicWire, 0, len(c.wire.m))
	for _, topic := range slices.Sorted(maps.Keys(c.wire.m)) {
		n := c.wire.m[topic]
		out = append(out, TopicWire{topic, n.Records.Load(), n.Raw.Load(), n.Wire.Load()})
	}
	return out
}

// meter is the counter of a partition, nil where nobody counts. Called with mu held.
func (hs *hubSession) meter(partition uint32) *WireCount {
	m, ok := hs.s.cfg.Sink.(Meter)
	if !ok {
		return nil
	}
	if c := hs.meters[partition]; c != nil {
		return c
	}
	topic, ok := hs.recv.Topic(partition)
	if !ok {
		return nil
	}
	if hs.meters == nil {
		hs.meters = map[uint32]*WireCount{}
	}
	c := m.WireCount(hs.node, topic)
	hs.meters[partition] = c
	return c
}
