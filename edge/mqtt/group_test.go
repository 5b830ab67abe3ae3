package mqtt

import (
	"fmt"
	"maps"
	"slices"
	"testing"
)

// shelf is partition 7 of a Log: a message of each QoS at the offset of the same index.
type shelf struct {
	qos     []byte
	begin   int64           // what lay below is gone
	reading func(off int64) // called before each
	edit    func(off int64, m *Stored)
	err     error // of every read
}

func (l *shelf) Ends(f func(part uint32, next int64)) { f(7, int64(len(l.qos))) }
func (l *shelf) Read(_ uint32, from int64, f func(int64, *Stored) bool) (int64, error) {
	if l.err != nil {
		return from, l.err
	}
	for off := max(from, l.begin); off < int64(len(l.qos)); off++ {
		if l.reading != nil {
			l.reading(off)
		}
		m := Stored{Topic: "t", QoS: l.qos[off]}
		if l.edit != nil {
			l.edit(off, &m)
		}
		if !f(off, &m) {
			return off + 1, nil
		}
	}
	return int64(len(l.qos)), nil
}

// newGroup has members that are connected and take outMax messages each; nothing is sent.
func newGroup(l Log, members, outMax int) (*group, []*session) {
	s := &Server{cfg: Config{Log: l}.withDefaults()}
	s.log = s.cfg.Logger
	g := &group{srv: s, name: "g", filter: "t"}
	g.lag.Store(true) // nobody is woken
	var all []*session
	for i := range members {
		ss := &session{srv: s, id: fmt.Sprint("m", i), conn: &conn{srv: s, outMax: outMax}}
		ss.expiry.Store(3600)
		ss.conn.out.broken = true // takes everything
		all = append(all, ss)
		g.members = append(g.members, target{ss: ss, qos: 1})
	}
	return g, all
}

// has is the offsets of what a session was handed.
func (ss *session) has() (offs []int64) {
	for _, o := range ss.inflight {
		offs = append(offs, o.at.Offset)
	}
	return offs
}

func at(off int64) Position { return Position{7, off} }

func offered(off int64, qos byte) *message { return &message{topic: "t", qos: qos, at: at(off)} }

func TestASharedSubscriptionTakesTurns(t *testing.T) {
	g, m := newGroup(&shelf{qos: []byte{1, 1, 1, 1, 1, 1}}, 2, 2)
	for off := range int64(5) {
		g.offer(offered(off, 1))
	}
	if a, b := m[0].has(), m[1].has(); !slices.Equal(a, []int64{0, 2}) || !slices.Equal(b, []int64{1, 3}) {
		t.Errorf("the members have %v and %v", a, b)
	}
	if b := g.cursor.behind[7]; b == nil || b.next != 4 {
		t.Errorf("behind %+v, want from 4 on: there is no room", b)
	}
	// An offer from before is read first, although there is room by now.
	m[0].inflight = nil
	g.cursor.behind[7].next = 5
	g.offer(offered(4, 1))
	if b := g.cursor.behind[7]; b.next != 4 || len(m[0].inflight) > 0 {
		t.Errorf("behind %+v, handed %v", b, m[0].has())
	}
	if g.offer(offered(5, 1)); g.cursor.behind[7].next != 4 || len(m[0].inflight) > 0 {
		t.Errorf("what will be read was taken: %v", m[0].has())
	}
}

// What is not in the log goes to who is connected; when nobody is, each queues its part.
func TestASharedSubscriptionInMemory(t *testing.T) {
	g, m := newGroup(&shelf{}, 3, 100)
	m[0].conn, m[2].conn = nil, nil
	for range 6 {
		g.offer(&message{topic: "t", qos: 1, at: nowhere})
	}
	if len(m[1].inflight) != 6 {
		t.Errorf("who is connected has %d of 6", len(m[1].inflight))
	}
	m[1].conn = nil
	for range 6 {
		g.offer(&message{topic: "t", qos: 1, at: nowhere})
	}
	for i, ss := range m {
		if len(ss.queue) != 2 {
			t.Errorf("member %d queues %d of 6", i, len(ss.queue))
		}
	}
	if g.offer(offered(3, 0)); len(g.cursor.behind) > 0 {
		t.Error("a message of QoS 0 waits in the log")
	}
}

