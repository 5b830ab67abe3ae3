package storage_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"tailrace/storage"
)

// entriesOf are the ranges of the entries in a segment, frames included.
func entriesOf(b []byte) (ranges [][2]int) {
	for pos := 0; pos < len(b); {
		n, w := 0, 0
		for shift := 0; ; shift += 7 {
			c := b[pos+w]
			w++
			n |= int(c&0x7f) << shift
			if c < 0x80 {
				break
			}
		}
		ranges = append(ranges, [2]int{pos, pos + w + n})
		pos += w + n
	}
	return ranges
}

// damageFile changes bytes of a file in place, as rot does.
func damageFile(t testing.TB, name string, at int, b []byte) {
	t.Helper()
	f, err := os.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(b, int64(at)); err != nil {
		t.Fatal(err)
	}
}

// rotten is a store with topics, starts and state in its sealed segments.
func rotten(t testing.TB, fs storage.FS, dir string) (*storage.Store, *storage.Topic) {
	s := open(t, dir, onFS(fs), segmentBytes(4096))
	tp := topic(t, s, "wind", 2)
	for i := range 60 {
		put(t, s, tp.Partition(i%2), int64(i), fmt.Sprintf("%0100d", i))
		switch i {
		case 20:
			topic(t, s, "late", 1)
		case 30:
			if err := tp.Partition(0).SetStart(3); err != nil {
				t.Fatal(err)
			}
		}
		a := s.NewAppend("")
		a.Set(storage.KindSession, fmt.Sprint("c", i%5), fmt.Append(nil, i))
		if err := s.Commit(t.Context(), a); err != nil {
			t.Fatal(err)
		}
	}
	return s, tp
}

