//go:build !arm

// go-fuse does not build for 32-bit ARM; the recorder runs natively, the ARM runs are
// about our own code.

package storagetest_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"tailrace/storage"
	"tailrace/storage/internal/durable"
	"tailrace/storage/storagetest"
)

var blockImages = flag.Int("block-images", 30, "how many images of each file system are mounted after a power cut; 1000 is the long form")

// blockDisk records every write and every flush of a disk in order, and between them what the
// workload was told.
type blockDisk struct {
	size int64

	mu  sync.Mutex
	log []blockEvent
}

// blockEvent is a write (data is set), a flush, or a mark of the workload.
type blockEvent struct {
	at    int64
	data  []byte
	flush bool
	mark  *blockMark
}

// blockMark says that an append was acknowledged, or that a start was about to move.
type blockMark struct {
	n     uint64
	part  []int // of each record
	base  []int64
	start map[int]int64 // by partition: asked for
}

func (d *blockDisk) add(e blockEvent) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.log = append(d.log, e)
}

// run runs a program and gives its output with its failure.
func run(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}

// blockSystem is a file system under test.
type blockSystem struct {
	name    string
	size    int64
	mkfs    []string // the file comes last
	options string
}

var blockSystems = []blockSystem{
	{"ext4", 24 << 20, []string{"mkfs.ext4", "-q", "-F", "-E", "nodiscard"}, "loop"},
	{"xfs", 320 << 20, []string{"mkfs.xfs", "-q", "-f", "-K"}, "loop,nouuid"},
}

// Power is cut under a mounted file system. A store works on a real ext4 (and XFS where it
// can be made), on a loop device over a file in user space that records every write and
// flush together with the acknowledgements. An image is what the disk may hold at one
// instant: all writes before the last flush, and of those since a prefix, any subset, or
// torn pieces of 512 bytes. Each image is mounted, the store opened, and what had been
// acknowledged at that instant must be there. The control, a store whose fsync does
// nothing, must be found out.
//
// It needs root, /dev/fuse, loop devices and mkfs. Where they are missing it fails, unless
// TAILRACE_NO_FUSE=1 says that they may be.
func TestPowerCutUnderAMountedFileSystem(t *testing.T) {
	if os.Getenv("STORAGETEST_BLOCK") == "" {
		if testing.Short() {
			t.Skip("the short form mounts nothing")
		}
		if why := blockMissing(); why != nil {
			if os.Getenv("TAILRACE_NO_FUSE") == "1" {
				t.Skipf("NOT TESTED (TAILRACE_NO_FUSE=1): %v", why)
			}
			t.Fatalf("the block recorder cannot run here: %v\nIt needs root, /dev/fuse, loop devices and mkfs.ext4. To go without this test set TAILRACE_NO_FUSE=1.", why)
		}
		// In a child with mounts of its own: when it ends, however it ends, its mounts go and
		// with them the loop devices.
		ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute+time.Duration(*blockImages)*2*time.Second)
		defer cancel()
		child := exec.CommandContext(ctx, os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=60m",
			fmt.Sprintf("-block-images=%d", *blockImages))
		child.Env = append(os.Environ(), "STORAGETEST_BLOCK=1")
		child.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
		child.WaitDelay = 10 * time.Second
		out, err := child.CombinedOutput()
		t.Logf("%s", out)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(out, []byte("--- SKIP")) { // nobody else sees what a child skips
			t.Skip("NOT TESTED: a part of it, see above")
		}
		return
	}
	for _, sys := range blockSystems {
		t.Run(sys.name, func(t *testing.T) {
			if _, err := exec.LookPath(sys.mkfs[0]); err != nil && sys.name != "ext4" {
				t.Skipf("NOT TESTED: %v", err)
			}
			runBlocks(t, sys)
		})
	}
}

