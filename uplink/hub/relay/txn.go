package relay

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"

	"tailrace/storage/record"
	"tailrace/uplink"
	"tailrace/uplink/hub/internal/saved"
	"tailrace/uplink/wire"
)

// transaction stores entries and what they make true of progress, in one transaction.
func (g *generation) transaction(ctx context.Context, take []*entry) error {
	began := time.Now()
	lanes, order := g.lanes(take)
	parts := append([]part{{g.r.cfg.ProgressTopic(), g.n}}, order...)
	if err := g.add(ctx, parts, lanes); err != nil {
		return err
	}
	if err := g.produceLanes(ctx, lanes, order); err != nil {
		return err
	}
	if err := g.deadLetters(ctx, take); err != nil {
		return err
	}
	if err := g.ledger(ctx, take); err != nil {
		return err
	}
	progress := g.advance(take)
	if !g.r.cfg.forget {
		if err := g.write(ctx, part{g.r.cfg.ProgressTopic(), g.n}, progress); err != nil {
			return err
		}
	}
	if err := g.pr.commit(ctx); err != nil {
		return err
	}
	g.r.stats.committing.Add(int64(time.Since(began)))
	g.r.count(take)
	g.complete(take)
	return nil
}

// lanes sorts the batches by where they go, in their order.
func (g *generation) lanes(take []*entry) (map[part][]*entry, []part) {
	lanes := map[part][]*entry{}
	var order []part
	for _, e := range take {
		if e.batch == nil || e.err != nil {
			continue
		}
		p := part{e.st.key.topic, e.st.at}
		if e.back {
			p.topic += BackfillSuffix
		}
		if lanes[p] == nil {
			order = append(order, p)
		}
		lanes[p] = append(lanes[p], e)
	}
	return lanes, order
}

// add adds partitions to the transaction; records of topics that cannot be are not stored.
func (g *generation) add(ctx context.Context, parts []part, lanes map[part][]*entry) error {
	parked, err := g.pr.add(ctx, parts)
	if err != nil {
		return err
	}
	for t, err := range parked {
		if g.r.isSystem(t) {
			return takeover("topic "+t, err)
		}
		for p := range lanes {
			if p.topic == t {
				park(lanes[p], err)
				lanes[p] = nil
			}
		}
	}
	return nil
}

func park(list []*entry, err error) {
	for _, e := range list {
		e.err = &TopicError{e.st.key.topic, "the cluster does not take it: " + err.Error()}
	}
}

// piece is a batch for a partition and the entries whose records it holds.
type piece struct {
	out
	from []*entry
	base int64 // of one entry, or a part of it: its first offset at the node
}

func (g *generation) piece(to part, from []*entry) *piece {
	return &piece{out: out{to: to, batch: g.merge(from)}, from: from, base: from[0].batch.BaseOffset()}
}

// produceLanes writes the lanes, one batch of each at a time.
func (g *generation) produceLanes(ctx context.Context, lanes map[part][]*entry, order []part) error {
	// split holds the halves of an origin's batch that was too large.
	split := map[part][]*piece{}
	for {
		var now []*piece
		for _, p := range order {
			switch {
			case len(split[p]) > 0:
				now = append(now, split[p][0])
				split[p] = split[p][1:]
			case len(lanes[p]) > 0:
				n := g.run(lanes[p])
				now = append(now, g.piece(p, lanes[p][:n]))
				lanes[p] = lanes[p][n:]
			}
		}
		if len(now) == 0 {
			return nil
		}
		var outs []*out
		for _, x := range now {
			if x.batch == nil { // does not decode: treated as the cluster would
				x.err = kerr.InvalidRecord
				continue
			}
			outs = append(outs, &x.out)
		}
		if err := g.pr.produce(ctx, outs); err != nil {
			return err
		}
		for _, x := range now {
			p := x.to
			switch {
			case x.err == nil:
				g.r.stats.batches.Add(1)
				g.r.stats.bytesStored.Add(int64(len(x.batch)))
			case x.park:
				park(append(x.from, lanes[p]...), x.err)
				lanes[p], split[p] = nil, nil
			case len(x.from) > 1: // bisect
				mid := len(x.from) / 2
				split[p] = append([]*piece{g.piece(p, x.from[:mid]), g.piece(p, x.from[mid:])}, split[p]...)
			case errors.Is(x.err, kerr.MessageTooLarge) && x.batch.Count() > 1: // a good batch of a node whose limit is higher
				halves, err := x.halve()
				if err != nil {
					x.bury(err)
					continue
				}
				split[p] = append(halves, split[p]...)
			default:
				x.bury(x.err)
			}
		}
	}
}

