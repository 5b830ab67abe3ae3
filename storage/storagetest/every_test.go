package storagetest_test

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"tailrace/storage/storagetest"
)

var every = flag.Bool("every", false, "cut the power at every change of each recovery, not at two of them")

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
					recovery, err := cutTwice(base, at, after, seed, again)
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
func cutTwice(base string, at int64, after bool, seed uint64, again int64) (changes int64, err error) {
	defer os.RemoveAll(base)
	h, err := newScript(base)
	if err != nil {
		return 0, err
	}
	defer func() { h.fs.Close() }()
	h.faulty = true
	h.fs.CutAt(at, after, seed, h.image())
	if err := script(h, func() error { return nil }); err != nil && !h.off() {
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
	return changes, h.end()
}
