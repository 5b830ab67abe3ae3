package wire_test

import (
	"bytes"
	"encoding/hex"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"testing"

	"tailrace/uplink/wire"
)

func readGolden(t testing.TB, name string) []byte {
	t.Helper()
	s, err := os.ReadFile(filepath.Join("testdata", "v1", name+".hex"))
	if err != nil {
		t.Fatal(err)
	}
	b, err := hex.DecodeString(strings.ReplaceAll(string(s), "\n", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// allocated runs f and returns the bytes it allocated.
func allocated(f func()) uint64 {
	var a, b runtime.MemStats
	runtime.ReadMemStats(&a)
	f()
	runtime.ReadMemStats(&b)
	return b.TotalAlloc - a.TotalAlloc
}

func FuzzDecode(f *testing.F) {
	for _, m := range samples() {
		b, _ := wire.Append(nil, m)
		f.Add(b[len(b)-bodyLen(b):])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var m wire.Message
		var err error
		if n := allocated(func() { m, err = wire.Decode(b) }); n > 64<<10+200*uint64(len(b)) {
			t.Fatalf("%d bytes made it allocate %d", len(b), n)
		}
		if err != nil {
			return
		}
		again, err := wire.Append(nil, m)
		if err != nil {
			t.Fatalf("decoded %+v, which cannot be encoded: %v", m, err)
		}
		back, err := wire.Decode(again[len(again)-bodyLen(again):])
		if err != nil {
			t.Fatalf("encoded %+v, which cannot be decoded: %v", m, err)
		}
		third, err := wire.Append(nil, back)
		if err != nil || !bytes.Equal(again, third) {
			t.Fatalf("not stable: %x then %x", again, third)
		}
		_ = reflect.DeepEqual(m, back)
	})
}

func FuzzReader(f *testing.F) {
	var all []byte
	for _, m := range samples() {
		all, _ = wire.Append(all, m)
	}
	f.Add(all)
	f.Fuzz(func(t *testing.T, b []byte) {
		if n := allocated(func() {
			r := wire.NewReader(bytes.NewReader(b))
			for {
				if _, err := r.Read(); err != nil {
					break
				}
			}
		}); n > 256<<10+200*uint64(len(b)) {
			t.Fatalf("%d bytes made it allocate %d", len(b), n)
		}
	})
}

func FuzzFrames(f *testing.F) {
	f.Add(encodeFrames(f, wire.CodecNone, 0, frames(), 3))
	f.Add(encodeFrames(f, wire.CodecZstd, 32<<10, frames(), 3))
	f.Add(encodeFrames(f, wire.CodecTelemetry, 32<<10, readings(9, 7), 5))
	f.Fuzz(func(t *testing.T, b []byte) {
		const limit = 64 << 10
		got, _ := readFrames(b, limit, 32<<10)
		for _, x := range got {
			if len(x.b) > limit+64 {
				t.Fatalf("a frame of %d bytes", len(x.b))
			}
			wire.VerifyFrame(x.h, x.b)
		}
	})
}

func FuzzLocate(f *testing.F) {
	a, _ := wire.EncodeLocate(wire.Locate{Topic: "raw", From: 5, To: 9})
	b, _ := wire.EncodeLocated(wire.Located{Oldest: 3, Ranges: []wire.PartitionRanges{{Partition: 1, Epoch: id(1), Ranges: wire.RangeSet{{From: 0, To: 5}}}}})
	f.Add(a)
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		if v, err := wire.DecodeLocate(b); err == nil {
			if x, err := wire.EncodeLocate(v); err != nil || len(x) > len(b)+64 {
				t.Fatalf("%+v: %v", v, err)
			}
		}
		var v wire.Located
		var err error
		if n := allocated(func() { v, err = wire.DecodeLocated(b) }); n > 64<<10+200*uint64(len(b)) {
			t.Fatalf("%d bytes made it allocate %d", len(b), n)
		}
		if err == nil {
			again, err := wire.EncodeLocated(v)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := wire.DecodeLocated(again); err != nil {
				t.Fatal(err)
			}
		}
	})
}
