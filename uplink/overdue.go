package uplink

import (
	"time"

	"tailrace/uplink/wire"
)

// Wrote says that a frame that Done gave has been handed to its connection whole.
func (s *Sender) Wrote(f Frame, now time.Time) {
	if f.slice != nil && f.slice.wrote.IsZero() {
		f.slice.wrote = now
	}
}

// Overdue sends slices again by another connection that hold a partition up: one that is not
// acknowledged although another connection was handed a later one of the same Want at least patience ago. Once
// each; the hub takes the copy that comes first. It says how many.
func (s *Sender) Overdue(now time.Time, patience time.Duration) (n int) {
	for _, w := range s.wants {
		for i, x := range w.flight {
			if x.acked {
				continue
			}
			if !x.again && x.conn != noConn && x.lane != wire.LaneLive && w.passed(i, now.Add(-patience)) {
				x.again, x.queued = true, true
				s.resend[x.lane] = append(s.resend[x.lane], x)
				n++
			}
			break // what follows waits for this one
		}
	}
	return n
}

// passed says whether another connection was handed a slice behind flight[i] before t.
func (w *senderWant) passed(i int, t time.Time) bool {
	for _, y := range w.flight[i+1:] {
		if y.conn != w.flight[i].conn && y.conn != noConn && !y.wrote.IsZero() && y.wrote.Before(t) {
			return true
		}
	}
	return false
}
