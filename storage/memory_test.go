package storage_test

import (
	"fmt"
	"runtime"
	"testing"

	"tailrace/storage"
)

// TestMemoryOfALongLog: an open log holds a few hundred bytes per segment and some fifty
// per segment and partition in it, whatever the segments' size: with segments of 4 MiB and
// 32 partitions 0.5 MB per GB.
func TestMemoryOfALongLog(t *testing.T) {
	segments := int64(1500)
	if testing.Short() {
		segments = 300
	}
	perSegment := func(parts int) int64 {
		dir := quickDir(t)
		mod := func(c *storage.Config) { c.FS, c.Classes[0].SegmentBytes = &testFS{}, 4<<10 }
		s := open(t, dir, mod)
		var ps []*storage.Partition
		for i := range parts {
			ps = append(ps, topic(t, s, fmt.Sprint("wind-", i), 1).Partition(0))
		}
		for i := range segments {
			a := s.NewAppend("")
			for _, p := range ps {
				if err := a.Record(p, int64(i), nil, make([]byte, 4100/parts), nil); err != nil {
					t.Fatal(err)
				}
			}
			if err := s.Commit(t.Context(), a); err != nil {
				t.Fatal(err)
			}
		}
		s.Close()
		s, ps = nil, nil
		heap := func() int64 {
			var st runtime.MemStats
			runtime.GC()
			runtime.GC()
			runtime.ReadMemStats(&st)
			return int64(st.HeapAlloc)
		}
		before := heap()
		s = open(t, dir, mod)
		defer s.Close()
		if n := int64(s.Stats().Classes[0].Segments); n < segments {
			t.Fatalf("%d segments", n)
		}
		return (heap() - before) / segments
	}
	one, many := perSegment(1), perSegment(16)
	perPart := (many - one) / 15
	t.Logf("%d bytes a segment of one partition, %d for each further one", one, perPart)
	if one > 800 || perPart > 100 {
		t.Errorf("%d bytes a segment of one partition, want at most 800; %d for each further one, want at most 100", one, perPart)
	}
}
