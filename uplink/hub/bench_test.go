package hub_test

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"tailrace/storage"
	"tailrace/storage/record"
	"tailrace/uplink"
	"tailrace/uplink/hub"
	"tailrace/uplink/wire"
)

// BenchmarkIngest is the hub's ingest without the network: nodes append frames
// of batches of 180-byte readings, each frame is acknowledged after fsync, a few
// are on their way per node.
func BenchmarkIngest(b *testing.B) {
	for _, perBatch := range []int{1, 20, 500} {
		b.Run(fmt.Sprintf("nodes=20/batch=%d", perBatch), func(b *testing.B) {
			st, err := storage.Open(storage.Config{Dir: b.TempDir(), Classes: []storage.ClassConfig{{Name: "data", SegmentBytes: 8 << 20}}})
			if err != nil {
				b.Fatal(err)
			}
			defer st.Close()
			e, err := hub.NewEmbedded(hub.EmbeddedConfig{Store: st, Classes: []string{"data"}})
			if err != nil {
				b.Fatal(err)
			}
			defer e.Close()
			const nodes, perFrame, window = 20, 500, 4
			frames := make([]chan []byte, nodes)
			var wg sync.WaitGroup
			for n := range nodes {
				node := fmt.Sprint("n", n)
				if err := e.Adopt(context.Background(), node, []wire.EpochInfo{{ID: epochA}}); err != nil {
					b.Fatal(err)
				}
				frames[n] = make(chan []byte, 1)
				wg.Go(func() {
					o := wire.Origin{Node: node, Epoch: epochA, Topic: "wind"}
					free := make(chan struct{}, window)
					for f := range frames[n] {
						free <- struct{}{}
						e.Append(context.Background(), o, f, func(_ uplink.RangeSet, err error) {
							if err != nil {
								b.Error(err)
							}
							<-free
						})
					}
					for range window {
						free <- struct{}{}
					}
				})
			}
			value := []byte(`{"ts":"2026-01-01T00:00:00Z","power_kw":919.5,"wind_speed":8.21,"rotor_rpm":12.4,"pitch_deg":1.7,"nacelle_deg":182.3,"temp_c":41.2,"state":"run","seq":1234567,"pad":"0123456789ab"}`)
			sent := 0
			for i := 0; b.Loop(); i++ {
				from := int64(i/nodes) * perFrame
				frame := make([]byte, 0, 200<<10)
				for at := from; at < from+perFrame; at += int64(perBatch) {
					var bl record.Builder
					bl.Reset(frame)
					for off := at; off < at+int64(perBatch); off++ {
						bl.Add(off, []byte("wtg-07"), value, nil)
					}
					frame = bl.Finish(at, 1)
				}
				frames[i%nodes] <- frame
				sent += perFrame
			}
			for _, f := range frames {
				close(f)
			}
			wg.Wait()
			b.ReportMetric(float64(sent)/b.Elapsed().Seconds(), "records/s")
			b.ReportMetric(float64(e.Stats().BytesStored)/float64(sent), "stored-B/record")
			c := st.Stats().Classes[0]
			b.ReportMetric(float64(sent)/float64(c.Commits), "records/commit")
			b.ReportMetric(float64(c.CommitNanos)/float64(c.Commits)/1e6, "ms/commit")
		})
	}
}
