package mqtt

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"
)

// ones is n messages of QoS 1.
func ones(n int) []byte { return slices.Repeat([]byte{1}, n) }

// newReader is a session whose client takes outMax deliveries and answers none. It reads from l when
// the test says so.
func newReader(l Log, queued, outMax int) *session {
	g, all := newGroup(l, 1, outMax)
	ss := all[0]
	g.srv.cfg.Limits.Queued = queued
	ss.subs = map[string]subscription{"t": {qos: 1}}
	ss.cursor.reading = true // kick starts nothing
	return ss
}

// catchUpNow reads until there is no more, or no room.
func (ss *session) catchUpNow(t *testing.T) {
	t.Helper()
	ss.cursor.reading = true
	ss.srv.wg.Add(1)
	done := make(chan struct{})
	go func() { ss.catchUp(); close(done) }()
	select {
	case <-done:
	case <-time.After(time.Minute):
		t.Fatal("still reading")
	}
}

// all is what a session was given, in order, and has not answered.
func (ss *session) all() (offs []int64) {
	for _, o := range slices.Concat(ss.inflight, ss.queue[ss.head:]) {
		offs = append(offs, o.at.Offset)
	}
	return offs
}

func TestWhatCatchingUpTakes(t *testing.T) {
	later := time.Now().Add(time.Hour)
	l := &shelf{qos: []byte{2, 1, 1, 1, 1, 0, 1, 1}, edit: func(off int64, m *Stored) {
		m.Client, m.Retain, m.Expires = "dev", true, later
		switch off {
		case 1:
			m.Client = "m0" // its own
		case 6:
			m.Topic = "other"
		}
	}}
	for _, asPublished := range []bool{true, false} {
		ss := newReader(l, 10, 10)
		ss.subs["t"] = subscription{qos: 1, noLocal: true, retainAsPub: asPublished, id: 5}
		ss.cursor.note(at(2))
		ss.cursor.finished = []Position{at(3)}
		ss.inflight = []outMsg{{at: at(4), id: 1, qos: 1}}
		ss.cursor.leave(at(0))
		ss.catchUpNow(t)
		if got := ss.has(); !slices.Equal(got, []int64{4, 0, 7}) || len(ss.cursor.behind) > 0 {
			t.Fatalf("in flight %v, behind %v", got, ss.cursor.behind)
		}
		if o := ss.inflight[1]; o.qos != 1 || o.retain != asPublished || !slices.Equal(o.ids, []uint32{5}) || !o.m.expires.Equal(later) || o.m.from != "dev" {
			t.Errorf("took %+v of %+v", o, o.m)
		}
	}
}

// A filter that is subscribed while the session is behind matches nothing from before, and what remembers
// that goes when it is up to date.
func TestANewFilterMatchesNothingFromBefore(t *testing.T) {
	l := &shelf{qos: ones(4), edit: func(off int64, m *Stored) { m.Topic = []string{"t", "new"}[off%2] }}
	ss := newReader(l, 10, 10)
	ss.cursor.leave(at(0))
	ss.subs["new"] = subscription{qos: 1}
	ss.beginsHere("new")
	l.qos = ones(8)
	ss.catchUpNow(t)
	if got := ss.has(); !slices.Equal(got, []int64{0, 2, 4, 5, 6, 7}) {
		t.Errorf("took %v", got)
	}
	if len(ss.cursor.since["new"]) > 0 {
		t.Errorf("remembers %v", ss.cursor.since)
	}
	if ss.beginsHere("new"); len(ss.cursor.since) > 0 {
		t.Errorf("remembers %v of who is not behind", ss.cursor.since)
	}
}

// An offer from before that comes while the log is read: begin there, in order and nothing twice.
func TestAnEarlierOfferThatComesWhileReading(t *testing.T) {
	l := &shelf{qos: ones(6)}
	ss := newReader(l, 10, 10)
	ss.cursor.leave(at(3))
	late := false
	l.reading = func(off int64) {
		if off == 4 && !late {
			late = true
			ss.offer(outMsg{m: offered(1, 1), at: at(1), qos: 1})
		}
	}
	if ss.catchUpNow(t); !slices.Equal(ss.has(), []int64{1, 2, 3, 4, 5}) {
		t.Errorf("took %v", ss.has())
	}
}

