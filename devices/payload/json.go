package payload

import (
	"unsafe"

	"github.com/tidwall/gjson"
)

// jsonTime looks one path up. gjson scans and does not validate, so a broken
// document may yield a value if the part before it can be read: the payload is
// kept as it came in any case, and a wrong time is caught by its format and by
// the clamp on arrival time.
func (t *TimeField) jsonTime(payload []byte) (int64, error) {
	if len(payload) == 0 {
		return 0, ErrMalformed
	}
	// The string aliases the payload for the length of this call only; results
	// hold substrings of it and are turned into a number before returning.
	r := gjson.Get(unsafe.String(&payload[0], len(payload)), t.path)
	switch r.Type {
	case gjson.Number:
		return t.format.fromDecimal(r.Raw)
	case gjson.String:
		return t.format.fromText(r.Str)
	case gjson.Null:
		if r.Raw != "" {
			return 0, ErrAbsent // explicit null
		}
		for _, c := range payload {
			switch c {
			case ' ', '\t', '\r', '\n':
				continue
			case '{', '[':
				return 0, ErrAbsent
			}
			return 0, ErrMalformed
		}
		return 0, ErrMalformed
	}
	return 0, ErrRange
}

// jsonText is the value when it is text, else empty.
func (t *TimeField) jsonText(payload []byte) string {
	if r := gjson.GetBytes(payload, t.path); r.Type == gjson.String {
		return r.Str
	}
	return ""
}
