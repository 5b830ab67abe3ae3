package storage

import (
	"context"
	"encoding/binary"
	"slices"
	"time"
)

// lossKey: partition 4, reason 1, from 8. The value: to 8, noticed (ms) 8.
func lossKey(id PartitionID, reason LossReason, from int64) string {
	b := binary.BigEndian.AppendUint32(nil, uint32(id))
	b = append(b, byte(reason))
	return string(binary.BigEndian.AppendUint64(b, uint64(from)))
}

func lossValue(to, at int64) []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, uint64(to)), uint64(at))
}

// lossSettled is set in the reason of a row that is known elsewhere. It stays for as long as
// the log shows the gap: Open does not declare it again, and the range does not come back.
const lossSettled LossReason = 0x80

// lossRows are the rows of one class that are not settled, by partition, reason and offset.
func (s *Store) lossRows(l *classLog) []Loss {
	rows := slices.DeleteFunc(lossRowsOf(l.state), func(r Loss) bool { return r.Reason&lossSettled != 0 })
	for i := range rows {
		if p, ok := s.PartitionByID(rows[i].Partition); ok {
			rows[i].Topic, rows[i].Index = p.topic.name, p.index
		}
	}
	return rows
}

// lossRowsOf are all rows that a state holds, also those that are settled, without the names of
// the topics.
func lossRowsOf(m *stateMap) (rows []Loss) {
	for _, k := range m.keys(kindLoss) {
		v, ok := m.get(kindLoss, k)
		if !ok || len(k) != 13 || len(v) != 16 {
			continue
		}
		rows = append(rows, Loss{
			Partition: PartitionID(binary.BigEndian.Uint32([]byte(k))), Reason: LossReason(k[4]),
			From: int64(binary.BigEndian.Uint64([]byte(k[5:]))), To: int64(binary.BigEndian.Uint64(v)),
			At: time.UnixMilli(int64(binary.BigEndian.Uint64(v[8:]))),
		})
	}
	return rows
}

// Losses are the rows of the store's loss ledger: ranges that were acknowledged
// here and cannot be read any more. Neighbouring ranges of one reason are one row.
func (s *Store) Losses() []Loss {
	var rows []Loss
	for _, l := range s.logs {
		var fresh []Loss // found by a reader a moment ago; asked for first, since each becomes a row
		for _, p := range l.partitions() {
			p.mu.RLock()
			for _, h := range p.fresh {
				fresh = append(fresh, Loss{Partition: p.id, Topic: p.topic.name, Index: p.index, From: h.from, To: h.to, Reason: LossDamaged, At: s.cfg.Now()})
			}
			p.mu.RUnlock()
		}
		durable := s.lossRows(l)
		rows = append(rows, durable...)
		for _, f := range fresh {
			if !slices.ContainsFunc(durable, func(r Loss) bool { return r.Partition == f.Partition && r.From <= f.From && r.To >= f.To }) {
				rows = append(rows, f)
			}
		}
	}
	return rows
}

// SettleLoss ends a row once it is known elsewhere (the hub has declared it): Losses does not
// name it any more. A row that has grown since is kept from l.To on.
func (s *Store) SettleLoss(ctx context.Context, l Loss) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	p, ok := s.PartitionByID(l.Partition)
	if !ok {
		return nil
	}
	// On the committer's goroutine no row grows meanwhile.
	return p.log.do(func() error {
		key := lossKey(l.Partition, l.Reason, l.From)
		v, ok := p.log.state.get(kindLoss, key)
		if !ok || len(v) != 16 {
			return nil
		}
		ops := appendOp(nil, kindLoss, opDelete, key, nil)
		to := int64(binary.BigEndian.Uint64(v))
		if settled := min(to, l.To); l.Reason != LossEvicted && max(l.From, p.Start()) < settled {
			ops = p.log.appendLoss(ops, p, l.From, settled, l.Reason|lossSettled)
		}
		if to > l.To {
			ops = appendOp(ops, kindLoss, opSet, lossKey(l.Partition, l.Reason, l.To), lossValue(to, int64(binary.BigEndian.Uint64(v[8:]))))
		}
		return p.log.c.commitOps(ops)
	})
}

