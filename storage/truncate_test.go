package storage_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"tailrace/storage"
)

// TestInterruptedTruncationIsFinished at each of the library's steps: temporary
// file, START beside the old segments, with some or all of them gone.
func TestInterruptedTruncationIsFinished(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "s")
	fs := &testFS{}
	s := open(t, dir, onFS(fs), segmentBytes(4096))
	p := topic(t, s, "wind", 1).Partition(0)
	fill(t, s, p, 200, func(i int) int64 { return int64(i) })
	a := s.NewAppend("")
	a.Set(storage.KindSession, "c", []byte("x"))
	if err := s.Commit(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	if err := p.SetStart(150); err != nil {
		t.Fatal(err)
	}
	before := copyDir(t, dir)
	if err := s.Retain(); err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprint(content(t, s))
	s.Close()
	after := segments(t, dir)
	var removed []string
	for _, name := range segments(t, before) {
		if !slices.ContainsFunc(after, func(n string) bool { return filepath.Base(n) == filepath.Base(name) }) {
			removed = append(removed, name)
		}
	}
	if len(removed) < 3 {
		t.Fatalf("%d segments were dropped", len(removed))
	}
	stub := filepath.Base(after[0])
	for gone := range len(removed) + 1 {
		work := copyDir(t, dir)
		log := filepath.Join(work, "main", "log")
		for _, name := range removed[gone:] {
			mustWrite(t, filepath.Join(log, filepath.Base(name)), mustRead(t, name))
		}
		if err := os.Rename(filepath.Join(log, stub), filepath.Join(log, stub+".START")); err != nil {
			t.Fatal(err)
		}
		mustWrite(t, filepath.Join(log, stub+".TEMP"), []byte("half"))
		s := open(t, work, onFS(fs), segmentBytes(4096))
		if got := fmt.Sprint(content(t, s)); got != want || s.Identity().Epoch.Number != 1 || len(s.Losses()) != 0 {
			t.Fatalf("%d removed: got %s\nwant %s\nrepairs %q", gone, got, want, repairs(s))
		}
		s.Close()
		if got := segments(t, work); filepath.Base(got[0]) != stub {
			t.Fatalf("%d removed: log begins with %s", gone, got[0])
		}
		plainRead(t, work)
	}
	// A START that is torn decides nothing: the old segments do.
	work := copyDir(t, dir)
	log := filepath.Join(work, "main", "log")
	for _, name := range removed {
		mustWrite(t, filepath.Join(log, filepath.Base(name)), mustRead(t, name))
	}
	b := mustRead(t, filepath.Join(log, stub))
	os.Remove(filepath.Join(log, stub))
	mustWrite(t, filepath.Join(log, stub+".START"), b[:len(b)-3])
	s = open(t, work, onFS(fs), segmentBytes(4096))
	if got := fmt.Sprint(content(t, s)); got != want {
		t.Fatalf("torn START: got %s\nwant %s\nrepairs %q", got, want, repairs(s))
	}
	s.Close()
	plainRead(t, work)
}
