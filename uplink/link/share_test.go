package link_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"tailrace/uplink/link/linktest"
)

// Two nodes behind one link, the second 15 s after the first: neither starves, together they fill it.
func TestTwoDrainsShareALink(t *testing.T) {
	for _, queue := range []int{4_000_000, 125_000} {
		if testing.Short() && queue < 1e6 {
			continue
		}
		synctest.Test(t, func(t *testing.T) {
			p := linktest.Path{Rate: 10e6, Delay: 50 * time.Millisecond, Queue: queue}
			w := newWorld(t, p)
			hub, stopHub := w.hub(nil)
			var stops []func()
			for i := range 2 {
				src := newSource(byte(i+1), "wind")
				noise(src, 9000, 10_000)
				_, stop := w.node(fmt.Sprintf("node-%d", i), "10.0.1.1", src, nil)
				stops = append(stops, stop)
				time.Sleep(15 * time.Second)
			}
			had := map[string]int64{}
			for _, n := range hub.Nodes() {
				had[n.Node] = n.WireBytes
			}
			time.Sleep(30 * time.Second)
			sum, least := 0.0, 1.0
			for _, n := range hub.Nodes() {
				share := float64(n.WireBytes-had[n.Node]) * 8 / 30 / p.Rate
				sum, least = sum+share, min(least, share)
				t.Logf("queue %d KB: %s %.0f %%, round trip %v", queue/1000, n.Node, share*100, n.RTT.Round(time.Millisecond))
				if n.RTT > 300*time.Millisecond {
					t.Errorf("queue %d KB: a round trip of %v", queue/1000, n.RTT)
				}
			}
			if least < 0.2 || sum < 0.9 {
				t.Errorf("queue %d KB: together %.0f %%, the lesser %.0f %%", queue/1000, sum*100, least*100)
			}
			for _, stop := range stops {
				stop()
			}
			stopHub()
			w.sink.check(t)
			settle()
		})
	}
}
