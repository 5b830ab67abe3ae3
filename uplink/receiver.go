package uplink

import (
	"fmt"
	"slices"

	"tailrace/uplink/ranges"
	"tailrace/uplink/wire"
)

// ReceiverConfig bounds a Receiver.
type ReceiverConfig struct {
	Node   string
	Credit [wire.Lanes]int64 // raw bytes outstanding per lane, to begin with
	// Split cuts batches to [from, to); nil = a batch across an edge is an error.
	Split func(batches []byte, from, to int64) ([]byte, error)
}

// Receiver is the hub's half of one session: what to ask for, what arrived, in
// which order it may be stored, and what to acknowledge. A plain value like
// Sender. Not safe for concurrent use.
//
//	Plan                what to ask for, from inventory and durable progress
//	Admit, Frame        a frame came; what may be stored now, in order
//	Durable, Declared   what the store made durable
//	Messages, Ack       what to tell the node
//
// Invariants: what is delivered of a wanted range is delivered once and in offset
// order; bytes held back or delivered and not yet durable never exceed the credit
// by more than one frame.
type Receiver struct {
	cfg      ReceiverConfig
	epochs   epochTable
	parts    map[uint32]*recvPart
	wants    map[uint32]*recvWant
	lastWant uint32
	lanes    [wire.Lanes]recvLane
	acks     []wire.PartitionRanges // not yet told
	ackAt    map[ackKey]int         // place in acks
	out      []wire.Message
}

type ackKey struct {
	part  uint32
	epoch int
}

type recvLane struct {
	limit    int64  // bytes outstanding at most
	received uint64 // raw bytes of batches admitted
	returned uint64 // of those, durable or dropped
	told     uint64 // the grant the node knows
}

func (l *recvLane) granted() uint64 { return l.returned + uint64(l.limit) }

type recvPart struct {
	info   wire.PartitionInfo
	wants  []*recvWant
	later  []laterWant  // what waits until the one before is complete
	forked map[int]bool // by epoch
	closed bool         // nothing is asked for, nothing is taken
}

// laterWant waits its turn: younger epochs of an in-order topic, and whatever goes to the
// companion topic, are asked for one after the other.
type laterWant struct {
	want     *wire.Want
	backfill bool
}

type recvWant struct {
	id       uint32
	part     *recvPart
	epoch    int
	wanted   RangeSet // with follow the last range is open
	next     int64    // first offset wanted and not delivered
	done     RangeSet // declared lost, or cut out, at or above next
	held     map[int64]heldFrame
	ordered  bool
	backfill bool // goes to the companion topic
	asked    bool // by Ask
	mayskip  bool
	skipped  RangeSet // passed over, and not yet asked for again
}

type heldFrame struct {
	batches []byte
	buf     any
	next    int64
	lane    wire.Lane
	bytes   int64
}

// Deliver is a run of batches that may be stored now, after all earlier Delivers
// of its partition.
type Deliver struct {
	Origin  wire.Origin
	Batches []byte
	Range   Range
	Records int
	Bytes   int64 // to give to Durable
	Buf     any   // what Frame was given with these batches, to be reused after Durable

	part  uint32
	epoch int
}

// NewReceiver starts a session.
func NewReceiver(cfg ReceiverConfig, inv wire.Inventory) *Receiver {
	r := &Receiver{cfg: cfg, epochs: newEpochTable(inv.Epochs), ackAt: map[ackKey]int{}, parts: map[uint32]*recvPart{}, wants: map[uint32]*recvWant{}}
	for l := range r.lanes {
		r.lanes[l].limit = cfg.Credit[l]
		r.lanes[l].told = uint64(cfg.Credit[l])
	}
	return r
}

