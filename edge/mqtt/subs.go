package mqtt

import (
	"slices"
	"sync"
	"sync/atomic"

	"tailrace/edge/mqtt/packet"
	"tailrace/edge/mqtt/topic"
)

// subscription is one filter of one session with its options.
type subscription struct {
	qos            byte
	noLocal        bool
	retainAsPub    bool
	retainHandling byte
	id             uint32 // subscription identifier, 0 = none
}

// options packs all but the id into the options byte of MQTT 5.0, 3.8.3.1.
func (s *subscription) options() byte {
	o := s.qos | s.retainHandling<<4
	if s.noLocal {
		o |= 4
	}
	if s.retainAsPub {
		o |= 8
	}
	return o
}

func subscriptionOf(o byte, id uint32) subscription {
	return subscription{qos: o & 3, noLocal: o&4 != 0, retainAsPub: o&8 != 0, retainHandling: o >> 4 & 3, id: id}
}

// target is one session that gets a message, with its matching subscriptions merged:
// one copy at the highest QoS, with all identifiers (MQTT 5.0, 3.3.4-2 and -4).
type target struct {
	ss          *session
	qos         byte
	noLocal     bool
	retainAsPub bool
	ids         []uint32
}

// subIndex finds the subscribers of a topic. Connections cache what match returns
// per topic until gen moves.
type subIndex struct {
	gen   atomic.Uint64
	count atomic.Int64 // of all subscriptions; 0 lets publishes pass without a look

	srv    *Server
	mu     sync.RWMutex
	direct topic.Tree[*session, subscription]
	shared topic.Tree[string, *group] // key: group name
}

// put adds or replaces a subscription. What is matched at the generation it returns, or at a
// later one, is delivered to it.
func (x *subIndex) put(ss *session, groupName, filter string, sub subscription) (gen uint64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	defer func() { gen = x.changed() }()
	if groupName == "" {
		x.direct.Put(filter, ss, sub)
		return
	}
	g, ok := x.shared.Get(filter, groupName)
	if !ok {
		g = &group{srv: x.srv, name: groupName, filter: filter}
		x.shared.Put(filter, groupName, g)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	t := target{ss: ss, qos: sub.qos, retainAsPub: sub.retainAsPub}
	if sub.id != 0 {
		t.ids = []uint32{sub.id}
	}
	for i := range g.members {
		if g.members[i].ss == ss {
			g.members[i] = t
			return
		}
	}
	g.members = append(g.members, t)
	ss.mu.Lock()
	ss.groups = append(ss.groups, g)
	ss.mu.Unlock()
	return
}

// groups are all shared subscriptions.
func (x *subIndex) groups() (all []*group) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	x.shared.Each(func(_ string, g *group) { all = append(all, g) })
	return all
}

// remove ends a subscription; ended: with the session, see group.takeBack.
func (x *subIndex) remove(ss *session, groupName, filter string, ended bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	defer x.changed()
	if groupName == "" {
		x.direct.Delete(filter, ss)
		return
	}
	g, ok := x.shared.Get(filter, groupName)
	if !ok {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for i := range g.members {
		if g.members[i].ss == ss {
			g.members = append(g.members[:i:i], g.members[i+1:]...)
			break
		}
	}
	ss.mu.Lock()
	ss.groups = slices.DeleteFunc(ss.groups, func(o *group) bool { return o == g })
	ss.mu.Unlock()
	g.takeBack(ss, ended)
	if len(g.members) == 0 {
		x.shared.Delete(filter, groupName)
	}
}

// changed is called with mu held.
func (x *subIndex) changed() uint64 {
	x.count.Store(int64(x.direct.Len() + x.shared.Len()))
	return x.gen.Add(1)
}

func (x *subIndex) match(name string) (direct []target, shared []*group, gen uint64) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	var at map[*session]int
	x.direct.Match(name, func(ss *session, sub subscription) {
		i, dup := -1, false
		if at != nil {
			i, dup = at[ss], false
			_, dup = at[ss]
		} else {
			for j := range direct {
				if direct[j].ss == ss {
					i, dup = j, true
				}
			}
		}
		if !dup {
			direct = append(direct, target{ss: ss, qos: sub.qos, noLocal: sub.noLocal, retainAsPub: sub.retainAsPub})
			i = len(direct) - 1
			if at != nil {
				at[ss] = i
			} else if len(direct) > 16 {
				at = make(map[*session]int, 64)
				for j := range direct {
					at[direct[j].ss] = j
				}
			}
		} else {
			t := &direct[i]
			t.qos = max(t.qos, sub.qos)
			t.noLocal = t.noLocal && sub.noLocal
			t.retainAsPub = t.retainAsPub || sub.retainAsPub
		}
		if sub.id != 0 {
			direct[i].ids = append(direct[i].ids, sub.id)
		}
	})
	x.shared.Match(name, func(_ string, g *group) { shared = append(shared, g) })
	return direct, shared, x.gen.Load()
}

