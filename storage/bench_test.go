package storage_test

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"tailrace/storage"
)

// BenchmarkAppend is the durable append: many submitters, each with one burst of
// 20 records of 120 bytes on its way. Its floor is BenchmarkFloor.
func BenchmarkAppend(b *testing.B) {
	for _, n := range []int{1, 16, 50, 256} {
		for _, origin := range []bool{false, true} {
			b.Run(fmt.Sprintf("submitters=%d/burst=20/bytes=120/origin=%v", n, origin), func(b *testing.B) {
				benchAppend(b, n, 20, origin)
			})
		}
	}
}

func benchAppend(b *testing.B, submitters, burst int, origin bool) {
	s := open(b, b.TempDir(), func(c *storage.Config) { c.OriginHeaders = origin })
	p := topic(b, s, "bench", 1).Partition(0)
	value := make([]byte, 120)
	for i := range value {
		value[i] = byte(i * 7)
	}
	b.ReportAllocs()
	b.ResetTimer()
	var wg sync.WaitGroup
	per := b.N/submitters + 1
	for range submitters {
		wg.Go(func() {
			a := s.NewAppend("")
			done := make(chan error, 1)
			cb := func(_ *storage.Append, err error) { done <- err }
			for n := 0; n < per; n += burst {
				a.Reset()
				for j := range burst {
					if err := a.Record(p, 1_700_000_000_000+int64(n+j), nil, value, nil); err != nil {
						b.Error(err)
						return
					}
				}
				s.Submit(a, cb)
				if err := <-done; err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	st := s.Stats().Classes[0]
	b.ReportMetric(float64(st.Records)/b.Elapsed().Seconds(), "records/s")
	b.ReportMetric(float64(st.Records)/float64(st.Commits), "records/commit")
	b.ReportMetric(float64(st.WrittenBytes)/float64(st.Records), "bytes/record")
}

// BenchmarkFloor is the least a durable append costs: groups of the given number
// of 128-byte records, one write and one fdatasync each, in one goroutine.
func BenchmarkFloor(b *testing.B) {
	for _, n := range []int{20, 160, 320, 1000, 2560} {
		b.Run(fmt.Sprintf("group=%d/bytes=128", n), func(b *testing.B) {
			f, err := os.Create(filepath.Join(b.TempDir(), "f"))
			if err != nil {
				b.Fatal(err)
			}
			defer f.Close()
			buf := make([]byte, n*128)
			b.ResetTimer()
			for i := 0; i < b.N; i += n {
				if _, err := f.Write(buf); err != nil {
					b.Fatal(err)
				}
				if err := unix.Fdatasync(int(f.Fd())); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "records/s")
		})
	}
}

// BenchmarkRead reads a partition of merged batches from the start, every record
// decoded.
func BenchmarkRead(b *testing.B) {
	s := open(b, b.TempDir())
	p := topic(b, s, "bench", 1).Partition(0)
	const total = 500_000
	value := make([]byte, 120)
	a := s.NewAppend("")
	for n := 0; n < total; n += 1000 {
		a.Reset()
		for j := range 1000 {
			a.Record(p, int64(n+j), nil, value, nil)
		}
		if err := s.Commit(b.Context(), a); err != nil {
			b.Fatal(err)
		}
	}
	b.ResetTimer()
	c := storage.NewCursor(p, 0)
	n := 0
	for n < b.N {
		batch, err := c.Next(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		it := batch.Iter(nil)
		for it.Next() {
			n++
		}
		if c.Offset() == p.HighWatermark() {
			c.SeekTo(0)
		}
	}
	b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "records/s")
}
