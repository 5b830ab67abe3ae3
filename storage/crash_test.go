package storage_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"tailrace/storage"
)

// history is a log with what each of its commits made true.
type history struct {
	dir   string // as a process leaves it that was killed
	clean string // closed
	fs    *testFS
	sizes []int64             // of the tail file after each commit
	want  []map[string]string // after each commit: readable content
}

// content is what can be read of a store, as text per partition and state key.
func content(t testing.TB, s *storage.Store) map[string]string {
	t.Helper()
	m := make(map[string]string)
	for _, tp := range s.Topics() {
		for _, p := range tp.Partitions() {
			m[fmt.Sprintf("%s/%d", tp.Name(), p.Index())] = fmt.Sprint(p.Start(), p.HighWatermark(), readAll(t, p, p.Start()))
		}
	}
	s.RangeState(storage.KindSession, func(k string, v []byte) bool {
		m["session "+k] = string(v)
		return true
	})
	return m
}

func makeHistory(t testing.TB, commits int, mod ...func(*storage.Config)) *history {
	h := &history{clean: filepath.Join(quickDir(t), "store"), fs: &testFS{}}
	s := open(t, h.clean, append(mod, onFS(h.fs))...)
	tp := topic(t, s, "wind", 2)
	note := func() {
		fi, err := os.Stat(tailFile(t, h.clean))
		if err != nil {
			t.Fatal(err)
		}
		h.sizes = append(h.sizes, fi.Size())
		h.want = append(h.want, content(t, s))
	}
	note()
	for i := range commits {
		a := s.NewAppend("")
		a.Record(tp.Partition(0), int64(i), []byte("k"), fmt.Appendf(nil, "a%d", i), nil)
		a.Record(tp.Partition(1), int64(i), nil, fmt.Appendf(nil, "b%d", i), nil)
		a.Record(tp.Partition(0), int64(i), nil, fmt.Appendf(nil, "c%d", i), nil)
		a.Set(storage.KindSession, "last", fmt.Append(nil, i))
		if err := s.Commit(t.Context(), a); err != nil {
			t.Fatal(err)
		}
		note()
	}
	h.dir = copyDir(t, h.clean)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return h
}

// TestTornTailKeepsEveryWholeCommit damages the tail at every byte of the last
// commits, in four ways: what was committed before the damage is there, whole
// commits only, nothing else, the log goes on, and plain wal reads it.
func TestTornTailKeepsEveryWholeCommit(t *testing.T) { tornTail(t) }

func TestTornTailOfAPackedLogKeepsEveryWholeCommit(t *testing.T) { tornTail(t, packed) }

func tornTail(t *testing.T, mod ...func(*storage.Config)) {
	h := makeHistory(t, 6, mod...)
	n := len(h.sizes)
	whole := mustRead(t, tailFile(t, h.dir))
	if int64(len(whole)) != h.sizes[n-1] {
		t.Fatalf("tail has %d bytes, expected %d", len(whole), h.sizes[n-1])
	}
	from := h.sizes[n-3]
	rnd := rand.New(rand.NewPCG(1, 2))
	damage := map[string]func(b []byte, at int64) []byte{
		"cut":      func(b []byte, at int64) []byte { return b[:at] },
		"zeros":    func(b []byte, at int64) []byte { clear(b[at:]); return b },
		"zeroed4k": func(b []byte, at int64) []byte { return append(b[:at], make([]byte, 4096)...) },
		"garbage": func(b []byte, at int64) []byte {
			for i := at; i < int64(len(b)); i++ {
				b[i] = byte(rnd.Uint32())
			}
			return b
		},
	}
	work := copyDir(t, h.dir)
	for name, f := range damage {
		t.Run(name, func(t *testing.T) {
			step := int64(1)
			if testing.Short() {
				step = 7
			}
			for at := from; at < int64(len(whole)); at += step {
				k := n - 1
				for h.sizes[k] > at {
					k--
				}
				checkDamaged(t, h, work, f(bytes.Clone(whole), at), h.want[k], fmt.Sprintf("%s at %d", name, at))
			}
		})
	}
}

