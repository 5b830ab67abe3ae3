package storagetest_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"tailrace/storage"
	"tailrace/storage/record"
	"tailrace/storage/storagetest"
)

// tableOf is a closed store with a compacted topic, and what can be read of it.
type tableOf struct {
	dir     string
	records map[int64]string
	files   []string // of the compacted partition, and their side files
}

func tableConfig(dir string, fsys storage.FS) storage.Config {
	return storage.Config{
		Dir: dir, NodeID: "n1", FS: fsys, RetentionInterval: -1, ScrubInterval: -1, CompactBytes: 1 << 20,
		Classes: []storage.ClassConfig{{Name: "main", SegmentBytes: 64 << 10, MinFreeBytes: -1}},
	}
}

func makeTable(t *testing.T) *tableOf {
	t.Helper()
	g := &tableOf{dir: filepath.Join(scratch(t), "table")}
	s, err := storage.Open(tableConfig(g.dir, nil))
	must(t, err)
	rules := storage.DefaultCompaction()
	tp, err := s.CreateTopic("table", storage.TopicConfig{Compaction: &rules})
	must(t, err)
	p := tp.Partition(0)
	put(t, s, p, 0, 400)
	must(t, s.Compact())
	put(t, s, p, 400, 40)
	g.records, err = readTable(p)
	must(t, err)
	must(t, s.Close())
	g.files, err = filepath.Glob(filepath.Join(g.dir, "main", "compact", "*"))
	must(t, err)
	if len(g.files) < 2 || len(g.records) < 150 {
		t.Fatalf("%d files, %d records", len(g.files), len(g.records))
	}
	return g
}

// put appends records of 150 keys, four in a batch.
func put(t *testing.T, s *storage.Store, p *storage.Partition, from, n int) {
	t.Helper()
	for i := from; i < from+n; i += 4 {
		a := s.NewAppend("")
		for k := i; k < i+4; k++ {
			must(t, a.Record(p, int64(k), fmt.Append(nil, "key ", k%150), fmt.Appendf(nil, "<%0100d>", k), nil))
		}
		must(t, s.Commit(t.Context(), a))
	}
}

func readTable(p *storage.Partition) (map[int64]string, error) {
	out := map[int64]string{}
	pieces, err := readPieces(p, p.Start())
	for _, x := range pieces {
		for it := record.Batch(x.bytes).Iter(nil); it.Next(); {
			out[it.Record().Offset] = string(it.Record().Value)
		}
	}
	return out, err
}

