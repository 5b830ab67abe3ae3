package storage

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/fxamacker/cbor/v2"

	"tailrace/storage/record"
)

const (
	cleanFileBytes = 16 << 20 // a file of a compacted partition is closed when it has so much
	cleanSyncBytes = 2 << 20  // and flushed each time it grew by so much: commits beside it do not wait for all

	lastTombstone = 10 * 60_000 // ms until it is asked again whether the partition's last record may go
)

// cleanFile is a file with what a compaction has left of a range of a partition, as
// the state names it.
type cleanFile struct {
	Num     uint64 `cbor:"1,keyasint"`
	Size    int64  `cbor:"2,keyasint"`
	Entries uint64 `cbor:"3,keyasint"`
	Base    int64  `cbor:"4,keyasint"`
	Next    int64  `cbor:"5,keyasint"`
	Min     int64  `cbor:"6,keyasint"` // times, as of a ref
	Max     int64  `cbor:"7,keyasint"`
	Arrival int64  `cbor:"8,keyasint"`
	Bytes   int64  `cbor:"9,keyasint"`
	Horizon int64  `cbor:"10,keyasint"` // when the first tombstones in it may go, ms; 0: there are none

	p *Partition
}

// cleanState is the value of kindClean: everything of the partition below To is in
// the files, in their order; the log counts from To on.
type cleanState struct {
	To    int64       `cbor:"1,keyasint"`
	Files []cleanFile `cbor:"2,keyasint"`
}

func (l *classLog) cleanPath(id PartitionID, num uint64) string {
	return filepath.Join(l.cleanDir, fmt.Sprintf("%d-%020d", uint32(id), num))
}

// segmentOf describes a file to those who read segments.
func (l *classLog) segmentOf(p *Partition, f *cleanFile) *segment {
	f.p = p
	return &segment{first: 1, last: f.Entries, size: f.Size, arrival: f.Arrival, path: l.cleanPath(p.id, f.Num), clean: f}
}

func (f *cleanFile) span(seg *segment) span {
	return span{seg: seg, base: f.Base, next: f.Next, min: f.Min, max: f.Max, bytes: f.Bytes}
}

// loadClean gives a partition the files that the state names, and returns the ranges
// of those that are gone. Called by Open, before the partition gets what the log has.
func (l *classLog) loadClean(p *Partition) (lost []lostRange) {
	v, ok := l.state.get(kindClean, string(p.startKey()))
	if !ok {
		return nil
	}
	var st cleanState
	if err := cbor.Unmarshal(v, &st); err != nil {
		l.lg.Error("state of a compacted partition does not parse", "topic", p.topic.name, "partition", p.index, "err", err)
		return nil
	}
	p.cleanTo, p.cleanListed = st.To, len(st.Files)
	for i := range st.Files {
		f := &st.Files[i]
		l.cleanNum = max(l.cleanNum, f.Num)
		seg := l.segmentOf(p, f)
		fi, err := l.s.cfg.FS.Stat(seg.path)
		if err != nil {
			l.lg.Error("file of a compacted partition cannot be read", "topic", p.topic.name, "partition", p.index, "file", seg.path, "from", f.Base, "to", f.Next, "err", err)
			lost = append(lost, lostRange{p.id, f.Base, f.Next})
			continue
		}
		if fi.Size() != f.Size { // what is missing is found and declared when it is read
			l.lg.Error("file of a compacted partition has another size", "file", seg.path, "bytes", fi.Size(), "expected", f.Size)
		}
		l.cleanBytes.Add(f.Size)
		p.addSpanOf(f.span(seg))
		p.bytes += f.Bytes
	}
	return lost
}

// missingOfClean is what a scan of a partition's file did not find: the offsets
// between sound entries with damage between them, and those behind the last.
func (l *classLog) missingOfClean(seg *segment, sc *segmentScan) (missing []missingBatches) {
	f := seg.clean
	next, broken := f.Base, false
	gone := func(to int64, pos int64) {
		if next < to {
			missing = append(missing, missingBatches{f.p, ref{base: next, next: to, pos: pos}})
		}
	}
	for i := range sc.entries {
		e := &sc.entries[i]
		if e.damaged {
			broken = true
			continue
		}
		r, ok := dataRef(&e.env, e.body)
		if !ok {
			broken = true
			continue
		}
		if broken {
			gone(r.base, e.pos)
		}
		next, broken = r.next, false
	}
	if broken || sc.next != f.Entries+1 {
		gone(f.Next, sc.end)
	}
	return missing
}

