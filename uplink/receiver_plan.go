package uplink

import (
	"fmt"
	"maps"
	"slices"

	"tailrace/uplink/wire"
)

// Plan asks for what progress lacks of the inventory's partitions; of those that
// were planned before nothing new is asked. mode overrides the inventory's, by topic.
func (r *Receiver) Plan(inv wire.Inventory, progress []Progress, mode map[string]wire.Mode, rate [wire.Lanes]uint64) {
	type key struct {
		name
		epoch wire.ID
	}
	known := make(map[key]*Progress, len(progress))
	for i := range progress {
		p := &progress[i]
		known[key{name{p.Topic, p.Partition}, p.Epoch}] = p
	}
	modeOf := make(map[string]wire.Mode, len(inv.Partitions))
	for i := range inv.Partitions {
		modeOf[inv.Partitions[i].Topic] = inv.Partitions[i].Mode
	}
	maps.Copy(modeOf, mode)
	for i := range inv.Partitions {
		info := inv.Partitions[i]
		if p := r.parts[info.ID]; p != nil {
			p.info.Start, p.info.Next = info.Start, info.Next
			continue
		}
		p := &recvPart{info: info, forked: map[int]bool{}}
		r.parts[info.ID] = p
		m := modeOf[info.Topic]
		p.closed = m == wire.ModeRefused
		behind := wire.LaneBulk
		if base, ok := wire.SketchOf(info.Topic); ok && modeOf[base] == wire.ModeLiveFirst {
			behind = wire.LaneBackfill // where the detail goes, to be in front of it
		}
		spans := r.epochs.spans(name{info.Topic, info.Partition})
		newest := -1 // the last span of which records are stored
		for i, sp := range spans {
			if k := known[key{name{info.Topic, info.Partition}, r.epochs.id(sp.epoch)}]; k != nil && k.Last != nil {
				newest = i
			}
		}
		for i, sp := range spans {
			var held RangeSet
			var last *wire.Held
			if k := known[key{name{info.Topic, info.Partition}, r.epochs.id(sp.epoch)}]; k != nil {
				held, last = k.Held, k.Last
			}
			// The node may have missed the acks: it frees by them, so it hears again.
			r.ack(info.ID, sp.epoch, held)
			if m == wire.ModeOnDemand || p.closed {
				continue
			}
			missing := held.Missing(sp.from, sp.to)
			if len(missing) > wire.MaxRanges {
				missing = append(missing[:wire.MaxRanges-1:wire.MaxRanges-1], missing[len(missing)-1])
			}
			r.plan(p, sp, missing, last, m, behind, rate, i < newest)
		}
		r.ask(p)
	}
	// What can be compared first: the node sends nothing before it has compared.
	compares := func(m wire.Message) bool { w, ok := m.(*wire.Want); return ok && w.Last != nil }
	slices.SortStableFunc(r.out, func(a, b wire.Message) int {
		switch ca, cb := compares(a), compares(b); {
		case ca && !cb:
			return -1
		case cb && !ca:
			return 1
		}
		return 0
	})
}

// smallGap is how many records a live-first topic takes in order before they count as a
// gap: a reconnect does not scatter a handful of them over two topics.
const smallGap = 256

