package storage_test

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"tailrace/storage"
	"tailrace/storage/storagetest"
)

// TestFullDiskNeverAcknowledges fills a file system of 600 KB: every append is
// either durable or refused as full, the log stays readable, and goes on when
// there is room.
func TestFullDiskNeverAcknowledges(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=600k"); err != nil {
		storagetest.CannotMount(t, "mounting a small tmpfs: %v", err)
	}
	defer syscall.Unmount(dir, syscall.MNT_DETACH)
	size := 600
	grow := func() {
		size += 600
		if err := syscall.Mount("tmpfs", dir, "tmpfs", syscall.MS_REMOUNT, fmt.Sprintf("size=%dk", size)); err != nil {
			t.Fatal(err)
		}
	}
	for _, minFree := range []int64{-1, 100 << 10} {
		sub := filepath.Join(dir, fmt.Sprint(minFree))
		mod := func(c *storage.Config) {
			c.Classes[0].SegmentBytes, c.Classes[0].MinFreeBytes = 64<<10, minFree
		}
		s := open(t, sub, mod)
		tp := topic(t, s, "wind", 1)
		p := tp.Partition(0)
		acked := 0
		full := 0
		for i := range 400 {
			a := s.NewAppend("")
			a.Record(p, int64(i), nil, []byte(strings.Repeat(fmt.Sprint(i%10), 2000)), nil)
			switch err := s.Commit(t.Context(), a); {
			case err == nil:
				if a.Base(0) != int64(acked) {
					t.Fatalf("offset %d, want %d", a.Base(0), acked)
				}
				acked++
			case errors.Is(err, storage.ErrFull):
				full++
			default:
				t.Fatal(err)
			}
		}
		if full == 0 || acked < 50 {
			t.Fatalf("%d acked, %d refused", acked, full)
		}
		if got := readAll(t, p, 0); len(got) != acked {
			t.Fatalf("%d readable, %d acked", len(got), acked)
		}
		s.Close()
		plainRead(t, sub)
		s = open(t, sub, mod)
		tp, _ = s.Topic("wind")
		p = tp.Partition(0)
		if got := readAll(t, p, 0); len(got) != acked {
			t.Fatalf("reopened: %d readable, %d acked", len(got), acked)
		}
		grow()
		put(t, s, p, 1, "room")
		s.Close()
	}
}