// A page of a file that a compaction has written, or of its side file, cannot be read: at a
// start and under an open store, by a reader and by the scrubber. Readers come to the end of
// the partition with all that lies on other pages, what lay on this one is declared as
// unreadable and nothing else, it stays lost when the disk gives it again, the next
// compaction takes the file out of use, and a repair of the directory ends.
func TestUnreadablePageOfACompactedFile(t *testing.T) {
	g := makeTable(t)
	hits := 0
	for _, from := range g.files {
		whole, err := os.ReadFile(from)
		must(t, err)
		name, _ := filepath.Rel(g.dir, from)
		for at := int64(0); at < int64(len(whole)); at += 4096 {
			for _, how := range []string{"start", "start without index", "open", "open without index", "scrubber"} {
				what := fmt.Sprintf("%s of %d bytes, page at %d, %s", name, len(whole), at, how)
				if strings.HasSuffix(name, ".idx") && strings.Contains(how, "without") {
					continue
				}
				dir := filepath.Join(scratch(t), "disk")
				must(t, os.CopyFS(dir, os.DirFS(g.dir)))
				var lost map[int64]bool
				synctest.Test(t, func(t *testing.T) {
					fsys, err := storagetest.NewCrashFS(dir)
					must(t, err)
					defer fsys.Close()
					open := func() *storage.Store {
						s, err := storage.Open(tableConfig(dir, fsys))
						must(t, err)
						return s
					}
					hurt := func() {
						if strings.Contains(how, "without") {
							must(t, os.Remove(filepath.Join(dir, name)+".idx"))
						}
						must(t, fsys.Unreadable(filepath.Join(dir, name), at, at+1, -1))
					}
					var s *storage.Store
					if strings.HasPrefix(how, "start") {
						hurt()
						s = open()
					} else {
						s = open()
						hurt()
					}
					defer func() { s.Close() }()
					if how == "scrubber" {
						must(t, s.Scrub(t.Context()))
					}
					tp, _ := s.Topic("table")
					got, err := readTable(tp.Partition(0))
					for tries := 0; err != nil && tries < 8; tries++ {
						if !errors.Is(err, syscall.EIO) || how == "scrubber" {
							t.Errorf("%s: a reader hears %v", what, err)
						}
						time.Sleep(time.Minute) // of the bubble: the committer asks again
						got, err = readTable(tp.Partition(0))
					}
					if err != nil {
						t.Fatalf("%s: %v", what, err)
					}
					lost = g.compare(t, s, got, what)
					if n := len(lost); n > 0 == strings.HasSuffix(name, ".idx") || n > 60 {
						t.Fatalf("%s: %d records are lost", what, n)
					}
					for off := range lost { // a batch of four records has less than a KiB
						i := int64(bytes.Index(whole, []byte(g.records[off])))
						if i < at-1024 || i > at+4096+1024 {
							t.Fatalf("%s: offset %d lies at %d", what, off, i)
						}
					}
					hits += len(lost)
					if len(lost) > 0 {
						must(t, os.CopyFS(dir+".then", os.DirFS(dir)))
					}
					// New values of all keys: nothing of the file is needed after a compaction.
					put(t, s, tp.Partition(0), 440, 200)
					must(t, s.Compact())
					if len(lost) > 0 {
						if _, err := os.Stat(filepath.Join(dir, name)); !errors.Is(err, fs.ErrNotExist) {
							t.Errorf("%s: the file is still in use after a compaction (%v)", what, err)
						}
					}
					left, err := readTable(tp.Partition(0))
					must(t, err)
					if len(left) != 150 {
						t.Errorf("%s: %d keys after a compaction, there are 150", what, len(left))
					}
				})
				if t.Failed() {
					t.FailNow()
				}
				if len(lost) > 0 { // before the compaction, on a disk that gives the page again
					s, err := storage.Open(tableConfig(dir+".then", nil))
					must(t, err)
					tp, _ := s.Topic("table")
					got, err := readTable(tp.Partition(0))
					must(t, err)
					if again := g.compare(t, s, got, what+", later"); len(again) != len(lost) {
						t.Errorf("%s: %d records are lost, later %d", what, len(lost), len(again))
					}
					must(t, s.Close())
					must(t, os.RemoveAll(dir+".then"))
				}
				s, err := storage.Open(tableConfig(dir, nil))
				must(t, err)
				tp, _ := s.Topic("table")
				got, err := readTable(tp.Partition(0))
				must(t, err)
				for off := range lost {
					if _, back := got[off]; back {
						t.Errorf("%s: offset %d is back", what, off)
					}
				}
				must(t, s.Close())
				rep, err := storage.RepairDir(storage.RepairConfig{Dir: dir})
				must(t, err)
				if rep.After.Lossy() {
					t.Errorf("%s: after the repair %+v", what, rep.After.Problems)
				}
				must(t, os.RemoveAll(dir))
			}
		}
	}
	if hits < 300 {
		t.Errorf("the bad pages hit %d records only", hits)
	}
}

// compare what was read with what was there; what is not is declared, and nothing else.
func (g *tableOf) compare(t *testing.T, s *storage.Store, got map[int64]string, what string) map[int64]bool {
	t.Helper()
	var rows []storage.Loss
	for _, l := range s.Losses() {
		if l.Reason != storage.LossUnreadable {
			t.Errorf("%s: declared as %v", what, l.Reason)
		}
		rows = append(rows, l)
	}
	lost := map[int64]bool{}
	for off, v := range g.records {
		declared := slices.ContainsFunc(rows, func(l storage.Loss) bool { return l.From <= off && off < l.To })
		if have, ok := got[off]; ok && have != v || ok == declared {
			t.Fatalf("%s: offset %d: there %v, declared %v, %.40q", what, off, ok, declared, have)
		}
		if declared {
			lost[off] = true
		}
	}
	for off := range got {
		if _, ok := g.records[off]; !ok {
			t.Fatalf("%s: offset %d is there and was not", what, off)
		}
	}
	return lost
}

