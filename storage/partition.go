package storage

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	"tailrace/storage/record"
)

// Partition is an ordered sequence of records with offsets, a view on the commit
// log of its class. Start <= HighWatermark <= Next.
type Partition struct {
	topic *Topic
	index int
	id    PartitionID
	log   *classLog

	next    atomic.Int64 // appended; written by the committer
	hw      atomic.Int64 // durable; written by the committer
	acked   atomic.Int64 // durable at the hub, as far as Acked was told
	deleted atomic.Bool

	// Owned by the committer.
	builder batchBuild
	build   *batchBuild // the builder while it has records
	touched bool        // in the commit that is being written

	// The index of durable batches. Guarded by mu.
	mu      sync.RWMutex
	start   int64
	cleanTo int64   // what lies below was compacted: the first spans are of files with what is left
	spans   []span  // in sealed segments, by offset; all end behind start
	runMax  []int64 // greatest timestamp up to and including each span
	tail    []ref   // in tailSeg
	tailSeg *segment
	bytes   int64
	holes   []hole // ranges found damaged since Open; reads step over them
	fresh   []hole // of them, those whose row of the loss ledger is not durable yet

	cleanListed int          // files that the state names
	swaps       atomic.Int64 // changes when files are replaced: who does not find one looks again
	front       atomic.Pointer[frontTime]

	compacting struct {
		running     atomic.Bool
		done, total atomic.Int64
		since       time.Time // something waits for compaction; guarded by Store.compactMu
	}

	subs subscribers
}

// span is what one sealed segment holds of a partition.
type span struct {
	seg        *segment
	base, next int64
	min, max   int64
	bytes      int64
}

type hole struct{ from, to int64 }

// Topic, Index and ID name the partition.
func (p *Partition) Topic() *Topic { return p.topic }

// Index is the partition's number in its topic.
func (p *Partition) Index() int { return p.index }

// ID is unique in the store, for ever.
func (p *Partition) ID() PartitionID { return p.id }

// Start is the log start offset: the lowest that can be read.
func (p *Partition) Start() int64 {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.start
}

// HighWatermark is one past the last durable offset; nothing above is visible.
func (p *Partition) HighWatermark() int64 { return p.hw.Load() }

// Next is one past the last appended offset.
func (p *Partition) Next() int64 { return p.next.Load() }

// Bytes is what the retained batches take in the log.
func (p *Partition) Bytes() int64 {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.bytes
}

// StartTime is the least timestamp (ms) of the retained batches, false when
// there are none. Compressed batches of others, whose least time is not known,
// do not count, but for the first: it counts with the time of its first record.
func (p *Partition) StartTime() (lo int64, ok bool) {
	take := func(ts int64) {
		if ts != unknownTime && (!ok || ts < lo) {
			lo, ok = ts, true
		}
	}
	p.mu.RLock()
	first := int64(0)
	for i := range p.spans {
		take(p.spans[i].min)
	}
	for i := range p.tail {
		take(p.tail[i].min)
	}
	switch {
	case len(p.spans) > 0:
		first = p.spans[0].min
	case len(p.tail) > 0:
		first = p.tail[0].min
	}
	p.mu.RUnlock()
	if first == unknownTime {
		if ts, found := p.firstTime(); found {
			take(ts)
		}
	}
	return lo, ok
}

// frontTime is what firstTime read of the batch that start lies in, or that is the next.
type frontTime struct{ start, swaps, ts int64 }

// firstTime is the timestamp of the first record of the first retained batch.
func (p *Partition) firstTime() (int64, bool) {
	start, swaps := p.Start(), p.swaps.Load()
	if f := p.front.Load(); f != nil && f.start == start && f.swaps == swaps {
		return f.ts, true
	}
	env, _, ok := p.entryAfter(start)
	if !ok {
		return 0, false
	}
	b, _, err := record.Next(env.payload)
	if err != nil {
		return 0, false
	}
	p.front.Store(&frontTime{start, swaps, b.BaseTimestamp()})
	return b.BaseTimestamp(), true
}

