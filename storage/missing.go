package storage

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"tailrace/storage/internal/durable"
)

// A file of the log that is gone leaves a hole in the run of indexes. What lies before it
// counts as before: as with rot, damage entries take the place of what is missing, in
// segments that are made anew for it, and the gaps between the batches on both sides of the
// hole are declared.

// maxFilled bounds what is written to close one hole. No entry took fewer bytes than a damage
// entry does, so a larger hole was not in this log, or is most of it.
const maxFilled = 1 << 30

// closeHoles makes the segments one consecutive run and returns the state floor. A segment
// with a fitting side file is believed; others are read. What overlaps the segment behind
// it is what a truncation has left (the library removes files without making that durable),
// and is set aside with all before it.
func (l *classLog) closeHoles(r *recovered) (floor uint64, err error) {
	r.indexes = make([]*segmentIndex, len(r.segs))
	for i := len(r.segs) - 2; i >= 0; i-- {
		seg, next := r.segs[i], r.segs[i+1].first
		x, err := l.summary(seg)
		if err == nil && x.first == seg.first && x.last+1 == next {
			floor = max(floor, x.floor)
			if x.size == seg.size {
				seg.last, seg.arrival, r.indexes[i] = x.last, x.arrival, x
			} // else shorter or longer than it was: loadSegment repairs it
			continue
		}
		sc, _, err := l.scan(seg)
		if err != nil {
			return 0, err
		}
		// As many as there were in what is torn off its end: loadSegment repairs that.
		from := sc.next + uint64(sc.size-sc.tornAt)/(1+envelopeBytes)
		if sc.next <= next && from >= next {
			continue
		}
		if sc.next <= next && next-from <= maxFilled/(1+envelopeBytes) {
			if err := l.fillHole(r, i, sc, from, next); err != nil {
				return 0, err
			}
			continue
		}
		return floor, l.setAside(r, i, floor, fmt.Sprintf("entries %d to %d are missing after it", sc.next, next-1))
	}
	return floor, nil
}

// setAside takes the segments up to the i-th out of the log. Their records do not count any
// more, but the state is needed: topics, epochs, sessions.
func (l *classLog) setAside(r *recovered, i int, floor uint64, why string) error {
	for _, s := range r.segs[:i+1] {
		if err := l.rescueState(r, s, floor); err != nil {
			return err
		}
	}
	if err := l.loseState(r); err != nil {
		return err
	}
	for _, s := range r.segs[:i+1] {
		r.report(l, Repair{File: filepath.Base(s.path), What: "quarantined", Bytes: s.size, Detail: why + kept(l.quarantine(s.path, "stray", true))})
		l.s.cfg.FS.Remove(l.sidePath(s.first))
	}
	r.cut = true
	r.segs, r.indexes = r.segs[i+1:], r.indexes[i+1:]
	return l.syncSegDir()
}

// rescueState replays the state in a segment that is about to be set aside. Open
// writes it forward, since no segment of the log tells it any more.
func (l *classLog) rescueState(r *recovered, seg *segment, floor uint64) error {
	if x, err := readSide(l.s.cfg.FS, l.sidePath(seg.first), false); err == nil && x.first == seg.first && x.last < floor {
		return nil
	}
	sc, _, err := l.scan(seg)
	if err != nil {
		return err
	}
	l.replay(r, seg, sc, floor)
	x := collectIndex(sc, seg.first)
	for j := range x.parts { // so that their offsets are not given out again
		r.lost = append(r.lost, lostRange{x.parts[j].id, x.parts[j].base, x.parts[j].next})
	}
	return nil
}

// fillHole puts segments of damage entries with the indexes [from, next) behind the i-th
// segment, whose content is sc, or in its place when nothing is left in it.
func (l *classLog) fillHole(r *recovered, i int, sc *segmentScan, from, next uint64) error {
	if err := l.loseState(r); err != nil {
		return err
	}
	before := r.segs[i]
	model, err := l.modelFor(r, i, sc)
	if err != nil {
		return err
	}
	at := i + 1
	detail := fmt.Sprintf("entries %d to %d are gone with their file; damage entries take their place", from, next-1)
	if from == before.first { // it was there, and nothing is left in it
		if before.size > 0 {
			detail += kept(l.quarantine(before.path, "rot", false))
		}
		l.s.cfg.FS.Remove(l.sidePath(before.first))
		r.segs, r.indexes = slices.Delete(r.segs, i, i+1), slices.Delete(r.indexes, i, i+1)
		at = i
	}
	ranges := l.missingRanges(from, next)
	each := uint64(max(l.cfg.SegmentBytes/(1+envelopeBytes), 1))
	for first := from; first < next; first, ranges = first+each, nil {
		n := min(each, next-first)
		seg := &segment{first: first, last: first - 1, path: joinSegment(l.segDir, first)}
		data := damageSegment(model, first, n, ranges)
		seg.size = int64(len(data))
		if err := durable.WriteFile(l.s.cfg.FS, seg.path, data, filePerm); err != nil {
			return &DiskError{"write", seg.path, err}
		}
		l.s.cfg.FS.Remove(l.sidePath(first)) // of the one that is gone
		r.segs, r.indexes = slices.Insert(r.segs, at, seg), slices.Insert(r.indexes, at, nil)
		at++
		r.report(l, Repair{File: filepath.Base(seg.path), What: "missing", Entries: int(n), Detail: detail})
	}
	r.cut = true
	return nil
}