// What catching up reads: nothing of QoS 0, nothing twice, and not again what was offered late.
func TestASharedSubscriptionCatchesUp(t *testing.T) {
	l := &shelf{qos: []byte{1, 0, 1, 1, 1}}
	g, m := newGroup(l, 1, 10)
	g.offer(offered(2, 1)) // live, and acknowledged; the others come late
	m[0].inflight = nil
	g.cursor.leave(at(0))
	late := false
	l.reading = func(off int64) {
		if off == 3 && !late { // while it is read: begin anew
			late = true
			g.mu.Lock()
			g.cursor.behind[7].next = 0
			g.cursor.behind = map[uint32]*span{7: {0, 0}}
			g.mu.Unlock()
		}
	}
	if !g.step() || len(m[0].inflight) > 0 {
		t.Errorf("handed %v of what was overtaken", m[0].has())
	}
	for g.step() {
	}
	if got := m[0].has(); !slices.Equal(got, []int64{0, 3, 4}) || slices.Contains(g.cursor.recent, at(1)) {
		t.Errorf("handed %v, taken %v", got, g.cursor.recent)
	}
	if g.offer(offered(3, 1)); len(m[0].inflight) != 3 || len(g.cursor.behind) > 0 {
		t.Errorf("what was read came again: %v", m[0].has())
	}
	// Room that went away meanwhile: it stands where it has come to.
	g, m = newGroup(l, 1, 10)
	g.cursor.leave(at(0))
	l.reading = func(off int64) { m[0].conn.outMax = 2 }
	if more := g.step(); more || !slices.Equal(m[0].has(), []int64{0, 2}) || g.cursor.behind[7].next != 3 {
		t.Errorf("goes on %v, handed %v, stands at %d", more, m[0].has(), g.cursor.behind[7].next)
	}
	// A log that has nothing there yet is asked again at the next wake, not at once.
	g, _ = newGroup(noLog{20}, 1, 10)
	if g.cursor.leave(at(5)); g.step() {
		t.Error("goes on where nothing was read")
	}
}

func TestWhatAMemberHasIsNotHandedAgain(t *testing.T) {
	g, m := newGroup(&shelf{qos: []byte{1, 1, 1, 1, 1, 1}}, 2, 10)
	g.cursor.note(at(0))
	g.except = map[Position]struct{}{at(1): {}}
	m[1].inflight = []outMsg{{at: at(2), qos: 1}}
	m[1].cursor.finished = []Position{at(3)}
	g.redo = []Position{at(4)}
	for off := range int64(6) {
		if has := g.handed(at(off)); has != (off < 5) {
			t.Errorf("offset %d: %v", off, has)
		}
	}
	g.redo = []Position{at(1), at(5), {7, 99}}
	for range 3 { // one is at a member since before the restart, one is gone from the log
		if !g.handAgain(g.redo[0]) {
			t.Fatal("no room")
		}
	}
	if got := slices.Concat(m[0].has(), m[1].has()); !slices.Equal(got, []int64{5, 2}) || len(g.redo) > 0 {
		t.Errorf("members have %v, %v wait", got, g.redo)
	}
}

// flights is one delivery of each kind; of the group are all but the last.
func flights(g *group) []outMsg {
	return []outMsg{{at: at(9), id: 1, qos: 1, group: g}, {at: at(8), id: 2, qos: 2, unsaved: true, group: g}, {at: at(7), id: 3, qos: 2, unsaved: true, released: true, group: g},
		{at: at(6), id: 4, qos: 2, group: g}, {at: at(5), id: 5, qos: 1}}
}

// MQTT 5.0, 4.8.2-5: what was sent at QoS 2 does not go to another member.
func TestWhatComesBackFromAMember(t *testing.T) {
	for ended, want := range map[bool][]Position{false: {at(3), at(4)}, true: {at(3), at(4), at(8), at(9)}} {
		g, m := newGroup(&shelf{}, 1, 10)
		m[0].inflight = flights(g)
		m[0].queue = []outMsg{{at: at(4), qos: 1, group: g}, {at: at(2), qos: 1}, {at: at(3), qos: 2, group: g}}
		g.takeBack(m[0], ended)
		if !slices.Equal(g.redo, want) || len(m[0].queue) != 1 || len(m[0].inflight) != map[bool]int{false: 5, true: 1}[ended] {
			t.Errorf("session over %v: came back %v, queue %d, in flight %v", ended, g.redo, len(m[0].queue), m[0].has())
		}
	}
}

func TestTheRecordOfASharedSubscription(t *testing.T) {
	g, m := newGroup(&shelf{}, 1, 10)
	m[0].inflight = flights(g)
	m[0].queue = []outMsg{{at: at(4), qos: 2, group: g}, {at: at(2), qos: 1}}
	g.redo = []Position{at(3), at(12)}
	g.cursor.leave(at(10)) // 12 will be read
	h := &group{srv: g.srv}
	if err := h.decode(g.encode()); err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(h.redo, func(a, b Position) int { return int(a.Offset - b.Offset) })
	if want := []Position{at(3), at(4), at(8), at(9)}; !slices.Equal(h.redo, want) || h.cursor.behind[7].next != 10 || !h.lag.Load() {
		t.Errorf("comes back with %v, behind at %v, lag %v", h.redo, slices.Collect(maps.Values(h.cursor.behind)), h.lag.Load())
	}
	if m[0].expiry.Store(0); g.encode() != nil {
		t.Error("a record although no member is to be kept")
	}
}

func TestAMemberThatDoesNotReadHasNoRoom(t *testing.T) {
	_, m := newGroup(&shelf{}, 1, 10)
	if n := m[0].room(); n != 10 {
		t.Errorf("room for %d", n)
	}
	o := &m[0].conn.out
	o.broken, o.limit, o.cur = false, 1, &chunk{[]byte("xx")}
	if n := m[0].room(); n != 0 {
		t.Errorf("room for %d although the outbox is full", n)
	}
}

// A wake that comes while catching up ends is not lost.
func TestAWakeIsNotLost(t *testing.T) {
	g, _ := newGroup(&shelf{}, 1, 10)
	g.running = true
	if g.wake(); !g.again {
		t.Error("lost")
	}
}