// skip moves next to the first offset that is wanted and neither delivered nor done.
func (w *recvWant) skip() {
	for {
		for len(w.wanted) > 0 && w.wanted[0].To <= w.next {
			w.wanted = w.wanted[1:]
		}
		if len(w.wanted) == 0 {
			return
		}
		w.next = max(w.next, w.wanted[0].From)
		for len(w.done) > 0 && w.done[0].To <= w.next {
			w.done = w.done[1:]
		}
		if len(w.done) == 0 || w.done[0].From > w.next {
			return
		}
		w.next = w.done[0].To
	}
}

// limit is the end of the wanted run that begins at w.next.
func (w *recvWant) limit() int64 {
	if len(w.wanted) == 0 {
		return w.next
	}
	return w.wanted[0].To
}

// Admit says whether a frame with raw bytes may be taken in on a lane now, before
// anything is allocated for it. An error means that the node sends beyond its
// credit: with several connections frames overtake each other, so the frame that
// goes over the credit need not be the last to arrive.
func (r *Receiver) Admit(lane wire.Lane, raw int) error {
	l := &r.lanes[lane]
	if l.received+uint64(raw) > l.granted()+wire.MaxFrameBytes {
		return fmt.Errorf("%w: node %s sends beyond its credit of %d bytes on the %s lane", wire.ErrMalformed, r.cfg.Node, l.granted(), lane)
	}
	return nil
}

// Frame takes a decoded frame that wire.VerifyFrame found good, and appends to out
// what may be stored now. batches belongs to the Receiver, then to the Deliver; buf
// comes back with it. used is false when batches was dropped (a repetition, or
// nothing wanted any more).
func (r *Receiver) Frame(out []Deliver, lane wire.Lane, h wire.FrameHeader, batches []byte, buf any) (_ []Deliver, used bool, err error) {
	p := r.parts[h.Partition]
	if p == nil || int(h.Epoch) >= len(r.epochs.list) {
		return out, false, fmt.Errorf("%w: frame for partition %d epoch %d, which are not in the inventory", wire.ErrMalformed, h.Partition, h.Epoch)
	}
	n, end := int64(len(batches)), h.Base+h.Count
	w, again := p.want(int(h.Epoch), h.Base, end)
	if again {
		// A connection died and its slice came again. The node paid for it once, so it
		// is neither received nor returned.
		return out, false, nil
	}
	r.lanes[lane].received += uint64(n)
	if w == nil { // cancelled or forked meanwhile
		r.lanes[lane].returned += uint64(n)
		return out, false, nil
	}
	f := heldFrame{batches: batches, buf: buf, next: end, lane: lane, bytes: n}
	if h.Base > w.next {
		w.held[h.Base] = f
		return out, true, nil
	}
	if out, err = r.deliver(out, w, h.Base, f); err != nil {
		return out, false, err
	}
	return r.release(out, w)
}

// want is the Want that a frame of [base, end) answers; again: it was here before.
func (p *recvPart) want(epoch int, base, end int64) (w *recvWant, again bool) {
	for _, x := range p.wants {
		if x.epoch != epoch {
			continue
		}
		if _, held := x.held[base]; held {
			return nil, true
		}
		if x.wants(base, end) {
			return x, false
		}
		again = again || end <= x.next
	}
	return nil, again
}

// wants says whether anything of [base, end) is wanted and not delivered.
func (w *recvWant) wants(base, end int64) bool {
	base = max(base, w.next)
	for _, r := range w.wanted {
		if r.From >= end {
			return false
		}
		if max(r.From, base) < min(r.To, end) {
			return true
		}
	}
	return false
}

// deliver passes f on, cut to what is wanted and not yet delivered.
func (r *Receiver) deliver(out []Deliver, w *recvWant, base int64, f heldFrame) ([]Deliver, error) {
	from, to := max(base, w.next), min(f.next, w.limit())
	b := f.batches
	if from > base || to < f.next {
		cut, err := r.split(w, b, from, to)
		if err != nil {
			return out, err
		}
		b = cut
	}
	records := 0
	for rest := b; len(rest) > 0; {
		var x wire.Batch
		x, rest, _ = wire.NextBatch(rest)
		records += x.Records
	}
	out = append(out, Deliver{
		Origin:  wire.Origin{Node: r.cfg.Node, Epoch: r.epochs.id(w.epoch), Topic: w.part.info.Topic, Partition: w.part.info.Partition, Lane: f.lane, Backfill: w.backfill},
		Batches: b, Range: Range{From: from, To: to}, Records: records, Bytes: f.bytes, Buf: f.buf, part: w.part.info.ID, epoch: w.epoch,
	})
	w.next = to
	w.skip()
	return out, nil
}

