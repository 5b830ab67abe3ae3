package storagetest_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/tidwall/wal"

	"tailrace/storage/storagetest"
)

// scratch is a directory in memory where there is one: thousands of small files.
func scratch(t testing.TB) string {
	t.Helper()
	base := os.TempDir()
	if fi, err := os.Stat("/dev/shm"); err == nil && fi.IsDir() && os.Getenv("TMPDIR") == "" {
		base = "/dev/shm"
	}
	dir, err := os.MkdirTemp(base, "storagetest-*")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func newFS(t testing.TB, dir string) *storagetest.CrashFS {
	t.Helper()
	c, err := storagetest.NewCrashFS(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// images calls check with the state after each of 300 power cuts.
func images(t *testing.T, c *storagetest.CrashFS, base string, check func(dir, note string)) {
	t.Helper()
	for seed := range uint64(300) {
		dst := filepath.Join(base, fmt.Sprintf("image-%d", seed))
		note, err := c.Image(seed, dst)
		must(t, err)
		check(dst, fmt.Sprintf("seed %d: %s", seed, note))
		must(t, os.RemoveAll(dst))
	}
}

func TestSyncedBytesSurviveAndUnsyncedBytesTear(t *testing.T) {
	base := scratch(t)
	c := newFS(t, filepath.Join(base, "live"))
	name := filepath.Join(c.Dir(), "a")
	f, err := c.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o600)
	must(t, err)
	sure := bytes.Repeat([]byte("durable!"), 100)
	tail := bytes.Repeat([]byte("hopeful."), 200)
	_, err = f.Write(sure)
	must(t, err)
	must(t, f.Sync())
	must(t, c.SyncDir(c.Dir()))
	_, err = f.Write(tail)
	must(t, err)
	seen := map[string]int{}
	images(t, c, base, func(dir, note string) {
		b, err := os.ReadFile(filepath.Join(dir, "a"))
		if err != nil || !bytes.HasPrefix(b, sure) {
			t.Fatalf("%s: fsynced bytes are not there: %v", note, err)
		}
		rest := b[len(sure):]
		switch {
		case len(rest) == 0:
			seen["lost"]++
		case bytes.Equal(rest, tail):
			seen["kept"]++
		case bytes.HasPrefix(tail, rest):
			seen["cut"]++
		case bytes.HasSuffix(rest, make([]byte, 8)):
			seen["zeros"]++
		default:
			seen["damaged"]++
		}
	})
	for _, k := range []string{"lost", "kept", "cut", "zeros", "damaged"} {
		if seen[k] < 5 {
			t.Errorf("300 power cuts left the state %q only %d times: %v", k, seen[k], seen)
		}
	}
}

func TestUnsyncedDirectoryEntriesAreLost(t *testing.T) {
	base := scratch(t)
	c := newFS(t, filepath.Join(base, "live"))
	write := func(name string) {
		f, err := c.OpenFile(filepath.Join(c.Dir(), name), os.O_CREATE|os.O_WRONLY, 0o600)
		must(t, err)
		_, err = f.Write([]byte(name))
		must(t, err)
		must(t, f.Sync())
		must(t, f.Close())
	}
	write("old")
	must(t, c.SyncDir(c.Dir()))
	write("new.tmp")
	must(t, c.Rename(filepath.Join(c.Dir(), "new.tmp"), filepath.Join(c.Dir(), "old")))
	write("other")
	seen := map[string]int{}
	images(t, c, base, func(dir, note string) {
		b, err := os.ReadFile(filepath.Join(dir, "old"))
		if err != nil {
			t.Fatalf("%s: a rename over a durable name left neither: %v", note, err)
		}
		seen["old="+string(b)]++
		if _, err := os.Stat(filepath.Join(dir, "other")); err != nil {
			seen["other lost"]++
		}
		if _, err := os.Stat(filepath.Join(dir, "new.tmp")); err == nil {
			seen["new.tmp left"]++
		}
	})
	for _, k := range []string{"old=old", "old=new.tmp", "other lost", "new.tmp left"} {
		if seen[k] < 5 {
			t.Errorf("300 power cuts left %q only %d times: %v", k, seen[k], seen)
		}
	}
	must(t, c.SyncDir(c.Dir()))
	images(t, c, base, func(dir, note string) {
		b, _ := os.ReadFile(filepath.Join(dir, "old"))
		o, _ := os.ReadFile(filepath.Join(dir, "other"))
		if string(b) != "new.tmp" || string(o) != "other" {
			t.Fatalf("%s: entries of an fsynced directory changed: old=%q other=%q", note, b, o)
		}
	})
}

func TestCutInPlaceKeepsDurableBytesUntilSync(t *testing.T) {
	base := scratch(t)
	c := newFS(t, filepath.Join(base, "live"))
	f, err := c.OpenFile(filepath.Join(c.Dir(), "a"), os.O_CREATE|os.O_RDWR, 0o600)
	must(t, err)
	sure := bytes.Repeat([]byte{7}, 3000)
	_, err = f.Write(sure)
	must(t, err)
	must(t, f.Sync())
	must(t, c.SyncDir(c.Dir()))
	must(t, f.Truncate(1000))
	back := 0
	images(t, c, base, func(dir, note string) {
		b, err := os.ReadFile(filepath.Join(dir, "a"))
		must(t, err)
		if !bytes.Equal(b[:1000], sure[:1000]) {
			t.Fatalf("%s: bytes below the cut changed", note)
		}
		if len(b) == 3000 {
			back++
		}
	})
	if back == 0 {
		t.Error("a truncation that was not fsynced never came undone")
	}
	must(t, f.Sync())
	images(t, c, base, func(dir, note string) {
		if fi, err := os.Stat(filepath.Join(dir, "a")); err != nil || fi.Size() != 1000 {
			t.Fatalf("%s: an fsynced truncation came undone", note)
		}
	})
}

// The library's own calls: durable is only what an fsync of ours covered or the library
// certainly fsynced itself.
func TestLibraryFilesCountAsDurableOnlyWhenSynced(t *testing.T) {
	base := scratch(t)
	c := newFS(t, filepath.Join(base, "live"))
	l, err := wal.Open(c.Dir(), &wal.Options{NoSync: true, SegmentSize: 4096, AllowEmpty: true})
	must(t, err)
	defer l.Close()
	entry := func(i uint64) []byte { return bytes.Repeat([]byte{byte(i), 0xab}, 150) }
	sync := func() {
		segs, err := filepath.Glob(filepath.Join(c.Dir(), "0*"))
		must(t, err)
		f, err := c.OpenFile(segs[len(segs)-1], os.O_RDONLY, 0)
		must(t, err)
		must(t, f.Sync())
		must(t, f.Close())
	}
	for i := uint64(1); i <= 60; i++ {
		must(t, l.Write(i, entry(i)))
		if i == 50 {
			must(t, c.SyncDir(c.Dir()))
			sync()
		}
	}
	lost := 0
	images(t, c, base, func(dir, note string) {
		got := readSegments(t, dir, note)
		for i := uint64(1); i <= 50; i++ {
			if !bytes.Equal(got[i], entry(i)) {
				t.Fatalf("%s: entry %d was fsynced and is not there", note, i)
			}
		}
		if got[60] == nil {
			lost++
		}
	})
	if lost < 100 {
		t.Errorf("entry 60 was never fsynced and was lost only %d times of 300", lost)
	}

	// A truncation at the front that nothing made durable: old segments may come back, the
	// cut may be seen half done, and what was durable is in one place or the other.
	must(t, c.SyncDir(c.Dir()))
	sync()
	must(t, l.TruncateFront(26))
	states := map[string]int{}
	images(t, c, base, func(dir, note string) {
		if strings.Contains(note, `" lost`) {
			return // any subset: the names may contradict each other, which recovery has to live with
		}
		got := readSegments(t, dir, note)
		for i := uint64(26); i <= 60; i++ {
			if !bytes.Equal(got[i], entry(i)) {
				t.Fatalf("%s: entry %d was durable and is not there", note, i)
			}
		}
		for _, suffix := range []string{".START", ".TEMP"} {
			if m, _ := filepath.Glob(filepath.Join(dir, "*"+suffix)); len(m) > 0 {
				states[suffix]++
			}
		}
		if got[1] != nil {
			states["old segments"]++
		} else {
			states["cut"]++
		}
	})
	for _, k := range []string{".START", ".TEMP", "old segments", "cut"} {
		if states[k] < 3 {
			t.Errorf("300 power cuts left the state %q only %d times: %v", k, states[k], states)
		}
	}
}

// readSegments returns the entries of a directory of tidwall/wal up to the first damage of
// each segment.
func readSegments(t *testing.T, dir, note string) map[uint64][]byte {
	t.Helper()
	segs, err := filepath.Glob(filepath.Join(dir, "0*"))
	must(t, err)
	got := map[uint64][]byte{}
	for _, s := range segs {
		if strings.HasSuffix(s, ".TEMP") {
			continue
		}
		b, err := os.ReadFile(s)
		must(t, err)
		var i uint64
		if _, err := fmt.Sscanf(filepath.Base(s), "%020d", &i); err != nil {
			t.Fatalf("%s: %s: %v", note, s, err)
		}
		for len(b) > 302 && b[0] == 0xac && b[1] == 0x02 {
			got[i] = b[2:302]
			b, i = b[302:], i+1
		}
		if len(b) == 302 {
			got[i] = b[2:]
		}
	}
	return got
}

func TestFaultsFireOnceOrFromThenOnAndAreCounted(t *testing.T) {
	c := newFS(t, filepath.Join(scratch(t), "live"))
	f, err := c.OpenFile(filepath.Join(c.Dir(), "a"), os.O_CREATE|os.O_RDWR, 0o600)
	must(t, err)
	once := c.Inject(storagetest.Fault{Call: storagetest.Sync, N: 2, Err: syscall.EIO})
	for i, want := range []bool{false, true, false} {
		if err := f.Sync(); errors.Is(err, syscall.EIO) != want {
			t.Errorf("sync %d: %v", i+1, err)
		}
	}
	if once() != 1 {
		t.Errorf("fault fired %d times", once())
	}
	c.Heal()
	always := c.Inject(storagetest.Fault{Call: storagetest.Write, N: 2, Err: syscall.ENOSPC, Forever: true, Short: 3})
	for i, want := range []int{5, 3, 3} {
		n, err := f.Write([]byte("12345"))
		if n != want || (want == 3) != errors.Is(err, syscall.ENOSPC) {
			t.Errorf("write %d: %d, %v", i+1, n, err)
		}
	}
	if always() != 2 {
		t.Errorf("fault fired %d times", always())
	}
}

func TestAfterPowerCutEveryCallFails(t *testing.T) {
	base := scratch(t)
	c := newFS(t, filepath.Join(base, "live"))
	name := filepath.Join(c.Dir(), "a")
	f, err := c.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o600)
	must(t, err)
	must(t, c.SyncDir(c.Dir()))
	_, err = f.Write([]byte("x"))
	must(t, err)
	c.CutAt(1, true, 1, filepath.Join(base, "image"))
	if err := f.Sync(); !errors.Is(err, storagetest.ErrPowerCut) {
		t.Fatalf("the cut call reported %v", err)
	}
	if b, err := os.ReadFile(filepath.Join(base, "image", "a")); err != nil || string(b) != "x" {
		t.Fatalf("cut after the fsync: %q, %v", b, err)
	}
	_, werr := f.Write([]byte("y"))
	_, serr := c.Stat(name)
	for _, err := range []error{werr, serr, f.Sync(), c.SyncDir(c.Dir()), c.Rename(name, name+"2"), c.Remove(name)} {
		if !errors.Is(err, storagetest.ErrPowerCut) {
			t.Errorf("a call after the power cut returned %v", err)
		}
	}
}

// Linux marks pages clean after a failed fsync: a retry reports success and the bytes may
// be gone all the same.
func TestFailedSyncGivesBytesUpAndARetryDoesNotBringThemBack(t *testing.T) {
	base := scratch(t)
	c := newFS(t, filepath.Join(base, "live"))
	f, err := c.OpenFile(filepath.Join(c.Dir(), "a"), os.O_CREATE|os.O_RDWR, 0o600)
	must(t, err)
	must(t, c.SyncDir(c.Dir()))
	_, err = f.Write([]byte("once"))
	must(t, err)
	c.Inject(storagetest.Fault{Call: storagetest.Sync, Err: syscall.EIO})
	if err := f.Sync(); !errors.Is(err, syscall.EIO) {
		t.Fatal(err)
	}
	must(t, f.Sync())
	gone := 0
	images(t, c, base, func(dir, note string) {
		if b, _ := os.ReadFile(filepath.Join(dir, "a")); string(b) != "once" {
			gone++
		}
	})
	if gone < 100 {
		t.Errorf("the bytes of a failed fsync were gone after %d of 300 power cuts", gone)
	}
}

// The laboratory's bad sectors: only their pages are refused, as often as asked for, wherever
// the file goes, and what is written anew can be read.
func TestUnreadablePagesOfALab(t *testing.T) {
	c := newFS(t, filepath.Join(scratch(t), "disk"))
	name := filepath.Join(c.Dir(), "f")
	f, err := c.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	must(t, err)
	defer f.Close()
	if _, err := f.Write(bytes.Repeat([]byte("x"), 3*4096)); err != nil {
		t.Fatal(err)
	}
	must(t, c.Unreadable(name, 5000, 5001, 2))
	must(t, c.Rename(name, name+"2"))
	b := make([]byte, 3*4096)
	for _, want := range []struct {
		at, n int
		err   error
	}{{0, 4096, syscall.EIO}, {4096, 0, syscall.EIO}, {8192, 4096, nil}, {8191, 0, syscall.EIO}, {0, 3 * 4096, nil}} {
		if n, err := f.ReadAt(b[:min(len(b), len(b)-want.at)], int64(want.at)); n != want.n || !errors.Is(err, want.err) {
			t.Errorf("at %d: %d, %v; want %d, %v", want.at, n, err, want.n, want.err)
		}
	}
	must(t, c.Unreadable(name+"2", 0, 1, -1))
	if _, err := f.ReadAt(b[:1], 0); !errors.Is(err, syscall.EIO) {
		t.Errorf("a bad sector is read: %v", err)
	}
	g, err := c.OpenFile(name+"2", os.O_WRONLY, 0)
	must(t, err)
	defer g.Close()
	if _, err := g.Write(b[:4096]); err != nil {
		t.Fatal(err)
	}
	if n, err := f.ReadAt(b[:1], 0); n != 1 || err != nil {
		t.Errorf("after it was written: %d, %v", n, err)
	}
}
