package mqtt

import (
	"cmp"
	"encoding/binary"
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	"tailrace/edge/mqtt/topic"
)

// group is the members of one shared subscription, and how far they are in the log.
//
// A message is handed to a member that is connected and has room in its window, the next in
// turn. When there is none the group keeps the position (cursor.behind) and reads from
// there when a member takes more. What was handed and not sent when a member leaves
// comes back (redo) and goes to another one; what was sent stays with the member until
// its session ends, then QoS 1 comes back and QoS 2 does not (MQTT 5.0, 4.8.2-4, -5).
//
// The record of a group (checkpoint.go) holds its positions and what its members have not
// acknowledged, so a restart delivers all of it. Without a Config.Log, and for messages that are not
// in it, a message is queued for a member in memory.
type group struct {
	srv          *Server
	name, filter string

	mu      sync.Mutex // above session.mu; below subIndex.mu and Server.mu
	members []target
	next    int
	cursor  cursor
	redo    []Position
	except  map[Position]struct{} // from before the restart, at a member: not handed again

	lag atomic.Bool // behind or redo are not empty

	wakeMu         sync.Mutex // leaf; guards the two
	running, again bool       // catchUp runs; it shall look once more
}

// key names a group's record. A share name has no slash.
func (g *group) key() string { return cursorGroup + g.name + "/" + g.filter }

// offer gives m to one member, or leaves it in the log until one has room.
func (g *group) offer(m *message) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if m.qos == 0 || m.at.Offset < 0 || g.srv.cfg.Log == nil {
		g.offerInMemory(m)
		return
	}
	k := &g.cursor
	b := k.behind[m.at.Part]
	if b != nil && m.at.Offset >= b.next || k.wasRead(m.at) {
		return // it is read from the log, or was
	}
	if b == nil && len(g.redo) < g.srv.cfg.Limits.Queued && g.hand(m) { // else members that come and go could let redo grow without end
		return
	}
	k.leave(m.at)
	g.lags()
}

// lags says that there is something to read. Caller holds mu.
func (g *group) lags() {
	if g.lag.Swap(true) {
		return // a member that gets room looks at it
	}
	for i := range g.members {
		ss := g.members[i].ss
		ss.mu.Lock()
		if ss.room() > 0 {
			g.wake()
		}
		ss.mu.Unlock()
	}
}

// offerInMemory queues m for the next member, one that is connected if there is any. Caller holds mu.
func (g *group) offerInMemory(m *message) {
	n := len(g.members)
	if n == 0 {
		return
	}
	at := (g.next + 1) % n
	for i := range n {
		if j := (g.next + i) % n; g.members[j].ss.online() {
			at = j
			break
		}
	}
	t := &g.members[at]
	g.next = (at + 1) % n
	t.ss.offer(outMsg{m: m, at: nowhere, qos: min(m.qos, t.qos), retain: m.retain && t.retainAsPub, ids: t.ids})
}

// hand gives m to the next member in turn that takes it. Caller holds mu.
func (g *group) hand(m *message) bool {
	n := len(g.members)
	for i := range n {
		j := (g.next + i) % n
		t := &g.members[j]
		if t.ss.take(outMsg{m: m, at: m.at, qos: min(m.qos, t.qos), retain: m.retain && t.retainAsPub, ids: t.ids, group: g}) {
			g.next = (j + 1) % n
			g.cursor.note(m.at)
			return true
		}
	}
	return false
}

// room is how many deliveries more ss takes at once. Caller holds ss.mu.
func (ss *session) room() int {
	if ss.conn == nil || ss.conn.out.full() {
		return 0
	}
	return max(0, ss.conn.outMax-len(ss.inflight)-(len(ss.queue)-ss.head))
}

// take accepts o if it can be sent about now.
func (ss *session) take(o outMsg) bool {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	if ss.room() == 0 {
		return false
	}
	if o.qos == 0 {
		ss.conn.deliver(&o, false)
		return true
	}
	ss.queue = append(ss.queue, o)
	ss.pump()
	return true
}

// wake starts catchUp. Caller holds the mutex of a member's session that is connected: so
// Shutdown is not through.
func (g *group) wake() {
	g.wakeMu.Lock()
	defer g.wakeMu.Unlock()
	if g.running {
		g.again = true
		return
	}
	g.running = true
	g.srv.wg.Add(1)
	go g.catchUp()
}

// catchUp hands out what the group is behind with, while members have room.
func (g *group) catchUp() {
	defer g.srv.wg.Done()
	for {
		if g.step() {
			continue
		}
		g.wakeMu.Lock()
		if !g.again {
			g.running = false
			g.wakeMu.Unlock()
			return
		}
		g.again = false
		g.wakeMu.Unlock()
	}
}

// step hands out some messages; false when there is nothing to do before the next wake.
func (g *group) step() bool {
	g.mu.Lock()
	k := &g.cursor
	if len(k.behind) == 0 && len(g.redo) == 0 {
		g.lag.Store(false)
		g.except = nil
		g.mu.Unlock()
		return false
	}
	room := 0
	for i := range g.members {
		ss := g.members[i].ss
		ss.mu.Lock()
		room += ss.room()
		ss.mu.Unlock()
	}
	if room == 0 {
		g.mu.Unlock()
		return false
	}
	if len(g.redo) > 0 {
		at := g.redo[0]
		g.mu.Unlock()
		return g.handAgain(at)
	}
	p := slices.MinFunc(slices.Collect(maps.Keys(k.behind)), cmp.Compare)
	b := k.behind[p]
	from := b.next
	g.mu.Unlock()

	var msgs []*message
	next, err := g.srv.cfg.Log.Read(p, from, func(off int64, m *Stored) bool {
		if m.QoS > 0 && topic.Match(g.filter, m.Topic) {
			msgs = append(msgs, m.message(Position{p, off}))
		}
		return len(msgs) < room
	})
	g.mu.Lock()
	defer g.mu.Unlock()
	if k.behind[p] != b || b.next != from { // an earlier offer has come late
		return true
	}
	for _, m := range msgs {
		if !g.handed(m.at) && !g.hand(m) {
			b.next = m.at.Offset
			return false
		}
	}
	b.next = next
	end := g.srv.end(p)
	if err != nil || next == from && next < end { // the next ack or message tries again
		if err != nil {
			g.srv.log.Error("log cannot be read for a shared subscription", "group", g.name, "partition", p, "from", from, "error", err)
		}
		return false
	}
	if next >= end {
		if k.read == nil {
			k.read = map[uint32]span{}
		}
		k.read[p] = span{b.from, next}
		delete(k.behind, p)
	}
	return true
}

