package link_test

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"tailrace/uplink/link"
	"tailrace/uplink/link/linktest"
)

// The nodes of a hub that was restarted come back spread over what it says, however they
// learnt of it, and none much later.
func TestFleetComesBackSpreadAfterARestart(t *testing.T) {
	const nodes, spread = 100, 10 * time.Second
	for _, c := range []struct {
		name  string
		word  bool // the hub says that it ends
		out   time.Duration
		flow  bool // a record of each node every second, at its own moment; else they are silent
		limit time.Duration
	}{
		{"stopped for 3 s", true, 3 * time.Second, false, spread + 2*time.Second},
		{"stopped for a minute", true, time.Minute, false, spread + 2*time.Second},
		{"lost power for 4 s, records flow", false, 4 * time.Second, true, spread + 5*time.Second},
		{"lost power for a moment, records flow", false, 10 * time.Millisecond, true, spread + 5*time.Second},
	} {
		if testing.Short() && c.out == time.Minute {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, linktest.Path{Delay: 20 * time.Millisecond})
				change := func(c *link.ServerConfig) { c.RestartSpread = spread }
				_, stopHub := w.hub(change)
				var clients []*link.Client
				var sources []*memSource
				var stops []func()
				for i := range nodes {
					src := newSource(1, "wind")
					cl, stop := w.node(fmt.Sprintf("node-%d", i), fmt.Sprintf("10.0.1.%d", i+1), src, nil)
					clients, sources, stops = append(clients, cl), append(sources, src), append(stops, stop)
				}
				n := 0
				put := func(d time.Duration) { // every node once a second
					for ; d > 0; d -= time.Second / nodes {
						if c.flow {
							sources[n%nodes].put(0, 1, 50)
						}
						n++
						time.Sleep(time.Second / nodes)
					}
				}
				up := func(reconnects int) bool {
					return !slices.ContainsFunc(clients, func(c *link.Client) bool { s := c.State(); return !s.Connected || int(s.Reconnects) < reconnects })
				}
				w.until(10*time.Second, "connected", func() bool { return up(0) })
				put(20 * time.Second)
				down := func(down bool) {
					for i := range nodes {
						w.r.Link(fmt.Sprintf("10.0.1.%d", i+1)).Down(down)
					}
				}
				down(!c.word)
				stopHub()
				put(c.out)
				w.sink.mu.Lock()
				w.sink.helloAt = nil
				w.sink.mu.Unlock()
				_, stopHub = w.hub(change)
				down(false)
				begin := time.Now()
				for !up(1) && time.Since(begin) < time.Minute+c.limit {
					put(100 * time.Millisecond)
				}
				took := time.Since(begin)
				w.sink.mu.Lock()
				at := w.sink.helloAt
				w.sink.mu.Unlock()
				perSecond := map[time.Duration]int{}
				worst := 0
				for _, h := range at {
					s := h.Sub(begin) / time.Second
					perSecond[s]++
					worst = max(worst, perSecond[s])
				}
				t.Logf("%d nodes back after %v, at most %d within a second, %d Hellos", nodes, took, worst, len(at))
				if took > c.limit {
					t.Errorf("the last is back after %v, at most %v is allowed", took, c.limit)
				}
				// Ten a second are the mean.
				if worst > 25 || len(at) > nodes+nodes/10 {
					t.Errorf("%d Hellos, up to %d within a second: %v", len(at), worst, perSecond)
				}
				for _, stop := range stops {
					stop()
				}
				stopHub()
				w.sink.check(t)
				settle()
			})
		})
	}
}
