package storage_test

import (
	"fmt"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"tailrace/storage"
)

// lostOf opens a crashed store and gives the ranges of wind's partitions that it declares.
func lostOf(t *testing.T, fs storage.FS, dir string) (out string, ends [2]int64) {
	t.Helper()
	s := open(t, dir, onFS(fs), segmentBytes(4096))
	defer s.Close()
	tp, _ := s.Topic("wind")
	for _, l := range s.Losses() {
		out += fmt.Sprintf("%d:[%d,%d)%v ", l.Index, l.From, l.To, l.Reason)
	}
	return out, [2]int64{tp.Partition(0).HighWatermark(), tp.Partition(1).HighWatermark()}
}

// rotLast damages the n-th entry from the end of a log file, and cuts it behind byte cut of
// the last one when cut is not 0.
func rotLast(t *testing.T, name string, n, cut int) {
	t.Helper()
	b := mustRead(t, name)
	r := entriesOf(b)
	e := r[len(r)-n]
	copy(b[e[1]-5:], "rot!!")
	if cut > 0 {
		b = b[:r[len(r)-1][0]+cut]
	}
	mustWrite(t, name, b)
}

// TestRotOfTheEndOfALogAtRest: the store was not closed, but it was at rest for a while when
// the power went. The last commit is damaged, and declared.
func TestRotOfTheEndOfALogAtRest(t *testing.T) {
	for _, rest := range []bool{false, true} {
		dir, fs := filepath.Join(quickDir(t), "s"), &testFS{}
		synctest.Test(t, func(t *testing.T) {
			s := open(t, dir, onFS(fs))
			tp := topic(t, s, "wind", 2)
			put(t, s, tp.Partition(0), 1, "a", "b")
			put(t, s, tp.Partition(0), 2, "c", "d")
			if rest {
				time.Sleep(time.Minute)
			}
			synctest.Wait()
			crashed := copyDir(t, dir)
			s.Close()
			rotLast(t, tailFile(t, crashed), 1, 0)
			want, end := "0:[2,4)damaged ", int64(4)
			if !rest { // nothing tells that it was not a torn write
				want, end = "", 2
			}
			if got, ends := lostOf(t, fs, crashed); got != want || ends[0] != end {
				t.Errorf("at rest %v: declared %q, end %d", rest, got, ends[0])
			}
		})
	}
}

// TestRotBeforeATornCommit: the last commit is torn, its first entry is whole. So what is
// damaged before it had been acknowledged: it is declared, up to where the commit began.
func TestRotBeforeATornCommit(t *testing.T) {
	dir, fs := filepath.Join(quickDir(t), "s"), &testFS{}
	s := open(t, dir, onFS(fs))
	tp := topic(t, s, "wind", 2)
	put(t, s, tp.Partition(0), 1, "a")
	put(t, s, tp.Partition(0), 1, "b", "c")
	a := s.NewAppend("")
	for i := range 2 {
		if err := a.Record(tp.Partition(i), 1, nil, []byte("torn"), nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Commit(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	crashed := copyDir(t, dir)
	s.Close()
	name := tailFile(t, crashed)
	r := entriesOf(mustRead(t, name))
	damageFile(t, name, r[len(r)-3][0], make([]byte, 120)) // nothing in it tells offsets either
	rotLast(t, name, 3, 20)                                // b and c; of the last commit one entry and 20 bytes are there
	got, ends := lostOf(t, fs, crashed)
	if got != "0:[1,3)damaged " || ends != [2]int64{3, 0} {
		t.Errorf("declared %q, ends %v", got, ends)
	}
	plainRead(t, crashed)
	if got, ends := lostOf(t, fs, crashed); got != "0:[1,3)damaged " || ends != [2]int64{3, 0} {
		t.Errorf("opened again: declared %q, ends %v", got, ends)
	}
}

// TestRotAtTheLastRoll: the newest segment is gone and the end of the one before rotten. Up
// to where the log had come when that was full, it is known to have been acknowledged.
func TestRotAtTheLastRoll(t *testing.T) {
	dir, fs := filepath.Join(quickDir(t), "s"), &testFS{}
	s := open(t, dir, onFS(fs), segmentBytes(4096))
	tp := topic(t, s, "wind", 2)
	n := int64(0)
	for ; len(segments(t, dir)) < 3; n++ {
		put(t, s, tp.Partition(0), n, fmt.Sprintf("%0100d", n))
	}
	put(t, s, tp.Partition(0), n, "in the newest segment")
	crashed := copyDir(t, dir)
	s.Close()
	segs := segments(t, crashed)
	b := mustRead(t, segs[2])
	clear(b)
	mustWrite(t, segs[2], b)
	rotLast(t, segs[1], 1, 0)
	if got, ends := lostOf(t, fs, crashed); got != fmt.Sprintf("0:[%d,%d)damaged ", n-1, n) || ends[0] != n {
		t.Errorf("declared %q, end %d; the segment ended at %d", got, ends[0], n)
	}
}