// checkDamaged puts tail in the place of the tail of a copy, opens and compares.
func checkDamaged(t *testing.T, h *history, work string, tail []byte, want map[string]string, what string) {
	t.Helper()
	if err := os.RemoveAll(work); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(work, os.DirFS(h.dir)); err != nil {
		t.Fatal(err)
	}
	mustWrite(t, tailFile(t, work), tail)
	s := open(t, work, onFS(h.fs))
	if got := content(t, s); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Fatalf("%s: got %v\nwant %v", what, got, want)
	}
	tp, _ := s.Topic("wind")
	hw := tp.Partition(0).HighWatermark()
	put(t, s, tp.Partition(0), 99, "after")
	if r := readAll(t, tp.Partition(0), hw); len(r) != 1 || r[0].Value != "after" || r[0].Offset != hw {
		t.Fatalf("%s: after the repair %v", what, r)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	plainRead(t, work)
}

// TestLastCommitIsCutWhole: entries of the last commit that are valid on their own
// do not count without the rest of it.
func TestLastCommitIsCutWhole(t *testing.T) {
	h := makeHistory(t, 4)
	n := len(h.sizes)
	whole := mustRead(t, tailFile(t, h.dir))
	// The last byte is in the state entry, the last of three.
	whole[len(whole)-1] ^= 1
	checkDamaged(t, h, copyDir(t, h.dir), whole, h.want[n-2], "flip in the last entry")
	// The first entry of the last commit is damaged, the two behind are valid.
	whole[len(whole)-1] ^= 1
	whole[h.sizes[n-2]+30] ^= 1
	checkDamaged(t, h, copyDir(t, h.dir), whole, h.want[n-2], "flip in the first entry")
}

// TestRotOfTheLastCommitsAfterACleanCloseIsDeclared: a store that was closed is known to
// be whole up to its end. What is missing there is no torn write: at every byte to which
// the log is cut, and for every byte that is damaged behind it, each record is there or
// declared, and offsets go on behind what is lost.
func TestRotOfTheLastCommitsAfterACleanCloseIsDeclared(t *testing.T) {
	h := makeHistory(t, 6)
	whole := mustRead(t, tailFile(t, h.clean))
	n := len(h.sizes)
	for at := h.sizes[n-3]; at < int64(len(whole)); at += 7 {
		for _, how := range []string{"cut", "flip"} {
			b := bytes.Clone(whole)
			if how == "cut" {
				b = b[:at]
			} else {
				b[at] ^= 4
			}
			work := copyDir(t, h.clean)
			mustWrite(t, tailFile(t, work), b)
			for again := range 2 {
				s := open(t, work, onFS(h.fs))
				tp, ok := s.Topic("wind")
				if !ok {
					t.Fatalf("%s at %d: the topic is gone", how, at)
				}
				lost := int64(0)
				for i, want := range []int64{12, 6} {
					p := tp.Partition(i)
					have := int64(len(readAll(t, p, 0)))
					for _, l := range s.Losses() {
						if l.Partition == p.ID() {
							have += l.To - l.From
							lost += l.To - l.From
						}
					}
					if have != want || p.HighWatermark() != want {
						t.Fatalf("%s at %d: partition %d: %d records there or declared, high watermark %d, there were %d", how, at, i, have, p.HighWatermark(), want)
					}
				}
				if lost == 0 && how == "cut" && at < h.sizes[n-2] || lost > 6 || how == "flip" && lost > 2 {
					t.Fatalf("%s at %d: %d records declared lost", how, at, lost)
				}
				if e := s.Identity().Epoch.Number; e != 2 || (repairs(s) == "") != (again == 1) {
					t.Fatalf("%s at %d: epoch %d, repairs %q", how, at, e, repairs(s))
				}
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
			}
			os.RemoveAll(filepath.Dir(work))
		}
	}
}