// TestScrubFindsDeclaresAndRepairs damages any entry of any sealed segment under an open
// store, by a bit, a sector or a length: one pass finds it; what held records is declared,
// state stays, and the file is sound again, for this store and for the next.
func TestScrubFindsDeclaresAndRepairs(t *testing.T) {
	base := filepath.Join(quickDir(t), "s")
	fs := &testFS{}
	s, _ := rotten(t, fs, base)
	want := content(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(1, 7))
	names := segments(t, base)
	rounds, state := 150, 0
	if testing.Short() {
		rounds = 40
	}
	for round := range rounds {
		dir := copyDir(t, base)
		s := open(t, dir, onFS(fs), segmentBytes(4096))
		name := filepath.Join(dir, "main", "log", filepath.Base(names[r.IntN(len(names)-1)]))
		b := mustRead(t, name)
		ranges := entriesOf(b)
		e := ranges[r.IntN(len(ranges))]
		what := ""
		switch r.IntN(3) {
		case 0:
			at := e[0] + r.IntN(e[1]-e[0])
			what = fmt.Sprintf("bit in byte %d", at)
			damageFile(t, name, at, []byte{b[at] ^ 1<<r.IntN(8)})
		case 1:
			what = fmt.Sprintf("length at %d", e[0])
			damageFile(t, name, e[0], []byte{b[e[0]] ^ 0x55})
		default:
			at := r.IntN(len(b)/512+1) * 512
			what = fmt.Sprintf("sector at %d", at)
			damageFile(t, name, at, make([]byte, min(512, len(b)-at)))
		}
		what = fmt.Sprintf("round %d, %s: %s", round, filepath.Base(name), what)
		if bytes.Equal(mustRead(t, name), b) {
			s.Close()
			continue
		}
		if err := s.Scrub(t.Context()); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		st := s.Stats().Classes[0]
		if st.ScrubDamaged != 1 || st.Healed != 1 || st.ScrubbedBytes == 0 {
			t.Fatalf("%s: found %d, healed %d of %d bytes", what, st.ScrubDamaged, st.Healed, st.ScrubbedBytes)
		}
		if len(s.Losses()) == 0 {
			state++
		}
		check := func(s *storage.Store) {
			t.Helper()
			got := content(t, s)
			for k, v := range want {
				if strings.HasPrefix(k, "session ") {
					if got[k] != v {
						t.Fatalf("%s: %s is %q, it was %q", what, k, got[k], v)
					}
					continue
				}
				if _, ok := got[k]; !ok {
					t.Fatalf("%s: %s is gone", what, k)
				}
			}
			tp, _ := s.Topic("wind")
			for i := range 2 {
				p := tp.Partition(i)
				if wantStart := int64(3 * (1 - i)); p.Start() != wantStart || p.HighWatermark() != 30 {
					t.Fatalf("%s: partition %d is [%d, %d)", what, i, p.Start(), p.HighWatermark())
				}
				there := map[int64]bool{}
				for _, rec := range readAll(t, p, p.Start()) {
					if rec.Value != fmt.Sprintf("%0100d", 2*rec.Offset+int64(i)) {
						t.Fatalf("%s: offset %d holds %q", what, rec.Offset, rec.Value)
					}
					there[rec.Offset] = true
				}
				for _, l := range s.Losses() {
					for o := l.From; l.Partition == p.ID() && o < l.To; o++ {
						if there[o] {
							t.Fatalf("%s: partition %d offset %d is there and declared", what, i, o)
						}
						there[o] = true
					}
				}
				if len(there) != int(p.HighWatermark()-p.Start()) {
					t.Fatalf("%s: partition %d: %d offsets are there or declared of [%d, %d): %v losses %+v", what, i, len(there), p.Start(), p.HighWatermark(), there, s.Losses())
				}
			}
		}
		check(s)
		if err := s.Scrub(t.Context()); err != nil || s.Stats().Classes[0].ScrubDamaged != 1 {
			t.Fatalf("%s: a second pass: %v", what, err)
		}
		if len(mustRead(t, name)) != len(b) {
			t.Fatalf("%s: the segment has another length", what)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		plainRead(t, dir)
		in, err := storage.Inspect(dir, nil)
		if err != nil || in.Lossy() {
			t.Fatalf("%s: %v %+v", what, err, in.Problems)
		}
		os.RemoveAll(filepath.Join(dir, "main", "index")) // everything is read
		s = open(t, dir, onFS(fs), segmentBytes(4096))
		if got := repairs(s); got != "" {
			t.Fatalf("%s: the next start repaired %s", what, got)
		}
		check(s)
		s.Close()
		os.RemoveAll(filepath.Dir(dir))
	}
	if state == 0 {
		t.Error("no damage hit an entry of state")
	}
}

// TestDeclaredStaysLost: a range that was declared, in the sealed part and in the tail,
// does not come back when the disk gives the bytes again, whether the row was settled or
// not, and whether the segment could be repaired at once or not.
func TestDeclaredStaysLost(t *testing.T) {
	for _, tail := range []bool{false, true} {
		for _, settle := range []bool{false, true} {
			for _, fails := range []bool{false, true} {
				if settle && fails {
					continue // the bytes are on the disk, the row is gone: nothing tells
				}
				t.Run(fmt.Sprintf("tail=%v,settled=%v,repair fails=%v", tail, settle, fails), func(t *testing.T) {
					dir := filepath.Join(quickDir(t), "s")
					fs := &testFS{}
					s, tp := rotten(t, fs, dir)
					p := tp.Partition(1)
					names := segments(t, dir)
					name := names[1]
					if tail {
						name = names[len(names)-1]
					}
					b := mustRead(t, name)
					at := bytes.LastIndex(b, []byte("0000000"))
					damageFile(t, name, at, []byte("x"))
					if fails {
						fs.setHook(func(op, n string) error {
							if op == "rename" && n == name {
								return errors.New("no")
							}
							return nil
						})
					}
					got := len(readAll(t, p, p.Start())) + len(readAll(t, tp.Partition(0), 3))
					if err := s.Retain(); err != nil {
						t.Fatal(err)
					}
					rows := s.Losses()
					if len(rows) != 1 || got != 56 {
						t.Fatalf("%d records, rows %+v", got, rows)
					}
					if settle {
						if err := s.SettleLoss(t.Context(), rows[0]); err != nil {
							t.Fatal(err)
						}
					}
					if err := s.Close(); err != nil {
						t.Fatal(err)
					}
					fs.setHook(nil)
					if fails { // the disk has thought better of it
						mustWrite(t, name, b)
					}
					for again := range 2 {
						s = open(t, dir, onFS(fs), segmentBytes(4096))
						tp, _ = s.Topic("wind")
						for i := range 2 {
							p := tp.Partition(i)
							for _, rec := range readAll(t, p, p.Start()) {
								if i == rows[0].Index && rec.Offset >= rows[0].From && rec.Offset < rows[0].To {
									t.Fatalf("offset %d of partition %d is back", rec.Offset, i)
								}
							}
						}
						if fails && (again == 0) != strings.Contains(repairs(s), "declared") {
							t.Fatalf("open %d: repairs %q", again, repairs(s))
						}
						if err := s.Close(); err != nil {
							t.Fatal(err)
						}
						plainRead(t, dir)
					}
				})
			}
		}
	}
}

// TestScrubKeepsItsPace: in the time of a bubble, a pass takes ScrubInterval, and reading
// never exceeds ScrubRate.
func TestScrubKeepsItsPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "s")
		s := open(t, dir, segmentBytes(4096), func(c *storage.Config) {
			c.ScrubInterval, c.ScrubRate = time.Hour, 8<<10
		})
		defer func() { s.Close() }()
		p := topic(t, s, "wind", 1).Partition(0)
		fill(t, s, p, 300, func(i int) int64 { return int64(i) })
		names := segments(t, dir)
		total := int64(0)
		for _, n := range names[:len(names)-1] {
			total += size(t, n)
		}
		bytesIn := func(d time.Duration) int64 {
			before := s.Stats().Classes[0].ScrubbedBytes
			time.Sleep(d)
			synctest.Wait()
			return int64(s.Stats().Classes[0].ScrubbedBytes - before)
		}
		bytesIn(25 * time.Hour) // the first pause was made for an empty log
		if n := bytesIn(time.Hour); n < total*8/10 || n > total*12/10 {
			t.Errorf("an hour's pass read %d bytes of %d", n, total)
		}
		damageFile(t, names[2], 700, []byte{0xff, 0, 0xff})
		bytesIn(2 * time.Hour)
		if st := s.Stats().Classes[0]; st.ScrubDamaged == 0 || st.Healed == 0 || len(s.Losses()) == 0 {
			t.Errorf("damage was not found in two passes: %+v", st)
		}
		s.Close()
		s = open(t, dir, segmentBytes(4096), func(c *storage.Config) {
			c.ScrubInterval, c.ScrubRate = time.Second, 1<<10 // more than the rate allows
		})
		if n := bytesIn(10 * time.Minute); n < 500<<10 || n > 610<<10 {
			t.Errorf("%d bytes in ten minutes at 1 KiB/s", n)
		}
	})
}

