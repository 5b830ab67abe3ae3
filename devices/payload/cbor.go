package payload

import (
	"encoding/binary"
	"math"
)

// maxNesting bounds the depth of a payload (and so our recursion).
const maxNesting = 16

func (t *TimeField) cborTime(payload []byte) (int64, error) {
	h, rest, err := t.cborItem(payload)
	if err != nil {
		return 0, err
	}
	switch h.major {
	case 0, 1:
		if h.arg > math.MaxInt64 {
			return 0, ErrRange
		}
		n := int64(h.arg)
		if h.major == 1 {
			n = -1 - n
		}
		return t.format.fromInt(n)
	case 3:
		if h.indefinite {
			return 0, ErrRange // text in chunks: legal, and nobody writes a time so
		}
		return t.format.fromText(string(rest[:h.arg]))
	case 7:
		switch h.info {
		case 22, 23: // null, undefined
			return 0, ErrAbsent
		case 25:
			return t.format.fromFloat(halfFloat(uint16(h.arg)))
		case 26:
			return t.format.fromFloat(float64(math.Float32frombits(uint32(h.arg))))
		case 27:
			return t.format.fromFloat(math.Float64frombits(h.arg))
		}
	}
	return 0, ErrRange
}

// cborItem finds the item of the path, and what follows its head.
func (t *TimeField) cborItem(payload []byte) (h itemHead, rest []byte, err error) {
	// The whole item is checked first, so that a cut payload is malformed and not
	// "absent". The library's Wellformed does the same with two allocations a record;
	// the fuzz test holds this walk to the library's answers.
	if rest, ok := skip(payload, 0); !ok || len(rest) != 0 {
		return h, nil, ErrMalformed
	}
	item, ok := payload, true
	for _, s := range t.steps {
		if item, ok = child(item, s); !ok {
			return h, nil, ErrAbsent
		}
	}
	if h, rest, ok = untag(item); !ok {
		return h, nil, ErrMalformed
	}
	return h, rest, nil
}

// itemHead is the first bytes of a data item (RFC 8949, 3).
type itemHead struct {
	major      byte
	info       byte // additional information
	arg        uint64
	indefinite bool
}

// head reads the start of an item; ok is false when it is cut short or reserved
// (RFC 8949, 3: additional information 28-30), or a string longer than what follows.
func head(b []byte) (h itemHead, rest []byte, ok bool) {
	if len(b) == 0 {
		return h, nil, false
	}
	h = itemHead{major: b[0] >> 5, info: b[0] & 31}
	b = b[1:]
	switch {
	case h.info < 24:
		h.arg = uint64(h.info)
	case h.info == 24 && len(b) >= 1:
		h.arg, b = uint64(b[0]), b[1:]
	case h.info == 25 && len(b) >= 2:
		h.arg, b = uint64(binary.BigEndian.Uint16(b)), b[2:]
	case h.info == 26 && len(b) >= 4:
		h.arg, b = uint64(binary.BigEndian.Uint32(b)), b[4:]
	case h.info == 27 && len(b) >= 8:
		h.arg, b = binary.BigEndian.Uint64(b), b[8:]
	case h.info == 31 && h.major >= 2 && h.major <= 5:
		h.indefinite = true
	default:
		return h, nil, false
	}
	if (h.major == 2 || h.major == 3) && h.arg > uint64(len(b)) {
		return h, nil, false
	}
	return h, b, true
}

// skip returns what follows the item at the start of b. Its time is linear in
// len(b): a count larger than the bytes that are there ends at the first missing item.
func skip(b []byte, depth int) ([]byte, bool) {
	h, rest, ok := head(b)
	if !ok || depth > maxNesting {
		return nil, false
	}
	switch h.major {
	case 2, 3:
		if h.indefinite {
			return skipToBreak(rest, depth)
		}
		return rest[h.arg:], true
	case 4, 5:
		if h.indefinite {
			return skipToBreak(rest, depth)
		}
		for n := h.arg; n > 0; n-- {
			if rest, ok = skip(rest, depth+1); ok && h.major == 5 {
				rest, ok = skip(rest, depth+1)
			}
			if !ok {
				return nil, false
			}
		}
		return rest, true
	case 6:
		return skip(rest, depth+1)
	}
	return rest, true
}

// untag steps over tags: the format says already what tags 0 (text) and 1 (epoch) say.
func untag(b []byte) (h itemHead, rest []byte, ok bool) {
	h, rest, ok = head(b)
	for ok && h.major == 6 {
		h, rest, ok = head(rest)
	}
	return h, rest, ok
}

func skipToBreak(b []byte, depth int) ([]byte, bool) {
	for {
		if len(b) > 0 && b[0] == 0xff {
			return b[1:], true
		}
		var ok bool
		if b, ok = skip(b, depth+1); !ok {
			return nil, false
		}
	}
}

// child finds a map value by key or an array element by index.
func child(item []byte, s step) ([]byte, bool) {
	h, rest, ok := untag(item)
	if !ok {
		return nil, false
	}
	n := h.arg
	if h.indefinite {
		n = math.MaxUint64
	}
	switch h.major {
	case 4:
		if !s.isIndex || s.index < 0 {
			return nil, false
		}
		for i := uint64(0); i < n; i++ {
			if len(rest) == 0 || rest[0] == 0xff {
				return nil, false
			}
			if i == uint64(s.index) {
				return rest, true
			}
			if rest, ok = skip(rest, 0); !ok {
				return nil, false
			}
		}
	case 5:
		for i := uint64(0); i < n; i++ {
			if len(rest) == 0 || rest[0] == 0xff {
				return nil, false
			}
			k, after, _ := head(rest)
			found := false
			switch {
			case k.major == 3 && !k.indefinite:
				found = string(after[:k.arg]) == s.text
			case s.isIndex && k.major == 0:
				found = s.index >= 0 && k.arg == uint64(s.index)
			case s.isIndex && k.major == 1:
				found = s.index < 0 && k.arg == uint64(-1-s.index)
			}
			value, ok := skip(rest, 0)
			if !ok {
				return nil, false
			}
			if found {
				return value, len(value) > 0
			}
			if rest, ok = skip(value, 0); !ok {
				return nil, false
			}
		}
	}
	return nil, false
}

// halfFloat widens an IEEE 754 binary16 (RFC 8949, appendix D).
func halfFloat(h uint16) float64 {
	exp, mant := int(h>>10&31), float64(h&1023)
	var v float64
	switch exp {
	case 0:
		v = math.Ldexp(mant, -24)
	case 31:
		if mant != 0 {
			return math.NaN()
		}
		v = math.Inf(1)
	default:
		v = math.Ldexp(mant+1024, exp-25)
	}
	if h&0x8000 != 0 {
		return -v
	}
	return v
}
