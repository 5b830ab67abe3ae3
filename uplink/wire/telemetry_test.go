package wire_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"

	"tailrace/uplink/link/linktest"
	"tailrace/uplink/wire"
)

// readings makes n frames of batches with records of JSON.
func readings(n, records int) (out []frame) {
	rng := rand.New(rand.NewPCG(1, 2))
	base, power := int64(0), 0.0
	for i := range n {
		var p []byte
		for j := range records {
			power += rng.NormFloat64()
			v := fmt.Appendf(nil, `{"id":"T%02d","ts":%d,"power":%.1f,"state":"run"}`, j%3, 1_700_000_000_000+int64(i)*1000, power)
			r := binary.AppendVarint([]byte{0}, 0)
			r = binary.AppendVarint(r, int64(j))
			r = append(binary.AppendVarint(r, 3), fmt.Sprintf("T%02d", j%3)...)
			r = append(binary.AppendVarint(r, int64(len(v))), v...)
			r = append(r, 0)
			p = append(binary.AppendVarint(p, int64(len(r))), r...)
		}
		out = append(out, frame{wire.FrameHeader{Partition: 1, Base: base, Count: int64(records)}, linktest.AppendBatch(nil, base, records, 1_700_000_000_000+int64(i)*1000, p)})
		base += int64(records)
	}
	return out
}

// What the two codecs make of a stream whose content changes: the smaller one, in time.
func TestTelemetryOrZstd(t *testing.T) {
	noise := func(n int) (out []frame) { // random within a frame, the same in each: zstd's
		rng := rand.New(rand.NewPCG(3, 4))
		p := make([]byte, 300)
		for i := range p {
			p[i] = byte(rng.Uint32())
		}
		for i := range n {
			out = append(out, frame{wire.FrameHeader{Partition: 1, Base: int64(i), Count: 1}, linktest.AppendBatch(nil, int64(i), 1, 1, p)})
		}
		return out
	}
	fs := append(append(readings(700, 1), noise(9000)...), readings(1200, 1)...)
	b := encodeFrames(t, wire.CodecTelemetry, 32<<10, fs, 900)
	got, err := readFrames(b, maxFrame, 32<<10)
	if err != nil || len(got) != len(fs) {
		t.Fatalf("%d of %d frames: %v", len(got), len(fs), err)
	}
	for i := range fs {
		if got[i].h != fs[i].h || !bytes.Equal(got[i].b, fs[i].b) {
			t.Fatalf("frame %d differs", i)
		}
	}
	for _, c := range []struct {
		name string
		fs   []frame
	}{{"readings", readings(3000, 1)}, {"readings in bulk", readings(100, 200)}, {"noise", noise(3000)}} {
		own, zstd := len(encodeFrames(t, wire.CodecTelemetry, 32<<10, c.fs, -1)), len(encodeFrames(t, wire.CodecZstd, 32<<10, c.fs, -1))
		t.Logf("%s: %d bytes, zstd alone %d", c.name, own, zstd)
		if own > zstd+zstd/10+1000 {
			t.Errorf("%s: %d bytes, zstd alone %d", c.name, own, zstd)
		}
		if c.name != "noise" && own > zstd*6/10 {
			t.Errorf("%s: %d bytes, more than 0.6 of the %d of zstd alone", c.name, own, zstd)
		}
	}
}
