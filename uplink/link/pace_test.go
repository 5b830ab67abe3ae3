package link_test

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"tailrace/uplink/link"
)

// A close within a session carries the time to come back, and a fork is reported at the node too.
func TestCloseCarriesRetryAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lan)
		_, stopHub := w.hub(nil)
		src := newSource(1, "wind")
		c, stopNode := w.node("node-1", "10.0.1.1", src, nil)
		w.until(5*time.Second, "connected", func() bool { return c.State().Connected })
		w.sink.mu.Lock()
		w.sink.failing = errors.New("disk on fire")
		w.sink.mu.Unlock()
		src.put(0, 1, 100)
		w.until(5*time.Second, "closed", func() bool { return !c.State().Connected })
		if e := c.State().LastError; !strings.Contains(e, "disk on fire") || strings.Contains(e, "retry after") {
			t.Errorf("the node was told %q", e)
		}
		down := time.Now()
		w.sink.mu.Lock()
		w.sink.failing = nil
		w.sink.mu.Unlock()
		w.until(10*time.Second, "again", func() bool { return src.ackedTo(0) == 1 })
		if d := time.Since(down); d < 900*time.Millisecond {
			t.Errorf("came back after %v, the hub had asked for a second", d)
		}
		stopNode()
		stopHub()
		settle()
	})
}

func TestRateLimitHoldsBulkAndNotLive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lte)
		src := newSource(1, "wind", "sun")
		noise(src, 1000, 10_000)
		_, stopHub := w.hub(nil)
		_, stopNode := w.node("node-1", "10.0.1.1", src, func(c *link.ClientConfig) { c.RateLimit = 50_000 })
		w.until(10*time.Second, "begin", func() bool { return src.ackedTo(0) > 0 })
		up, _ := w.r.Link("10.0.1.1").Stats()
		for i := range 30 {
			src.put(1, 1, 200)
			if d := w.until(time.Second, "live", func() bool { return src.ackedTo(1) == int64(i+1) }); d > 150*time.Millisecond {
				t.Errorf("a live record took %v under the limit", d)
			}
			time.Sleep(time.Second)
		}
		now, _ := w.r.Link("10.0.1.1").Stats()
		if rate := float64(now.Bytes-up.Bytes) / 33; rate < 40_000 || rate > 58_000 {
			t.Errorf("%.0f bytes a second, the limit is 50,000 and headers", rate)
		}
		stopNode()
		stopHub()
		w.sink.check(t)
		settle()
	})
}
