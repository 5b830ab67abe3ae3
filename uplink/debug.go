package uplink

import "fmt"

// String describes the Sender for people who look for what it waits for.
func (s *Sender) String() string {
	out := fmt.Sprintf("outstanding %d sent %v credit %v failed %d checks %d;", s.outstanding, s.sent, s.credit, len(s.failed), len(s.checks))
	for l := range s.ready {
		out += fmt.Sprintf(" lane %d: %d ready %d resend;", l, s.ready[l].len(), len(s.resend[l]))
	}
	for _, w := range s.wants {
		out += fmt.Sprintf(" want %d of %s/%d: state %d lane %s at %d of [..,%d) node next %d, %d in flight;", w.id, w.part.name.topic, w.part.name.index, w.state, w.lane, w.pos, w.end, w.part.next, len(w.flight))
	}
	return out
}

// String describes the Receiver for people who look for what it waits for.
func (r *Receiver) String() string {
	out := ""
	for l := range r.lanes {
		out += fmt.Sprintf(" lane %d: %+v;", l, r.lanes[l])
	}
	for _, w := range r.wants {
		out += fmt.Sprintf(" want %d of %s/%d: next %d wanted %s done %s held back %d;", w.id, w.part.info.Topic, w.part.info.Partition, w.next, w.wanted, w.done, len(w.held))
	}
	return out
}