// plainly makes the batch again what the node sent, or a part of that.
func (x *piece) plainly() record.Batch {
	if x.batch == nil {
		return x.from[0].batch
	}
	x.batch.SetProducer(-1, -1, -1, false)
	x.batch.SetBaseOffset(x.base)
	return x.batch
}

// bury takes a piece of one origin out of the way.
func (x *piece) bury(err error) {
	x.from[0].dead = append(x.from[0].dead, deadPiece{batch: x.plainly(), err: err})
}

// halve cuts a batch of one origin in two.
func (x *piece) halve() ([]*piece, error) {
	b := x.plainly()
	mid := b.BaseOffset() + int64(b.Count())/2
	var list []*piece
	for _, r := range []uplink.Range{{From: b.BaseOffset(), To: mid}, {From: mid, To: b.NextOffset()}} {
		cut, err := record.Split(nil, b, r.From, r.To)
		if err != nil {
			return nil, err
		}
		list = append(list, &piece{out: out{to: x.to, batch: record.Batch(record.Compress(nil, record.Batch(cut)))}, from: x.from, base: r.From})
	}
	return list, nil
}

// run is how many entries at the front make one batch. One that is large already is only
// patched: its records are not touched.
func (g *generation) run(list []*entry) int {
	c := g.r.cfg
	records, bytes := 0, 0
	for n, e := range list {
		b := e.batch
		if b.Count() >= patchFrom || !mergeable(b) || n > 0 && (records+b.Count() > c.MergeRecords || bytes+len(b) > c.MergeBytes) {
			return max(n, 1)
		}
		records += b.Count()
		bytes += len(b)
	}
	return len(list)
}

// patchFrom is how many records a batch has that is not merged: below, the broker's work
// for a batch outweighs that of merging.
const patchFrom = 200

func mergeable(b record.Batch) bool {
	return b.ProducerID() < 0 && b.Attributes()&(record.AttrTransactional|record.AttrControl) == 0
}

// merge makes one batch of the records of some, which may be of several origins; nil when
// one does not decode.
func (g *generation) merge(list []*entry) record.Batch {
	if len(list) == 1 {
		return slices.Clone(list[0].batch)
	}
	var bl record.Builder
	bl.Reset(nil)
	for _, e := range list {
		it := e.batch.Iter(g.dec)
		for it.Next() {
			bl.AddEncoded(it.Record().Timestamp, it.Tail())
		}
		if it.Err() != nil {
			return nil
		}
	}
	return record.Batch(record.Compress(nil, record.Batch(bl.Finish(0, 0))))
}

// deadLetters writes what the cluster refused, as the node stored it, and makes a loss of each.
func (g *generation) deadLetters(ctx context.Context, take []*entry) error {
	to := part{g.r.cfg.DeadTopic(), g.n}
	for _, e := range take {
		for i := range e.dead {
			if err := g.add(ctx, []part{to}, nil); err != nil {
				return err
			}
			if err := g.deadLetter(ctx, to, e.st, &e.dead[i]); err != nil {
				return err
			}
		}
	}
	return nil
}

