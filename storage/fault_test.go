package storage_test

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"tailrace/storage"
)

// TestAnyFailedCallLeavesWhatWasAcknowledged lets one call of the file layer fail
// at a random point of appends, state changes, deletions and truncations, again and
// again: what was refused is not there, what was acknowledged is, at once and after
// reopening.
func TestAnyFailedCallLeavesWhatWasAcknowledged(t *testing.T) {
	seed := *seedFlag
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	rounds := uint64(20)
	if testing.Short() {
		rounds = 4
	}
	for i := range rounds {
		dir := filepath.Join(quickDir(t), fmt.Sprint(i))
		synctest.Test(t, func(t *testing.T) { runFaults(t, seed+i, dir) })
	}
}

func runFaults(t *testing.T, seed uint64, dir string) {
	rnd := rand.New(rand.NewPCG(seed, 3))
	fs := &testFS{}
	mod := func(c *storage.Config) {
		c.FS = fs
		c.Classes[0].SegmentBytes = 4096
		c.Folds = map[storage.StateKind]storage.FoldFunc{storage.KindWindow: concat}
	}
	s := open(t, dir, mod)
	m := &model{parts: map[string][]rec{}, start: map[string]int64{}, state: map[string]string{}}
	topic(t, s, "t", 2)
	hit := 0
	for step := range 150 {
		var left atomic.Int64
		left.Store(1 + rnd.Int64N(12))
		fs.setHook(func(op, name string) error {
			if op != "write" && left.Add(-1) == 0 {
				return syscall.EIO
			}
			return nil
		})
		tp, _ := s.Topic("t")
		switch rnd.IntN(6) {
		case 0:
			p := tp.Partition(rnd.IntN(2))
			off := p.HighWatermark() - min(p.HighWatermark(), rnd.Int64N(5))
			if err := p.SetStart(off); err == nil {
				key := fmt.Sprintf("t/%d", p.Index())
				m.start[key] = max(m.start[key], off)
			}
		case 1:
			s.Retain()
		default:
			a := s.NewAppend("")
			var recs []rec
			p := tp.Partition(rnd.IntN(2))
			for range 1 + rnd.IntN(3) {
				r := rec{TS: int64(step), Value: fmt.Sprintf("%0*d", 1+rnd.IntN(900), step)}
				a.Record(p, r.TS, []byte(r.Key), []byte(r.Value), nil)
				recs = append(recs, r)
			}
			key := fmt.Sprint("k", rnd.IntN(5))
			a.Fold(storage.KindWindow, key, fmt.Appendf(nil, "%d.", step))
			if err := s.Commit(t.Context(), a); err != nil {
				hit++
				break
			}
			for i, r := range recs {
				r.Offset = a.Base(i)
				pk := fmt.Sprintf("t/%d", p.Index())
				m.parts[pk] = append(m.parts[pk], r)
			}
			w := fmt.Sprint(storage.KindWindow, key)
			m.state[w] = string(concat([]byte(m.state[w]), fmt.Appendf(nil, "%d.", step)))
		}
		fs.setHook(nil)
		time.Sleep(time.Minute) // the log is tried again
		m.check(t, s, seed, step)
		if rnd.IntN(15) == 0 {
			s.Close()
			plainRead(t, dir)
			s = open(t, dir, mod)
			if repairs(s) != "" {
				t.Fatalf("seed %d step %d: repairs %q", seed, step, repairs(s))
			}
			m.check(t, s, seed, step)
		}
	}
	s.Close()
	if hit == 0 {
		t.Fatalf("seed %d: no commit failed", seed)
	}
}
