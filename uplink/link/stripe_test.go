package link_test

import (
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"tailrace/uplink/link"
	"tailrace/uplink/link/linktest"
)

// noise puts n batches of incompressible bytes.
func noise(s *memSource, n, size int) {
	rng := rand.New(rand.NewPCG(9, 9))
	b := make([]byte, size)
	p := s.parts[0]
	for range n {
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		p.batches = append(p.batches, memBatch{p.next, p.next + 10, linktest.AppendBatch(nil, p.next, 10, 1, b)})
		p.next += 10
	}
}

// Bulk connections come and go in the middle of the traffic; order and once hold.
func TestBulkConnectionsMayDie(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := linktest.Path{Rate: 10e6, Delay: 50 * time.Millisecond, Queue: 125_000, Loss: 0.02}
		w := newWorld(t, p)
		src := newSource(1, "wind")
		noise(src, 4000, 10_000)
		hub, stopHub := w.hub(nil)
		_, stopNode := w.node("node-1", "10.0.1.1", src, func(c *link.ClientConfig) { c.MaxBulk = 8 })
		killed := 0
		w.until(5*time.Minute, "the backlog", func() bool {
			if killed < 12 && hub.KillBulk("node-1") {
				killed++
			}
			time.Sleep(500 * time.Millisecond)
			return src.ackedTo(0) == 40000
		})
		if killed < 5 || w.sink.sessions != 1 {
			t.Errorf("%d bulk connections killed, %d sessions", killed, w.sink.sessions)
		}
		stopNode()
		stopHub()
		w.sink.check(t)
		settle()
	})
}
