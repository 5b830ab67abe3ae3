package storage_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"tailrace/storage"
	"tailrace/storage/internal/durable"
	"tailrace/storage/storagetest"
)

// smallDisks runs f on a small tmpfs and on a small ext4 with a journal, each in a
// directory of its own. They need root; the ext4 a loop device.
func smallDisks(t *testing.T, f func(t *testing.T, dir string)) {
	t.Run("tmpfs", func(t *testing.T) {
		dir := t.TempDir()
		if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
			storagetest.CannotMount(t, "mounting a small tmpfs: %v", err)
		}
		t.Cleanup(func() { syscall.Unmount(dir, syscall.MNT_DETACH) })
		f(t, dir)
	})
	t.Run("ext4", func(t *testing.T) {
		base := t.TempDir()
		image, dir := filepath.Join(base, "image"), filepath.Join(base, "mnt")
		if err := errors.Join(os.Mkdir(dir, 0o700), os.WriteFile(image, nil, 0o600), os.Truncate(image, 3<<20)); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command("mkfs.ext4", "-q", "-b", "1024", "-J", "size=1", "-N", "200", "-m", "0", image).CombinedOutput(); err != nil {
			storagetest.CannotMount(t, "mkfs.ext4: %v: %s", err, out)
		}
		if out, err := exec.Command("mount", "-o", "loop", image, dir).CombinedOutput(); err != nil {
			storagetest.CannotMount(t, "mounting an image: %v: %s", err, out)
		}
		t.Cleanup(func() { exec.Command("umount", "-l", dir).Run() })
		f(t, dir)
	})
}

// fillUp takes every free byte of dir's file system, as another program may.
func fillUp(t *testing.T, dir string) (release func()) {
	t.Helper()
	name := filepath.Join(dir, "filler")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	for size := 64 << 10; size > 0; {
		n, err := f.Write(make([]byte, size))
		if err == nil {
			err = f.Sync()
		}
		if err != nil || n < size {
			size /= 2
		}
	}
	f.Close()
	return func() {
		if err := os.Remove(name); err != nil {
			t.Error(err)
		}
		if d, err := os.Open(dir); err == nil {
			d.Sync()
			d.Close()
		}
	}
}

// noAllocator hides what the operating system's file system can do besides FS.
type noAllocator struct{ storage.FS }

func small(fs storage.FS, when storage.FullPolicy) func(*storage.Config) {
	return func(c *storage.Config) {
		c.FS = fs
		c.Classes[0].SegmentBytes, c.Classes[0].WhenFull = 32<<10, when
	}
}

func try(t *testing.T, s *storage.Store, p *storage.Partition, i int) error {
	a := s.NewAppend(p.Topic().Config().Class)
	if err := a.Record(p, int64(i), nil, []byte(strings.Repeat(fmt.Sprint(i%10), 500)), nil); err != nil {
		t.Fatal(err)
	}
	return s.Commit(t.Context(), a)
}

// exact: what is readable and what is declared lost make up what was acknowledged.
func exact(t *testing.T, s *storage.Store, p *storage.Partition, acked int) {
	t.Helper()
	lost := int64(0)
	for _, l := range s.Losses() {
		if l.From != 0 || l.To != p.Start() {
			t.Errorf("declared [%d, %d), the log begins at %d", l.From, l.To, p.Start())
		}
		lost += l.To - l.From
	}
	if got := readAll(t, p, p.Start()); int64(len(got))+lost != int64(acked) {
		t.Errorf("%d acknowledged, %d readable, %d declared lost", acked, len(got), lost)
	}
}

// TestCompletelyFullDisk: another program takes the last byte. By drop-oldest the log
// goes on all the same, out of its reserve; without one it refuses, and goes on when
// there is room. A restart on the full disk works in both cases.
func TestCompletelyFullDisk(t *testing.T) {
	smallDisks(t, func(t *testing.T, dir string) {
		for name, fs := range map[string]storage.FS{"reserve": durable.OS{}, "none": noAllocator{durable.OS{}}} {
			sub := filepath.Join(dir, name)
			mod := small(fs, storage.DropOldest)
			s := open(t, sub, mod)
			p := topic(t, s, "wind", 1).Partition(0)
			acked := 0
			for ; acked < 300; acked++ {
				if err := try(t, s, p, acked); err != nil {
					t.Fatal(err)
				}
			}
			release := fillUp(t, dir)
			took, refused := 0, 0
			for i := range 600 {
				switch err := try(t, s, p, i); {
				case err == nil:
					acked, took = acked+1, took+1
				case errors.Is(err, storage.ErrFull):
					refused++
				default:
					t.Fatal(err)
				}
			}
			// What it gives up is space for itself, so it goes on for ever with its reserve.
			if name == "reserve" && took < 560 || name == "none" && refused == 0 {
				t.Errorf("%s: on a full disk %d taken, %d refused", name, took, refused)
			}
			exact(t, s, p, acked)
			s.Close()
			s = open(t, sub, mod)
			tp, _ := s.Topic("wind")
			p = tp.Partition(0)
			exact(t, s, p, acked)
			release()
			s.Retain()
			for i := range 100 {
				if err := try(t, s, p, i); err != nil {
					t.Fatalf("%s: there is room again: %v", name, err)
				}
				acked++
			}
			exact(t, s, p, acked)
			if st := s.Stats().Classes[0]; st.Full || name == "reserve" && st.Reserve == 0 {
				t.Errorf("%s: full %v, reserve %d", name, st.Full, st.Reserve)
			}
			s.Close()
			plainRead(t, sub)
			os.RemoveAll(sub)
			if d, err := os.Open(dir); err == nil {
				d.Sync()
				d.Close()
			}
		}
	})
}

