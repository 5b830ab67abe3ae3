package hub

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"tailrace/storage"
	"tailrace/storage/record"
	"tailrace/uplink"
	"tailrace/uplink/wire"
)

// maxHeldRanges bounds the progress of one origin: in order it is one range,
// and each hole adds one.
const maxHeldRanges = 4096

// stream is the state of one origin.
type stream struct {
	e      *Embedded
	key    streamKey
	name   string // of the key
	assign *assignment
	base   int64        // the first offset of the epoch in this partition
	order  atomic.Int32 // ordering
	eldest atomic.Bool  // nothing of an older epoch is on its way any more

	mu   sync.Mutex
	room *sync.Cond // on mu: the queue was taken, or nothing is in flight any more

	prog progressValue   // durable; prog.Held is held
	held uplink.RangeSet // durable, never changed in place: handed out by reference

	// pend is held, what is in flight, and what is queued. Invariant: it covers
	// the queue and held, and equals held when both are empty.
	pend     uplink.RangeSet
	top      int64 // nothing below may be stored in the topic: what is higher is, or is on its way
	back     int64 // the same of the companion topic
	queue    []entry
	waiters  []waiter // in order of their Append
	enqueued uint64   // entries queued since the stream was made
	taken    uint64   // of them, taken to the disk
	inflight bool     // an append is at the store, or its waiters are being called
	failed   bool     // the last append was not stored, and comes again
	halted   bool     // with orderTwo: one was not stored, so nothing behind it is until the node's next Hello
}

// entry is what waits to be stored: a batch, or a range declared lost.
type entry struct {
	batch record.Batch // offsets as at the node; nil for a gap
	back  bool         // goes to the companion topic
	gap   *gapEntry
}

type gapEntry struct {
	r uplink.Range
	g wire.Gap
}

// waiter is one Append: it is done when the first after entries are durable.
type waiter struct {
	after uint64
	bytes int64 // of the budget, given back
	done  func(held uplink.RangeSet, err error)
}

func (st *stream) progress() Progress {
	st.mu.Lock()
	defer st.mu.Unlock()
	p := Progress{Epoch: st.key.epoch, Topic: st.key.topic, Partition: st.key.partition,
		Held: st.held, MaxTime: st.prog.MaxTime, Stored: st.prog.Stored, Backfill: st.prog.Backfilled, Central: st.assign.Assignment}
	if st.prog.LastOffset >= 0 {
		p.Last = &wire.Held{Offset: st.prog.LastOffset, CRC: st.prog.LastCRC}
	}
	return p
}

// Append implements Central. batches belongs to the engine until done is called.
func (e *Embedded) Append(ctx context.Context, o wire.Origin, batches []byte, done func(held uplink.RangeSet, err error)) {
	e.stats.bytesIn.Add(int64(len(batches)))
	if err := e.append(ctx, o, batches, done); err != nil {
		e.stats.refused.Add(1)
		done(nil, err)
	}
}

func (e *Embedded) append(ctx context.Context, o wire.Origin, batches []byte, done func(held uplink.RangeSet, err error)) error {
	if e.stopping() {
		return ErrStopped
	}
	list, err := record.Ascending(batches)
	if err != nil {
		return fmt.Errorf("%s: %w", o, err)
	}
	st, err := e.stream(o)
	if err != nil {
		return err
	}
	if len(list) > 0 && list[0].BaseOffset() < st.base {
		return fmt.Errorf("%s: offset %d lies before the epoch's first one, %d", o, list[0].BaseOffset(), st.base)
	}
	if err := st.afterElders(); err != nil {
		return err
	}
	// An append larger than the whole budget takes all of it.
	n := min(int64(len(batches)), e.cfg.MaxQueuedBytes)
	if err := e.budget.Acquire(ctx, n); err != nil {
		return fmt.Errorf("%s: waiting for the disk: %w", o, err)
	}
	e.stats.batchesIn.Add(int64(len(list)))
	if err := st.enqueue(list, o.Backfill, waiter{bytes: n, done: done}); err != nil {
		e.budget.Release(n)
		return err
	}
	return nil
}

// enqueue puts what is new of list into the queue, all of it or nothing, and
// starts the way to the disk when nothing is on it.
func (st *stream) enqueue(list []record.Batch, backfill bool, w waiter) error {
	st.mu.Lock()
	pend, top, back := st.pend, st.top, st.back
	grown := false // pend is a copy that may be changed
	var add []entry
	var dup int64
	for _, b := range list {
		from, to := b.BaseOffset(), b.NextOffset()
		missing := pend.Missing(from, to)
		dup += to - from - missing.Count()
		for _, r := range missing {
			companion, err := st.place(pend, top, back, r.From, backfill)
			if err != nil {
				st.halted = true
				st.mu.Unlock()
				return err
			}
			piece := b
			if r.From != from || r.To != to { // the batch straddles what is held
				cut, err := record.Split(nil, b, r.From, r.To)
				if err != nil {
					st.mu.Unlock()
					return fmt.Errorf("%s: %w", st.key.origin(), err)
				}
				piece = record.Batch(cut)
			}
			if !grown {
				pend, grown = pend.Clone(), true
			}
			pend.Add(r.From, r.To)
			if companion {
				back = r.To
			} else {
				top = max(top, r.To)
			}
			add = append(add, entry{batch: piece, back: companion})
		}
	}
	if len(pend) > maxHeldRanges {
		st.mu.Unlock()
		return fmt.Errorf("%s: more than %d separate ranges", st.key.origin(), maxHeldRanges)
	}
	st.pend, st.top, st.back = pend, top, back
	st.e.stats.duplicates.Add(dup)
	st.push(add, w)
	return nil
}

