package hub

import (
	"fmt"
	"sync"

	"tailrace/storage"
	"tailrace/storage/record"
	"tailrace/uplink/hub/internal/saved"
)

// scratch holds the buffers of one build; the store copies what it is given.
type scratch struct {
	merged, packed, value []byte
	group                 []record.Batch
}

var scratches = sync.Pool{New: func() any { return new(scratch) }}

// newAppend takes one that was done with, or makes one: the store has the memory of an append for as
// long as a commit takes.
func (e *Embedded) newAppend(class string) *storage.Append {
	if pool := e.appends[class]; pool != nil {
		if a, ok := pool.Get().(*storage.Append); ok {
			return a
		}
	}
	return e.store.NewAppend(class)
}

// doneWith is for an append that is not the store's any more.
func (e *Embedded) doneWith(class string, a *storage.Append) {
	if pool := e.appends[class]; pool != nil {
		a.Reset()
		pool.Put(a)
	}
}

// build makes one append of what was taken from the queue: the records, merged
// where they are small, ledger rows, and the progress that all of it makes
// true. Everything goes to the class of the assigned partition, because only
// what is in one append of one class becomes durable in one step.
func (st *stream) build(old progressValue, take []entry) (*storage.Append, progressValue, []LossRow, error) {
	e := st.e
	prog := old
	prog.Held = old.Held.Clone()
	p, err := e.partition(st.assign.Assignment)
	if err != nil {
		return nil, prog, nil, fmt.Errorf("%s: %w", st.key.origin(), err)
	}
	a := e.newAppend(st.assign.Class)
	s := scratches.Get().(*scratch)
	defer scratches.Put(s)
	var rows []LossRow
	for len(take) > 0 {
		if g := take[0].gap; g != nil {
			row := st.lossRow(g)
			if err := a.Record(e.ledger[st.assign.Class], row.DeclaredAt, []byte(st.key.node), row.encode(), nil); err != nil {
				return nil, prog, nil, fmt.Errorf("%s: ledger row: %w", st.key.origin(), err)
			}
			rows = append(rows, row)
			prog.Held.Add(g.r.From, g.r.To)
			take = take[1:]
			continue
		}
		n := e.run(take)
		s.group = s.group[:0]
		for _, en := range take[:n] {
			s.group = append(s.group, en.batch)
			prog.Held.Add(en.batch.BaseOffset(), en.batch.NextOffset())
			prog.Stored += int64(en.batch.Count())
			prog.MaxTime = max(prog.MaxTime, en.batch.MaxTimestamp())
		}
		last, to := take[n-1].batch, p
		if take[0].back {
			if to, err = e.companionPartition(st.assign.Assignment); err != nil {
				return nil, prog, nil, fmt.Errorf("%s: %w", st.key.origin(), err)
			}
			prog.BackNext = last.NextOffset()
			prog.Backfilled += last.NextOffset() - s.group[0].BaseOffset()
		}
		if last.BaseOffset() > prog.LastOffset {
			prog.LastOffset, prog.LastCRC = last.BaseOffset(), last.CRC()
		}
		take = take[n:]

		b := s.group[0]
		if n > 1 {
			if s.merged, err = record.Merge(s.merged[:0], s.group...); err != nil {
				return nil, prog, nil, fmt.Errorf("%s: %w", st.key.origin(), err)
			}
			b = record.Batch(s.merged)
		}
		// What one node sends alone costs the disk no more than what is merged. A batch that is too large
		// stays so.
		if mergeable(b) && len(b) >= record.CompressMinBytes && len(b) <= storage.MaxRecordBytes {
			s.packed = record.Compress(s.packed[:0], b)
			b = record.Batch(s.packed)
		}
		o := storage.Origin{Node: st.key.node, Epoch: st.key.epoch, Topic: st.key.topic, Partition: st.key.partition,
			From: s.group[0].BaseOffset(), To: last.NextOffset()}
		if err := a.Batch(to, b, &o); err != nil {
			return nil, prog, nil, fmt.Errorf("%s: batch at offset %d: %w", st.key.origin(), o.From, err)
		}
		e.stats.batchesStored.Add(1)
		e.stats.bytesStored.Add(int64(len(b)))
	}
	s.value = prog.encode(s.value[:0])
	a.Set(storage.KindProgress, st.name, s.value)
	if !st.assign.durable.Load() {
		k := assignKey{st.key.node, st.key.topic, st.key.partition}
		a.Set(storage.KindAssign, k.String(), saved.Encode(st.assign.Assignment))
	}
	return a, prog, rows, nil
}

// run is how many entries at the front make one stored batch: contiguous ones
// up to the merge limits. A batch with a producer id stays alone, its identity
// would be lost.
func (e *Embedded) run(take []entry) int {
	first := take[0].batch
	if !mergeable(first) {
		return 1
	}
	records, bytes, next := first.Count(), len(first), first.NextOffset()
	n := 1
	for n < len(take) {
		b := take[n].batch
		if b == nil || take[n].back != take[0].back || b.BaseOffset() != next || !mergeable(b) ||
			records+b.Count() > e.cfg.MergeRecords || bytes+len(b) > e.cfg.MergeBytes {
			break
		}
		records += b.Count()
		bytes += len(b)
		next = b.NextOffset()
		n++
	}
	return n
}

func mergeable(b record.Batch) bool {
	return b.ProducerID() < 0 && b.Attributes()&(record.AttrTransactional|record.AttrControl) == 0
}

// partition finds an assigned partition. A topic that somebody deleted is made
// again by its rule: a node that still sends to it must not stand still.
func (e *Embedded) partition(a Assignment) (*storage.Partition, error) {
	t, err := e.EnsureTopic(a.Topic)
	if err != nil {
		return nil, err
	}
	if c := e.classOf(t); c != a.Class {
		return nil, fmt.Errorf("topic %q was made again in storage class %q, its progress is in class %q: delete it and make it in that class", a.Topic, c, a.Class)
	}
	p := t.Partition(a.Partition)
	if p == nil {
		if err := e.store.EnsurePartitions(a.Topic, a.Partition+1); err != nil {
			return nil, err
		}
		if p = t.Partition(a.Partition); p == nil {
			return nil, fmt.Errorf("topic %q has no partition %d", a.Topic, a.Partition)
		}
	}
	return p, nil
}
