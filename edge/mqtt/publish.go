package mqtt

import (
	"errors"
	"strings"
	"time"

	"tailrace/edge/mqtt/packet"
	"tailrace/edge/mqtt/topic"
)

// topicEntry is what a connection remembers about a topic it publishes to.
type topicEntry struct {
	name   string
	bytes  []byte
	hash   uint64
	err    error  // publishes to it are refused
	birth  string // where a Sparkplug BIRTH is kept, "" = it is none
	route  any    // the backend's
	gen    uint64
	direct []target // subscribers as of gen
	shared []*group
}

// topicCache is bounded: a client that keeps inventing topics only loses the gain.
type topicCache struct {
	last  *topicEntry            // many devices have but one topic
	m     map[string]*topicEntry // all, when there are more
	bytes int                    // of the names in m
	alias []*topicEntry
}

const (
	maxCachedTopics = 1024
	maxCachedBytes  = 64 << 10
)

// topic returns the entry of the publish in c.sc.pp, alias resolved (MQTT 5.0, 3.3.2.3.4).
func (c *conn) topic() (*topicEntry, error) {
	p := &c.sc.pp
	if len(p.Topic) == 0 { // only with an alias, the decoder saw to it
		if int(p.Alias) > len(c.topics.alias) || c.topics.alias[p.Alias-1] == nil {
			code := packet.ProtocolError // 3.3.2-7... an alias never set
			if int(p.Alias) > c.srv.aliases() {
				code = packet.TopicAliasInvalid
			}
			return nil, &packet.Error{Code: code, What: "topic alias without a topic"}
		}
		return c.topics.alias[p.Alias-1], nil
	}
	e := c.topics.last
	if e == nil || e.name != string(p.Topic) {
		if e = c.topics.m[string(p.Topic)]; e == nil {
			e = c.newTopic(string(p.Topic))
		}
		c.topics.last = e
	}
	if p.Alias != 0 {
		n := c.srv.aliases()
		if int(p.Alias) > n {
			return nil, &packet.Error{Code: packet.TopicAliasInvalid, What: "topic alias above the maximum"}
		}
		if c.topics.alias == nil {
			c.topics.alias = make([]*topicEntry, n)
		}
		c.topics.alias[p.Alias-1] = e
	}
	return e, nil
}

func (c *conn) newTopic(name string) *topicEntry {
	e := &topicEntry{name: name, bytes: []byte(name), hash: hash64(0, []byte(name)), err: c.srv.checkTopic(name), birth: certificate(name)}
	t := &c.topics
	if t.last == nil {
		return e
	}
	if t.m == nil {
		t.m = map[string]*topicEntry{t.last.name: t.last}
		t.bytes = len(t.last.name)
	}
	if len(t.m) >= maxCachedTopics || t.bytes+len(name) > maxCachedBytes {
		clear(t.m)
		t.bytes = 0
	}
	t.m[name] = e
	t.bytes += len(name)
	return e
}

// checkTopic refuses what no client may publish to. It answers, instead of dropping
// in silence, so a QoS 1 sender does not wait for ever.
func (s *Server) checkTopic(name string) error {
	switch {
	case !topic.ValidName(name):
		return &ReasonError{packet.TopicNameInvalid, "topic name not valid or too deep"}
	case name == "$SYS" || strings.HasPrefix(name, "$SYS/") || strings.HasPrefix(name, "$share/") || strings.HasPrefix(name, certificates):
		return &ReasonError{packet.NotAuthorized, "topic is the server's"}
	}
	return nil
}

// publish handles one PUBLISH. Caller holds c.in; body is valid only during the call.
func (c *conn) publish(head byte, body []byte, now time.Time) error {
	p := &c.sc.pp
	if p.Known = ""; c.topics.last != nil {
		p.Known = c.topics.last.name
	}
	if err := packet.ReadPublish(head, body, packet.Version(c.Version), p); err != nil {
		return err
	}
	e, err := c.topic()
	if err != nil {
		return err
	}
	if p.QoS == 2 {
		// MQTT 5.0, 4.3.3: until PUBREL the same id is the same message, DUP or not.
		if _, dup := c.qos2[p.ID]; dup {
			c.srv.stats.Duplicates.Add(1)
			b := c.burst()
			b.acks = packet.AppendAck(b.acks, packet.Version(c.Version), packet.PUBREC, p.ID, packet.Success)
			b.strict = true
			return nil
		}
	}
	if p.QoS > 0 {
		// MQTT 5.0, 3.3.4-9. A place is free again when the answer is handed to the
		// writer, before the client can know: never too strict.
		if c.taken++; c.recvMax > 0 && c.unacked.Load()+c.taken > c.recvMax {
			return &packet.Error{Code: packet.ReceiveMaxExceeded, What: "more publishes in flight than the Receive Maximum"}
		}
	}
	if c.lineup != nil {
		if held, err := c.lineUp(e, head, body, now); held || err != nil {
			return err
		}
	}
	return c.store(p, e, now)
}

