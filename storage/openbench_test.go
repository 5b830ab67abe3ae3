package storage_test

import (
	"fmt"
	"path/filepath"
	"testing"

	"tailrace/storage"
)

// BenchmarkOpen opens a log of many sealed segments. What a segment costs does not
// depend on its size: its side file's summary is read, not the segment.
func BenchmarkOpen(b *testing.B) {
	for _, n := range []int{100, 1000, 10_000} {
		b.Run(fmt.Sprintf("segments=%d", n), func(b *testing.B) {
			dir := filepath.Join(b.TempDir(), "s")
			mod := func(c *storage.Config) {
				c.FS = &testFS{}
				c.Classes[0].SegmentBytes = 4096
			}
			s := open(b, dir, mod)
			p := topic(b, s, "wind", 1).Partition(0)
			a := s.NewAppend("")
			for range n {
				a.Reset()
				a.Record(p, 1, nil, make([]byte, 4096), nil)
				if err := s.Commit(b.Context(), a); err != nil {
					b.Fatal(err)
				}
			}
			s.Close()
			for b.Loop() {
				open(b, dir, mod).Close()
			}
		})
	}
}
