package record_test

import (
	"bytes"
	"testing"

	"tailrace/storage/record"
)

func seeds(f *testing.F) {
	small := corpus()[:5]
	plain := build(3, small...)
	f.Add([]byte(plain))
	f.Add(append(bytes.Clone(plain), plain...))
	for _, c := range codecs {
		f.Add([]byte(pack(f, plain, c.kgo, c.codec)))
	}
}

// FuzzParse: whatever the bytes, nothing panics and nothing reads outside; a
// valid uncompressed batch rebuilt from its records iterates to the same records.
func FuzzParse(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, in []byte) {
		d := record.NewDecompressor(1 << 20)
		defer d.Close()
		for rest := in; len(rest) > 0; {
			b, after, err := record.Next(rest)
			if err != nil {
				return
			}
			if len(b)+len(after) != len(rest) {
				t.Fatal("Next lost bytes")
			}
			rest = after
			it := b.Iter(d)
			for it.Next() {
				r := it.Record()
				if r.Offset < b.BaseOffset() || r.Offset > b.LastOffset() {
					t.Fatalf("offset %d outside the batch", r.Offset)
				}
			}
			b = bytes.Clone(b)
			b.SetProducer(-1, -1, -1, false) // let the fuzzer past the CRC
			if b.Validate(d) != nil {
				continue
			}
			var bl record.Builder
			bl.Reset(nil)
			it = b.Iter(d)
			for it.Next() {
				r := it.Record()
				bl.Add(r.Timestamp, r.Key, r.Value, r.Headers)
			}
			again := record.Batch(bl.Finish(b.BaseOffset(), b.LeaderEpoch()))
			if err := again.Validate(nil); err != nil || again.Count() != b.Count() || again.MaxTimestamp() != b.MaxTimestamp() {
				t.Fatalf("rebuilt batch: %v", err)
			}
			if b.Attributes()&(record.AttrControl) == 0 && b.Count() > 1 {
				if _, err := record.Split(nil, b, b.BaseOffset()+1, b.NextOffset()); err != nil {
					t.Fatal(err)
				}
			}
		}
	})
}

// FuzzDecompress: no codec panics or yields more than the cap.
func FuzzDecompress(f *testing.F) {
	plain := build(3, corpus()[:5]...)
	for _, c := range codecs {
		f.Add(c.codec, []byte(pack(f, plain, c.kgo, c.codec)[record.HeaderBytes:]))
	}
	f.Fuzz(func(t *testing.T, codec int, in []byte) {
		d := record.NewDecompressor(64 << 10)
		defer d.Close()
		out, err := d.Decompress(nil, codec, in)
		if err == nil && codec != record.CodecNone && len(out) > 64<<10 {
			t.Fatalf("%d bytes", len(out))
		}
	})
}
