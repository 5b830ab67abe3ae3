package wire_test

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"testing"

	"tailrace/uplink/link/linktest"
	"tailrace/uplink/wire"
)

const (
	maxFrame  = 1 << 20
	maxWindow = 1 << 20
)

type frame struct {
	h wire.FrameHeader
	b []byte
}

func frames() []frame {
	var out []frame
	base := int64(1 << 33)
	for i := range 8 {
		var b []byte
		h := wire.FrameHeader{Partition: uint32(i % 3), Epoch: uint32(i % 2), Base: base}
		for j := range i + 1 {
			b = linktest.AppendBatch(b, base, 3, 1_700_000_000_000, bytes.Repeat([]byte{byte('a' + j)}, 40*i+1))
			base += 3
		}
		h.Count = base - h.Base
		out = append(out, frame{h, b})
	}
	return out
}

func encodeFrames(t testing.TB, codec wire.Codec, window int, fs []frame, idleAfter int) []byte {
	w := wire.NewFrameWriter(codec, window)
	var b []byte
	var err error
	for i, f := range fs {
		if b, err = w.Append(b, f.h, f.b); err != nil {
			t.Fatal(err)
		}
		if i == idleAfter {
			b = w.Idle(b)
			b = w.Idle(b) // nothing to give up twice
		}
	}
	return b
}

func readFrames(b []byte, maxFrame, maxWindow int) (out []frame, err error) {
	r := wire.NewFrameReader(bytes.NewReader(b), maxFrame, maxWindow)
	defer r.Close()
	for {
		n, err := r.Next()
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return out, err
		}
		if n > maxFrame+64 {
			return out, errors.New("announced more than the limit")
		}
		h, batches, err := r.Read(nil)
		if err != nil {
			return out, err
		}
		out = append(out, frame{h, batches})
	}
}

func TestFramesRoundTrip(t *testing.T) {
	for _, codec := range []wire.Codec{wire.CodecNone, wire.CodecZstd, wire.CodecTelemetry} {
		for idle := -1; idle < 8; idle++ {
			want := frames()
			got, err := readFrames(encodeFrames(t, codec, 32<<10, want, idle), maxFrame, maxWindow)
			if err != nil || len(got) != len(want) {
				t.Fatalf("codec %d idle %d: %d frames, %v", codec, idle, len(got), err)
			}
			for i := range want {
				if got[i].h != want[i].h || !bytes.Equal(got[i].b, want[i].b) {
					t.Fatalf("codec %d idle %d: frame %d came back as %+v", codec, idle, i, got[i].h)
				}
				if err := wire.VerifyFrame(got[i].h, got[i].b); err != nil {
					t.Error(err)
				}
			}
		}
	}
}

// Every frame comes out of the decoder as soon as its last byte is in.
func TestFrameNeedsNothingAfterIt(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	pr, pw := io.Pipe()
	r := wire.NewFrameReader(pr, maxFrame, maxWindow)
	w := wire.NewFrameWriter(wire.CodecZstd, 32<<10)
	for i := range 200 {
		payload := make([]byte, 1+rng.IntN(300_000))
		for j := range payload {
			payload[j] = byte(rng.IntN(1 + i%200))
		}
		f := frame{wire.FrameHeader{Base: int64(i), Count: 1}, linktest.AppendBatch(nil, int64(i), 1, 1, payload)}
		b, err := w.Append(nil, f.h, f.b)
		if err != nil {
			t.Fatal(err)
		}
		go pw.Write(b)
		if _, err := r.Next(); err != nil {
			t.Fatal(err)
		}
		h, got, err := r.Read(nil)
		if err != nil || h != f.h || !bytes.Equal(got, f.b) {
			t.Fatalf("frame %d of %d bytes: %v", i, len(payload), err)
		}
	}
}

func TestGoldenFrames(t *testing.T) {
	b := wire.AppendPreamble(nil, wire.LaneBulk)
	golden(t, "frames-none", append(b, encodeFrames(t, wire.CodecNone, 0, frames()[:4], 1)...))
	// What an encoder emits may change with its version; what a decoder takes may not.
	b = encodeFrames(t, wire.CodecZstd, 32<<10, frames()[:4], 1)
	if *update {
		golden(t, "frames-zstd", b)
	}
	got, err := readFrames(readGolden(t, "frames-zstd"), maxFrame, maxWindow)
	if err != nil || len(got) != 4 || !bytes.Equal(got[3].b, frames()[3].b) {
		t.Errorf("golden zstd frames: %d frames, %v", len(got), err)
	}
	want := readings(30, 5)
	if *update {
		golden(t, "frames-telemetry", encodeFrames(t, wire.CodecTelemetry, 32<<10, want, 20))
	}
	if got, err = readFrames(readGolden(t, "frames-telemetry"), maxFrame, maxWindow); err != nil || len(got) != 30 {
		t.Fatalf("golden telemetry frames: %d frames, %v", len(got), err)
	}
	for i := range got {
		if !bytes.Equal(got[i].b, want[i].b) {
			t.Errorf("golden telemetry frame %d differs", i)
		}
	}
}

