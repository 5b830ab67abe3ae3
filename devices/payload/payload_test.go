package payload_test

import (
	"errors"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"

	"tailrace/devices/payload"
)

func enc(t testing.TB, v any) []byte {
	t.Helper()
	b, err := cbor.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestEventTimeIsKeptToTheNanosecond(t *testing.T) {
	const want = int64(1700000000123456789)
	for _, c := range []struct {
		name, path string
		enc        payload.Encoding
		format     payload.Format
		body       []byte
		want       int64
		err        error
	}{
		{"json seconds with nine decimals", "ts", payload.JSON, payload.UnixSeconds, []byte(`{"p":1,"ts":1700000000.123456789}`), want, nil},
		{"json whole seconds", "ts", payload.JSON, payload.UnixSeconds, []byte(`{"ts":1700000000}`), 1700000000e9, nil},
		{"json ms with fraction", "ts", payload.JSON, payload.UnixMillis, []byte(`{"ts":1700000000123.456789}`), want, nil},
		{"json us", "ts", payload.JSON, payload.UnixMicros, []byte(`{"ts":1700000000123456}`), want - 789, nil},
		{"json ns, beyond what a float64 holds", "ts", payload.JSON, payload.UnixNanos, []byte(`{"ts":1700000000123456789}`), want, nil},
		{"digits below 1 ns are cut", "ts", payload.JSON, payload.UnixSeconds, []byte(`{"ts":1700000000.1234567899}`), want, nil},
		{"number as text", "ts", payload.JSON, payload.UnixNanos, []byte(`{"ts":"1700000000123456789"}`), want, nil},
		{"exponent", "ts", payload.JSON, payload.UnixSeconds, []byte(`{"ts":1.7e9}`), 1700000000e9, nil},
		{"before 1970", "ts", payload.JSON, payload.UnixSeconds, []byte(`{"ts":-1.5}`), -1500000000, nil},
		{"rfc 3339 with ns", "ts", payload.JSON, payload.RFC3339, []byte(`{"ts":"2023-11-14T22:13:20.123456789Z"}`), want, nil},
		{"rfc 3339 with offset", "ts", payload.JSON, payload.RFC3339, []byte(`{"ts":"2023-11-15T00:13:20.123456789+02:00"}`), want, nil},
		{"no zone is UTC", "ts", payload.JSON, payload.RFC3339, []byte(`{"ts":"2023-11-14T22:13:20"}`), 1700000000e9, nil},
		{"blank for T", "ts", payload.JSON, payload.RFC3339, []byte(`{"ts":"2023-11-14 22:13:20.5"}`), 1700000000e9 + 5e8, nil},
		{"nested and indexed", "a.1.t", payload.JSON, payload.UnixSeconds, []byte(`{"a":[{},{"t":5}]}`), 5e9, nil},
		{"absent", "ts", payload.JSON, payload.UnixSeconds, []byte(`{"t":5}`), 0, payload.ErrAbsent},
		{"null is absent", "ts", payload.JSON, payload.UnixSeconds, []byte(`{"ts":null}`), 0, payload.ErrAbsent},
		{"not json", "ts", payload.JSON, payload.UnixSeconds, []byte("\x01\x02"), 0, payload.ErrMalformed},
		{"empty", "ts", payload.JSON, payload.UnixSeconds, nil, 0, payload.ErrMalformed},
		{"text where a number is due", "ts", payload.JSON, payload.UnixSeconds, []byte(`{"ts":"noon"}`), 0, payload.ErrRange},
		{"number where text is due", "ts", payload.JSON, payload.RFC3339, []byte(`{"ts":5}`), 0, payload.ErrRange},
		{"overflow", "ts", payload.JSON, payload.UnixSeconds, []byte(`{"ts":99999999999}`), 0, payload.ErrRange},
		{"year 9999", "ts", payload.JSON, payload.RFC3339, []byte(`{"ts":"9999-01-01T00:00:00Z"}`), 0, payload.ErrRange},

		{"cbor int ns", "ts", payload.CBOR, payload.UnixNanos, enc(t, map[string]any{"p": 1.5, "ts": want}), want, nil},
		{"cbor float seconds", "ts", payload.CBOR, payload.UnixSeconds, enc(t, map[string]any{"ts": 1700000000.5}), 1700000000e9 + 5e8, nil},
		{"cbor tag 1", "ts", payload.CBOR, payload.UnixSeconds, enc(t, map[string]any{"ts": cbor.Tag{Number: 1, Content: 1700000000}}), 1700000000e9, nil},
		{"cbor tag 0 text", "ts", payload.CBOR, payload.RFC3339, enc(t, map[string]any{"ts": cbor.Tag{Number: 0, Content: "2023-11-14T22:13:20.123456789Z"}}), want, nil},
		{"cbor senml base time", "0.-3", payload.CBOR, payload.UnixSeconds, enc(t, []any{map[int]any{-3: 5, 0: "x"}}), 5e9, nil},
		{"cbor negative", "t", payload.CBOR, payload.UnixSeconds, enc(t, map[string]any{"t": -2}), -2e9, nil},
		{"cbor indefinite map", "t", payload.CBOR, payload.UnixSeconds, []byte{0xbf, 0x61, 'a', 0x9f, 1, 0xff, 0x61, 't', 5, 0xff}, 5e9, nil},
		{"cbor half float", "t", payload.CBOR, payload.UnixSeconds, []byte{0xa1, 0x61, 't', 0xf9, 0x3e, 0x00}, 15e8, nil},
		{"cbor absent", "ts", payload.CBOR, payload.UnixSeconds, enc(t, map[string]any{"t": 1}), 0, payload.ErrAbsent},
		{"cbor cut", "ts", payload.CBOR, payload.UnixSeconds, enc(t, map[string]any{"ts": want})[:6], 0, payload.ErrMalformed},
		{"cbor trailing bytes", "ts", payload.CBOR, payload.UnixSeconds, append(enc(t, map[string]any{"ts": 1}), 0), 0, payload.ErrMalformed},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, err := payload.CompileTime(c.enc, c.path, c.format)
			if err != nil {
				t.Fatal(err)
			}
			got, err := f.Time(c.body)
			if got != c.want || !errors.Is(err, c.err) {
				t.Fatalf("got %d (%v), %v; want %d, %v", got, time.Unix(0, got).UTC(), err, c.want, c.err)
			}
		})
	}
}

