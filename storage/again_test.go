package storage_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"tailrace/storage"
)

// TestARowThatFailedIsTriedAgain: the disk takes no row of the ledger when a reader has found
// damage. Until it does the damage is told all the same, and readers step over it; then the
// row is made durable and the segment repaired, without a restart and without another reader.
func TestARowThatFailedIsTriedAgain(t *testing.T) {
	dir := filepath.Join(quickDir(t), "s")
	fs := &testFS{}
	s, tp := rotten(t, fs, dir)
	defer func() { s.Close() }()
	names := segments(t, dir)
	b := mustRead(t, names[1])
	damageFile(t, names[1], bytes.LastIndex(b, []byte("0000000")), []byte("x"))
	tail := names[len(names)-1]
	failed := make(chan struct{})
	fs.setHook(func(op, n string) error {
		if op == "sync" && n == tail {
			fs.setHook(nil)
			close(failed)
			return errors.New("no")
		}
		return nil
	})
	for i := range 2 {
		readAll(t, tp.Partition(i), tp.Partition(i).Start())
	}
	<-failed
	for err := errors.New("first"); err != nil; { // those who wait behind a failed write are told
		a := s.NewAppend("")
		a.Set(storage.KindMeta, "k", nil)
		err = s.Commit(t.Context(), a)
	}
	rows := s.Losses()
	if len(rows) != 1 {
		t.Fatalf("rows %+v", rows)
	}
	durable := func() int {
		t.Helper()
		in, err := storage.Inspect(copyDir(t, dir), nil)
		if err != nil {
			t.Fatal(err)
		}
		return in.Classes[0].State["loss"]
	}
	if n := durable(); n != 0 {
		t.Fatalf("%d rows are durable although the disk took none", n)
	}
	if err := s.Retain(); err != nil {
		t.Fatal(err)
	}
	if n, st := durable(), s.Stats().Classes[0]; n != 1 || st.Healed != 1 || fmt.Sprint(s.Losses()) == "[]" {
		t.Fatalf("%d rows are durable, %d segments healed, losses %+v", n, st.Healed, s.Losses())
	}
	l := s.Losses()[0]
	if l.From != rows[0].From || l.To != rows[0].To || l.Partition != rows[0].Partition {
		t.Fatalf("the row is %+v, it was %+v", l, rows[0])
	}
}

// TestRotInASegmentAndInItsIndex: under an open store both a segment and its side file are
// damaged, so that nothing tells any more where in the segment the batches were. Found by a
// reader or by the scrubber: what is damaged is declared, neither more nor less, and the
// segment and its index are sound again.
func TestRotInASegmentAndInItsIndex(t *testing.T) {
	fs := &testFS{}
	g := makeGone(t, fs)
	for _, scrub := range []bool{true, false} {
		for _, index := range []string{"summary", "list", "removed", "cut"} {
			for _, i := range []int{1, len(g.names) / 2, len(g.names) - 2} {
				for _, how := range []string{"record", "last record", "length", "all of it"} {
					what := fmt.Sprintf("segment %d, %s, its index: %s, scrubber %v", i, how, index, scrub)
					dir := copyDir(t, g.dir)
					name := filepath.Join(dir, "main", "log", filepath.Base(g.names[i]))
					side := filepath.Join(dir, "main", "index", filepath.Base(g.names[i])+".idx")
					all := g.lostIn(t, dir, name)
					s := open(t, dir, onFS(fs), segmentBytes(4096))
					b, x := mustRead(t, name), mustRead(t, side)
					ranges := entriesOf(b)
					switch e := ranges[len(ranges)/2]; how {
					case "record":
						damageFile(t, name, bytes.Index(b, []byte("0000000")), []byte("x"))
					case "last record":
						damageFile(t, name, bytes.LastIndex(b, []byte("0000000")), []byte("x"))
					case "length":
						damageFile(t, name, e[0], []byte{b[e[0]] ^ 0x55})
					default:
						damageFile(t, name, 0, make([]byte, len(b)))
					}
					switch index {
					case "summary":
						damageFile(t, side, 70, []byte{x[70] ^ 1})
					case "list":
						damageFile(t, side, len(x)-6, []byte{x[len(x)-6] ^ 1})
					case "removed":
						os.Remove(side)
					case "cut":
						os.Truncate(side, int64(len(x)/2))
					}
					// What is still whole: of the bytes that are there, each record has its own entry.
					lost, left := all, g.lostIn(t, dir, name)
					for key, r := range left {
						lost[key] = without(lost[key], r)
						if lost[key] == nil {
							delete(lost, key)
						}
					}
					if how == "length" { // the record is whole, and a reader of the segment finds it again
						if len(lost) != 0 {
							t.Fatalf("%s: lost %v", what, lost)
						}
					}
					if scrub {
						if err := s.Scrub(t.Context()); err != nil {
							t.Fatalf("%s: %v", what, err)
						}
					} else {
						for _, tp := range s.Topics() {
							for _, p := range tp.Partitions() {
								readAll(t, p, p.Start())
							}
						}
					}
					if err := s.Retain(); err != nil {
						t.Fatal(err)
					}
					g.check(t, s, lost, what)
					if err := s.Scrub(t.Context()); err != nil {
						t.Fatalf("%s: scrubbed again: %v", what, err)
					}
					g.check(t, s, lost, what+", scrubbed again")
					s.Close()
					plainRead(t, dir)
					in, err := storage.Inspect(dir, nil)
					if err != nil || in.Lossy() {
						t.Fatalf("%s: %v %+v", what, err, in.Problems)
					}
					os.RemoveAll(filepath.Join(dir, "main", "index"))
					s = open(t, dir, onFS(fs), segmentBytes(4096))
					g.check(t, s, lost, what+", opened again")
					if repairs(s) != "" {
						t.Fatalf("%s: the next start repaired %s", what, repairs(s))
					}
					s.Close()
					os.RemoveAll(filepath.Dir(dir))
				}
			}
		}
	}
}

// without is what of some ranges is not in others.
func without(from, taken []storage.OffsetRange) (left []storage.OffsetRange) {
	for _, r := range from {
		for off := r.From; off < r.To; off++ {
			if slices.ContainsFunc(taken, func(x storage.OffsetRange) bool { return x.From <= off && off < x.To }) {
				continue
			}
			if n := len(left); n > 0 && left[n-1].To == off {
				left[n-1].To++
			} else {
				left = append(left, storage.OffsetRange{From: off, To: off + 1})
			}
		}
	}
	return left
}
