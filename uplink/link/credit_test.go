package link_test

import (
	"testing"
	"testing/synctest"
	"time"

	"tailrace/uplink/link/linktest"
)

// Credit grows where it bounds the rate: 50 Mbit/s over 100 ms hold 625 KB, more than twice the
// first credit. On a slow link it stays near what a round trip carries, so that the
// hub's budget is there for others.
func TestCreditGrowsWhereItBoundsTheRate(t *testing.T) {
	for _, c := range []struct {
		name      string
		rate      float64
		share     float64
		most      int64 // of the hub's budget
		batches   int
		warm, run time.Duration
	}{
		{"fast and long", 50e6, 0.85, 8 << 20, 9000, 5 * time.Second, 5 * time.Second},
		{"slow", 1e6, 0.9, 256 << 10, 1000, 10 * time.Second, 20 * time.Second},
	} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, linktest.Path{Rate: c.rate, Delay: 50 * time.Millisecond, Queue: max(int(c.rate/80), 60_000)})
			src := newSource(1, "wind")
			noise(src, c.batches, 10_000)
			hub, stopHub := w.hub(nil)
			_, stopNode := w.node("node-1", "10.0.1.1", src, nil)
			time.Sleep(c.warm)
			had := hub.Nodes()[0].WireBytes
			time.Sleep(c.run)
			share := float64(hub.Nodes()[0].WireBytes-had) * 8 / c.run.Seconds() / c.rate
			t.Logf("%s: %.0f %% of %.0f Mbit/s, %d bytes of the hub's budget", c.name, share*100, c.rate/1e6, hub.Reserved())
			if share < c.share || hub.Reserved() > c.most {
				t.Errorf("%s: %.0f %% of the link with %d bytes of the hub's budget, want %.0f %% with %d", c.name, share*100, hub.Reserved(), c.share*100, c.most)
			}
			stopNode()
			stopHub()
			w.sink.check(t)
			settle()
		})
	}
}
