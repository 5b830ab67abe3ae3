package record_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"tailrace/storage/record"
)

var update = flag.Bool("update", false, "rewrite testdata")

type rec struct {
	ts         int64
	key, value []byte
	headers    []record.Header
}

func build(base int64, rs ...rec) record.Batch {
	var bl record.Builder
	bl.Reset(nil)
	for _, r := range rs {
		bl.Add(r.ts, r.key, r.value, r.headers)
	}
	return bl.Finish(base, 1)
}

func bytesOf(n int) []byte { return bytes.Repeat([]byte{'x'}, n) }

// corpus has the shapes that change an encoding: null against empty, lengths
// at each varint step, timestamps that go back, many headers.
func corpus() []rec {
	rs := []rec{
		{1_790_000_000_000, nil, nil, nil},
		{1_790_000_000_000, []byte{}, []byte{}, nil},
		{1_789_999_999_000, []byte("turbine-7"), []byte(`{"wind":7.5}`), []record.Header{{Key: "mqtt.topic", Value: []byte("wind/7")}, {Key: "", Value: nil}, {Key: "e", Value: []byte{}}}},
		{1_790_000_000_000 + math.MaxInt32, []byte("k"), bytesOf(63), nil},
		{0, []byte("k"), bytesOf(64), nil},
		{1_790_000_000_001, bytesOf(8191), bytesOf(8192), nil},
		{-1, nil, bytesOf(1 << 20), nil},
	}
	var many []record.Header
	for i := range 70 {
		many = append(many, record.Header{Key: fmt.Sprint("h", i), Value: bytesOf(i)})
	}
	rs = append(rs, rec{1_790_000_000_002, []byte("many"), []byte("headers"), many})
	for i := range 200 {
		rs = append(rs, rec{1_790_000_000_000 + int64(i), []byte("k"), fmt.Appendf(nil, "value %d", i), nil})
	}
	return rs
}

// byKmsg builds the same batch with franz-go's own codec.
func byKmsg(base int64, rs ...rec) []byte {
	kb := kmsg.RecordBatch{
		FirstOffset: base, PartitionLeaderEpoch: 1, Magic: 2, LastOffsetDelta: int32(len(rs) - 1),
		FirstTimestamp: rs[0].ts, MaxTimestamp: math.MinInt64,
		ProducerID: -1, ProducerEpoch: -1, FirstSequence: -1, NumRecords: int32(len(rs)),
	}
	for i, r := range rs {
		kb.MaxTimestamp = max(kb.MaxTimestamp, r.ts)
		kr := kmsg.Record{TimestampDelta64: r.ts - rs[0].ts, OffsetDelta: int32(i), Key: r.key, Value: r.value}
		for _, h := range r.headers {
			kr.Headers = append(kr.Headers, kmsg.Header{Key: h.Key, Value: h.Value})
		}
		body := kr.AppendTo(nil)
		kr.Length = int32(len(body) - 1) // length 0 takes one byte
		kb.Records = kr.AppendTo(kb.Records)
	}
	kb.Length = int32(49 + len(kb.Records))
	raw := kb.AppendTo(nil)
	b := record.Batch(raw)
	b.SetProducer(-1, -1, -1, false) // fills the CRC in, by our code: checked against kgo below
	return raw
}

func same(t *testing.T, it *record.Iter, want []rec, base int64) {
	t.Helper()
	n := 0
	for it.Next() {
		if n == len(want) {
			t.Fatalf("more than the %d records", n)
		}
		r, w := it.Record(), want[n]
		if r.Offset != base+int64(n) || r.Timestamp != w.ts {
			t.Fatalf("record %d: offset %d time %d, want %d %d", n, r.Offset, r.Timestamp, base+int64(n), w.ts)
		}
		if !sameBytes(r.Key, w.key) || !sameBytes(r.Value, w.value) || len(r.Headers) != len(w.headers) {
			t.Fatalf("record %d differs: %.60q %.60q, %d headers", n, r.Key, r.Value, len(r.Headers))
		}
		for i, h := range r.Headers {
			if h.Key != w.headers[i].Key || !sameBytes(h.Value, w.headers[i].Value) {
				t.Fatalf("record %d header %d differs: %q=%q", n, i, h.Key, h.Value)
			}
		}
		n++
	}
	if it.Err() != nil {
		t.Fatal(it.Err())
	}
	if n != len(want) {
		t.Fatalf("%d records, want %d", n, len(want))
	}
}

func sameBytes(a, b []byte) bool { return (a == nil) == (b == nil) && bytes.Equal(a, b) }

