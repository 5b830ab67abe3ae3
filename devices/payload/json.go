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
	r := t.jsonValue(payload)
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

// jsonValue may alias the payload: it is used up before the caller returns.
func (t *TimeField) jsonValue(payload []byte) gjson.Result {
	if len(payload) == 0 {
		return gjson.Result{}
	}
	return gjson.Get(unsafe.String(&payload[0], len(payload)), t.path)
}