// split cuts batches to [from, to): whole batches by themselves, one that crosses with Config.Split.
func (r *Receiver) split(w *recvWant, b []byte, from, to int64) ([]byte, error) {
	start, n, clean := 0, 0, true
	for rest := b; len(rest) > 0; {
		var x wire.Batch
		x, rest, _ = wire.NextBatch(rest)
		switch {
		case x.Next <= from:
			start += len(x.Bytes)
		case x.Base >= to:
		default:
			n += len(x.Bytes)
			clean = clean && x.Base >= from && x.Next <= to
		}
	}
	b = b[start : start+n]
	if clean {
		return b, nil
	}
	if r.cfg.Split == nil {
		return nil, fmt.Errorf("%w: %s/%d: a batch crosses the edge of the wanted range [%d,%d)", wire.ErrMalformed, w.part.info.Topic, w.part.info.Partition, from, to)
	}
	return r.cfg.Split(b, from, to)
}

// release delivers held frames that are next, and finishes the want when it is complete.
func (r *Receiver) release(out []Deliver, w *recvWant) (_ []Deliver, used bool, err error) {
	for len(w.held) > 0 {
		f, ok := w.held[w.next]
		base := w.next
		if !ok { // passed over, by a declared gap or a cut
			for b, x := range w.held {
				if b < w.next && (!ok || b < base) {
					f, base, ok = x, b, true
				}
			}
			if !ok {
				break
			}
		}
		delete(w.held, base)
		if f.next <= w.next {
			r.lanes[f.lane].returned += uint64(f.bytes)
			continue
		}
		if out, err = r.deliver(out, w, base, f); err != nil {
			return out, true, err
		}
	}
	if len(w.wanted) == 0 {
		r.finish(w)
		r.ask(w.part)
	}
	if len(w.skipped) > 0 {
		r.passed(w)
	}
	return out, true, nil
}

func (r *Receiver) finish(w *recvWant) {
	for _, f := range w.held {
		r.lanes[f.lane].returned += uint64(f.bytes)
	}
	w.held = nil
	delete(r.wants, w.id)
	if i := slices.Index(w.part.wants, w); i >= 0 {
		w.part.wants = slices.Delete(w.part.wants, i, i+1)
	}
}

// Durable reports a Deliver as stored: held is acknowledged, its bytes' credit returns.
func (r *Receiver) Durable(d *Deliver, held RangeSet) {
	r.lanes[d.Origin.Lane].returned += uint64(d.Bytes)
	r.ack(d.part, d.epoch, held)
}

func (r *Receiver) ack(part uint32, epoch int, held RangeSet) {
	if len(held) == 0 {
		return
	}
	k := ackKey{part, epoch}
	if i, ok := r.ackAt[k]; ok {
		r.acks[i].Ranges.AddSet(held)
		return
	}
	r.ackAt[k] = len(r.acks)
	r.acks = append(r.acks, wire.PartitionRanges{Partition: part, Epoch: r.epochs.id(epoch), Ranges: held.Clone()})
}

// Gap takes a proposal of gaps. With ok, they are to be declared to the store under
// origin, and then Declared called.
func (r *Receiver) Gap(m *wire.GapReport) (origin wire.Origin, ok bool) {
	p, e := r.parts[m.Partition], r.epochs.find(m.Epoch)
	if p == nil || e < 0 || p.forked[e] || p.closed {
		return wire.Origin{}, false
	}
	return wire.Origin{Node: r.cfg.Node, Epoch: m.Epoch, Topic: p.info.Topic, Partition: p.info.Partition}, true
}