// maxFilterBytes keeps 200 subscriptions from taking 64 KiB each.
const maxFilterBytes = 2048

// subscribe answers a SUBSCRIBE. Caller holds c.in.
func (c *conn) subscribe(head byte, body []byte) error {
	c.grown = true
	l := &c.srv.cfg.Limits
	var s packet.Subscribe
	if err := packet.ReadSubscribe(head, body, packet.Version(c.Version), &s, 1024); err != nil {
		return err
	}
	codes := make([]packet.Code, len(s.Subs))
	type sendRetained struct {
		filter string
		sub    subscription
		since  uint64
	}
	var sends []sendRetained
	shared := false
	ss := c.ss
	for _, f := range s.Subs { // before anything is changed: these end the connection
		name, plain, ok := topic.Shared(string(f.Filter))
		switch {
		case !ok && c.Version == byte(packet.V5): // 4.8.2-1, -2
			return &packet.Error{Code: packet.ProtocolError, What: "shared subscription without a share name or a filter"}
		case ok && !topic.TooDeep(plain) && !topic.ValidFilter(plain):
			return badFilter()
		case name != "" && f.NoLocal: // 3.8.3-4
			return &packet.Error{Code: packet.ProtocolError, What: "no-local on a shared subscription"}
		}
	}
	for i, f := range s.Subs {
		filter := string(f.Filter)
		name, plain, ok := topic.Shared(filter)
		sub := subscription{f.QoS, f.NoLocal, f.RetainAsPub, f.RetainHandling, s.SubID}
		if !ok || topic.TooDeep(plain) { // well formed, and not accepted
			codes[i] = packet.TopicFilterInvalid
			continue
		}
		if err := c.mayRead(plain, f.QoS); err != nil {
			codes[i] = packet.NotAuthorized
			if re := asReason(err); re != nil {
				codes[i] = re.Code
			}
			if c.srv.cfg.TerseRefusals {
				codes[i] = packet.Unspecified
			}
			continue
		}
		ss.mu.Lock()
		_, have := ss.subs[filter]
		room := have || len(ss.subs) < l.Subscriptions && len(filter) <= maxFilterBytes
		if room {
			if ss.subs == nil {
				ss.subs = map[string]subscription{}
			}
			ss.subs[filter] = sub
			if !have {
				ss.beginsHere(filter)
			}
		}
		ss.mu.Unlock()
		if !room {
			codes[i] = packet.QuotaExceeded
			continue
		}
		since := c.srv.subs.put(ss, name, plain, sub)
		shared = shared || name != ""
		codes[i] = packet.Code(f.QoS)
		if name == "" && (f.RetainHandling == 0 || f.RetainHandling == 1 && !have) {
			sends = append(sends, sendRetained{plain, sub, since})
		}
	}
	b := c.burst()
	b.acks = packet.AppendSuback(b.acks, packet.Version(c.Version), s.ID, codes)
	b.strict = true
	c.saveSession(b)
	if len(sends) > 0 || shared {
		prev := b.after
		b.after = func() {
			if prev != nil {
				prev()
			}
			ss.mu.Lock()
			ss.kick() // it may have room for what waits for a shared subscription
			ss.mu.Unlock()
			for _, x := range sends {
				c.srv.sendRetained(ss, x.filter, x.sub, x.since)
			}
		}
	}
	return nil
}

