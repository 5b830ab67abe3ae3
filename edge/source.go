package edge

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"tailrace/storage"
	"tailrace/uplink"
	"tailrace/uplink/link"
	"tailrace/uplink/ranges"
	"tailrace/uplink/wire"
)

// source is the store as the uplink sees it (link.Source), and what the hub has
// acknowledged of it.
type source struct {
	store   *storage.Store
	streams *streams
	logger  *slog.Logger
	changed chan struct{} // capacity 1: something moved since it was last read
	settle  chan struct{} // capacity 1: a loss may be settled

	mu      sync.Mutex // guards the fields below
	acked   map[storage.PartitionID]*ackedOf
	times   map[storage.PartitionID]offsetTime
	refused map[string]bool // topics that the hub does not take, as it said last
	hub     wire.StoreRef   // the store that welcomed this node last; zero ID = none yet
	noted   wire.StoreRef   // as it is durable here
	noting  bool            // it is being made durable
	// notNoted: the disk did not take it last, which was said.
	notNoted bool
}

// ackedOf is what the hub holds of one partition, over all epochs: offsets go on
// over an epoch's end, so one set says it all.
type ackedOf struct {
	held uplink.RangeSet // as the hub told: what was given up is in it once the hub has declared it
	off  int64           // everything below is held, or below the start
}

// maxHeldRuns bounds what is remembered of a hub that holds a partition in pieces; what is
// forgotten is only taken for not yet declared, and proposed again.
const maxHeldRuns = 1 << 12

func newSource(store *storage.Store, s *streams, logger *slog.Logger) *source {
	src := &source{store: store, streams: s, logger: logger, changed: make(chan struct{}, 1), settle: make(chan struct{}, 1), acked: map[storage.PartitionID]*ackedOf{}}
	if v, ok := store.State(storage.KindMeta, hubStoreKey); ok && len(v) == len(src.hub.ID)+4 {
		copy(src.hub.ID[:], v)
		src.hub.Epoch = int32(binary.BigEndian.Uint32(v[len(src.hub.ID):]))
		src.noted = src.hub
	}
	return src
}

// hubStoreKey names the state entry of the hub's store that welcomed this node last:
// id 16, epoch 4.
const hubStoreKey = "hub-store"

// knownStore is for Hello.
func (s *source) knownStore() *wire.StoreRef {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.hub.ID.IsZero() {
		return nil
	}
	ref := s.hub
	return &ref
}

// welcomed notes the hub's store. What another store, or another life of the same one,
// has acknowledged counts no more: its acks tell, at the begin of the session, what it
// holds. Nothing is freed on the word of a store that is gone.
func (s *source) welcomed(w wire.Welcome) error {
	now := wire.StoreRef{ID: w.StoreID, Epoch: w.StoreEpoch}
	s.mu.Lock()
	before := s.hub
	s.hub = now
	clear(s.acked)
	s.mu.Unlock()
	for _, t := range s.store.Topics() {
		for _, p := range t.Partitions() {
			p.ForgetAcked()
		}
	}
	switch {
	case before == now:
	case before.ID.IsZero():
	case before.ID != now.ID:
		s.logger.Warn("the hub has another store than before: its disk was lost or replaced; what this node still holds is sent again", "before", before.ID.String(), "now", now.ID.String())
	case now.Epoch < before.Epoch:
		s.logger.Warn("the hub's store is an older state of itself: a backup was restored; what it lacks is sent again", "store", now.ID.String(), "epoch_before", before.Epoch, "epoch", now.Epoch)
	}
	s.noteHub()
	return nil
}

// noteHub makes durable which store of the hub welcomed this node last, unless it is: after
// a restart a hub learns by it that its disk was lost or has gone back. Where the disk takes
// nothing now it is tried again, until it does.
func (s *source) noteHub() {
	s.mu.Lock()
	now := s.hub
	if s.noting || s.noted == now || now.ID.IsZero() {
		s.mu.Unlock()
		return
	}
	s.noting = true
	s.mu.Unlock()
	a := s.store.NewAppend("")
	a.Set(storage.KindMeta, hubStoreKey, binary.BigEndian.AppendUint32(now.ID[:len(now.ID):len(now.ID)], uint32(now.Epoch)))
	s.store.Submit(a, func(_ *storage.Append, err error) {
		s.mu.Lock()
		s.noting = false
		if err == nil {
			s.noted = now
		}
		told := s.notNoted
		s.notNoted = err != nil
		s.mu.Unlock()
		if err == nil || errors.Is(err, storage.ErrClosed) {
			return
		}
		if !told {
			s.logger.Warn("the hub's store is not noted; tried again every second", "err", err)
		}
		time.AfterFunc(time.Second, s.noteHub)
	})
}

