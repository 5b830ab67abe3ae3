package link_test

import (
	"testing"
	"testing/synctest"
	"time"

	"tailrace/uplink"
	"tailrace/uplink/link"
	"tailrace/uplink/wire"
)

// TestWhatIsGivenUpIsDeclaredWhenTheStartMoves: the Sender hears why before it hears that
// the start has moved, and not with the next read, which a slow link may put off for long:
// in between it would take what was evicted for expired.
func TestWhatIsGivenUpIsDeclaredWhenTheStartMoves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lan)
		src := newSource(1, "wind")
		for range 500 {
			src.put(0, 10, 1000)
		}
		w.sink.hold = make(chan struct{}) // the hub stores nothing: nothing is acknowledged, and nothing more is read
		_, stopHub := w.hub(nil)
		c, stopNode := w.node("node-1", "10.0.1.1", src, func(c *link.ClientConfig) {
			c.WindowBytes, c.StatusInterval, c.StallTimeout = 256<<10, 10*time.Minute, 10*time.Minute
		})
		w.until(time.Minute, "what the window allows is under way", func() bool { return c.State().InFlightBytes > 0 })
		time.Sleep(10 * time.Second)
		src.evict(0, 4990)
		src.signal()
		declared := func() (set uplink.RangeSet) {
			w.sink.mu.Lock()
			defer w.sink.mu.Unlock()
			for _, g := range w.sink.gaps {
				if g.Reason != wire.GapEvicted {
					t.Errorf("gap %s with reason %s", g.Ranges, g.Reason)
				}
				set.AddSet(g.Ranges)
			}
			return set
		}
		w.until(5*time.Second, "the loss declared", func() bool { s := declared(); return s.Covers(2000, 4990) })
		close(w.sink.hold)
		w.until(time.Hour, "everything acked", func() bool { return src.ackedTo(0) == 5000 })
		declared()
		stopNode()
		stopHub()
		w.sink.check(t)
		settle()
	})
}