// TestSegmentsGoWithoutSpace: what is below the start already goes from a disk without
// one free block, by removing whole files.
func TestSegmentsGoWithoutSpace(t *testing.T) {
	smallDisks(t, func(t *testing.T, dir string) {
		sub := filepath.Join(dir, "s")
		mod := small(noAllocator{durable.OS{}}, storage.Reject)
		s := open(t, sub, mod)
		p := topic(t, s, "wind", 1).Partition(0)
		step := func(n int) {
			for i := range n {
				if err := try(t, s, p, i); err != nil {
					t.Fatal(err)
				}
			}
		}
		step(200)
		if err := errors.Join(p.SetStart(200), s.Retain()); err != nil { // the topic's state is in front now
			t.Fatal(err)
		}
		step(400)
		if err := p.SetStart(600); err != nil {
			t.Fatal(err)
		}
		before := len(segments(t, sub))
		release := fillUp(t, dir)
		s.Retain() // may fail; what counts is what is gone
		if after := len(segments(t, sub)); before < 6 || after > 4 {
			t.Errorf("%d segments, were %d", after, before)
		}
		if err := try(t, s, p, 1); err != nil {
			t.Errorf("after segments went: %v", err)
		}
		release()
		want := content(t, s)
		s.Close()
		plainRead(t, sub)
		s = open(t, sub, mod)
		if got := content(t, s); fmt.Sprint(got) != fmt.Sprint(want) || len(s.Losses()) != 0 {
			t.Errorf("reopened: %v\nwant %v", got, want)
		}
	})
}

// TestWhoGivesUpFirst: under one budget for all classes the least important gives up
// first, a class never takes what is more important, and the budget holds.
func TestWhoGivesUpFirst(t *testing.T) {
	const budget = 128 << 10
	dir := filepath.Join(t.TempDir(), "s")
	mod := func(c *storage.Config) {
		c.FS, c.MaxBytes = &testFS{}, budget
		c.Classes = nil
		for i, name := range []string{"state", "bulk", "alarms"} {
			c.Classes = append(c.Classes, storage.ClassConfig{Name: name, SegmentBytes: 4096, WhenFull: storage.DropOldest, Priority: []int{5, 0, 9}[i]})
		}
	}
	s := open(t, dir, mod)
	parts := map[string]*storage.Partition{}
	for _, class := range []string{"state", "bulk", "alarms"} {
		tp, err := s.CreateTopic(class, storage.TopicConfig{Class: class})
		if err != nil {
			t.Fatal(err)
		}
		parts[class] = tp.Partition(0)
	}
	within := func() {
		t.Helper()
		sum := int64(0)
		for _, c := range s.Stats().Classes {
			sum += c.DiskBytes
		}
		if sum > budget {
			t.Fatalf("%d bytes on disk, the budget is %d", sum, budget)
		}
	}
	for i := range 20 {
		if err := try(t, s, parts["state"], i); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 300 {
		if err := try(t, s, parts["bulk"], i); err != nil {
			t.Fatal(err)
		}
		within()
	}
	if parts["bulk"].Start() == 0 || parts["state"].Start() != 0 {
		t.Fatalf("bulk begins at %d, state at %d", parts["bulk"].Start(), parts["state"].Start())
	}
	taken, alarms := 0, parts["alarms"]
	for ; alarms.Start() == 0; taken++ {
		if err := try(t, s, alarms, taken); err != nil || taken > 1000 {
			t.Fatal(taken, err)
		}
		within()
	}
	for _, class := range []string{"bulk", "state"} {
		if b := parts[class].Bytes(); b > 3*4096 {
			t.Errorf("alarms were given up while %s holds %d bytes", class, b)
		}
	}
	start := alarms.Start()
	for i := range 50 { // it gives up its own, or is refused
		if err := try(t, s, parts["state"], i); err != nil && !errors.Is(err, storage.ErrFull) {
			t.Fatal(err)
		}
		within()
	}
	a := s.NewAppend("state")
	a.Record(parts["state"], 1, nil, make([]byte, 40<<10), nil)
	if err := s.Commit(t.Context(), a); !errors.Is(err, storage.ErrFull) {
		t.Errorf("more than the lower classes can give: %v", err)
	}
	if s.Retain(); alarms.Start() != start {
		t.Errorf("a class of lower rank took: alarms begin at %d, were at %d", alarms.Start(), start)
	}
	alarms.Acked(int64(taken)) // what the hub has may go, whatever its rank
	for i := 0; alarms.Start() == start; i++ {
		if err := try(t, s, parts["state"], i); err != nil && !errors.Is(err, storage.ErrFull) || i > 1000 {
			t.Fatal("what the hub has of alarms does not go", err)
		}
		s.Retain() // runs behind what alarms was asked to give up
	}
	for _, l := range s.Losses() {
		if l.Topic == "alarms" && l.To != start {
			t.Errorf("declared lost although the hub has it: %+v", l)
		}
	}
	s.Close()
	open(t, dir, mod)
}