// TestAFailedWriteMeetsRotInTheTail: the log is opened anew after a failed fsync, and what
// it reads then of its own tail is damaged. It goes on, and what is lost is declared.
func TestAFailedWriteMeetsRotInTheTail(t *testing.T) {
	dir := filepath.Join(quickDir(t), "s")
	fs := &testFS{}
	s := open(t, dir, onFS(fs))
	tp := topic(t, s, "wind", 2)
	for i := range 20 {
		put(t, s, tp.Partition(i%2), int64(i), fmt.Sprintf("%0100d", i))
	}
	topic(t, s, "late", 1)
	name := tailFile(t, dir)
	b := mustRead(t, name)
	ranges := entriesOf(b)
	last := ranges[len(ranges)-1] // the topic
	damageFile(t, name, last[0]+20, []byte("rot"))
	damageFile(t, name, bytes.LastIndex(b, []byte("0000000")), []byte("x")) // record 19, the partition's last
	failed := false
	fs.setHook(func(op, n string) error {
		if op == "sync" && n == name && !failed {
			failed = true
			return errors.New("no")
		}
		return nil
	})
	a := s.NewAppend("")
	a.Record(tp.Partition(0), 1, nil, []byte("refused"), nil)
	if err := s.Commit(t.Context(), a); err == nil || errors.Is(err, storage.ErrUncertain) {
		t.Fatalf("the append: %v", err)
	}
	put(t, s, tp.Partition(0), 1, "after")
	crashed := copyDir(t, dir)
	s.Close()
	for _, work := range []string{dir, crashed} {
		s := open(t, work, onFS(fs))
		tp, ok := s.Topic("wind")
		_, late := s.Topic("late")
		if rows := s.Losses(); !ok || !late || len(rows) != 1 || rows[0].Index != 1 || rows[0].From != 9 || rows[0].To != 10 {
			t.Fatalf("topics %v %v, losses %+v", ok, late, rows)
		}
		if n := len(readAll(t, tp.Partition(0), 0)); n != 11 || tp.Partition(1).HighWatermark() != 10 {
			t.Fatalf("%d records, high watermark %d", n, tp.Partition(1).HighWatermark())
		}
		s.Close()
		plainRead(t, work)
	}
}
