package storage

import (
	"errors"
	"math"
	"time"
)

const freeCheckInterval = time.Second

// Retain applies retention to all classes now, and returns when what goes is gone.
func (s *Store) Retain() error {
	var errs []error
	for _, l := range s.logs {
		errs = append(errs, l.do(l.c.retain))
	}
	return errors.Join(errs...)
}

// commitOps makes state operations durable in a commit of their own. It runs on
// the committer's goroutine, between two groups; after an error the log has been
// reopened, or is broken.
func (c *committer) commitOps(ops []byte) error {
	err := c.ready()
	if err != nil {
		return err
	}
	if err = c.writeOps(ops); err != nil {
		c.fail(err)
	}
	return err
}

// writeOps is commitOps without the reaction to an error.
func (c *committer) writeOps(ops []byte) error {
	if len(ops) == 0 {
		return nil
	}
	c.addOps(ops)
	return c.write()
}

// move is a start that is about to move.
type move struct {
	p   *Partition
	off int64
}

// retain moves the starts of partitions by their topics' limits and drops the
// segments in which nothing is retained.
func (c *committer) retain() error {
	if err := c.ready(); err != nil {
		return err
	}
	err := c.retainSteps()
	if err != nil {
		c.fail(err)
	}
	return err
}

func (c *committer) retainSteps() error {
	l := c.l
	var moves []move
	now := l.nowMS()
	for _, p := range l.partitions() {
		if off := p.retentionStart(p.topic.Config(), now); off > p.Start() {
			moves = append(moves, move{p, off})
		}
	}
	if err := c.moveStarts(moves, nil); err != nil {
		return err
	}
	return c.dropSegments()
}

// moveStarts makes moves durable, together with ops, and then applies them.
func (c *committer) moveStarts(moves []move, ops []byte) error {
	for _, m := range moves {
		ops = appendOp(ops, kindStart, opSet, m.p.startKey(), startValue(m.off))
	}
	if err := c.writeOps(ops); err != nil {
		return err
	}
	for _, m := range moves {
		m.p.applyStart(m.off)
	}
	return nil
}

// retentionStart is where the partition begins by its topic's limits.
func (p *Partition) retentionStart(cfg TopicConfig, now int64) int64 {
	p.mu.RLock()
	defer p.mu.RUnlock()
	start := p.start
	if cfg.RetentionBytes > 0 {
		total := p.bytes
		drop := func(bytes, next int64) bool {
			if total-bytes < cfg.RetentionBytes {
				return false
			}
			total, start = total-bytes, next
			return true
		}
		i := 0
		for i < len(p.spans) && drop(p.spans[i].bytes, p.spans[i].next) {
			i++
		}
		for j := 0; i == len(p.spans) && j < len(p.tail) && drop(int64(p.tail[j].size), p.tail[j].next); j++ {
		}
	}
	if cfg.RetentionAge > 0 {
		limit := now - cfg.RetentionAge.Milliseconds()
		i := 0
		for i < len(p.spans) && timeOf(p.spans[i].max, p.spans[i].seg, cfg.RetentionByArrival) < limit {
			start = max(start, p.spans[i].next)
			i++
		}
		for j := 0; i == len(p.spans) && j < len(p.tail) && timeOf(p.tail[j].max, p.tailSeg, cfg.RetentionByArrival) < limit; j++ {
			start = max(start, p.tail[j].next)
		}
	}
	return start
}

// timeOf is what age counts from. The arrival of a segment is that of its newest
// commit; only the committer changes it, and retention runs there.
func timeOf(ts int64, seg *segment, arrival bool) int64 {
	if arrival {
		return seg.arrival
	}
	return ts
}

// dropSegments drops the longest run of oldest segments in which nothing is
// retained. State that they alone hold is written forward first.
func (c *committer) dropSegments() error {
	l := c.l
	keep := l.tailSegment().first
	for _, p := range l.partitions() {
		p.mu.RLock()
		if len(p.spans) > 0 {
			keep = min(keep, p.spans[0].seg.first)
		}
		p.mu.RUnlock()
	}
	l.segMu.RLock()
	n := 0
	for n < len(l.segs)-1 && l.segs[n].last < keep {
		n++
	}
	gone := append([]*segment(nil), l.segs[:n]...)
	l.segMu.RUnlock()
	if n == 0 || n == 1 && gone[0].first == gone[0].last {
		return nil // nothing, or only what the last drop left
	}
	victim := gone[n-1]
	if victim.last < victim.first {
		return nil
	}
	if err := c.forward(victim.last); err != nil {
		return err
	}
	// The library writes the segment in which it cuts anew: at the last entry of
	// the newest that goes, that is one entry; at the first of the next it would
	// be a whole segment.
	if err := c.wal.TruncateFront(victim.last); err != nil {
		return &DiskError{"truncate", l.segDir, err}
	}
	if err := l.syncSegDir(); err != nil {
		return err
	}
	return l.adoptFront(victim.last)
}

// forward writes everything that only entries up to index tell.
func (c *committer) forward(index uint64) error {
	for {
		ops, all := c.l.state.forward(nil, index, stateEntryBytes)
		if err := c.writeOps(ops); err != nil {
			return err
		}
		if all {
			return nil
		}
	}
}

