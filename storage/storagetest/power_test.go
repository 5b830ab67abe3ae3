package storagetest_test

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"tailrace/storage/storagetest"
)

var (
	oneSeed = flag.Uint64("seed", 0, "run this one history (0: those of -histories)")
	first   = flag.Uint64("first-seed", 1, "the seed of the first of -histories")
	count   = flag.Int("histories", 500, "how many seeded histories, of four power cuts each")
)

// runPowerCuts lives one history: four times the store is opened, used and loses its power
// at a random moment (also while it recovers), or is closed cleanly now and then; each time
// everything is compared with the model.
func runPowerCuts(seed uint64, base string, cuts int) error {
	return newHistory(seed, base).powerCuts(cuts)
}

func (h *history) powerCuts(cuts int) (err error) {
	defer func() {
		if e := h.end(); err == nil {
			err = e
		}
		if h.fs != nil {
			h.fs.Close()
		}
	}()
	for cut := 0; cut < cuts; cut++ {
		at := int64(1 + h.r.IntN(120))
		if h.r.IntN(4) == 0 {
			at = int64(1 + h.r.IntN(12)) // while it opens
		}
		after := h.r.IntN(2) == 0
		imageSeed := h.r.Uint64()
		up, err := h.start(func(fs *storagetest.CrashFS) { fs.CutAt(at, after, imageSeed, h.image()) })
		if err != nil {
			return err
		}
		if up && !h.off() {
			if err := h.check(); err != nil && !h.off() {
				return err
			}
			if err := h.work(30); err != nil && !h.off() {
				return err
			}
			h.clean = false
			if !h.off() && h.r.IntN(3) == 0 {
				if err := h.end(); err != nil {
					return err
				}
				h.clean = !h.off()
			}
		}
		if h.clean {
			cut-- // no power cut: once more on the same disk
			if err := h.fs.Close(); err != nil {
				return err
			}
			continue
		}
		note := fmt.Sprintf("at change %d after=%v", at, after)
		if !h.off() {
			note = "after the work"
			if _, err := h.fs.Cut(imageSeed, h.image()); err != nil {
				return err
			}
		}
		if err := h.end(); err != nil {
			return err
		}
		if err := h.next(note); err != nil {
			return err
		}
	}
	if _, err := h.start(nil); err != nil {
		return err
	}
	if err := h.check(); err != nil {
		return err
	}
	return h.checkOracle()
}

// keep moves the disk of a failed history where a person can look at it.
func keep(t *testing.T, base string, seed uint64) {
	to := filepath.Join(os.TempDir(), fmt.Sprintf("tailrace-power-cut-%d-%d", seed, time.Now().UnixNano()))
	if err := os.CopyFS(to, os.DirFS(base)); err != nil {
		t.Logf("keep the disk: %v", err)
	}
	t.Logf("the disk is kept in %s; run again with -run '%s' -seed %d", to, t.Name(), seed)
}

// Two thousand power cuts: what was acknowledged is there, nothing else is, in order, whole
// appends only, and the state says the same as the records.
func TestPowerCutsLoseNothingAcknowledged(t *testing.T) {
	n, from := *count, *first
	if testing.Short() {
		n /= 10
	}
	if *oneSeed != 0 {
		n, from = 1, *oneSeed
	}
	dir := scratch(t)
	start := time.Now()
	var wg sync.WaitGroup
	var failed atomic.Int64
	seeds := make(chan uint64)
	for range max(runtime.GOMAXPROCS(0), 2) {
		wg.Go(func() {
			for seed := range seeds {
				base := filepath.Join(dir, fmt.Sprint(seed))
				if err := runPowerCuts(seed, base, 4); err != nil {
					t.Errorf("%v", err)
					keep(t, base, seed)
					failed.Add(1)
				}
				os.RemoveAll(base)
			}
		})
	}
	done := uint64(0)
	for ; done < uint64(n) && failed.Load() < 3; done++ {
		seeds <- from + done
	}
	close(seeds)
	wg.Wait()
	if done < uint64(n) {
		t.Fatalf("stopped after seed %d", from+done-1)
	}
	t.Logf("seeds %d to %d: %d power cuts, %v", from, from+uint64(n)-1, 4*n, time.Since(start).Round(time.Millisecond))
}

// A history is what its seed says, so that a failure can be run again.
func TestHistoriesRepeat(t *testing.T) {
	dir := scratch(t)
	for seed := uint64(1); seed <= 6; seed++ {
		var first string
		for run := range 3 {
			h := newHistory(seed, filepath.Join(dir, fmt.Sprint(seed, "-", run)))
			if h.free {
				continue
			}
			if err := h.powerCuts(4); err != nil {
				t.Fatal(err)
			}
			got := joinLines(h.fates)
			for _, u := range h.subs {
				got += fmt.Sprintln(u.n, u.class, u.parts, u.base, u.acked, u.fate)
			}
			if run == 0 {
				first = got
			} else if got != first {
				t.Fatalf("seed %d: once\n%s\nthen\n%s", seed, first, got)
			}
		}
	}
}

// A control: on a disk that only pretends to flush, the same check must find lost records.
// If it does not, it would not find a missing fsync either.
func TestPowerCutCheckNoticesADiskThatLies(t *testing.T) {
	dir := scratch(t)
	for _, kind := range []storagetest.Call{storagetest.Sync, storagetest.SyncDir} {
		start, found := time.Now(), uint64(0)
		var why error
		for seed := uint64(1); seed <= 50 && found == 0; seed++ {
			base := filepath.Join(dir, fmt.Sprint(kind, seed))
			h := newHistory(seed, base)
			if _, err := h.start(nil); err != nil {
				t.Fatal(err)
			}
			must(t, h.work(3)) // topics and first records are on an honest disk
			h.fs.Lie(kind, true)
			must(t, h.work(20))
			if h.fs.Lies() == 0 {
				continue
			}
			r := rand.New(rand.NewPCG(seed, 2))
			if _, err := h.fs.Cut(r.Uint64(), h.image()); err != nil {
				t.Fatal(err)
			}
			must(t, h.end())
			must(t, h.next("lying "+kind.String()))
			if _, err := h.start(nil); err != nil {
				found, why = seed, err
			} else if err := h.check(); err != nil {
				found, why = seed, err
			}
			_ = h.end()
			h.fs.Close()
		}
		if found == 0 {
			t.Errorf("50 power cuts on a disk that lies about %q went unnoticed", kind)
			continue
		}
		t.Logf("a disk that lies about %q: found by seed %d in %v: %.200s", kind, found, time.Since(start).Round(time.Millisecond), why)
	}
}
