package mqtt

import (
	"errors"
	"sync"

	"tailrace/edge/mqtt/packet"
)

// burst is what one read of a connection decoded: publishes on their way to the
// disk and everything that must be answered in order with them. It is filled by
// the connection's reader (under conn.in), then belongs to conn.fifo.
type burst struct {
	c         *conn
	be        Burst  // nil until something has to become durable
	acks      []byte // the answers in order, encoded for the case that all goes well
	published uint64 // publishes that the backend has taken
	freed     int32  // how many places of the Receive Maximum the answers give back
	delta     []byte // window delta; empty = none
	strict    bool   // holds more than QoS 0 and 1 publishes: an error ends the connection
	msgs      []*message
	keep      []retain
	after     func() // once durable and answered, on the distributor; nil = nothing

	done bool // guarded by c.mu
	err  error
	fn   func(error) // = b.complete, bound once
}

// retain is a change of the retained messages that takes effect when durable.
type retain struct {
	topic  string
	m      *message // nil deletes
	fresh  bool     // its reservation took a place of its own
	failed bool     // the commit failed: only the reservation goes
	old    *message // a deletion by expiry: only if this is still the message
}

var bursts sync.Pool

func getBurst(c *conn) *burst {
	b, _ := bursts.Get().(*burst)
	if b == nil {
		b = &burst{acks: make([]byte, 0, 256)}
		b.fn = b.complete
	}
	b.c = c
	return b
}

func putBurst(b *burst) {
	*b = burst{acks: b.acks[:0], delta: b.delta[:0], fn: b.fn}
	if cap(b.acks) <= 4*chunkBytes && cap(b.delta) <= 4*chunkBytes {
		bursts.Put(b)
	}
}

// backend returns the backend's burst, begun on first need.
func (b *burst) backend() Burst {
	if b.be == nil {
		b.be = b.c.srv.cfg.Backend.Begin(&b.c.Client)
	}
	return b.be
}

// window returns the delta to append to.
func (b *burst) window() []byte {
	if len(b.delta) == 0 {
		b.delta = appendDeltaHead(b.delta, b.c.srv.cfg.Limits.Window)
	}
	return b.delta
}

// submit commits the burst that the reader has filled and returns when there is
// room for the next one. Caller holds c.in.
func (c *conn) submit() {
	if c.taken > 0 {
		c.unacked.Add(c.taken)
		c.taken = 0
	}
	b := c.cur
	if b == nil {
		return
	}
	c.cur = nil
	if b.published > 0 {
		c.srv.stats.Published.Add(b.published)
	}
	c.mu.Lock()
	c.fifo = append(c.fifo, b)
	c.pending++
	if len(b.msgs) > 0 {
		c.submitted++
	}
	c.mu.Unlock()
	if b.be == nil {
		b.complete(nil)
		return
	}
	if len(b.delta) > 0 {
		b.be.Window(c.ID, b.delta)
	}
	b.be.Commit(b.fn)
}

// complete runs when b is durable or has failed. It finishes all bursts at the head
// of the connection's line, so answers keep their order even if the backend's logs
// finish out of order.
func (b *burst) complete(err error) {
	c := b.c
	c.mu.Lock()
	b.done, b.err = true, err
	for len(c.fifo) > 0 && c.fifo[0].done {
		h := c.fifo[0]
		n := copy(c.fifo, c.fifo[1:])
		c.fifo[n] = nil
		c.fifo = c.fifo[:n]
		c.finishBurst(h)
	}
	c.mu.Unlock()
}

