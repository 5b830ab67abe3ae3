package record

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
)

var (
	// ErrShort means that the bytes end before the batch does: more of the
	// same stream may complete it.
	ErrShort = errors.New("batch is longer than the bytes at hand")
	// ErrCorrupt means that the bytes can never be a valid batch.
	ErrCorrupt = errors.New("corrupt batch")
)

func corrupt(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrCorrupt, fmt.Sprintf(format, args...))
}

// Positions of the header's fields; see the package comment.
const (
	posLength     = 8
	posEpoch      = 12
	posMagic      = 16
	posCRC        = 17
	posAttributes = 21
	posLastDelta  = 23
	posBaseTime   = 27
	posMaxTime    = 35
	posProducer   = 43
	posProdEpoch  = 51
	posSequence   = 53
	posCount      = 57
)

// Bits of the attributes.
const (
	CodecMask         = 0x07
	AttrLogAppendTime = 0x08
	AttrTransactional = 0x10
	AttrControl       = 0x20
	attrKnown         = CodecMask | AttrLogAppendTime | AttrTransactional | AttrControl | 0x40 // 0x40: delete horizon
)

// Codecs, as in bits 0-2 of the attributes.
const (
	CodecNone   = 0
	CodecGzip   = 1
	CodecSnappy = 2
	CodecLZ4    = 3
	CodecZstd   = 4
)

// minRecordBytes is the least a record takes: length, attributes, timestamp
// delta, offset delta, key length, value length, header count, a byte each.
const minRecordBytes = 7

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Batch is exactly one whole RecordBatch v2. A Batch that came from [Next] has
// a complete header and the length the header states; every accessor is safe
// on it. Verify says whether the content is sound.
type Batch []byte

// Next returns the first batch of a concatenation of batches and what follows
// it. It checks the bounds, the magic and the sizes, not the CRC. Both results
// alias b. The error is [ErrShort] when b ends too early, else [ErrCorrupt].
func Next(b []byte) (Batch, []byte, error) {
	if len(b) < posMagic+1 {
		return nil, nil, fmt.Errorf("%w: %d bytes, the header has %d", ErrShort, len(b), HeaderBytes)
	}
	if b[posMagic] != 2 {
		return nil, nil, corrupt("magic %d, only 2 is supported", b[posMagic])
	}
	n := int64(int32(binary.BigEndian.Uint32(b[posLength:])))
	if n < HeaderBytes-posEpoch {
		return nil, nil, corrupt("batch length %d, the least is %d", n, HeaderBytes-posEpoch)
	}
	if n += posEpoch; n > int64(len(b)) {
		return nil, nil, fmt.Errorf("%w: batch of %d bytes, %d at hand", ErrShort, n, len(b))
	}
	batch := Batch(b[:n:n])
	if err := batch.checkHeader(); err != nil {
		return nil, nil, err
	}
	return batch, b[n:], nil
}

// checkHeader checks what the accessors' arithmetic relies on.
func (b Batch) checkHeader() error {
	base, delta, count := b.BaseOffset(), b.lastDelta(), b.Count()
	switch {
	case base < 0 || base > math.MaxInt64-math.MaxInt32-1:
		return corrupt("base offset %d", base)
	case delta < 0:
		return corrupt("last offset delta %d", delta)
	case count < 0 || int64(count) > int64(delta)+1:
		return corrupt("%d records in %d offsets", count, int64(delta)+1)
	case b.Attributes()&^attrKnown != 0 || b.Codec() > CodecZstd:
		return corrupt("attributes %#x", uint16(b.Attributes()))
	case b.Codec() == CodecNone && count > (len(b)-HeaderBytes)/minRecordBytes:
		return corrupt("%d records in %d bytes", count, len(b)-HeaderBytes)
	}
	return nil
}

// Verify checks that b is one whole batch: sizes, CRC, and as many records as
// offsets (a batch that a compaction has thinned out is refused). It does not
// look into the records; [Batch.Validate] does.
func (b Batch) Verify() error {
	if err := b.VerifyThinned(); err != nil {
		return err
	}
	if n := b.Count(); int64(n) != int64(b.lastDelta())+1 {
		return corrupt("%d records in %d offsets", n, int64(b.lastDelta())+1)
	}
	return nil
}

// VerifyThinned is Verify for a batch that may have fewer records than offsets.
func (b Batch) VerifyThinned() error {
	batch, rest, err := Next(b)
	if err != nil {
		return err
	}
	if len(rest) != 0 {
		return corrupt("%d bytes after the batch", len(rest))
	}
	if batch.Count() == 0 {
		return corrupt("a batch without records")
	}
	if sum := batch.sum(); sum != batch.CRC() {
		return corrupt("crc32c %08x, header says %08x (base offset %d, %d bytes)", sum, batch.CRC(), batch.BaseOffset(), len(batch))
	}
	return nil
}

