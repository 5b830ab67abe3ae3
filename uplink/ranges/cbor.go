package ranges

import (
	"errors"
	"fmt"
	"math"

	"github.com/fxamacker/cbor/v2"
)

// On the wire a set is one CBOR array of unsigned integers, first the gap to the
// end of the range before (from 0 for the first), then the length, and so on:
// [0,5)[7,9) is [0, 5, 2, 2]. Sorted, non-empty and non-touching by construction:
// every length and every gap but the first is at least 1.

var errWire = errors.New("range set: want an array of pairs gap, length with gap and length at least 1 (the first gap may be 0)")

// MarshalCBOR implements cbor.Marshaler.
func (s Set) MarshalCBOR() ([]byte, error) {
	if !s.Valid() {
		return nil, fmt.Errorf("encode range set %s: not sorted or not disjoint", s)
	}
	flat := make([]uint64, 0, 2*len(s))
	var end int64
	for _, r := range s {
		flat = append(flat, uint64(r.From-end), uint64(r.To-r.From))
		end = r.To
	}
	return cbor.Marshal(flat)
}

// UnmarshalCBOR implements cbor.Unmarshaler.
func (s *Set) UnmarshalCBOR(b []byte) error {
	var flat []uint64
	if err := cbor.Unmarshal(b, &flat); err != nil {
		return fmt.Errorf("decode range set: %w", err)
	}
	if len(flat)%2 != 0 {
		return errWire
	}
	if len(flat) == 0 {
		*s = nil
		return nil
	}
	out := make(Set, 0, len(flat)/2)
	var end uint64
	for i := 0; i < len(flat); i += 2 {
		gap, n := flat[i], flat[i+1]
		if n == 0 || gap == 0 && i > 0 || gap > math.MaxInt64-end || n > math.MaxInt64-end-gap {
			return errWire
		}
		out = append(out, Range{int64(end + gap), int64(end + gap + n)})
		end += gap + n
	}
	*s = out
	return nil
}
