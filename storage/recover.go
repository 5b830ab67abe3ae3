package storage

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"tailrace/storage/internal/durable"
)

// recovered is what the log's directory said, after it was put in order.
type recovered struct {
	segs    []*segment
	indexes []*segmentIndex // per segment; the tail's is loaded whole
	next    map[PartitionID]int64
	lost    []lostRange // as damage entries say
	gaps    []lostRange // between batches of one segment
	badGaps []lostRange // of them those of a segment that cannot be read whole
	commit  uint64      // last one
	repairs []Repair
	twin    *twinState // the second copy of the state, nil when there is none
	recent  []byte     // operations since, as the log has them
	restore []byte     // operations that the log has lost
	// stateLost: entries are gone that may have told state.
	stateLost bool
	badTail   bool // the log ends in what cannot be read
	// Where the log ends with damage in what was durable: the index after it, and where the
	// partitions of the commit that began then had ended.
	tailNext uint64
	proven   map[PartitionID]int64
	cut      bool // durable or torn bytes were taken away: the epoch rises
}

func (r *recovered) report(l *classLog, rep Repair) {
	rep.Class = l.cfg.Name
	r.repairs = append(r.repairs, rep)
	l.lg.Warn("log repaired", "what", rep.What, "file", rep.File, "bytes", rep.Bytes, "entries", rep.Entries, "detail", rep.Detail)
}

// recover puts the directory in order and reads what is needed of it. After it
// the library can open the log, every segment is sound, and the last commit is
// whole. The state of the class is replayed on the way.
func (l *classLog) recover() (*recovered, error) {
	fsys := l.s.cfg.FS
	l.patience = &durable.Patience{Left: openRereads}
	defer func() { l.patience = nil }()
	for _, d := range []string{l.segDir, l.idxDir, l.quarDir} {
		if err := fsys.MkdirAll(d, dirPerm); err != nil {
			return nil, &DiskError{"create", d, err}
		}
	}
	if err := fsys.SyncDir(filepath.Dir(l.segDir)); err != nil {
		return nil, &DiskError{"fsync directory", filepath.Dir(l.segDir), err}
	}
	r := &recovered{next: make(map[PartitionID]int64)}
	ents, err := l.listWhole(func(rep Repair) { r.report(l, rep) })
	if err != nil {
		return nil, err
	}
	if err := l.listSegments(r, ents); err != nil {
		return nil, err
	}
	if r.twin, err = l.readTwin(r); err != nil {
		return nil, err
	}
	if err := l.cutTail(r); err != nil {
		return nil, err
	}
	l.catalog.load(l.idxDir)
	floor, err := l.closeHoles(r)
	if err != nil {
		return nil, err
	}
	for i := range r.segs {
		if err := l.loadSegment(r, i, floor); err != nil {
			return nil, err
		}
	}
	l.restoreState(r)
	if err := l.dropDeclared(r); err != nil {
		return nil, err
	}
	l.removeStrayIndexes(r)
	if err := l.catalog.settle(r.segs, r.indexes); err != nil {
		l.lg.Warn("write the catalog of segments", "err", err)
	}
	return r, nil
}

