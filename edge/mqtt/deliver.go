package mqtt

import (
	"time"

	"tailrace/edge/mqtt/packet"
)

// outMsg is one delivery to one session.
type outMsg struct {
	m        *message
	ids      []uint32
	id       uint16 // packet id once in flight
	qos      byte
	retain   bool
	released bool // QoS 2: PUBREC seen, PUBREL sent
	unsaved  bool // QoS 2: not sent (or PUBREL not sent) before that is durable
	at       Position
	group    *group // of a shared subscription that handed it, where it can be read again
}

// deliver hands m to everybody who subscribed before it was durable. It never blocks.
func (s *Server) deliver(m *message) {
	// Who came while it was on its way to the disk gets it, too: clients take a
	// message that is published after their SUBSCRIBE for theirs. A retained one
	// they get as such.
	if m.gen != s.subs.gen.Load() && !m.retain {
		m.direct, m.shared, m.gen = s.subs.match(m.topic)
	}
	for i := range m.direct {
		t := &m.direct[i]
		if t.noLocal && t.ss.id == m.from {
			continue
		}
		t.ss.offer(outMsg{m: m, at: m.at, qos: min(m.qos, t.qos), retain: m.retain && t.retainAsPub, ids: t.ids})
	}
	for _, g := range m.shared {
		g.offer(m)
	}
}

func (ss *session) online() bool {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	return ss.conn != nil
}

// offer sends or queues o. What does not fit is dropped for this session alone and counted.
func (ss *session) offer(o outMsg) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	if o.qos == 0 {
		if ss.conn != nil {
			ss.conn.deliver(&o, false)
		}
		return
	}
	if ss.conn == nil && ss.expiry.Load() == 0 {
		return
	}
	full := len(ss.queue)-ss.head >= ss.srv.cfg.Limits.Queued
	if ss.logged(&o) {
		k := &ss.cursor
		if b := k.behind[o.at.Part]; b != nil && o.at.Offset >= b.next || k.wasRead(o.at) {
			return // it is read from the log, or was
		}
		if ss.conn == nil || full || k.behind[o.at.Part] != nil {
			k.leave(o.at)
			ss.kick()
			return
		}
		k.note(o.at)
	} else if full {
		ss.srv.stats.Dropped.Add(1)
		return
	}
	ss.queue = append(ss.queue, o)
	ss.pump()
}

// pump moves queued deliveries into flight while the client takes more. Caller holds ss.mu.
func (ss *session) pump() {
	for ss.head < len(ss.queue) && ss.conn != nil && len(ss.inflight) < ss.conn.outMax && !ss.conn.out.full() {
		o := ss.queue[ss.head]
		ss.queue[ss.head] = outMsg{}
		ss.head++
		o.id = ss.freeID()
		if o.qos == 2 && ss.logged(&o) { // not sent before its id is durable
			o.unsaved, ss.cursor.wanted = true, true
			ss.inflight = append(ss.inflight, o)
			continue
		}
		if ss.conn.deliver(&o, false) {
			ss.inflight = append(ss.inflight, o)
		}
	}
	if ss.head == len(ss.queue) {
		ss.queue, ss.head = ss.queue[:0], 0
	} else if ss.head > 64 && ss.head*2 > len(ss.queue) {
		n := copy(ss.queue, ss.queue[ss.head:])
		clear(ss.queue[n:])
		ss.queue, ss.head = ss.queue[:n], 0
	}
	ss.kick()
}

// freeID is the next packet id that is not in flight; there always is one, since
// fewer than 65,535 may be in flight.
func (ss *session) freeID() uint16 {
	for {
		ss.lastID++
		if ss.lastID != 0 && ss.find(ss.lastID) < 0 {
			return ss.lastID
		}
	}
}

func (ss *session) find(id uint16) int {
	for i := range ss.inflight {
		if ss.inflight[i].id == id {
			return i
		}
	}
	return -1
}

// resume sends again what was in flight when the last connection ended, in order
// (4.4.0-1), then what has queued up. Caller holds ss.mu.
func (ss *session) resume() {
	for i := range ss.inflight {
		o := &ss.inflight[i]
		if o.unsaved {
			ss.cursor.wanted = true
		} else if o.released {
			ss.conn.ack(packet.PUBREL, o.id, packet.Success)
		} else {
			ss.conn.deliver(o, true)
		}
	}
	ss.pump()
}

