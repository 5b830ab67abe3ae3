package payload_test

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/fxamacker/cbor/v2"

	"tailrace/devices/payload"
)

func numbers(b []byte) (string, error) {
	var out []string
	err := payload.Numbers(b, func(path []byte, v float64) bool {
		out = append(out, fmt.Sprintf("%s=%v", path, v))
		return true
	})
	return strings.Join(out, " "), err
}

func TestNumbersOfAPayload(t *testing.T) {
	type pair struct {
		A int     `cbor:"a"`
		B float32 `cbor:"b"`
	}
	deep := strings.Repeat(`{"a":`, 17) + "1" + strings.Repeat("}", 17)
	for _, c := range []struct {
		name string
		body []byte
		want string
		err  error
	}{
		{"json object", []byte(` {"id":"wt-1","p":1.5,"n":null,"ok":true,"s":{"rpm":-12,"t":[1,"x",{"v":3}]}}`), "p=1.5 s.rpm=-12 s.t.0=1 s.t.2.v=3", nil},
		{"json number", []byte("21.25\n"), "value=21.25", nil},
		{"json negative", []byte("-3e2"), "value=-300", nil},
		{"dots in keys", []byte(`{"a.b":1,"c\\d":2}`), `a\.b=1 c\\d=2`, nil},
		{"not finite", []byte(`{"a":1e999,"b":2}`), "b=2", nil},
		{"digits in text are no number", []byte(`{"a":"12"}`), "", nil},
		{"cut json", []byte(`{"a":1,"b":`), "", payload.ErrMalformed},
		{"text", []byte("on"), "", payload.ErrMalformed},
		{"nothing", nil, "", payload.ErrMalformed},
		{"deep json", []byte(deep), "", payload.ErrMalformed},
		{"braces in text are no depth", []byte(`{"a":"` + strings.Repeat(`{\"`, 40) + `","b":1}`), "b=1", nil},
		{"cbor map", enc(t, pair{7, 0.5}), "a=7 b=0.5", nil},
		{"cbor integer keys", enc(t, []any{map[int]any{-3: 5.5}, map[int]any{2: -1}}), "0.-3=5.5 1.2=-1", nil},
		{"cbor tag", enc(t, map[string]any{"ts": cbor.Tag{Number: 1, Content: 1700000000}}), "ts=1.7e+09", nil},
		{"cbor bytes under a bignum's tag", enc(t, map[string]any{"n": cbor.Tag{Number: 2, Content: []byte{1, 2}}}), "", nil},
		{"cbor indefinite", []byte{0xbf, 0x61, 'a', 0x9f, 1, 2, 0xff, 0x61, 'b', 0xf9, 0x3c, 0x00, 0xff}, "a.0=1 a.1=2 b=1", nil},
		{"cbor not finite", enc(t, map[string]any{"a": math.NaN()}), "", nil},
		{"cbor empty", enc(t, map[string]any{}), "", nil},
		{"cbor key of bytes", []byte{0xa2, 0x41, 1, 5, 0x61, 'a', 6}, "a=6", nil},
		{"cut cbor", []byte{0xa1, 0x61, 'a'}, "", payload.ErrMalformed},
		{"cbor text alone", []byte{0x61, 'a'}, "", payload.ErrMalformed},
	} {
		if got, err := numbers(c.body); got != c.want || !errors.Is(err, c.err) {
			t.Errorf("%s: %q, %v; want %q, %v", c.name, got, err, c.want, c.err)
		}
	}
	n := 0
	if err := payload.Numbers([]byte(`{"a":[1,2,3],"b":4}`), func([]byte, float64) bool { n++; return n < 2 }); err != nil || n != 2 {
		t.Errorf("%d numbers after the second was enough, %v", n, err)
	}
}

// What is not JSON and not CBOR gives an error and no panic, and JSON and CBOR of the same
// values give the same numbers.
func FuzzNumbers(f *testing.F) {
	for _, s := range []string{`{"a":1}`, `[1,{"b":-2.5e3}]`, "12", "\xa1\x61a\x05", "\x9f\x01\xff", "\xbf\x61a\xff", "\xc1\xc2\x41\x00", "\xfb"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		n := 0
		if err := payload.Numbers(b, func(path []byte, v float64) bool {
			n++
			if len(path) == 0 || math.IsNaN(v) || math.IsInf(v, 0) {
				t.Fatalf("%q = %v", path, v)
			}
			return true
		}); err != nil && n > 0 {
			t.Fatalf("%d numbers and then %v", n, err)
		}
	})
}
