package storage

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"

	"tailrace/storage/internal/durable"
	"tailrace/storage/record"
)

// ref is one batch in a segment.
type ref struct {
	base, next int64 // offsets, half-open
	min, max   int64 // timestamps; min is math.MinInt64 when unknown
	pos        int64 // of the envelope in the segment file
	size       int32 // of the envelope with all in it
}

// scanned is one entry of a segment, or a damaged stretch in the place of some.
type scanned struct {
	env  envelope
	pos  int64 // of the length before the entry
	body int64 // of the envelope
	end  int64
	// lost > 0: [pos, end) is damaged and held that many entries, the first of
	// index env.index. Zero with damaged: only the length before the following
	// entry is wrong.
	lost    uint64
	damaged bool
}

// segmentScan is what a segment's bytes say.
type segmentScan struct {
	entries []scanned
	next    uint64 // index after the last entry found
	end     int64  // of the last valid entry
	size    int64
	// tornAt is where bytes begin that no valid entry follows; size when there
	// are none.
	tornAt int64
	bad    []durable.Range // the disk refused to read: zeros in the data
	gone   bool            // there was no file, see scanLive
}

func (sc *segmentScan) damaged() bool {
	for i := range sc.entries {
		if sc.entries[i].damaged {
			return true
		}
	}
	return false
}

// scanSegment reads the entries in data, the content of the segment whose first
// index is first. It stops for nothing but a later format: behind damage it looks
// for the next valid envelope with a higher index. Its error is errVersion.
func scanSegment(data []byte, first uint64) (*segmentScan, error) {
	sc := &segmentScan{next: first, size: int64(len(data))}
	pos := 0
	for pos < len(data) {
		env, body, end, err := entryAt(data, pos, sc.next)
		if err == nil {
			sc.entries = append(sc.entries, scanned{env: env, pos: int64(pos), body: int64(body), end: int64(end)})
			sc.next++
			pos = end
			continue
		}
		if errors.Is(err, errVersion) {
			return nil, err
		}
		env, at, err := lookAhead(data, pos, sc.next)
		if err != nil {
			return nil, err
		}
		if at < 0 {
			break
		}
		n := envelopeBytes + len(env.origin) + len(env.payload)
		framing := max(pos, at-uvarintLen(uint64(n)))
		sc.entries = append(sc.entries,
			scanned{env: envelope{index: sc.next}, pos: int64(pos), end: int64(framing), lost: env.index - sc.next, damaged: true},
			scanned{env: env, pos: int64(framing), body: int64(at), end: int64(at + n)})
		sc.next = env.index + 1
		pos = at + n
	}
	sc.tornAt, sc.end = int64(pos), int64(pos)
	return sc, nil
}

// errDamaged says only that there is no valid entry at a position.
var errDamaged = errors.New("no valid entry here")

// entryAt decodes the entry whose length is at pos and that must have the index.
func entryAt(data []byte, pos int, index uint64) (env envelope, body, end int, err error) {
	n, w := binary.Uvarint(data[pos:])
	if w <= 0 || n < envelopeBytes || n > uint64(len(data)-pos-w) || n > maxEntryBytes {
		return env, 0, 0, errDamaged
	}
	body, end = pos+w, pos+w+int(n)
	env, err = decodeEnvelope(data[body:end:end])
	if err == nil && env.index != index {
		err = errDamaged
	}
	return env, body, end, err
}

// lookAhead finds the first valid envelope after pos with at least the index
// given. The stretch before it must be long enough for the entries it skips.
func lookAhead(data []byte, pos int, index uint64) (envelope, int, error) {
	for at := pos + 1; ; at++ {
		i := bytes.Index(data[at:], []byte{'T', 'R'})
		if i < 0 {
			return envelope{}, -1, nil
		}
		at += i
		n, ok := envelopeLen(data[at:])
		if !ok || n > len(data)-at {
			continue
		}
		got := binary.BigEndian.Uint64(data[at+16:])
		if got < index || got-index > uint64(at-pos)/(envelopeBytes+1) {
			continue
		}
		env, err := decodeEnvelope(data[at : at+n : at+n])
		if errors.Is(err, errVersion) {
			return env, -1, err
		}
		if err == nil {
			return env, at, nil
		}
	}
}

func uvarintLen(v uint64) int {
	n := 1
	for ; v >= 0x80; v >>= 7 {
		n++
	}
	return n
}

// dataRef describes the batch of a data entry; body is the envelope's position.
func dataRef(env *envelope, body int64) (ref, bool) {
	bp := readBuffers.Get().(*[]byte)
	defer putBuffer(bp)
	b, err := env.batch(bp)
	if err != nil {
		return ref{}, false
	}
	lo, hi := batchTimes(b)
	return ref{base: b.BaseOffset(), next: b.NextOffset(), min: lo, max: hi, pos: body,
		size: int32(envelopeBytes + len(env.origin) + len(env.payload))}, true
}

// batchTimes returns the least and the greatest timestamp in b. The least is not
// in the header and takes a walk over the records; in a compressed batch it is
// unknown, math.MinInt64.
func batchTimes(b record.Batch) (lo, hi int64) {
	hi = b.MaxTimestamp()
	if b.Attributes()&record.AttrLogAppendTime != 0 {
		return hi, hi
	}
	if b.Count() == 1 {
		return hi, hi
	}
	if b.Codec() != record.CodecNone {
		return math.MinInt64, hi
	}
	if lo, ok := b.MinTimestamp(); ok {
		return lo, hi
	}
	return math.MinInt64, hi
}

// salvage guesses which offsets a damaged stretch held from what is left of its
// first envelope: believed only when partition and base offset are the ones that
// had to come next.
func salvage(b []byte, next map[PartitionID]int64) (lostRange, bool) {
	_, w := binary.Uvarint(b)
	if w <= 0 || len(b) < w+envelopeBytes {
		return lostRange{}, false
	}
	b = b[w:]
	id := PartitionID(binary.BigEndian.Uint32(b[40:]))
	o := envelopeBytes + int(binary.BigEndian.Uint16(b[6:]))
	want, known := next[id]
	if !known || len(b) < o {
		return lostRange{}, false
	}
	var base, count int64
	switch b[3] {
	case entryData:
		if len(b) < o+record.HeaderBytes {
			return lostRange{}, false
		}
		base, count = int64(binary.BigEndian.Uint64(b[o:])), int64(int32(binary.BigEndian.Uint32(b[o+57:])))
		if int64(int32(binary.BigEndian.Uint32(b[o+23:]))) != count-1 {
			return lostRange{}, false
		}
	case entryData + packedKind:
		from, to, ok := record.PackedRange(b[o:])
		if !ok {
			return lostRange{}, false
		}
		base, count = from, to-from
	default:
		return lostRange{}, false
	}
	if base != want || count < 1 || count > MaxRecordBytes/7 {
		return lostRange{}, false
	}
	return lostRange{id, base, base + count}, true
}
