package storage

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"time"
)

// Compaction says how a topic is compacted: of the records of a key the newest
// stays, others go in time. Records without a key stay. Offsets never change.
type Compaction struct {
	On bool `cbor:"1,keyasint"`
	// Delete applies the topic's retention as well; without it a compacted topic
	// has none.
	Delete bool `cbor:"2,keyasint,omitempty"`
	// TombstoneAge is how long a record with a null value stays after the
	// compaction that removed what it deletes.
	TombstoneAge time.Duration `cbor:"3,keyasint"`
	// MinLag is how long records stay as they came, counted from their arrival.
	MinLag time.Duration `cbor:"4,keyasint"`
	// MaxLag is when a partition is compacted however little of it is new; 0: no limit.
	MaxLag time.Duration `cbor:"5,keyasint"`
	// Wait is how long less than a MiB waits although DirtyRatio is reached.
	Wait time.Duration `cbor:"6,keyasint"`
	// DirtyRatio is the share of a partition's bytes that must not have been
	// compacted yet for a compaction to begin.
	DirtyRatio float64 `cbor:"7,keyasint"`
}

// DefaultCompaction is what Kafka does, as far as it does not depend on segments.
func DefaultCompaction() Compaction {
	return Compaction{On: true, TombstoneAge: 24 * time.Hour, Wait: 5 * time.Minute, DirtyRatio: 0.5}
}

func (c *Compaction) check() error {
	if c != nil && (c.TombstoneAge < 0 || c.MinLag < 0 || c.MaxLag < 0 || c.Wait < 0 || !(c.DirtyRatio >= 0 && c.DirtyRatio <= 1)) {
		return fmt.Errorf("%w: compaction %+v", ErrInvalid, *c)
	}
	return nil
}

// compacted is the compaction of a topic's configuration, nil when it has none.
func (c *TopicConfig) compacted() *Compaction {
	if c.Compaction == nil || !c.Compaction.On {
		return nil
	}
	return c.Compaction
}

const (
	compactSoonBytes = 1 << 20  // so much that is new does not wait
	compactKeyBytes  = 64 << 20 // memory of a compaction's keys
)

// CompactStatus tells how far the compaction of a partition is.
type CompactStatus struct {
	To           int64 // offsets below were compacted
	Clean, Dirty int64 // bytes below and above
	Running      bool
	Done, Total  int64 // bytes of the compaction that is running, or ran last
}

// CompactStatus is where the partition's compaction stands.
func (p *Partition) CompactStatus() CompactStatus {
	p.mu.RLock()
	defer p.mu.RUnlock()
	st := CompactStatus{To: p.cleanTo, Running: p.compacting.running.Load(), Done: p.compacting.done.Load(), Total: p.compacting.total.Load()}
	for i := range p.spans {
		if p.spans[i].seg.clean != nil {
			st.Clean += p.spans[i].bytes
		}
	}
	st.Dirty = p.bytes - st.Clean
	return st
}

func (s *Store) compactLoop() {
	t := time.NewTicker(s.cfg.RetentionInterval)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			if err := s.compact(false); err != nil && !errors.Is(err, ErrClosed) {
				s.cfg.Logger.Warn("compaction", "err", err)
			}
		case <-s.closing:
			return
		}
	}
}

// Compact compacts all compacted topics now, as far as MinLag allows, whether it is
// worth it or not, and returns when what goes is gone.
func (s *Store) Compact() error { return s.compact(true) }

func (s *Store) compact(all bool) error {
	s.compactMu.Lock()
	defer s.compactMu.Unlock()
	var errs []error
	for _, l := range s.logs {
		parts := l.partitions()
		pinned := l.pinnedBy(parts)
		moved := false
		for _, p := range parts {
			cfg := p.topic.Config()
			rules := cfg.compacted()
			if rules == nil {
				errs = append(errs, l.tidyClean(p))
				continue
			}
			if now := s.cfg.Now(); all || p.dueForCompaction(rules, now, pinned[p]) {
				done, err := l.compactPartition(p, rules, now)
				if err != nil {
					err = fmt.Errorf("compact %s/%d: %w", p.topic.name, p.index, err)
				}
				errs = append(errs, err)
				moved = moved || done
			}
			errs = append(errs, l.tidyClean(p))
		}
		// While the log is broken nobody knows which files its last entry names.
		if err := l.do(l.c.ready); err == nil {
			errs = append(errs, l.sweepClean())
		}
		if moved {
			errs = append(errs, l.do(l.c.retain))
		}
	}
	return errors.Join(errs...)
}

// pinnedBy tells for how many bytes of the log each compacted partition is the only
// reason that they are still there.
func (l *classLog) pinnedBy(parts []*Partition) map[*Partition]int64 {
	front := uint64(math.MaxUint64)
	firsts := make(map[*Partition]uint64)
	for _, p := range parts {
		seg := p.firstLogSegment()
		switch cfg := p.topic.Config(); {
		case seg == nil:
		case cfg.compacted() == nil:
			front = min(front, seg.first)
		default:
			firsts[p] = seg.first
		}
	}
	pinned := make(map[*Partition]int64, len(firsts))
	l.segMu.RLock()
	defer l.segMu.RUnlock()
	for p, first := range firsts {
		for _, seg := range l.segs[:len(l.segs)-1] {
			if seg.first >= first && seg.first < front {
				pinned[p] += seg.size
			}
		}
	}
	return pinned
}

