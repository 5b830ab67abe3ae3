package payload

import (
	"bytes"
	"math"
	"strconv"
	"strings"
	"unsafe"

	"github.com/tidwall/gjson"
)

// Numbers calls f with every finite number of a payload and its path, as CompileTime
// would name it ("signals.power_kw", "0.v"); a number that is the whole payload has the
// path "value". JSON and CBOR are told apart by their first byte: what begins an object or an
// array in one is text in the other. The path is only valid within the call. When f
// returns false nothing more is read. What is not JSON or CBOR, and what is nested deeper
// than maxNesting, is ErrMalformed; nothing of it is reported.
func Numbers(payload []byte, f func(path []byte, v float64) bool) error {
	w := walk{f: f}
	w.path = w.room[:0]
	text := bytes.TrimLeft(payload, " \t\r\n")
	if len(text) == 0 {
		return ErrMalformed
	}
	switch c := text[0]; {
	case c == '{', c == '[', c == '-', c >= '0' && c <= '9':
		// As in jsonTime: the string aliases the payload for the length of this call.
		s := unsafe.String(&text[0], len(text))
		if !gjson.Valid(s) || !shallow(s) {
			return ErrMalformed
		}
		w.json(gjson.Parse(s))
		return nil
	}
	if rest, ok := skip(payload, 0); !ok || len(rest) != 0 || payload[0]>>5 != 4 && payload[0]>>5 != 5 && payload[0]>>5 != 6 {
		return ErrMalformed
	}
	w.cbor(payload)
	return nil
}

// shallow says whether valid JSON is nested no deeper than maxNesting.
func shallow(s string) bool {
	depth, quoted := 0, false
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '{', c == '[':
			if depth++; depth > maxNesting {
				return false
			}
		case c == '}', c == ']':
			depth--
		}
	}
	return true
}

// walk visits the numbers of one payload.
type walk struct {
	f     func(path []byte, v float64) bool
	path  []byte
	ended bool
	room  [128]byte // of path, to begin with
}

func (w *walk) number(v float64) {
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return
	}
	path := w.path
	if len(path) == 0 {
		path = []byte("value")
	}
	w.ended = !w.f(path, v)
}

// enter appends a step to the path, and says how long that was before.
func (w *walk) enter(key string) (before int) {
	before = len(w.path)
	if before > 0 {
		w.path = append(w.path, '.')
	}
	if !strings.ContainsAny(key, `.\`) {
		w.path = append(w.path, key...)
		return before
	}
	for i := range len(key) {
		if key[i] == '.' || key[i] == '\\' {
			w.path = append(w.path, '\\')
		}
		w.path = append(w.path, key[i])
	}
	return before
}

func (w *walk) index(i int64) (before int) {
	before = len(w.path)
	if before > 0 {
		w.path = append(w.path, '.')
	}
	w.path = strconv.AppendInt(w.path, i, 10)
	return before
}

func (w *walk) json(r gjson.Result) {
	switch {
	case r.Type == gjson.Number:
		w.number(r.Num)
	case r.IsObject():
		r.ForEach(func(k, v gjson.Result) bool {
			if v.Type == gjson.Number || v.Type == gjson.JSON {
				before := w.enter(k.Str)
				w.json(v)
				w.path = w.path[:before]
			}
			return !w.ended
		})
	case r.IsArray():
		i := int64(0)
		r.ForEach(func(_, v gjson.Result) bool {
			before := w.index(i)
			w.json(v)
			w.path = w.path[:before]
			i++
			return !w.ended
		})
	}
}

// cbor visits an item that skip has found well formed, and returns what follows it.
func (w *walk) cbor(item []byte) (rest []byte) {
	after, _ := skip(item, 0)
	h, rest, _ := head(item)
	for h.major == 6 {
		if h.arg == 2 || h.arg == 3 { // a number of any length, as bytes
			return after
		}
		h, rest, _ = head(rest)
	}
	n := h.arg
	if h.indefinite {
		n = math.MaxUint64
	}
	switch h.major {
	case 0:
		w.number(float64(h.arg))
	case 1:
		w.number(-1 - float64(h.arg))
	case 7:
		switch h.info {
		case 25:
			w.number(halfFloat(uint16(h.arg)))
		case 26:
			w.number(float64(math.Float32frombits(uint32(h.arg))))
		case 27:
			w.number(math.Float64frombits(h.arg))
		}
	case 4:
		for i := uint64(0); i < n && !w.ended && rest[0] != 0xff; i++ {
			before := w.index(int64(i))
			rest = w.cbor(rest)
			w.path = w.path[:before]
			if len(rest) == 0 {
				break
			}
		}
	case 5:
		for i := uint64(0); i < n && !w.ended && rest[0] != 0xff; i++ {
			before := len(w.path)
			k, key, _ := head(rest)
			named := true
			switch {
			case k.major == 3 && !k.indefinite:
				w.enter(string(key[:k.arg]))
			case k.major == 0 && k.arg <= math.MaxInt64:
				w.index(int64(k.arg))
			case k.major == 1 && k.arg <= math.MaxInt64:
				w.index(-1 - int64(k.arg))
			default:
				named = false // a key that is no name: nobody could ask for it
			}
			value, _ := skip(rest, 0)
			if named {
				rest = w.cbor(value)
			} else {
				rest, _ = skip(value, 0)
			}
			w.path = w.path[:before]
			if len(rest) == 0 {
				break
			}
		}
	}
	return after
}
