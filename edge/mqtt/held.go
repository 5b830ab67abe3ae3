package mqtt

import (
	"time"

	"tailrace/edge/mqtt/packet"
)

// heldPublish is a publish that waits until the line-up has a verdict. Its slices
// point into own copies.
type heldPublish struct {
	e   *topicEntry
	p   packet.Publish
	fed bool // a QoS 1 re-send that was fed to the line-up
}

const (
	maxHeldBytes = 4 << 20
	// holdTime ends a line-up whose re-sends have stopped coming: they are stored.
	holdTime = 2 * time.Second
)

// lineUp feeds the publish in c.sc.pp to the line-up of the resumed session. held
// means it has been dealt with: kept back, answered or stored. Caller holds c.in.
func (c *conn) lineUp(e *topicEntry, head byte, body []byte, now time.Time) (held bool, err error) {
	p := &c.sc.pp
	if p.QoS > 0 && !p.Dup {
		// A new message: the re-sends are over (4.6.0-1: they come first).
		if c.lineup.n > 0 {
			err = c.endLineUp(c.lineup.end(), now)
		}
		c.lineup = nil
		return false, err
	}
	if p.QoS != 1 {
		if len(c.held) == 0 {
			return false, nil // nothing to keep the order with
		}
		return true, c.hold(e, head, body, false, now)
	}
	v := c.lineup.feed(sent{p.ID, contentHash(e.hash, p.QoS, p.Retain, p.Payload)})
	if v == fresh && len(c.held) == 0 {
		c.lineup = nil
		return false, nil
	}
	if err := c.hold(e, head, body, true, now); err != nil || c.lineup == nil {
		return true, err
	}
	if v != undecided {
		return true, c.endLineUp(v, now)
	}
	if c.holdTimer == nil {
		c.holdTimer = time.AfterFunc(holdTime, c.holdOver)
	}
	return true, nil
}

// hold copies a publish. When too much is held the line-up ends without a proof.
func (c *conn) hold(e *topicEntry, head byte, body []byte, fed bool, now time.Time) error {
	h := heldPublish{e: e, fed: fed}
	b := append([]byte(nil), body...)
	if err := packet.ReadPublish(head, b, packet.Version(c.Version), &h.p); err != nil {
		return err
	}
	c.held = append(c.held, h)
	c.heldBytes += len(b)
	all := c.srv.buffers.Add(int64(len(b)))
	if c.heldBytes > maxHeldBytes || len(c.held) > maxWindow || all > int64(c.srv.cfg.Limits.BufferBytes) {
		return c.endLineUp(ambiguous, now)
	}
	return nil
}

// dropHeld forgets what is held. Caller holds c.in.
func (c *conn) dropHeld() {
	c.srv.buffers.Add(-int64(c.heldBytes))
	c.held, c.heldBytes = nil, 0
	if c.holdTimer != nil {
		c.holdTimer.Stop()
	}
}

// endLineUp deals with everything held, in order: duplicates are answered, all else
// is stored. Caller holds c.in.
func (c *conn) endLineUp(v verdict, now time.Time) error {
	held := c.held
	c.lineup = nil
	c.dropHeld()
	for i := range held {
		h := &held[i]
		if h.fed && v == duplicate {
			c.srv.stats.Duplicates.Add(1)
			b := c.burst()
			b.acks = packet.AppendAck(b.acks, packet.Version(c.Version), packet.PUBACK, h.p.ID, packet.Success)
			b.freed++
			continue
		}
		if _, twice := c.qos2[h.p.ID]; twice && h.p.QoS == 2 { // the same id came twice meanwhile
			b := c.burst()
			b.acks = packet.AppendAck(b.acks, packet.Version(c.Version), packet.PUBREC, h.p.ID, packet.Success)
			b.strict = true
			b.freed++
			continue
		}
		if h.fed && v == ambiguous {
			c.srv.stats.Ambiguous.Add(1)
		}
		if err := c.store(&h.p, h.e, now); err != nil {
			return err
		}
	}
	return nil
}

// holdOver is the timer's end of a line-up: whatever is held is stored, since
// nothing proves that it is.
func (c *conn) holdOver() {
	defer c.srv.recovered(c)
	c.in.Lock()
	defer c.in.Unlock()
	if c.lineup == nil || len(c.held) == 0 {
		return
	}
	c.sc = scratches.Get().(*scratch)
	err := c.endLineUp(c.lineup.end(), c.srv.cfg.Now())
	scratches.Put(c.sc)
	c.sc = nil
	c.submit()
	if err != nil {
		c.stop(c.causeOf(err))
	}
}
