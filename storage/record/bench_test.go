package record_test

import (
	"fmt"
	"testing"

	"tailrace/storage/record"
)

func reading(i int) rec {
	return rec{1_790_000_000_000 + int64(i), fmt.Appendf(nil, "turb-%04d", i%1000),
		fmt.Appendf(nil, `{"turbine":"WT-%04d","wind_speed":%7.3f,"power_kw":%9.3f,"rotor_rpm":%6.2f,"nacelle":%6.2f,"pitch":%5.2f}`,
			i%1000, 7.5+float64(i%37)/10, 1500+float64(i%977), 12.5+float64(i%5), 180.25+float64(i%90), 2.5), nil}
}

func BenchmarkBuild(b *testing.B) {
	for _, n := range []int{1, 10, 100, 1000} {
		b.Run(fmt.Sprintf("records=%d", n), func(b *testing.B) {
			rs := make([]rec, n)
			for i := range rs {
				rs[i] = reading(i)
			}
			arena := make([]byte, 0, 1<<20)
			var bl record.Builder
			b.ReportAllocs()
			for b.Loop() {
				bl.Reset(arena[:0])
				for i := range rs {
					bl.Add(rs[i].ts, rs[i].key, rs[i].value, nil)
				}
				bl.Finish(1, 1)
			}
			perRecord(b, n)
		})
	}
}

func BenchmarkDecode(b *testing.B) {
	for _, n := range []int{1, 10, 100, 1000} {
		b.Run(fmt.Sprintf("records=%d", n), func(b *testing.B) {
			batch := many(n)
			d := record.NewDecompressor(0)
			b.ReportAllocs()
			for b.Loop() {
				if batch.Verify() != nil {
					b.Fatal("bad")
				}
				it := batch.Iter(d)
				for it.Next() {
				}
			}
			perRecord(b, n)
		})
	}
}

func BenchmarkMergeAndCompress(b *testing.B) {
	for _, zip := range []bool{false, true} {
		b.Run(fmt.Sprintf("from=10/to=500/zstd=%v", zip), func(b *testing.B) {
			var parts []record.Batch
			for i := range 50 {
				var bl record.Builder
				bl.Reset(nil)
				for j := range 10 {
					r := reading(i*10 + j)
					bl.Add(r.ts, r.key, r.value, nil)
				}
				parts = append(parts, bl.Finish(int64(i*10), 1))
			}
			dst, z := make([]byte, 0, 1<<20), make([]byte, 0, 1<<20)
			b.ReportAllocs()
			for b.Loop() {
				out, err := record.Merge(dst[:0], parts...)
				if err != nil {
					b.Fatal(err)
				}
				if zip {
					record.Compress(z[:0], out)
				}
			}
			perRecord(b, 500)
		})
	}
}

func many(n int) record.Batch {
	rs := make([]rec, n)
	for i := range rs {
		rs[i] = reading(i)
	}
	return build(1, rs...)
}

func perRecord(b *testing.B, n int) {
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/record")
}
