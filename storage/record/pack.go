package record

import (
	"encoding/binary"
	"hash/crc32"
	"math"
	"slices"

	"github.com/klauspost/compress/s2"
)

// A packed batch is a batch as a log on flash keeps it: what its header says beyond the usual,
// and the records as one block of snappy. It is not Kafka's, nobody but the log sees it, and
// what is unpacked is the batch as it was, byte for byte.
//
//	uvarint base offset
//	uvarint number of records
//	varint  base timestamp
//	uvarint maximal minus base timestamp
//	4       CRC32C of the batch
//	2       the lower half of the CRC32C of all before: of a damaged entry these fields say which
//	        offsets it held, and nothing else says it again
//	rest    records, a raw snappy block

// Pack appends to dst the batch b, packed, and tells whether it did: b must be one that a
// [Builder] has made, and become smaller.
func Pack(dst []byte, b Batch) ([]byte, bool) {
	count, base, lo, hi := b.Count(), b.BaseOffset(), b.BaseTimestamp(), b.MaxTimestamp()
	if b.Attributes() != 0 || string(b[posProducer:posCount]) != string(blank[posProducer:posCount]) ||
		count < 1 || int64(b.lastDelta()) != int64(count)-1 || base < 0 || hi < lo {
		return dst, false
	}
	at := len(dst)
	dst = binary.AppendUvarint(dst, uint64(base))
	dst = binary.AppendUvarint(dst, uint64(count))
	dst = binary.AppendVarint(dst, lo)
	dst = binary.AppendUvarint(dst, uint64(hi)-uint64(lo))
	dst = binary.BigEndian.AppendUint32(dst, b.CRC())
	dst = binary.BigEndian.AppendUint16(dst, uint16(crc32.Checksum(dst[at:], castagnoli)))
	if dst = AppendSnappy(dst, b[HeaderBytes:]); len(dst)-at >= len(b) {
		return dst[:at], false
	}
	return dst, true
}

// AppendSnappy appends b as one raw block of snappy; b is not larger than 1 GiB.
func AppendSnappy(dst, b []byte) []byte {
	at, most := len(dst), s2.MaxEncodedLen(len(b))
	dst = slices.Grow(dst, most)
	return dst[:at+len(s2.EncodeSnappy(dst[at:at+most], b))]
}

// Snappy appends to dst what a raw block of snappy holds, at most limit bytes. Errors are as
// those of [Unpack].
func Snappy(dst, block []byte, limit int) ([]byte, error) {
	d := Decompressor{max: limit}
	return d.snappyBlock(dst, block, len(dst))
}

// packedHead is what stands before the records of a packed batch.
type packedHead struct {
	base   int64
	count  int32
	lo, hi int64
	crc    uint32
}

func (h *packedHead) read(src []byte) (rest []byte, ok bool) {
	whole := src
	base, n := binary.Uvarint(src)
	if n <= 0 || base > math.MaxInt64-math.MaxInt32-1 {
		return nil, false
	}
	src = src[n:]
	count, n := binary.Uvarint(src)
	if n <= 0 || count < 1 || count > math.MaxInt32 {
		return nil, false
	}
	src = src[n:]
	lo, n := binary.Varint(src)
	if n <= 0 {
		return nil, false
	}
	src = src[n:]
	span, n := binary.Uvarint(src)
	if n <= 0 || span > uint64(math.MaxInt64)-uint64(lo) || len(src) < n+6 {
		return nil, false
	}
	if head := whole[:len(whole)-len(src)+n+4]; uint16(crc32.Checksum(head, castagnoli)) != binary.BigEndian.Uint16(src[n+4:]) {
		return nil, false
	}
	*h = packedHead{base: int64(base), count: int32(count), lo: lo, hi: int64(uint64(lo) + span), crc: binary.BigEndian.Uint32(src[n:])}
	return src[n+6:], true
}

// PackedRange is the range of offsets of a packed batch whose beginning is whole.
func PackedRange(src []byte) (base, next int64, ok bool) {
	var h packedHead
	_, ok = h.read(src)
	return h.base, h.base + int64(h.count), ok
}

// Unpack appends to dst the batch that src holds packed, with the leader epoch given; its CRC
// is right. One of more than limit bytes is [ErrTooLarge], other errors wrap [ErrCorrupt].
func Unpack(dst []byte, epoch int32, src []byte, limit int) ([]byte, error) {
	var h packedHead
	src, ok := h.read(src)
	if !ok {
		return dst, corrupt("the head of a packed batch")
	}
	at := len(dst)
	out, err := Snappy(append(dst, blank[:]...), src, limit-HeaderBytes)
	if err != nil {
		return dst, err
	}
	b := Batch(out[at:])
	if int(h.count) > (len(b)-HeaderBytes)/minRecordBytes {
		return dst, corrupt("%d records in %d bytes", h.count, len(b)-HeaderBytes)
	}
	b.head(h.base, epoch, int(h.count), h.lo, h.hi)
	if sum := b.sum(); sum != h.crc {
		return dst, corrupt("crc32c %08x, packed says %08x (base offset %d, %d bytes)", sum, h.crc, h.base, len(b))
	}
	binary.BigEndian.PutUint32(b[posCRC:], h.crc)
	return out, nil
}

// head fills in the header of a batch of a [Builder], but for the CRC.
func (b Batch) head(base int64, epoch int32, count int, lo, hi int64) {
	binary.BigEndian.PutUint64(b, uint64(base))
	binary.BigEndian.PutUint32(b[posLength:], uint32(len(b)-posEpoch))
	binary.BigEndian.PutUint32(b[posEpoch:], uint32(epoch))
	binary.BigEndian.PutUint32(b[posLastDelta:], uint32(count-1))
	binary.BigEndian.PutUint64(b[posBaseTime:], uint64(lo))
	binary.BigEndian.PutUint64(b[posMaxTime:], uint64(hi))
	binary.BigEndian.PutUint32(b[posCount:], uint32(count))
}
