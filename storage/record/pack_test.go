package record_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"runtime"
	"testing"

	"tailrace/storage/record"
)

func packable(n, size int) record.Batch {
	var bl record.Builder
	bl.Reset(nil)
	for i := range n {
		bl.Add(1_700_000_000_000+int64(i*3%5), fmt.Append(nil, "key", i), bytes.Repeat([]byte("measure "), size/8), []record.Header{{Key: "mqtt.topic", Value: []byte("a/b")}})
	}
	return record.Batch(bl.Finish(1<<40, 7))
}

// TestPack: what is unpacked is what was packed, byte for byte; other batches than a
// builder's, and those that do not get smaller, stay as they are.
func TestPack(t *testing.T) {
	for _, n := range []int{1, 3, 500} {
		b := packable(n, 100)
		p, ok := record.Pack([]byte("before"), b)
		if !ok || len(p)-6 >= len(b) || string(p[:6]) != "before" {
			t.Fatalf("%d records: %d of %d bytes, %v", n, len(p)-6, len(b), ok)
		}
		got, err := record.Unpack([]byte("x"), 7, p[6:], len(b))
		if err != nil || !bytes.Equal(got[1:], b) || got[0] != 'x' {
			t.Fatalf("%d records: %v", n, err)
		}
		if base, next, ok := record.PackedRange(p[6:]); !ok || base != b.BaseOffset() || next != b.NextOffset() {
			t.Errorf("[%d, %d), %v", base, next, ok)
		}
		if _, err := record.Unpack(nil, 7, p[6:], len(b)-1); !errors.Is(err, record.ErrTooLarge) {
			t.Errorf("%d bytes where one less may be: %v", len(b), err)
		}
	}
	for what, f := range map[string]func(record.Batch) record.Batch{
		"of a producer":        func(b record.Batch) record.Batch { b.SetProducer(1, 1, 1, false); return b },
		"transactional":        func(b record.Batch) record.Batch { b.SetProducer(-1, -1, -1, true); return b },
		"compressed":           func(record.Batch) record.Batch { return record.Batch(record.Compress(nil, packable(50, 200))) },
		"with a hole":          func(b record.Batch) record.Batch { binary.BigEndian.PutUint32(b[23:], 9); return b },
		"times go backwards":   func(b record.Batch) record.Batch { binary.BigEndian.PutUint64(b[35:], 1); return b },
		"of a negative offset": func(b record.Batch) record.Batch { b.SetBaseOffset(-1); return b },
	} {
		if p, ok := record.Pack(nil, f(packable(3, 100))); ok || len(p) != 0 {
			t.Errorf("a batch %s was packed", what)
		}
	}
}

// TestUnpackBelievesNoLength: a block that claims more than it can hold costs no memory.
func TestUnpackBelievesNoLength(t *testing.T) {
	p, _ := record.Pack(nil, packable(1, 8))
	head := p[:6+1+6+1+4+2] // base offset, records, time, span, CRC, check of the head
	if _, _, ok := record.PackedRange(head); !ok {
		t.Fatal("the head is not whole")
	}
	for _, claim := range []uint64{1 << 20, 1 << 30, math.MaxUint32} {
		bad := append(binary.AppendUvarint(bytes.Clone(head), claim), make([]byte, 100)...)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		if out, err := record.Unpack(nil, 1, bad, math.MaxInt32); err == nil || len(out) > 0 {
			t.Errorf("claim of %d bytes: %v", claim, err)
		}
		runtime.ReadMemStats(&after)
		if n := after.TotalAlloc - before.TotalAlloc; n > 64<<10 {
			t.Errorf("claim of %d bytes: %d were allocated", claim, n)
		}
	}
}

// FuzzUnpack: any bytes are refused, or are a sound batch that packs and unpacks to itself.
func FuzzUnpack(f *testing.F) {
	for _, n := range []int{1, 3, 40} {
		p, _ := record.Pack(nil, packable(n, 80))
		f.Add(p)
		f.Add(p[:len(p)/2])
	}
	f.Fuzz(func(t *testing.T, src []byte) {
		const limit = 1 << 16
		src = resealHead(src)
		base, next, ok := record.PackedRange(src)
		b, err := record.Unpack(nil, 3, src, limit)
		if err != nil {
			if !errors.Is(err, record.ErrCorrupt) && !errors.Is(err, record.ErrTooLarge) || len(b) != 0 {
				t.Fatalf("%d bytes, %v", len(b), err)
			}
			return
		}
		batch := record.Batch(b)
		if err := batch.Verify(); err != nil || len(b) > limit || !ok || batch.BaseOffset() != base || batch.NextOffset() != next {
			t.Fatalf("%d bytes, [%d, %d): %v", len(b), base, next, err)
		}
		if p, ok := record.Pack(nil, batch); ok {
			if again, err := record.Unpack(nil, 3, p, limit); err != nil || !bytes.Equal(again, b) {
				t.Fatalf("packed again: %v", err)
			}
		}
	})
}

// resealHead makes the check of a packed batch's head right, where there is a head: else nothing
// that a fuzzer changes comes further.
func resealHead(src []byte) []byte {
	at := 0
	for range 4 {
		_, n := binary.Uvarint(src[at:])
		if n <= 0 {
			return src
		}
		at += n
	}
	if at += 4; len(src) < at+2 {
		return src
	}
	src = bytes.Clone(src)
	binary.BigEndian.PutUint16(src[at:], uint16(crc32.Checksum(src[:at], crc32.MakeTable(crc32.Castagnoli))))
	return src
}

// TestUnpackFindsDamage: every bit, those of the base offset as well, which Kafka's CRC leaves out.
func TestUnpackFindsDamage(t *testing.T) {
	b := packable(3, 40)
	p, _ := record.Pack(nil, b)
	for bit := range 8 * len(p) {
		bad := bytes.Clone(p)
		bad[bit/8] ^= 1 << (bit % 8)
		if got, err := record.Unpack(nil, 7, bad, 1<<20); err == nil && !bytes.Equal(got, b) {
			t.Errorf("bit %d of byte %d: another batch", bit%8, bit/8)
		}
	}
}

// TestPackedRangeFindsDamage: a bit that flipped in the head of a packed batch leads to no
// other range, since a recovery that finds the entry damaged goes by it.
func TestPackedRangeFindsDamage(t *testing.T) {
	for n := 1; n < 300; n++ {
		p, ok := record.Pack(nil, packable(n, 80))
		if !ok {
			t.Fatal(n)
		}
		from, to, ok := record.PackedRange(p)
		if !ok || to-from != int64(n) {
			t.Fatal(from, to, ok)
		}
		for bit := range 8 * 24 {
			p[bit/8] ^= 1 << (bit % 8)
			if f, u, ok := record.PackedRange(p); ok && (f != from || u != to) {
				t.Errorf("%d records, bit %d flipped: [%d,%d)", n, bit, f, u)
			}
			p[bit/8] ^= 1 << (bit % 8)
		}
	}
}