// finishBurst answers and hands on. Caller holds c.mu; nothing here blocks.
func (c *conn) finishBurst(b *burst) {
	if b.err != nil {
		c.failBurst(b)
	} else {
		for i := range b.keep {
			c.srv.retained.apply(&b.keep[i])
		}
		if len(b.acks) > 0 && !c.mute {
			c.out.write(b.acks)
		}
	}
	if b.freed > 0 {
		c.unacked.Add(-b.freed)
	}
	if b.err == nil && (len(b.msgs) > 0 || b.after != nil) {
		c.work = append(c.work, work{b.msgs, b.after})
		if !c.distributing {
			c.distributing = true
			c.srv.wg.Add(1)
			if c.distributor == nil {
				c.distributor = c.distribute
			}
			go c.distributor()
		}
	} else {
		if len(b.msgs) > 0 {
			c.distributed++
		}
		c.pending--
		c.signal()
	}
	putBurst(b)
}

// failBurst answers a burst that did not become durable. MQTT 5 publishes are
// refused one by one; where that cannot be said (3.x, or QoS 2 and subscriptions,
// whose state in memory has run ahead) or is not certain, the connection is closed
// and nothing of it is acknowledged any more.
func (c *conn) failBurst(b *burst) {
	c.srv.stats.CommitErrors.Add(1)
	code := packet.ImplementationError
	var re *ReasonError
	if errors.As(b.err, &re) {
		code = re.Code
	}
	for i := range b.keep {
		c.srv.retained.forget(&b.keep[i])
	}
	if c.Version != byte(packet.V5) || b.strict || errors.Is(b.err, ErrUnknownOutcome) {
		if len(b.acks) > 0 {
			c.mute = true
			c.stopLocked(cause{code: code, hold: c.Version != byte(packet.V5), err: b.err})
		}
		return
	}
	if len(b.acks) > 0 && !c.mute {
		out := make([]byte, 0, 2*len(b.acks))
		for a := b.acks; len(a) >= 4; { // frames of PUBACK and PINGRESP only, else strict
			t := packet.Type(a[0] >> 4)
			n := 2 + int(a[1])
			if t == packet.PUBACK && n == 4 {
				out = packet.AppendAck(out, packet.V5, t, uint16(a[2])<<8|uint16(a[3]), code)
				c.srv.stats.Refused.Add(1)
			} else {
				out = append(out, a[:n]...)
			}
			a = a[n:]
		}
		c.out.write(out)
	}
}

// work is what the distributor does for one burst.
type work struct {
	msgs  []*message
	after func()
}

// distribute delivers what became durable, in order. It runs on a goroutine of its
// own while there is work, so that neither the committer nor a slow publisher's
// writer does the copying.
func (c *conn) distribute() {
	defer c.srv.wg.Done()
	ended := false
	defer func() {
		if ended {
			return
		}
		c.mu.Lock() // a panic: give up what is left, or the connection could never end
		c.pending -= 1 + len(c.work)
		c.distributed = c.submitted
		c.work, c.distributing = nil, false
		c.signal()
		c.mu.Unlock()
	}()
	defer c.srv.recovered(c)
	for {
		c.mu.Lock()
		if len(c.work) == 0 {
			ended = true
			c.distributing = false
			c.mu.Unlock()
			return
		}
		w := c.work[0]
		n := copy(c.work, c.work[1:])
		c.work[n] = work{}
		c.work = c.work[:n]
		c.mu.Unlock()
		for _, m := range w.msgs {
			c.srv.deliver(m)
		}
		if w.after != nil {
			w.after()
		}
		c.mu.Lock()
		if len(w.msgs) > 0 {
			c.distributed++
		}
		c.pending--
		c.signal()
		c.mu.Unlock()
	}
}

// signal wakes the reader that waits for room. Caller holds c.mu.
func (c *conn) signal() {
	if !c.waiting {
		return
	}
	select {
	case c.room <- struct{}{}:
	default:
	}
}

// waitRoom blocks until fewer than n bursts are pending.
func (c *conn) waitRoom(n int) {
	for {
		c.mu.Lock()
		ok := c.pending < n
		c.awaitLocked(!ok)
		c.mu.Unlock()
		if ok {
			return
		}
		<-c.room
	}
}