// Declared reports gaps as committed: they are acknowledged, and what waited behind them may be stored.
func (r *Receiver) Declared(out []Deliver, m *wire.GapReport, held RangeSet) ([]Deliver, error) {
	p, e := r.parts[m.Partition], r.epochs.find(m.Epoch)
	if p == nil || e < 0 {
		return out, nil
	}
	r.ack(m.Partition, e, held)
	p.later = slices.DeleteFunc(p.later, func(l laterWant) bool { return l.want.Epoch == m.Epoch && l.without(held) })
	for _, w := range slices.Clone(p.wants) {
		if w.epoch != e {
			continue
		}
		for _, g := range held {
			w.done.Add(max(g.From, w.next), g.To)
			w.skipped.Remove(g.From, g.To)
		}
		w.skip()
		var err error
		if out, _, err = r.release(out, w); err != nil {
			return out, err
		}
	}
	return out, nil
}

// Fork takes the node's refusal: nothing more is asked of that partition and epoch.
func (r *Receiver) Fork(m *wire.Fork) (origin wire.Origin, ok bool) {
	w := r.wants[m.Want]
	if w == nil || w.part.info.ID != m.Partition {
		return wire.Origin{}, false
	}
	p := w.part
	p.forked[w.epoch] = true
	for _, x := range slices.Clone(p.wants) {
		if x.epoch == w.epoch {
			r.finish(x)
		}
	}
	p.later = nil // a younger epoch hangs on the one that forked
	return wire.Origin{Node: r.cfg.Node, Epoch: r.epochs.id(w.epoch), Topic: p.info.Topic, Partition: p.info.Partition}, true
}

// Refused takes an Error about one Want: it is given up.
func (r *Receiver) Refused(want uint32) {
	if w := r.wants[want]; w != nil {
		r.finish(w)
	}
}

// Topic names a partition of the inventory.
func (r *Receiver) Topic(partition uint32) (topic string, ok bool) {
	p := r.parts[partition]
	if p == nil {
		return "", false
	}
	return p.info.Topic, true
}

// Limit is the number of raw bytes that may be outstanding on a lane, and how many are.
func (r *Receiver) Limit(lane wire.Lane) (limit, outstanding int64) {
	l := &r.lanes[lane]
	return l.limit, int64(l.received - l.returned)
}

// Grow raises the limit of a lane by n bytes.
func (r *Receiver) Grow(lane wire.Lane, n int64) { r.lanes[lane].limit += n }

// Messages hands out what there is to tell the node, acks last.
func (r *Receiver) Messages() []wire.Message {
	out := r.out
	r.out = nil
	tell := len(r.acks) > 0
	for i := range r.lanes {
		l := &r.lanes[i]
		tell = tell || l.granted()-l.told >= uint64(max(1, l.limit/4))
	}
	if !tell {
		return out
	}
	clear(r.ackAt)
	for first := true; first || len(r.acks) > 0; first = false {
		n := 0
		for count := 0; n < len(r.acks) && n < wire.MaxPartitions/8; n++ {
			if count += len(r.acks[n].Ranges); count > wire.MaxRanges && n > 0 {
				break
			}
		}
		a := &wire.Ack{Acks: r.acks[:n:n]}
		r.acks = r.acks[n:]
		for i := range r.lanes {
			r.lanes[i].told = r.lanes[i].granted()
			a.Credit[i] = r.lanes[i].told
		}
		if len(a.Acks) == 1 && len(a.Acks[0].Ranges) > wire.MaxRanges {
			all := a.Acks[0].Ranges
			a.Acks[0].Ranges = all[:wire.MaxRanges:wire.MaxRanges]
			r.acks = append(r.acks, wire.PartitionRanges{Partition: a.Acks[0].Partition, Epoch: a.Acks[0].Epoch, Ranges: ranges.Set(all[wire.MaxRanges:]).Clone()})
		}
		out = append(out, a)
	}
	r.acks = nil
	return out
}
