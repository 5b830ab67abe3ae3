package uplink

import (
	"maps"
	"slices"

	"tailrace/uplink/ranges"
	"tailrace/uplink/wire"
)

// noConn carries what waits to be sent again.
const noConn = -1

// Lost says that a connection died: what it carried and the hub did not ack is sent again.
func (s *Sender) Lost(conn int) {
	for _, id := range slices.Sorted(maps.Keys(s.wants)) {
		for _, x := range s.wants[id].flight {
			if x.conn == conn && !x.acked {
				s.carried[conn] -= x.bytes
				s.carried[noConn] += x.bytes
				x.conn = noConn
				if !x.queued {
					s.resend[x.lane] = append(s.resend[x.lane], x)
				}
			}
		}
	}
}

// Ack takes an Ack and says what became durable. What the hub says of a log that the
// node has not yet compared with its own waits for the comparison, see Late: acks of
// another log must not make this one free anything.
func (s *Sender) Ack(m *wire.Ack) []Acked {
	for l, c := range m.Credit {
		s.credit[l] = max(s.credit[l], c)
	}
	s.asked, s.heard = true, s.heard || len(m.Acks) > 0
	out := make([]Acked, 0, len(m.Acks))
next:
	for i := range m.Acks {
		a := &m.Acks[i]
		p := s.parts[a.Partition]
		e := s.epochs.find(a.Epoch)
		if p == nil || e < 0 || len(a.Ranges) == 0 || p.forked[e] {
			continue
		}
		for _, w := range p.wants {
			if w.epoch == e && w.state == wantCheck {
				w.waiting.AddSet(a.Ranges)
				continue next
			}
		}
		out = append(out, s.acked(p, e, a.Ranges))
	}
	return out
}

// Late hands out acks that waited for a check that then found the same log.
func (s *Sender) Late() []Acked {
	out := s.late
	s.late = nil
	return out
}

func (s *Sender) acked(p *senderPart, epoch int, held RangeSet) Acked {
	end := held.End()
	for k := 0; k < len(p.wants); {
		w := p.wants[k]
		if w.epoch == epoch {
			s.ackWant(w, held, end)
		}
		if k < len(p.wants) && p.wants[k] == w { // not dropped
			k++
		}
	}
	return Acked{p.name.topic, p.name.index, s.epochs.id(epoch), held}
}

func (s *Sender) ackWant(w *senderWant, held RangeSet, end int64) {
	for _, x := range w.flight {
		if x.from >= end {
			break
		}
		if !x.acked && held.Contains(x.from) {
			x.from = held.Missing(x.from, Forever)[0].From
			if x.from >= x.to {
				s.settle(x)
				w.skip.settled = x.at
			}
		}
	}
	k := 0
	for k < len(w.flight) && w.flight[k].acked {
		w.flight[k] = nil
		k++
	}
	w.flight = w.flight[k:]
	if w.state == wantHeld {
		s.queue(w)
	}
	if w.state == wantDone {
		s.drop(w)
	}
}

func (s *Sender) settle(x *slice) {
	if !x.acked {
		x.acked = true
		s.outstanding -= x.bytes
		s.carried[x.conn] -= x.bytes
	}
}

// Propose reports a gap that the node knows the reason of. Ranges proposed before in this session are not repeated.
//
// What is on its way is left out: the hub takes a frame that ends below what it has
// for a repetition, whose credit is not returned twice. It arrives, or is found gone
// when it is to be sent again.
func (s *Sender) Propose(topic string, index int, epoch wire.ID, g wire.Gap) {
	p, e := s.byName[name{topic, index}], s.epochs.find(epoch)
	if p == nil || e < 0 {
		return
	}
	g.Ranges = g.Ranges.Clone()
	for _, w := range p.wants {
		for _, x := range w.flight {
			if w.epoch == e && !x.acked && x.conn != noConn {
				g.Ranges.Remove(x.from, x.to)
			}
		}
	}
	s.propose(p, e, g)
}

func (s *Sender) propose(p *senderPart, epoch int, g wire.Gap) {
	known := p.gone[epoch]
	if known == nil {
		known = new(RangeSet)
		p.gone[epoch] = known
	}
	fresh := g.Ranges.Clone()
	fresh.RemoveSet(*known)
	if len(fresh) == 0 {
		return
	}
	known.AddSet(fresh)
	for len(fresh) > 0 {
		n := min(len(fresh), wire.MaxRanges)
		part := g
		part.Ranges, fresh = fresh[:n:n], fresh[n:]
		s.gaps = append(s.gaps, &wire.GapReport{Partition: p.id, Epoch: s.epochs.id(epoch), Gaps: []wire.Gap{part}})
	}
}

func (s *Sender) resent(j Job, r Read, conn int) (Frame, bool) {
	x := j.resend
	if x.acked {
		return Frame{}, false
	}
	first, next, n, err := runOf(r.Batches, x.from, x.to)
	if r.Failed || err != nil {
		s.failed = append(s.failed, j)
		return Frame{}, false
	}
	w := x.want
	if r.Gone || n == 0 { // evicted since; Propose may have told why
		to := x.to
		if p := w.part; p.start > x.from {
			to = min(to, p.start)
		}
		s.propose(w.part, w.epoch, wire.Gap{Ranges: ranges.Of(x.from, to), Reason: wire.GapExpired})
		x.from = to
		if x.from < x.to {
			s.resend[x.lane] = append(s.resend[x.lane], x)
		} else {
			s.settle(x)
		}
		return Frame{}, false
	}
	if first > x.from {
		s.propose(w.part, w.epoch, wire.Gap{Ranges: ranges.Of(x.from, first), Reason: wire.GapMissing})
		x.from = first
	}
	if next < x.to { // read shorter than before: the rest goes by itself
		y := &slice{want: w, from: next, to: x.to, bytes: max(0, x.bytes-int64(n)), lane: x.lane, conn: x.conn}
		x.to, x.bytes = next, x.bytes-y.bytes
		i := slices.Index(w.flight, x)
		w.flight = slices.Insert(w.flight, i+1, y)
		s.resend[x.lane] = append(s.resend[x.lane], y)
	}
	s.carried[x.conn] -= x.bytes
	s.carried[conn] += x.bytes
	x.conn = conn
	return Frame{Header: wire.FrameHeader{Partition: x.want.part.id, Epoch: uint32(x.want.epoch), Base: first, Count: next - first}, Batches: r.Batches[:n], slice: x}, true
}
