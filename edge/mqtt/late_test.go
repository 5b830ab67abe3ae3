package mqtt

import "testing"

// noLog is a Log of which nothing has to be read.
type noLog struct{ end int64 }

func (l noLog) Ends(f func(part uint32, next int64)) { f(7, l.end) }
func (l noLog) Read(_ uint32, from int64, _ func(int64, *Stored) bool) (int64, error) {
	return from, nil
}

// Offers of several publishers come out of order: what catching up has met already is passed over
// when its offer comes, and what it has not met is taken.
func TestAnOfferThatComesAfterItWasReadIsPassedOver(t *testing.T) {
	s := &Server{cfg: Config{Log: noLog{20}}.withDefaults()}
	offer := func(read map[uint32]span, off int64) (bool, bool) {
		ss := &session{srv: s, id: "sub"}
		ss.expiry.Store(3600)
		ss.cursor.read = read
		m := &message{topic: "t", qos: 1, at: Position{7, off}}
		ss.offer(outMsg{m: m, at: m.at, qos: 1})
		g := &group{srv: s, name: "g", filter: "t"}
		g.cursor.read = read
		g.offer(m)
		return len(ss.cursor.behind) > 0, len(g.cursor.behind) > 0
	}
	read := map[uint32]span{7: {5, 10}}
	for off, want := range map[int64]bool{4: true, 5: false, 9: false, 10: true} {
		if a, b := offer(read, off); a != want || b != want {
			t.Errorf("offset %d: taken by the session %v, by the shared subscription %v; want %v", off, a, b, want)
		}
	}
}

// What members hand back when they go is bounded: beyond a queue's length new messages stay in the
// log until it has gone to others.
func TestWhatComesBackIsBounded(t *testing.T) {
	s := &Server{cfg: Config{Log: noLog{20}}.withDefaults()}
	for back, taken := range map[int]bool{0: true, s.cfg.Limits.Queued - 1: true, s.cfg.Limits.Queued: false} {
		ss := &session{srv: s, id: "member"}
		ss.conn = &conn{srv: s, outMax: 4}
		ss.conn.out.broken = true // takes everything
		g := &group{srv: s, name: "g", filter: "t", members: []target{{ss: ss, qos: 1}}}
		g.redo = make([]Position, back)
		g.lag.Store(true)
		g.offer(&message{topic: "t", qos: 1, at: Position{7, 3}})
		if left := len(g.cursor.behind) > 0; left == taken {
			t.Errorf("%d came back: a new message is left in the log %v", back, left)
		}
	}
}
