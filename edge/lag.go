package edge

import (
	"tailrace/storage"
	"tailrace/storage/record"
	"tailrace/uplink/link"
	"tailrace/uplink/wire"
)

// lag is what the hub does not have yet and shall have, over all partitions: not what
// stays here until it is fetched, nor what the hub refuses.
func (s *source) lag() (records int64, backlog []wire.Backlog) {
	for _, t := range s.store.Topics() {
		mode, _ := s.streams.replication(t.Name())
		if mode == wire.ModeOnDemand || s.isRefused(t.Name()) {
			continue
		}
		for _, p := range t.Partitions() {
			b := s.lagOf(t.Name(), p)
			records += b.Records
			backlog = append(backlog, b)
		}
	}
	return records, backlog
}

// kept is what stays here on purpose.
func (s *source) kept() (out []wire.Backlog) {
	for _, t := range s.store.Topics() {
		if mode, _ := s.streams.replication(t.Name()); mode != wire.ModeOnDemand && !s.isRefused(t.Name()) {
			continue
		}
		for _, p := range t.Partitions() {
			out = append(out, wire.Backlog{Topic: t.Name(), Partition: p.Index(), Start: p.Start(), Next: p.HighWatermark(), Bytes: p.Bytes(), Kept: true})
		}
	}
	return out
}

// lagOf is the lag of one partition. A live-first topic has holes: what lies above the
// first one and is at the hub does not count.
func (s *source) lagOf(topic string, p *storage.Partition) wire.Backlog {
	next, off := p.HighWatermark(), s.ackedOffset(p)
	b := wire.Backlog{Topic: topic, Partition: p.Index(), Start: p.Start(), Next: next, Records: max(next-off-s.ackedAbove(p, off, next), 0)}
	held := next - p.Start()
	if b.Records == 0 || held <= 0 {
		return b
	}
	b.Bytes = int64(float64(p.Bytes()) * float64(b.Records) / float64(held)) // batches are not counted singly: a share
	b.OldestMS = s.timeAt(p, off)
	return b
}

// ackedAbove is how many offsets of [off, next) are at the hub.
func (s *source) ackedAbove(p *storage.Partition, off, next int64) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if a := s.acked[p.ID()]; a != nil {
		return a.held.Within(off, next).Count()
	}
	return 0
}

// timeAt is the time of the record at an offset, ms since 1970; 0 = not known. The last
// answer of each partition is kept: while nothing moves it is asked again and again.
func (s *source) timeAt(p *storage.Partition, off int64) int64 {
	s.mu.Lock()
	t := s.times[p.ID()]
	s.mu.Unlock()
	if t.off == off && t.ms > 0 {
		return t.ms
	}
	t = offsetTime{off: off}
	b, _, err := p.Read(nil, off, 1)
	if err != nil || len(b) == 0 {
		return 0
	}
	batch, _, err := record.Next(b)
	if err != nil {
		return 0
	}
	d := record.NewDecompressor(0)
	defer d.Close()
	for it := batch.Iter(d); it.Next(); {
		if r := it.Record(); r.Offset >= off {
			t.ms = r.Timestamp
			break
		}
	}
	s.mu.Lock()
	if s.times == nil {
		s.times = map[storage.PartitionID]offsetTime{}
	}
	s.times[p.ID()] = t
	s.mu.Unlock()
	return t.ms
}

// offsetTime is the time of the record at an offset.
type offsetTime struct{ off, ms int64 }

// isRefused says whether the hub does not take a topic, as it said last.
func (s *source) isRefused(topic string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.refused[topic]
}

// Refused implements link.RefusalTaker.
func (s *source) Refused(list []link.RefusedTopic) {
	m := make(map[string]bool, len(list))
	for i := range list {
		m[list[i].Topic] = true
	}
	s.mu.Lock()
	s.refused = m
	s.mu.Unlock()
}
