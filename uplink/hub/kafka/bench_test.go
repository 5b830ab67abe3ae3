package kafka_test

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os/exec"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"tailrace/storage"
	"tailrace/storage/record"
)

const benchRecords = 1_000_000

// loaded is a hub with a million readings in batches of 500.
func loaded(b *testing.B, zip bool) *hub {
	h := newHub(b)
	p := h.topic("wind", 1).Partition(0)
	a := h.store.NewAppend("")
	for i := 0; i < benchRecords; i += 500 {
		var bl record.Builder
		bl.Reset(nil)
		for j := i; j < i+500; j++ {
			bl.Add(t0+int64(j), fmt.Appendf(nil, "WT-%04d", j%200), fmt.Appendf(nil,
				`{"turbine":"WT-%04d","wind_speed":%7.3f,"power_kw":%9.3f,"rotor_rpm":%6.2f,"nacelle":%6.2f,"pitch":%5.2f}`,
				j%200, 7.5+float64(j%371)/100, 1500+float64(j%9771)/10, 12.5+float64(j%51)/10, 180.25+float64(j%907)/10, 2.5), nil)
		}
		batch := record.Batch(bl.Finish(0, 0))
		if zip {
			batch = record.Compress(nil, batch)
		}
		if err := a.Batch(p, batch, nil); err != nil {
			b.Fatal(err)
		}
		if a.Bytes() > 2<<20 {
			h.commit(a)
			a.Reset()
		}
	}
	h.commit(a)
	return h
}

func report(b *testing.B, h *hub, start time.Time) {
	b.ReportMetric(float64(benchRecords)*float64(b.N)/time.Since(start).Seconds(), "records/s")
}

// BenchmarkConsume: the client decides the figure; client=none counts the bytes
// only, the listener's own cost.
func BenchmarkConsume(b *testing.B) {
	for _, zip := range []bool{false, true} {
		h := loaded(b, zip)
		name := fmt.Sprintf("zstd=%v", zip)
		b.Run(name+"/client=none", func(b *testing.B) {
			start := time.Now()
			for b.Loop() {
				drain(b, h)
			}
			report(b, h, start)
		})
		b.Run(name+"/client=franz-go", func(b *testing.B) {
			start := time.Now()
			for b.Loop() {
				cl, err := kgo.NewClient(kgo.SeedBrokers(h.addr), kgo.ConsumeTopics("wind"), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchMaxPartitionBytes(8<<20))
				if err != nil {
					b.Fatal(err)
				}
				for n := 0; n < benchRecords; {
					n += cl.PollFetches(context.Background()).NumRecords()
				}
				cl.Close()
			}
			report(b, h, start)
		})
		b.Run(name+"/client=kcat", func(b *testing.B) {
			start := time.Now()
			for b.Loop() {
				cmd := exec.Command("kcat", "-b", h.addr, "-C", "-q", "-t", "wind", "-o", "beginning", "-c", fmt.Sprint(benchRecords), "-f", "%o\n")
				if err := cmd.Run(); err != nil {
					b.Fatal(err)
				}
			}
			report(b, h, start)
		})
		h.stop()
	}
}

// drain fetches everything and looks at no record.
func drain(b *testing.B, h *hub) {
	nc, err := net.Dial("tcp", h.addr)
	if err != nil {
		b.Fatal(err)
	}
	defer nc.Close()
	r := &raw{t: b, nc: nc, br: bufio.NewReaderSize(nc, 1<<20)}
	for off := int64(0); off < benchRecords; {
		req := fetchRequest("wind", 0, off)
		req.MaxBytes, req.Topics[0].Partitions[0].PartitionMaxBytes = 8<<20, 8<<20
		resp := ask[*kmsg.FetchResponse](r, req, 11)
		rest := resp.Topics[0].Partitions[0].RecordBatches
		for len(rest) > 0 {
			batch, after, err := record.Next(rest)
			if err != nil {
				b.Fatal(err)
			}
			off, rest = batch.NextOffset(), after
		}
	}
}

// BenchmarkProduce: franz-go, idempotent, acks after the fsync.
func BenchmarkProduce(b *testing.B) {
	h := newHub(b)
	if _, err := h.store.CreateTopic("in", storage.TopicConfig{Partitions: 4}); err != nil {
		b.Fatal(err)
	}
	cl := h.client(kgo.DefaultProduceTopic("in"), kgo.ProducerLinger(5*time.Millisecond), kgo.MaxBufferedRecords(100_000))
	value := make([]byte, 180)
	ctx := context.Background()
	start := time.Now()
	n := 0
	for b.Loop() {
		n++
		cl.Produce(ctx, &kgo.Record{Value: value}, func(_ *kgo.Record, err error) {
			if err != nil {
				b.Error(err)
			}
		})
	}
	cl.Flush(ctx)
	b.ReportMetric(float64(n)/time.Since(start).Seconds(), "records/s")
}
