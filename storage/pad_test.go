package storage_test

import (
	"fmt"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"tailrace/storage"
)

// TestACommitFillsItsBlock: with a commit interval, commits of somewhat less than a block
// begin at blocks, so that each writes one; the filling is at most half of what is
// written and nobody sees it, not even after a power cut. Without an interval nothing is
// filled.
func TestACommitFillsItsBlock(t *testing.T) {
	for _, test := range []struct {
		name     string
		interval time.Duration
		value    int // bytes of a commit's record
		state    bool
		blocks   float64 // that a commit touches, at most
	}{
		{"most of a block", 100 * time.Millisecond, 3500, false, 1.01},
		{"with state", 100 * time.Millisecond, 3500, true, 1.01},
		{"a little more than a block", 100 * time.Millisecond, 4200, true, 2.1},
		{"a quarter of a block", 100 * time.Millisecond, 900, true, 1.2},
		{"many blocks", time.Second, 27_000, true, 7.05},
		{"no interval", 0, 3500, false, 2},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				dir := quickDir(t)
				mod := func(c *storage.Config) { c.Classes[0].CommitInterval = test.interval }
				s := open(t, dir, onFS(&testFS{}), mod)
				p := topic(t, s, "wind", 1).Partition(0)
				const commits = 200
				touched, at := int64(0), size(t, tailFile(t, dir))
				for i := range commits {
					a := s.NewAppend("")
					a.Record(p, int64(i), nil, make([]byte, test.value), nil)
					if test.state {
						a.Set(storage.KindMeta, "k", fmt.Append(nil, i))
					}
					if err := s.Commit(t.Context(), a); err != nil {
						t.Fatal(err)
					}
					end := size(t, tailFile(t, dir))
					if end < at {
						at = 0 // a new segment
					}
					touched += (end+4095)/4096 - at/4096
					at = end
				}
				if per := float64(touched) / commits; per > test.blocks {
					t.Errorf("a commit touches %.2f blocks, want at most %.2f", per, test.blocks)
				}
				st := s.Stats().Classes[0]
				if all, most := st.WrittenBytes, uint64(commits*(test.value+250)*3/2); all > most {
					t.Errorf("%d bytes were written, want at most %d", all, most)
				}
				if test.interval == 0 && st.WrittenBytes > commits*uint64(test.value+250) {
					t.Errorf("%d bytes were written: filled without an interval", st.WrittenBytes)
				}
				keys := st.StateKeys
				cut := copyDir(t, dir) // as a power cut leaves it
				s.Close()
				plainRead(t, dir)
				s = open(t, cut, onFS(&testFS{}), mod)
				tp, _ := s.Topic("wind")
				if got := readAll(t, tp.Partition(0), 0); len(got) != commits {
					t.Errorf("%d records after the cut, want %d", len(got), commits)
				}
				if n := s.Stats().Classes[0].StateKeys; n < keys || n > keys+1 || repairs(s) != "" {
					t.Errorf("%d keys of state, were %d; repairs %q", n, keys, repairs(s))
				}
				s.Close()
			})
		})
	}
}

func size(t testing.TB, name string) int64 {
	t.Helper()
	fi, err := os.Stat(name)
	if err != nil {
		t.Fatal(err)
	}
	return fi.Size()
}
