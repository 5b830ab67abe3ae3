package record

import (
	"encoding/binary"
	"hash/crc32"
	"math"
)

// Thin appends to dst the batch b with only those records for which keep answers
// true, as Kafka's log cleaner leaves it: base offset, last offset delta, base
// timestamp and producer stay, so that the records keep their offsets and the
// batch its place; count and maximal timestamp are those of what is left. With all
// records kept it is b byte for byte, with none nothing is appended. What was
// compressed becomes zstd when that pays. b must have passed
// [Batch.VerifyThinned]; a record is valid during its call of keep.
func (b Batch) Thin(dst []byte, d *Decompressor, keep func(*Record) bool) (out []byte, kept int, err error) {
	at := len(dst)
	dst = append(dst, b[:HeaderBytes]...)
	maxTime := int64(math.MinInt64)
	it := b.Iter(d)
	for {
		before := it.rest
		if !it.Next() {
			break
		}
		if !keep(&it.rec) {
			continue
		}
		dst = append(dst, before[:len(before)-len(it.rest)]...)
		maxTime = max(maxTime, it.rec.Timestamp)
		kept++
	}
	switch err := it.Err(); {
	case err != nil:
		return dst[:at], 0, err
	case kept == 0:
		return dst[:at], 0, nil
	case kept == b.Count():
		return append(dst[:at], b...), kept, nil
	}
	h := Batch(dst[at:])
	binary.BigEndian.PutUint32(h[posLength:], uint32(len(h)-posEpoch))
	binary.BigEndian.PutUint16(h[posAttributes:], uint16(b.Attributes())&^CodecMask)
	binary.BigEndian.PutUint64(h[posMaxTime:], uint64(maxTime))
	binary.BigEndian.PutUint32(h[posCount:], uint32(kept))
	binary.BigEndian.PutUint32(h[posCRC:], crc32.Checksum(h[posAttributes:], castagnoli))
	if b.Codec() != CodecNone && len(h) >= CompressMinBytes {
		return append(dst[:at], Compress(nil, h)...), kept, nil
	}
	return dst, kept, nil
}