func TestBatchIsByteExactWithKmsg(t *testing.T) {
	rs := corpus()
	if got, want := build(42, rs...), byKmsg(42, rs...); !bytes.Equal(got, want) {
		for i := range got {
			if i >= len(want) || got[i] != want[i] {
				t.Fatalf("differs at byte %d", i)
			}
		}
		t.Fatalf("%d bytes, kmsg makes %d", len(got), len(want))
	}
}

func TestKgoReadsTheBatch(t *testing.T) {
	for name, b := range map[string]record.Batch{
		"plain": build(1000, corpus()...),
		"zstd":  record.Compress(nil, build(1000, corpus()...)),
	} {
		t.Run(name, func(t *testing.T) {
			rp := kmsg.NewFetchResponseTopicPartition()
			rp.RecordBatches = b
			rp.HighWatermark = b.NextOffset()
			fp, next := kgo.ProcessFetchPartition(kgo.ProcessFetchPartitionOpts{
				Topic: "t", Offset: 1000, KeepControlRecords: true,
			}, &rp, kgo.DefaultDecompressor(), nil)
			if fp.Err != nil || next != b.NextOffset() {
				t.Fatalf("err %v, next %d", fp.Err, next)
			}
			want := corpus()
			if len(fp.Records) != len(want) {
				t.Fatalf("%d records, want %d", len(fp.Records), len(want))
			}
			for i, r := range fp.Records {
				w := want[i]
				if r.Offset != 1000+int64(i) || r.Timestamp.UnixMilli() != w.ts || !sameBytes(r.Key, w.key) ||
					!sameBytes(r.Value, w.value) || len(r.Headers) != len(w.headers) {
					t.Fatalf("record %d differs", i)
				}
			}
		})
	}
}

func TestRecordsComeBackAsAdded(t *testing.T) {
	rs := corpus()
	b := build(7, rs...)
	if err := b.Validate(nil); err != nil {
		t.Fatal(err)
	}
	for _, d := range []*record.Decompressor{nil, record.NewDecompressor(0)} {
		it := b.Iter(d)
		same(t, &it, rs, 7)
	}
	if b.Count() != len(rs) || b.LastOffset() != 7+int64(len(rs))-1 || b.NextOffset() != 7+int64(len(rs)) ||
		b.LeaderEpoch() != 1 || b.ProducerID() != -1 || b.ProducerEpoch() != -1 || b.BaseSequence() != -1 ||
		b.BaseTimestamp() != rs[0].ts || b.MaxTimestamp() != 1_790_000_000_000+math.MaxInt32 || b.Codec() != 0 {
		t.Fatalf("header: %x", b[:record.HeaderBytes])
	}
	if lo, ok := b.MinTimestamp(); !ok || lo != -1 {
		t.Errorf("least timestamp %d, %v", lo, ok)
	}
	cut := slices.Clone(b)
	cut[record.HeaderBytes] = 1 // the first record's length: negative
	if lo, ok := cut.MinTimestamp(); ok {
		t.Errorf("records that do not parse have a least timestamp, %d", lo)
	}
}

func TestAddEncodedEqualsAdd(t *testing.T) {
	rs := corpus()
	var bl record.Builder
	bl.Reset([]byte("before"))
	for _, r := range rs {
		tail := record.AppendTail(nil, r.key, r.value, r.headers)
		if err := record.CheckTail(tail); err != nil {
			t.Fatal(err)
		}
		bl.AddEncoded(r.ts, tail)
	}
	size := bl.Len()
	out := bl.Finish(5, 1)
	if !bytes.Equal(out[6:], build(5, rs...)) || string(out[:6]) != "before" || size != len(out)-6 {
		t.Fatal("AddEncoded differs from Add")
	}
	if err := record.CheckTail([]byte{1, 1, 2, 2}); err == nil {
		t.Fatal("a header without value passed")
	}
}

func TestEmptyBuilderLeavesTheBuffer(t *testing.T) {
	var bl record.Builder
	bl.Reset([]byte("ab"))
	if got := bl.Finish(0, 0); string(got) != "ab" {
		t.Fatalf("%q", got)
	}
}

func TestOffsetAndEpochAreOutsideTheCRC(t *testing.T) {
	b := build(0, corpus()...)
	sum := b.CRC()
	b.SetBaseOffset(1 << 40)
	b.SetLeaderEpoch(77)
	if err := b.Validate(nil); err != nil || b.CRC() != sum || b.BaseOffset() != 1<<40 || b.LeaderEpoch() != 77 {
		t.Fatal(err, b.BaseOffset(), b.LeaderEpoch())
	}
}