// firstLogSegment is the oldest sealed segment of the log that the partition needs.
func (p *Partition) firstLogSegment() *segment {
	p.mu.RLock()
	defer p.mu.RUnlock()
	for i := range p.spans {
		if p.spans[i].seg.clean == nil {
			return p.spans[i].seg
		}
	}
	return nil
}

// dueForCompaction decides whether a compaction is worth it.
func (p *Partition) dueForCompaction(c *Compaction, now time.Time, pinned int64) bool {
	st := p.CompactStatus()
	if expired := p.oldestHorizon(); expired > 0 && expired <= now.UnixMilli() {
		return true
	}
	if st.Dirty == 0 {
		p.compacting.since = time.Time{}
		return false
	}
	if p.compacting.since.IsZero() || p.compacting.since.After(now) {
		p.compacting.since = now
	}
	age := now.Sub(p.compacting.since)
	ratio := float64(st.Dirty) / float64(st.Dirty+st.Clean)
	switch {
	case c.MaxLag > 0 && age >= c.MaxLag:
		return true
	case pinned > max(4*st.Dirty, 4*int64(p.log.cfg.SegmentBytes)):
		return true
	}
	return ratio >= c.DirtyRatio && (st.Dirty >= compactSoonBytes || age >= c.Wait)
}

// oldestHorizon is when the first tombstones of the partition's files may go, 0 when
// there are none.
func (p *Partition) oldestHorizon() (at int64) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	for i := range p.spans {
		if f := p.spans[i].seg.clean; f != nil && f.Horizon > 0 && (at == 0 || f.Horizon < at) {
			at = f.Horizon
		}
	}
	return at
}

// compactableTo is the end of the run of batches from off on that arrived before limit.
func (p *Partition) compactableTo(off, limit int64) int64 {
	l := p.log
	p.mu.RLock()
	defer p.mu.RUnlock()
	arrived := func(seg *segment) int64 {
		l.segMu.RLock()
		defer l.segMu.RUnlock()
		return seg.arrival
	}
	for i := range p.spans {
		if s := &p.spans[i]; s.seg.clean == nil {
			if arrived(s.seg) > limit {
				return off
			}
			off = s.next
		}
	}
	if n := len(p.tail); n > 0 && arrived(p.tailSeg) <= limit {
		off = p.tail[n-1].next
	}
	return off
}

// compactPartition compacts one partition: the keys of what is new are collected,
// then the files of earlier compactions are written anew without what is superseded,
// then what is new. Each file is swapped in by one commit; at any instant everything
// that must stay is in the log or in a file that the state names. Called with
// compactMu held.
func (l *classLog) compactPartition(p *Partition, rules *Compaction, now time.Time) (done bool, err error) {
	p.mu.RLock()
	from, start := p.cleanTo, p.start
	p.mu.RUnlock()
	from = max(from, start)
	limit := int64(math.MaxInt64) // also when the clock went back
	if rules.MinLag > 0 {
		limit = now.Add(-rules.MinLag).UnixMilli()
	}
	to := p.compactableTo(from, limit)
	expired := p.oldestHorizon()
	if to <= from && (expired == 0 || expired > now.UnixMilli()) {
		return false, nil
	}
	c := &compactor{l: l, p: p, now: now.UnixMilli(), tombstones: rules.TombstoneAge.Milliseconds(), start: start, last: p.hw.Load() - 1}
	defer c.close()
	st := p.CompactStatus()
	p.compacting.done.Store(0)
	p.compacting.total.Store(st.Clean + 2*st.Dirty)
	p.compacting.running.Store(true)
	defer p.compacting.running.Store(false)
	begun := time.Now()
	c.keys = newKeyTable(to-from, cmp.Or(l.s.cfg.CompactBytes, compactKeyBytes))
	if to, err = c.collect(from, to); err != nil {
		return false, err
	}
	for _, g := range p.cleanGroups() {
		if err := c.rewrite(g, g[0].clean.Base, g[len(g)-1].clean.Next, 0); err != nil {
			return done, err
		}
	}
	if to > from {
		if err := c.rewrite(nil, from, to, to); err != nil {
			return done, err
		}
		done = true
		p.compacting.since = time.Time{}
	}
	l.stats.compacted(c)
	l.lg.Info("partition compacted", "topic", p.topic.name, "partition", p.index, "to", to, "records", c.seen, "removed", c.seen-c.kept,
		"bytes", c.bytesIn, "left", c.bytesOut, "took", time.Since(begun).Round(time.Millisecond))
	return done, nil
}

// cleanGroups are the partition's files, neighbours that make one file together.
func (p *Partition) cleanGroups() (groups [][]*segment) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	size := int64(0)
	for i := range p.spans {
		seg := p.spans[i].seg
		if seg.clean == nil {
			break
		}
		if size += seg.size; len(groups) == 0 || size > cleanFileBytes {
			groups, size = append(groups, nil), seg.size
		}
		n := len(groups) - 1
		groups[n] = append(groups[n], seg)
	}
	return groups
}
