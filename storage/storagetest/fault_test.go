package storagetest_test

import (
	"errors"
	"fmt"
	"path/filepath"
	"syscall"
	"testing"

	"tailrace/storage/storagetest"
)

// script is the same work each time: appends that roll segments, a topic, a start that
// moves, retention that cuts segments off the front, a clean reopen in the middle.
func script(h *history, each func() error) error { return scriptOf(h, shortScript, each) }

const shortScript = 60

func scriptOf(h *history, operations int, each func() error) error {
	for i := range operations {
		switch {
		case i%20 == 0 && i > 0:
			if p := h.part("a/0"); p != nil {
				to := p.HighWatermark()
				h.starts["a/0"] = max(h.starts["a/0"], to)
				if p.SetStart(to) == nil {
					h.sure["a/0"] = max(h.sure["a/0"], to)
				}
			}
			for _, b := range []string{"b/0", "b/1"} {
				if p := h.part(b); p != nil {
					to := p.HighWatermark()
					h.starts[b] = max(h.starts[b], to)
					if p.SetStart(to) == nil {
						h.sure[b] = max(h.sure[b], to)
					}
				}
			}
			_ = h.s.Retain()
		case i == 30:
			if err := h.createTopic("late", 1, "bulk"); err != nil {
				return err
			}
		default:
			if len(h.topics) < 3 {
				return nil
			}
			if _, err := h.commit(); err != nil {
				return err
			}
		}
		if err := each(); err != nil {
			return err
		}
	}
	return nil
}

// newScript makes the store with its topics on a sound disk.
func newScript(base string) (*history, error) {
	h := newHistory(7, base)
	if _, err := h.start(nil); err != nil {
		return nil, err
	}
	return h, h.work(0)
}

// The n-th call of a kind fails, for every n of a script, once or from then on, before or
// after it took effect. What is acknowledged survives the power cut that follows, nothing
// is acknowledged while fsync fails, and the store opens again.
func TestNoAckAfterAFailedCall(t *testing.T) {
	dir := scratch(t)
	kinds := []storagetest.Call{storagetest.Sync, storagetest.SyncDir, storagetest.Write, storagetest.Create,
		storagetest.Open, storagetest.Truncate, storagetest.Rename, storagetest.Remove, storagetest.Read, storagetest.ReadDir, storagetest.Stat, storagetest.Free}
	errs := []error{syscall.EIO, syscall.ENOSPC, syscall.EROFS}
	// How many calls there are.
	h, err := newScript(filepath.Join(dir, "count"))
	must(t, err)
	before := map[storagetest.Call]int64{}
	for _, k := range kinds {
		before[k] = h.fs.Calls(k)
	}
	must(t, script(h, func() error { return nil }))
	calls := map[storagetest.Call]int{}
	for _, k := range kinds {
		calls[k] = int(h.fs.Calls(k) - before[k])
	}
	must(t, h.check())
	must(t, h.end())
	h.fs.Close()
	t.Logf("calls of the script: %v", calls)
	if calls[storagetest.Sync] < 50 || calls[storagetest.SyncDir] < 3 {
		t.Fatalf("the script makes too few calls to prove anything: %v", calls)
	}

	runs, surfaced := 0, map[storagetest.Call]int{}
	for _, k := range kinds {
		for n := 1; n <= calls[k]; n++ {
			for mode := range 4 {
				if testing.Short() && (n+mode)%7 != 0 {
					continue
				}
				f := storagetest.Fault{Call: k, N: n, Err: errs[(n+mode)%len(errs)], Forever: mode&1 != 0, After: mode&2 != 0}
				base := filepath.Join(dir, fmt.Sprintf("%v-%d-%d", k, n, mode))
				fired, err := runFault(base, f)
				if err != nil {
					t.Errorf("%v call %d fails with %v, forever=%v after=%v: %v", k, n, f.Err, f.Forever, f.After, err)
					if t.Failed() && runs > 3000 {
						t.FailNow()
					}
				}
				runs++
				if fired > 0 {
					surfaced[k]++
				}
			}
		}
	}
	t.Logf("%d runs; the fault surfaced in %v", runs, surfaced)
	for k, n := range calls {
		if n > 0 && surfaced[k] == 0 && !testing.Short() { // the short form skips the rare kinds
			t.Errorf("no fault of kind %v ever surfaced", k)
		}
	}
}

func runFault(base string, f storagetest.Fault) (fired int, err error) {
	h, err := newScript(base)
	if err != nil {
		return 0, err
	}
	defer func() { h.fs.Close() }()
	h.faulty = true
	count := h.fs.Inject(f)
	acksAtFault, acks := -1, 0
	ackedNow := func() int {
		h.mu.Lock()
		defer h.mu.Unlock()
		n := 0
		for _, u := range h.subs {
			if u.acked {
				n++
			}
		}
		return n
	}
	err = script(h, func() error {
		acks = ackedNow()
		if acksAtFault < 0 && count() > 0 {
			acksAtFault = acks
		}
		return nil
	})
	if err != nil {
		return count(), err
	}
	if f.Forever && !f.After && f.Call == storagetest.Sync && acks != acksAtFault && acksAtFault >= 0 {
		return count(), fmt.Errorf("%d appends were acknowledged while every fsync failed", acks-acksAtFault)
	}
	fired = count()
	if _, err := h.fs.Cut(uint64(f.N)*31+uint64(f.Call), h.image()); err != nil {
		return fired, err
	}
	if err := h.end(); err != nil {
		return fired, err
	}
	if err := h.next(fmt.Sprintf("after fault %v %d", f.Call, f.N)); err != nil {
		return fired, err
	}
	h.faulty = false
	if _, err := h.start(nil); err != nil {
		return fired, err
	}
	if err := h.check(); err != nil {
		return fired, err
	}
	if u, err := h.commit(); err != nil || u.err != nil {
		return fired, errors.Join(err, u.err)
	}
	return fired, h.end()
}
