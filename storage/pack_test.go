package storage_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"tailrace/storage"
	"tailrace/storage/record"
)

func packed(c *storage.Config) { c.Classes[0].Pack = true }

// reading is what a node says: much of it again and again.
func reading(i int) []byte {
	return fmt.Appendf(nil, `{"dev":"turbine-%d","seq":%d,"ts":%d,"bearing_temperature":%d.5,"state":"running"}`, i%3, i, 1_700_000_000_000+int64(i), 40+i%7)
}

// fillReadings makes commits of three records for each of two partitions, some of state alone, and a
// foreign batch now and then.
func fillReadings(t *testing.T, s *storage.Store, tp *storage.Topic, from, commits int) {
	t.Helper()
	for i := from; i < from+commits; i++ {
		a := s.NewAppend("")
		for j := range 6 {
			a.Record(tp.Partition(j%2), int64(1000+10*i-j%3), []byte("turbine"), reading(6*i+j), []record.Header{{Key: "mqtt.topic", Value: []byte("hall/turbine")}})
		}
		if i%10 == 0 {
			var bl record.Builder
			bl.Reset(nil)
			bl.Add(int64(1000+10*i), nil, []byte("foreign"), nil)
			if err := a.Batch(tp.Partition(0), record.Batch(bl.Finish(0, 0)), &storage.Origin{Node: "n", Topic: "x", To: 1}); err != nil {
				t.Fatal(err)
			}
		}
		for k := range 8 {
			a.Fold(storage.KindWindow, fmt.Sprint("client-of-the-hall-", k), fmt.Append(nil, i))
		}
		if err := s.Commit(t.Context(), a); err != nil {
			t.Fatal(err)
		}
	}
}

// TestPackedReadsAsPlain: a packed log takes much less, and everything that is asked of it has
// the same answer, byte for byte; also when it was opened anew, with its side files or without,
// and when it is plain from now on.
func TestPackedReadsAsPlain(t *testing.T) {
	type answers struct {
		batches [2][]byte
		times   string
		state   string
	}
	ask := func(s *storage.Store) (a answers) {
		tp, _ := s.Topic("wind")
		for i, p := range tp.Partitions() {
			for off := p.Start(); off < p.HighWatermark(); {
				var err error
				if a.batches[i], off, err = p.Read(a.batches[i], off, 5000); err != nil {
					t.Fatal(err)
				}
			}
			lo, _ := p.StartTime()
			hi, _ := p.LastTime()
			off, ts, ok, err := p.OffsetForTime((lo + hi) / 2)
			o, isOrigin := p.Origin(3)
			a.times += fmt.Sprintln(lo, hi, off, ts, ok, err, o, isOrigin)
		}
		s.RangeState(storage.KindWindow, func(k string, v []byte) bool { a.state += k + "=" + string(v) + "\n"; return true })
		return a
	}
	var want answers
	var plainBytes uint64
	for _, pack := range []bool{false, true} {
		dir := filepath.Join(t.TempDir(), "s")
		mod := func(c *storage.Config) {
			c.Classes[0].SegmentBytes, c.Classes[0].Pack = 8<<10, pack
			c.Folds = map[storage.StateKind]storage.FoldFunc{storage.KindWindow: concat}
		}
		s := open(t, dir, mod)
		fillReadings(t, s, topic(t, s, "wind", 2), 0, 100)
		written := s.Stats().Classes[0].WrittenBytes
		check := func(what string) {
			t.Helper()
			got := ask(s)
			if !pack && want.state == "" {
				want = got
			}
			for i := range got.batches {
				if !bytes.Equal(got.batches[i], want.batches[i]) {
					t.Errorf("packed %v, %s: partition %d reads otherwise, %d bytes, want %d", pack, what, i, len(got.batches[i]), len(want.batches[i]))
				}
			}
			if got.times != want.times || got.state != want.state {
				t.Errorf("packed %v, %s:\n%s%s\nwant\n%s%s", pack, what, got.times, got.state, want.times, want.state)
			}
		}
		check("written")
		if !pack {
			plainBytes = written
		} else if written > plainBytes/2 {
			t.Errorf("packed %d bytes, plain %d", written, plainBytes)
		}
		for _, what := range []string{"opened anew", "without side files", "with the other setting"} {
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			plainRead(t, dir)
			switch what {
			case "without side files":
				if err := os.RemoveAll(filepath.Join(dir, "main", "index")); err != nil {
					t.Fatal(err)
				}
			case "with the other setting":
				pack := pack
				old := mod
				mod = func(c *storage.Config) { old(c); c.Classes[0].Pack = !pack }
			}
			s = open(t, dir, mod)
			if r := repairs(s); r != "" {
				t.Errorf("packed %v, %s: repairs %q", pack, what, r)
			}
			check(what)
		}
		fillReadings(t, s, s.Topics()[0], 100, 20)
		p := s.Topics()[0].Partition(0)
		if got := readAll(t, p, p.Start()); len(got) != 3*120+12 {
			t.Errorf("packed %v, then the other: %d records", pack, len(got))
		}
		s.Close()
		in, err := storage.Inspect(dir, nil)
		if err != nil || in.Lossy() || in.Classes[0].Records != 6*120+12 {
			t.Errorf("packed %v: check says %v, %+v", pack, err, in)
		}
	}
}

// TestReadOfPackedKeepsToItsLimit: the bytes that Read was allowed are those that it gives,
// not those on the disk, and it comes to the end.
func TestReadOfPackedKeepsToItsLimit(t *testing.T) {
	s := open(t, t.TempDir(), packed)
	p := topic(t, s, "wind", 1).Partition(0)
	const records, size = 60, 3000
	for i := range records {
		put(t, s, p, int64(i), string(bytes.Repeat([]byte{'x'}, size)))
	}
	for _, limit := range []int{1, size, 3 * size, 10_000, 1 << 20} {
		n := 0
		for off := int64(0); off < p.HighWatermark(); {
			b, next, err := p.Read(nil, off, limit)
			if err != nil || next <= off {
				t.Fatalf("limit %d: read at %d gives %d bytes, next %d, %v", limit, off, len(b), next, err)
			}
			first, _, err := record.Next(b)
			if err != nil || len(b) > limit && len(b) > len(first) {
				t.Fatalf("limit %d: %d bytes, of which the first batch has %d, %v", limit, len(b), len(first), err)
			}
			n += int(next - off)
			off = next
		}
		if n != records {
			t.Errorf("limit %d: %d records", limit, n)
		}
	}
}
