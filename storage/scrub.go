package storage

import (
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io/fs"
	"math/rand/v2"
	"time"

	"tailrace/storage/internal/durable"
)

const (
	defaultScrubInterval = 30 * 24 * time.Hour
	defaultScrubRate     = 1 << 20
	maxScrubPause        = 24 * time.Hour
	scrubChunk           = 128 << 10
)

// scrubLoop reads all that is sealed again and again, slowly, so that rot is found,
// declared and repaired while the other copy of what was lost may still exist. A pass
// takes ScrubInterval; each Open begins at a segment chosen at random, so that a node
// that starts every day looks at all of its log in the end.
func (s *Store) scrubLoop() {
	t := time.NewTimer(maxScrubPause)
	defer t.Stop()
	at := scrubAt{skip: rand.IntN(1 << 20)}
	for {
		l, seg, total := s.nextToScrub(&at)
		pause := maxScrubPause
		if seg != nil {
			share := float64(seg.size) / float64(max(total, 1))
			pause = min(time.Duration(share*float64(s.cfg.ScrubInterval)), maxScrubPause)
		}
		t.Reset(pause)
		select {
		case <-t.C:
		case <-s.closing:
			return
		}
		if seg != nil {
			s.scrub(l, seg, s.cfg.ScrubRate)
		}
	}
}

