package uplink

import (
	"cmp"
	"slices"

	"tailrace/uplink/wire"
)

// readyQueue holds the wants that have something to send on one lane: the highest
// rank first, those of one rank in turn. There are few ranks.
type readyQueue struct{ levels []readyLevel }

type readyLevel struct {
	rank  rank
	wants []*senderWant
}

// rank orders by priority, and of one priority sketches before everything else.
type rank int64

func rankOf(n string, priority int32) rank {
	if _, ok := wire.SketchOf(n); ok {
		return 2*rank(priority) + 1
	}
	return 2 * rank(priority)
}

func (q *readyQueue) push(w *senderWant) {
	i, found := slices.BinarySearchFunc(q.levels, w.part.rank, func(l readyLevel, r rank) int { return cmp.Compare(r, l.rank) }) // descending
	if !found {
		q.levels = slices.Insert(q.levels, i, readyLevel{rank: w.part.rank})
	}
	q.levels[i].wants = append(q.levels[i].wants, w)
}

// peek is the next want with at least a priority, nil without one. It forgets those
// that are not ready any more.
func (q *readyQueue) peek(floor int32) *senderWant {
	for len(q.levels) > 0 && q.levels[0].rank >= 2*rank(floor) {
		l := &q.levels[0]
		for len(l.wants) > 0 {
			if l.wants[0].state == wantReady {
				return l.wants[0]
			}
			l.wants = l.wants[1:]
		}
		q.levels = slices.Delete(q.levels, 0, 1)
	}
	return nil
}

// pop removes what peek returned.
func (q *readyQueue) pop() { q.levels[0].wants = q.levels[0].wants[1:] }

func (q *readyQueue) len() (n int) {
	for i := range q.levels {
		n += len(q.levels[i].wants)
	}
	return n
}

// takeResend takes the first slice that is to be sent again and may be, by conn.
func (s *Sender) takeResend(lane wire.Lane, conn int) *slice {
	list := s.resend[lane]
	for i := 0; i < len(list); i++ {
		x := list[i]
		if x.acked || x.want.part.priority >= s.floor[lane] && x.conn != conn {
			s.resend[lane] = slices.Delete(list, i, i+1)
			x.queued = false
			if !x.acked {
				return x
			}
			list = s.resend[lane]
			i--
		}
	}
	return nil
}

// SetFloor keeps back, by lane, what has a lower priority: a budget is used up, or it is
// not the time. What was sent stays sent.
func (s *Sender) SetFloor(floor [wire.Lanes]int32) { s.floor = floor }

// NoFloor lets everything go.
const NoFloor = int32(-1 << 31)