func TestSetProducerKeepsRecordsAndRenewsTheCRC(t *testing.T) {
	b := record.Batch(record.Compress(nil, build(0, corpus()...)))
	before := bytes.Clone(b[record.HeaderBytes:])
	b.SetProducer(99, 3, 1234, true)
	if b.ProducerID() != 99 || b.ProducerEpoch() != 3 || b.BaseSequence() != 1234 || b.Attributes() != record.AttrTransactional|record.CodecZstd {
		t.Fatalf("%x", b[:record.HeaderBytes])
	}
	if err := b.Validate(record.NewDecompressor(0)); err != nil || !bytes.Equal(before, b[record.HeaderBytes:]) {
		t.Fatal(err)
	}
}

func TestNextWalksAConcatenation(t *testing.T) {
	one, two := build(0, rec{1, nil, []byte("a"), nil}), build(1, rec{2, nil, []byte("b"), nil}, rec{3, nil, []byte("c"), nil})
	cat := append(bytes.Clone(one), two...)
	b, rest, err := record.Next(cat)
	if err != nil || !bytes.Equal(b, one) {
		t.Fatal(err)
	}
	if b, rest, err = record.Next(rest); err != nil || !bytes.Equal(b, two) || len(rest) != 0 {
		t.Fatal(err)
	}
	for cut := range len(one) {
		if _, _, err := record.Next(one[:cut]); !errors.Is(err, record.ErrShort) {
			t.Fatalf("cut at %d: %v", cut, err)
		}
	}
	if err := record.Batch(cat).Verify(); !errors.Is(err, record.ErrCorrupt) {
		t.Fatalf("two batches pass as one: %v", err)
	}
}

func TestEveryFlippedBitIsFound(t *testing.T) {
	b := build(3, rec{1_790_000_000_000, []byte("k"), []byte("value"), []record.Header{{Key: "h", Value: []byte("v")}}})
	for i := range len(b) * 8 {
		c := bytes.Clone(b)
		c[i/8] ^= 1 << (i % 8)
		err := record.Batch(c).Verify()
		if at := i / 8; at == 0 {
			continue // a negative or enormous base offset is refused, others pass
		} else if outside := at < 8 || at >= 12 && at < 16; outside != (err == nil) { // base offset, leader epoch
			t.Fatalf("bit %d of byte %d: %v", i%8, at, err)
		}
	}
}

func TestValidateRefusesWhatVerifyCannotSee(t *testing.T) {
	fresh := func() record.Batch { return build(0, rec{10, nil, []byte("a"), nil}, rec{20, nil, []byte("b"), nil}) }
	for _, c := range []struct {
		name  string
		spoil func(b record.Batch)
	}{
		{"wrong offset delta", func(b record.Batch) { b[61+3] = 2 }},
		{"wrong maximal timestamp", func(b record.Batch) { b[42]++ }},
		{"record too long", func(b record.Batch) { b[61]++ }},
		{"null header key", func(b record.Batch) { b[len(b)-1] = 2 }},
	} {
		b := fresh()
		c.spoil(b)
		b.SetProducer(-1, -1, -1, false) // a fresh CRC
		if err := b.Verify(); err != nil {
			t.Fatalf("%s: Verify: %v", c.name, err)
		}
		if err := b.Validate(nil); !errors.Is(err, record.ErrCorrupt) {
			t.Errorf("%s: Validate: %v", c.name, err)
		}
	}
}

func TestMergeKeepsEveryRecord(t *testing.T) {
	rs := corpus()
	var parts []record.Batch
	rnd := rand.New(rand.NewPCG(1, 2))
	for i := 0; i < len(rs); {
		n := min(1+rnd.IntN(9), len(rs)-i)
		b := build(100+int64(i), rs[i:i+n]...)
		if rnd.IntN(2) == 0 {
			b = record.Compress(nil, b)
		}
		parts = append(parts, b)
		i += n
	}
	out, err := record.Merge([]byte("pre"), parts...)
	if err != nil {
		t.Fatal(err)
	}
	got := record.Batch(out[3:])
	if !bytes.Equal(got, build(100, rs...)) {
		t.Fatal("the merge differs from one batch built at once")
	}
	if err := got.Validate(nil); err != nil {
		t.Fatal(err)
	}
}

func TestMergeRefusesGapsAndIdentities(t *testing.T) {
	a, b := build(0, rec{1, nil, nil, nil}), build(2, rec{1, nil, nil, nil})
	withID := build(1, rec{1, nil, nil, nil})
	withID.SetProducer(5, 0, 0, false)
	for name, second := range map[string]record.Batch{"gap": b, "producer id": withID} {
		if out, err := record.Merge([]byte("x"), a, second); err == nil || string(out) != "x" {
			t.Errorf("%s: %v %q", name, err, out)
		}
	}
}

