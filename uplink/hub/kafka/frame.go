package kafka

import (
	"encoding/binary"
	"errors"
	"math"
	"slices"

	"github.com/twmb/franz-go/pkg/kmsg"
)

var errShortRequest = errors.New("request ends before its fields do")

// header is a request header, v0 to v2 (the protocol guide, "Messages").
type header struct {
	key, version int16
	correlation  int32
	clientID     string
	flexible     bool
}

// parseFixed reads the part of the header that is the same in every version
// and returns what follows it.
func parseFixed(b []byte) (header, []byte, error) {
	if len(b) < 8 {
		return header{}, nil, errShortRequest
	}
	return header{
		key:         int16(binary.BigEndian.Uint16(b)),
		version:     int16(binary.BigEndian.Uint16(b[2:])),
		correlation: int32(binary.BigEndian.Uint32(b[4:])),
	}, b[8:], nil
}

// finish reads the rest of the header: client id, and the tagged fields when
// the request is of a flexible version. It returns the body.
func (h *header) finish(b []byte) ([]byte, error) {
	r := reader{b: b}
	h.clientID = r.nullableString()
	if h.flexible {
		r.tags()
	}
	if r.bad {
		return nil, errShortRequest
	}
	return r.b, nil
}

// reader takes Kafka's primitive types from untrusted bytes. After the first
// value that does not fit it is bad and yields zeros. Nothing is copied but
// strings.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) span(n int) []byte {
	if r.bad || n < 0 || n > len(r.b) {
		r.bad, r.b = true, nil
		return nil
	}
	out := r.b[:n:n]
	r.b = r.b[n:]
	return out
}

func (r *reader) int16() int16 {
	if b := r.span(2); b != nil {
		return int16(binary.BigEndian.Uint16(b))
	}
	return 0
}

func (r *reader) int32() int32 {
	if b := r.span(4); b != nil {
		return int32(binary.BigEndian.Uint32(b))
	}
	return 0
}

func (r *reader) uvarint() uint32 {
	var v uint32
	for i := range 5 {
		b := r.span(1)
		if b == nil {
			return 0
		}
		v |= uint32(b[0]&0x7f) << (7 * i)
		if b[0] < 0x80 {
			if i == 4 && b[0] > 0x0f {
				break
			}
			return v
		}
	}
	r.bad, r.b = true, nil
	return 0
}

// compact reads the length of a compact string, bytes or array; -1 is null. One that no
// frame can hold is bad, also where an int has 32 bits.
func (r *reader) compact() int {
	n := r.uvarint()
	if n > math.MaxInt32 {
		r.bad, r.b = true, nil
		return -1
	}
	return int(n) - 1
}

func (r *reader) nullableString() string {
	if n := r.int16(); n >= 0 {
		return string(r.span(int(n)))
	}
	return ""
}

// str reads a string; null is told apart from empty by ok.
func (r *reader) str(flexible bool) (s string, ok bool) {
	n := 0
	if flexible {
		n = r.compact()
	} else {
		n = int(r.int16())
	}
	if n < 0 {
		return "", false
	}
	return string(r.span(n)), !r.bad
}

func (r *reader) bytes(flexible bool) []byte {
	n := 0
	if flexible {
		n = r.compact()
	} else {
		n = int(r.int32())
	}
	if n < 0 {
		return nil
	}
	return r.span(n)
}

// array reads an array length; an element takes at least elem bytes, so that a
// length is never believed beyond what can follow it.
func (r *reader) array(flexible bool, elem int) int {
	n := 0
	if flexible {
		n = r.compact()
	} else {
		n = int(r.int32())
	}
	if n < 0 {
		return 0
	}
	if n > len(r.b)/elem {
		r.bad, r.b = true, nil
		return 0
	}
	return n
}

// tags takes tagged fields, but none of the tags refused.
func (r *reader) tags(refused ...uint32) {
	for n := r.uvarint(); n > 0 && !r.bad; n-- {
		if slices.Contains(refused, r.uvarint()) {
			r.bad, r.b = true, nil
		}
		r.span(int(r.uvarint())) // negative where an int has 32 bits is as bad as too many
	}
}

// appendHeader begins a response frame: room for the length, the correlation
// id, and the empty tagged fields of a flexible response header. ApiVersions
// has none in any version, since a client reads it before it knows what we
// speak (KIP-511).
func appendHeader(dst []byte, h header) []byte {
	dst = binary.BigEndian.AppendUint32(append(dst, 0, 0, 0, 0), uint32(h.correlation))
	if h.flexible && h.key != kmsg.ApiVersions.Int16() {
		dst = append(dst, 0)
	}
	return dst
}

// setLength fills in the length of a frame that starts b; more follows it.
func setLength(b []byte, more int) { binary.BigEndian.PutUint32(b, uint32(len(b)-4+more)) }

// flexible tells whether the version of a known key has tagged fields.
func flexible(key, version int16) bool {
	req := kmsg.RequestForKey(key)
	req.SetVersion(version)
	return req.IsFlexible()
}
