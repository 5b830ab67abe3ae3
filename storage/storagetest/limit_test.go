//go:build linux

package storagetest_test

import (
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"
)

// limitFiles makes every write beyond so many bytes of a file fail, also those that
// tidwall/wal makes itself: the write that crosses the limit is a short one, the next is
// refused. It returns what lifts the limit.
func limitFiles(t *testing.T, bytes uint64) (lift func()) {
	t.Helper()
	signal.Ignore(syscall.SIGXFSZ)
	var was syscall.Rlimit
	must(t, syscall.Getrlimit(syscall.RLIMIT_FSIZE, &was))
	must(t, syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: bytes, Max: was.Max}))
	return func() { must(t, syscall.Setrlimit(syscall.RLIMIT_FSIZE, &was)) }
}

// The library's own write of a segment comes short at every possible place and then fails.
// The append is not acknowledged, nothing that was is lost, and when writes work again so
// does the store.
func TestShortWriteOfASegmentAcksNothing(t *testing.T) {
	if os.Getenv("STORAGETEST_LIMIT") == "" { // the limit would also meet the test runner's own files
		args := []string{"-test.run=^" + t.Name() + "$", "-test.v", "-test.timeout=2m"}
		if testing.Short() {
			args = append(args, "-test.short")
		}
		child := exec.Command(os.Args[0], args...)
		child.Env = append(os.Environ(), "STORAGETEST_LIMIT=1")
		out, err := child.CombinedOutput()
		t.Logf("%s", out)
		if err != nil {
			t.Fatal(err)
		}
		return
	}
	dir := scratch(t)
	runs, failed := 0, 0
	step := uint64(61)
	if testing.Short() {
		step = 509
	}
	for limit := uint64(150); limit < 4500; limit += step {
		base := filepath.Join(dir, fmt.Sprint(limit))
		n, err := runShortWrites(t, base, limit)
		if err != nil {
			t.Fatalf("files limited to %d bytes: %v", limit, err)
		}
		runs++
		if n > 0 {
			failed++
		}
	}
	t.Logf("%d limits, in %d of them appends failed", runs, failed)
	if failed < runs/2 {
		t.Errorf("the limit hardly ever made an append fail")
	}
}

func runShortWrites(t *testing.T, base string, limit uint64) (failed int, err error) {
	h, err := newScript(base)
	if err != nil {
		return 0, err
	}
	defer func() { h.fs.Close() }()
	h.faulty = true
	for range 5 {
		if _, err := h.commit(); err != nil {
			return 0, err
		}
	}
	lift := limitFiles(t, limit)
	for range 20 {
		u, err := h.commit()
		if err != nil {
			lift()
			return 0, err
		}
		if u.err != nil {
			failed++
		}
	}
	lift()
	for range 3 { // the store may want to wait before it tries again
		if _, err := h.commit(); err != nil {
			return failed, err
		}
	}
	if err := h.check(); err != nil {
		return failed, err
	}
	if err := h.end(); err != nil {
		return failed, err
	}
	// A clean start from the same disk.
	if err := h.fs.Close(); err != nil {
		return failed, err
	}
	h.faulty = false
	if _, err := h.start(nil); err != nil {
		return failed, err
	}
	if err := h.check(); err != nil {
		return failed, err
	}
	if u, err := h.commit(); err != nil || u.err != nil {
		return failed, fmt.Errorf("append after the limit was lifted: %v %v", err, u.err)
	}
	if err := h.check(); err != nil {
		return failed, err
	}
	return failed, h.checkOracle()
}
