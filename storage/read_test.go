package storage_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"tailrace/storage"
	"tailrace/storage/record"
)

// TestTimeLookupUsesTheRunningMaximum: timestamps that go back do not hide records,
// and the answer is exact to the record.
func TestTimeLookupUsesTheRunningMaximum(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "s")
	s := open(t, dir, onFS(&testFS{}), segmentBytes(4096))
	p := topic(t, s, "wind", 1).Partition(0)
	rnd := rand.New(rand.NewPCG(3, 4))
	var ts []int64
	for range 300 {
		a := s.NewAppend("")
		for range 1 + rnd.IntN(4) {
			v := int64(len(ts))*10 + rnd.Int64N(400) - 200
			if len(ts)%97 == 40 {
				v += 3000 // a clock that jumped, and came back
			}
			ts = append(ts, v)
			a.Record(p, v, nil, make([]byte, 60), nil)
		}
		if err := s.Commit(t.Context(), a); err != nil {
			t.Fatal(err)
		}
	}
	check := func(start int) {
		t.Helper()
		for q := int64(-300); q < int64(len(ts))*10+300; q += 37 {
			want := -1
			for i := start; i < len(ts); i++ {
				if ts[i] >= q {
					want = i
					break
				}
			}
			off, at, ok, err := p.OffsetForTime(q)
			if err != nil || ok != (want >= 0) || ok && (off != int64(want) || at != ts[want]) {
				t.Fatalf("time %d: offset %d time %d %v %v, want %d", q, off, at, ok, err, want)
			}
		}
		best := start
		for i := start; i < len(ts); i++ {
			if ts[i] > ts[best] {
				best = i
			}
		}
		if off, at, ok := p.MaxTimestampOffset(); !ok || off != int64(best) || at != ts[best] {
			t.Fatalf("greatest time at %d (%d), want %d (%d)", off, at, best, ts[best])
		}
		for lo := int64(0); lo < 2500; lo += 611 {
			got := make(map[int64]bool)
			c := p.ReadRange(time.UnixMilli(lo), time.UnixMilli(lo+150))
			for {
				b, err := c.Next(t.Context())
				if err == io.EOF {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				for _, r := range decode(t, b) {
					if r.TS >= lo && r.TS < lo+150 {
						got[r.Offset] = true
					}
				}
			}
			for i := start; i < len(ts); i++ {
				if in := ts[i] >= lo && ts[i] < lo+150; in != got[int64(i)] && (in || i > start+4) {
					t.Fatalf("range from %d: record %d with time %d: %v", lo, i, ts[i], got[int64(i)])
				}
			}
		}
	}
	check(0)
	if err := p.SetStart(101); err != nil {
		t.Fatal(err)
	}
	check(101)
	s.Close()
	s = open(t, dir, onFS(&testFS{}), segmentBytes(4096))
	tp, _ := s.Topic("wind")
	p = tp.Partition(0)
	check(101)
}

// TestReadersSeeOnlyWholeOrderedDurableRecords while a writer, retention and
// reopening of files go on. Run with -race.
func TestReadersSeeOnlyWholeOrderedDurableRecords(t *testing.T) {
	s := open(t, t.TempDir(), onFS(&testFS{}), segmentBytes(8192))
	tp := topic(t, s, "wind", 3)
	const total = 1500
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var wg sync.WaitGroup
	for r := range 4 {
		wg.Go(func() {
			p := tp.Partition(r % 3)
			c := storage.NewCursor(p, 0)
			next := int64(0)
			for next < total {
				b, err := c.Next(ctx)
				if errors.Is(err, storage.ErrOffsetOutOfRange) {
					next = p.Start()
					c.SeekTo(next)
					continue
				}
				if err != nil {
					t.Errorf("reader %d at %d: %v", r, next, err)
					return
				}
				if b.NextOffset() > p.HighWatermark() {
					t.Errorf("reader %d: offset %d beyond the high watermark", r, b.LastOffset())
				}
				for _, rec := range decode(t, b) {
					if rec.Offset < next {
						continue
					}
					if rec.Offset != next || rec.Value != fmt.Sprintf("%d/%d", p.Index(), rec.Offset) {
						t.Errorf("reader %d: got %+v at %d", r, rec, next)
						return
					}
					next++
				}
				if r == 3 {
					p.OffsetForTime(next - 5)
					s.Stats()
					s.RangeState(storage.KindMeta, func(string, []byte) bool { return true })
				}
			}
		})
	}
	a := s.NewAppend("")
	for i := range total {
		a.Reset()
		for _, p := range tp.Partitions() {
			a.Record(p, int64(i), nil, fmt.Appendf(nil, "%d/%d", p.Index(), i), nil)
		}
		a.Set(storage.KindMeta, fmt.Sprint(i%7), fmt.Append(nil, i))
		if err := s.Commit(ctx, a); err != nil {
			t.Fatal(err)
		}
		if i%400 == 399 {
			for _, p := range tp.Partitions() {
				if err := p.SetStart(int64(i - 300)); err != nil {
					t.Fatal(err)
				}
			}
			if err := s.Retain(); err != nil {
				t.Fatal(err)
			}
		}
	}
	wg.Wait()
}

