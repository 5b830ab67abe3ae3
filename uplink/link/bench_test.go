package link_test

import (
	"fmt"
	"net"
	"testing"
	"time"

	"tailrace/uplink/link"
	"tailrace/uplink/link/linktest"
	"tailrace/uplink/wire"
)

// reading is a record like those of the recorded turbines, different each time.
func reading(dst []byte, i int) []byte {
	return fmt.Appendf(dst, `{"id":"T%02d","seq":%d,"ts":%d,"wind":%.2f,"power":%.1f,"rpm":%.2f,"pitch":%.2f,"temp":%.1f,"state":"run"}`,
		i%6, i, 1_700_000_000_000+int64(i)*1000, float64(i*7919%2500)/100, float64(i*104729%20000)/10, float64(i*31%1800)/100, float64(i*17%900)/10, float64(i*13%400)/10)
}

// BenchmarkLoopback replicates a backlog over real UDP on this machine, both ends in
// this process, into a store that does nothing: the ceiling of the link itself.
func BenchmarkLoopback(b *testing.B) {
	for _, plain := range []bool{false, true} {
		for _, batch := range []int{10, 500} {
			b.Run(fmt.Sprintf("zstd=%v/batch=%d", !plain, batch), func(b *testing.B) { loopback(b, batch, plain) })
		}
	}
}

func loopback(b *testing.B, batch int, plain bool) {
	w := newWorld(b, lan)
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	src := newSource(1, "wind")
	p := src.parts[0]
	var payload []byte
	const records = 500_000
	raw := 0
	for i := 0; i < records; i += batch {
		payload = payload[:0]
		for j := range batch {
			payload = reading(payload, i+j)
		}
		one := linktest.AppendBatch(nil, p.next, batch, 1, payload)
		raw += len(one)
		p.batches = append(p.batches, memBatch{p.next, p.next + int64(batch), one})
		p.next += int64(batch)
	}
	hub, stopHub := w.runHub(pc, nil)
	defer stopHub()
	b.SetBytes(int64(raw))
	for b.Loop() {
		w.sink.mu.Lock()
		clear(w.sink.stored)
		clear(p.acked)
		arrived := make(chan struct{})
		total := int64(0)
		w.sink.appended = func(o wire.Origin, n int64) {
			if total += n; total == records {
				close(arrived)
			}
		}
		w.sink.mu.Unlock()
		_, stop := w.node("node-1", "", src, func(c *link.ClientConfig) {
			c.Hubs = []string{pc.LocalAddr().String()}
			c.PacketConn = nil
			c.NoCompression = plain
		})
		select {
		case <-arrived:
		case <-time.After(time.Minute):
			b.Fatal("did not finish")
		}
		b.StopTimer()
		if n := hub.Nodes(); len(n) == 1 {
			b.ReportMetric(float64(n[0].WireBytes)/records, "wire-B/record")
		}
		stop()
		b.StartTimer()
	}
	b.ReportMetric(float64(records)*float64(b.N)/b.Elapsed().Seconds(), "records/s")
	w.sink.check(b)
}
