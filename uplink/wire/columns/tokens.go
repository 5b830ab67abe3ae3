package columns

import (
	"bytes"
	"strconv"
)

// token is a number, or text: a string with its quotes, a word, or a number that is not
// written as the codec would write it.
type token struct {
	text     bool
	raw      []byte // text
	digits   int64  // number: digits * 10^-decimals
	decimals int
}

// tokens splits a record's value. What has zeros, or more tokens than a template may
// have, is one text: that is never wrong, only dear.
func (e *Encoder) tokens(r *rec) {
	e.toks, e.parts, e.shape = e.toks[:0], e.parts[:0], e.shape[:0]
	v, from := r.value, 0
	cut := func(i, j int, k token) {
		e.parts = append(e.parts, v[from:i])
		e.shape = append(append(e.shape, v[from:i]...), 0)
		e.toks = append(e.toks, k)
		from = j
	}
	if bytes.IndexByte(v, 0) >= 0 {
		cut(0, len(v), token{text: true, raw: v})
	} else {
		for i := 0; i < len(v); {
			switch c := v[i]; {
			case c == '"':
				j := stringEnd(v, i)
				if j < 0 { // not JSON
					j = len(v)
				} else if j == len(v) || v[j] != ':' { // a name belongs to the template
					cut(i, j, token{text: true, raw: v[i:j]})
				}
				i = j
			case wordByte(c):
				j := i + 1
				for j < len(v) && wordByte(v[j]) {
					j++
				}
				if k, ok := number10(v[i:j]); ok {
					cut(i, j, k)
				} else {
					cut(i, j, token{text: true, raw: v[i:j]})
				}
				i = j
			default:
				i++
			}
			if len(e.toks) > maxTokens {
				break
			}
		}
		if len(e.toks) > maxTokens {
			e.toks, e.parts, e.shape, from = e.toks[:0], e.parts[:0], e.shape[:0], 0
			cut(0, len(v), token{text: true, raw: v})
		}
	}
	e.parts = append(e.parts, v[from:])
	e.shape = append(e.shape, v[from:]...)
	r.tokens, r.parts, r.shape = e.toks, e.parts, e.shape
}

// stringEnd is one past the closing quote of the string that begins at i, -1 without one.
func stringEnd(v []byte, i int) int {
	for i++; i < len(v); i++ {
		switch v[i] {
		case '\\':
			i++
		case '"':
			return i + 1
		}
	}
	return -1
}

func wordByte(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '-' || c == '+' || c == '.' || c == '_'
}

// number10 takes what appendNumber would write the same way.
func number10(b []byte) (token, bool) {
	neg, i := false, 0
	if b[0] == '-' {
		neg, i = true, 1
	}
	var v int64
	var k token
	start, point := i, -1
	for ; i < len(b); i++ {
		switch c := b[i]; {
		case c >= '0' && c <= '9':
			if v = v*10 + int64(c-'0'); v > maxValue {
				return k, false
			}
		case c == '.' && point < 0 && i > start:
			point = i
		default:
			return k, false
		}
	}
	whole := i
	if point >= 0 {
		if k.decimals = i - point - 1; k.decimals == 0 || k.decimals > maxScale {
			return k, false
		}
		whole = point
	}
	if whole == start || b[start] == '0' && whole > start+1 || neg && v == 0 {
		return k, false
	}
	if neg {
		v = -v
	}
	k.digits = v
	return k, true
}

func appendNumber(dst []byte, k *token) []byte {
	v := k.digits
	if v < 0 {
		dst, v = append(dst, '-'), -v
	}
	if k.decimals == 0 {
		return strconv.AppendInt(dst, v, 10)
	}
	f := pow10[k.decimals]
	dst = append(strconv.AppendInt(dst, v/f, 10), '.')
	frac := v % f
	for f /= 10; f > 0; f /= 10 {
		dst = append(dst, byte('0'+frac/f%10))
	}
	return dst
}