// TestRotUnderAnOpenStoreIsSteppedOver: a reader that meets damage gets the rest,
// never wrong bytes; the range is declared, and the segment repaired at once.
func TestRotUnderAnOpenStoreIsSteppedOver(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "s")
	s := open(t, dir, onFS(&testFS{}), segmentBytes(4096))
	p := topic(t, s, "wind", 1).Partition(0)
	fill(t, s, p, 100, func(i int) int64 { return int64(i) })
	want := readAll(t, p, 0)
	name := segments(t, dir)[1]
	b := mustRead(t, name)
	at := bytes.Index(b, fmt.Appendf(nil, "%0100d", 25))
	if at < 0 {
		t.Fatal("record 25 is not in the second segment")
	}
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.WriteAt([]byte{'x'}, int64(at))
	f.Close()
	check := func() {
		t.Helper()
		got := readAll(t, p, 0)
		if fmt.Sprint(got) != fmt.Sprint(append(append([]rec{}, want[:25]...), want[26:]...)) {
			t.Fatalf("got %v", got)
		}
		if r := readAll(t, p, 25); r[0].Offset != 26 {
			t.Fatalf("read in the hole gives %v", r[0])
		}
	}
	check()
	if err := s.Retain(); err != nil { // a round of the committer: the row is durable
		t.Fatal(err)
	}
	if l := s.Losses(); len(l) != 1 || l[0].From != 25 || l[0].To != 26 || l[0].Reason != storage.LossDamaged {
		t.Fatalf("losses %+v", l)
	}
	s.Close()
	s = open(t, dir, onFS(&testFS{}), segmentBytes(4096))
	tp, _ := s.Topic("wind")
	p = tp.Partition(0)
	check()
	if l := s.Losses(); len(l) != 1 || repairs(s) != "" || s.Identity().Epoch.Number != 1 {
		t.Fatalf("reopened: losses %+v, repairs %q", l, repairs(s))
	}
	s.Close()
	plainRead(t, dir)
}

// TestMissingSegmentTakesNothingElse: with a file gone, what is behind it stays, and what
// is before it; what was in it is declared.
func TestMissingSegmentTakesNothingElse(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "s")
	s := open(t, dir, onFS(&testFS{}), segmentBytes(4096))
	p := topic(t, s, "wind", 1).Partition(0)
	fill(t, s, p, 300, func(i int) int64 { return int64(i) })
	a := s.NewAppend("")
	a.Set(storage.KindMeta, "k", []byte("late"))
	if err := s.Commit(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	s.Close()
	names := segments(t, dir)
	os.Remove(names[len(names)/2])
	for range 2 {
		s = open(t, dir, onFS(&testFS{}), segmentBytes(4096))
		tp, ok := s.Topic("wind")
		if !ok {
			t.Fatal("the topic is gone")
		}
		p = tp.Partition(0)
		got := readAll(t, p, 0)
		l := s.Losses()
		if len(l) != 1 || l[0].From < 100 || l[0].To > 200 || p.HighWatermark() != 300 || len(got) != 300-int(l[0].To-l[0].From) || got[0].Offset != 0 {
			t.Fatalf("losses %+v, %d records from %d", l, len(got), got[0].Offset)
		}
		if got[l[0].From-1].Offset != l[0].From-1 || got[l[0].From].Offset != l[0].To {
			t.Fatalf("losses %+v, but records %d and %d are neighbours", l, got[l[0].From-1].Offset, got[l[0].From].Offset)
		}
		if v, _ := s.State(storage.KindMeta, "k"); string(v) != "late" || s.Identity().Epoch.Number != 2 {
			t.Fatalf("state %q, epoch %d", v, s.Identity().Epoch.Number)
		}
		s.Close()
		plainRead(t, dir)
	}
}

