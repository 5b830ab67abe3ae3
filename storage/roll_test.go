package storage_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"tailrace/storage"
)

// smallFS has room for so many bytes in all.
type smallFS struct {
	storage.FS
	dir  string
	room atomic.Int64
}

func (f *smallFS) Free(string) (int64, error) {
	used := int64(0)
	filepath.WalkDir(f.dir, func(_ string, e os.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			if fi, err := e.Info(); err == nil {
				used += fi.Size()
			}
		}
		return nil
	})
	return max(f.room.Load()-used, 0), nil
}

// TestDropOldestGivesUpItsTail: others take the disk until the class has room for less
// than two segments. It goes on all the same: what it holds, its newest segment among it,
// is given up and declared, and the log is whole after a restart. A class that refuses
// keeps what it has.
func TestDropOldestGivesUpItsTail(t *testing.T) {
	for _, when := range []storage.FullPolicy{storage.DropOldest, storage.Reject} {
		t.Run(when.String(), func(t *testing.T) {
			dir := quickDir(t)
			fs := &smallFS{FS: &testFS{}, dir: dir} // gives no blocks beforehand
			fs.room.Store(4 << 20)
			mod := func(c *storage.Config) {
				c.FS = fs
				c.Classes[0].SegmentBytes, c.Classes[0].MinFreeBytes, c.Classes[0].WhenFull = 256<<10, 64<<10, when
			}
			s := open(t, dir, mod)
			p := topic(t, s, "wind", 1).Partition(0)
			acked := 0
			for range 40 { // some 24 KiB: one segment, not full
				if err := try(t, s, p, acked); err != nil {
					t.Fatal(err)
				}
				acked++
			}
			if n := len(segments(t, dir)); n != 1 {
				t.Fatalf("%d segments", n)
			}
			fs.room.Store(64<<10 + 100<<10) // and not a byte more
			const rounds = 200
			refused, group := 0, 0
			for range rounds {
				done := make(chan error, 3)
				for range 3 { // some share a commit: room is made for all of them
					a := s.NewAppend("")
					a.Record(p, 1, nil, []byte(strings.Repeat("x", 500)), nil)
					s.Submit(a, func(_ *storage.Append, err error) { done <- err })
				}
				for range 3 {
					switch err := <-done; {
					case err == nil:
						acked++
						group++
					case errors.Is(err, storage.ErrFull):
						refused++
					default:
						t.Fatal(err)
					}
				}
			}
			if when == storage.Reject { // free space is asked for every 64 KiB
				if group > 240 || p.Start() != 0 || refused < 3*rounds-240 {
					t.Errorf("%d taken, %d refused, the log begins at %d", group, refused, p.Start())
				}
			} else if refused > 0 || p.Start() == 0 {
				t.Errorf("%d of %d refused, the log begins at %d", refused, 3*rounds, p.Start())
			}
			exact(t, s, p, acked)
			s.Close()
			plainRead(t, dir)
			s = open(t, dir, mod)
			if r := repairs(s); r != "" {
				t.Errorf("repairs: %s", r)
			}
			tp, _ := s.Topic("wind")
			exact(t, s, tp.Partition(0), acked)
		})
	}
}
