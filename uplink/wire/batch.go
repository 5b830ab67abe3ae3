package wire

import (
	"encoding/binary"
	"hash/crc32"
)

// The uplink looks at batches only as far as it must to keep order: the fixed
// header of a Kafka RecordBatch v2 (big endian; layout in storage/record).
const (
	batchHeaderBytes = 61
	batchLenAt       = 8
	batchMagicAt     = 16
	batchCRCAt       = 17
	batchBodyAt      = 21 // first byte under the CRC
	batchDeltaAt     = 23
	batchCountAt     = 57
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Batch is the place of one stored batch.
type Batch struct {
	Base, Next int64 // offsets [Base, Next)
	Records    int   // may be fewer than offsets after compaction
	CRC        uint32
	Bytes      []byte // the whole batch, aliasing the input
}

// NextBatch splits off the first batch of b and checks its sizes, not its CRC.
func NextBatch(b []byte) (Batch, []byte, error) {
	if len(b) < batchHeaderBytes {
		return Batch{}, b, bad("batch of %d bytes", len(b))
	}
	n := int64(int32(binary.BigEndian.Uint32(b[batchLenAt:]))) + 12
	if n < batchHeaderBytes || n > int64(len(b)) {
		return Batch{}, b, bad("batch says it has %d bytes, %d are here", n, len(b))
	}
	if b[batchMagicAt] != 2 {
		return Batch{}, b, bad("batch with magic %d, want 2", b[batchMagicAt])
	}
	base := int64(binary.BigEndian.Uint64(b))
	delta := int64(int32(binary.BigEndian.Uint32(b[batchDeltaAt:])))
	count := int64(int32(binary.BigEndian.Uint32(b[batchCountAt:])))
	if base < 0 || delta < 0 || base > 1<<62 || count < 0 || count > delta+1 {
		return Batch{}, b, bad("batch with base offset %d, last delta %d, %d records", base, delta, count)
	}
	return Batch{Base: base, Next: base + delta + 1, Records: int(count), CRC: binary.BigEndian.Uint32(b[batchCRCAt:]), Bytes: b[:n:n]}, b[n:], nil
}

// Verify says whether the batch's bytes match its CRC32C.
func (b *Batch) Verify() error {
	if c := crc32.Checksum(b.Bytes[batchBodyAt:], castagnoli); c != b.CRC {
		return bad("batch at offset %d: crc is %08x, its bytes give %08x", b.Base, b.CRC, c)
	}
	return nil
}

// VerifyFrame checks that batches are exactly the offsets that h announces, whole,
// contiguous and with good CRCs.
func VerifyFrame(h FrameHeader, batches []byte) error {
	at := h.Base
	for len(batches) > 0 {
		b, rest, err := NextBatch(batches)
		if err != nil {
			return err
		}
		if b.Base != at {
			return bad("batch at offset %d where %d is expected", b.Base, at)
		}
		if err := b.Verify(); err != nil {
			return err
		}
		at, batches = b.Next, rest
	}
	if at != h.Base+h.Count {
		return bad("frame of %d offsets from %d ends at %d", h.Count, h.Base, at)
	}
	return nil
}
