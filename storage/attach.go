package storage

import (
	"encoding/binary"
	"fmt"
	"sort"

	"github.com/fxamacker/cbor/v2"
)

// loadTopics makes the topics that the replayed state of a class tells.
func (s *Store) loadTopics(l *classLog, r *recovered) error {
	s.nextPartition = max(s.nextPartition, 1)
	if v, ok := l.state.get(kindNext, nextKey); ok && len(v) == 4 {
		s.nextPartition = max(s.nextPartition, PartitionID(binary.BigEndian.Uint32(v)))
	}
	for _, name := range l.state.keys(kindTopic) {
		v, _ := l.state.get(kindTopic, name)
		var st topicState
		if err := cbor.Unmarshal(v, &st); err != nil {
			return fmt.Errorf("storage: topic %q does not parse: %w", name, err)
		}
		if s.topics[name] != nil {
			return fmt.Errorf("storage: topic %q is in two classes", name)
		}
		t := &Topic{s: s, name: name, id: st.ID, cfg: st.Config}
		t.cfg.Partitions, t.cfg.Class = len(st.Partitions), l.cfg.Name
		for i, id := range st.Partitions {
			p := s.newPartition(t, i, id, l)
			t.parts = append(t.parts, p)
			s.partitions[id] = p
			s.nextPartition = max(s.nextPartition, id+1)
		}
		s.topics[name] = t
	}
	// Ids of deleted topics whose entries are still in the log.
	for id := range r.next {
		s.nextPartition = max(s.nextPartition, id+1)
	}
	return nil
}

// attach gives the partitions of a class what recovery found in its segments, and
// returns the operations that declare the ranges which are missing.
func (l *classLog) attach(r *recovered) (lostOps []byte) {
	parts := make(map[PartitionID]*Partition)
	lost, unreadable := r.gaps, r.badGaps
	upTo := make([]int, len(r.segs)+1) // how many segments before each could not be read whole
	for i, seg := range r.segs {
		if upTo[i+1] = upTo[i]; seg.unreadable {
			upTo[i+1]++
		}
	}
	last := make(map[PartitionID]int) // the segment of each partition's batch before
	for _, p := range l.partitions() {
		parts[p.id] = p
		if v, ok := l.state.get(kindStart, string(p.startKey())); ok && len(v) == 8 {
			p.start = int64(binary.BigEndian.Uint64(v))
		}
	}
	spans := make(map[PartitionID]int)
	for _, x := range r.indexes {
		for j := range x.parts {
			spans[x.parts[j].id]++
		}
	}
	for id, p := range parts {
		p.spans, p.runMax = make([]span, 0, spans[id]), make([]int64, 0, spans[id])
		lost = append(lost, l.loadClean(p)...)
	}
	for _, row := range lossRowsOf(l.state) { // in the log damage entries took their place
		if p := parts[row.Partition]; p != nil && row.From < p.cleanTo && row.Reason&^lossSettled != LossEvicted {
			p.holes = append(p.holes, hole{row.From, row.To})
		}
	}
	if err := l.sweepClean(); err != nil {
		l.lg.Warn("remove what a compaction left", "err", err)
	}
	end := make(map[PartitionID]int64) // where the next batch should begin
	for i, x := range r.indexes {
		for j := range x.parts {
			part := &x.parts[j]
			p := parts[part.id]
			if p == nil {
				continue // deleted
			}
			if part.next <= p.cleanTo {
				continue // a file of a compaction has it
			}
			want, seen := end[p.id]
			if !seen {
				want = max(p.start, p.cleanTo)
			}
			if gap := (lostRange{p.id, want, part.base}); part.base > want && upTo[i+1] > upTo[last[p.id]] {
				unreadable = append(unreadable, gap)
			} else if part.base > want {
				lost = append(lost, gap)
			}
			end[p.id], last[p.id] = part.next, i
			if i == len(r.indexes)-1 {
				p.tailSeg, p.tail = r.segs[i], part.refs[sort.Search(len(part.refs), func(k int) bool { return part.refs[k].next > p.cleanTo }):]
				l.c.tailParts = append(l.c.tailParts, p)
			} else {
				p.addSpan(r.segs[i], part)
			}
			p.bytes += part.bytes
		}
	}
	// What damage entries say counts only behind the last batch: before it the
	// gaps between batches tell exactly.
	salvaged := make(map[PartitionID]int64)
	for _, lr := range r.lost {
		if lr.from >= end[lr.partition] {
			salvaged[lr.partition] = max(salvaged[lr.partition], lr.to)
		}
	}
	newest := l.s.identity.Epoch
	for _, p := range parts {
		have := max(p.start, p.cleanTo, end[p.id])
		next := max(have, salvaged[p.id], newest.ForkAt[p.id], r.proven[p.id])
		if r.twin != nil {
			next = max(next, r.twin.next[p.id])
		}
		if gap := (lostRange{p.id, have, next}); have < next && (r.badTail || upTo[len(r.segs)] > upTo[last[p.id]]) {
			unreadable = append(unreadable, gap)
		} else if have < next {
			lost = append(lost, gap)
		}
		p.next.Store(next)
		p.hw.Store(next)
		start := p.start
		p.start = -1
		p.applyStart(start) // forgets what is below
	}
	ops := append(l.declare(lost, LossDamaged, parts), l.declare(unreadable, LossUnreadable, parts)...)
	for _, row := range lossRowsOf(l.state) {
		if p := parts[row.Partition]; row.Reason&lossSettled != 0 && (p == nil || row.To <= p.start) {
			ops = appendOp(ops, kindLoss, opDelete, lossKey(row.Partition, row.Reason, row.From), nil)
		}
	}
	return ops
}

// declare returns the operations for ranges that no row of the ledger has yet.
func (l *classLog) declare(lost []lostRange, reason LossReason, parts map[PartitionID]*Partition) (ops []byte) {
	rows := lossRowsOf(l.state)
	for _, lr := range lost {
		p := parts[lr.partition]
		if p == nil {
			continue
		}
		lr.from = max(lr.from, p.start)
		for _, left := range subtractRows(lr, rows) {
			ops = appendOp(ops, kindLoss, opSet, lossKey(p.id, reason, left.from), lossValue(left.to, l.nowMS()))
			l.stats.damagedRecords(left.to - left.from)
		}
	}
	return ops
}
