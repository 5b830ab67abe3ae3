package link_test

import (
	"testing"
	"testing/synctest"
	"time"

	"tailrace/uplink/link/linktest"
)

var lan = linktest.Path{Rate: 100e6, Delay: 5 * time.Millisecond, Queue: 250_000}

// settle lets quic-go's timers finish at the end of a bubble.
func settle() { time.Sleep(5 * time.Minute) }

func TestReplicatesOnceAndInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lan)
		src := newSource(1, "wind", "sun")
		for range 300 {
			src.put(0, 7, 120)
		}
		_, stopHub := w.hub(nil)
		c, stopNode := w.node("node-1", "10.0.1.1", src, nil)
		w.until(10*time.Second, "backlog at the hub", func() bool { return w.sink.records("node-1", "wind") == 2100 })
		for range 200 {
			src.put(1, 1, 120)
			time.Sleep(10 * time.Millisecond)
		}
		w.until(time.Second, "live at the hub", func() bool { return w.sink.records("node-1", "sun") == 200 })
		w.until(time.Second, "acks", func() bool { return src.ackedTo(0) == 2100 && src.ackedTo(1) == 200 })
		if st := c.State(); !st.Connected || st.InFlightBytes != 0 || st.Reconnects != 0 {
			t.Errorf("client state %+v", st)
		}
		stopNode()
		stopHub()
		w.sink.check(t)
		settle()
	})
}

// until waits, in steps of virtual time, until f; it fails after limit.
func (w *world) until(limit time.Duration, what string, f func() bool) time.Duration {
	w.t.Helper()
	begin := time.Now()
	for !f() {
		if time.Since(begin) > limit {
			for _, c := range w.cl {
				w.t.Logf("node: %+v\n%s", c.State(), c.Dump())
			}
			if w.srv != nil {
				w.t.Logf("hub: %s", w.srv.Dump())
			}
			w.t.Fatalf("not within %v: %s", limit, what)
		}
		time.Sleep(5 * time.Millisecond)
	}
	return time.Since(begin)
}
