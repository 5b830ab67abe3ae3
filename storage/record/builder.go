package record

import (
	"encoding/binary"
	"hash/crc32"
	"math"
	"math/bits"
)

// Builder builds one batch at the end of a caller's buffer:
//
//	var bl record.Builder
//	bl.Reset(arena)            // the batch begins at len(arena)
//	bl.Add(ts, key, value, headers)
//	arena = bl.Finish(base, epoch)
//
// It copies what it is given and does not allocate beyond growing the buffer.
// A record is encoded when it is added. Not safe for concurrent use. The zero
// value is ready for Reset.
type Builder struct {
	buf      []byte
	start    int // where the batch begins in buf
	count    int
	baseTime int64
	maxTime  int64
}

// Reset begins a batch at the end of dst, which the builder owns until Finish.
func (bl *Builder) Reset(dst []byte) {
	bl.start = len(dst)
	bl.buf = append(dst, blank[:]...)
	bl.count = 0
}

// blank is a header without producer: id, epoch and sequence are -1.
var blank = func() (h [HeaderBytes]byte) {
	h[posMagic] = 2
	for i := posProducer; i < posCount; i++ {
		h[i] = 0xff
	}
	return h
}()

// Count is the number of records added since Reset.
func (bl *Builder) Count() int { return bl.count }

// Len is the size of the batch so far, header included.
func (bl *Builder) Len() int { return len(bl.buf) - bl.start }

// Add encodes one record. A nil key or value is Kafka's null.
func (bl *Builder) Add(ts int64, key, value []byte, headers []Header) {
	bl.buf = AppendTail(bl.prefix(ts, tailLen(key, value, headers)), key, value, headers)
}

// AddEncoded adds a record whose part after the offset delta was made by
// [AppendTail]. It trusts tail; a tail of unknown origin goes through
// [CheckTail] first.
func (bl *Builder) AddEncoded(ts int64, tail []byte) {
	bl.buf = append(bl.prefix(ts, len(tail)), tail...)
}

// prefix appends length, attributes, timestamp delta and offset delta to bl.buf.
func (bl *Builder) prefix(ts int64, tail int) []byte {
	if bl.count == 0 {
		bl.baseTime, bl.maxTime = ts, ts
	}
	bl.maxTime = max(bl.maxTime, ts)
	dt, do := zigzag(ts-bl.baseTime), zigzag(int64(bl.count))
	bl.count++
	buf := appendUvarint(bl.buf, zigzag(int64(1+uvarintLen(dt)+uvarintLen(do)+tail)))
	return appendUvarint(appendUvarint(append(buf, 0), dt), do)
}

// Finish fills in the header and returns the buffer given to Reset with the
// batch at its end; without records the buffer is returned as it was. The
// builder must be Reset before it is used again.
func (bl *Builder) Finish(base int64, epoch int32) []byte {
	buf := bl.buf
	bl.buf = nil
	if bl.count == 0 {
		return buf[:bl.start]
	}
	h := buf[bl.start:]
	if len(h) > math.MaxInt32 {
		panic("internal error: batch larger than 2 GiB")
	}
	Batch(h).head(base, epoch, bl.count, bl.baseTime, bl.maxTime)
	binary.BigEndian.PutUint32(h[posCRC:], crc32.Checksum(h[posAttributes:], castagnoli))
	return buf
}

// AppendTail appends the part of a record that follows the offset delta: key
// length, key, value length, value, header count, headers.
func AppendTail(dst []byte, key, value []byte, headers []Header) []byte {
	dst = appendBytes(dst, key)
	dst = appendBytes(dst, value)
	dst = appendUvarint(dst, zigzag(int64(len(headers))))
	for i := range headers {
		h := &headers[i]
		dst = appendUvarint(dst, zigzag(int64(len(h.Key))))
		dst = append(dst, h.Key...)
		dst = appendBytes(dst, h.Value)
	}
	return dst
}

func appendBytes(dst, b []byte) []byte {
	if b == nil {
		return append(dst, 1) // zigzag(-1): null
	}
	dst = appendUvarint(dst, zigzag(int64(len(b))))
	return append(dst, b...)
}

func tailLen(key, value []byte, headers []Header) int {
	n := bytesLen(key) + bytesLen(value) + uvarintLen(zigzag(int64(len(headers))))
	for i := range headers {
		h := &headers[i]
		n += uvarintLen(zigzag(int64(len(h.Key)))) + len(h.Key) + bytesLen(h.Value)
	}
	return n
}

func bytesLen(b []byte) int {
	if b == nil {
		return 1
	}
	return uvarintLen(zigzag(int64(len(b)))) + len(b)
}

func zigzag(v int64) uint64 { return uint64(v<<1) ^ uint64(v>>63) }

func uvarintLen(v uint64) int { return (bits.Len64(v|1) + 6) / 7 }

func appendUvarint(dst []byte, v uint64) []byte {
	for v >= 0x80 {
		dst = append(dst, byte(v)|0x80)
		v >>= 7
	}
	return append(dst, byte(v))
}
