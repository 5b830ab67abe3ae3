package columns

import (
	"encoding/binary"
	"hash/crc32"

	"github.com/klauspost/compress/zstd"
)

// Encoder makes frames. Not safe for concurrent use.
type Encoder struct {
	s       *state
	max     int
	recs    []rec
	toks    []token
	parts   [][]byte
	shape   []byte
	scratch []byte
	rc      []byte
	z       *zstd.Encoder
}

// NewEncoder keeps at most about maxState bytes.
func NewEncoder(maxState int) *Encoder {
	return &Encoder{max: min(max(maxState, MinState), MaxState)}
}

// Reset forgets everything: the next frame is a first one.
func (e *Encoder) Reset() { e.s = nil }

// MaxState is the bound of the state, for the Decoder.
func (e *Encoder) MaxState() int { return e.max }

// Append appends a frame of whole batches to dst. first says that the frame begins anew:
// the Decoder must be reset before it. After an error nothing was appended, and the next frame is a first one.
func (e *Encoder) Append(dst, batches []byte) (out []byte, first bool, err error) {
	if e.s == nil || e.s.full() {
		e.s, first = newState(e.max), true
	}
	s := e.s
	s.lits = s.lits[:0]
	s.c.startEncode(e.rc[:0])
	for rest := batches; len(rest) > 0; {
		var b []byte
		if b, rest, err = nextBatch(rest); err == nil {
			err = e.batch(b)
		}
		if err != nil {
			e.s = nil
			return dst, false, err
		}
	}
	s.c.bit(&s.more, 0)
	rc := s.c.finish()
	e.rc = s.c.buf
	out = binary.BigEndian.AppendUint32(dst, crc32.Checksum(batches, castagnoli))
	lits := s.lits
	if len(lits) == 0 {
		out = append(out, 0)
		return append(out, rc...), first, nil
	}
	kind := byte(0)
	if len(lits) > 64 {
		if e.z == nil {
			if e.z, err = zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithLowerEncoderMem(true), zstd.WithWindowSize(128<<10)); err != nil {
				return dst, false, err
			}
		}
		if z := e.z.EncodeAll(lits, nil); len(z) < len(lits) {
			lits, kind = append(binary.AppendUvarint(nil, uint64(len(lits))), z...), 1
		}
	}
	out = binary.AppendUvarint(out, uint64(len(lits)+1))
	out = append(out, kind)
	out = append(out, lits...)
	return append(out, rc...), first, nil
}
