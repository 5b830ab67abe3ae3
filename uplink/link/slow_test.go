package link_test

import (
	"testing"
	"testing/synctest"
	"time"

	"tailrace/uplink/link/linktest"
)

// On 16 kbit/s the repetitions of a handshake stand before the hub's first answer, in a queue that holds half a
// minute: it is waited for. So the node connects at all, and again after a restart of either end, with more to
// send all the time than the link carries.
func TestConnectsOverASlowLinkWithADeepQueue(t *testing.T) {
	for _, delay := range []time.Duration{100 * time.Millisecond, 300 * time.Millisecond, 600 * time.Millisecond} {
		t.Run(delay.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, linktest.Path{Rate: 16e3, Delay: delay, Queue: 64 << 10})
				src := newSource(1, "wind")
				noise(src, 800, 1000) // a backlog of minutes
				_, stopHub := w.hub(nil)
				c, stopNode := w.node("node-1", "10.0.1.1", src, nil)
				more := func(what string) {
					have := w.sink.records("node-1", "wind")
					w.sink.mu.Lock()
					n := len(w.sink.helloAt)
					w.sink.mu.Unlock()
					took := w.until(90*time.Second, "connected after "+what, func() bool {
						w.sink.mu.Lock()
						defer w.sink.mu.Unlock()
						return c.State().Connected && (len(w.sink.helloAt) > n || what == "an outage")
					})
					next := w.until(2*time.Minute, "records after "+what, func() bool { return w.sink.records("node-1", "wind") > have })
					t.Logf("%s: connected after %v, the next records %v later", what, took, next)
					for range 300 {
						time.Sleep(100 * time.Millisecond)
						src.put(0, 5, 80)
					}
				}
				more("the first start")
				stopHub()
				_, stopHub = w.hub(nil)
				more("a restart of the hub")
				stopNode()
				c, stopNode = w.node("node-1", "10.0.1.1", src, nil)
				more("a restart of the node")
				w.r.Link("10.0.1.1").Down(true)
				time.Sleep(time.Minute)
				w.r.Link("10.0.1.1").Down(false)
				more("an outage")
				if !c.State().Connected {
					t.Errorf("%+v", c.State())
				}
				stopNode()
				stopHub()
				w.sink.check(t)
				settle()
			})
		})
	}
}
