package storage_test

import (
	"fmt"
	"path/filepath"
	"testing"

	"tailrace/storage"
)

// TestSettledLossIsNotDeclaredAgain: the gap in the log stays, and the row that the hub knows
// does not come back with each start. What is lost behind it is a row of its own. When the
// start has passed the gap nothing is left of it.
func TestSettledLossIsNotDeclaredAgain(t *testing.T) {
	dir, fs := filepath.Join(quickDir(t), "s"), &testFS{}
	again := func() (*storage.Store, *storage.Partition) {
		s := open(t, dir, onFS(fs), segmentBytes(4096))
		tp, _ := s.Topic("wind")
		return s, tp.Partition(0)
	}
	s := open(t, dir, onFS(fs), segmentBytes(4096))
	p := topic(t, s, "wind", 1).Partition(0)
	for i := int64(0); len(segments(t, dir)) < 4; i++ {
		put(t, s, p, i, fmt.Sprintf("%0100d", i))
	}
	s.Close()
	for n := range 2 { // the first batches of a segment, then the one behind them
		name := segments(t, dir)[1]
		r := entriesOf(mustRead(t, name))
		damageFile(t, name, r[n][0]+60, []byte("rot"))
		damageFile(t, filepath.Join(dir, "main", "index", filepath.Base(name)+".idx"), 0, []byte("rot"))
		s, _ = again()
		rows := s.Losses()
		if len(rows) != 1 || rows[0].To != rows[0].From+1 {
			t.Fatalf("damage %d: rows %+v", n, rows)
		}
		if err := s.SettleLoss(t.Context(), rows[0]); err != nil {
			t.Fatal(err)
		}
		if rows := s.Losses(); len(rows) > 0 {
			t.Fatalf("settled, and there are %+v", rows)
		}
		s.Close()
		s, _ = again()
		if rows := s.Losses(); len(rows) > 0 || repairs(s) != "" {
			t.Fatalf("declared again: %+v, repaired %q", rows, repairs(s))
		}
		s.Close()
	}
	s, p = again()
	if err := p.SetStart(p.HighWatermark()); err != nil {
		t.Fatal(err)
	}
	s.Close()
	s, _ = again()
	s.Close()
	in, err := storage.Inspect(dir, nil)
	if err != nil || in.Classes[0].State["loss"] != 0 {
		t.Errorf("%v, state %v", err, in.Classes[0].State)
	}
}
