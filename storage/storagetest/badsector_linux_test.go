//go:build !arm

package storagetest_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"tailrace/storage"
	"tailrace/storage/storagetest"
)

// A sector of a real ext4 cannot be read: in the middle of a sealed segment whose index is
// gone. The store starts, all but what lay there is read, that is declared, the old file with
// its good sectors stands in quarantine, and `tailrace check` describes it before.
func TestBadSectorUnderAMountedFileSystem(t *testing.T) {
	if testing.Short() {
		t.Skip("the short form mounts nothing")
	}
	if why := blockMissing(); why != nil {
		storagetest.CannotMount(t, "%v", why)
	}
	dir := scratch(t)
	g := makeGolden(t, filepath.Join(dir, "golden"), false)
	whole := g.files[g.target]
	mark := whole[32<<10 : 32<<10+512] // where on the disk it is
	var bad atomic.Pointer[[]byte]
	var at atomic.Int64
	at.Store(-1)
	data := make([]byte, 24<<20)
	file, off, err := storagetest.MountFuseDisk(filepath.Join(dir, "fuse"), data, &storagetest.FuseDisk{
		Read: func(o int64, n int) syscall.Errno {
			if b := at.Load(); b >= o && b < o+int64(n) {
				return syscall.EIO
			}
			return 0
		},
		Write: func(o int64, b []byte) syscall.Errno {
			if m := bad.Load(); m != nil {
				if i := bytes.Index(b, *m); i >= 0 {
					at.Store(o + int64(i))
					bad.Store(nil)
				}
			}
			return 0
		},
	})
	must(t, err)
	defer off()
	mnt := filepath.Join(dir, "mnt")
	must(t, os.Mkdir(mnt, 0o700))
	must(t, run("mkfs.ext4", "-q", "-F", "-E", "nodiscard", "-b", "4096", file))
	must(t, run("mount", "-o", "loop", file, mnt))
	defer func() { must(t, unmount(mnt)) }()
	b := newBench(g, filepath.Join(mnt, "store"))
	b.reason = storage.LossUnreadable
	bad.Store(&mark)
	at.Store(-1)
	must(t, b.restore(g.withoutSides(harm{files: map[string][]byte{}})))
	must(t, run("sync", "-f", mnt))
	if at.Load() < 0 {
		t.Fatal("the sector was not found")
	}
	must(t, os.WriteFile("/proc/sys/vm/drop_caches", []byte("1\n"), 0))
	if _, err := os.ReadFile(filepath.Join(b.dir, g.target)); !errors.Is(err, syscall.EIO) {
		t.Fatalf("the sector is read: %v", err)
	}
	in, err := storage.Inspect(b.dir, nil)
	if err != nil || !in.Lossy() || !strings.Contains(in.Problems[0].What, "refuses to read 4096 bytes") {
		t.Fatalf("check: %v %+v", err, in)
	}
	s, err := storage.Open(sweepConfig(b.dir))
	must(t, err)
	v, err := b.compare(s)
	must(t, s.Close())
	if err != nil || v.batches == 0 || v.cut {
		t.Errorf("%+v, %v", v, err)
	}
	kept, _ := filepath.Glob(filepath.Join(b.dir, "main", "quarantine", "*.unreadable.*"))
	if len(kept) != 1 {
		t.Fatalf("set aside: %v", kept)
	}
	f, err := os.Open(kept[0])
	must(t, err)
	defer f.Close()
	have := make([]byte, 32<<10)
	if _, err := f.ReadAt(have, 0); err != nil || !bytes.Equal(have, whole[:len(have)]) {
		t.Errorf("the good sectors of what was set aside: %v", err)
	}
	if _, err := f.ReadAt(have, 32<<10); !errors.Is(err, syscall.EIO) {
		t.Errorf("the bad sector was handed out again: %v", err)
	}
	if in, err = storage.Inspect(b.dir, nil); err != nil || in.Lossy() {
		t.Errorf("afterwards: %v %+v", err, in.Problems)
	}
}