// handAgain hands out one message that came back.
func (g *group) handAgain(at Position) bool {
	m, err := g.srv.readAt(at)
	g.mu.Lock()
	defer g.mu.Unlock()
	if err != nil {
		g.srv.log.Error("log cannot be read for a shared subscription", "group", g.name, "partition", at.Part, "from", at.Offset, "error", err)
		return false
	}
	i := slices.Index(g.redo, at)
	if i < 0 {
		return true
	}
	_, taken := g.except[at]
	if m != nil && !taken && !g.hand(m) { // m is nil when a retention has deleted it
		return false
	}
	g.redo = slices.Delete(g.redo, i, i+1)
	return true
}

// handed reports whether a member has, or had, the message at at. Caller holds mu.
func (g *group) handed(at Position) bool {
	if _, ok := g.except[at]; ok || slices.Contains(g.cursor.recent, at) || slices.Contains(g.redo, at) {
		return true
	}
	for i := range g.members {
		ss := g.members[i].ss
		ss.mu.Lock()
		has := ss.find2(at) >= 0 || slices.Contains(ss.cursor.finished, at)
		ss.mu.Unlock()
		if has {
			return true
		}
	}
	return false
}

// takeBack takes from ss what it was handed and has not been sent; ended: the session is over,
// and what it has not acknowledged at QoS 1 comes back, too. Caller holds mu.
func (g *group) takeBack(ss *session, ended bool) {
	ss.mu.Lock()
	back := len(g.redo)
	kept := ss.queue[:0]
	for _, o := range ss.queue[ss.head:] {
		if o.group == g {
			g.redo = append(g.redo, o.at)
		} else {
			kept = append(kept, o)
		}
	}
	clear(ss.queue[len(kept):])
	ss.queue, ss.head = kept, 0
	if ended {
		ss.inflight = slices.DeleteFunc(ss.inflight, func(o outMsg) bool {
			if o.group == g && (o.qos == 1 || o.unsaved && !o.released) {
				g.redo = append(g.redo, o.at)
			}
			return o.group == g
		})
	}
	ss.mu.Unlock()
	if len(g.redo) > back {
		slices.SortFunc(g.redo, func(a, b Position) int {
			return cmp.Or(cmp.Compare(a.Part, b.Part), cmp.Compare(a.Offset, b.Offset))
		})
		g.lags()
	}
}

// away is called when ss has lost its connection.
func (ss *session) away() {
	ss.mu.Lock()
	groups := slices.Clone(ss.groups)
	ss.mu.Unlock()
	for _, g := range groups {
		g.mu.Lock()
		g.takeBack(ss, false)
		g.mu.Unlock()
	}
}

// State of KindCursor under "g" + share name + "/" + filter:
//
//	1 | number of partitions | each: partition, offset from which is not handed out
//	  | number of messages below that are not acknowledged | each: partition, offset
//
// encode returns nil when nothing must be durable. Caller holds mu, so nothing is handed out or
// taken back meanwhile.
func (g *group) encode() []byte {
	durable := false
	out := slices.Clone(g.redo)
	for i := range g.members {
		ss := g.members[i].ss
		durable = durable || ss.expiry.Load() > 0
		ss.mu.Lock()
		note := func(o *outMsg) {
			if o.group == g && (o.qos == 1 || o.id == 0 || o.unsaved && !o.released) {
				out = append(out, o.at)
			}
		}
		for j := range ss.inflight {
			note(&ss.inflight[j])
		}
		for j := range ss.queue[ss.head:] {
			note(&ss.queue[ss.head+j])
		}
		ss.mu.Unlock()
	}
	out = slices.DeleteFunc(out, func(at Position) bool {
		b := g.cursor.behind[at.Part]
		return b != nil && at.Offset >= b.next
	})
	if !durable || len(g.cursor.behind) == 0 && len(out) == 0 {
		return nil
	}
	b := binary.AppendUvarint([]byte{cursorVersion}, uint64(len(g.cursor.behind)))
	for _, p := range slices.Sorted(maps.Keys(g.cursor.behind)) {
		b = appendPosition(b, Position{p, g.cursor.behind[p].next})
	}
	b = binary.AppendUvarint(b, uint64(len(out)))
	for _, at := range out {
		b = appendPosition(b, at)
	}
	return b
}

// decode is called before anything runs.
func (g *group) decode(b []byte) error {
	if len(b) == 0 || b[0] != cursorVersion {
		return errState
	}
	r := blobs{b: b[1:]}
	for n := r.num(); n > 0 && !r.bad; n-- {
		g.cursor.leave(r.position())
	}
	for n := r.num(); n > 0 && !r.bad; n-- {
		if at := r.position(); !r.bad {
			g.redo = append(g.redo, at)
		}
	}
	if r.bad || len(r.b) != 0 {
		return errState
	}
	g.lag.Store(true)
	return nil
}
