package storage

import (
	"context"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/tidwall/wal"

	"tailrace/storage/record"
)

const (
	maxAppendBytes  = 64 << 20
	stateEntryBytes = 512 << 10
	maxReopenWait   = 30 * time.Second
)

// committer is what the one goroutine that writes a log owns.
type committer struct {
	l         *classLog
	wal       *wal.Log
	batch     wal.Batch
	tail      File // own descriptor of the tail segment, for fsync
	tailSize  int64
	nextIndex uint64
	commit    uint64 // number of the last commit
	lastStart time.Time

	group   []request
	refused []error // per request of the group
	entries []pendingEntry
	touched []*Partition
	ops     []byte // payload of the state entry that is being filled, after room for an envelope
	free    [][]byte
	freeCap int
	// tailParts are the partitions with batches in the tail segment.
	tailParts []*Partition

	rolled bool      // since the floor was looked at
	full   bool      // the file system, as of freeAt
	freeAt time.Time // zero: ask again

	broken  error // no wal: the next attempt to reopen is at retryAt
	retryAt time.Time
	backoff time.Duration
}

// pendingEntry is an entry of the commit that is being written.
type pendingEntry struct {
	p      *Partition // nil: state
	buf    []byte     // envelope, origin, payload
	origin int
	roll   int // how many segments the commit has begun before it
	count  int
	ref
}

// batchBuild collects the records of one partition for the current commit.
type batchBuild struct {
	bl  record.Builder
	min int64
}

func (c *committer) init(l *classLog) { c.l = l }

// Submit hands a to the committer. done is called once, after the fsync that
// makes all of a durable (nil), or after it is certain that nothing of it is
// acknowledged: ErrFull, ErrClosed, a *DiskError, or what is wrong with a. The
// calls come in the order of submission on the committer's goroutine: done must
// not block, nor call Submit. Submit blocks only while more than a bounded number
// of bytes wait. Until done is called, a belongs to the store.
func (s *Store) Submit(a *Append, done func(a *Append, err error)) {
	l := a.log
	switch {
	case a.err != nil:
		done(a, a.err)
		return
	case a.Bytes() > maxAppendBytes:
		done(a, fmt.Errorf("%w: append of %d bytes, the limit is %d", ErrTooLarge, a.Bytes(), maxAppendBytes))
		return
	}
	n := int64(a.Bytes())
	l.mu.Lock()
	for l.waiting > maxWaitingBytes && !l.closed {
		l.room.Wait()
	}
	if l.closed {
		l.mu.Unlock()
		done(a, ErrClosed)
		return
	}
	first := len(l.queue) == 0
	before := l.waiting
	l.queue = append(l.queue, request{a, done})
	l.waiting += n
	enough := int64(l.cfg.CommitBytes)
	l.mu.Unlock()
	if first || before < enough && before+n >= enough {
		l.wakeup()
	}
}