// appendLoss adds the operation that declares [from, to) of p lost, as part of
// the row that it continues when there is one.
func (l *classLog) appendLoss(ops []byte, p *Partition, from, to int64, reason LossReason) []byte {
	at := l.nowMS()
	l.state.mu.RLock()
	for k, v := range l.state.kinds[kindLoss] {
		if len(k) != 13 || len(v.value) != 16 || PartitionID(binary.BigEndian.Uint32([]byte(k))) != p.id || LossReason(k[4]) != reason {
			continue
		}
		f, t := int64(binary.BigEndian.Uint64([]byte(k[5:]))), int64(binary.BigEndian.Uint64(v.value))
		if f <= from && from <= t {
			from, to = f, max(t, to)
			at = int64(binary.BigEndian.Uint64(v.value[8:]))
			break
		}
	}
	l.state.mu.RUnlock()
	return appendOp(ops, kindLoss, opSet, lossKey(p.id, reason, from), lossValue(to, at))
}

// damaged is called by a reader that met an entry which the disk no longer holds
// as it was written. Reads step over it from now on; the range is declared, and the
// segment repaired. Where that fails now, its side file goes, so that the next Open
// does it.
func (l *classLog) damaged(p *Partition, seg *segment, r ref, cause error) {
	if !p.addHole(r) {
		return
	}
	l.lg.Error("damaged entry; its records are lost here", "topic", p.topic.name, "partition", p.index,
		"from", r.base, "to", r.next, "file", seg.path, "position", r.pos, "err", cause)
	l.stats.damagedRecords(r.next - r.base)
	l.post(func() {
		l.c.declareAndMend(p, seg, r)
	})
}

// declareAndMend makes the row durable and has the segment repaired. A disk that takes no
// row now may take it later: then it is tried again.
func (c *committer) declareAndMend(p *Partition, seg *segment, r ref) {
	l := c.l
	if err := c.declareHole(p, r); err != nil {
		l.lg.Error("declare damage; tried again", "err", err)
		l.undeclared = append(l.undeclared, func() { c.declareAndMend(p, seg, r) })
		return
	}
	if seg.clean == nil {
		c.healOrLeave(seg)
		return
	}
	l.quarantine(seg.path, "rot", false)
	l.s.cfg.FS.Remove(l.sideOf(seg))
}

// declareAgain tries again what could not be declared when it was found, up to the first that
// still cannot: each that fails has the log opened anew, and fails those who wait for a commit.
func (c *committer) declareAgain() {
	again := c.l.undeclared
	c.l.undeclared = nil
	for i, f := range again {
		if f(); len(c.l.undeclared) > 0 {
			c.l.undeclared = append(c.l.undeclared, again[i+1:]...)
			return
		}
	}
}

// addHole makes readers step over a batch, and tells whether they did not yet.
func (p *Partition) addHole(r ref) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if inHole(p.holes, r.base) || r.next <= p.start {
		return false
	}
	// A copy: readers may hold the old slice.
	p.holes = append(append(make([]hole, 0, len(p.holes)+1), p.holes...), hole{r.base, r.next})
	p.fresh = append(p.fresh, hole{r.base, r.next})
	return true
}

func (p *Partition) hasHole(off int64) bool {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return inHole(p.holes, off)
}

// declareHole makes the row of the ledger durable, unless it is.
func (c *committer) declareHole(p *Partition, r ref) error {
	p.mu.RLock()
	fresh, from := slices.Contains(p.fresh, hole{r.base, r.next}), max(r.base, p.start)
	p.mu.RUnlock()
	if !fresh {
		return nil
	}
	if from < r.next {
		if err := c.commitOps(c.l.appendLoss(nil, p, from, r.next, LossDamaged)); err != nil {
			return err
		}
	}
	p.forget(r)
	return nil
}
