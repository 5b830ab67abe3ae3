package record_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"runtime"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"tailrace/storage/record"
)

// pack compresses b with franz-go's compressor, as a foreign producer would.
func pack(t testing.TB, b record.Batch, codec kgo.CompressionCodec, want int) record.Batch {
	t.Helper()
	c, err := kgo.DefaultCompressor(codec)
	if err != nil {
		t.Fatal(err)
	}
	z, _ := c.Compress(new(bytes.Buffer), b[record.HeaderBytes:])
	return relabel(b, z, want)
}

func relabel(b record.Batch, records []byte, codec int) record.Batch {
	out := append(bytes.Clone(b[:record.HeaderBytes]), records...)
	binary.BigEndian.PutUint32(out[8:], uint32(len(out)-12))
	binary.BigEndian.PutUint16(out[21:], uint16(codec))
	record.Batch(out).SetProducer(-1, -1, -1, false)
	return out
}

var codecs = []struct {
	name  string
	kgo   kgo.CompressionCodec
	codec int
}{
	{"gzip", kgo.GzipCompression(), record.CodecGzip},
	{"snappy", kgo.SnappyCompression(), record.CodecSnappy},
	{"lz4", kgo.Lz4Compression(), record.CodecLZ4},
	{"zstd", kgo.ZstdCompression(), record.CodecZstd},
}

func TestEveryCodecOfAForeignProducerIsRead(t *testing.T) {
	rs := corpus()
	plain := build(11, rs...)
	d := record.NewDecompressor(0)
	for _, c := range codecs {
		t.Run(c.name, func(t *testing.T) {
			z := pack(t, plain, c.kgo, c.codec)
			for range 3 { // the decoders are reused
				if err := z.Validate(d); err != nil {
					t.Fatal(err)
				}
				it := z.Iter(d)
				same(t, &it, rs, 11)
			}
			cut := relabel(plain, z[record.HeaderBytes:len(z)-5], c.codec)
			if err := cut.Validate(d); err == nil {
				t.Fatal("a cut block passed")
			}
			if err := z.Validate(d); err != nil {
				t.Fatal("after an error:", err)
			}
		})
	}
}

func TestXerialFramingIsRead(t *testing.T) {
	rs := corpus()
	plain := build(11, rs...)
	framed := []byte{0x82, 'S', 'N', 'A', 'P', 'P', 'Y', 0, 0, 0, 0, 1, 0, 0, 0, 1}
	for src := plain[record.HeaderBytes:]; len(src) > 0; {
		n := min(len(src), 32<<10)
		c, _ := kgo.DefaultCompressor(kgo.SnappyCompression())
		z, _ := c.Compress(new(bytes.Buffer), src[:n])
		framed = binary.BigEndian.AppendUint32(framed, uint32(len(z)))
		framed = append(framed, z...)
		src = src[n:]
	}
	b := relabel(plain, framed, record.CodecSnappy)
	d := record.NewDecompressor(0)
	if err := b.Validate(d); err != nil {
		t.Fatal(err)
	}
	if err := relabel(plain, framed[:20], record.CodecSnappy).Validate(d); err == nil {
		t.Fatal("half a frame passed")
	}
}

func TestABombIsRefusedBeforeItGrows(t *testing.T) {
	bomb := build(0, rec{1, nil, make([]byte, 64<<20), nil})
	for _, c := range codecs {
		t.Run(c.name, func(t *testing.T) {
			z := pack(t, bomb, c.kgo, c.codec)
			d := record.NewDecompressor(1 << 20)
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			err := z.Validate(d)
			runtime.ReadMemStats(&after)
			if !errors.Is(err, record.ErrTooLarge) {
				t.Fatal(err)
			}
			if got := after.TotalAlloc - before.TotalAlloc; got > 24<<20 {
				t.Fatalf("%d MiB allocated for a cap of 1 MiB", got>>20)
			}
		})
	}
}