// However much waits, no more is read than has room, and all that was read counts as read.
func TestCatchingUpIsBoundedByTheQueue(t *testing.T) {
	ss := newReader(&shelf{qos: ones(20)}, 4, 1)
	ss.cursor.leave(at(0))
	ss.catchUpNow(t)
	if n := len(ss.queue) - ss.head; n > 4 || len(ss.inflight) != 1 {
		t.Errorf("%d queued and %d in flight, want at most 4 and 1", n, len(ss.inflight))
	}
	var got []int64
	for len(ss.inflight) > 0 { // answered one by one
		got = append(got, ss.inflight[0].at.Offset)
		ss.remove(0)
		ss.cursor.reading = true
		ss.pump()
		ss.catchUpNow(t)
	}
	want := make([]int64, 20)
	for i := range want {
		want[i] = int64(i)
	}
	if !slices.Equal(got, want) {
		t.Errorf("took %v", got)
	}
	for off := range int64(20) { // read in pieces, known as a whole
		if ss.offer(outMsg{m: offered(off, 1), at: at(off), qos: 1}); len(ss.all()) > 0 {
			t.Fatalf("offset %d came again", off)
		}
	}
}

// The next messages are read before the queue is empty, and not while it is more than half full.
func TestReadingGoesOnAtHalfAQueue(t *testing.T) {
	for queued, want := range map[int]bool{2: true, 3: false} {
		ss := newReader(&shelf{qos: ones(20)}, 4, 1)
		ss.inflight = []outMsg{{at: at(0), id: 1, qos: 1}}
		for i := range queued {
			ss.queue = append(ss.queue, outMsg{at: at(int64(i + 1)), qos: 1, m: offered(int64(i+1), 1)})
		}
		ss.cursor.leave(at(int64(queued + 1)))
		ss.cursor.reading = false
		ss.mu.Lock()
		ss.kick()
		ss.mu.Unlock()
		ss.srv.wg.Wait()
		if read := len(ss.all()) > 1+queued; read != want {
			t.Errorf("%d queued of at most 4: reads %v", queued, read)
		}
	}
}

// What was taken, live or from the log, is not taken again when an earlier message comes late and has
// the log read from there.
func TestWhatWasAnsweredIsNotReadAgain(t *testing.T) {
	ss := newReader(&shelf{qos: ones(7)}, 10, 10)
	ss.offer(outMsg{m: offered(2, 1), at: at(2), qos: 1}) // live
	ss.cursor.leave(at(3))
	ss.catchUpNow(t)
	if !slices.Equal(ss.has(), []int64{2, 3, 4, 5, 6}) {
		t.Fatalf("took %v", ss.has())
	}
	ss.inflight = nil // answered
	ss.cursor.leave(at(1))
	if ss.catchUpNow(t); !slices.Equal(ss.has(), []int64{1}) {
		t.Errorf("took %v, want what came late alone", ss.has())
	}
}

// While there is something to read a live offer does not overtake it; who is away, or full, takes none.
func TestALiveOfferOvertakesNothing(t *testing.T) {
	for name, c := range map[string]func(ss *session){
		"behind": func(ss *session) { ss.cursor.leave(at(5)) },
		"away":   func(ss *session) { ss.conn = nil },
		"full":   func(ss *session) { ss.queue = make([]outMsg, 4) },
	} {
		ss := newReader(&shelf{qos: ones(20)}, 4, 0)
		c(ss)
		before := len(ss.queue)
		ss.offer(outMsg{m: offered(9, 1), at: at(9), qos: 1})
		ss.offer(outMsg{m: offered(3, 1), at: at(3), qos: 1})
		if b := ss.cursor.behind[7]; len(ss.queue) != before || b == nil || b.next != 3 {
			t.Errorf("%s: %d queued, behind %v", name, len(ss.queue), b)
		}
	}
}

// A log that has nothing there yet, or cannot be read, is asked again at the next wake, not at once.
func TestALogThatCannotBeReadIsAskedLater(t *testing.T) {
	for name, l := range map[string]Log{"nothing there": noLog{20}, "an error": &shelf{qos: ones(20), err: errors.New("bad sector")}} {
		ss := newReader(l, 10, 10)
		ss.cursor.leave(at(5))
		ss.catchUpNow(t)
		if b := ss.cursor.behind[7]; b == nil || b.next != 5 || ss.cursor.reading {
			t.Errorf("%s: behind %v, reading %v", name, b, ss.cursor.reading)
		}
	}
}