// Commit is Submit, and waits. When ctx ends first, the append is still on its
// way and a must not be used again.
func (s *Store) Commit(ctx context.Context, a *Append) error {
	ch := make(chan error, 1)
	s.Submit(a, func(_ *Append, err error) { ch <- err })
	select {
	case err := <-ch:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// do runs f on the committer's goroutine between two commits and waits for it.
func (l *classLog) do(f func() error) error {
	ch := make(chan error, 1)
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return ErrClosed
	}
	l.tasks = append(l.tasks, func() { ch <- f() })
	l.mu.Unlock()
	l.wakeup()
	return <-ch
}

// run is the committer's goroutine.
func (c *committer) run() {
	l := c.l
	defer close(l.done)
	for {
		l.mu.Lock()
		tasks, closed, n, waiting := l.tasks, l.closed, len(l.queue), l.waiting
		l.tasks = nil
		l.mu.Unlock()
		for _, t := range tasks {
			t()
		}
		switch {
		case n == 0 && closed:
			return
		case n == 0:
			if len(tasks) == 0 {
				<-l.wake
			}
		case !closed && !c.due(waiting):
		default:
			// Those who were just answered may submit again and share this
			// fsync, instead of waiting for the next.
			runtime.Gosched()
			c.commitGroup()
		}
	}
}

// due applies the commit rule: the first append after idle at once, then at most
// one commit per interval, or as soon as enough waits. When it is not time yet,
// it waits and returns false.
func (c *committer) due(waiting int64) bool {
	d := c.l.cfg.CommitInterval - time.Since(c.lastStart)
	if c.l.cfg.CommitInterval == 0 || d <= 0 || waiting >= int64(c.l.cfg.CommitBytes) {
		return true
	}
	t := time.NewTimer(d)
	select {
	case <-t.C:
	case <-c.l.wake:
		t.Stop()
	}
	return false
}

// take moves waiting requests into the group.
func (c *committer) take() {
	l := c.l
	l.mu.Lock()
	defer l.mu.Unlock()
	size := 0
	for i := range l.queue {
		if size += l.queue[i].a.Bytes(); size > maxCommitBytes && i > 0 {
			c.group = append(c.group[:0], l.queue[:i]...)
			l.queue = append(l.queue[:0], l.queue[i:]...)
			return
		}
	}
	c.group, l.queue = l.queue, c.group[:0]
}

// commitGroup makes everything in one group durable and answers it.
func (c *committer) commitGroup() {
	c.take()
	c.lastStart = time.Now()
	c.refused = c.refused[:0]
	for range c.group {
		c.refused = append(c.refused, nil)
	}
	err := c.ready()
	if err == nil {
		err = c.admit()
	}
	if err == nil {
		for i := range c.group {
			if c.refused[i] == nil {
				c.encode(c.group[i].a)
			}
		}
		err = c.write()
	}
	c.answer(err)
	if err == nil && c.rolled {
		c.rolled = false
		err = c.advanceFloor()
	}
	if err != nil && c.broken == nil {
		c.fail(err)
	}
}

// answer calls the done functions of the group, in order.
func (c *committer) answer(err error) {
	l := c.l
	var bytes int64
	for i := range c.group {
		r := &c.group[i]
		bytes += int64(r.a.Bytes())
		e := err
		if c.refused[i] != nil {
			e = c.refused[i]
		}
		r.done(r.a, e)
		*r = request{}
	}
	c.group = c.group[:0]
	l.mu.Lock()
	l.waiting -= bytes
	l.room.Broadcast()
	l.mu.Unlock()
}

// encode turns an append into entries of the commit.
func (c *committer) encode(a *Append) {
	epoch := c.l.s.epochNumber()
	origin := c.l.s.cfg.OriginHeaders
	for i := range a.items {
		it := &a.items[i]
		p := it.p
		data := a.arena[it.off:it.end]
		if it.batch {
			c.flush(p, epoch)
			c.addBatch(it, data, epoch)
			continue
		}
		b := p.build
		if b == nil {
			b = c.begin(p)
		} else if b.bl.Count() > 0 && b.bl.Len()+len(data)+20 > c.l.cfg.MaxBatchBytes {
			c.flush(p, epoch)
			b = c.begin(p)
		}
		it.base = p.next.Load() + int64(b.bl.Count())
		if origin {
			putOffset(data, it.base)
		}
		b.min = min(b.min, it.ts)
		b.bl.AddEncoded(it.ts, data)
	}
	if len(a.ops) > 0 {
		c.addOps(a.ops)
	}
}

func putOffset(tail []byte, off int64) {
	v := tail[len(tail)-8:]
	_ = v[7]
	v[0], v[1], v[2], v[3] = byte(off>>56), byte(off>>48), byte(off>>40), byte(off>>32)
	v[4], v[5], v[6], v[7] = byte(off>>24), byte(off>>16), byte(off>>8), byte(off)
}

// begin starts a batch for a partition.
func (c *committer) begin(p *Partition) *batchBuild {
	b := &p.builder
	b.bl.Reset(c.buffer())
	b.min = math.MaxInt64
	p.build = b
	c.touch(p)
	return b
}

func (c *committer) touch(p *Partition) {
	if !p.touched {
		p.touched = true
		c.touched = append(c.touched, p)
	}
}

// flush ends the batch of a partition that is being built.
func (c *committer) flush(p *Partition, epoch int32) {
	b := p.build
	if b == nil {
		return
	}
	p.build = nil
	n, base := b.bl.Count(), p.next.Load()
	buf := b.bl.Finish(base, epoch)
	c.entries = append(c.entries, pendingEntry{p: p, buf: buf, count: n,
		ref: ref{base: base, next: base + int64(n), min: b.min, max: record.Batch(buf[envelopeBytes:]).MaxTimestamp()}})
	p.next.Store(base + int64(n))
}

func (c *committer) addBatch(it *appendItem, data []byte, epoch int32) {
	p := it.p
	buf := append(c.buffer(), data...)
	b := record.Batch(buf[envelopeBytes+it.origin:])
	base := p.next.Load()
	b.SetBaseOffset(base)
	b.SetLeaderEpoch(epoch)
	it.base = base
	lo, hi := batchTimes(b)
	c.touch(p)
	c.entries = append(c.entries, pendingEntry{p: p, buf: buf, origin: it.origin, count: it.count,
		ref: ref{base: base, next: b.NextOffset(), min: lo, max: hi}})
	p.next.Store(b.NextOffset())
}

// addOps adds state operations, in entries of a bounded size.
func (c *committer) addOps(ops []byte) {
	for len(ops) > 0 {
		n := len(ops)
		if n > stateEntryBytes {
			_, _, _, _, rest, err := nextOp(ops)
			if err != nil {
				panic("internal error: state operation does not parse: " + err.Error())
			}
			n -= len(rest)
		}
		if len(c.ops) > 0 && len(c.ops)+n > stateEntryBytes {
			c.flushOps()
		}
		if len(c.ops) == 0 {
			c.ops = c.buffer()
		}
		c.ops, ops = append(c.ops, ops[:n]...), ops[n:]
	}
}

func (c *committer) flushOps() {
	if len(c.ops) > 0 {
		c.entries = append(c.entries, pendingEntry{buf: c.ops})
		c.ops = nil
	}
}

// buffer returns a buffer with room for an envelope in front.
func (c *committer) buffer() []byte {
	if n := len(c.free); n > 0 {
		b := c.free[n-1]
		c.free = c.free[:n-1]
		c.freeCap -= cap(b)
		return b[:envelopeBytes]
	}
	return make([]byte, envelopeBytes, 1024)
}

func (c *committer) release(b []byte) {
	const keep = 4 << 20
	if c.freeCap+cap(b) <= keep {
		c.free = append(c.free, b)
		c.freeCap += cap(b)
	}
}

// write ends the batches, writes the commit, makes it durable and publishes it.
func (c *committer) write() error {
	epoch := c.l.s.epochNumber()
	for _, p := range c.touched {
		c.flush(p, epoch)
	}
	c.flushOps()
	defer c.clear()
	if len(c.entries) == 0 {
		return nil
	}
	start := time.Now()
	now := c.l.nowMS()
	c.commit++
	size, rolls, bytes := c.tailSize, 0, int64(0)
	limit := int64(c.l.cfg.SegmentBytes)
	var begins []uint64 // first index of each new segment
	if size > limit {   // after a change of SegmentBytes
		rolls, size = 1, 0
		begins = append(begins, c.nextIndex)
	}
	for i := range c.entries {
		e := &c.entries[i]
		env := envelope{kind: entryState, epoch: epoch, index: c.nextIndex + uint64(i), commit: c.commit, time: now}
		if e.p != nil {
			env.kind, env.partition = entryData, e.p.id
		}
		if i == 0 {
			env.flags |= flagFirst
		}
		if i == len(c.entries)-1 {
			env.flags |= flagLast
		}
		sealEnvelope(e.buf, &env, e.origin)
		c.batch.Write(env.index, e.buf)
		n := int64(len(e.buf))
		w := int64(uvarintLen(uint64(n)))
		e.pos, e.size, e.roll = size+w, int32(n), rolls
		size += w + n
		bytes += w + n
		if size >= limit {
			rolls, size = rolls+1, 0
			begins = append(begins, env.index+1)
		}
	}
	if err := c.wal.WriteBatch(&c.batch); err != nil {
		return &DiskError{"write", c.l.segDir, err}
	}
	if bytes > 1<<20 {
		c.batch = wal.Batch{} // do not keep the memory of a rare large commit
	}
	fsyncs, err := c.sync(begins)
	if err != nil {
		return err
	}
	c.nextIndex += uint64(len(c.entries))
	c.tailSize = size
	c.publish(begins, now)
	c.l.stats.add(c.entries, bytes, fsyncs, time.Since(start), c.commit, c.lastStart)
	return nil
}

// sync makes what was written durable, on own descriptors. After rolls that is
// the old tail, every new segment, and their names.
func (c *committer) sync(begins []uint64) (fsyncs int, err error) {
	if err := c.tail.Sync(); err != nil {
		return 0, &DiskError{"fsync", c.l.segDir, err}
	}
	for i, first := range begins {
		path := filepath.Join(c.l.segDir, segmentName(first))
		f, err := c.l.s.cfg.FS.OpenFile(path, os.O_RDWR, filePerm)
		if err != nil {
			return 0, &DiskError{"open", path, err}
		}
		c.tail.Close()
		c.tail = f
		if err := f.Sync(); err != nil {
			return 0, &DiskError{"fsync", path, err}
		}
		if i == len(begins)-1 {
			if err := c.l.syncSegDir(); err != nil {
				return 0, err
			}
		}
	}
	return 1 + len(begins), nil
}

// publish makes a durable commit visible.
func (c *committer) publish(begins []uint64, now int64) {
	l := c.l
	seg := l.tailSegment()
	at := 0
	advance := func(roll int) {
		for at < roll {
			c.seal(seg, begins[at])
			seg = &segment{first: begins[at], last: begins[at] - 1, path: filepath.Join(l.segDir, segmentName(begins[at]))}
			l.segMu.Lock()
			l.segs = append(l.segs, seg)
			l.segMu.Unlock()
			at++
		}
	}
	for i := range c.entries {
		e := &c.entries[i]
		advance(e.roll)
		l.segMu.Lock()
		seg.size, seg.last, seg.arrival = e.pos+int64(e.size), c.nextIndex-uint64(len(c.entries)-i), max(seg.arrival, now)
		l.segMu.Unlock()
		if e.p == nil {
			l.state.mu.Lock()
			err := l.state.applyAll(seg.last, e.buf[envelopeBytes:])
			l.state.mu.Unlock()
			if err != nil {
				panic("internal error: state of a commit does not parse: " + err.Error())
			}
			continue
		}
		if e.p.publish(seg, e.ref) {
			c.tailParts = append(c.tailParts, e.p)
		}
	}
	advance(len(begins))
	c.rolled = c.rolled || len(begins) > 0
	woke := false
	for _, p := range c.touched {
		woke = p.advance(p.next.Load()) || woke
	}
	if woke {
		l.s.notify()
	}
}

// seal turns the tail's index into that of a sealed segment. next is the index
// that the following segment begins with.
func (c *committer) seal(seg *segment, next uint64) {
	l := c.l
	x := &segmentIndex{first: seg.first, last: next - 1, size: seg.size, arrival: seg.arrival, floor: l.state.floor(next)}
	for _, p := range c.tailParts {
		if part, ok := p.seal(seg); ok {
			x.parts = append(x.parts, part)
		}
	}
	c.tailParts = c.tailParts[:0]
	x.sortParts()
	if err := writeSide(l.s.cfg.FS, l.sidePath(seg.first), x); err != nil {
		l.lg.Warn("write side file; it is rebuilt when needed", "err", err)
	}
	l.side.put(seg, x)
}

// clear forgets the commit that was being written, whether it succeeded or not.
func (c *committer) clear() {
	for i := range c.entries {
		c.release(c.entries[i].buf)
		c.entries[i] = pendingEntry{}
	}
	c.entries = c.entries[:0]
	for i, p := range c.touched {
		p.touched = false
		p.next.Store(p.hw.Load()) // after a failure; else they are equal
		c.touched[i] = nil
	}
	c.touched = c.touched[:0]
}