// blockMissing says what the recorder lacks.
func blockMissing() error {
	if os.Getuid() != 0 {
		return errors.New("not root")
	}
	for _, dev := range []string{"/dev/fuse", "/dev/loop-control"} {
		f, err := os.OpenFile(dev, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		f.Close()
	}
	for _, tool := range []string{"mkfs.ext4", "mount", "umount"} {
		if _, err := exec.LookPath(tool); err != nil {
			return err
		}
	}
	return nil
}

func runBlocks(t *testing.T, sys blockSystem) {
	dir := scratch(t)
	start := time.Now()
	rot := storagetest.Rotation()
	d := recordBlocks(t, sys, filepath.Join(dir, "honest"), nil, func() {})
	writes, flushes, acks := 0, 0, 0
	first := -1 // acknowledgement
	for i, e := range d.log {
		switch {
		case e.mark != nil && e.mark.n > 0:
			if acks++; first < 0 {
				first = i
			}
		case e.flush:
			flushes++
		case e.data != nil:
			writes++
		}
	}
	t.Logf("%s: %d writes, %d flushes, %d acknowledgements recorded", sys.name, writes, flushes, acks)
	if acks < 50 || flushes < acks/8 {
		t.Fatalf("the workload does too little to prove anything")
	}
	r := rand.New(rand.NewPCG(rot, 12))
	for i := range *blockImages {
		at := first + r.IntN(len(d.log)-first)
		if i%2 == 0 { // just before a flush the most is open
			for at < len(d.log)-1 && !d.log[at].flush {
				at++
			}
		}
		mode := i % 3
		seed := r.Uint64()
		if err := checkBlocks(d, sys, filepath.Join(dir, "image"), at, mode, seed); err != nil {
			t.Fatalf("%s, image %d of rotation %d (event %d of %d, mode %d): %v", sys.name, i, rot, at, len(d.log), mode, err)
		}
	}
	t.Logf("%s: %d images in %v", sys.name, *blockImages, time.Since(start).Round(time.Millisecond))

	// The control lies once its topic is there.
	var lying atomic.Bool
	lie := recordBlocks(t, sys, filepath.Join(dir, "lying"), lyingFS{durable.OS{}, &lying}, func() { lying.Store(true) })
	var found error
	for i := 0; i < 5 && found == nil; i++ {
		last := len(lie.log) - 1
		for lie.log[last].mark == nil {
			last--
		}
		found = checkBlocks(lie, sys, filepath.Join(dir, "image"), last-i*10, i%3, uint64(i))
	}
	if found == nil {
		t.Errorf("%s: a store that never calls fsync went unnoticed", sys.name)
	} else {
		t.Logf("%s: a store that never calls fsync is found out: %.200v", sys.name, found)
	}
}

// recordBlocks makes a file system on a recording disk and lets a store work on it.
func recordBlocks(t *testing.T, sys blockSystem, dir string, fsys storage.FS, begun func()) *blockDisk {
	t.Helper()
	d := &blockDisk{size: sys.size}
	mnt := filepath.Join(dir, "mnt")
	must(t, os.MkdirAll(mnt, 0o700))
	file, off, err := storagetest.MountFuseDisk(filepath.Join(dir, "fuse"), make([]byte, sys.size), &storagetest.FuseDisk{
		Write: func(at int64, b []byte) syscall.Errno {
			d.add(blockEvent{at: at, data: bytes.Clone(b)})
			return 0
		},
		Flush: func() { d.add(blockEvent{flush: true}) },
	})
	must(t, err)
	defer func() {
		if err := off(); err != nil {
			t.Errorf("unmount the recorder: %v", err)
		}
	}()
	must(t, run(sys.mkfs[0], append(sys.mkfs[1:], file)...))
	must(t, run("mount", "-t", sys.name, "-o", sys.options, file, mnt))
	defer func() { must(t, unmount(mnt)) }()
	must(t, blockWork(d, filepath.Join(mnt, "store"), fsys, begun))
	return d
}

// unmount ends a mount, and the loop device with it.
func unmount(mnt string) (err error) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for range 300 { // half a minute
		if err = run("umount", mnt); err == nil {
			return nil
		}
		<-tick.C // somebody still looks at it
	}
	return errors.Join(err, run("umount", "-l", mnt))
}

func blockConfig(dir string, fsys storage.FS) storage.Config {
	return storage.Config{Dir: dir, FS: fsys, NodeID: "n1", RetentionInterval: -1, Now: wild(),
		Classes: []storage.ClassConfig{{Name: "main", SegmentBytes: 8 << 10, MinFreeBytes: 1, Pack: storagetest.Rotation()%2 == 1}}}
}

// blockWork appends from several goroutines, rolls segments and cuts the log's front off.
// It calls begun when the store and its topic are there.
func blockWork(d *blockDisk, dir string, fsys storage.FS, begun func()) error {
	s, err := storage.Open(blockConfig(dir, fsys))
	if err != nil {
		return err
	}
	tp, err := s.CreateTopic("a", storage.TopicConfig{Partitions: 2})
	if err != nil {
		return errors.Join(err, s.Close())
	}
	begun()
	r := rand.New(rand.NewPCG(1, 1))
	n := uint64(0)
	for round := range 60 {
		var wg sync.WaitGroup
		var failed error
		var mu sync.Mutex
		for range 1 + r.IntN(4) {
			n++
			m := &blockMark{n: n}
			a := s.NewAppend("")
			for i := range 1 + r.IntN(4) {
				part := r.IntN(2)
				m.part = append(m.part, part)
				if err := a.Record(tp.Partition(part), stamp(n), nil, value(n, i), nil); err != nil {
					return err
				}
			}
			a.Set(storage.KindMeta, "last", binary.BigEndian.AppendUint64(nil, n))
			wg.Add(1)
			s.Submit(a, func(a *storage.Append, err error) {
				defer wg.Done()
				if err != nil {
					mu.Lock()
					failed = err
					mu.Unlock()
					return
				}
				for i := range m.part {
					m.base = append(m.base, a.Base(i))
				}
				d.add(blockEvent{mark: m})
			})
		}
		wg.Wait()
		if failed != nil {
			return errors.Join(failed, s.Close())
		}
		if round%15 == 14 {
			to := map[int]int64{}
			for i, p := range tp.Partitions() {
				to[i] = p.HighWatermark() - 5
			}
			d.add(blockEvent{mark: &blockMark{start: to}})
			for i, p := range tp.Partitions() {
				if err := p.SetStart(max(to[i], p.Start())); err != nil {
					return errors.Join(err, s.Close())
				}
			}
			if err := s.Retain(); err != nil {
				return errors.Join(err, s.Close())
			}
		}
	}
	return s.Close()
}

