package storage

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"tailrace/storage/record"
)

// An entry of the log is an envelope, an optional origin and a payload. All
// integers are big endian. The same table, with the payloads, is in FORMAT.md.
//
//	off size field
//	  0    2 magic "TR"
//	  2    1 version = 1
//	  3    1 kind: 1 data, 2 state, 3 damage, 4 packed data, 5 packed state
//	  4    1 flags: 1 first entry of its commit, 2 last entry of its commit
//	  5    1 zero
//	  6    2 origin length O
//	  8    4 crc32c of [0:8) and [12:end)
//	 12    4 epoch number
//	 16    8 log index (of tidwall/wal)
//	 24    8 commit number
//	 32    8 commit time, ms since 1970
//	 40    4 partition id (0 unless data)
//	 44    4 payload length P
//	 48    O origin
//	 48+O  P payload
//
// The index in the envelope tells a stale or misplaced entry from the right one
// and how many entries a damaged stretch held; the payload length makes the
// envelope whole without the length before it.
const (
	envelopeBytes = 48
	formatVersion = 1

	entryData   = 1
	entryState  = 2
	entryDamage = 3
	packedKind  = 3 // more than the kind of what is packed: envelope.packed

	flagFirst = 1
	flagLast  = 2

	// maxEntryBytes bounds what a reader allocates for one entry.
	maxEntryBytes = MaxRecordBytes + MaxStateBytes + (64 << 10)
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// envelope is a decoded entry; origin and payload alias the bytes decoded.
type envelope struct {
	kind      uint8
	packed    bool // data or state, see batch and ops
	flags     uint8
	epoch     int32
	index     uint64
	commit    uint64
	time      int64
	partition PartitionID
	origin    []byte
	payload   []byte
}

// sealEnvelope fills in the first envelopeBytes of b, an entry whose origin (of
// originLen bytes) and payload are in place.
func sealEnvelope(b []byte, e *envelope, originLen int) {
	b[0], b[1], b[2], b[3], b[4], b[5] = 'T', 'R', formatVersion, e.kind, e.flags, 0
	if e.packed {
		b[3] += packedKind
	}
	binary.BigEndian.PutUint16(b[6:], uint16(originLen))
	binary.BigEndian.PutUint32(b[12:], uint32(e.epoch))
	binary.BigEndian.PutUint64(b[16:], e.index)
	binary.BigEndian.PutUint64(b[24:], e.commit)
	binary.BigEndian.PutUint64(b[32:], uint64(e.time))
	binary.BigEndian.PutUint32(b[40:], uint32(e.partition))
	binary.BigEndian.PutUint32(b[44:], uint32(len(b)-envelopeBytes-originLen))
	binary.BigEndian.PutUint32(b[8:], envelopeSum(b))
}

func envelopeSum(b []byte) uint32 {
	return crc32.Update(crc32.Checksum(b[:8], castagnoli), castagnoli, b[12:])
}

// envelopeLen returns the length of the entry that begins at b[0], by its own
// header, or false when the header cannot be one.
func envelopeLen(b []byte) (int, bool) {
	if len(b) < envelopeBytes || b[0] != 'T' || b[1] != 'R' || b[2] == 0 {
		return 0, false
	}
	n := uint64(envelopeBytes) + uint64(binary.BigEndian.Uint16(b[6:])) + uint64(binary.BigEndian.Uint32(b[44:]))
	return int(n), n <= maxEntryBytes
}

// decodeEnvelope takes one entry apart and checks everything in it but the
// payload's own form.
func decodeEnvelope(b []byte) (envelope, error) {
	var e envelope
	if len(b) < envelopeBytes {
		return e, fmt.Errorf("entry of %d bytes, an envelope has %d", len(b), envelopeBytes)
	}
	n, ok := envelopeLen(b)
	if !ok || n != len(b) {
		return e, fmt.Errorf("entry of %d bytes does not begin with an envelope of its length", len(b))
	}
	if sum, want := envelopeSum(b), binary.BigEndian.Uint32(b[8:]); sum != want {
		return e, fmt.Errorf("crc32c %08x, envelope says %08x", sum, want)
	}
	if b[2] != formatVersion {
		return e, fmt.Errorf("%w: entry version %d, this program knows %d: use a newer one", errVersion, b[2], formatVersion)
	}
	e = envelope{
		kind: b[3], flags: b[4],
		epoch:     int32(binary.BigEndian.Uint32(b[12:])),
		index:     binary.BigEndian.Uint64(b[16:]),
		commit:    binary.BigEndian.Uint64(b[24:]),
		time:      int64(binary.BigEndian.Uint64(b[32:])),
		partition: PartitionID(binary.BigEndian.Uint32(b[40:])),
	}
	o := envelopeBytes + int(binary.BigEndian.Uint16(b[6:]))
	e.origin, e.payload = b[envelopeBytes:o:o], b[o:]
	if e.packed = e.kind > entryDamage; e.packed {
		e.kind -= packedKind
	}
	if e.kind < entryData || e.kind > entryDamage || e.packed && e.kind == entryDamage {
		return e, fmt.Errorf("%w: entry kind %d: use a newer program", errVersion, b[3])
	}
	return e, nil
}

// packOps appends the payload of a packed state entry to dst, and tells whether it is
// smaller than the operations as they are. Further ones may follow it.
func packOps(dst, ops []byte) ([]byte, bool) {
	at := len(dst)
	from := at + binary.MaxVarintLen32
	dst = record.AppendSnappy(append(dst, make([]byte, binary.MaxVarintLen32)...), ops)
	block := dst[from:]
	dst = append(binary.AppendUvarint(dst[:at], uint64(len(block))), block...)
	return dst, len(dst)-at < len(ops)
}

// ops are the operations of a state entry. Packed ones are unpacked into scratch.
func (e *envelope) ops(scratch *[]byte) ([]byte, error) {
	if !e.packed {
		return e.payload, nil
	}
	block, rest, ok := lengthPrefixed(e.payload)
	if !ok {
		return nil, errors.New("packed state does not fit its entry")
	}
	out, err := record.Snappy((*scratch)[:0], block, maxEntryBytes)
	if err != nil {
		return nil, err
	}
	out = append(out, rest...)
	*scratch = out[:0]
	return out, nil
}

// batch is the batch of a data entry. A packed one is unpacked into scratch.
func (e *envelope) batch(scratch *[]byte) (record.Batch, error) {
	if e.packed {
		out, err := record.Unpack((*scratch)[:0], e.epoch, e.payload, maxEntryBytes)
		*scratch = out[:0]
		return out, err
	}
	b, rest, err := record.Next(e.payload)
	if err == nil && len(rest) != 0 {
		err = errors.New("bytes behind the batch")
	}
	return b, err
}

// appendOrigin encodes an origin; decodeOrigin is its inverse.
//
//	node length 1, node; epoch id 16; partition 4; from 8; to 8; topic
func appendOrigin(dst []byte, o *Origin) []byte {
	dst = append(dst, byte(len(o.Node)))
	dst = append(dst, o.Node...)
	dst = append(dst, o.Epoch[:]...)
	dst = binary.BigEndian.AppendUint32(dst, uint32(o.Partition))
	dst = binary.BigEndian.AppendUint64(dst, uint64(o.From))
	dst = binary.BigEndian.AppendUint64(dst, uint64(o.To))
	return append(dst, o.Topic...)
}

// maxOrigin is what appendOrigin adds at most.
func maxOrigin(o *Origin) int {
	if o == nil {
		return 0
	}
	return 37 + len(o.Node) + len(o.Topic)
}

func decodeOrigin(b []byte) (Origin, bool) {
	var o Origin
	if len(b) < 1 || len(b) < 1+int(b[0])+36 {
		return o, false
	}
	n := int(b[0])
	o.Node, b = string(b[1:1+n]), b[1+n:]
	copy(o.Epoch[:], b)
	o.Partition = int(binary.BigEndian.Uint32(b[16:]))
	o.From = int64(binary.BigEndian.Uint64(b[20:]))
	o.To = int64(binary.BigEndian.Uint64(b[28:]))
	o.Topic = string(b[36:])
	return o, true
}

// State operations, one after the other in the payload of a state entry:
//
//	kind 1, operation 1 (0 delete, 1 set, 2 fold), uvarint key length, key,
//	uvarint value length, value
const (
	opDelete = 0
	opSet    = 1
	opFold   = 2
)

func appendOp[K ~string | ~[]byte](dst []byte, kind StateKind, op byte, key K, value []byte) []byte {
	dst = append(dst, byte(kind), op)
	dst = binary.AppendUvarint(dst, uint64(len(key)))
	dst = append(dst, key...)
	dst = binary.AppendUvarint(dst, uint64(len(value)))
	return append(dst, value...)
}

// nextOp takes the first operation off b.
func nextOp(b []byte) (kind StateKind, op byte, key, value, rest []byte, err error) {
	fail := func() (StateKind, byte, []byte, []byte, []byte, error) {
		return 0, 0, nil, nil, nil, fmt.Errorf("state operation does not fit its entry (%d bytes left)", len(b))
	}
	if len(b) < 4 {
		return fail()
	}
	kind, op = StateKind(b[0]), b[1]
	key, rest, ok := lengthPrefixed(b[2:])
	if !ok {
		return fail()
	}
	value, rest, ok = lengthPrefixed(rest)
	if !ok || op > opFold {
		return fail()
	}
	return kind, op, key, value, rest, nil
}

func lengthPrefixed(b []byte) (field, rest []byte, ok bool) {
	n, w := binary.Uvarint(b)
	if w <= 0 || n > uint64(len(b)-w) {
		return nil, nil, false
	}
	end := w + int(n)
	return b[w:end:end], b[end:], true
}

// lostRange is part of a damage entry's payload: a range of offsets that the
// damaged stretch is known to have held.
type lostRange struct {
	partition PartitionID
	from, to  int64
}

// damagePayload: lost bytes 8, then for each known range partition 4, from 8, to 8.
func damagePayload(dst []byte, lostBytes int64, ranges []lostRange) []byte {
	dst = binary.BigEndian.AppendUint64(dst, uint64(lostBytes))
	for _, r := range ranges {
		dst = binary.BigEndian.AppendUint32(dst, uint32(r.partition))
		dst = binary.BigEndian.AppendUint64(dst, uint64(r.from))
		dst = binary.BigEndian.AppendUint64(dst, uint64(r.to))
	}
	return dst
}

func parseDamage(b []byte) (lostBytes int64, ranges []lostRange) {
	if len(b) < 8 {
		return 0, nil
	}
	lostBytes = int64(binary.BigEndian.Uint64(b))
	for b = b[8:]; len(b) >= 20; b = b[20:] {
		ranges = append(ranges, lostRange{PartitionID(binary.BigEndian.Uint32(b)),
			int64(binary.BigEndian.Uint64(b[4:])), int64(binary.BigEndian.Uint64(b[12:]))})
	}
	return lostBytes, ranges
}
