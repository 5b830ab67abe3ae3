package storagetest_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"tailrace/storage/storagetest"
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
	images, step := uint64(6), int64(1)
	if testing.Short() {
		images, step = 2, 5
	}
	points, second := 0, 0
	for at := int64(1); at <= changes; at += step {
		for _, after := range []bool{false, true} {
			for image := range images {
				base := filepath.Join(dir, fmt.Sprintf("%d-%v-%d", at, after, image))
				seed := uint64(at)<<8 | image<<1
				for again := int64(0); ; again++ { // 0: the recovery is left alone
					more, err := cutTwice(base, at, after, seed, again)
					if err != nil {
						t.Fatalf("power cut at change %d (after=%v, image %d), then at change %d of the recovery: %v", at, after, image, again, err)
					}
					points++
					if again > 0 {
						second++
					}
					if !more {
						break
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
// (0 none), and checks. more tells that the recovery made further changes.
func cutTwice(base string, at int64, after bool, seed uint64, again int64) (more bool, err error) {
	defer os.RemoveAll(base)
	h, err := newScript(base)
	if err != nil {
		return false, err
	}
	defer func() { h.fs.Close() }()
	h.faulty = true
	h.fs.CutAt(at, after, seed, h.image())
	if err := script(h, func() error { return nil }); err != nil && !h.off() {
		return false, err
	}
	h.faulty = false
	if _, err := h.fs.Cut(seed, h.image()); err != nil {
		return false, err
	}
	if err := h.end(); err != nil {
		return false, err
	}
	if err := h.next(fmt.Sprintf("change %d", at)); err != nil {
		return false, err
	}
	if again > 0 {
		up, err := h.start(func(fs *storagetest.CrashFS) { fs.CutAt(again, again%2 == 0, seed+1, h.image()) })
		if err != nil {
			return false, err
		}
		if more = h.off(); !more {
			if _, err := h.fs.Cut(seed+1, h.image()); err != nil {
				return false, err
			}
		}
		if up {
			if err := h.end(); err != nil {
				return false, err
			}
		}
		if err := h.next(fmt.Sprintf("change %d of the recovery", again)); err != nil {
			return false, err
		}
	}
	if _, err := h.start(nil); err != nil {
		return false, err
	}
	if err := h.check(); err != nil {
		return false, err
	}
	if u, err := h.commit(); err != nil || u.err != nil {
		return false, fmt.Errorf("append after recovery: %v %v", err, u)
	}
	return more || again == 0, h.end()
}
