package storage_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"tailrace/storage"
)

// summary is what the index tells of each partition, without reading records.
func summary(s *storage.Store) (out string) {
	for _, t := range s.Topics() {
		for _, p := range t.Partitions() {
			first, _ := p.StartTime()
			last, _ := p.LastTime()
			off, ts, ok, err := p.OffsetForTime(150)
			out += fmt.Sprintln(p.Index(), p.Start(), p.HighWatermark(), p.Bytes(), first, last, off, ts, ok, err)
		}
	}
	return out
}

// TestCatalogIsOnlyACache: with it, opening reads no side file but those it must; with
// it missing, cut, damaged, or of another time, opening finds the same.
func TestCatalogIsOnlyACache(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "s")
	var sides atomic.Int64
	fs := &testFS{}
	mod := func(c *storage.Config) { c.FS, c.Classes[0].SegmentBytes = fs, 4096 }
	reopen := func() (*storage.Store, string) {
		t.Helper()
		sides.Store(0)
		fs.setHook(func(op, name string) error {
			if op == "open" && strings.HasSuffix(name, ".idx") {
				sides.Add(1)
			}
			return nil
		})
		s := open(t, dir, mod)
		fs.setHook(nil)
		if r := repairs(s); r != "" {
			t.Fatal(r)
		}
		return s, summary(s)
	}
	s := open(t, dir, mod)
	p := topic(t, s, "wind", 3)
	for i := range 300 {
		put(t, s, p.Partition(i%3), int64(i), fmt.Sprintf("%0*d", 60_000, i)) // beyond what Open reads for the state
	}
	want := summary(s)
	s.Close()
	path := filepath.Join(dir, "main", "catalog")
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	n := len(segments(t, dir))
	s, got := reopen()
	if got != want || sides.Load() != 0 || n < 30 {
		t.Errorf("%d side files opened of %d, same content %v", sides.Load(), n, got == want)
	}
	s.Close()
	for i := 5; i < len(whole); i += len(whole) / 40 {
		flipped := bytes.Clone(whole)
		flipped[i] ^= 4
		os.WriteFile(path, flipped, 0o600)
		if s, got = reopen(); got != want {
			t.Errorf("a flipped bit at %d is believed", i)
		}
		s.Close()
	}
	doubled := append(bytes.Clone(whole), whole...)
	for name, b := range map[string][]byte{"missing": nil, "empty": {}, "cut": whole[:len(whole)*2/3+5],
		"garbage": bytes.Repeat([]byte("TRIX\x00\x00\x00\x01"), 1000), "doubled": doubled, "longer": append(bytes.Clone(whole), "TRIX"...)} {
		if b == nil {
			err = os.Remove(path)
		} else {
			err = os.WriteFile(path, b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		s, got := reopen()
		if got != want {
			t.Errorf("%s: other content", name)
		}
		s.Close()
		if s, got = reopen(); got != want || sides.Load() != 0 {
			t.Errorf("%s: not whole again: %d side files opened", name, sides.Load())
		}
		s.Close()
	}

	// It does not grow for ever: what is of segments that are gone goes, too.
	s = open(t, dir, mod)
	tp, _ := s.Topic("wind")
	for round := range 6 {
		for i := range 60 {
			put(t, s, tp.Partition(i%3), int64(i), fmt.Sprintf("%0*d", 60_000, i))
		}
		for i := range 3 {
			if err := tp.Partition(i).SetStart(int64(100 + 20*round)); err != nil {
				t.Fatal(err)
			}
		}
		s.Retain()
	}
	want = summary(s)
	s.Close()
	live := len(segments(t, dir))
	if st, err := os.Stat(path); err != nil || st.Size() > int64(3*live+32)*(56+3*48+4) {
		t.Errorf("%d bytes for %d segments, %v", st.Size(), live, err)
	}
	if s, got = reopen(); got != want || sides.Load() != 0 {
		t.Errorf("after it was written anew: %d side files opened", sides.Load())
	}
	s.Close()

	// A segment whose side file was taken away, as a reader does that meets rot, is read
	// whatever the catalog says.
	seg := segments(t, dir)[3]
	b, err := os.ReadFile(seg)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	os.WriteFile(seg, b, 0o600)
	os.Remove(filepath.Join(dir, "main", "index", filepath.Base(seg)+".idx"))
	s = open(t, dir, mod)
	if !strings.Contains(repairs(s), "rot") || len(s.Losses()) == 0 {
		t.Errorf("rot is believed away: %q", repairs(s))
	}
}
