package storage

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"tailrace/storage/internal/durable"
)

// mend returns the bytes of a segment with a damage entry in the place of every entry
// that is gone, and of every one that drop names, in exactly as many bytes: nothing that
// is sound moves, so that indexes and readers of the file stay right. last is the index
// of the segment's last entry; gone tells which ranges of offsets lay in [from, to).
func mend(data []byte, sc *segmentScan, last uint64, drop func(*scanned) bool, gone func(from, to int64) []lostRange) ([]byte, error) {
	out := append(make([]byte, 0, len(data)), data...)
	model := envelope{kind: entryDamage, flags: flagFirst | flagLast}
	for i := range sc.entries { // damage that comes first is of the time of what follows
		if e := &sc.entries[i]; !e.damaged {
			model.epoch, model.commit, model.time = e.env.epoch, e.env.commit, e.env.time
			break
		}
	}
	fill := func(from, to int64, index, n uint64) error {
		m := model
		m.index = index
		b, ok := damageEntries(m, n, to-from, gone(from, to))
		if !ok {
			return fmt.Errorf("%d entries do not fit into %d bytes", n, to-from)
		}
		copy(out[from:], b)
		return nil
	}
	for i := range sc.entries {
		e := &sc.entries[i]
		switch {
		case e.damaged && e.lost > 0:
			if err := fill(e.pos, e.end, e.env.index, e.lost); err != nil {
				return nil, err
			}
		case e.damaged:
			if e.end > e.pos {
				return nil, errors.New("bytes between entries")
			}
		default:
			n := uint64(e.end - e.body)
			if int64(uvarintLen(n)) == e.body-e.pos { // the length before an entry may have been damaged
				binary.PutUvarint(out[e.pos:e.body], n)
			}
			model.epoch, model.commit, model.time = e.env.epoch, e.env.commit, e.env.time
			if drop(e) {
				if err := fill(e.pos, e.end, e.env.index, 1); err != nil {
					return nil, err
				}
			}
		}
	}
	if sc.next <= last {
		if err := fill(sc.tornAt, sc.size, sc.next, last+1-sc.next); err != nil {
			return nil, err
		}
	}
	first := last + 1
	if len(sc.entries) > 0 {
		first = sc.entries[0].env.index
	}
	again, err := scanSegment(out, min(first, sc.next))
	if err == nil && (again.damaged() || again.tornAt != again.size || again.next != last+1) {
		err = errors.New("the mended segment does not scan")
	}
	return out, err
}

// damageEntries are n entries in exactly size bytes, framed, the last with the ranges as
// far as they have room.
func damageEntries(e envelope, n uint64, size int64, ranges []lostRange) (out []byte, ok bool) {
	const least = 1 + envelopeBytes
	one := func(framed int64, lost int64, ranges []lostRange) bool {
		body := framed - 1
		for body > 0 && int64(uvarintLen(uint64(body)))+body > framed {
			body--
		}
		if body < envelopeBytes || int64(uvarintLen(uint64(body)))+body != framed {
			return false
		}
		b := make([]byte, envelopeBytes, body)
		if body >= envelopeBytes+8 {
			ranges = ranges[:min(int64(len(ranges)), (body-envelopeBytes-8)/20)]
			b = damagePayload(b, lost, ranges)
		}
		b = append(b, make([]byte, body-int64(len(b)))...)
		sealEnvelope(b, &e, 0)
		out = appendFramed(out, b)
		e.index++
		return true
	}
	if n == 0 || n > uint64(size/least) {
		return nil, false
	}
	rest := size
	for i := range n - 1 {
		framed := int64(least)
		if left := n - 1 - i; left == 1 && uvarintGap(rest-framed) {
			framed++
		}
		if !one(framed, 0, nil) {
			return nil, false
		}
		rest -= framed
	}
	return out, one(rest, size, ranges)
}

// uvarintGap tells that no entry takes exactly so many bytes with its length.
func uvarintGap(framed int64) bool {
	for w := int64(1); w < 5; w++ {
		if body := framed - w; body > 0 && int64(uvarintLen(uint64(body))) == w {
			return false
		}
	}
	return true
}

