package storage_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"tailrace/storage"
)

// A commit that begins several segments makes their names durable together, at its end.
// A power cut before that may leave any of them: the commit is cut, and what was
// acknowledged before it is where it was, not set aside as if it were from another time.
func TestTornCommitOverSegmentsWithOneMissing(t *testing.T) {
	dir := filepath.Join(quickDir(t), "store")
	fs := &testFS{}
	s := open(t, dir, onFS(fs), segmentBytes(4096))
	tp := topic(t, s, "wind", 4)
	for i := range 20 {
		put(t, s, tp.Partition(i%4), int64(i), "before")
	}
	want, before := content(t, s), segments(t, dir)
	twin := mustRead(t, filepath.Join(dir, "main", "twin"))
	a := s.NewAppend("")
	for i := range 4 {
		if err := a.Record(tp.Partition(i), 1, nil, bytes.Repeat([]byte{'x'}, 5000), nil); err != nil {
			t.Fatal(err)
		}
	}
	a.Set(storage.KindSession, "last", []byte("big"))
	if err := s.Commit(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	after := segments(t, dir)
	begun := after[len(before):]
	if len(begun) != 4 {
		t.Fatalf("the commit began %d segments", len(begun))
	}
	crashed := copyDir(t, dir) // not closed
	full := content(t, s)
	s.Close()
	for lost := range 1 << len(begun) { // any of the new names
		work := copyDir(t, crashed)
		for i, name := range begun {
			if lost&(1<<i) != 0 {
				if err := os.Remove(filepath.Join(work, "main", "log", filepath.Base(name))); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := os.RemoveAll(filepath.Join(work, "main", "index")); err != nil { // of the sealed ones, written later
			t.Fatal(err)
		}
		os.Remove(filepath.Join(work, "main", "catalog"))
		if lost != 0 { // likewise: it tells that the commit was whole
			mustWrite(t, filepath.Join(work, "main", "twin"), twin)
		}
		s := open(t, work, onFS(fs), segmentBytes(4096))
		expect := want
		if lost == 0 {
			expect = full
		}
		got := content(t, s)
		for k, v := range expect {
			if got[k] != v {
				t.Fatalf("names lost %04b: %s is %.100s, it was %.100s; repaired %+v", lost, k, got[k], v, s.Identity().Recovered)
			}
		}
		if len(got) != len(expect) || len(s.Losses()) != 0 {
			t.Fatalf("names lost %04b: %d keys, %d losses", lost, len(got), len(s.Losses()))
		}
		put(t, s, s.Topics()[0].Partition(0), 1, "after")
		s.Close()
		plainRead(t, work)
	}
}
