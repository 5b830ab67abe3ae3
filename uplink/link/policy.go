package link

import (
	"context"
	"sync"

	"tailrace/uplink"
	"tailrace/uplink/wire"
)

// Policy is what may use the link now. It may change at any time.
type Policy struct {
	RateLimit int64 // bytes per second that data may take, 0 = none; live goes at once, and counts
	// Floor is the least priority of topics that may go, by lane; what is lower waits.
	// Control goes always.
	Floor [wire.Lanes]int32
}

// Open is the policy without any restraint.
func Open(rateLimit int64) Policy {
	return Policy{rateLimit, [wire.Lanes]int32{uplink.NoFloor, uplink.NoFloor, uplink.NoFloor}}
}

// SetPolicy changes what may use the link, of sessions that run and that come.
func (c *Client) SetPolicy(p Policy) {
	c.mu.Lock()
	c.policy = p
	live := make([]*session, 0, len(c.live))
	for s := range c.live {
		live = append(live, s)
	}
	c.mu.Unlock()
	for _, s := range live {
		s.setPolicy(p)
	}
}

func (s *session) setPolicy(p Policy) {
	s.pacer.setLimit(p.RateLimit)
	s.mu.Lock()
	s.sender.SetFloor(p.Floor)
	s.settle()
}

func (p *pacer) setLimit(n int64) {
	p.mu.Lock()
	p.limit = n
	p.mu.Unlock()
}

// What IP and UDP, or TCP, add to a packet on an IPv4 link; and what a dial takes that
// nobody answers: a few initial packets.
const (
	headerUDP    = 28
	headerTCP    = 52
	failedDial   = 4 * (1200 + headerUDP)
	probeOnALink = probeBytes + headerUDP
)

// traffic counts what the link carried for this client, packet headers included, both
// ways: that is what a metered link bills.
type traffic struct {
	mu    sync.Mutex
	conns map[carrier]int64 // counted so far
	total int64
}

func (t *traffic) track(c carrier) {
	t.mu.Lock()
	if t.conns == nil {
		t.conns = map[carrier]int64{}
	}
	t.conns[c] = 0
	t.mu.Unlock()
	context.AfterFunc(c.Context(), func() { // nobody may ask for long, and what has ended is to be freed
		t.mu.Lock()
		t.count(c)
		delete(t.conns, c)
		t.mu.Unlock()
	})
}

// count adds what a connection carried since it was looked at last. Called with mu held.
func (t *traffic) count(c carrier) {
	before, ok := t.conns[c]
	if !ok {
		return
	}
	q, header := c.ConnectionStats(), int64(headerUDP)
	if c.transport() == OverTCP {
		header = headerTCP
	}
	now := int64(q.BytesSent+q.BytesReceived) + header*int64(q.PacketsSent+q.PacketsReceived)
	t.total += max(0, now-before)
	t.conns[c] = now
}

func (t *traffic) add(n int64) {
	t.mu.Lock()
	t.total += n
	t.mu.Unlock()
}

func (t *traffic) read() int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	for c := range t.conns {
		t.count(c)
	}
	return t.total
}

// Traffic is how many bytes the link has carried for this client since its start, both
// ways, packet headers, probes and failed dials included.
func (c *Client) Traffic() int64 { return c.traffic.read() }
