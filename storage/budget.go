package storage

import (
	"math"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"
)

const (
	freeCheckInterval = time.Second
	freeHeldFor       = 50 * time.Millisecond // a reader may hold what was dropped so long
	freeCheckBytes    = 64 << 10              // and after so many bytes of our own, when space is scarce
	maxBallast        = 16 << 20
	minTailShare      = 8 // a tail with records of less than this share of a segment is not given up
)

// ballast is a file whose blocks are allocated and never written: space that is
// there when a full disk needs a few blocks to declare what is given up, to remove
// it, or to repair a segment at Open. It exists where the file system can allocate
// (see allocator).
type ballast struct {
	fs   FS
	path string
	size int64
	held atomic.Int64
}

// allocator is implemented by an FS that can give a new file its blocks at once.
type allocator interface {
	Allocate(name string, size int64) error
}

// fill makes the file again when allowed says that there is room for it.
func (b *ballast) fill(allowed func(size int64) bool) {
	a, ok := b.fs.(allocator)
	if !ok || b.held.Load() > 0 || !allowed(b.size) {
		return
	}
	if a.Allocate(b.path, b.size) == nil {
		b.held.Store(b.size)
	}
}

// releaseBelow removes the file when the file system has less than free.
func (b *ballast) releaseBelow(free int64) {
	if _, ok := b.fs.(allocator); !ok {
		return
	}
	n, err := b.fs.Free(filepath.Dir(b.path))
	if err != nil || n < 0 || n >= free {
		return
	}
	if b.fs.Remove(b.path) == nil {
		b.held.Store(0)
	}
}

// rank orders classes by who gives up first: the lowest priority, of equal ones the
// last in the list. A class waits only for those before it, so no two ever wait for
// each other.
func (l *classLog) rank() [2]int {
	return [2]int{l.cfg.Priority, -slices.Index(l.s.logs, l)}
}

func (s *Store) byRank() []*classLog {
	logs := slices.Clone(s.logs)
	slices.SortFunc(logs, func(a, b *classLog) int {
		x, y := a.rank(), b.rank()
		return slices.Compare(x[:], y[:])
	})
	return logs
}

// admit decides which appends of the group there is room for, and makes room as
// the policies allow.
func (c *committer) admit() error {
	l := c.l
	var used int64
	tried, taken := false, false
	room := [2]int64{-1, -1} // for records, for state; asked when needed
	for i := range c.group {
		a := c.group[i].a
		for j := range a.items {
			if a.items[j].p.deleted.Load() {
				c.refused[i] = ErrUnknownTopic
			}
		}
		if c.refused[i] != nil {
			continue
		}
		need := a.need()
		kind := 0
		if len(a.items) == 0 {
			kind = 1
		}
		if room[kind] < 0 {
			room[kind] = max(c.room(kind == 1), 0)
		}
		if !tried && (c.noSpace || used+need > room[kind]) {
			tried = true
			if err := c.makeRoom(used+need, used+c.needs(i), kind == 1); err != nil {
				return err
			}
			room = [2]int64{max(c.room(false), 0), max(c.room(true), 0)}
		}
		if used+need > room[kind] {
			c.refused[i] = ErrFull
			l.stats.refused()
			continue
		}
		used += need
		taken = taken || kind == 0
	}
	if taken && !c.noSpace {
		l.stats.setFull(false)
	}
	return nil
}

// need is about what an append takes in the log.
func (a *Append) need() int64 { return int64(a.Bytes()) + 256*int64(len(a.items)) + 256 }

// needs is what the group's appends from the i-th on take: room is made for all at once.
func (c *committer) needs(i int) (n int64) {
	for ; i < len(c.group); i++ {
		if c.refused[i] == nil {
			n += c.group[i].a.need()
		}
	}
	return n
}

// room is how many bytes the class may still write: records leave the reserves
// alone, state may use three quarters of them.
func (c *committer) room(state bool) int64 {
	return min(c.classRoom(state), c.sharedRoom(state))
}

func (c *committer) classRoom(state bool) int64 {
	cfg := &c.l.cfg
	if cfg.MaxBytes == 0 {
		return math.MaxInt64
	}
	return cfg.MaxBytes - spared(2*int64(cfg.SegmentBytes), state) - c.l.diskBytes()
}

// spared is the part of a reserve that has to stay.
func spared(reserve int64, state bool) int64 {
	if state {
		return reserve / 4
	}
	return reserve
}