// Scrub reads everything that is sealed once, now, without a limit of its rate, and
// returns when damage that it met is declared and repaired.
func (s *Store) Scrub(ctx context.Context) error {
	var errs []error
	at := scrubAt{}
	for {
		l, seg, _ := s.nextToScrub(&at)
		if seg == nil || at.passes > 0 {
			return errors.Join(errs...)
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		errs = append(errs, s.scrub(l, seg, 0))
	}
}

// scrubAt is how far a pass has come.
type scrubAt struct {
	skip   int    // segments to leave out at first, modulo how many there are
	class  int    // in the order of Store.logs
	log    uint64 // segments of the class's log below are done
	clean  int    // files of its compacted partitions that are done
	passes int
}

// nextToScrub is the segment to look at now, nil when nothing is sealed, and how many
// bytes a pass has.
func (s *Store) nextToScrub(at *scrubAt) (l *classLog, seg *segment, total int64) {
	var logs, files [][]*segment
	count := 0
	for _, l := range s.logs {
		l.segMu.RLock()
		logs = append(logs, append([]*segment(nil), l.segs[:len(l.segs)-1]...))
		l.segMu.RUnlock()
		files = append(files, l.cleanSegments())
		for _, list := range [][]*segment{logs[len(logs)-1], files[len(files)-1]} {
			for _, seg := range list {
				total += seg.size
				count++
			}
		}
	}
	if count == 0 {
		return nil, nil, 0
	}
	for skip := at.skip % count; ; skip-- {
		for seg = nil; seg == nil; {
			for _, c := range logs[at.class] {
				if c.first >= at.log {
					seg, at.log = c, c.first+1
					break
				}
			}
			if seg == nil && at.clean < len(files[at.class]) {
				seg = files[at.class][at.clean]
				at.clean++
			}
			l = s.logs[at.class]
			if seg == nil {
				at.log, at.clean = 0, 0
				if at.class++; at.class == len(s.logs) {
					at.class = 0
					at.passes++
				}
			}
		}
		if skip == 0 {
			at.skip = 0
			return l, seg, total
		}
	}
}

// cleanSegments are the files of the class's compacted partitions.
func (l *classLog) cleanSegments() (segs []*segment) {
	for _, p := range l.partitions() {
		p.mu.RLock()
		for i := range p.spans {
			if p.spans[i].seg.clean != nil {
				segs = append(segs, p.spans[i].seg)
			}
		}
		p.mu.RUnlock()
	}
	return segs
}

// scrub verifies a segment at a rate in bytes per second, 0 without limit, and has it
// repaired when it is damaged.
func (s *Store) scrub(l *classLog, seg *segment, rate int64) error {
	err := s.verify(l, seg, func(n int) bool {
		l.stats.scrubbed(int64(n))
		if rate <= 0 {
			return true
		}
		t := time.NewTimer(time.Duration(float64(n) / float64(rate) * float64(time.Second)))
		defer t.Stop()
		select {
		case <-t.C:
			return true
		case <-s.closing:
			return false
		}
	})
	onCommitter := func(f func()) error {
		err := l.do(func() error { f(); return nil })
		if errors.Is(err, ErrClosed) {
			return nil
		}
		return err
	}
	switch {
	case err == nil, errors.Is(err, ErrClosed):
		return nil
	case errors.Is(err, fs.ErrNotExist): // given up or replaced meanwhile, or gone
		return onCommitter(func() { l.judge(seg) })
	case !errors.Is(err, errDamaged):
		l.lg.Error("segment cannot be read", "file", seg.path, "err", err)
		l.stats.scrubFound()
		if !durable.Unreadable(err) {
			return err
		}
		if err := onCommitter(func() { l.judge(seg) }); err != nil {
			return err
		}
		if again := s.verify(l, seg, func(int) bool { return true }); again != nil && seg.clean == nil {
			return again
		}
		return nil
	}
	l.stats.scrubFound()
	l.lg.Error("damage found", "file", seg.path)
	if seg.clean != nil {
		return l.readClean(seg)
	}
	return onCommitter(func() { l.c.healOrLeave(seg) })
}

// readClean reads all of a file of a compacted partition, as its readers do: what is
// damaged is declared.
func (l *classLog) readClean(seg *segment) error {
	x, err := l.index(seg)
	if err != nil {
		return err
	}
	for i := range x.parts {
		if p, ok := l.s.PartitionByID(x.parts[i].id); ok {
			if _, err := p.eachEntry(seg, x.parts[i].refs, func(*envelope, *ref) bool { return true }); err != nil {
				return err
			}
		}
	}
	return l.do(func() error { return nil })
}

// verify reads a segment and checks the CRC and the index of every entry. errDamaged
// says that it is not what was written. read is told of every chunk; false ends it.
func (s *Store) verify(l *classLog, seg *segment, read func(n int) bool) error {
	f, err := s.cfg.FS.OpenFile(seg.path, 0, 0)
	if err != nil {
		return &DiskError{"open", seg.path, err}
	}
	defer f.Close()
	v := verifier{next: seg.first}
	buf := make([]byte, min(scrubChunk, seg.size))
	for off := int64(0); off < seg.size; {
		n, err := f.ReadAt(buf[:min(int64(len(buf)), seg.size-off)], off)
		if n == 0 {
			if fi, serr := f.Stat(); serr == nil && fi.Size() <= off {
				return errDamaged // shorter than it was
			}
			return &DiskError{"read", seg.path, err}
		}
		if !v.take(buf[:n]) {
			return errDamaged
		}
		off += int64(n)
		if !read(n) {
			return ErrClosed
		}
	}
	if v.need != 0 || len(v.head) != 0 || v.next != seg.last+1 {
		return errDamaged
	}
	return nil
}

// verifier checks a segment's bytes as they come, without keeping them.
type verifier struct {
	next uint64 // index of the entry that comes
	head []byte // length and envelope of an entry, as far as they came
	need int64  // bytes of the entry behind its envelope that are to come
	sum  uint32
	want uint32
}

// take returns false when the bytes are not those of sound entries.
func (v *verifier) take(b []byte) bool {
	for len(b) > 0 {
		if v.need > 0 {
			n := min(v.need, int64(len(b)))
			v.sum = crc32.Update(v.sum, castagnoli, b[:n])
			v.need -= n
			b = b[n:]
			if v.need == 0 && v.sum != v.want {
				return false
			}
			continue
		}
		v.head = append(v.head, b[0])
		b = b[1:]
		n, w := binary.Uvarint(v.head)
		switch {
		case w < 0 || w == 0 && len(v.head) >= binary.MaxVarintLen64:
			return false
		case w == 0 || len(v.head) < w+envelopeBytes:
			continue
		}
		e := v.head[w:]
		if size, ok := envelopeLen(e); !ok || uint64(size) != n || binary.BigEndian.Uint64(e[16:]) != v.next {
			return false
		}
		v.sum, v.want = envelopeSum(e), binary.BigEndian.Uint32(e[8:])
		v.need = int64(n) - envelopeBytes
		v.next++
		v.head = v.head[:0]
		if v.need == 0 && v.sum != v.want {
			return false
		}
	}
	return true
}