// heal repairs a sealed segment while the store is open: what the disk has lost of it is
// declared, state that it told is written forward, a copy is kept, and damage entries
// take the place of what is gone and of what is declared lost. It runs on the committer.
func (c *committer) heal(seg *segment) error {
	l := c.l
	if seg == l.tailSegment() {
		if err := c.roll(); err != nil {
			return err
		}
	}
	if !l.inLog(seg) {
		return nil // given up meanwhile
	}
	x, err := l.indexLive(seg)
	if err != nil {
		return err
	}
	sc, data, err := l.scanLive(seg)
	if err != nil {
		return err
	}
	if int64(len(data)) != seg.size {
		return fmt.Errorf("%d bytes, there were %d", len(data), seg.size) // the next Open repairs that
	}
	sound := make(map[int64]bool)
	lost := int64(0) // entries that are gone; in the end those that are no batches
	for i := range sc.entries {
		e := &sc.entries[i]
		if e.damaged {
			lost += int64(e.lost)
			continue
		}
		sound[e.body] = true
	}
	lost += int64(seg.last + 1 - min(sc.next, seg.last+1))
	type gap struct {
		p *Partition
		r ref
	}
	var gaps []gap
	for i := range x.parts {
		id := x.parts[i].id
		p, known := l.s.PartitionByID(id)
		for _, r := range x.parts[i].refs {
			if sound[r.pos] {
				continue
			}
			lost--
			if known {
				gaps = append(gaps, gap{p, r})
			}
		}
	}
	for _, g := range gaps {
		if inBad(sc.bad, g.r.pos, g.r.pos+int64(g.r.size)) {
			if err := c.declareUnreadable(g.p, g.r); err != nil {
				return err
			}
			continue
		}
		if g.p.addHole(g.r) {
			l.stats.damagedRecords(g.r.next - g.r.base)
			l.lg.Error("damaged entry; its records are lost here", "topic", g.p.topic.name, "partition", g.p.index,
				"from", g.r.base, "to", g.r.next, "file", seg.path, "position", g.r.pos)
		}
		if err := c.declareHole(g.p, g.r); err != nil {
			return err
		}
	}
	if lost > 0 || sc.gone {
		if err := c.forward(seg.last); err != nil {
			return err
		}
		if err := l.twin.lose(); err != nil {
			return err
		}
	}
	gone := func(from, to int64) (ranges []lostRange) {
		for i := range x.parts {
			for _, r := range x.parts[i].refs {
				if r.pos >= from && r.pos < to {
					ranges = append(ranges, lostRange{x.parts[i].id, r.base, r.next})
				}
			}
		}
		return ranges
	}
	drop := func(e *scanned) bool {
		if e.env.kind != entryData {
			return false
		}
		p, ok := l.s.PartitionByID(e.env.partition)
		r, isBatch := dataRef(&e.env, e.body)
		return ok && isBatch && p.hasHole(r.base)
	}
	out, err := mend(data, sc, seg.last, drop, gone)
	if err != nil {
		return err
	}
	if bytes.Equal(out, data) && len(sc.bad) == 0 {
		return nil
	}
	aside := l.quarantine(seg.path, sc.asideAs(), false)
	if err := durable.WriteFile(l.s.cfg.FS, seg.path, out, filePerm); err != nil {
		return &DiskError{"rewrite", seg.path, err}
	}
	l.files.drop(seg.path)
	fresh, err := scanSegment(out, seg.first)
	if err != nil {
		return err
	}
	y := collectIndex(fresh, seg.first)
	y.floor, y.arrival = x.floor, seg.arrival
	l.side.drop(seg)
	if err := writeSide(l.s.cfg.FS, l.sidePath(seg.first), y); err != nil {
		l.lg.Warn("write side file; it is rebuilt when needed", "err", err)
	}
	if err := l.catalog.add(y, l.frontIndex(), len(l.segs)); err != nil {
		l.lg.Warn("add to the catalog of segments; it is written anew at the next start", "err", err)
	}
	l.stats.healed()
	l.lg.Warn("segment repaired", "file", filepath.Base(seg.path), "batches", len(gaps), "other_entries", lost, "detail", "damage entries stand in the place of what is gone"+kept(aside))
	return nil
}

// healOrLeave is heal; what cannot be repaired now is left to the next Open, which reads
// a segment that has no side file.
func (c *committer) healOrLeave(seg *segment) {
	l := c.l
	err := c.ready()
	if err == nil {
		err = c.heal(seg)
	}
	if err == nil {
		return
	}
	l.lg.Error("a damaged segment cannot be repaired now; the next start does it", "file", seg.path, "err", err)
	l.quarantine(seg.path, "rot", false)
	l.s.cfg.FS.Remove(l.sidePath(seg.first))
	if c.wal == nil && c.broken == nil { // a roll that failed
		c.fail(err)
	}
}