// modelFor is a damage entry of the time of what comes before a hole, or after it.
func (l *classLog) modelFor(r *recovered, i int, sc *segmentScan) (envelope, error) {
	model := envelope{kind: entryDamage, flags: flagFirst | flagLast}
	found := false
	take := func(sc *segmentScan, last bool) {
		for j := range sc.entries {
			if e := &sc.entries[j]; !e.damaged && (last || !found) {
				model.epoch, model.commit, model.time, found = e.env.epoch, e.env.commit, e.env.time, true
			}
		}
	}
	take(sc, true)
	if found {
		return model, nil
	}
	after, _, err := l.scan(r.segs[i+1])
	if err == nil {
		take(after, false)
	}
	return model, err
}

// missingRanges are the offsets in segments that are gone, as far as their side files or the
// catalog tell. Between batches that are there the gaps tell as much; behind a partition's
// last one, these.
func (l *classLog) missingRanges(from, next uint64) (ranges []lostRange) {
	for _, name := range l.catalog.sides {
		first, ok := segmentFirst(strings.TrimSuffix(name, ".idx"))
		if !ok || first < from || first >= next {
			continue
		}
		x := l.catalog.entries[first]
		if x == nil {
			var err error
			if x, err = readSide(l.s.cfg.FS, l.sidePath(first), false); err != nil {
				continue
			}
		}
		if x.first != first || x.last >= next {
			continue
		}
		for j := range x.parts {
			ranges = append(ranges, lostRange{x.parts[j].id, x.parts[j].base, x.parts[j].next})
		}
	}
	return ranges
}

// damageSegment is a segment of n damage entries, the first of them with the ranges.
func damageSegment(model envelope, first, n uint64, ranges []lostRange) (out []byte) {
	for i := range n {
		model.index = first + i
		b := make([]byte, envelopeBytes, envelopeBytes+8+20*len(ranges))
		if len(ranges) > 0 {
			b = damagePayload(b, 0, ranges)
			ranges = nil
		}
		sealEnvelope(b, &model, 0)
		out = appendFramed(out, b)
	}
	return out
}

// inClean tells whether a file of a compacted partition counts, or was replaced.
func (l *classLog) inClean(seg *segment) bool { return slices.Contains(l.cleanSegments(), seg) }

// stillThere tells whether the directory is the one that the log was opened in: a card that
// was taken out, or unmounted, leaves a directory in which every file is missing.
func (l *classLog) stillThere() error {
	for _, path := range []string{filepath.Join(l.s.cfg.Dir, "IDENTITY"), l.tailSegment().path} {
		if _, err := l.s.cfg.FS.Stat(path); err != nil {
			return &DiskError{"stat", path, fmt.Errorf("%w: %w", errDiskGone, err)}
		}
	}
	return nil
}

// scanLive is scan for a segment of the open log, on the committer: of a file that is gone,
// while the others are there, nothing is left.
func (l *classLog) scanLive(seg *segment) (*segmentScan, []byte, error) {
	sc, data, err := l.scan(seg)
	if !errors.Is(err, fs.ErrNotExist) {
		return sc, data, err
	}
	if err := l.stillThere(); err != nil {
		return nil, nil, err
	}
	data = make([]byte, seg.size)
	sc, err = scanSegment(data, seg.first)
	if sc != nil {
		sc.gone = true
	}
	return sc, data, err
}

// indexLive is index on the committer: what is missing is declared when it returns, or will
// be. That of a segment which is gone with its side file is made of what the partitions know:
// a range for each, at no place.
func (l *classLog) indexLive(seg *segment) (*segmentIndex, error) {
	if x := l.side.get(seg); x != nil {
		return x, nil
	}
	x, missing, unreadable, err := l.readIndex(seg)
	if err == nil {
		for _, m := range missing {
			if !unreadable {
				l.damaged(m.p, seg, m.ref, errDamaged)
			} else if err := l.c.declareUnreadable(m.p, m.ref); err != nil {
				return nil, err
			}
		}
		l.side.put(seg, x)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return x, err
	}
	if err := l.stillThere(); err != nil {
		return nil, err
	}
	x = &segmentIndex{first: seg.first, last: seg.last, size: seg.size, arrival: seg.arrival}
	rows := lossRowsOf(l.state)
	for _, p := range l.partitions() {
		p.mu.RLock()
		i := slices.IndexFunc(p.spans, func(s span) bool { return s.seg == seg })
		var whole lostRange
		if i >= 0 {
			whole = lostRange{p.id, p.spans[i].base, p.spans[i].next}
		}
		p.mu.RUnlock()
		var refs []ref
		for _, r := range subtractRows(whole, rows) {
			refs = append(refs, ref{base: r.from, next: r.to, min: unknownTime, max: unknownTime})
		}
		if len(refs) > 0 {
			x.parts = append(x.parts, newPartIndex(p.id, refs))
		}
	}
	x.sortParts()
	return x, nil
}

// subtractRows is what no row has of a range.
func subtractRows(r lostRange, rows []Loss) (left []lostRange) {
next:
	for r.from < r.to {
		end := r.to
		for _, row := range rows {
			switch {
			case row.Partition != r.partition || row.To <= r.from || row.From >= end:
			case row.From <= r.from:
				r.from = row.To
				continue next
			default:
				end = row.From
			}
		}
		left = append(left, lostRange{r.partition, r.from, end})
		r.from = end
	}
	return left
}