// Validate is Verify, and parses every record: their bounds, their offset
// deltas 0, 1, 2 …, and that the maximal timestamp is the header's. It is for
// batches that another program has built.
func (b Batch) Validate(d *Decompressor) error {
	if err := b.Verify(); err != nil {
		return err
	}
	maxTime := int64(math.MinInt64)
	next := b.BaseOffset()
	it := b.Iter(d)
	for it.Next() {
		r := it.Record()
		if r.Offset != next {
			return corrupt("offset delta %d at record %d", r.Offset-b.BaseOffset(), next-b.BaseOffset())
		}
		maxTime = max(maxTime, r.Timestamp)
		next++
	}
	if err := it.Err(); err != nil {
		return err
	}
	if maxTime != b.MaxTimestamp() {
		return corrupt("maximal timestamp %d, header says %d", maxTime, b.MaxTimestamp())
	}
	return nil
}

func (b Batch) sum() uint32 { return crc32.Checksum(b[posAttributes:], castagnoli) }

func (b Batch) lastDelta() int32 { return int32(binary.BigEndian.Uint32(b[posLastDelta:])) }

// BaseOffset is the offset of the first record.
func (b Batch) BaseOffset() int64 { return int64(binary.BigEndian.Uint64(b)) }

// LastOffset is the offset of the last record.
func (b Batch) LastOffset() int64 { return b.BaseOffset() + int64(b.lastDelta()) }

// NextOffset is the offset that follows the batch.
func (b Batch) NextOffset() int64 { return b.LastOffset() + 1 }

// Count is the number of records.
func (b Batch) Count() int { return int(int32(binary.BigEndian.Uint32(b[posCount:]))) }

// LeaderEpoch is the partition leader epoch.
func (b Batch) LeaderEpoch() int32 { return int32(binary.BigEndian.Uint32(b[posEpoch:])) }

// CRC is the CRC32C that the header states.
func (b Batch) CRC() uint32 { return binary.BigEndian.Uint32(b[posCRC:]) }

// Attributes are the codec and the flags.
func (b Batch) Attributes() int16 { return int16(binary.BigEndian.Uint16(b[posAttributes:])) }

// Codec is the compression of the records, CodecNone … CodecZstd.
func (b Batch) Codec() int { return int(b.Attributes() & CodecMask) }

// BaseTimestamp is the timestamp of the first record, ms since 1970.
func (b Batch) BaseTimestamp() int64 { return int64(binary.BigEndian.Uint64(b[posBaseTime:])) }

// MaxTimestamp is the largest timestamp, ms since 1970.
func (b Batch) MaxTimestamp() int64 { return int64(binary.BigEndian.Uint64(b[posMaxTime:])) }

// MinTimestamp is the least timestamp of the records of an uncompressed batch that has passed
// Verify. It looks at no more of a record than its beginning; false when they do not parse.
func (b Batch) MinTimestamp() (lo int64, ok bool) {
	it := b.Iter(nil)
	for lo = math.MaxInt64; it.nextRaw(); {
		lo = min(lo, it.rec.Timestamp)
	}
	return lo, it.err == nil
}

// ProducerID is -1 when the producer was not idempotent.
func (b Batch) ProducerID() int64 { return int64(binary.BigEndian.Uint64(b[posProducer:])) }

// ProducerEpoch is -1 when there is no producer id.
func (b Batch) ProducerEpoch() int16 { return int16(binary.BigEndian.Uint16(b[posProdEpoch:])) }

// BaseSequence is -1 when there is no producer id.
func (b Batch) BaseSequence() int32 { return int32(binary.BigEndian.Uint32(b[posSequence:])) }

// SetBaseOffset stamps the offset. It lies outside the CRC.
func (b Batch) SetBaseOffset(off int64) { binary.BigEndian.PutUint64(b, uint64(off)) }

// SetLeaderEpoch stamps the leader epoch. It lies outside the CRC.
func (b Batch) SetLeaderEpoch(e int32) { binary.BigEndian.PutUint32(b[posEpoch:], uint32(e)) }

// SetProducer patches producer id, epoch, first sequence and the transactional
// bit, and the CRC with them. The records are not touched, so a compressed
// batch stays as it is.
func (b Batch) SetProducer(id int64, epoch int16, sequence int32, transactional bool) {
	attrs := b.Attributes() &^ AttrTransactional
	if transactional {
		attrs |= AttrTransactional
	}
	binary.BigEndian.PutUint16(b[posAttributes:], uint16(attrs))
	binary.BigEndian.PutUint64(b[posProducer:], uint64(id))
	binary.BigEndian.PutUint16(b[posProdEpoch:], uint16(epoch))
	binary.BigEndian.PutUint32(b[posSequence:], uint32(sequence))
	binary.BigEndian.PutUint32(b[posCRC:], b.sum())
}