// checkBlocks makes the image of a power cut at one event, mounts it and looks.
func checkBlocks(d *blockDisk, sys blockSystem, dir string, at, mode int, seed uint64) (err error) {
	mnt, image := filepath.Join(dir, "mnt"), filepath.Join(dir, "disk")
	if err := os.MkdirAll(mnt, 0o700); err != nil {
		return err
	}
	defer func() {
		if e := os.RemoveAll(dir); err == nil {
			err = e
		}
	}()
	f, err := os.Create(image)
	if err != nil {
		return err
	}
	err = f.Truncate(d.size)
	r := rand.New(rand.NewPCG(seed, 3))
	open := 0 // the first write that no flush follows
	for i, e := range d.log[:at+1] {
		if e.flush {
			open = i
		}
	}
	prefix := open + r.IntN(at+2-open)
	for i, e := range d.log[:at+1] {
		if e.data == nil || err != nil {
			continue
		}
		switch {
		case i <= open || mode == 0 && i < prefix || mode == 1 && r.IntN(2) == 0:
			_, err = f.WriteAt(e.data, e.at)
		case mode == 2:
			for p := 0; p < len(e.data) && err == nil; p += 512 {
				if r.IntN(2) == 0 {
					_, err = f.WriteAt(e.data[p:min(p+512, len(e.data))], e.at+int64(p))
				}
			}
		}
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := run("mount", "-t", sys.name, "-o", sys.options, image, mnt); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unmount(mnt)) }()
	s, err := storage.Open(blockConfig(filepath.Join(mnt, "store"), nil))
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	return compareBlocks(d.log[:at+1], s)
}

// compareBlocks looks for what had been acknowledged.
func compareBlocks(log []blockEvent, s *storage.Store) error {
	tp, ok := s.Topic("a")
	if !ok {
		return errors.New("the topic is gone")
	}
	there := [2]map[int64]found{{}, {}}
	for i, p := range tp.Partitions() {
		recs, err := readAll(p)
		if err != nil {
			return fmt.Errorf("partition %d: %w", i, err)
		}
		for _, f := range recs {
			there[i][f.off] = f
		}
	}
	asked := [2]int64{}
	acked, last := 0, uint64(0)
	for _, e := range log {
		if m := e.mark; m == nil {
			continue
		} else if m.start != nil {
			for i, to := range m.start {
				asked[i] = max(asked[i], to)
			}
		}
	}
	for _, e := range log {
		m := e.mark
		if m == nil || m.n == 0 {
			continue
		}
		acked++
		last = max(last, m.n)
		for i, part := range m.part {
			switch f, ok := there[part][m.base[i]]; {
			case !ok && m.base[i] < asked[part]:
			case !ok:
				return fmt.Errorf("append %d record %d was acknowledged at partition %d offset %d and is lost (%d were acknowledged)", m.n, i, part, m.base[i], acked)
			case f.n != m.n || f.i != i:
				return fmt.Errorf("partition %d offset %d was acknowledged as append %d record %d, it holds append %d record %d", part, m.base[i], m.n, i, f.n, f.i)
			}
		}
	}
	b, _ := s.State(storage.KindMeta, "last")
	if len(b) != 8 && last > 0 || len(b) == 8 && binary.BigEndian.Uint64(b) < last {
		return fmt.Errorf("the state names %x as the last append, %d was acknowledged with its records", b, last)
	}
	return nil
}

// lyingFS says that it has flushed and has not.
type lyingFS struct {
	storage.FS
	on *atomic.Bool
}

type lyingFile struct {
	storage.File
	on *atomic.Bool
}

func (l lyingFS) OpenFile(name string, flag int, perm fs.FileMode) (storage.File, error) {
	f, err := l.FS.OpenFile(name, flag, perm)
	if err != nil {
		return nil, err
	}
	return lyingFile{f, l.on}, nil
}

func (l lyingFS) SyncDir(dir string) error {
	if l.on.Load() {
		return nil
	}
	return l.FS.SyncDir(dir)
}

func (l lyingFile) Sync() error {
	if l.on.Load() {
		return nil
	}
	return l.File.Sync()
}