// store hands p to the backend and notes how to answer. Caller holds c.in.
func (c *conn) store(p *packet.Publish, e *topicEntry, now time.Time) error {
	s := c.srv
	b := c.burst()
	persistent := c.ss.durable
	var hash uint64
	if p.QoS > 0 && persistent {
		hash = contentHash(e.hash, p.QoS, p.Retain, p.Payload)
	}
	c.pace.msgs++
	c.pace.bytes += len(e.name) + len(p.Payload)
	err := e.err
	if err == nil && len(e.name)+len(p.Payload) > s.cfg.Limits.MaxRecordBytes {
		err = &ReasonError{packet.PacketTooLarge, "record above the limit"}
	}
	if err == nil && p.QoS == 2 && len(c.qos2) >= s.cfg.Limits.OpenQoS2 {
		return &packet.Error{Code: packet.ReceiveMaxExceeded, What: "too many QoS 2 publishes without PUBREL"}
	}
	if err == nil {
		c.sc.pub = Publish{Topic: e.bytes, Name: e.name, Route: &e.route, Payload: p.Payload, QoS: p.QoS, Retain: p.Retain, Dup: p.Dup,
			PacketID: p.ID, Hash: hash, Arrival: now}
		if !p.Props.Empty() {
			c.sc.pub.Props = &p.Props
		}
		err = b.backend().Add(&c.sc.pub)
	}
	known := err == ErrStored
	if err != nil && !known {
		return c.refuse(b, p, err)
	}
	if known {
		s.stats.Duplicates.Add(1)
	} else {
		b.published++
		if p.Dup {
			s.stats.ResendsStored.Add(1)
		}
	}
	v := packet.Version(c.Version)
	switch p.QoS {
	case 1:
		b.acks = packet.AppendAck(b.acks, v, packet.PUBACK, p.ID, packet.Success)
		b.freed++
		if persistent {
			b.delta = appendQoS1(b.window(), sent{p.ID, hash})
		}
	case 2:
		b.acks = packet.AppendAck(b.acks, v, packet.PUBREC, p.ID, packet.Success)
		b.strict = true
		if c.qos2 == nil {
			c.qos2 = map[uint16]struct{}{}
		}
		c.qos2[p.ID] = struct{}{}
		if persistent {
			b.delta = appendQoS2(b.window(), opReceived, p.ID)
		}
	}
	if !known && e.birth != "" {
		c.keepBirth(b, p, e, now)
	}
	if !known && (p.Retain || s.subs.count.Load() > 0) {
		c.fanOut(b, p, e, now)
	}
	return nil
}

// fanOut keeps a copy of p for its subscribers and for the retained set.
func (c *conn) fanOut(b *burst, p *packet.Publish, e *topicEntry, now time.Time) {
	s := c.srv
	if gen := s.subs.gen.Load(); gen != e.gen {
		e.direct, e.shared, e.gen = s.subs.match(e.name)
	}
	if !p.Retain && len(e.direct) == 0 && len(e.shared) == 0 {
		return
	}
	m := newMessage(e.name, p, now, c.ID)
	if p.Retain {
		kept := *m
		kept.gen = e.gen
		b.keep = append(b.keep, *s.keepRetained(b.backend(), e.name, &kept))
	}
	if len(e.direct) > 0 || len(e.shared) > 0 {
		m.direct, m.shared, m.gen = e.direct, e.shared, e.gen
		if s.cfg.Log != nil {
			if mk, ok := b.be.(Marker); ok {
				mk.Mark(&m.at)
			}
		}
		b.msgs = append(b.msgs, m)
	}
}

// refuse answers a publish that the backend or a limit does not take.
func (c *conn) refuse(b *burst, p *packet.Publish, err error) error {
	code := packet.ImplementationError
	if re := asReason(err); re != nil {
		code = re.Code
	}
	c.srv.stats.Refused.Add(1)
	switch {
	case p.QoS == 0:
		return nil // nothing to answer; counted
	case c.Version != byte(packet.V5):
		// What follows must not be stored and acknowledged past a hole.
		return errRefused3
	case p.QoS == 1:
		b.acks = packet.AppendAck(b.acks, packet.V5, packet.PUBACK, p.ID, code)
	default:
		b.acks = packet.AppendAck(b.acks, packet.V5, packet.PUBREC, p.ID, code)
	}
	b.freed++
	return nil
}

// pubrel ends a QoS 2 publish: PUBCOMP leaves after the id is durably forgotten.
func (c *conn) pubrel(a packet.Ack) {
	b := c.burst()
	v := packet.Version(c.Version)
	if _, ok := c.qos2[a.ID]; !ok {
		b.acks = packet.AppendAck(b.acks, v, packet.PUBCOMP, a.ID, packet.PacketIDNotFound)
		b.strict = true
		return
	}
	delete(c.qos2, a.ID)
	b.acks = packet.AppendAck(b.acks, v, packet.PUBCOMP, a.ID, packet.Success)
	b.strict = true
	if c.unacked.Load()+c.taken > 0 { // ids of a former connection were not counted here
		b.freed++
	}
	if c.ss.durable {
		b.delta = appendQoS2(b.window(), opReleased, a.ID)
		b.backend()
	}
}

func asReason(err error) *ReasonError {
	var re *ReasonError
	if errors.As(err, &re) {
		return re
	}
	return nil
}