// badFilter ends the connection: a wildcard that is not a level of its own, or "#" before the
// end, is no filter that could be refused but a protocol violation (3.1.1: 4.7.1-2, -3 and
// 4.8.0-1; 5.0: 4.7.1-1, -2 and 4.13.1).
func badFilter() error {
	return &packet.Error{Code: packet.Malformed, What: "topic filter with a wildcard where none may be"}
}

func (c *conn) mayRead(filter string, qos byte) error {
	if a, ok := c.srv.cfg.Backend.(SubscribeAuthorizer); ok {
		return a.AuthorizeSubscribe(&c.Client, filter, qos)
	}
	return nil
}

// unsubscribe answers an UNSUBSCRIBE. Caller holds c.in.
func (c *conn) unsubscribe(head byte, body []byte) error {
	var u packet.Unsubscribe
	if err := packet.ReadUnsubscribe(head, body, packet.Version(c.Version), &u, 1024); err != nil {
		return err
	}
	codes := make([]packet.Code, len(u.Filters))
	for _, f := range u.Filters {
		if _, plain, ok := topic.Shared(string(f)); ok && !topic.TooDeep(plain) && !topic.ValidFilter(plain) {
			return badFilter()
		}
	}
	ss := c.ss
	for i, f := range u.Filters {
		filter := string(f)
		ss.mu.Lock()
		_, have := ss.subs[filter]
		ss.unsubscribed(filter)
		ss.mu.Unlock()
		name, plain, ok := topic.Shared(filter)
		switch {
		case !ok, topic.TooDeep(plain):
			codes[i] = packet.TopicFilterInvalid
		case !have:
			codes[i] = packet.NoSubscriptionExisted
		default:
			c.srv.subs.remove(ss, name, plain, false)
		}
	}
	b := c.burst()
	b.acks = packet.AppendUnsuback(b.acks, packet.Version(c.Version), u.ID, codes)
	b.strict = true
	c.saveSession(b)
	return nil
}

// matching merges the subscriptions of one session that match m, as match does.
// since is the offset from which a filter counts. Shared subscriptions are not among them.
func matching(subs map[string]subscription, since map[string]int64, off int64, m *Stored) (t target, ok bool) {
	noLocal := true
	for f, sub := range subs {
		g, plain, valid := topic.Shared(f)
		if !valid || g != "" || off < since[f] || !topic.Match(plain, m.Topic) {
			continue
		}
		ok = true
		t.qos = max(t.qos, sub.qos)
		noLocal = noLocal && sub.noLocal
		t.retainAsPub = t.retainAsPub || sub.retainAsPub
		if sub.id != 0 {
			t.ids = append(t.ids, sub.id)
		}
	}
	t.noLocal = noLocal
	return t, ok && t.qos > 0 && m.QoS > 0
}

// sendRetained sends what was retained when the subscription was made, at generation since: what
// came after goes to it as what it is, new.
func (s *Server) sendRetained(ss *session, filter string, sub subscription, since uint64) {
	var ids []uint32
	if sub.id != 0 {
		ids = []uint32{sub.id}
	}
	now := s.cfg.Now()
	for _, m := range s.retained.match(filter) {
		if m.gen < since && !m.expired(now) {
			ss.offer(outMsg{m: m, at: nowhere, qos: min(m.qos, sub.qos), retain: true, ids: ids})
		}
	}
}
