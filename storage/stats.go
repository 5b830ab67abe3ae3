package storage

import "time"

// Stats returns counters since Open and levels, per class.
func (s *Store) Stats() Stats {
	out := Stats{MaxBytes: s.cfg.MaxBytes}
	for _, l := range s.logs {
		l.stats.mu.Lock()
		c := l.stats.ClassStats
		l.stats.mu.Unlock()
		c.Class, c.MaxBytes = l.cfg.Name, l.cfg.MaxBytes
		l.mu.Lock()
		c.WaitingBytes = l.waiting
		l.mu.Unlock()
		l.segMu.RLock()
		c.Segments = len(l.segs)
		l.segMu.RUnlock()
		c.DiskBytes, c.Reserve, c.CompactBytes = l.diskBytes(), l.reserve.held.Load(), l.cleanBytes.Load()
		l.state.mu.RLock()
		c.StateKeys, c.StateBytes = l.state.count, l.state.bytes
		l.state.mu.RUnlock()
		out.Classes = append(out.Classes, c)
	}
	return out
}

func (st *logStats) add(entries []pendingEntry, value, bytes int64, fsyncs int, took time.Duration, commit uint64, start time.Time) {
	st.mu.Lock()
	defer st.mu.Unlock()
	for i := range entries {
		if entries[i].p != nil {
			st.Records += uint64(entries[i].count)
			st.RecordBytes += uint64(len(entries[i].buf) - envelopeBytes - entries[i].origin)
		}
	}
	st.PayloadBytes += uint64(value)
	st.Commits++
	st.Failing = nil
	st.Fsyncs += uint64(fsyncs)
	st.WrittenBytes += uint64(bytes)
	st.CommitNanos += uint64(took)
	st.LastCommit, st.LastCommitStart = commit, start
}

func (st *logStats) failed(err error) {
	st.mu.Lock()
	st.Failures++
	st.Failing = err
	st.mu.Unlock()
}

func (st *logStats) refused() {
	st.mu.Lock()
	st.Refused++
	st.Full = true
	st.mu.Unlock()
}

func (st *logStats) setFull(full bool) {
	st.mu.Lock()
	st.Full = full
	st.mu.Unlock()
}

func (st *logStats) evicted(n int64, at time.Time) {
	st.mu.Lock()
	st.EvictedRecords += uint64(n)
	st.LastEvicted = at
	st.mu.Unlock()
}

func (st *logStats) damagedRecords(n int64) {
	st.mu.Lock()
	st.DamagedRecords += uint64(n)
	st.mu.Unlock()
}

func (st *logStats) compacted(c *compactor) {
	st.mu.Lock()
	st.Compactions++
	st.CompactedAway += uint64(c.seen - c.kept)
	st.CompactedBytes += uint64(max(c.bytesIn-c.bytesOut, 0))
	st.mu.Unlock()
}

func (st *logStats) scrubbed(n int64) {
	st.mu.Lock()
	st.ScrubbedBytes += uint64(n)
	st.mu.Unlock()
}

func (st *logStats) scrubFound() {
	st.mu.Lock()
	st.ScrubDamaged++
	st.mu.Unlock()
}

func (st *logStats) healed() {
	st.mu.Lock()
	st.Healed++
	st.mu.Unlock()
}

func (st *logStats) setBroken(err error) {
	st.mu.Lock()
	st.Broken = err
	st.mu.Unlock()
}