func TestPathsThatCannotWorkAreRefused(t *testing.T) {
	for _, c := range []struct {
		path   string
		enc    payload.Encoding
		format payload.Format
	}{
		{"", payload.JSON, payload.UnixSeconds},
		{"a..b", payload.JSON, payload.UnixSeconds},
		{"@reverse", payload.JSON, payload.UnixSeconds},
		{"a.#.b", payload.JSON, payload.UnixSeconds},
		{"a*", payload.JSON, payload.UnixSeconds},
		{"ts", payload.JSON, "unix"},
		{"ts", "xml", payload.UnixSeconds},
	} {
		if _, err := payload.CompileTime(c.enc, c.path, c.format); err == nil {
			t.Errorf("%q %s %s accepted", c.path, c.enc, c.format)
		}
	}
}

func TestTimeDoesNotAllocate(t *testing.T) {
	js, _ := payload.CompileTime(payload.JSON, "d.ts", payload.UnixMillis)
	rf, _ := payload.CompileTime(payload.JSON, "d.ts", payload.RFC3339)
	cb, _ := payload.CompileTime(payload.CBOR, "ts", payload.UnixNanos)
	jb, rb, cbb := []byte(`{"p":812.4,"d":{"ts":1700000000123}}`), []byte(`{"d":{"ts":"2023-11-14T22:13:20.123456789Z"}}`), enc(t, map[string]any{"ts": 17, "v": 1})
	if n := testing.AllocsPerRun(100, func() {
		js.Time(jb)
		rf.Time(rb)
		cb.Time(cbb)
	}); n != 0 {
		t.Fatalf("%v allocations for three times", n)
	}
}