func TestSplitEqualsTheRecordsOfTheRange(t *testing.T) {
	rs := corpus()
	for _, b := range []record.Batch{build(50, rs...), record.Compress(nil, build(50, rs...))} {
		for _, r := range [][2]int64{{50, 51}, {53, 60}, {0, 52}, {100, 1 << 40}} {
			out, err := record.Split(nil, b, r[0], r[1])
			if err != nil {
				t.Fatal(err)
			}
			from, to := max(r[0], 50), min(r[1], b.NextOffset())
			it := record.Batch(out).Iter(nil)
			same(t, &it, rs[from-50:to-50], from)
			if err := record.Batch(out).Validate(nil); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := record.Split(nil, b, 0, 50); err == nil {
			t.Fatal("an empty range was split off")
		}
	}
}

func TestCompressShrinksOrLeavesAlone(t *testing.T) {
	big := build(9, corpus()...)
	z := record.Batch(record.Compress([]byte("p"), big)[1:])
	if z.Codec() != record.CodecZstd || len(z) >= len(big)/4 {
		t.Fatalf("codec %d, %d of %d bytes", z.Codec(), len(z), len(big))
	}
	if err := z.Validate(record.NewDecompressor(0)); err != nil {
		t.Fatal(err)
	}
	it := z.Iter(record.NewDecompressor(0))
	same(t, &it, corpus(), 9)
	small := build(0, rec{1, nil, bytesOf(100), nil})
	noise := make([]byte, 5000)
	r := rand.NewChaCha8([32]byte{})
	r.Read(noise)
	for _, b := range []record.Batch{small, z, build(0, rec{1, nil, noise, nil})} {
		if !bytes.Equal(record.Compress(nil, b), b) {
			t.Fatal("changed what it should leave alone")
		}
	}
}

func TestCompressedNeedsADecompressor(t *testing.T) {
	z := record.Batch(record.Compress(nil, build(0, corpus()...)))
	it := z.Iter(nil)
	if it.Next() || it.Err() == nil || !strings.Contains(it.Err().Error(), "no decompressor") {
		t.Fatal(it.Err())
	}
}

func TestIterationDoesNotAllocatePerRecord(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	rs := corpus()
	b := build(0, rs...)
	z := record.Batch(record.Compress(nil, b))
	d := record.NewDecompressor(0)
	for name, b := range map[string]record.Batch{"plain": b, "zstd": z} {
		n := testing.AllocsPerRun(20, func() {
			it := b.Iter(d)
			for it.Next() {
				_ = it.Record()
			}
			if it.Err() != nil {
				t.Fatal(it.Err())
			}
		})
		if n > 0 {
			t.Errorf("%s: %v allocations a batch", name, n)
		}
	}
}

func TestBuildingDoesNotAllocate(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	rs := corpus()
	arena := make([]byte, 0, 4<<20)
	var bl record.Builder
	if n := testing.AllocsPerRun(20, func() {
		bl.Reset(arena[:0])
		for i := range rs {
			bl.Add(rs[i].ts, rs[i].key, rs[i].value, rs[i].headers)
		}
		bl.Finish(0, 1)
	}); n > 0 {
		t.Errorf("%v allocations a batch", n)
	}
}

// The golden bytes pin the format: a codec that alters them breaks every log
// that exists.
func TestGoldenBytes(t *testing.T) {
	golden := map[string]record.Batch{
		"one": build(4_294_967_296, rec{1_790_000_000_123, []byte("turbine-7"), []byte(`{"wind":7.5}`),
			[]record.Header{{Key: "mqtt.topic", Value: []byte("wind/7/power")}, {Key: "tr", Value: []byte{0, 1, 2}}}}),
		"nulls": build(0, rec{1_790_000_000_000, nil, nil, nil}, rec{1_789_999_999_999, []byte{}, []byte{}, []record.Header{{Key: "n"}}},
			rec{1_790_000_003_600, []byte("k"), bytesOf(64), nil}),
	}
	for name, b := range golden {
		path := filepath.Join("testdata", "v2", name+".hex")
		if *update {
			os.MkdirAll(filepath.Dir(path), 0o755)
			if err := os.WriteFile(path, []byte(hex.Dump(b)), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if got := hex.Dump(b); got != string(want) {
			t.Errorf("%s:\n%s\nwant\n%s", name, got, want)
		}
	}
	three := bytes.Clone(golden["one"])
	three[16] = 3
	if _, _, err := record.Next(three); !errors.Is(err, record.ErrCorrupt) || !strings.Contains(err.Error(), "magic 3") {
		t.Error("magic 3:", err)
	}
}
