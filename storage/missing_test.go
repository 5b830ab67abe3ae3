package storage_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"

	"tailrace/storage"
)

// gone is a closed store of three partitions and the bytes that name each of their records.
// One has records everywhere, one only in the first half of the segments, one (of a topic
// that is made then) only in the middle.
type gone struct {
	dir     string
	names   []string // of the segments
	records map[string]map[int64][]byte
}

func makeGone(t *testing.T, fs storage.FS) *gone {
	t.Helper()
	g := &gone{dir: filepath.Join(quickDir(t), "store"), records: map[string]map[int64][]byte{}}
	s := open(t, g.dir, onFS(fs), segmentBytes(4096))
	wind := topic(t, s, "wind", 2)
	n := 0
	add := func(p *storage.Partition) {
		n++
		v := fmt.Sprintf("<%s/%d %0100d>", p.Topic().Name(), p.Index(), n)
		key := fmt.Sprint(p.Topic().Name(), "/", p.Index())
		if g.records[key] == nil {
			g.records[key] = map[int64][]byte{}
		}
		g.records[key][p.HighWatermark()] = []byte(v)
		put(t, s, p, int64(n), v)
		a := s.NewAppend("")
		a.Set(storage.KindSession, fmt.Sprint("c", n%3), fmt.Append(nil, n))
		if err := s.Commit(t.Context(), a); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 120 {
		add(wind.Partition(0))
		if i < 60 {
			add(wind.Partition(1))
		}
		if i == 50 {
			late := topic(t, s, "late", 1)
			add(late.Partition(0))
			add(late.Partition(0))
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	g.names = segments(t, g.dir)
	if len(g.names) < 8 {
		t.Fatalf("%d segments", len(g.names))
	}
	return g
}

// lostIn are the ranges of offsets whose records are in some files and in no other, by
// topic and partition: found by their bytes, not by anything that the store says.
func (g *gone) lostIn(t *testing.T, dir string, files ...string) map[string][]storage.OffsetRange {
	t.Helper()
	var data []byte
	for _, f := range files {
		data = append(data, mustRead(t, filepath.Join(dir, "main", "log", filepath.Base(f)))...)
	}
	out := map[string][]storage.OffsetRange{}
	for key, recs := range g.records {
		var r []storage.OffsetRange
		for off := range int64(len(recs)) {
			if !bytes.Contains(data, recs[off]) {
				continue
			}
			if n := len(r); n > 0 && r[n-1].To == off {
				r[n-1].To++
			} else {
				r = append(r, storage.OffsetRange{From: off, To: off + 1})
			}
		}
		if r != nil {
			out[key] = r
		}
	}
	return out
}

func declared(s *storage.Store) map[string][]storage.OffsetRange {
	out := map[string][]storage.OffsetRange{}
	for _, l := range s.Losses() {
		key := fmt.Sprint(l.Topic, "/", l.Index)
		out[key] = append(out[key], storage.OffsetRange{From: l.From, To: l.To})
	}
	return out
}

// check that a store has every record but the lost ones, which are declared, and nothing else.
func (g *gone) check(t *testing.T, s *storage.Store, lost map[string][]storage.OffsetRange, what string) {
	t.Helper()
	if got := declared(s); !reflect.DeepEqual(got, lost) {
		t.Fatalf("%s: declared %v, lost is %v; repaired %s", what, got, lost, repairs(s))
	}
	for key, recs := range g.records {
		var name string
		var index int
		fmt.Sscanf(key, "%4s/%d", &name, &index)
		tp, ok := s.Topic(name)
		if !ok {
			t.Fatalf("%s: topic %s is gone", what, name)
		}
		p := tp.Partition(index)
		if p.HighWatermark() != int64(len(recs)) || p.Start() != 0 {
			t.Fatalf("%s: %s is [%d, %d), it was [0, %d)", what, key, p.Start(), p.HighWatermark(), len(recs))
		}
		there := map[int64]string{}
		for _, r := range readAll(t, p, 0) {
			there[r.Offset] = r.Value
		}
		for off := range int64(len(recs)) {
			isLost := slices.ContainsFunc(lost[key], func(r storage.OffsetRange) bool { return r.From <= off && off < r.To })
			if v, ok := there[off]; ok == isLost || ok && v != string(recs[off]) {
				t.Fatalf("%s: %s offset %d: there %v, lost %v, %.60q", what, key, off, ok, isLost, v)
			}
		}
	}
}

// TestMissingSegmentsAreDeclaredExactly: any file of the log is gone, or several, or the
// directory entry is there and nothing (or only a part of it, to the end of an entry) is in
// it; with the side files and without. All that is in the other files is where it was,
// before the hole and behind it, and what is lost is declared, neither more nor less. The
// check of the directory says the same before, a repair does the same, and the next start
// has nothing left to do.
func TestMissingSegmentsAreDeclaredExactly(t *testing.T) {
	fs := &testFS{}
	g := makeGone(t, fs)
	last := len(g.names) - 1
	type harm struct {
		what  string
		files []int
		do    func(path string) error
	}
	cutAtAnEntry := func(path string) error {
		ranges := entriesOf(mustRead(t, path))
		return os.Truncate(path, int64(ranges[0][1]))
	}
	var harms []harm
	for i := range g.names {
		harms = append(harms, harm{"removed", []int{i}, os.Remove})
	}
	mid := last / 2
	harms = append(harms,
		harm{"removed", []int{mid, mid + 1, mid + 2}, os.Remove},
		harm{"removed", []int{1, 3, mid + 1}, os.Remove},
		harm{"removed", []int{0, 2, last}, os.Remove},
		harm{"emptied", []int{mid}, func(path string) error { return os.Truncate(path, 0) }},
		harm{"emptied", []int{2, 3}, func(path string) error { return os.Truncate(path, 0) }},
		harm{"emptied but for some bytes", []int{mid}, func(path string) error { return os.Truncate(path, 17) }},
		harm{"cut", []int{mid}, cutAtAnEntry})
	for _, h := range harms {
		for _, sides := range []bool{true, false} {
			what := fmt.Sprintf("%s %v of %d, side files %v", h.what, h.files, last+1, sides)
			dir := copyDir(t, g.dir)
			var files []string
			for _, i := range h.files {
				files = append(files, g.names[i])
			}
			lost := g.lostIn(t, g.dir, files...)
			for _, f := range files {
				if err := h.do(filepath.Join(dir, "main", "log", filepath.Base(f))); err != nil {
					t.Fatal(err)
				}
			}
			if h.what == "cut" {
				for key := range lost { // the first entry is still there
					if kept := g.lostIn(t, dir, files...)[key]; len(kept) > 0 {
						lost[key][0].From += kept[0].To - kept[0].From
					}
				}
			}
			if !sides {
				os.RemoveAll(filepath.Join(dir, "main", "index"))
				os.Remove(filepath.Join(dir, "main", "catalog"))
			}
			in, err := storage.Inspect(dir, nil)
			if err != nil || !in.Lossy() {
				t.Fatalf("%s: the check finds %+v, %v", what, in.Problems, err)
			}
			missing := map[string][]storage.OffsetRange{}
			for _, p := range in.Classes[0].Partitions {
				if p.Missing != nil {
					missing[fmt.Sprint(p.Topic, "/", p.Index)] = p.Missing
				}
			}
			if !reflect.DeepEqual(missing, lost) {
				t.Fatalf("%s: the check says %v, lost is %v", what, missing, lost)
			}
			repaired := copyDir(t, dir)
			if r, err := storage.RepairDir(storage.RepairConfig{Dir: repaired}); err != nil || r.After.Lossy() || r.Epoch != 2 {
				t.Fatalf("%s: repair: %v, %+v", what, err, r)
			}
			s := open(t, repaired, onFS(fs), segmentBytes(4096))
			g.check(t, s, lost, what+", after a repair")
			if got := repairs(s); got != "" {
				t.Fatalf("%s: a start after the repair repairs %s", what, got)
			}
			s.Close()
			for again := range 3 {
				if again == 2 { // everything is read
					os.RemoveAll(filepath.Join(dir, "main", "index"))
				}
				s := open(t, dir, onFS(fs), segmentBytes(4096))
				g.check(t, s, lost, fmt.Sprint(what, ", start ", again))
				counted := uint64(0)
				for _, ranges := range lost {
					for _, r := range ranges {
						counted += uint64(r.To - r.From)
					}
				}
				if got := s.Stats().Classes[0].DamagedRecords; again == 0 && got != counted || again > 0 && got != 0 {
					t.Fatalf("%s: start %d counts %d damaged records, %d were declared", what, again, got, counted)
				}
				if s.Identity().Epoch.Number != 2 || again > 0 && repairs(s) != "" {
					t.Fatalf("%s: start %d: epoch %d, repaired %s", what, again, s.Identity().Epoch.Number, repairs(s))
				}
				s.Close()
				plainRead(t, dir)
			}
			os.RemoveAll(filepath.Dir(dir))
			os.RemoveAll(filepath.Dir(repaired))
		}
	}
}

// TestSegmentGoneUnderAnOpenStore: the same when the file goes while the store is open, found
// by a reader or by the scrubber, with its side file or without. The reader hears an error
// and goes on behind the hole; nothing else is touched. Where the whole directory is gone (a
// card that was taken out) nothing is declared.
func TestSegmentGoneUnderAnOpenStore(t *testing.T) {
	fs := &testFS{}
	g := makeGone(t, fs)
	for _, scrub := range []bool{true, false} {
		for _, side := range []bool{true, false} {
			for _, i := range []int{0, len(g.names) / 2, len(g.names) - 2} {
				what := fmt.Sprintf("segment %d, scrubber %v, side file %v", i, scrub, side)
				dir := copyDir(t, g.dir)
				name := filepath.Join(dir, "main", "log", filepath.Base(g.names[i]))
				lost := g.lostIn(t, dir, name)
				s := open(t, dir, onFS(fs), segmentBytes(4096))
				if err := os.Remove(name); err != nil {
					t.Fatal(err)
				}
				if !side {
					os.Remove(filepath.Join(dir, "main", "index", filepath.Base(name)+".idx"))
				}
				if scrub {
					if err := s.Scrub(t.Context()); err != nil {
						t.Fatalf("%s: %v", what, err)
					}
				} else {
					for key := range lost {
						tp, _ := s.Topic(key[:4])
						p := tp.Partition(int(key[5] - '0'))
						failed := 0
						for off := int64(0); off < p.HighWatermark(); {
							_, next, err := p.Read(nil, off, 1<<20)
							if err != nil {
								if failed++; failed > 3 {
									t.Fatalf("%s: %v", what, err)
								}
								if err := s.Retain(); err != nil { // a round of the committer
									t.Fatal(err)
								}
								continue
							}
							off = next
						}
					}
				}
				if err := s.Retain(); err != nil {
					t.Fatal(err)
				}
				g.check(t, s, lost, what)
				if err := s.Scrub(t.Context()); err != nil || s.Stats().Classes[0].Healed != 1 {
					t.Fatalf("%s: scrubbed again: %v, healed %d", what, err, s.Stats().Classes[0].Healed)
				}
				s.Close()
				plainRead(t, dir)
				s = open(t, dir, onFS(fs), segmentBytes(4096))
				g.check(t, s, lost, what+", opened again")
				if v, _ := s.State(storage.KindSession, "c0"); string(v) == "" || repairs(s) != "" {
					t.Fatalf("%s: state %q, repaired %s", what, v, repairs(s))
				}
				s.Close()
				os.RemoveAll(filepath.Dir(dir))
			}
		}
	}
	dir := copyDir(t, g.dir)
	s := open(t, dir, onFS(fs), segmentBytes(4096))
	away := dir + ".away"
	if err := os.Rename(dir, away); err != nil {
		t.Fatal(err)
	}
	tp, _ := s.Topic("wind")
	if _, _, err := tp.Partition(0).Read(nil, 0, 1<<20); err == nil {
		t.Fatal("a read of a directory that is gone")
	}
	_ = s.Scrub(t.Context())
	if len(s.Losses()) > 0 {
		t.Fatalf("declared of a directory that is away: %+v", s.Losses())
	}
	if err := os.Rename(away, dir); err != nil {
		t.Fatal(err)
	}
	g.check(t, s, map[string][]storage.OffsetRange{}, "the directory is back")
	s.Close()
}