// sharedRoom is what the budget of all classes and the file system leave.
func (c *committer) sharedRoom(state bool) int64 {
	s := c.l.s
	room := int64(math.MaxInt64)
	if s.cfg.MaxBytes > 0 {
		var used, segment int64
		for _, l := range s.logs {
			used += l.diskBytes()
			segment = max(segment, int64(l.cfg.SegmentBytes))
		}
		room = s.cfg.MaxBytes - spared(2*segment, state) - used
	}
	if least := c.l.cfg.MinFreeBytes; least >= 0 {
		if free := c.freeBytes(); free >= 0 {
			room = min(room, free-spared(least, state))
		}
	}
	return room
}

// freeBytes is what the file system has left, asked at most once a second while
// there is plenty, and negative when unknown.
func (c *committer) freeBytes() int64 {
	l := c.l
	now := time.Now()
	scarce := c.left-c.since < 64*freeCheckBytes+l.cfg.MinFreeBytes
	if c.freeAt.IsZero() || now.Sub(c.freeAt) >= freeCheckInterval || scarce && c.since >= freeCheckBytes {
		c.left, c.freeAt, c.since = c.askFree(), now, 0
	}
	if c.left < 0 {
		return -1
	}
	return max(c.left-c.since, 0)
}

// askFree asks the file system, which counts the blocks that the tail was given as used.
func (c *committer) askFree() int64 {
	left, err := c.l.s.cfg.FS.Free(c.l.segDir)
	if err != nil || left < 0 {
		return -1
	}
	return left + max(c.allocated-c.tailSize, 0)
}

// lookAgain asks before anything is given up or refused: others may have made room. Less
// than what is believed counts only once a reader cannot hold what was dropped any more.
func (c *committer) lookAgain() {
	left := c.askFree()
	if now := time.Now(); left >= c.left-c.since || now.Sub(c.freeAt) > freeHeldFor {
		c.left, c.freeAt, c.since = left, now, 0
	}
}

// credit counts what was dropped as free at once: the file system may tell of it only
// when the last reader has closed.
func (c *committer) credit(freed int64) {
	if freed > 0 {
		c.since, c.freeAt = c.since-freed, time.Now()
	}
}

// mayFillReserve: the file system has room for the reserve above what is to stay free.
func (c *committer) mayFillReserve(size int64) bool {
	c.freeAt = time.Time{}
	free := c.freeBytes()
	return free >= 0 && free-max(c.l.cfg.MinFreeBytes, 0) >= size+int64(c.l.cfg.SegmentBytes)
}

// makeRoom lets classes give up their oldest segments until need bytes have room, better
// want, or nothing more may go. First goes what the hub has, then, by DropOldest, what it
// does not have. For the class's own budget only the class itself is asked; for
// what all share also those of lower rank, before it. Those of higher rank are
// asked for what the hub has, without waiting for it.
func (c *committer) makeRoom(need, want int64, state bool) error {
	l := c.l
	c.lookAgain()
	if c.noSpace {
		c.noSpace = false
		if free := c.freeBytes(); free >= 0 && free < 2*int64(l.cfg.SegmentBytes) { // the disk is full, whatever the limits say
			return c.shareOut(want+int64(l.cfg.SegmentBytes), func() int64 { return 0 })
		}
	}
	for _, lose := range []bool{false, true} {
		if short := want - c.classRoom(state); short > 0 {
			if _, err := c.giveUp(short, lose); err != nil {
				return err
			}
		}
	}
	room := c.classRoom(state)
	if need > room {
		return nil // refused anyway: others need not give up anything for it
	}
	want = min(want, room)
	short := func() int64 { return want - c.sharedRoom(state) }
	return c.shareOut(short(), short)
}

// shareOut asks the classes in their order until n bytes are free and short says that
// nothing more is needed.
func (c *committer) shareOut(n int64, short func() int64) error {
	l := c.l
	if n <= 0 {
		return nil
	}
	order := l.s.byRank()
	me := slices.Index(order, l)
	for _, lose := range []bool{false, true} {
		for _, o := range order[:me+1] {
			for {
				freed, err := int64(0), error(nil)
				if o == l {
					freed, err = c.giveUp(n, lose)
				} else {
					o.do(func() (err error) { freed, err = o.c.give(n, lose); return err }) // its failure is its own
				}
				if err != nil {
					return err
				}
				if freed <= 0 {
					break
				}
				if o != l {
					c.credit(freed)
				}
				if n = max(n-freed, short()); n <= 0 {
					return nil
				}
			}
		}
		want := n // the closure runs when this loop may have gone on
		for _, o := range order[me+1:] {
			if !lose && o.asked.CompareAndSwap(false, true) {
				o.post(func() { o.asked.Store(false); o.c.give(want, false) })
			}
		}
	}
	return nil
}