// sweepClean removes files that the state does not name: of a compaction that a crash
// ended, or of one whose result replaced them.
func (l *classLog) sweepClean() error {
	ents, err := l.s.cfg.FS.ReadDir(l.cleanDir)
	if errors.Is(err, fs.ErrNotExist) || len(ents) == 0 {
		return nil
	}
	if err != nil {
		return &DiskError{"list", l.cleanDir, err}
	}
	named, bytes := make(map[string]bool), int64(0)
	for _, k := range l.state.keys(kindClean) {
		v, _ := l.state.get(kindClean, k)
		var st cleanState
		if len(k) != 4 || cbor.Unmarshal(v, &st) != nil {
			return nil // keep everything for a human
		}
		for _, f := range st.Files {
			named[filepath.Base(l.cleanPath(PartitionID(binary.BigEndian.Uint32([]byte(k))), f.Num))] = true
			bytes += f.Size
		}
	}
	l.cleanBytes.Store(bytes)
	for _, e := range ents {
		if named[strings.TrimSuffix(e.Name(), ".idx")] {
			continue
		}
		path := filepath.Join(l.cleanDir, e.Name())
		l.files.drop(path)
		if err := l.s.cfg.FS.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return &DiskError{"remove", path, err}
		}
	}
	return nil
}

// tidyClean takes files that lie below the partition's start out of the state.
func (l *classLog) tidyClean(p *Partition) error {
	p.mu.RLock()
	stale := p.cleanListed > len(p.cleanSegments())
	p.mu.RUnlock()
	if !stale {
		return nil
	}
	return l.swapClean(p, nil, nil, 0)
}

// cleanSegments are the files in use. The caller has mu.
func (p *Partition) cleanSegments() (segs []*segment) {
	for i := range p.spans {
		if p.spans[i].seg.clean == nil {
			break
		}
		segs = append(segs, p.spans[i].seg)
	}
	return segs
}

// swapClean puts fresh in the place of old (files beside each other, none: behind
// the last), and with to above 0 raises where the log begins to count, durably and
// then for readers.
func (l *classLog) swapClean(p *Partition, old, fresh []*segment, to int64) error {
	return l.do(func() error {
		if p.deleted.Load() {
			return nil // its files are swept
		}
		p.mu.RLock()
		segs, cleanTo, start := p.cleanSegments(), max(p.cleanTo, to), p.start
		p.mu.RUnlock()
		at := len(segs)
		for i, seg := range segs {
			if slices.Contains(old, seg) {
				at = i
				break
			}
		}
		segs = slices.Insert(slices.DeleteFunc(segs, func(s *segment) bool { return slices.Contains(old, s) }), at, fresh...)
		segs = slices.DeleteFunc(segs, func(s *segment) bool { return s.clean.Next <= start })
		st := cleanState{To: cleanTo}
		for _, seg := range segs {
			st.Files = append(st.Files, *seg.clean)
		}
		if err := l.c.commitOps(appendOp(nil, kindClean, opSet, p.startKey(), mustCBOR(st))); err != nil {
			return err
		}
		p.adoptClean(segs, cleanTo)
		for _, seg := range old {
			l.side.drop(seg)
		}
		return nil
	})
}

// adoptClean makes readers see the files segs, and the log from to on.
func (p *Partition) adoptClean(segs []*segment, to int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	was := p.spans
	p.spans, p.runMax, p.bytes = nil, nil, 0
	for _, seg := range segs {
		p.addSpanOf(seg.clean.span(seg))
	}
	for i := range was {
		if was[i].seg.clean == nil && was[i].next > to {
			p.addSpanOf(was[i])
		}
	}
	n := 0
	for n < len(p.tail) && p.tail[n].next <= to {
		n++
	}
	p.tail = slices.Clone(p.tail[n:])
	for i := range p.spans {
		p.bytes += p.spans[i].bytes
	}
	for i := range p.tail {
		p.bytes += int64(p.tail[i].size)
	}
	p.cleanTo, p.cleanListed = to, len(segs)
	p.swaps.Add(1)
}

// compactor is one compaction of one partition.
type compactor struct {
	l          *classLog
	p          *Partition
	keys       *keyTable
	now        int64
	tombstones int64 // ms that they stay
	start      int64
	last       int64 // the partition's last offset: its record stays, so that every reader comes to the end
	d          *record.Decompressor
	out        *cleanWriter
	force      bool // write a file anew although everything in it stays

	seen, kept        int64
	bytesIn, bytesOut int64
}

func (c *compactor) close() {
	if c.d != nil {
		c.d.Close()
	}
	if c.out != nil {
		c.out.abandon()
	}
}

var errStop = errors.New("stop")