func wake(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// span is the offsets [from, to) of a partition that belong to epochs[i].
func span(epochs []storage.Epoch, i int, p *storage.Partition) (from, to int64) {
	from, to = epochs[i].ForkAt[p.ID()], uplink.Forever
	if i+1 < len(epochs) {
		to = epochs[i+1].ForkAt[p.ID()] // absent: it had no records yet, so the span is empty
	}
	return from, max(from, to)
}

// Inventory implements link.Source.
func (s *source) Inventory() wire.Inventory {
	var inv wire.Inventory
	epochs, topics := s.store.Epochs(), s.store.Topics()
	for _, e := range epochs {
		info := wire.EpochInfo{ID: e.ID, Parent: e.Parent, Number: e.Number}
		for _, t := range topics {
			for _, p := range t.Partitions() {
				if off := e.ForkAt[p.ID()]; off > 0 {
					info.Forks = append(info.Forks, wire.ForkPoint{Topic: t.Name(), Partition: p.Index(), Offset: off})
				}
			}
		}
		inv.Epochs = append(inv.Epochs, info)
	}
	for _, t := range topics {
		for _, p := range t.Partitions() {
			minTime, _ := p.StartTime()
			maxTime, _ := p.LastTime()
			mode, priority := s.streams.replication(t.Name())
			inv.Partitions = append(inv.Partitions, wire.PartitionInfo{
				ID: uint32(p.ID()), Topic: t.Name(), Partition: p.Index(), Start: p.Start(), Next: p.HighWatermark(),
				MinTime: minTime, MaxTime: maxTime, Bytes: p.Bytes(), Mode: mode, Class: t.Config().Class,
				Acked: s.ackedOnly(p), Priority: priority,
			})
		}
	}
	return inv
}

// Generation implements link.Source. The epoch is part of it: a log that was cut
// back after a disk error goes on in a new one.
func (s *source) Generation() uint64 {
	return s.streams.generation.Load()<<16 | uint64(uint16(s.store.Identity().Epoch.Number))
}

func (s *source) partition(topic string, i int) *storage.Partition {
	t, ok := s.store.Topic(topic)
	if !ok {
		return nil
	}
	return t.Partition(i)
}

// Bounds implements link.Source.
func (s *source) Bounds(topic string, i int) (start, next int64) {
	p := s.partition(topic, i)
	if p == nil {
		return 0, 0
	}
	return p.Start(), p.HighWatermark()
}

// Read implements link.Source.
func (s *source) Read(dst []byte, topic string, i int, from int64, maxBytes int) ([]byte, int64, error) {
	p := s.partition(topic, i)
	if p == nil {
		return dst, from, fmt.Errorf("read %s/%d: %w", topic, i, link.ErrGone)
	}
	out, next, err := p.Read(dst, from, maxBytes)
	if errors.Is(err, storage.ErrOffsetOutOfRange) && from < p.Start() {
		return dst, from, fmt.Errorf("read %s/%d at %d: %w", topic, i, from, link.ErrGone)
	}
	return out, next, err
}

// Changed implements link.Source.
func (s *source) Changed() <-chan struct{} { return s.changed }

// Acked implements link.Source.
func (s *source) Acked(topic string, i int, epoch wire.ID, held uplink.RangeSet) {
	p := s.partition(topic, i)
	if p == nil {
		return
	}
	epochs := s.store.Epochs()
	for k := range epochs {
		if wire.ID(epochs[k].ID) != epoch {
			continue
		}
		from, to := span(epochs, k, p)
		// An acknowledgement of offsets that this epoch never had is of another log.
		s.noteAcked(p, held.Within(from, min(to, p.HighWatermark())))
		return
	}
}

func (s *source) noteAcked(p *storage.Partition, held uplink.RangeSet) {
	s.mu.Lock()
	a := s.acked[p.ID()]
	if a == nil {
		a = &ackedOf{}
		s.acked[p.ID()] = a
	}
	a.held.AddSet(held)
	off := max(a.off, p.Start())
	for _, r := range a.held {
		if r.From <= off {
			off = max(off, r.To)
		}
	}
	moved := off > a.off
	a.off = off
	if n := len(a.held); n > maxHeldRuns {
		a.held = slices.Delete(a.held, 0, n-maxHeldRuns)
	}
	s.mu.Unlock()
	if moved {
		p.Acked(off)
	}
	wake(s.settle)
}

// ackedOffset is how far the hub has a partition without a hole; from the
// partition's start while nothing was heard.
func (s *source) ackedOffset(p *storage.Partition) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	off := p.Start()
	if a := s.acked[p.ID()]; a != nil {
		off = max(off, a.off)
	}
	return off
}

// ackedOnly is ackedOffset, 0 while nothing was heard.
func (s *source) ackedOnly(p *storage.Partition) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if a := s.acked[p.ID()]; a != nil {
		return a.off
	}
	return 0
}

// isAcked: all of [from, to) is at the hub or declared there, by the hub's word. That the
// start has moved past it does not count: it moves when the range is given up.
func (s *source) isAcked(id storage.PartitionID, from, to int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.acked[id]
	return a != nil && a.held.Covers(from, to)
}

// Gaps implements link.Source.
func (s *source) Gaps() []link.GapProposal {
	epochs := s.store.Epochs()
	var out []link.GapProposal
	for _, l := range s.store.Losses() {
		p, ok := s.store.PartitionByID(l.Partition)
		if !ok || s.isAcked(l.Partition, l.From, l.To) {
			continue
		}
		reason := wire.GapDamaged
		switch l.Reason {
		case storage.LossEvicted:
			reason = wire.GapEvicted
		case storage.LossUnreadable:
			reason = wire.GapUnreadable
		}
		for k := range epochs {
			from, to := span(epochs, k, p)
			if from, to = max(from, l.From), min(to, l.To); from < to {
				out = append(out, link.GapProposal{
					Topic: l.Topic, Partition: l.Index, Epoch: epochs[k].ID,
					Gap: wire.Gap{Ranges: ranges.Of(from, to), Reason: reason, At: l.At.UnixMilli()},
				})
			}
		}
	}
	return out
}

// settleLosses forgets the losses that the hub has in its ledger.
func (s *source) settleLosses(ctx context.Context) {
	for _, l := range s.store.Losses() {
		if !s.isAcked(l.Partition, l.From, l.To) {
			continue
		}
		if err := s.store.SettleLoss(ctx, l); err != nil {
			s.logger.Warn("loss cannot be settled now", "topic", l.Topic, "from", l.From, "to", l.To, "err", err)
			return
		}
		s.logger.Info("loss is in the hub's ledger", "topic", l.Topic, "from", l.From, "to", l.To, "reason", l.Reason)
	}
}