// LastTime is the greatest timestamp (ms) of the retained batches.
func (p *Partition) LastTime() (int64, bool) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.lastTime()
}

func (p *Partition) lastTime() (hi int64, ok bool) {
	if n := len(p.runMax); n > 0 {
		hi, ok = p.runMax[n-1], true
	}
	for i := range p.tail {
		if !ok || p.tail[i].max > hi {
			hi, ok = p.tail[i].max, true
		}
	}
	return hi, ok
}

// Acked tells that everything below off is durable elsewhere: a full disk may
// free it first, and what is freed so is not a loss.
func (p *Partition) Acked(off int64) {
	for {
		old := p.acked.Load()
		if off <= old || p.acked.CompareAndSwap(old, off) {
			return
		}
	}
}

// ForgetAcked takes back what Acked was told: the place that acknowledged it has
// lost it, or is not the one in use any more.
func (p *Partition) ForgetAcked() { p.acked.Store(0) }

// SetStart deletes everything below off, at most the high watermark (Kafka's
// DeleteRecords). It returns when that is durable. Lower than the start is no
// change.
func (p *Partition) SetStart(off int64) error {
	if off > p.hw.Load() || off < 0 {
		return fmt.Errorf("%w: start %d of %s/%d, high watermark %d", ErrOffsetOutOfRange, off, p.topic.name, p.index, p.hw.Load())
	}
	if off <= p.Start() {
		return nil
	}
	a := &Append{log: p.log}
	a.op(kindStart, opSet, string(p.startKey()), startValue(off))
	ch := make(chan error, 1)
	p.log.s.Submit(a, func(_ *Append, err error) {
		if err == nil {
			p.applyStart(off)
		}
		ch <- err
	})
	return <-ch
}

// publish adds a durable batch to the index. It tells whether it is the
// partition's first in the tail segment. Called by the committer, before advance.
func (p *Partition) publish(seg *segment, r ref) (first bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	first = p.tailSeg != seg
	p.tailSeg = seg
	p.tail = append(p.tail, r)
	p.bytes += int64(r.size)
	return first
}

// advance moves the high watermark and tells whether it moved.
func (p *Partition) advance(hw int64) bool {
	if p.hw.Swap(hw) == hw {
		return false
	}
	p.subs.notify()
	return true
}

// seal turns the tail's batches into a span of the segment that was the tail.
func (p *Partition) seal(seg *segment) (partIndex, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	refs := p.tail
	p.tail, p.tailSeg = nil, nil
	if len(refs) == 0 {
		return partIndex{}, false
	}
	x := newPartIndex(p.id, refs)
	p.addSpan(seg, &x)
	return x, true
}

// addSpan appends what a sealed segment holds. The caller has mu.
func (p *Partition) addSpan(seg *segment, x *partIndex) {
	p.addSpanOf(span{seg: seg, base: x.base, next: x.next, min: x.min, max: x.max, bytes: x.bytes})
}

func (p *Partition) addSpanOf(s span) {
	p.spans = append(p.spans, s)
	m := s.max
	if n := len(p.runMax); n > 0 {
		m = max(m, p.runMax[n-1])
	}
	p.runMax = append(p.runMax, m)
}

// applyStart moves the start and forgets batches below it.
func (p *Partition) applyStart(off int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if off <= p.start {
		return
	}
	p.start = off
	n := 0
	for n < len(p.spans) && p.spans[n].next <= off {
		p.bytes -= p.spans[n].bytes
		n++
	}
	if n > 0 {
		p.spans = slices.Delete(p.spans, 0, n)
		p.runMax = p.runMax[:0]
		m := int64(unknownTime)
		for i := range p.spans {
			m = max(m, p.spans[i].max)
			p.runMax = append(p.runMax, m)
		}
	}
	n = 0
	for n < len(p.tail) && p.tail[n].next <= off {
		p.bytes -= int64(p.tail[n].size)
		n++
	}
	p.tail = p.tail[n:]
	for len(p.holes) > 0 && p.holes[0].to <= off {
		p.holes = p.holes[1:]
	}
}