// adoptFront makes the segments in memory agree with a log whose first entry is
// front: older ones are gone, the one that held front now begins there.
func (l *classLog) adoptFront(front uint64) error {
	l.segMu.RLock()
	n := 0
	for n < len(l.segs)-1 && l.segs[n].last < front {
		n++
	}
	gone, first := append([]*segment(nil), l.segs[:n]...), l.segs[n]
	l.segMu.RUnlock()
	if len(gone) == 0 && first.first == front {
		return nil
	}
	var stub *segment
	if first.first < front { // rewritten by the truncation
		gone = append(gone, first)
		stub = &segment{first: front, last: first.last, arrival: first.arrival, path: joinSegment(l.segDir, front)}
		fi, err := l.s.cfg.FS.Stat(stub.path)
		if err != nil {
			return &DiskError{"stat", stub.path, err}
		}
		stub.size = fi.Size()
	}
	l.segMu.Lock()
	l.segs = append([]*segment(nil), l.segs[len(gone):]...)
	if stub != nil {
		l.segs = append([]*segment{stub}, l.segs...)
	}
	l.segMu.Unlock()
	for _, seg := range gone {
		l.files.drop(seg.path)
		l.side.drop(seg)
		l.s.cfg.FS.Remove(l.sidePath(seg.first))
	}
	return nil
}

// advanceFloor writes state forward that only entries far behind the tail tell,
// so that opening reads a bounded stretch of the log, not all of it.
func (c *committer) advanceFloor() error {
	l := c.l
	l.state.mu.RLock()
	far := max(8<<20, 4*int64(l.cfg.SegmentBytes), 8*l.state.bytes)
	l.state.mu.RUnlock()
	l.segMu.RLock()
	i := len(l.segs) - 1
	for ; i >= 0 && far > 0; i-- {
		far -= l.segs[i].size
	}
	index := uint64(0)
	if i >= 0 {
		index = l.segs[i].last
	}
	l.segMu.RUnlock()
	if index == 0 || l.state.floor(math.MaxUint64) > index {
		return nil
	}
	return c.forward(index)
}

// admit decides which appends of the group there is room for, and makes room as
// the class's policy allows.
func (c *committer) admit() error {
	l := c.l
	cfg := &l.cfg
	fsFull := c.fileSystemFull()
	reserve := 2 * int64(cfg.SegmentBytes)
	used := int64(-1)
	for i := range c.group {
		a := c.group[i].a
		for j := range a.items {
			if a.items[j].p.deleted.Load() {
				c.refused[i] = ErrUnknownTopic
			}
		}
		if c.refused[i] != nil || cfg.MaxBytes == 0 && !fsFull {
			continue
		}
		if used < 0 {
			used = l.diskBytes()
		}
		need := int64(a.Bytes()) + 256*int64(len(a.items)) + 256
		limit := cfg.MaxBytes - reserve
		if len(a.items) == 0 {
			limit += reserve * 3 / 4 // state may use most of the reserve
		}
		if cfg.MaxBytes == 0 {
			limit = math.MaxInt64
		}
		if used+need > limit || fsFull && len(a.items) > 0 {
			if err := c.makeRoom(used + need - limit); err != nil {
				return err
			}
			used, fsFull = l.diskBytes(), c.fileSystemFull()
		}
		if used+need > limit || fsFull && len(a.items) > 0 {
			c.refused[i] = ErrFull
			l.stats.refused()
			continue
		}
		used += need
	}
	return nil
}

// fileSystemFull asks, at most once a second, whether the file system has less
// than the class's least free space.
func (c *committer) fileSystemFull() bool {
	if c.l.cfg.MinFreeBytes < 0 {
		return false
	}
	if now := time.Now(); now.Sub(c.freeAt) >= freeCheckInterval || c.freeAt.IsZero() {
		free, err := c.l.s.cfg.FS.Free(c.l.segDir)
		c.full = err == nil && free >= 0 && free < c.l.cfg.MinFreeBytes
		c.freeAt = now
	}
	return c.full
}

// makeRoom gives up the oldest segments: by Reject only what the hub has, by
// DropOldest all, declared as far as the hub does not have it.
func (c *committer) makeRoom(need int64) error {
	l := c.l
	if l.cfg.WhenFull == 0 {
		return nil
	}
	// Coarse steps: each costs a fsync or two.
	need = max(need, 0) + max(int64(l.cfg.SegmentBytes), l.cfg.MaxBytes/32)
	l.segMu.RLock()
	segs := append([]*segment(nil), l.segs[:len(l.segs)-1]...)
	l.segMu.RUnlock()
	parts := l.partitions()
	to := make(map[*Partition]int64)
	for _, seg := range segs {
		if need <= 0 {
			break
		}
		step, free := l.spansUpTo(parts, seg.last)
		if l.cfg.WhenFull == Reject && !free {
			break
		}
		for p, off := range step {
			to[p] = off
		}
		need -= seg.size
	}
	var moves []move
	var ops []byte
	lost := int64(0)
	for _, p := range parts {
		off, ok := to[p]
		if !ok || off <= p.Start() {
			continue
		}
		moves = append(moves, move{p, off})
		if from := max(p.Start(), p.acked.Load()); from < off {
			ops = l.appendLoss(ops, p, from, off, LossEvicted)
			lost += off - from
		}
	}
	if lost > 0 {
		l.lg.Warn("disk budget: oldest records given up", "records", lost)
		l.stats.evicted(lost)
	}
	if err := c.moveStarts(moves, ops); err != nil {
		return err
	}
	err := c.dropSegments()
	c.freeAt = time.Time{}
	return err
}

// spansUpTo returns, for each partition with batches in segments up to index,
// where they end, and whether the hub has all of them.
func (l *classLog) spansUpTo(parts []*Partition, index uint64) (map[*Partition]int64, bool) {
	ends, acked := make(map[*Partition]int64), true
	for _, p := range parts {
		p.mu.RLock()
		for i := 0; i < len(p.spans) && p.spans[i].seg.last <= index; i++ {
			ends[p] = p.spans[i].next
		}
		p.mu.RUnlock()
		if off, ok := ends[p]; ok && off > p.acked.Load() {
			acked = false
		}
	}
	return ends, acked
}
