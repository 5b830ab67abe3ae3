package payload

import (
	"math"
	"strconv"
	"time"
)

// scale is the number of ns in one unit of the format, and its power of ten.
func (f Format) scale() (ns int64, exp int) {
	switch f {
	case UnixSeconds:
		return 1e9, 9
	case UnixMillis:
		return 1e6, 6
	case UnixMicros:
		return 1e3, 3
	}
	return 1, 0
}

// fromInt turns a whole number of the format's units into ns.
func (f Format) fromInt(n int64) (int64, error) {
	ns, _ := f.scale()
	if f == RFC3339 || n > math.MaxInt64/ns || n < math.MinInt64/ns {
		return 0, ErrRange
	}
	return n * ns, nil
}

// fromFloat is for values that exist only as binary floats (CBOR). A float64 of
// seconds since 1970 resolves about 0.2 µs; the digits below are not invented:
// whole and fractional part are scaled separately.
func (f Format) fromFloat(v float64) (int64, error) {
	ns, _ := f.scale()
	if f == RFC3339 || math.IsNaN(v) || math.IsInf(v, 0) {
		return 0, ErrRange
	}
	units, frac := math.Modf(v)
	if math.Abs(units) >= float64(math.MaxInt64/ns) || f == whole && frac != 0 {
		return 0, ErrRange
	}
	return int64(units)*ns + int64(math.Round(frac*float64(ns))), nil
}

// fromDecimal reads decimal text exactly, so that "1700000000.123456789" keeps
// its nanoseconds; a float64 would round them away. Digits below 1 ns are cut.
func (f Format) fromDecimal(s string) (int64, error) {
	_, exp := f.scale()
	if f == RFC3339 || s == "" {
		return 0, ErrRange
	}
	neg := s[0] == '-'
	i := 0
	if neg || s[0] == '+' {
		i = 1
	}
	var v uint64
	digits, dot := 0, -1
	for ; i < len(s); i++ {
		c := s[i]
		switch {
		case c >= '0' && c <= '9':
			if dot >= 0 && dot == exp {
				if f == whole && c != '0' {
					return 0, ErrRange
				}
				digits++
				continue // below 1 ns
			}
			if v > (math.MaxInt64-9)/10 {
				return 0, ErrRange
			}
			v = v*10 + uint64(c-'0')
			digits++
			if dot >= 0 {
				dot++
			}
		case c == '.' && dot < 0:
			dot = 0
		case (c == 'e' || c == 'E') && digits > 0:
			x, err := strconv.ParseFloat(s, 64)
			if err != nil {
				return 0, ErrRange
			}
			return f.fromFloat(x)
		default:
			return 0, ErrRange
		}
	}
	if digits == 0 {
		return 0, ErrRange
	}
	for k := max(dot, 0); k < exp; k++ {
		if v > math.MaxInt64/10 {
			return 0, ErrRange
		}
		v *= 10
	}
	if neg {
		return -int64(v), nil
	}
	return int64(v), nil
}

// fromText reads RFC 3339, with "T" or a blank, and without a zone as UTC: loggers
// and PLCs often leave it out. Number formats accept numbers written as text.
func (f Format) fromText(s string) (int64, error) {
	if f != RFC3339 {
		return f.fromDecimal(s)
	}
	if len(s) < len("2006-01-02T15:04:05") || len(s) > 40 {
		return 0, ErrRange
	}
	layout := "2006-01-02T15:04:05.999999999Z07:00"
	if s[10] == ' ' {
		layout = "2006-01-02 15:04:05.999999999Z07:00"
	}
	if tail := s[19:]; tail == "" || (tail[len(tail)-1] != 'Z' && tail[len(tail)-1] != 'z' && !hasOffset(tail)) {
		layout = layout[:len(layout)-len("Z07:00")]
	}
	t, err := time.Parse(layout, s)
	if err != nil {
		return 0, ErrRange
	}
	sec := t.Unix()
	if sec > math.MaxInt64/1_000_000_000-1 || sec < math.MinInt64/1_000_000_000+1 {
		return 0, ErrRange
	}
	return sec*1e9 + int64(t.Nanosecond()), nil
}

func hasOffset(tail string) bool {
	for i := range len(tail) {
		if tail[i] == '+' || tail[i] == '-' {
			return true
		}
	}
	return false
}
