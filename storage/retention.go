package storage

import (
	"errors"
	"io/fs"
	"math"
)

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
		return err
	}
	c.declareAgain()
	c.l.reserve.fill(c.mayFillReserve)
	if c.room(false) > 0 {
		c.l.stats.setFull(false)
	}
	return nil
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
	if c := cfg.compacted(); c != nil && !c.Delete {
		return start
	}
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
		if seg := p.firstLogSegment(); seg != nil {
			keep = min(keep, seg.first)
		}
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
		err := &DiskError{"truncate", l.segDir, err}
		if errors.Is(err, ErrFull) {
			l.removeFront(gone)
		}
		return err
	}
	if err := l.syncSegDir(); err != nil {
		return err
	}
	return l.adoptFront(victim.last)
}

// removeFront removes whole segments from the front, for when there is no room even
// for the one entry that the library would leave of them. The log must be opened
// anew afterwards: the library does not know of it. Each name is durably gone
// before the next goes, so that a power cut leaves no hole.
func (l *classLog) removeFront(gone []*segment) {
	for _, seg := range gone {
		if err := l.s.cfg.FS.Remove(seg.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			l.lg.Warn("remove segment of a full disk", "file", seg.path, "err", err)
			return
		}
		if err := l.syncSegDir(); err != nil {
			l.lg.Warn("remove segment of a full disk", "file", seg.path, "err", err)
			return
		}
	}
}

// forward writes everything that only entries up to index tell.
func (c *committer) forward(index uint64) error {
	for {
		ops, all := c.l.state.forward(nil, index, forwardBytes)
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
	segs := append([]*segment(nil), l.segs[len(gone):]...)
	if stub != nil {
		segs = append([]*segment{stub}, segs...)
	}
	l.setSegments(segs)
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
