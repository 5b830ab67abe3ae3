package storage

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sort"
	"sync"

	"tailrace/storage/internal/durable"
	"tailrace/storage/record"
)

const (
	readGap  = 16 << 10 // bytes of others that one read may span
	readSpan = 1 << 20  // bytes of one read, but for a single larger entry
)

var readBuffers = sync.Pool{New: func() any { return new([]byte) }}

// putBuffer gives a buffer back; what one large entry made it does not stay.
func putBuffer(bp *[]byte) {
	if cap(*bp) > 2*readSpan {
		*bp = nil
	}
	readBuffers.Put(bp)
}

// Read appends to dst whole stored batches, one after the other, beginning with
// the one that contains from (or, where a range is lost, the first after it). The
// first is given whole also when it is larger than maxBytes; together the others
// stay within. Every batch's CRC was verified. next is the offset to read from
// afterwards. At the high watermark it returns dst and nil; below the start or
// above the high watermark ErrOffsetOutOfRange.
func (p *Partition) Read(dst []byte, from int64, maxBytes int) (out []byte, next int64, err error) {
	hw, start := p.hw.Load(), p.Start()
	if from < start || from > hw {
		return dst, from, fmt.Errorf("%w: %d of %s/%d, which has [%d, %d)", ErrOffsetOutOfRange, from, p.topic.name, p.index, start, hw)
	}
	var few [64]ref
	begin := len(dst)
	for from < hw {
		swaps := p.swaps.Load()
		seg, refs, err := p.locate(few[:0], from, hw, maxBytes-(len(dst)-begin), len(dst) == begin)
		if err == nil && len(refs) == 0 {
			break
		}
		full := false
		if err == nil {
			dst, from, full, err = p.readRefs(dst, from, seg, refs, maxBytes-(len(dst)-begin), len(dst) == begin)
		}
		if full {
			break
		}
		if err != nil {
			switch start := p.Start(); {
			case len(dst) > begin:
				return dst, from, nil // the next read meets it again
			case errors.Is(err, fs.ErrNotExist) && from < start:
				return dst, from, fmt.Errorf("%w: %d of %s/%d, deleted up to %d", ErrOffsetOutOfRange, from, p.topic.name, p.index, start)
			case errors.Is(err, fs.ErrNotExist) && p.swaps.Load() != swaps:
				continue // a compaction has replaced the file
			}
			return dst, from, err
		}
	}
	if len(dst) == begin && from < hw && p.restLost(from, hw) {
		from = hw
	}
	return dst, from, nil
}

// restLost tells whether no batch is left in [from, hw).
func (p *Partition) restLost(from, hw int64) bool {
	var one [1]ref
	_, refs, err := p.locate(one[:0], from, hw, 0, true)
	return err == nil && len(refs) == 0
}

// readRefs appends the batches of refs, which lie in seg, to dst, and returns the
// offset after the last. A damaged one is declared and left out. It ends, full, where
// batches that were packed go beyond room; the first is taken in any case when whole is set.
func (p *Partition) readRefs(dst []byte, from int64, seg *segment, refs []ref, room int, whole bool) (out []byte, to int64, full bool, err error) {
	begin := len(dst)
	next, err := p.eachEntry(seg, refs, func(env *envelope, _ *ref) bool {
		full = len(dst)-begin+len(env.payload) > room && (len(dst) > begin || !whole)
		if !full {
			dst = append(dst, env.payload...)
		}
		return !full
	})
	return dst, max(from, next), full, err
}

// eachEntry calls f for the entries of refs, which lie in seg, until it returns false, and
// returns the offset after the last. A damaged one is declared and left out. What was packed
// is not any more.
func (p *Partition) eachEntry(seg *segment, refs []ref, each func(env *envelope, r *ref) bool) (next int64, err error) {
	l := p.log
	f, err := l.files.get(seg.path)
	if err != nil {
		l.suspect(seg, err)
		return next, &DiskError{"open", seg.path, err}
	}
	defer l.files.put(f)
	bp, plain := readBuffers.Get().(*[]byte), readBuffers.Get().(*[]byte)
	defer putBuffer(bp)
	defer putBuffer(plain)
	single := false
	for len(refs) > 0 {
		n := 1
		if !single {
			n = coalesce(refs)
		}
		lo, hi := refs[0].pos, refs[n-1].pos+int64(refs[n-1].size)
		if int64(cap(*bp)) < hi-lo {
			*bp = make([]byte, hi-lo)
		}
		buf := (*bp)[:hi-lo]
		if m, err := f.ReadAt(buf, lo); m < len(buf) {
			if n > 1 && durable.Unreadable(err) { // perhaps only what lies between them
				single = true
				continue
			}
			if seg.clean == nil || err != io.EOF {
				l.suspect(seg, err)
				return next, &DiskError{"read", seg.path, err}
			}
			clear(buf[m:]) // the file is shorter than the state says
		}
		for i := range refs[:n] {
			r := &refs[i]
			env, err := p.checked(buf[r.pos-lo:r.pos-lo+int64(r.size)], r, plain)
			if err != nil {
				l.damaged(p, seg, *r, err)
			} else if !each(&env, r) {
				return next, nil
			}
			next = r.next
		}
		refs = refs[n:]
	}
	return next, nil
}

