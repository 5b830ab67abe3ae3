package storagetest_test

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"tailrace/storage/storagetest"
)

var (
	every        = flag.Bool("every", false, "cut the power at every change of each recovery, not at two of them")
	scriptPoints = flag.Int("script-points", 24, "at how many changes of the long script power is cut; 0 is at every one")
)

// Power is cut at every call of a script that changes the disk, before and after it takes
// effect; then again at every change that the recovery from it makes. Each time the store
// that comes up at the end holds what was acknowledged, and nothing else.
func TestPowerCutAtEveryPointOfAScriptAndOfItsRecovery(t *testing.T) {
	dir := scratch(t)
	h, err := newScript(filepath.Join(dir, "count"))
	must(t, err)
	before := h.fs.Calls(storagetest.Change)
	must(t, script(h, func() error { return nil }))
	changes := h.fs.Calls(storagetest.Change) - before
	must(t, h.end())
	h.fs.Close()
	images, step := uint64(1), int64(1)
	if testing.Short() {
		images, step = 1, 7
	}
	points, second := 0, 0
	for at := int64(1); at <= changes; at += step {
		for _, after := range []bool{false, true} {
			for image := range images {
				base := filepath.Join(dir, fmt.Sprintf("%d-%v-%d", at, after, image))
				seed := uint64(at)<<8 | image<<1
				run := func(again int64) int64 {
					recovery, err := cutTwice(base, shortScript, at, after, seed, again)
					if err != nil {
						t.Fatalf("power cut at change %d (after=%v, image %d), then at change %d of the recovery: %v", at, after, image, again, err)
					}
					points++
					return recovery
				}
				n := run(0)
				r := rand.New(rand.NewPCG(seed, 6))
				for k := range n {
					if *every || r.Int64N(n) < 2 { // two of them, on the average
						run(k + 1)
						second++
					}
				}
			}
		}
	}
	t.Logf("%d changes in the script: %d histories, %d of them with a second power cut during recovery", changes, points, second)
	if second < points/3 {
		t.Errorf("recovery was hardly ever interrupted")
	}
}

// cutTwice runs the script up to a power cut, recovers with a second one at change `again`
// (0 none), and checks. It returns how many changes a recovery that was left alone made.
func cutTwice(base string, operations int, at int64, after bool, seed uint64, again int64) (changes int64, err error) {
	defer os.RemoveAll(base)
	h, err := newScript(base)
	if err != nil {
		return 0, err
	}
	defer func() { h.fs.Close() }()
	h.faulty = true
	h.fs.CutAt(at, after, seed, h.image())
	if err := scriptOf(h, operations, func() error {
		if h.off() {
			return errPowerOff
		}
		return nil
	}); err != nil && !h.off() {
		return 0, err
	}
	h.faulty = false
	if _, err := h.fs.Cut(seed, h.image()); err != nil {
		return 0, err
	}
	if err := h.end(); err != nil {
		return 0, err
	}
	if err := h.next(fmt.Sprintf("change %d", at)); err != nil {
		return 0, err
	}
	if again > 0 {
		up, err := h.start(func(fs *storagetest.CrashFS) { fs.CutAt(again, again%2 == 0, seed+1, h.image()) })
		if err != nil {
			return 0, err
		}
		if !h.off() {
			if _, err := h.fs.Cut(seed+1, h.image()); err != nil {
				return 0, err
			}
		}
		if up {
			if err := h.end(); err != nil {
				return 0, err
			}
		}
		if err := h.next(fmt.Sprintf("change %d of the recovery", again)); err != nil {
			return 0, err
		}
	}
	if _, err := h.start(nil); err != nil {
		return 0, err
	}
	changes = h.fs.Calls(storagetest.Change)
	if err := h.check(); err != nil {
		return 0, err
	}
	if u, err := h.commit(); err != nil || u.err != nil {
		return 0, fmt.Errorf("append after recovery: %v %v", err, u)
	}
	if err := h.check(); err != nil {
		return 0, err
	}
	return changes, h.checkOracle()
}

var errPowerOff = errors.New("power is off")

// A script of a thousand operations loses its power at any of its changes (in CI at some,
// others each commit), before and after the change takes effect, and once more while it
// recovers. Records, the last append that the state names and the folded window agree, by
// the store and by the second reader: what one append held is there together or not at all.
func TestPowerCutInAScriptOfAThousandOperations(t *testing.T) {
	dir := scratch(t)
	const operations = 1000
	h, err := newScript(filepath.Join(dir, "count"))
	must(t, err)
	before := h.fs.Calls(storagetest.Change)
	must(t, scriptOf(h, operations, func() error { return nil }))
	changes := h.fs.Calls(storagetest.Change) - before
	must(t, h.end())
	h.fs.Close()
	points, rot := int64(*scriptPoints), storagetest.Rotation()
	if testing.Short() {
		points = min(points, 4)
	}
	step, first := int64(1), int64(1)
	if points > 0 {
		step = max(changes/points, 1)
		first = 1 + int64(rot%uint64(step))
	}
	var wg sync.WaitGroup
	var ran atomic.Int64
	next := make(chan int64)
	for range max(runtime.GOMAXPROCS(0), 2) {
		wg.Go(func() {
			for at := range next {
				for _, after := range []bool{false, true} {
					again := int64(0)
					if r := rand.New(rand.NewPCG(uint64(at), rot)); r.IntN(2) == 0 {
						again = 1 + r.Int64N(8)
					}
					base := filepath.Join(dir, fmt.Sprintf("%d-%v", at, after))
					if _, err := cutTwice(base, operations, at, after, uint64(at)<<1|1, again); err != nil && !t.Failed() {
						t.Errorf("power cut at change %d (after=%v), then at change %d of the recovery: %v", at, after, again, err)
					}
					ran.Add(1)
				}
			}
		})
	}
	for at := first; at <= changes && !t.Failed(); at += step {
		next <- at
	}
	close(next)
	wg.Wait()
	t.Logf("%d operations make %d changes; %d power cuts, rotation %d", operations, changes, ran.Load(), rot)
}
