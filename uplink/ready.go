package uplink

import (
	"slices"

	"tailrace/uplink/wire"
)

// readyQueue holds the wants that have something to send on one lane: the highest
// priority first, those of one priority in turn. There are few priorities.
type readyQueue struct{ levels []readyLevel }

type readyLevel struct {
	priority int32
	wants    []*senderWant
}

func (q *readyQueue) push(w *senderWant) {
	i, found := slices.BinarySearchFunc(q.levels, w.part.priority, func(l readyLevel, p int32) int {
		switch { // descending
		case l.priority > p:
			return -1
		case l.priority < p:
			return 1
		}
		return 0
	})
	if !found {
		q.levels = slices.Insert(q.levels, i, readyLevel{priority: w.part.priority})
	}
	q.levels[i].wants = append(q.levels[i].wants, w)
}

// peek is the next want with at least a priority, nil without one. It forgets those
// that are not ready any more.
func (q *readyQueue) peek(floor int32) *senderWant {
	for len(q.levels) > 0 && q.levels[0].priority >= floor {
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