// give is giveUp on behalf of another class, on this class's committer.
func (c *committer) give(need int64, lose bool) (freed int64, err error) {
	if err := c.ready(); err != nil {
		return 0, err
	}
	freed, err = c.giveUp(need, lose)
	if err != nil {
		c.fail(err)
	}
	return freed, err
}

// giveUp drops the oldest segments of the class, about need bytes of them: what the
// hub has, and with lose, by DropOldest, all, declared as far as the hub does not
// have it.
func (c *committer) giveUp(need int64, lose bool) (freed int64, err error) {
	l := c.l
	if l.cfg.WhenFull == 0 || lose && l.cfg.WhenFull != DropOldest {
		return 0, nil
	}
	if lose && l.droppable() < need && c.tailRecords() >= c.leastTail() {
		// All that is left is the tail. The newest goes on.
		l.reserve.releaseBelow(l.reserve.size)
		if err := c.roll(); err != nil {
			return 0, err
		}
	}
	// Coarse steps: each costs a fsync or two.
	need += max(int64(l.cfg.SegmentBytes), max(l.cfg.MaxBytes, l.s.cfg.MaxBytes)/32)
	l.segMu.RLock()
	segs := slices.Clone(l.segs[:len(l.segs)-1])
	l.segMu.RUnlock()
	parts := l.partitions()
	to := make(map[*Partition]int64)
	any := false
	for _, seg := range segs {
		if need <= 0 {
			break
		}
		step, acked := l.spansUpTo(parts, seg.last)
		if !lose && !acked {
			break
		}
		for p, off := range step {
			to[p] = off
		}
		any = any || seg.last > seg.first
		need -= seg.size
	}
	if !any {
		return 0, nil
	}
	l.reserve.releaseBelow(l.reserve.size) // what follows writes a little
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
	before := l.diskBytes()
	if err := c.moveStarts(moves, ops); err != nil {
		return 0, err
	}
	if lost > 0 {
		l.lg.Warn("disk budget: oldest records given up", "records", lost)
		l.stats.evicted(lost, l.s.cfg.Now())
	}
	err = c.dropSegments()
	freed = max(before-l.diskBytes(), 0)
	c.credit(freed)
	if err == nil {
		l.reserve.fill(c.mayFillReserve)
	}
	return freed, err
}

// droppable is what the sealed segments take; the one entry that the last drop left does
// not count.
func (l *classLog) droppable() (n int64) {
	l.segMu.RLock()
	defer l.segMu.RUnlock()
	for _, seg := range l.segs[:len(l.segs)-1] {
		if seg.last > seg.first {
			n += seg.size
		}
	}
	return n
}

// leastTail is how many bytes of records a tail has to hold to be given up, since the
// state is written forward for it.
func (c *committer) leastTail() int64 {
	c.l.state.mu.RLock()
	defer c.l.state.mu.RUnlock()
	return max(int64(c.l.cfg.SegmentBytes)/minTailShare, c.l.state.bytes/4)
}

// tailRecords is what the tail's retained batches take. The rest is state, which would be
// written forward.
func (c *committer) tailRecords() (n int64) {
	for _, p := range c.tailParts {
		p.mu.RLock()
		for i := range p.tail {
			n += int64(p.tail[i].size)
		}
		p.mu.RUnlock()
	}
	return n
}

// spansUpTo returns, for each partition with batches in segments up to index,
// where they end, and whether the hub has all of them.
func (l *classLog) spansUpTo(parts []*Partition, index uint64) (map[*Partition]int64, bool) {
	ends, acked := make(map[*Partition]int64), true
	for _, p := range parts {
		p.mu.RLock()
		for i := range p.spans {
			if seg := p.spans[i].seg; seg.clean == nil && seg.last <= index {
				ends[p] = p.spans[i].next
			}
		}
		p.mu.RUnlock()
		if off, ok := ends[p]; ok && off > p.acked.Load() {
			acked = false
		}
	}
	return ends, acked
}