func TestTruncatedFrames(t *testing.T) {
	for _, codec := range []wire.Codec{wire.CodecNone, wire.CodecZstd} {
		all := frames()[:5]
		b := encodeFrames(t, codec, 32<<10, all, 2)
		whole := map[int]int{} // bytes after which a frame ends, to the frames until there
		for i := range all {
			whole[len(encodeFrames(t, codec, 32<<10, all[:i+1], -1))] = i + 1
		}
		for n := range b {
			got, err := readFrames(b[:n], maxFrame, maxWindow)
			if err == nil && n > 0 && whole[n] == 0 && n != len(encodeFrames(t, codec, 32<<10, all[:3], 2)) && n < len(encodeFrames(t, codec, 32<<10, all[:3], -1)) {
				t.Errorf("codec %d cut at byte %d: %d frames and no error", codec, n, len(got))
			}
			for i, f := range got {
				if !bytes.Equal(f.b, all[i].b) {
					t.Errorf("codec %d cut at byte %d: frame %d is not what was sent", codec, n, i)
				}
			}
		}
	}
}

// A flipped bit never gives other batches: the frame is refused, or its batches are.
func TestFlippedBitIsFound(t *testing.T) {
	for _, codec := range []wire.Codec{wire.CodecNone, wire.CodecZstd} {
		all := frames()[:4]
		b := encodeFrames(t, codec, 32<<10, all, -1)
		for bit := range len(b) * 8 {
			x := bytes.Clone(b)
			x[bit/8] ^= 1 << (bit % 8)
			got, _ := readFrames(x, maxFrame, maxWindow)
			for i, f := range got {
				if i < len(all) && bytes.Equal(f.b, all[i].b) {
					continue // what names the frame is not under a CRC: TLS protects it
				}
				if wire.VerifyFrame(f.h, f.b) == nil && !outsideCRC(f.b, all) {
					t.Errorf("codec %d bit %d: frame %d was taken with other bytes", codec, bit, i)
				}
			}
		}
	}
}

// outsideCRC says whether b differs from a sent frame only where Kafka's CRC does not
// reach: base offset, length and leader epoch of a batch.
func outsideCRC(b []byte, all []frame) bool {
	x, _, err := wire.NextBatch(b)
	if err != nil {
		return false
	}
	for _, f := range all {
		if y, _, err := wire.NextBatch(f.b); err == nil && x.CRC == y.CRC {
			return true
		}
	}
	return false
}

func TestFrameLimits(t *testing.T) {
	big := frame{wire.FrameHeader{Base: 0, Count: 1}, linktest.AppendBatch(nil, 0, 1, 1, make([]byte, 100_000))}
	for _, codec := range []wire.Codec{wire.CodecNone, wire.CodecZstd} {
		b := encodeFrames(t, codec, 1<<20, []frame{big}, -1)
		if _, err := readFrames(b, 64<<10, maxWindow); !errors.Is(err, wire.ErrMalformed) {
			t.Errorf("codec %d: a frame over the limit gave %v", codec, err)
		}
	}
	wide := encodeFrames(t, wire.CodecZstd, 1<<20, []frame{big}, -1)
	if _, err := readFrames(wide, maxFrame, 64<<10); !errors.Is(err, wire.ErrMalformed) {
		t.Errorf("a window over the limit gave %v", err)
	}
	noReset := encodeFrames(t, wire.CodecZstd, 32<<10, frames()[:2], -1)
	lengthBytes := 1
	for noReset[lengthBytes-1] >= 0x80 {
		lengthBytes++
	}
	noReset[lengthBytes+1] &^= 8
	if _, err := readFrames(noReset, maxFrame, maxWindow); !errors.Is(err, wire.ErrMalformed) {
		t.Errorf("a first frame without a context gave %v", err)
	}
	if _, err := wire.ReadPreamble(bytes.NewReader([]byte{'T', 'R', 1, 3})); err == nil {
		t.Error("lane 3 was taken")
	}
	// An unknown frame type is passed over.
	skip := append([]byte{6, 9, 0, 1, 2, 3, 4}, encodeFrames(t, wire.CodecZstd, 32<<10, frames()[:1], -1)...)
	if got, err := readFrames(skip, maxFrame, maxWindow); err != nil || len(got) != 1 {
		t.Errorf("frame behind an unknown one: %d, %v", len(got), err)
	}
}