// TestEpochRisesWhenSomethingWasCut, and only then.
func TestEpochRisesWhenSomethingWasCut(t *testing.T) {
	h := makeHistory(t, 4)
	s := open(t, h.dir, onFS(h.fs))
	was := s.Identity().Epoch
	if was.Number != 1 || was.Parent != [16]byte{} {
		t.Fatalf("first epoch %+v", was)
	}
	s.Close()
	h = makeHistory(t, 4)
	b := mustRead(t, tailFile(t, h.dir))
	mustWrite(t, tailFile(t, h.dir), b[:len(b)-1])
	s = open(t, h.dir, onFS(h.fs))
	was = s.Epochs()[0]
	e := s.Identity().Epoch
	tp, _ := s.Topic("wind")
	if e.Number != 2 || e.Parent != was.ID || e.ForkAt[tp.Partition(0).ID()] != 6 || e.ForkAt[tp.Partition(1).ID()] != 3 || repairs(s) != "tail-cut" {
		t.Fatalf("epoch %+v, repairs %q", e, repairs(s))
	}
	s.Close()
	s = open(t, h.dir, onFS(h.fs))
	if got := s.Identity().Epoch; got.ID != e.ID || len(s.Epochs()) != 2 || repairs(s) != "" {
		t.Fatalf("after a clean open: %+v, repairs %q", got, repairs(s))
	}
}

// TestRotWithinTheLogIsDeclared flips a bit of every byte of a log with later commits
// behind it: no wrong record, at most the entries at the flip are gone, what is
// gone is declared, and plain wal still reads the log.
func TestRotWithinTheLogIsDeclared(t *testing.T) {
	h := makeHistory(t, 8)
	whole := mustRead(t, tailFile(t, h.dir))
	last := h.want[len(h.want)-1]
	work := copyDir(t, h.dir)
	s := open(t, h.dir, onFS(h.fs))
	tp, _ := s.Topic("wind")
	full := [2][]rec{readAll(t, tp.Partition(0), 0), readAll(t, tp.Partition(1), 0)}
	s.Close()
	for at := h.sizes[1]; at < h.sizes[6]; at++ {
		b := bytes.Clone(whole)
		b[at] ^= 1 << (at % 8)
		if err := os.RemoveAll(work); err != nil {
			t.Fatal(err)
		}
		if err := os.CopyFS(work, os.DirFS(h.dir)); err != nil {
			t.Fatal(err)
		}
		mustWrite(t, tailFile(t, work), b)
		s := open(t, work, onFS(h.fs))
		tp, _ := s.Topic("wind")
		gone := 0
		for i := range 2 {
			p := tp.Partition(i)
			if p.HighWatermark() != int64(len(full[i])) {
				t.Fatalf("flip at %d: high watermark %d, want %d", at, p.HighWatermark(), len(full[i]))
			}
			lost := make(map[int64]bool)
			for _, l := range s.Losses() {
				if l.Partition == p.ID() {
					if l.Reason != storage.LossDamaged {
						t.Fatalf("reason %v", l.Reason)
					}
					for o := l.From; o < l.To; o++ {
						lost[o] = true
					}
				}
			}
			got := readAll(t, p, 0)
			for _, r := range full[i] {
				switch {
				case lost[r.Offset]:
					gone++
				case len(got) == 0 || got[0] != r:
					t.Fatalf("flip at %d: partition %d offset %d is neither there nor declared: %v", at, i, r.Offset, got)
				default:
					got = got[1:]
				}
			}
			if len(got) != 0 {
				t.Fatalf("flip at %d: declared and there: %v", at, got)
			}
		}
		if gone > 2 {
			t.Fatalf("flip at %d: %d records are gone", at, gone)
		}
		if v, _ := s.State(storage.KindSession, "last"); string(v) != last["session last"] {
			t.Fatalf("flip at %d: state %q", at, v)
		}
		if !strings.Contains(repairs(s), "rot") || s.Identity().Epoch.Number != 2 {
			t.Fatalf("flip at %d: repairs %q, epoch %d", at, repairs(s), s.Identity().Epoch.Number)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if q, _ := os.ReadDir(filepath.Join(work, "main", "quarantine")); len(q) != 1 {
			t.Fatalf("flip at %d: %d files in quarantine", at, len(q))
		}
		plainRead(t, work)
		s = open(t, work, onFS(h.fs))
		if repairs(s) != "" {
			t.Fatalf("flip at %d: second open repairs %q", at, repairs(s))
		}
		s.Close()
	}
}