// inLog tells whether a segment is one of the log's, and not the tail.
func (l *classLog) inLog(seg *segment) bool {
	l.segMu.RLock()
	defer l.segMu.RUnlock()
	for _, s := range l.segs[:len(l.segs)-1] {
		if s == seg {
			return true
		}
	}
	return false
}

// mendTail repairs the tail of a log that is closed after a failed write. Readers meet and
// declare what records it has lost, or the next Open does.
func (l *classLog) mendTail(tail *segment, sc *segmentScan, data []byte) error {
	if int64(len(data)) != tail.size {
		return fmt.Errorf("%d bytes, there were %d", len(data), tail.size)
	}
	out, err := mend(data, sc, tail.last, func(*scanned) bool { return false }, func(from, to int64) (ranges []lostRange) {
		for _, p := range l.partitions() {
			p.mu.RLock()
			for i := range p.tail {
				if r := &p.tail[i]; r.pos >= from && r.pos < to {
					ranges = append(ranges, lostRange{p.id, r.base, r.next})
				}
			}
			p.mu.RUnlock()
		}
		return ranges
	})
	if err != nil {
		return err
	}
	aside := l.quarantine(tail.path, sc.asideAs(), false)
	if err := durable.WriteFile(l.s.cfg.FS, tail.path, out, filePerm); err != nil {
		return err
	}
	l.files.drop(tail.path)
	l.stats.healed()
	l.lg.Warn("segment repaired", "file", filepath.Base(tail.path), "detail", "damage entries stand in the place of what is gone"+kept(aside))
	l.post(func() { // state that stood there
		err := l.c.ready()
		if err == nil {
			err = l.c.forward(tail.last)
		}
		if err == nil {
			err = l.twin.lose()
		}
		if err != nil {
			l.lg.Error("state that the log has lost is not written again", "err", err)
		}
	})
	return nil
}

// dropDeclared keeps what was declared lost from coming back: a range that a reader could
// not read has a row in the ledger, perhaps in the hub's by now, and damage entries take
// the place of its batches although they are found whole again (at another place, or
// since the disk has thought better of it).
func (l *classLog) dropDeclared(r *recovered) error {
	rows := make(map[PartitionID][]hole)
	for _, row := range lossRowsOf(l.state) {
		if row.Reason&^lossSettled != LossEvicted {
			rows[row.Partition] = append(rows[row.Partition], hole{row.From, row.To})
		}
	}
	if len(rows) == 0 {
		return nil
	}
	declared := func(id PartitionID, from, to int64) bool {
		for _, h := range rows[id] {
			if h.from < to && from < h.to {
				return true
			}
		}
		return false
	}
	for i, seg := range r.segs {
		x := r.indexes[i]
		if !slices.ContainsFunc(x.parts, func(p partIndex) bool { return declared(p.id, p.base, p.next) }) {
			continue
		}
		sc, data, err := l.scan(seg)
		if err != nil {
			return err
		}
		back := 0
		drop := func(e *scanned) bool {
			if e.env.kind != entryData {
				return false
			}
			b, ok := dataRef(&e.env, e.body)
			return ok && declared(e.env.partition, b.base, b.next)
		}
		for j := range sc.entries {
			if e := &sc.entries[j]; !e.damaged && drop(e) {
				back++
			}
		}
		if back == 0 {
			continue
		}
		out, err := mend(data, sc, x.last, drop, func(int64, int64) []lostRange { return nil })
		if err != nil {
			return fmt.Errorf("storage: %s: %w", seg.path, err)
		}
		aside := l.quarantine(seg.path, "declared", false)
		if err := durable.WriteFile(l.s.cfg.FS, seg.path, out, filePerm); err != nil {
			return &DiskError{"rewrite", seg.path, err}
		}
		fresh, err := scanSegment(out, seg.first)
		if err != nil {
			return err
		}
		y := collectIndex(fresh, seg.first)
		y.floor = x.floor
		if r.indexes[i] = y; i < len(r.segs)-1 {
			if err := writeSide(l.s.cfg.FS, l.sidePath(seg.first), y); err != nil {
				l.lg.Warn("write side file", "err", err)
			}
			for j := range y.parts {
				y.parts[j].refs = nil
			}
		}
		r.report(l, Repair{File: filepath.Base(seg.path), What: "declared", Entries: back,
			Detail: "batches that were declared lost were found whole; they stay lost" + kept(aside)})
	}
	return nil
}