// TestOriginHeaderNamesThePosition of each record, as its last header.
func TestOriginHeaderNamesThePosition(t *testing.T) {
	s := open(t, t.TempDir(), onFS(&testFS{}), func(c *storage.Config) { c.OriginHeaders = true })
	p := topic(t, s, "wind", 1).Partition(0)
	hs := []record.Header{{Key: "mqtt.topic", Value: []byte("a/b")}, {Key: "null"}}
	a := s.NewAppend("")
	for range 3 {
		a.Record(p, 5, []byte("k"), nil, hs)
		a.RecordTail(p, 5, record.AppendTail(nil, nil, []byte("v"), hs[:1]))
	}
	if err := a.RecordTail(p, 5, []byte{1, 2, 3}); !errors.Is(err, storage.ErrInvalid) {
		t.Fatal(err)
	}
	if err := s.Commit(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	b, _, err := p.Read(nil, 0, 1000)
	if err != nil {
		t.Fatal(err)
	}
	batch, _, _ := record.Next(b)
	if err := batch.Validate(nil); err != nil || batch.LeaderEpoch() != 1 {
		t.Fatal(err, batch.LeaderEpoch())
	}
	it := batch.Iter(nil)
	n := int64(0)
	for it.Next() {
		r := it.Record()
		h := r.Headers[len(r.Headers)-1]
		node, epoch, off, ok := storage.ParseOriginHeader(h.Value)
		id := s.Identity().Epoch.ID
		if h.Key != "tr" || !ok || node != "n1" || off != n || !bytes.Equal(epoch[:], id[:8]) || r.Headers[0].Key != "mqtt.topic" || len(r.Headers) != 3-int(n%2) {
			t.Fatalf("record %d: headers %+v", n, r.Headers)
		}
		n++
	}
	if it.Err() != nil || n != 6 || a.Base(5) != 5 {
		t.Fatal(it.Err(), n)
	}
}

// TestOriginOfABatchIsKept over reopening, and batches stay byte for byte but for
// base offset and leader epoch.
func TestOriginOfABatchIsKept(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, onFS(&testFS{}))
	p := topic(t, s, "wind", 1).Partition(0)
	put(t, s, p, 1, "own")
	var bl record.Builder
	bl.Reset(nil)
	bl.Add(7, []byte("k"), []byte("v"), nil)
	bl.Add(6, nil, []byte("w"), nil)
	src := record.Batch(bl.Finish(1000, 9))
	o := storage.Origin{Node: "node-7", Epoch: [16]byte{1, 2}, Topic: "raw", Partition: 3, From: 1000, To: 1002}
	a := s.NewAppend("")
	if err := a.Batch(p, src, &o); err != nil {
		t.Fatal(err)
	}
	bad := bytes.Clone(src)
	bad[len(bad)-1] ^= 1
	if err := a.Batch(p, bad, &o); !errors.Is(err, storage.ErrInvalid) {
		t.Fatal(err)
	}
	if err := s.Commit(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	s.Close()
	s = open(t, dir, onFS(&testFS{}))
	tp, _ := s.Topic("wind")
	p = tp.Partition(0)
	if got, ok := p.Origin(2); !ok || got != o {
		t.Fatalf("origin %+v %v", got, ok)
	}
	if _, ok := p.Origin(0); ok {
		t.Fatal("a record of our own has an origin")
	}
	b, _, err := p.Read(nil, 2, 1)
	if err != nil || !bytes.Equal(b[16:], src[16:]) || binary.BigEndian.Uint64(b) != 1 {
		t.Fatalf("batch differs: %v", err)
	}
}

// TestStartTimeOfCompressedBatches: their least time is not known; what stands for it is the
// first record of the first, from the tail and from a sealed segment, before and after a
// restart and a deletion.
func TestStartTimeOfCompressedBatches(t *testing.T) {
	dir := t.TempDir()
	mod := []func(*storage.Config){onFS(&testFS{}), segmentBytes(4096)}
	s := open(t, dir, mod...)
	p := topic(t, s, "wind", 1).Partition(0)
	batch := func(times ...int64) {
		var bl record.Builder
		bl.Reset(nil)
		for _, ts := range times {
			bl.Add(ts, nil, bytes.Repeat([]byte("v"), record.CompressMinBytes), nil)
		}
		b := record.Batch(record.Compress(nil, record.Batch(bl.Finish(0, 1))))
		if b.Codec() == record.CodecNone {
			t.Fatal("the batch is not compressed")
		}
		a := s.NewAppend("")
		if err := a.Batch(p, b, nil); err != nil {
			t.Fatal(err)
		}
		if err := s.Commit(t.Context(), a); err != nil {
			t.Fatal(err)
		}
	}
	want := func(when string, lo int64) {
		t.Helper()
		if got, ok := p.StartTime(); !ok || got != lo {
			t.Errorf("%s: start time %d, %v, want %d", when, got, ok, lo)
		}
	}
	if ts, ok := p.StartTime(); ok {
		t.Errorf("an empty partition starts at %d", ts)
	}
	batch(1000, 2000, 3000)
	want("in the tail", 1000)
	for ts := int64(4000); len(segments(t, dir)) < 3; ts += 1000 {
		batch(ts, ts+1, ts+2)
	}
	want("in a segment", 1000)
	put(t, s, p, 900, "late")
	want("with a lesser time that is known", 900)
	s.Close()
	s = open(t, dir, mod...)
	tp, _ := s.Topic("wind")
	p = tp.Partition(0)
	want("after a restart", 900)
	if err := p.SetStart(3); err != nil {
		t.Fatal(err)
	}
	want("behind the first batch", 900)
	batch(5, 1<<40)
	if err := p.SetStart(p.HighWatermark() - 2); err != nil {
		t.Fatal(err)
	}
	want("with what is left of it alone", 5)
}