func FuzzTime(f *testing.F) {
	f.Add([]byte(`{"ts":1700000000.123456789,"a":[{"ts":"2023-11-14T22:13:20Z"}]}`))
	f.Add([]byte{0xbf, 0x62, 't', 's', 0x9f, 1, 0xff, 0x61, 't', 5, 0xff})
	f.Add([]byte{0xa1, 0x62, 't', 's', 0xfb, 0x41, 0xd9, 0x55, 0, 0, 0, 0, 0})
	var fields []payload.TimeField
	for _, p := range []string{"ts", "a.0.ts", "0.-3"} {
		for _, e := range []payload.Encoding{payload.JSON, payload.CBOR} {
			for _, fm := range []payload.Format{payload.UnixSeconds, payload.UnixNanos, payload.RFC3339} {
				x, err := payload.CompileTime(e, p, fm)
				if err != nil {
					f.Fatal(err)
				}
				fields = append(fields, x)
			}
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for i := range fields {
			fields[i].Time(b)
		}
		// Oracle for the CBOR walk: what the library decodes as an integer under "ts" we read as that integer.
		var m map[string]any
		if cbor.Unmarshal(b, &m) != nil {
			return
		}
		if n, ok := m["ts"].(uint64); ok && n < 1<<62 {
			x, _ := payload.CompileTime(payload.CBOR, "ts", payload.UnixNanos)
			if got, err := x.Time(b); err == nil && uint64(got) != n && !dupKey(b) {
				t.Fatalf("%x: got %d, library %d", b, got, n)
			}
		}
	})
}

// dupKey: with a repeated key the library takes the last value and we the first.
func dupKey(b []byte) bool {
	m, err := cbor.DecOptions{DupMapKey: cbor.DupMapKeyEnforcedAPF}.DecMode()
	if err != nil {
		return true
	}
	var v map[string]any
	return m.Unmarshal(b, &v) != nil
}

func TestWordOfAPayload(t *testing.T) {
	word := func(e payload.Encoding, body string) (uint64, error) {
		f, err := payload.CompileWhole(e, "boot.id")
		if err != nil {
			t.Fatal(err)
		}
		return f.Word([]byte(body))
	}
	seen := map[uint64]string{}
	bodies := []string{`{"boot":{"id":7}}`, `{"boot":{"id":-7}}`}
	for _, text := range []string{"6f1e-22", "6f1e-23", "07", "+7", "1.1", "1.10", "1.2", "1e3", "1000", "5e10", "50e9"} {
		bodies = append(bodies, `{"boot":{"id":"`+text+`"}}`)
	}
	for _, body := range bodies { // no two are the same
		n, err := word(payload.JSON, body)
		if again, _ := word(payload.JSON, body); err != nil || n != again || seen[n] != "" {
			t.Errorf("%s: %d, %d, %v, as %q", body, n, again, err, seen[n])
		}
		seen[n] = body
	}
	same, err := word(payload.CBOR, "\xa1\x64boot\xa1\x62id\x676f1e-22")
	if err != nil || seen[same] != `{"boot":{"id":"6f1e-22"}}` {
		t.Errorf("CBOR: %d, %v", same, err)
	}
	for _, body := range []string{``, `{`, `{}`, `{"boot":{"id":null}}`, `{"boot":{"id":""}}`, `{"boot":{"id":true}}`, `{"boot":{"id":["a"]}}`, `{"boot":{"id":99999999999999999999}}`, `{"boot":{"id":1.1}}`} {
		if n, err := word(payload.JSON, body); err == nil {
			t.Errorf("%s: %d", body, n)
		}
	}
	for _, body := range []string{"", "\xa1\x64boot", "\xa1\x64boot\xa1\x62id\x60", "\xa1\x64boot\xa1\x62id\x7f\x61a\xff", "\xa1\x64boot\x61a", "\xa1\x64boot\xa1\x62id\xf9\x3e\x00"} {
		if n, err := word(payload.CBOR, body); err == nil {
			t.Errorf("%x: %d", body, n)
		}
	}
	for _, body := range []string{`{"boot":{"id":7}}`, `{"boot":{"id":"7"}}`, `{"boot":{"id":7.0}}`, `{"boot":{"id":70e-1}}`} {
		if n, err := word(payload.JSON, body); n != 7 || err != nil {
			t.Errorf("%s: %d, %v", body, n, err)
		}
	}
}