// push appends entries and their waiter. Called with mu held, returns without it.
func (st *stream) push(add []entry, w waiter) {
	st.queue = append(st.queue, add...)
	st.enqueued += uint64(len(add))
	w.after = st.enqueued
	st.waiters = append(st.waiters, w)
	start := !st.inflight
	st.inflight = true
	st.mu.Unlock()
	if start {
		st.submit()
	}
}

// submit takes the queue, or as much of it as fits one append, to the store.
// Only the holder of inflight calls it, without mu.
func (st *stream) submit() {
	st.mu.Lock()
	n, bytes := 0, 0
	for n < len(st.queue) && (n == 0 || bytes < st.e.cfg.SubmitBytes) {
		bytes += len(st.queue[n].batch)
		n++
	}
	take := st.queue[:n:n]
	st.queue = st.queue[n:]
	if len(st.queue) == 0 {
		st.queue = nil
	}
	st.taken += uint64(n)
	old := st.prog
	st.mu.Unlock()

	if n == 0 { // every Append was held already
		st.complete(old, nil, nil)
		return
	}
	if st.e.stopping() {
		st.complete(old, nil, ErrStopped)
		return
	}
	a, prog, rows, err := st.build(old, take)
	if err != nil {
		st.complete(old, nil, err)
		return
	}
	st.e.store.Submit(a, func(a *storage.Append, err error) {
		st.e.doneWith(st.assign.Class, a)
		if err == nil {
			st.assign.durable.Store(true)
			st.e.stats.records.Add(prog.Stored - old.Stored)
		} else {
			st.e.stats.failed.Add(1)
		}
		st.complete(prog, rows, err)
	})
}

// complete makes the outcome of one append known, to the callers and to the
// state, and hands what was queued meanwhile to a worker.
func (st *stream) complete(prog progressValue, rows []LossRow, err error) {
	var call []waiter
	st.mu.Lock()
	st.failed = err != nil && comesAgain(err)
	if err != nil {
		// Nothing queued may be stored now: it was accepted on the assumption
		// that what lies before it is.
		call, st.waiters = st.waiters, nil
		st.queue, st.taken = nil, st.enqueued
		st.pend = st.held.Clone()
		st.top, st.back = st.prog.LastOffset+1, st.prog.BackNext
		st.halted = true
	} else {
		st.prog, st.held = prog, prog.Held
		i := 0
		for i < len(st.waiters) && st.waiters[i].after <= st.taken {
			i++
		}
		call = st.waiters[:i:i]
		st.waiters = st.waiters[i:]
		if len(st.waiters) == 0 {
			st.waiters = nil
		}
	}
	held := st.held
	st.mu.Unlock()

	if len(rows) > 0 && err == nil {
		st.e.losses.add(rows)
	}
	for _, w := range call {
		if w.bytes > 0 {
			st.e.budget.Release(w.bytes)
		}
		w.done(held, err)
	}

	st.mu.Lock()
	more := len(st.waiters) > 0
	st.inflight = more
	st.room.Broadcast()
	st.mu.Unlock()
	if more {
		st.e.enqueueReady(st)
	}
}

// quiet waits until nothing is in flight.
func (st *stream) quiet() {
	st.mu.Lock()
	for st.inflight {
		st.room.Wait()
	}
	st.mu.Unlock()
}

// afterElders waits until nothing of an older epoch of the same partition is on its way
// to the disk, once: each epoch has a queue of its own, and a younger one would overtake.
func (st *stream) afterElders() error {
	if st.eldest.Load() {
		return nil
	}
	e := st.e
	e.mu.Lock()
	age := func(id wire.ID) int {
		return slices.IndexFunc(e.epochs[st.key.node], func(ep wire.EpochInfo) bool { return ep.ID == id })
	}
	var elders []*stream
	for _, s := range e.byNode[st.key.node] {
		if s.key.topic == st.key.topic && s.key.partition == st.key.partition && age(s.key.epoch) < age(st.key.epoch) {
			elders = append(elders, s)
		}
	}
	e.mu.Unlock()
	for _, s := range elders {
		s.quiet()
		s.mu.Lock()
		failed := s.failed
		s.mu.Unlock()
		if failed {
			return fmt.Errorf("%s: records of the older epoch %s were not stored", st.key.origin(), short(s.key.epoch))
		}
	}
	st.eldest.Store(true)
	return nil
}

// comesAgain tells a failure of the disk, after which a node sends the same records once
// more, from a refusal of the records themselves, which sending again does not change. A
// younger epoch waits for the former; behind the latter it would wait for ever.
func comesAgain(err error) bool {
	var disk *storage.DiskError
	return errors.As(err, &disk) || errors.Is(err, storage.ErrFull) || errors.Is(err, storage.ErrUncertain) ||
		errors.Is(err, storage.ErrClosed) || errors.Is(err, ErrStopped)
}

// enqueueReady hands a stream whose inflight is held to a worker. The store's
// goroutine must not submit itself: Submit may wait for that very goroutine.
// Once the workers are gone nothing is submitted any more, only refused.
func (e *Embedded) enqueueReady(st *stream) {
	e.mu.Lock()
	gone := e.gone
	if !gone {
		e.ready = append(e.ready, st)
		e.wake.Signal()
	}
	e.mu.Unlock()
	if gone {
		st.submit()
	}
}

// work submits streams until the engine is closed and all of them are quiet.
func (e *Embedded) work() {
	e.mu.Lock()
	defer e.mu.Unlock()
	for {
		for len(e.ready) == 0 {
			if e.gone {
				return
			}
			e.wake.Wait()
		}
		st := e.ready[0]
		e.ready = e.ready[1:]
		if len(e.ready) == 0 {
			e.ready = nil
		}
		e.mu.Unlock()
		st.submit()
		e.mu.Lock()
	}
}

func (e *Embedded) stopping() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.closed
}