// each calls f for every batch of [from, to), in order; the envelope is valid during the call.
func (c *compactor) each(from, to int64, f func(seg *segment, env *envelope, r *ref) error) error {
	var few [64]ref
	for from < to {
		select {
		case <-c.l.s.closing:
			return ErrClosed
		default:
		}
		seg, refs, err := c.p.locate(few[:0], from, to, readSpan, true)
		if err != nil {
			return err
		}
		if len(refs) == 0 {
			return nil
		}
		var ferr error
		from, err = c.p.eachEntry(seg, refs, func(env *envelope, r *ref) bool {
			ferr = f(seg, env, r)
			c.p.compacting.done.Add(int64(r.size))
			return ferr == nil
		})
		if err = errors.Join(err, ferr); err != nil {
			return err
		}
	}
	return nil
}

// collect notes the keys of [from, to), and returns to, or where the table was full.
func (c *compactor) collect(from, to int64) (int64, error) {
	c.d = record.NewDecompressor(0)
	err := c.each(from, to, func(_ *segment, env *envelope, r *ref) error {
		b := record.Batch(env.payload)
		if n := b.Count(); !c.keys.room(n) {
			if r.base > from && c.keys.used > 0 {
				to = r.base
				return errStop
			}
			c.keys.grow(n)
		}
		it := b.Iter(c.d)
		for it.Next() {
			if rec := it.Record(); rec.Key != nil {
				c.keys.put(rec.Key, rec.Offset)
			}
		}
		if it.Err() != nil { // such a batch is kept whole
			c.l.lg.Warn("records of a sound batch do not parse", "topic", c.p.topic.name, "partition", c.p.index, "offset", r.base, "err", it.Err())
		}
		return nil
	})
	if errors.Is(err, errStop) {
		err = nil
	}
	return to, err
}

// rewrite writes what stays of [from, to) to files and swaps them in for old.
func (c *compactor) rewrite(old []*segment, from, to, cleanTo int64) error {
	var fresh []*segment
	seen, kept := c.seen, c.kept
	end := func() error {
		if c.out == nil {
			return nil
		}
		seg, err := c.out.finish()
		c.out = nil
		if seg != nil {
			fresh = append(fresh, seg)
		}
		return err
	}
	err := c.each(from, to, func(seg *segment, env *envelope, r *ref) error {
		if c.out != nil && c.out.f.Size >= cleanFileBytes {
			if err := end(); err != nil {
				return err
			}
		}
		return c.batch(seg, env, r)
	})
	if err == nil {
		err = end()
	}
	if err == nil && !c.force && len(old) == 1 && c.seen-seen == c.kept-kept && len(fresh) == 1 && fresh[0].clean.Horizon == old[0].clean.Horizon {
		return nil // nothing went: the old one stays, the new one is swept
	}
	if err != nil {
		return err
	}
	return c.l.swapClean(c.p, old, fresh, cleanTo)
}

// batch writes what stays of one batch.
func (c *compactor) batch(seg *segment, env *envelope, r *ref) error {
	if c.out == nil {
		w, err := c.l.createClean(c.p)
		if err != nil {
			return err
		}
		c.out = w
	}
	b := record.Batch(env.payload)
	horizon, tombstones := int64(0), false
	if seg.clean != nil {
		horizon = env.time
	}
	expired := horizon > 0 && horizon <= c.now
	keep := func(rec *record.Record) bool {
		switch {
		case rec.Offset == c.last:
		case rec.Offset < c.start:
			return false
		case rec.Key == nil:
			return true
		case c.keys.newest(rec.Key) > rec.Offset:
			return false
		case rec.Value == nil && expired:
			return false
		}
		tombstones = tombstones || rec.Key != nil && rec.Value == nil
		return true
	}
	buf := append(c.out.entry[:0], make([]byte, envelopeBytes)...)
	buf = append(buf, env.origin...)
	at := len(buf)
	buf, kept, err := b.Thin(buf, c.d, keep)
	if err != nil {
		buf, kept, tombstones = append(buf[:at], b...), b.Count(), false
	}
	c.out.entry = buf
	c.seen += int64(b.Count())
	c.kept += int64(kept)
	c.bytesIn += int64(r.size)
	if kept == 0 {
		return nil
	}
	switch {
	case !tombstones:
		horizon = 0
	case horizon == 0:
		horizon = max(c.now+c.tombstones, 1)
	case expired: // the partition's last record
		horizon = c.now + max(c.tombstones, lastTombstone)
	}
	c.bytesOut += int64(len(buf))
	lo, hi := r.min, record.Batch(buf[at:]).MaxTimestamp()
	if kept < b.Count() {
		lo, hi = batchTimes(record.Batch(buf[at:]))
	}
	c.l.segMu.RLock()
	arrival := seg.arrival
	c.l.segMu.RUnlock()
	e := envelope{kind: entryData, flags: flagFirst | flagLast, epoch: env.epoch, commit: env.commit, time: horizon, partition: c.p.id}
	return c.out.add(&e, len(env.origin), ref{base: r.base, next: r.next, min: lo, max: hi}, arrival)
}

