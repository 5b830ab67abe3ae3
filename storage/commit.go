package storage

import (
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"github.com/tidwall/wal"

	"tailrace/storage/record"
)

const (
	maxAppendBytes  = 64 << 20
	stateEntryBytes = 16 << 10  // what TruncateFront leaves of a log is at least one entry
	forwardBytes    = 512 << 10 // of state in one commit
	maxReopenWait   = 30 * time.Second
)

// committer is what the one goroutine that writes a log owns.
type committer struct {
	l         *classLog
	wal       *wal.Log
	batch     wal.Batch
	tail      File // own descriptor of the tail segment, for fsync
	tailSize  int64
	allocated int64 // blocks that the tail was given beforehand
	nextIndex uint64
	commit    uint64 // number of the last commit
	durable   uint64 // number of the last that was published
	lastStart time.Time
	rest      *time.Timer // of idle

	group   []request
	refused []error // per request of the group
	entries []pendingEntry
	touched []*Partition
	ops     []byte // payload of the state entry that is being filled, after room for an envelope
	free    [][]byte
	freeCap int
	lent    bool // the library's tail has a buffer of ours: lendBuffer
	// tailParts are the partitions with batches in the tail segment.
	tailParts []*Partition

	usual   int64     // about what a commit takes, see pad
	plain   int64     // and what it would without packing
	value   int64     // Append.value of the commit that is being written
	rolled  bool      // since the floor was looked at
	left    int64     // of the file system at freeAt, and of the tail's blocks; negative when unknown
	freeAt  time.Time // zero: ask again
	since   int64     // written since
	noSpace bool      // the last write met a full disk

	broken  error // no wal: the next attempt to reopen is at retryAt
	retryAt time.Time
	backoff time.Duration
}

// pendingEntry is an entry of the commit that is being written.
type pendingEntry struct {
	p      *Partition // nil: state
	buf    []byte     // envelope, origin, payload
	lent   bool       // buf is the append's
	origin int
	packed bool
	saved  int64  // bytes, by packing
	ops    []byte // of packed state, behind room for an envelope
	roll   int    // how many segments the commit has begun before it
	count  int
	ref
}

// batchBuild collects the records of one partition for the current commit.
type batchBuild struct {
	bl  record.Builder
	min int64
}

func (c *committer) init(l *classLog) { c.l = l }

// run is the committer's goroutine.
func (c *committer) run() {
	l := c.l
	defer close(l.done)
	for {
		l.mu.Lock()
		tasks, closed, n, waiting, hurry := l.tasks, l.closed, len(l.queue), l.waiting, l.hurry
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
				c.idle()
			}
		case !closed && !hurry && !c.due(waiting):
		default:
			// Those who were just answered may submit again and share this
			// fsync, instead of waiting for the next.
			runtime.Gosched()
			c.commitGroup()
		}
	}
}

const restAfter = 30 * time.Second