// A truncation of the log's front was interrupted, and of the file that takes the old ones'
// place (.START) a page cannot be read, or its bytes have rotted, with any number of the old
// files still there: the log opens, nothing that counts is lost, nothing is declared.
func TestUnreadableStartOfATruncation(t *testing.T) {
	base := scratch(t)
	dir := filepath.Join(base, "store")
	cfg := sweepConfig(dir)
	cfg.Classes[0].Pack = false // several files
	s, err := storage.Open(cfg)
	must(t, err)
	tp, err := s.CreateTopic("wind", storage.TopicConfig{Partitions: 1})
	must(t, err)
	p := tp.Partition(0)
	put(t, s, p, 0, 4000)
	must(t, p.SetStart(3000))
	before := filepath.Join(base, "before")
	must(t, os.CopyFS(before, os.DirFS(dir)))
	must(t, s.Retain())
	want, err := readTable(p)
	must(t, err)
	must(t, s.Close())
	segments := func(dir string) []string {
		list, err := filepath.Glob(filepath.Join(dir, "main", "log", "0*"))
		must(t, err)
		sort.Strings(list)
		for i := range list {
			list[i] = filepath.Base(list[i])
		}
		return list
	}
	after := segments(dir)
	var removed []string
	for _, n := range segments(before) {
		if !slices.Contains(after, n) {
			removed = append(removed, n)
		}
	}
	if len(removed) < 4 || len(want) != 1000 {
		t.Fatalf("%d files were removed, %d records are left", len(removed), len(want))
	}
	for _, refuse := range []bool{true, false} {
		for gone := range len(removed) + 1 {
			what := fmt.Sprintf("the first %d of %d removed, refused %v", gone, len(removed), refuse)
			work := filepath.Join(base, "work")
			must(t, os.CopyFS(work, os.DirFS(dir)))
			log := filepath.Join(work, "main", "log")
			for _, n := range removed[gone:] {
				b, err := os.ReadFile(filepath.Join(before, "main", "log", n))
				must(t, err)
				must(t, os.WriteFile(filepath.Join(log, n), b, 0o600))
			}
			start := filepath.Join(log, after[0]+".START")
			must(t, os.Rename(filepath.Join(log, after[0]), start))
			synctest.Test(t, func(t *testing.T) {
				fsys, err := storagetest.NewCrashFS(work)
				must(t, err)
				defer fsys.Close()
				cfg := sweepConfig(work)
				cfg.FS = fsys
				if refuse {
					must(t, fsys.Unreadable(start, 0, 1, -1))
				} else {
					must(t, os.WriteFile(start, []byte("rot"), 0o600))
				}
				s, err := storage.Open(cfg)
				if err != nil {
					t.Fatalf("%s: %v", what, err)
				}
				defer func() { s.Close() }()
				check := func(when string) {
					tp, ok := s.Topic("wind")
					if !ok {
						t.Fatalf("%s, %s: the topic is gone", what, when)
					}
					got, err := readTable(tp.Partition(0))
					if err != nil || len(got) != len(want) || got[3500] != want[3500] || len(s.Losses()) > 0 || tp.Partition(0).Start() != 3000 {
						t.Fatalf("%s, %s: %v, %d records of %d, start %d, losses %+v", what, when, err, len(got), len(want), tp.Partition(0).Start(), s.Losses())
					}
				}
				check("opened")
				put(t, s, s.Topics()[0].Partition(0), 4000, 4)
				want[4000], want[4001], want[4002], want[4003] = "", "", "", ""
				must(t, s.Retain())
				check("retained")
				must(t, s.Close())
				s, err = storage.Open(cfg)
				must(t, err)
				check("opened again")
				for i := range int64(4) {
					delete(want, 4000+i)
				}
			})
			if _, err := storagetest.ReadStore(work); err != nil {
				t.Errorf("%s: the second reader: %v", what, err)
			}
			must(t, os.RemoveAll(work))
			if t.Failed() {
				return
			}
		}
	}
}

// A page that an open store gets at the third time of asking is not lost. And where the disk
// takes no row of the ledger while a page is refused, nothing is declared and no reader goes
// on; when it takes one again, the next reader has it asked for once more.
func TestUnreadablePageIsAskedForAgain(t *testing.T) {
	g := makeGolden(t, filepath.Join(scratch(t), "golden"), false)
	b := newBench(g, filepath.Join(scratch(t), "disk"))
	b.reason = storage.LossUnreadable
	readAll := func(s *storage.Store) (err error) {
		for part, p := range sweepParts(s) {
			_, e := readPieces(p, g.starts[part])
			err = errors.Join(err, e)
		}
		return err
	}
	for n := range 6 {
		again := n == 0
		b.dirty[g.target] = true
		b.onBadDisk(t, harm{files: map[string][]byte{}}, func(fsys *storagetest.CrashFS, cfg storage.Config) {
			s, err := storage.Open(cfg)
			must(t, err)
			defer s.Close()
			times := n // the reader's one or two, then the committer's first
			if again {
				times = -1
				fsys.Inject(storagetest.Fault{Call: storagetest.Sync, Err: syscall.EIO, Forever: true})
			}
			must(t, fsys.Unreadable(filepath.Join(b.dir, g.target), 0, 1, times))
			if _, err := readPieces(sweepParts(s)["a/0"], g.starts["a/0"]); !errors.Is(err, syscall.EIO) && n != 1 {
				t.Errorf("the reader hears %v", err)
			}
			time.Sleep(time.Minute)
			if again {
				if err := readAll(s); !errors.Is(err, syscall.EIO) || len(s.Losses()) > 0 {
					t.Errorf("while the disk takes nothing: %v, %+v", err, s.Losses())
				}
				time.Sleep(time.Minute)
				fsys.Heal() // and takes rows again
				must(t, fsys.Unreadable(filepath.Join(b.dir, g.target), 0, 1, -1))
			}
			for tries := 0; readAll(s) != nil && tries < 5; tries++ {
				time.Sleep(time.Minute)
			}
			must(t, readAll(s))
			v, err := b.compare(s)
			if err != nil || v.cut || (v.batches > 0) != again {
				t.Errorf("refused %d times: %+v, %v", times, v, err)
			}
		})
	}
}