// cleanWriter writes one file.
type cleanWriter struct {
	l      *classLog
	p      *Partition
	file   File
	path   string
	f      cleanFile
	refs   []ref
	entry  []byte
	buf    []byte
	synced int64
}

// createClean begins a file under a number that was never used in this run of the store.
func (l *classLog) createClean(p *Partition) (*cleanWriter, error) {
	fsys := l.s.cfg.FS
	if free, err := fsys.Free(l.segDir); err == nil && free >= 0 && free < cleanFileBytes+max(l.cfg.MinFreeBytes, 0)/4 {
		return nil, fmt.Errorf("%w: %d bytes are left, compaction needs %d", ErrFull, free, cleanFileBytes+max(l.cfg.MinFreeBytes, 0)/4)
	}
	if err := fsys.MkdirAll(l.cleanDir, dirPerm); err != nil {
		return nil, &DiskError{"create", l.cleanDir, err}
	}
	if err := fsys.SyncDir(filepath.Dir(l.cleanDir)); err != nil {
		return nil, &DiskError{"fsync directory", filepath.Dir(l.cleanDir), err}
	}
	l.cleanNum++
	w := &cleanWriter{l: l, p: p, path: l.cleanPath(p.id, l.cleanNum), f: cleanFile{Num: l.cleanNum}}
	var err error
	if w.file, err = fsys.OpenFile(w.path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, filePerm); err != nil {
		return nil, &DiskError{"create", w.path, err}
	}
	return w, nil
}

// add writes w.entry, whose envelope is not filled in yet.
func (w *cleanWriter) add(e *envelope, origin int, r ref, arrival int64) error {
	w.f.Entries++
	e.index = w.f.Entries
	sealEnvelope(w.entry, e, origin)
	r.size = int32(len(w.entry))
	r.pos = w.f.Size + int64(uvarintLen(uint64(len(w.entry))))
	w.f.Size = r.pos + int64(r.size)
	w.refs = append(w.refs, r)
	w.f.Arrival = max(w.f.Arrival, arrival)
	if e.time > 0 && (w.f.Horizon == 0 || e.time < w.f.Horizon) {
		w.f.Horizon = e.time
	}
	w.buf = appendFramed(w.buf, w.entry)
	if len(w.buf) >= 256<<10 {
		return w.flush(false)
	}
	return nil
}

func (w *cleanWriter) flush(sync bool) error {
	if _, err := w.file.Write(w.buf); err != nil {
		return &DiskError{"write", w.path, err}
	}
	w.buf = w.buf[:0]
	if sync || w.f.Size-w.synced >= cleanSyncBytes {
		w.synced = w.f.Size
		if err := w.file.Sync(); err != nil {
			return &DiskError{"fsync", w.path, err}
		}
	}
	return nil
}

// finish makes the file durable under its name. A file without entries is nil.
func (w *cleanWriter) finish() (*segment, error) {
	if w.f.Entries == 0 {
		w.abandon()
		return nil, nil
	}
	err := w.flush(true)
	if cerr := w.file.Close(); err == nil && cerr != nil {
		err = &DiskError{"close", w.path, cerr}
	}
	if err == nil {
		if err = w.l.s.cfg.FS.SyncDir(w.l.cleanDir); err != nil {
			err = &DiskError{"fsync directory", w.l.cleanDir, err}
		}
	}
	if err != nil {
		w.l.s.cfg.FS.Remove(w.path)
		return nil, err
	}
	x := newPartIndex(w.p.id, w.refs)
	w.f.Base, w.f.Next, w.f.Min, w.f.Max, w.f.Bytes = x.base, x.next, x.min, x.max, x.bytes
	seg := w.l.segmentOf(w.p, &w.f)
	side := &segmentIndex{first: 1, last: seg.last, size: seg.size, arrival: seg.arrival, parts: []partIndex{x}}
	if err := writeSide(w.l.s.cfg.FS, w.l.sideOf(seg), side); err != nil {
		w.l.lg.Warn("write side file; it is rebuilt when needed", "err", err)
	}
	return seg, nil
}

func (w *cleanWriter) abandon() {
	w.file.Close()
	w.l.s.cfg.FS.Remove(w.path)
}