// checked verifies an entry against its ref. A packed one is unpacked into scratch.
func (p *Partition) checked(b []byte, r *ref, scratch *[]byte) (envelope, error) {
	env, err := decodeEnvelope(b)
	if err != nil {
		return env, err
	}
	if env.kind != entryData || env.partition != p.id || !env.packed && len(env.payload) < record.HeaderBytes {
		return env, fmt.Errorf("entry %d is of kind %d, partition %v", env.index, env.kind, env.partition)
	}
	if env.packed {
		batch, err := env.batch(scratch)
		if err != nil {
			return env, err
		}
		env.payload, env.packed = batch, false
	}
	if batch := record.Batch(env.payload); batch.BaseOffset() == r.base && batch.NextOffset() == r.next {
		return env, nil
	}
	return env, fmt.Errorf("entry %d holds other offsets than the index says", env.index)
}

// coalesce returns how many of refs one read should take: neighbours, with not
// too much of other partitions between them.
func coalesce(refs []ref) int {
	n := 1
	for n < len(refs) {
		end := refs[n-1].pos + int64(refs[n-1].size)
		if refs[n].pos-end > readGap || refs[n].pos+int64(refs[n].size)-refs[0].pos > readSpan {
			break
		}
		n++
	}
	return n
}

// Origin returns where the stored batch that contains off was first durable, when
// it was appended with an origin.
func (p *Partition) Origin(off int64) (Origin, bool) {
	env, base, ok := p.entryAfter(off)
	if !ok || base > off {
		return Origin{}, false
	}
	return decodeOrigin(env.origin)
}

// entryAfter reads the entry of the batch that contains off, or of the first after it,
// which begins at base.
func (p *Partition) entryAfter(off int64) (env envelope, base int64, ok bool) {
	hw := p.hw.Load()
	if off < p.Start() || off >= hw {
		return env, 0, false
	}
	var one [1]ref
	seg, refs, err := p.locate(one[:0], off, hw, 0, true)
	if err != nil || len(refs) == 0 {
		return env, 0, false
	}
	f, err := p.log.files.get(seg.path)
	if err != nil {
		return env, 0, false
	}
	defer p.log.files.put(f)
	b := make([]byte, refs[0].size)
	if n, _ := f.ReadAt(b, refs[0].pos); n < len(b) {
		return env, 0, false
	}
	env, err = p.checked(b, &refs[0], new([]byte))
	return env, refs[0].base, err == nil
}

// OffsetForTime returns the first offset whose record has a timestamp of at
// least ts (ms), and that timestamp. Timestamps may repeat and go back: it is the
// first in the order of offsets, as with Kafka's ListOffsets. ok is false when
// there is none.
func (p *Partition) OffsetForTime(ts int64) (off, offTs int64, ok bool, err error) {
	d := record.NewDecompressor(0)
	defer d.Close()
	start, hw := p.Start(), p.hw.Load()
	var buf []byte
	for from := start; from < hw; {
		r, found, err := p.batchForTime(from, ts)
		if err != nil || !found || r.base >= hw {
			return 0, 0, false, err
		}
		buf, from, err = p.Read(buf[:0], max(r.base, start), 0)
		if err != nil {
			return 0, 0, false, err
		}
		b, _, err := record.Next(buf)
		if err != nil || b.MaxTimestamp() < ts {
			continue // it was damaged, and this is the one after
		}
		it := b.Iter(d)
		for it.Next() {
			if rec := it.Record(); rec.Timestamp >= ts && rec.Offset >= start {
				return rec.Offset, rec.Timestamp, true, nil
			}
		}
		if err := it.Err(); err != nil {
			return 0, 0, false, fmt.Errorf("storage: records of %s/%d: %w", p.topic.name, p.index, err)
		}
	}
	return 0, 0, false, nil
}

// batchForTime finds the first batch that ends behind from and whose greatest
// timestamp is at least ts.
func (p *Partition) batchForTime(from, ts int64) (ref, bool, error) {
	for {
		p.mu.RLock()
		i := sort.Search(len(p.runMax), func(i int) bool { return p.runMax[i] >= ts })
		for i < len(p.spans) && (p.spans[i].next <= from || p.spans[i].max < ts) {
			i++
		}
		if i == len(p.spans) {
			defer p.mu.RUnlock()
			r, ok := firstForTime(p.tail, p.holes, from, ts)
			return r, ok, nil
		}
		s, holes, swaps := p.spans[i], p.holes, p.swaps.Load()
		from = p.countsFrom(s.seg, from)
		p.mu.RUnlock()
		x, err := p.log.index(s.seg)
		if errors.Is(err, fs.ErrNotExist) && p.swaps.Load() != swaps {
			continue
		}
		if err != nil {
			return ref{}, false, err
		}
		if part := x.part(p.id); part != nil {
			if r, ok := firstForTime(part.refs, holes, from, ts); ok {
				return r, true, nil
			}
		}
		from = s.next
	}
}

func firstForTime(refs []ref, holes []hole, from, ts int64) (ref, bool) {
	for i := range refs {
		if refs[i].next > from && refs[i].max >= ts && !inHole(holes, refs[i].base) {
			return refs[i], true
		}
	}
	return ref{}, false
}

// MaxTimestampOffset returns the first offset that has the greatest timestamp.
func (p *Partition) MaxTimestampOffset() (off, ts int64, ok bool) {
	hi, ok := p.LastTime()
	if !ok {
		return 0, 0, false
	}
	off, ts, ok, err := p.OffsetForTime(hi)
	return off, ts, ok && err == nil
}
