package link_test

import (
	"context"
	"fmt"
	"net"
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
		tcp   bool // UDP does not pass: no probe tells a node anything
		limit time.Duration
	}{
		{"stopped for 3 s", true, 3 * time.Second, false, false, spread + 2*time.Second},
		{"stopped for a minute", true, time.Minute, false, false, spread + 2*time.Second},
		{"lost power for 4 s, records flow", false, 4 * time.Second, true, false, spread + 5*time.Second},
		{"lost power for a moment, records flow", false, 10 * time.Millisecond, true, false, spread + 5*time.Second},
		{"stopped for 3 s, over TCP", true, 3 * time.Second, false, true, spread + 12*time.Second}, // QUIC is tried for 10 s before the next turn
	} {
		if testing.Short() && c.out == time.Minute {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, linktest.Path{Delay: 20 * time.Millisecond})
				change := func(s *link.ServerConfig) {
					if s.RestartSpread = spread; c.tcp {
						s.Listener = w.r.Listen(tcpHub)
						s.MaxHandshakesPerAddress = 512 // these nodes have no addresses
					}
				}
				_, stopHub := w.hub(change)
				var clients []*link.Client
				var sources []*memSource
				var stops []func()
				for i := range nodes {
					src := newSource(1, "wind")
					ip := fmt.Sprintf("10.0.1.%d", i+1)
					if c.tcp {
						w.r.Link(ip).Drop(true, func(int) bool { return true })
					}
					cl, stop := w.node(fmt.Sprintf("node-%d", i), ip, src, func(n *link.ClientConfig) {
						if c.tcp {
							n.Fallback = []string{tcpHub}
							n.DialTCP = func(ctx context.Context, hub string) (net.Conn, error) { return w.r.DialTCP(ctx, ip, hub) }
						}
					})
					time.Sleep(time.Millisecond) // no more at once than the hub looks at
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