func TestTheRecordOfASession(t *testing.T) {
	l := &shelf{qos: slices.Repeat([]byte{2}, 30), begin: 6}
	ss := newReader(l, 10, 10)
	g := &group{srv: ss.srv}
	ss.cursor.behind = map[uint32]*span{7: {2, 14}, 8: {3, 4}}
	ss.queue = []outMsg{{at: nowhere, qos: 1}, {at: at(1), qos: 1}, {at: at(0), qos: 1, group: g}, {at: at(12), qos: 1}}
	ss.head = 2 // the first two were sent
	ss.inflight = []outMsg{
		{at: at(9), id: 1, qos: 1}, {at: at(3), id: 2, qos: 1, group: g}, {at: nowhere, id: 3, qos: 2},
		{at: at(7), id: 40, qos: 2, retain: true, ids: []uint32{1, 300}}, {at: at(8), id: 5, qos: 2, released: true},
		{at: at(4), id: 6, qos: 2}, {at: at(5), id: 41, qos: 2, released: true}, // gone from the log
	}
	ss.cursor.finished = []Position{at(6), at(10), at(11), at(20), {9, 1}}
	rec := ss.encodeCursor(map[uint32]int64{7: 11})
	if want := []Position{at(10), at(11), at(20), {9, 1}}; !slices.Equal(ss.cursor.finished, want) {
		t.Errorf("finished %v, want %v: what will be read from 9 on, or lies above the floor", ss.cursor.finished, want)
	}
	back := newReader(l, 10, 10)
	if err := back.decodeCursor(rec); err != nil {
		t.Fatal(err)
	}
	k := &back.cursor
	if len(k.behind) != 2 || *k.behind[7] != (span{9, 9}) || *k.behind[8] != (span{4, 4}) || !slices.Equal(k.finished, ss.cursor.finished) {
		t.Errorf("behind %v, finished %v", slices.Collect(maps.Values(k.behind)), k.finished)
	}
	got := ""
	for _, o := range back.inflight {
		got += fmt.Sprintf("%d: offset %d, qos %d, released %v, retain %v, ids %v, message %v\n", o.id, o.at.Offset, o.qos, o.released, o.retain, o.ids, o.m != nil)
	}
	if want := `40: offset 7, qos 2, released false, retain true, ids [1 300], message true
5: offset 8, qos 2, released true, retain false, ids [], message true
41: offset 5, qos 2, released true, retain false, ids [], message false
`; got != want || back.lastID != 41 {
		t.Errorf("last id %d, in flight\n%swant\n%s", back.lastID, got, want)
	}
	for n := range rec { // cut anywhere it is refused
		if back := newReader(l, 10, 10); back.decodeCursor(rec[:n]) == nil {
			t.Errorf("%d of %d bytes are understood", n, len(rec))
		}
	}
	if ss := newReader(l, 10, 10); ss.encodeCursor(nil) != nil {
		t.Error("a session that is up to date has a record")
	}
	// The newest are remembered.
	ss = newReader(l, 10, 10)
	for off := range int64(maxFinished + 10) {
		ss.cursor.finished = append(ss.cursor.finished, at(off))
	}
	ss.encodeCursor(nil)
	if f := ss.cursor.finished; len(f) != maxFinished || f[0] != at(10) {
		t.Errorf("%d remembered, from %v on", len(f), f[0])
	}
}

// What was in flight is sent again marked DUP and in order, but not before its id is durable; what was
// received gets its PUBREL.
func TestWhatIsSentAgainAtAReconnect(t *testing.T) {
	ss := newReader(&shelf{}, 10, 10)
	ss.cursor.saving = true // kick starts nothing
	c := ss.conn
	c.Version = 4
	c.out.broken = false
	c.out.running, c.out.limit = true, 1<<20 // nothing is written
	for i, o := range []outMsg{{qos: 1}, {qos: 2, unsaved: true}, {qos: 2, released: true}, {qos: 2}, {qos: 2, released: true, unsaved: true}} {
		o.id, o.at, o.m = uint16(i+1), at(int64(i)), offered(int64(i), o.qos)
		ss.inflight = append(ss.inflight, o)
	}
	ss.queue = []outMsg{{at: at(9), qos: 1, m: offered(9, 1)}}
	ss.mu.Lock()
	ss.resume()
	ss.mu.Unlock()
	got := fmt.Sprintf("%x", c.out.cur.b)
	if want := "3a05000174" + "0001" + "62020003" + "3c05000174" + "0004" + "3205000174" + "0006"; got != want || !ss.cursor.wanted {
		t.Errorf("sent %s, want %s; asks for the rest to be saved: %v", got, want, ss.cursor.wanted)
	}
}

// No more is in flight than the client takes, and an id in flight is not given again.
func TestWhatIsInFlightIsBounded(t *testing.T) {
	ss := newReader(&shelf{}, 100, 3)
	ss.lastID = 65533
	ss.inflight = []outMsg{{id: 1, qos: 1, at: nowhere}}
	for range 10 {
		ss.offer(outMsg{m: &message{topic: "t", qos: 1, at: nowhere}, at: nowhere, qos: 1})
	}
	var ids []uint16
	for _, o := range ss.inflight {
		ids = append(ids, o.id)
	}
	if want := []uint16{1, 65534, 65535}; !slices.Equal(ids, want) || len(ss.queue)-ss.head != 8 {
		t.Errorf("in flight %v, %d queued", ids, len(ss.queue)-ss.head)
	}
	ss.remove(1)
	if ss.pump(); ss.inflight[2].id != 2 {
		t.Errorf("the next id is %d, want 2: 0 is none, 1 is in flight", ss.inflight[2].id)
	}
}