// acked handles PUBACK, PUBREC and PUBCOMP of a subscriber. An answer of the wrong
// kind to a delivery in flight is a protocol error (MQTT 5.0, 4.13.1; 3.1.1, 4.8.0-1);
// one to an unknown id is not: it may answer a delivery of a former connection.
func (ss *session) acked(t packet.Type, a packet.Ack) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	c := ss.conn
	if c == nil {
		return
	}
	i := ss.find(a.ID)
	if i < 0 {
		if t == packet.PUBREC && a.Code < 0x80 { // a refusal ends the delivery: 4.3.3-4
			c.ack(packet.PUBREL, a.ID, packet.PacketIDNotFound)
		}
		return
	}
	o := &ss.inflight[i]
	switch {
	case t == packet.PUBREC && o.qos == 2 && a.Code < 0x80:
		if ss.logged(o) {
			if !o.released {
				o.released, o.unsaved, ss.cursor.wanted = true, true, true
				ss.kick()
				return
			}
			if o.unsaved { // PUBREL is on its way
				return
			}
		}
		o.released = true
		c.ack(packet.PUBREL, a.ID, packet.Success)
		return
	case t == packet.PUBACK && o.qos == 1, t == packet.PUBREC && o.qos == 2 && !o.released, t == packet.PUBCOMP && o.released:
	default:
		err := &packet.Error{Code: packet.ProtocolError, What: t.String() + " does not answer the delivery with this packet id"}
		c.stop(c.causeOf(err))
		return
	}
	if o.qos == 2 && ss.logged(o) {
		ss.cursor.finished = append(ss.cursor.finished, o.at)
	}
	ss.remove(i)
	ss.pump()
}

func (ss *session) remove(i int) {
	n := copy(ss.inflight[i:], ss.inflight[i+1:])
	ss.inflight[i+n] = outMsg{}
	ss.inflight = ss.inflight[:i+n]
}

// deliver encodes one PUBLISH into the outbox and reports whether it was taken: a
// message that has expired or is too large for the client counts as delivered
// (3.1.2-25). Called with the session's mutex held.
func (c *conn) deliver(o *outMsg, dup bool) bool {
	m := o.m
	out := packet.Out{QoS: o.qos, Retain: o.retain, Dup: dup && o.qos > 0, ID: o.id, Topic: m.topic, Props: m.props, SubIDs: o.ids, Payload: m.payload}
	if !m.expires.IsZero() {
		left := m.expires.Sub(c.srv.cfg.Now())
		if left <= 0 {
			c.srv.stats.Expired.Add(1)
			return false
		}
		out.HasExpiry, out.Expiry = true, uint32((left+time.Second-1)/time.Second)
	}
	v := packet.Version(c.Version)
	newAlias := false
	if c.aliasMax > 0 {
		if a := c.aliases[m.topic]; a != 0 {
			out.Alias, out.Topic = a, ""
		} else if len(c.aliases) < c.aliasMax { // first come: the topics of a subscriber are mostly few
			newAlias = true
			out.Alias = uint16(len(c.aliases) + 1)
		}
	}
	if c.maxPacket > 0 && out.Size(v) > c.maxPacket {
		c.srv.stats.Dropped.Add(1)
		return false
	}
	ch := c.out.begin()
	ok := ch != nil
	if ok && o.qos == 0 && len(ch.b) >= c.out.limit {
		ok = false
		c.srv.stats.Dropped.Add(1)
	}
	if ok {
		ch.b = packet.AppendPublish(ch.b, v, &out)
		if newAlias { // only once the client will have seen it
			if c.aliases == nil {
				c.aliases = map[string]uint16{}
			}
			c.aliases[m.topic] = out.Alias
		}
		c.srv.stats.Delivered.Add(1)
	}
	c.out.end()
	return ok || o.qos > 0 // QoS > 0 to a broken connection stays in flight for the next one
}

// ack writes one acknowledgement that waits for no commit.
func (c *conn) ack(t packet.Type, id uint16, code packet.Code) {
	if ch := c.out.begin(); ch != nil {
		ch.b = packet.AppendAck(ch.b, packet.Version(c.Version), t, id, code)
	}
	c.out.end()
}