func (l *classLog) listSegments(r *recovered, ents []fs.DirEntry) error {
	var names []fs.DirEntry
	for _, e := range ents {
		if first, ok := segmentFirst(e.Name()); ok && !e.IsDir() {
			names = append(names, e)
			r.segs = append(r.segs, &segment{first: first, last: first - 1, path: filepath.Join(l.segDir, e.Name())})
		}
	}
	// Asking ten thousand files for their sizes is most of what opening costs.
	const each = 1024
	errs := make([]error, (len(names)+each-1)/each)
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() {
			for j := i * each; j < min((i+1)*each, len(names)); j++ {
				fi, err := names[j].Info()
				if err != nil {
					errs[i] = &DiskError{"stat", names[j].Name(), err}
					return
				}
				r.segs[j].size = fi.Size()
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	slices.SortFunc(r.segs, func(a, b *segment) int {
		if a.first < b.first {
			return -1
		}
		return 1
	})
	if len(r.segs) == 0 {
		r.segs = []*segment{{first: 1, path: filepath.Join(l.segDir, segmentName(1))}}
		return l.createSegment(r.segs[0])
	}
	return nil
}

// createSegment makes an empty segment file durable, as the library would
// without the fsyncs.
func (l *classLog) createSegment(seg *segment) error {
	if err := durable.WriteFile(l.s.cfg.FS, seg.path, nil, filePerm); err != nil {
		return &DiskError{"create", seg.path, err}
	}
	return nil
}

func (l *classLog) scan(seg *segment) (*segmentScan, []byte, error) {
	b, bad, err := l.salvage(seg.path, maxSegmentBytes+2*maxEntryBytes)
	if err != nil {
		return nil, nil, err
	}
	sc, err := scanSegment(b, seg.first)
	if err != nil {
		return nil, nil, fmt.Errorf("storage: %s: %w", seg.path, err)
	}
	sc.bad = bad
	seg.unreadable = seg.unreadable || len(bad) > 0
	return sc, b, nil
}

// commitEnd is the last complete commit in a scan.
type commitEnd struct {
	end    int64  // of its last entry
	next   uint64 // index after it
	commit uint64
	ok     bool // there is one
	began  bool // its first entry is in this segment, too
	rot    bool // valid entries follow damage behind it
	lost   bool // it ends with damage in what was durable, before the first entry of the commit
}

// lastComplete finds the last complete commit in a scan. A commit whose first entries
// are in the segment before counts as complete by its last; see spansHole. Commits up to
// durable are known to have been complete: what is left of them counts.
func lastComplete(sc *segmentScan, durable uint64) (c commitEnd) {
	broken, began := false, false
	for i := range sc.entries {
		e := &sc.entries[i]
		if e.damaged {
			broken = broken || e.lost > 0
			c.rot = true
			continue
		}
		known := e.env.commit <= durable
		if e.env.flags&flagFirst != 0 {
			if broken && !known { // it was written after all before it was durable
				c = commitEnd{end: e.pos, next: e.env.index, commit: e.env.commit, ok: true, began: true, rot: true, lost: true}
			}
			broken, began = false, true
		}
		if e.env.flags&flagLast != 0 && !broken || known {
			c = commitEnd{end: e.end, next: e.env.index + 1, commit: e.env.commit, ok: true, began: began || known}
			began = false
		}
	}
	return c
}

// spansHole tells whether the commit that ends in segment k began before a segment
// that is not there. The names of the segments that a commit begins are made durable
// together, at its end; until then a power cut may leave the later without the
// earlier, and nothing of the commit was acknowledged. before is the segment in
// front of the hole.
func (l *classLog) spansHole(r *recovered, k int, commit uint64) (before int, hole bool, err error) {
	for j := k - 1; j >= 0; j-- {
		sc, _, err := l.scan(r.segs[j])
		if err != nil {
			return 0, false, err
		}
		if next := r.segs[j+1].first; sc.next < next && sc.tornAt == sc.size {
			// Or it was cut short by something else. A side file is written only when
			// the names are durable.
			x, err := readSide(l.s.cfg.FS, l.sidePath(r.segs[j].first), false)
			return j, err != nil || x.first != r.segs[j].first || x.last+1 != next, nil
		}
		for i := range sc.entries {
			if e := &sc.entries[i]; !e.damaged && (e.env.commit != commit || e.env.flags&flagFirst != 0) {
				return 0, false, nil
			}
		}
	}
	return 0, false, nil
}

// prove notes what the entries of the commit that is about to be cut tell: it began when all
// before its first entry was durable, so each of its batches begins where its partition ended.
func (r *recovered) prove(sc *segmentScan, from int64) {
	for i := range sc.entries {
		e := &sc.entries[i]
		if e.damaged || e.pos < from || e.env.kind != entryData {
			continue
		}
		if b, ok := dataRef(&e.env, e.body); ok && r.proven[e.env.partition] == 0 {
			r.proven[e.env.partition] = b.base
		}
	}
}

// cutTail cuts the log behind its last complete commit: what a power cut left of
// the commit that was being written. A commit begins only after the one before it
// was fsynced, so nothing acknowledged is behind that point unless the disk lied
// or rotted; then a copy is kept.
func (l *classLog) cutTail(r *recovered) error {
	fsys := l.s.cfg.FS
	k, end, next := len(r.segs)-1, int64(0), uint64(0)
	rot, sure := false, uint64(0)
	var bad []durable.Range // of the segment that the log ends in
	if r.twin != nil {
		sure = r.twin.commit
	}
	for ; k >= 0; k-- {
		sc, _, err := l.scan(r.segs[k])
		if err != nil {
			return err
		}
		c := lastComplete(sc, sure)
		rot, bad = rot || c.rot, sc.bad
		r.badTail = r.badTail || len(bad) > 0 && bad[len(bad)-1].To > c.end
		if !c.ok {
			continue
		}
		if !c.began {
			before, hole, err := l.spansHole(r, k, c.commit)
			if err != nil {
				return err
			}
			if hole {
				k = before + 1
				continue
			}
		}
		end, next = c.end, c.next
		if c.lost {
			r.proven, r.tailNext = make(map[PartitionID]int64), next
			r.prove(sc, end)
		}
		break
	}
	if k < 0 { // not one complete commit
		k, end, next = 0, 0, r.segs[0].first
	}
	seg := r.segs[k]
	if after := r.segs[k+1:]; len(after) == 1 && after[0].size == 0 && after[0].first == next && seg.size == end {
		return nil // the roll was the last that happened
	}
	changed := false
	for _, s := range r.segs[k+1:] {
		rep := Repair{File: filepath.Base(s.path), What: "tail-cut", Bytes: s.size, Detail: "segment holds no complete commit"}
		if s.size > 0 {
			rep.Detail += kept(l.quarantine(s.path, "tail", true))
			r.cut = true
		} else if err := fsys.Remove(s.path); err != nil {
			return &DiskError{"remove", s.path, err}
		}
		r.report(l, rep)
		changed = true
	}
	if seg.size > end {
		if err := l.syncSegDir(); err != nil { // before the tail gets shorter, see cutToDurable
			return err
		}
		rep := Repair{File: filepath.Base(seg.path), What: "tail-cut", Bytes: seg.size - end}
		switch {
		case len(bad) > 0: // written anew: a second name keeps what cannot be read
			rep.Detail = "the disk refuses to read a part of the end" + kept(l.quarantine(seg.path, "unreadable", false))
			data, _, err := l.salvage(seg.path, end)
			if err == nil {
				err = durable.WriteFile(fsys, seg.path, data, filePerm)
			}
			if err != nil {
				return &DiskError{"cut", seg.path, err}
			}
		default:
			if rot {
				rep.Detail = "valid entries behind damage in the last commit" + kept(l.quarantine(seg.path, "tail", false))
			}
			if err := durable.CutFile(fsys, seg.path, end); err != nil {
				return &DiskError{"cut", seg.path, err}
			}
		}
		seg.size = end
		r.cut, changed = true, true
		r.report(l, rep)
	}
	r.segs = r.segs[:k+1]
	if changed {
		return l.syncSegDir()
	}
	return nil
}

func kept(path string) string {
	if path == "" {
		return ""
	}
	return ", kept as " + path
}

// loadSegment brings the i-th segment into r: by its side file when that is
// enough, else by reading it, replaying its state and repairing its damage.
func (l *classLog) loadSegment(r *recovered, i int, floor uint64) error {
	seg, tail := r.segs[i], i == len(r.segs)-1
	// The newest segment with entries is read in any case: it has the last
	// commit's number.
	newest := i == len(r.segs)-2 && r.segs[i+1].size == 0
	if x := r.indexes[i]; x != nil && x.last < floor && !newest {
		l.noteNext(r, x)
		return nil
	}
	sc, data, err := l.scan(seg)
	if err != nil {
		return err
	}
	want := max(sc.next, r.tailNext)
	if !tail {
		want = r.segs[i+1].first
	}
	if sc.damaged() || sc.tornAt < sc.size || sc.next != want {
		if sc, _, err = l.repairSegment(r, seg, sc, data, want); err != nil {
			return err
		}
		r.indexes[i] = nil
	}
	l.replay(r, seg, sc, floor)
	if x := r.indexes[i]; x != nil {
		l.noteNext(r, x)
		return nil
	}
	x := collectIndex(sc, seg.first)
	seg.last, seg.size, seg.arrival, r.indexes[i] = x.last, x.size, x.arrival, x
	for j := range x.parts {
		refs := x.parts[j].refs
		for k := 1; k < len(refs); k++ {
			if refs[k].base <= refs[k-1].next {
				continue
			}
			gap := lostRange{x.parts[j].id, refs[k-1].next, refs[k].base}
			if seg.unreadable {
				r.badGaps = append(r.badGaps, gap)
			} else {
				r.gaps = append(r.gaps, gap)
			}
		}
	}
	l.noteNext(r, x)
	if !tail {
		x.floor = min(floor, l.state.floor(x.last+1))
		if err := writeSide(l.s.cfg.FS, l.sidePath(seg.first), x); err != nil {
			l.lg.Warn("write side file", "err", err)
		}
		for j := range x.parts {
			x.parts[j].refs = nil
		}
	}
	return nil
}

func (l *classLog) noteNext(r *recovered, x *segmentIndex) {
	for j := range x.parts {
		p := &x.parts[j]
		r.next[p.id] = max(r.next[p.id], p.next)
	}
}

// replay applies the state operations of a segment and notes its damage entries. A
// segment that is read for another reason and lies below the floor gives no state:
// what deletes a key of it may lie in one that is not read.
func (l *classLog) replay(r *recovered, seg *segment, sc *segmentScan, floor uint64) {
	below := sc.next <= floor
	l.state.mu.Lock()
	defer l.state.mu.Unlock()
	var scratch []byte
	for i := range sc.entries {
		env := &sc.entries[i].env
		r.commit = max(r.commit, env.commit)
		switch env.kind {
		case entryState:
			if below {
				continue
			}
			ops, err := env.ops(&scratch)
			if err == nil {
				err = l.state.applyAll(env.index, ops)
			}
			if err != nil {
				l.lg.Error("state entry does not parse", "file", seg.path, "index", env.index, "err", err)
			}
			if r.twin != nil && env.commit > r.twin.commit {
				r.recent = twinOpsOf(r.recent, ops)
			}
		case entryDamage:
			_, ranges := parseDamage(env.payload)
			r.lost = append(r.lost, ranges...)
		}
	}
}

// repairSegment writes a damaged segment anew: every entry that is gone is
// replaced by a damage entry, so that the indexes stay consecutive and plain
// readers go on. A copy of the old file is kept in quarantine. want is the index
// that must follow the segment.
func (l *classLog) repairSegment(r *recovered, seg *segment, sc *segmentScan, data []byte, want uint64) (*segmentScan, []byte, error) {
	if err := l.loseState(r); err != nil {
		return nil, nil, err
	}
	aside := l.quarantine(seg.path, sc.asideAs(), false)
	next := make(map[PartitionID]int64, len(r.next))
	for id, n := range r.next {
		next[id] = n
	}
	var out []byte
	var prev envelope
	prev.commit, prev.time = r.commit, seg.arrival
	for i := range sc.entries { // damage that comes first is of the time of what follows
		if e := &sc.entries[i]; !e.damaged {
			prev.epoch, prev.commit, prev.time = e.env.epoch, e.env.commit, e.env.time
			break
		}
	}
	lost := 0
	gone := func(from, to int64, index, n uint64) {
		var ranges []lostRange
		if lr, ok := salvage(data[from:to], next); ok {
			ranges = append(ranges, lr)
			next[lr.partition] = lr.to
		}
		for j := range n {
			e := envelope{kind: entryDamage, flags: flagFirst | flagLast, epoch: prev.epoch, index: index + j, commit: prev.commit, time: prev.time}
			b := make([]byte, envelopeBytes, envelopeBytes+8+20*len(ranges))
			if j == 0 {
				b = damagePayload(b, to-from, ranges)
			} else {
				b = damagePayload(b, 0, nil)
			}
			sealEnvelope(b, &e, 0)
			out = appendFramed(out, b)
		}
		lost += int(n)
	}
	for i := range sc.entries {
		e := &sc.entries[i]
		if e.damaged {
			gone(e.pos, e.end, e.env.index, e.lost)
			continue
		}
		if e.env.kind == entryData {
			if x, ok := dataRef(&e.env, e.body); ok {
				next[e.env.partition] = max(next[e.env.partition], x.next)
			}
		}
		prev = e.env
		out = appendFramed(out, data[e.body:e.end])
	}
	if sc.next < want {
		gone(sc.tornAt, sc.size, sc.next, want-sc.next)
	} else if sc.next > want {
		return nil, nil, fmt.Errorf("storage: %s: entries up to %d, the next segment begins at %d", seg.path, sc.next-1, want)
	}
	if err := durable.WriteFile(l.s.cfg.FS, seg.path, out, filePerm); err != nil {
		return nil, nil, &DiskError{"rewrite", seg.path, err}
	}
	l.s.cfg.FS.Remove(l.sidePath(seg.first))
	r.cut = true
	detail := "damage within the log replaced by damage entries"
	if len(sc.bad) > 0 {
		detail = fmt.Sprintf("what the disk refuses to read, %d bytes, replaced by damage entries", badBytes(sc.bad))
	}
	r.report(l, Repair{File: filepath.Base(seg.path), What: sc.asideAs(), Bytes: sc.size - int64(len(out)), Entries: lost, Detail: detail + kept(aside)})
	seg.size = int64(len(out))
	fresh, err := scanSegment(out, seg.first)
	if err == nil && (fresh.damaged() || fresh.next != want || fresh.tornAt != fresh.size) {
		err = errors.New("internal error: repaired segment does not scan")
	}
	return fresh, out, err
}

// appendFramed appends an entry as the library does.
func appendFramed(dst, entry []byte) []byte {
	n := uint64(len(entry))
	for n >= 0x80 {
		dst = append(dst, byte(n)|0x80)
		n >>= 7
	}
	return append(append(dst, byte(n)), entry...)
}

// removeStrayIndexes removes side files of segments that are gone.
func (l *classLog) removeStrayIndexes(r *recovered) {
	sealed := r.segs[:len(r.segs)-1]
	for _, name := range l.catalog.sides {
		first, ok := segmentFirst(strings.TrimSuffix(name, ".idx"))
		if ok {
			_, ok = slices.BinarySearchFunc(sealed, first, func(s *segment, first uint64) int { return cmp.Compare(s.first, first) })
		}
		if !ok {
			l.s.cfg.FS.Remove(filepath.Join(l.idxDir, name))
		}
	}
}
