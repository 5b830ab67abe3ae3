package record

import (
	"fmt"
	"math"
	"unsafe"
)

// Iter walks the records of a batch without allocating per record:
//
//	it := b.Iter(d)
//	for it.Next() {
//		r := it.Record()
//	}
//	if err := it.Err(); err != nil { … }
//
// It never reads outside the batch, whatever the bytes are.
type Iter struct {
	rest      []byte // records not read yet
	left      int    // records the header promises beyond those read
	base      int64
	baseTime  int64
	maxTime   int64 // stands for every record's time under AttrLogAppendTime
	lastDelta int64
	appendTyp bool
	d         *Decompressor
	scratch   []Header
	tail      []byte
	rec       Record
	err       error
}

// Iter returns an iterator over b, which must come from [Next] or have passed
// [Batch.Verify]. d is needed for compressed batches, and saves an allocation
// for records with headers; it must not be used for another batch before the
// iteration ends. A record and its slices are valid until d's next use.
func (b Batch) Iter(d *Decompressor) Iter {
	it := Iter{
		rest: b[HeaderBytes:], left: b.Count(), d: d,
		base: b.BaseOffset(), baseTime: b.BaseTimestamp(), maxTime: b.MaxTimestamp(),
		lastDelta: int64(b.lastDelta()), appendTyp: b.Attributes()&AttrLogAppendTime != 0,
	}
	if codec := b.Codec(); codec != CodecNone {
		if d == nil {
			it.err = fmt.Errorf("batch at offset %d is compressed (codec %d) and there is no decompressor", it.base, codec)
			return it
		}
		if it.rest, it.err = d.records(codec, it.rest); it.err != nil {
			it.err = fmt.Errorf("batch at offset %d: %w", it.base, it.err)
			return it
		}
	}
	if d != nil {
		it.scratch = d.headers
	}
	return it
}

// Record is the record that Next has read. It and its Headers are overwritten
// by the following Next.
func (it *Iter) Record() *Record { return &it.rec }

// Tail is the encoded part of the record after its offset delta, as made by
// [AppendTail]. It aliases the batch.
func (it *Iter) Tail() []byte { return it.tail }

// Err is what ended the iteration early, nil at the end of a sound batch.
func (it *Iter) Err() error { return it.err }

// Next reads the next record and tells whether there was one.
func (it *Iter) Next() bool {
	if !it.nextRaw() {
		return false
	}
	if !it.fields() {
		it.fail("record at offset %d does not fit its length", it.rec.Offset)
		return false
	}
	return true
}

func (it *Iter) fail(format string, args ...any) bool {
	it.err = corrupt(format, args...)
	it.left = 0
	return false
}

// nextRaw reads the length, timestamp and offset of the next record and leaves
// the rest of it in it.tail.
func (it *Iter) nextRaw() bool {
	if it.err != nil {
		return false
	}
	if it.left == 0 {
		if len(it.rest) != 0 {
			return it.fail("%d bytes after the last record of the batch at offset %d", len(it.rest), it.base)
		}
		return false
	}
	size, n := varint(it.rest)
	if n == 0 || size < minRecordBytes-1 || size > int64(len(it.rest)-n) {
		return it.fail("record length %d with %d bytes left in the batch at offset %d", size, len(it.rest), it.base)
	}
	body := it.rest[n : n+int(size)]
	it.rest = it.rest[n+int(size):]
	p := 1 // attributes: no bit is defined (KIP-98)
	dt, n := varint(body[p:])
	p += n
	do, m := varint(body[p:])
	p += m
	if n == 0 || m == 0 || do < 0 || do > it.lastDelta {
		return it.fail("offset delta %d of a record in the batch at offset %d", do, it.base)
	}
	it.rec.Offset = it.base + do
	if it.rec.Timestamp = it.baseTime + dt; it.appendTyp {
		it.rec.Timestamp = it.maxTime
	}
	it.tail = body[p:]
	it.left--
	return true
}

// fields parses it.tail and tells whether it was exactly one record's.
func (it *Iter) fields() bool {
	b := it.tail
	var ok bool
	if it.rec.Key, b, ok = bytesField(b); !ok {
		return false
	}
	if it.rec.Value, b, ok = bytesField(b); !ok {
		return false
	}
	count, n := varint(b)
	if n == 0 || count < 0 || count > int64(len(b)-n)/2 { // a header takes two bytes at least
		return false
	}
	b = b[n:]
	if count == 0 {
		it.rec.Headers = nil
		return len(b) == 0
	}
	hs := it.scratch[:0]
	for range count {
		var key []byte
		var h Header
		if key, b, ok = bytesField(b); !ok || key == nil {
			return false
		}
		if h.Value, b, ok = bytesField(b); !ok {
			return false
		}
		h.Key = unsafe.String(unsafe.SliceData(key), len(key))
		hs = append(hs, h)
	}
	it.keep(hs)
	return len(b) == 0
}

// keep remembers the header slice for the next record, and for the next batch
// when there is a decompressor to carry it.
func (it *Iter) keep(hs []Header) {
	it.rec.Headers = hs
	if cap(hs) > cap(it.scratch) {
		it.scratch = hs
		if it.d != nil && cap(hs) <= maxScratchHeaders {
			it.d.headers = hs
		}
	}
}

// maxScratchHeaders bounds what one odd record makes a decompressor keep.
const maxScratchHeaders = 1024

// CheckTail tells whether tail is exactly what [AppendTail] makes.
func CheckTail(tail []byte) error {
	it := Iter{tail: tail}
	if !it.fields() {
		return corrupt("record tail of %d bytes does not parse", len(tail))
	}
	return nil
}

// bytesField reads a varint length and as many bytes; length -1 is nil, other
// negative lengths are refused. An empty field is not nil.
func bytesField(b []byte) (field, rest []byte, ok bool) {
	size, n := varint(b)
	if n == 0 {
		return nil, nil, false
	}
	if size < 0 {
		return nil, b[n:], size == -1
	}
	if size > int64(len(b)-n) {
		return nil, nil, false
	}
	end := n + int(size)
	return b[n:end:end], b[end:], true
}

// varint reads a zigzag varint of at most 64 bits; n is 0 when b does not hold
// a whole one.
func varint(b []byte) (v int64, n int) {
	if len(b) > 0 && b[0] < 0x80 { // nearly always
		u := uint64(b[0])
		return int64(u>>1) ^ -int64(u&1), 1
	}
	return varintSlow(b)
}

func varintSlow(b []byte) (int64, int) {
	var u uint64
	for i, c := range b {
		if i == 9 && c > 1 {
			return math.MinInt64, 0 // more than 64 bits
		}
		u |= uint64(c&0x7f) << (7 * i)
		if c < 0x80 {
			return int64(u>>1) ^ -int64(u&1), i + 1
		}
		if i == 9 {
			break
		}
	}
	return 0, 0
}