// plan makes the Wants of one epoch of a partition. In a topic the offsets of a node only
// grow: what lies below something that is stored already (above: of a younger epoch) goes
// to the companion topic, as does the gap of a live-first topic. behind is the lane of a backlog.
func (r *Receiver) plan(p *recvPart, sp span, missing RangeSet, last *wire.Held, m wire.Mode, behind wire.Lane, rate [wire.Lanes]uint64, above bool) {
	live := m == wire.ModeLiveFirst
	open := sp.to == Forever
	tail := Range{From: Forever, To: Forever}
	if open {
		tail = missing[len(missing)-1]
		missing = missing[:len(missing)-1]
	}
	var back, rest RangeSet
	for _, x := range missing {
		if live || above || last != nil && x.To <= last.Offset {
			back = append(back, x)
		} else {
			rest = append(rest, x)
		}
	}
	if live && open && p.info.Next-tail.From > smallGap {
		back.Add(tail.From, p.info.Next)
		tail.From = p.info.Next
	}
	if len(back) > 0 {
		lane := behind
		if live {
			lane = wire.LaneBackfill
		}
		p.later = append(p.later, laterWant{&wire.Want{Partition: p.info.ID, Epoch: r.epochs.id(sp.epoch), Ranges: back, Lane: lane, CatchUp: lane, Rate: rate[lane], Last: last}, true})
	}
	w := &wire.Want{Partition: p.info.ID, Epoch: r.epochs.id(sp.epoch), Ranges: rest, Lane: behind, CatchUp: behind, Last: last}
	switch {
	case live && open:
		w.Follow, w.From, w.Lane, w.CatchUp = true, tail.From, wire.LaneLive, wire.LaneLive
		w.SkipMS = uint32(allowedAge(skipAfter, len(missing)).Milliseconds())
	case open:
		w.Follow, w.From, w.Lane = true, tail.From, wire.LaneLive
	case len(rest) == 0:
		return // an older epoch that is complete, or goes to the companion
	}
	w.Rate, w.SlowRate = rate[w.Lane], rate[w.CatchUp]
	if live && open {
		r.send(p, w, false, false)
		return
	}
	p.later = append(p.later, laterWant{w, false})
}

// without takes ranges out that need not be asked for any more; true when nothing is left.
func (l laterWant) without(held RangeSet) bool {
	l.want.Ranges.RemoveSet(held)
	if !l.want.Follow {
		return len(l.want.Ranges) == 0
	}
	l.want.From = held.Missing(l.want.From, Forever)[0].From
	return false
}

// ask sends the next Want of an in-order partition when the one before is delivered.
func (r *Receiver) ask(p *recvPart) {
	for _, w := range p.wants {
		if w.ordered {
			return
		}
	}
	if len(p.later) > 0 {
		w := p.later[0]
		p.later = p.later[1:]
		r.send(p, w.want, true, w.backfill)
	}
}

func (r *Receiver) send(p *recvPart, m *wire.Want, ordered, backfill bool) {
	r.lastWant++
	m.ID = r.lastWant
	w := &recvWant{id: m.ID, part: p, epoch: r.epochs.find(m.Epoch), wanted: m.Ranges.Clone(), held: map[int64]heldFrame{}, ordered: ordered, backfill: backfill}
	if m.Follow {
		w.wanted.Add(m.From, Forever)
	}
	w.mayskip = m.SkipMS > 0
	w.skip()
	r.wants[w.id] = w
	p.wants = append(p.wants, w)
	r.out = append(r.out, m)
}

// Ask asks for ranges of one partition and epoch on demand.
func (r *Receiver) Ask(topic string, index int, epoch wire.ID, want RangeSet, lane wire.Lane, rate uint64) error {
	if r.epochs.find(epoch) < 0 {
		return fmt.Errorf("node %s has no epoch %s", r.cfg.Node, epoch)
	}
	if len(want) == 0 || len(want) > wire.MaxRanges || !want.Valid() {
		return fmt.Errorf("ask node %s for ranges %s: want 1 to %d disjoint ranges", r.cfg.Node, want, wire.MaxRanges)
	}
	for _, p := range r.parts {
		if p.info.Topic == topic && p.info.Partition == index {
			if p.closed {
				return fmt.Errorf("node %s may not write topic %s here", r.cfg.Node, topic)
			}
			r.send(p, &wire.Want{Partition: p.info.ID, Epoch: epoch, Ranges: want.Clone(), Lane: lane, CatchUp: lane, Rate: rate}, false, false)
			p.wants[len(p.wants)-1].asked = true
			return nil
		}
	}
	return fmt.Errorf("node %s has no partition %s/%d", r.cfg.Node, topic, index)
}

// Withdraw takes back what was asked for by Ask of a topic. What was sent stays sent.
func (r *Receiver) Withdraw(topic string) {
	for _, p := range r.parts {
		if p.info.Topic != topic {
			continue
		}
		for _, w := range slices.Clone(p.wants) {
			if w.asked {
				r.out = append(r.out, &wire.Cancel{Want: w.id})
				r.finish(w)
			}
		}
	}
}