// locate appends to dst batches of one segment, the first that ends behind from
// first, which begin below limit and take about maxBytes together; the first in
// any case when whole is set.
func (p *Partition) locate(dst []ref, from, limit int64, maxBytes int, whole bool) (*segment, []ref, error) {
	p.mu.RLock()
	i := sort.Search(len(p.spans), func(i int) bool { return p.spans[i].next > from })
	if i == len(p.spans) {
		defer p.mu.RUnlock()
		return p.tailSeg, p.pick(dst, p.tail, p.holes, from, limit, maxBytes, whole), nil
	}
	seg, end, holes, swaps := p.spans[i].seg, p.spans[i].next, p.holes, p.swaps.Load()
	at := p.countsFrom(seg, from)
	p.mu.RUnlock()
	x, err := p.log.index(seg)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) && p.swaps.Load() != swaps {
			return p.locate(dst, from, limit, maxBytes, whole)
		}
		return nil, dst, err
	}
	if part := x.part(p.id); part != nil && anyLeft(part.refs, holes, at, limit) {
		return seg, p.pick(dst, part.refs, holes, at, limit, maxBytes, whole), nil
	}
	if end < limit { // all that is left of it here is lost
		return p.locate(dst, end, limit, maxBytes, whole)
	}
	return seg, dst, nil
}

// anyLeft tells whether pick would find a batch, whatever its size.
func anyLeft(refs []ref, holes []hole, from, limit int64) bool {
	i := sort.Search(len(refs), func(i int) bool { return refs[i].next > from })
	for i < len(refs) && refs[i].base < limit && inHole(holes, refs[i].base) {
		i++
	}
	return i < len(refs) && refs[i].base < limit
}

// countsFrom is from, or where a segment of the log begins to count when a compaction
// has taken what lies below. The caller has mu.
func (p *Partition) countsFrom(seg *segment, from int64) int64 {
	if seg.clean == nil {
		return max(from, p.cleanTo)
	}
	return from
}

func (p *Partition) pick(dst, refs []ref, holes []hole, from, limit int64, maxBytes int, whole bool) []ref {
	i := sort.Search(len(refs), func(i int) bool { return refs[i].next > from })
	size, n := 0, len(dst)
	for ; i < len(refs) && refs[i].base < limit; i++ {
		if inHole(holes, refs[i].base) {
			continue
		}
		size += int(refs[i].size)
		if size > maxBytes && (len(dst) > n || !whole) {
			break
		}
		dst = append(dst, refs[i])
	}
	return dst
}

func inHole(holes []hole, off int64) bool {
	for _, h := range holes {
		if off >= h.from && off < h.to {
			return true
		}
	}
	return false
}

// Wait returns nil when the high watermark is above off, else ctx's error, or
// ErrClosed.
func (p *Partition) Wait(ctx context.Context, off int64) error {
	for {
		if p.hw.Load() > off {
			return nil
		}
		ch := p.subs.changed()
		if p.hw.Load() > off {
			return nil
		}
		select {
		case <-ch:
		case <-ctx.Done():
			return ctx.Err()
		case <-p.log.s.closing:
			return ErrClosed
		}
	}
}

// Subscribe sends on ch, without blocking, whenever the high watermark moves,
// until cancel is called. Give ch a capacity of 1.
func (p *Partition) Subscribe(ch chan<- struct{}) (cancel func()) { return p.subs.add(ch) }

// subscribers are those who want to know of changes.
type subscribers struct {
	mu    sync.Mutex
	once  chan struct{} // closed at the next change, nil when nobody waits
	chans map[int]chan<- struct{}
	seq   int
}

func (s *subscribers) changed() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.once == nil {
		s.once = make(chan struct{})
	}
	return s.once
}

func (s *subscribers) add(ch chan<- struct{}) (cancel func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.chans == nil {
		s.chans = make(map[int]chan<- struct{})
	}
	s.seq++
	id := s.seq
	s.chans[id] = ch
	return func() {
		s.mu.Lock()
		delete(s.chans, id)
		s.mu.Unlock()
	}
}

func (s *subscribers) notify() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.once != nil {
		close(s.once)
		s.once = nil
	}
	for _, ch := range s.chans {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
}