func (g *generation) deadLetter(ctx context.Context, to part, st *stream, d *deadPiece) error {
	r := uplink.Range{From: d.batch.BaseOffset(), To: d.batch.NextOffset()}
	where := fmt.Sprintf("%s[%d,%d)", st.key, r.From, r.To)
	kept := "kept in " + g.r.cfg.DeadTopic()
	for _, value := range [][]byte{d.batch, nil} { // nil: not even there
		var bl record.Builder
		bl.Reset(nil)
		bl.Add(g.r.cfg.Now().UnixMilli(), []byte(st.key.node), value, []record.Header{
			{Key: "origin", Value: []byte(where)}, {Key: "error", Value: []byte(d.err.Error())}})
		o := &out{to: to, batch: record.Batch(bl.Finish(0, 0))}
		if err := g.pr.produce(ctx, []*out{o}); err != nil {
			return err
		}
		if o.err == nil {
			break
		}
		if kept = "too large to be kept"; value == nil {
			return takeover("dead-letter topic", o.err)
		}
	}
	g.log.Error("the cluster refuses a batch", "origin", where, "error", d.err, "batch", kept)
	d.loss = g.loss(st, r, wire.Gap{Ranges: uplink.RangeSet{r}, Reason: wire.GapDamaged, At: g.r.cfg.Now().UnixMilli(),
		Detail: "the Kafka cluster refuses it: " + d.err.Error() + "; " + kept})
	return nil
}

// keyed is a record of a system topic.
type keyed struct {
	key   string
	value []byte
}

// ledger writes the rows of what will never come.
func (g *generation) ledger(ctx context.Context, take []*entry) error {
	var rows []keyed
	for _, e := range take {
		if e.gap != nil && e.err == nil {
			rows = append(rows, keyed{e.st.key.node, g.r.cfg.LossRow(*e.gap)})
		}
		for _, d := range e.dead {
			rows = append(rows, keyed{e.st.key.node, g.r.cfg.LossRow(*d.loss)})
		}
	}
	if len(rows) == 0 {
		return nil
	}
	to := part{g.r.cfg.LossTopic(), g.n}
	if err := g.add(ctx, []part{to}, nil); err != nil {
		return err
	}
	return g.write(ctx, to, rows)
}

// write writes records of a system topic.
func (g *generation) write(ctx context.Context, to part, list []keyed) error {
	now := g.r.cfg.Now().UnixMilli()
	for len(list) > 0 {
		var bl record.Builder
		bl.Reset(nil)
		n := 0
		for n < len(list) && (n == 0 || bl.Len()+len(list[n].key)+len(list[n].value) < g.r.cfg.MergeBytes) {
			bl.Add(now, []byte(list[n].key), list[n].value, nil)
			n++
		}
		list = list[n:]
		o := &out{to: to, batch: record.Batch(record.Compress(nil, record.Batch(bl.Finish(0, 0))))}
		if err := g.pr.produce(ctx, []*out{o}); err != nil {
			return err
		}
		if o.err != nil {
			return takeover("topic "+to.topic, o.err)
		}
	}
	return nil
}

// advance is what the entries make true: records of the progress topic. Each stream's next
// becomes its value when the transaction is committed.
func (g *generation) advance(take []*entry) []keyed {
	g.mu.Lock()
	defer g.mu.Unlock()
	var list []keyed
	var touched []*stream
	for _, e := range take {
		if e.err != nil {
			continue
		}
		if e.st == nil {
			list = append(list, keyed{e.key, e.value})
			continue
		}
		st := e.st
		if st.next.Held == nil {
			st.next = st.val
			st.next.Held = st.val.Held.Clone()
			if st.next.Held == nil {
				st.next.Held = uplink.RangeSet{}
			}
			touched = append(touched, st)
		}
		v := &st.next
		if e.gap != nil {
			v.Held.Add(e.gap.Range.From, e.gap.Range.To)
			continue
		}
		b := e.batch
		v.Held.Add(b.BaseOffset(), b.NextOffset())
		n := int64(b.Count())
		for _, d := range e.dead {
			n -= int64(d.batch.Count())
		}
		v.Stored += n
		v.MaxTime = max(v.MaxTime, b.MaxTimestamp())
		if e.back {
			v.BackNext = b.NextOffset()
			v.Backfilled += n
		}
		if b.BaseOffset() > v.LastOffset {
			v.LastOffset, v.LastCRC = b.BaseOffset(), b.CRC()
		}
	}
	for _, st := range touched {
		list = append(list, keyed{keyProgress + st.key.String(), saved.Encode(st.next)})
	}
	return list
}