// idle waits for something to do. After a while the end of the log is noted durably: of a
// plug that is pulled on a node at rest nothing looks like a torn write.
func (c *committer) idle() {
	if c.broken != nil || c.l.twin.commit == c.durable {
		<-c.l.wake
		return
	}
	if c.rest == nil {
		c.rest = time.NewTimer(restAfter)
	} else {
		c.rest.Reset(restAfter)
	}
	defer c.rest.Stop()
	select {
	case <-c.l.wake:
	case <-c.rest.C:
		c.l.markTwin()
		if c.l.twin.commit != c.durable { // it failed: not again and again
			<-c.l.wake
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
	l.hurry = false
	size := 0
	for i := range l.queue {
		if size += l.queue[i].a.Bytes(); size > maxCommitBytes && i > 0 {
			c.group = append(c.group[:0], l.queue[:i]...)
			l.queue = append(l.queue[:0], l.queue[i:]...)
			l.hurry = slices.ContainsFunc(l.queue, func(r request) bool { return r.a.now })
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
				c.value += c.group[i].a.value
			}
		}
		err = c.write()
	}
	if err != nil && c.broken == nil {
		c.fail(err)
		return
	}
	c.answer(err)
	if err == nil && c.rolled {
		c.rolled = false
		c.l.passTwin()
		if err := c.advanceFloor(); err != nil {
			c.fail(err)
		}
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
	c.group, c.refused = c.group[:0], c.refused[:0]
	l.mu.Lock()
	l.waiting -= bytes
	l.room.Broadcast()
	l.mu.Unlock()
}

// write ends the batches, writes the commit, makes it durable and publishes it.
func (c *committer) write() error {
	epoch := c.l.s.epochNumber()
	for _, p := range c.touched {
		c.flush(p, epoch)
	}
	c.flushOps()
	c.pad()
	defer c.clear()
	if len(c.entries) == 0 {
		return nil
	}
	start := time.Now()
	now := c.l.nowMS()
	c.commit++
	size, rolls, bytes := c.tailSize, 0, int64(0)
	limit := int64(c.l.cfg.SegmentBytes)
	var begins []uint64    // first index of each new segment
	chunk, flushed := 0, 0 // bytes in c.batch, rolls before them
	if size > limit {      // after a change of SegmentBytes
		rolls, size = 1, 0
		begins = append(begins, c.nextIndex)
	}
	for i := range c.entries {
		e := &c.entries[i]
		env := envelope{kind: entryState, packed: e.packed, epoch: epoch, index: c.nextIndex + uint64(i), commit: c.commit, time: now}
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
		w := stored(len(e.buf)) - n
		e.pos, e.size, e.roll = size+w, int32(n), rolls
		size += w + n
		bytes += w + n
		if size >= limit {
			rolls, size = rolls+1, 0
			begins = append(begins, env.index+1)
		}
		if chunk += int(n); chunk >= writeChunk || i == len(c.entries)-1 {
			if err := c.flushBatch(rolls - flushed); err != nil {
				return &DiskError{"write", c.l.segDir, err}
			}
			if chunk > 1<<20 {
				c.batch = wal.Batch{} // do not keep the memory of a rare large entry
			}
			chunk, flushed = 0, rolls
		}
	}
	fsyncs, err := c.sync(begins)
	if err != nil {
		return err
	}
	c.nextIndex += uint64(len(c.entries))
	c.tailSize = size
	c.since += bytes
	c.publish(begins, now)
	c.l.stats.add(c.entries, c.value, bytes, fsyncs, time.Since(start), c.commit, c.lastStart)
	return nil
}

// sync makes what was written durable, on own descriptors. After rolls that is
// the old tail, every new segment, and their names. The fsyncs are believed when all
// are done.
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
		if i == len(begins)-1 {
			c.l.preallocate(path)
		}
		if err := f.Sync(); err != nil {
			return 0, &DiskError{"fsync", path, err}
		}
		if i == len(begins)-1 {
			if err := c.l.syncSegDir(); err != nil {
				return 0, err
			}
		}
	}
	if err := believe(c.tail); err != nil {
		return 0, &DiskError{"fsync", c.l.segDir, err}
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
			seg = &segment{first: begins[at], last: begins[at] - 1, path: filepath.Join(l.segDir, segmentName(begins[at]))}
			c.addTail(seg)
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
			ops := e.buf[envelopeBytes:]
			if e.packed {
				ops = e.ops[envelopeBytes:]
			}
			l.state.mu.Lock()
			err := l.state.applyAll(seg.last, ops)
			l.state.mu.Unlock()
			if err != nil {
				panic("internal error: state of a commit does not parse: " + err.Error())
			}
			l.twin.collect(seg.last, ops)
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
	c.durable = c.commit
	if err := l.twin.note(c.commit, c.touched); err != nil {
		l.lg.Warn("write the second copy of the state", "err", err)
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
	from, err := l.twin.sync()
	if err != nil {
		l.lg.Warn("write the second copy of the state", "err", err)
	}
	if from > 0 {
		x.floor = min(x.floor, from)
	}
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
	l.segMu.RLock()
	front, live := l.segs[0].first, len(l.segs)
	l.segMu.RUnlock()
	if err := l.catalog.add(x, front, live); err != nil {
		l.lg.Warn("add to the catalog of segments; it is written anew at the next start", "err", err)
	}
	l.side.put(seg, x)
}

// clear forgets the commit that was being written, whether it succeeded or not.
func (c *committer) clear() {
	for i := range c.entries {
		if !c.entries[i].lent {
			c.release(c.entries[i].buf)
		}
		c.release(c.entries[i].ops)
		c.entries[i] = pendingEntry{}
	}
	c.entries, c.value = c.entries[:0], 0
	for i, p := range c.touched {
		p.touched = false
		p.next.Store(p.hw.Load()) // after a failure; else they are equal
		c.touched[i] = nil
	}
	c.touched = c.touched[:0]
}
