package link_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"tailrace/uplink/link"
	"tailrace/uplink/link/linktest"
	"tailrace/uplink/wire"
)

// Staying connected and idle costs less than 1 MB a day, both ways, IP and UDP headers
// included, with a status report every 15 s at the default of the node.
func TestIdleDayCostsLessThanAMegabyte(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lte)
		src := newSource(1, "wind")
		_, stopHub := w.hub(nil)
		c, stopNode := w.node("node-1", "10.0.1.1", src, func(c *link.ClientConfig) {
			c.Status = func() wire.Status { return wire.Status{Devices: 6} }
		})
		w.until(5*time.Second, "connected", func() bool { return c.State().Connected })
		up0, down0 := w.r.Link("10.0.1.1").Stats()
		time.Sleep(24 * time.Hour)
		up, down := w.r.Link("10.0.1.1").Stats()
		u, d := up.Bytes-up0.Bytes, down.Bytes-down0.Bytes
		t.Logf("an idle day: %.2f MB up, %.2f MB down, %d and %d packets", float64(u)/1e6, float64(d)/1e6, up.Packets-up0.Packets, down.Packets-down0.Packets)
		if u+d > 1e6 {
			t.Errorf("an idle day costs %.2f MB, the bar is 1", float64(u+d)/1e6)
		}
		if st := c.State(); !st.Connected || st.Reconnects > 0 {
			t.Errorf("after an idle day: %+v", st)
		}
		stopNode()
		stopHub()
		settle()
	})
}

// A hub that lost its power and comes back is noticed within 1 s and a round trip while records flow, one a
// second; idle within one heartbeat and a round trip.
func TestHubRestartIsNoticed(t *testing.T) {
	const rtt = 100 * time.Millisecond
	for _, c := range []struct {
		name  string
		flow  time.Duration
		limit time.Duration
	}{
		{"records flow", time.Second, time.Second + rtt},
		{"idle", 0, 15*time.Second + rtt},
	} {
		t.Run(c.name, func(t *testing.T) {
			var worst time.Duration
			for offset := range 8 {
				synctest.Test(t, func(t *testing.T) {
					w := newWorld(t, linktest.Path{Rate: 10e6, Delay: rtt / 2, Queue: 125_000})
					src := newSource(1, "wind")
					_, stopHub := w.hub(nil)
					n, stopNode := w.node("node-1", "10.0.1.1", src, nil)
					w.until(5*time.Second, "connected", func() bool { return n.State().Connected })
					stop := w.run("records", func(ctx context.Context) error {
						for c.flow > 0 && ctx.Err() == nil {
							src.put(0, 1, 100)
							select {
							case <-time.After(c.flow):
							case <-ctx.Done():
							}
						}
						<-ctx.Done()
						return ctx.Err()
					})
					time.Sleep(time.Minute + time.Duration(offset)*max(c.flow, 15*time.Second)/8)
					was := n.State().Session
					w.r.Link("10.0.1.1").Down(true) // nobody hears the close
					stopHub()
					_, stopHub = w.hub(nil)
					w.r.Link("10.0.1.1").Down(false)
					d := w.until(time.Minute, "noticed", func() bool { st := n.State(); return !st.Connected || st.Session != was })
					worst = max(worst, d)
					if d > c.limit+10*time.Millisecond { // the step of until, and a packet's time
						t.Errorf("noticed after %v, the bar is %v", d, c.limit)
					}
					w.until(5*time.Second, "connected again", func() bool { st := n.State(); return st.Connected && st.Session != was })
					stop()
					stopNode()
					stopHub()
					w.sink.check(t)
					settle()
				})
			}
			t.Logf("BAR hub restart noticed, %s: worst of 8 %v, at most %v", c.name, worst.Round(time.Millisecond), c.limit)
		})
	}
}
