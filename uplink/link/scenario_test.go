package link_test

import (
	"errors"
	"fmt"
	mrand "math/rand/v2"
	"net"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"tailrace/uplink"
	"tailrace/uplink/link"
	"tailrace/uplink/link/linktest"
	"tailrace/uplink/pki"
	"tailrace/uplink/wire"
)

var lte = linktest.Path{Rate: 10e6, Delay: 50 * time.Millisecond, Queue: 125_000}

func TestLossySlowLinkDeliversOnceAndInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := lte
		p.Loss = 0.01
		w := newWorld(t, p)
		src := newSource(1, "wind", "sun")
		for range 2000 {
			src.put(0, 10, 100)
		}
		_, stopHub := w.hub(nil)
		_, stopNode := w.node("node-1", "10.0.1.1", src, nil)
		for range 500 {
			src.put(1, 2, 100)
			time.Sleep(10 * time.Millisecond)
		}
		w.until(2*time.Minute, "everything at the hub", func() bool {
			return w.sink.records("node-1", "wind") == 20000 && w.sink.records("node-1", "sun") == 1000
		})
		stopNode()
		stopHub()
		w.sink.check(t)
		settle()
	})
}

// The bar: the link is down for 10 minutes at 2,000 records/s.
func TestTenMinuteOutageAtTwoThousandRecordsPerSecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lte)
		src := newSource(1, "wind")
		_, stopHub := w.hub(nil)
		c, stopNode := w.node("node-1", "10.0.1.1", src, nil)
		put := func(d time.Duration) {
			for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
				src.put(0, 40, 20)
			}
		}
		put(5 * time.Second)
		before, stored := heap(), sourceBytes(src)
		w.r.Link("10.0.1.1").Down(true)
		put(10 * time.Minute)
		if n := c.State().InFlightBytes; n > 9<<20 {
			t.Errorf("%d bytes in flight after the outage", n)
		}
		if grown := heap() - before - (sourceBytes(src) - stored); grown > 4<<20 {
			t.Errorf("the node's memory grew by %d bytes in the outage", grown)
		}
		w.r.Link("10.0.1.1").Down(false)
		up := time.Now()
		had := w.sink.records("node-1", "wind")
		first := w.until(time.Minute, "first record after the outage", func() bool { return w.sink.records("node-1", "wind") > had })
		if first > 500*time.Millisecond+4*50*time.Millisecond {
			t.Errorf("the first record took %v after the link came up, want 0.5 s and two round trips", first)
		}
		put(20 * time.Second)
		total := src.parts[0].next
		w.until(5*time.Minute, "everything at the hub", func() bool { return w.sink.records("node-1", "wind") == total && src.ackedTo(0) == total })
		t.Logf("first record %v after the link came up, all %d after %v; peak at the hub %d bytes", first, total, time.Since(up), w.sink.peak)
		if w.sink.peak > 10<<20 {
			t.Errorf("%d bytes waited at the hub", w.sink.peak)
		}
		stopNode()
		stopHub()
		w.sink.check(t)
		settle()
	})
}

// The bar: 0.5 s and two round trips of 100 ms, for outages of 10 s to 7 days. With an event of the
// interface the node asks nothing while the link is down; without one it asks every 0.3 s.
func TestFirstRecordAfterAnyOutage(t *testing.T) {
	for _, outage := range []time.Duration{10 * time.Second, 47 * time.Second, 3 * time.Minute, time.Hour, 24 * time.Hour, 7 * 24 * time.Hour} {
		for _, event := range []bool{true, false} {
			if testing.Short() && !event && outage > 24*time.Hour {
				continue // two million probes
			}
			firstRecord(t, outage, event)
		}
	}
}

func firstRecord(t *testing.T, outage time.Duration, event bool) {
	synctest.Test(t, func(t *testing.T) {
		kind := "silent outage"
		w := newWorld(t, lte)
		src := newSource(1, "wind")
		_, stopHub := w.hub(nil)
		c, stopNode := w.node("node-1", "10.0.1.1", src, func(c *link.ClientConfig) {
			if event {
				c.Probe, kind = -1, "link-up event, outage"
			}
		})
		w.until(5*time.Second, "connected", func() bool { return c.State().Connected })
		w.r.Link("10.0.1.1").Down(true)
		for end := time.Now().Add(outage); time.Now().Before(end); time.Sleep(outage / 100) {
			src.put(0, 1, 100)
		}
		w.r.Link("10.0.1.1").Down(false)
		if event {
			c.LinkUp()
		}
		d := w.until(2*time.Minute, "first record", func() bool { return w.sink.records("node-1", "wind") > 0 })
		t.Logf("%s %v: first record after %v", kind, outage, d)
		if d > 700*time.Millisecond {
			t.Errorf("%s %v: first record after %v", kind, outage, d)
		}
		w.until(10*time.Second, "everything", func() bool { return src.ackedTo(0) == src.parts[0].next })
		stopNode()
		stopHub()
		w.sink.check(t)
		settle()
	})
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

func sourceBytes(s *memSource) (n int64) {
	for _, p := range s.parts {
		for i := range p.batches {
			n += int64(cap(p.batches[i].b))
		}
		n += int64(cap(p.batches)) * 40
	}
	return n
}

func TestHubRestartResumesFromDurableProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lan)
		w.sink.latency = 3 * time.Millisecond
		src := newSource(1, "wind")
		_, stopHub := w.hub(nil)
		_, stopNode := w.node("node-1", "10.0.1.1", src, nil)
		for i := range 1000 {
			src.put(0, 3, 100)
			time.Sleep(5 * time.Millisecond)
			if i == 300 || i == 600 {
				stopHub()
				_, stopHub = w.hub(nil)
			}
		}
		d := w.until(time.Minute, "everything at the hub", func() bool { return w.sink.records("node-1", "wind") == 3000 })
		t.Logf("caught up %v after the last record, %d sessions", d, w.sink.sessions)
		stopNode()
		stopHub()
		w.sink.check(t)
		settle()
	})
}

// A hub that loses power closes nothing: the node must notice by itself.
func TestHubVanishesAndComesBackWithoutAWord(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lan)
		src := newSource(1, "wind")
		_, stopHub := w.hub(nil)
		c, stopNode := w.node("node-1", "10.0.1.1", src, nil)
		w.until(5*time.Second, "connected", func() bool { return c.State().Connected })
		w.r.Link("10.0.1.1").Down(true) // nobody hears the close
		stopHub()
		_, stopHub = w.hub(nil)
		w.r.Link("10.0.1.1").Down(false)
		src.put(0, 5, 100)
		d := w.until(10*time.Second, "record at the restarted hub", func() bool { return w.sink.records("node-1", "wind") == 5 })
		if d > 2*time.Second {
			t.Errorf("took %v: a stateless reset tells a node of a restart within a round trip", d)
		}
		stopNode()
		stopHub()
		w.sink.check(t)
		settle()
	})
}

func TestNodeRestartSendsWhatTheHubLacks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lte)
		w.sink.latency = 20 * time.Millisecond
		src := newSource(1, "wind")
		_, stopHub := w.hub(nil)
		for round := range 5 {
			_, stopNode := w.node("node-1", "10.0.1.1", src, nil)
			for range 200 {
				src.put(0, 3, 200)
				time.Sleep(3 * time.Millisecond)
			}
			if round == 4 {
				w.until(time.Minute, "everything at the hub", func() bool { return w.sink.records("node-1", "wind") == 3000 })
			}
			stopNode()
		}
		stopHub()
		w.sink.check(t)
		settle()
	})
}

// The hub made data durable, but its acks never reached the node: nothing is stored twice.
func TestLostAcksDoNotStoreTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lan)
		src := newSource(1, "wind")
		_, stopHub := w.hub(nil)
		_, stopNode := w.node("node-1", "10.0.1.1", src, nil)
		src.put(0, 10, 100)
		w.until(5*time.Second, "first batch acked", func() bool { return src.ackedTo(0) == 10 })
		w.r.Link("10.0.1.1").Drop(false, func(int) bool { return true }) // nothing comes back
		for range 100 {
			src.put(0, 10, 100)
			time.Sleep(time.Millisecond)
		}
		w.until(5*time.Second, "data at the hub", func() bool { return w.sink.records("node-1", "wind") > 10 })
		time.Sleep(time.Minute)
		acked, had := src.ackedTo(0), w.sink.records("node-1", "wind")
		if acked >= had {
			t.Fatalf("acked %d, held %d: the test lost no ack", acked, had)
		}
		w.r.Link("10.0.1.1").Drop(false, nil)
		w.until(2*time.Minute, "everything acked", func() bool { return src.ackedTo(0) == 1010 })
		stopNode()
		stopHub()
		w.sink.check(t)
		settle()
	})
}

func TestNewSessionOfANodeDisplacesTheOlder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lan)
		w.sink.latency = 50 * time.Millisecond
		src := newSource(1, "wind")
		hub, stopHub := w.hub(nil)
		a, stopA := w.node("node-1", "10.0.1.1", src, nil)
		src.put(0, 10, 100)
		w.until(5*time.Second, "first session", func() bool { return a.State().Connected })
		first := a.State().Session
		for range 100 {
			src.put(0, 10, 100)
		}
		_, stopB := w.node("node-1", "10.0.1.2", src, nil)
		w.until(10*time.Second, "takeover", func() bool {
			n := hub.Nodes()
			return len(n) == 1 && n[0].Info.Session != first
		})
		w.until(10*time.Second, "everything", func() bool { return w.sink.records("node-1", "wind") == 1010 })
		w.until(time.Second, "the older is told", func() bool { return strings.Contains(a.State().LastError, "taken over") })
		stopA()
		stopB()
		stopHub()
		w.sink.check(t)
		settle()
	})
}

func TestForkedLogIsNotMerged(t *testing.T) {
	for _, c := range []struct {
		name  string
		twist func(src *memSource)
	}{
		{"other bytes at the last batch", func(s *memSource) {
			s.parts[0].batches[9].b = linktest.AppendBatch(nil, 90, 10, 1, []byte("something else"))
		}},
		{"the log ends before what is held", func(s *memSource) {
			s.parts[0].batches, s.parts[0].next = s.parts[0].batches[:5], 50
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, lan)
				src := newSource(1, "forked", "wind")
				hub, stopHub := w.hub(nil)
				_, stopNode := w.node("node-1", "10.0.1.1", src, nil)
				for range 10 {
					src.put(0, 10, 100)
				}
				w.until(5*time.Second, "data", func() bool { return src.ackedTo(0) == 100 })
				stopNode()
				c.twist(src)
				clear(src.parts[0].acked)
				src.put(0, 10, 100)
				told := make(chan string, 8)
				_, stopNode = w.node("node-1", "10.0.1.1", src, func(c *link.ClientConfig) {
					c.OnFork = func(f wire.Fork, topic string, partition int) { told <- topic }
				})
				src.put(1, 10, 100)
				w.until(5*time.Second, "the fork", func() bool { return len(hub.Nodes()) == 1 && len(hub.Nodes()[0].Forked) == 1 })
				time.Sleep(time.Minute)
				if n := w.sink.records("node-1", "wind"); n != 0 {
					t.Errorf("%d records of another topic of a log that is not the one held here", n)
				}
				if n := w.sink.records("node-1", "forked"); n != 100 {
					t.Errorf("%d records of the forked partition, want the 100 from before", n)
				}
				if a := src.parts[0].acked[wire.ID{1}]; a != nil {
					t.Errorf("the node was told that %s of its other log is durable", a)
				}
				if n := hub.Nodes(); len(n) != 1 || len(n[0].Forked) != 1 || len(w.sink.forks) != 1 {
					t.Errorf("fork not reported: %+v, sink %+v", n, w.sink.forks)
				}
				if len(told) != 1 || <-told != "forked" {
					t.Error("the node's owner was not told of the fork")
				}
				stopNode()
				stopHub()
				w.sink.check(t)
				settle()
			})
		})
	}
}

func TestWrongCertificateIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lan)
		other, _ := newCA(t)
		_, stopHub := w.hub(nil)
		for i, change := range []func(*link.ClientConfig){
			func(c *link.ClientConfig) { c.TLS.Certificates[0] = w.cert(other, pki.RoleNode, "node-1") }, // foreign authority
			func(c *link.ClientConfig) { c.TLS.Certificates[0] = w.cert(w.ca, pki.RoleNode, "node-2") },  // other node
			func(c *link.ClientConfig) { c.TLS.Certificates[0] = w.cert(w.ca, pki.RoleHub, "node-1") },   // a hub's
			func(c *link.ClientConfig) { _, c.TLS.RootCAs = newCA(t) },                                   // hub not trusted
		} {
			src := newSource(1, "wind")
			src.put(0, 10, 100)
			c, stop := w.node("node-1", fmt.Sprintf("10.0.1.%d", i+1), src, change)
			time.Sleep(10 * time.Second)
			if st := c.State(); st.Connected || st.LastError == "" {
				t.Errorf("case %d: state %+v", i, st)
			} else {
				t.Logf("case %d: %s", i, st.LastError)
			}
			stop()
		}
		if len(w.sink.stored) != 0 || w.sink.sessions != 0 {
			t.Error("something reached the store")
		}
		stopHub()
		settle()
	})
}

// A store that does not keep up costs credit, not memory.
func TestSlowSinkGivesNoCredit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lan)
		src := newSource(1, "wind")
		for range 20000 {
			src.put(0, 10, 100)
		}
		w.sink.hold = make(chan struct{})
		_, stopHub := w.hub(func(c *link.ServerConfig) { c.Credit = [wire.Lanes]int64{1 << 20, 1 << 20, 2 << 20} })
		c, stopNode := w.node("node-1", "10.0.1.1", src, nil)
		w.until(10*time.Second, "connected", func() bool { return c.State().Connected })
		time.Sleep(time.Minute)
		if n := c.State().InFlightBytes; n < 64<<10 || n > 3<<20+128<<10 {
			t.Errorf("%d bytes in flight with a store that takes nothing", n)
		}
		if st := c.State(); !st.Connected || st.Reconnects > 0 {
			t.Errorf("a slow store looks like a dead link: %+v", st)
		}
		w.sink.mu.Lock()
		close(w.sink.hold)
		w.sink.hold = nil
		w.sink.latency = 10 * time.Millisecond
		w.sink.mu.Unlock()
		w.until(5*time.Minute, "everything", func() bool { return src.ackedTo(0) == 200000 })
		if w.sink.peak > 4<<20 {
			t.Errorf("%d bytes waited at the hub", w.sink.peak)
		}
		stopNode()
		stopHub()
		w.sink.check(t)
		settle()
	})
}

func TestManyNodesShareTheHubsBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lan)
		w.sink.hold = make(chan struct{})
		const nodes = 8
		_, stopHub := w.hub(func(c *link.ServerConfig) { c.TotalBytes = 4 << 20 })
		var stops []func()
		for i := range nodes {
			src := newSource(byte(i+1), "wind")
			for range 2000 {
				src.put(0, 10, 200)
			}
			_, stop := w.node(fmt.Sprintf("node-%d", i), fmt.Sprintf("10.0.1.%d", i+1), src, nil)
			stops = append(stops, stop)
		}
		time.Sleep(30 * time.Second)
		w.sink.mu.Lock()
		close(w.sink.hold)
		w.sink.hold, w.sink.latency = nil, 2*time.Millisecond
		w.sink.mu.Unlock()
		for i := range nodes {
			w.until(5*time.Minute, "everything", func() bool { return w.sink.records(fmt.Sprintf("node-%d", i), "wind") == 20000 })
		}
		// The budget, and what every session has outside it: first credit and one frame.
		if most := int64(4<<20 + nodes*(256<<10+128<<10)); w.sink.peak > most {
			t.Errorf("%d bytes waited at the hub, the budget allows %d", w.sink.peak, most)
		}
		for _, stop := range stops {
			stop()
		}
		stopHub()
		w.sink.check(t)
		settle()
	})
}

// The hub answers heartbeats, but nothing becomes durable: the node starts anew.
func TestStuckStreamIsRedialled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lan)
		src := newSource(1, "wind")
		w.sink.hold = make(chan struct{}) // the first session's Append hangs until that session ends
		_, stopHub := w.hub(nil)
		c, stopNode := w.node("node-1", "10.0.1.1", src, func(c *link.ClientConfig) { c.StallTimeout = 20 * time.Second })
		src.put(0, 10, 100)
		w.until(5*time.Second, "connected", func() bool { return c.State().Connected })
		w.sink.mu.Lock()
		hold := w.sink.hold
		w.sink.mu.Unlock()
		time.Sleep(10 * time.Second)
		w.sink.mu.Lock()
		w.sink.hold = nil
		w.sink.mu.Unlock()
		if w.sink.sessions != 1 {
			t.Errorf("%d sessions before the stall", w.sink.sessions)
		}
		w.until(time.Minute, "everything in a second session", func() bool { return src.ackedTo(0) == 10 })
		if w.sink.sessions != 2 {
			t.Errorf("%d sessions", w.sink.sessions)
		}
		close(hold)
		stopNode()
		stopHub()
		w.sink.check(t)
		settle()
	})
}

func TestEvictedRangeIsDeclaredOnceAndTheRestArrives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lan)
		src := newSource(1, "wind")
		for range 100 {
			src.put(0, 10, 100)
		}
		src.evict(0, 400)
		_, stopHub := w.hub(nil)
		_, stopNode := w.node("node-1", "10.0.1.1", src, nil)
		w.until(10*time.Second, "everything acked", func() bool { return src.ackedTo(0) == 1000 })
		var lost uplink.RangeSet
		for _, g := range w.sink.gaps {
			if g.Reason != wire.GapEvicted {
				t.Errorf("gap with reason %s", g.Reason)
			}
			lost.AddSet(g.Ranges)
		}
		if lost.String() != "[0,400)" || w.sink.records("node-1", "wind") != 600 {
			t.Errorf("declared %s, stored %d", lost, w.sink.records("node-1", "wind"))
		}
		if len(src.Gaps()) != 0 {
			t.Error("the node still keeps acknowledged gaps")
		}
		stopNode()
		stopHub()
		w.sink.check(t)
		settle()
	})
}

func TestOlderEpochIsFinishedBeforeTheYounger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lan)
		src := newSource(1, "wind")
		for range 50 {
			src.put(0, 10, 100)
		}
		src.epochs = append(src.epochs, wire.EpochInfo{ID: wire.ID{2}, Parent: wire.ID{1}, Number: 2, Forks: []wire.ForkPoint{{Topic: "wind", Offset: 500}}})
		for range 50 {
			src.put(0, 10, 100)
		}
		// In epoch 2 nothing below the fork exists.
		w.sink.stored[originKey{"node-1", wire.ID{2}, "wind", 0}] = &memLog{held: uplink.RangeSet{{From: 0, To: 500}}, next: 500, lanes: map[wire.Lane]int64{}}
		var order []string
		w.sink.appended = func(o wire.Origin, n int64) {
			if e := o.Epoch.String()[:2]; len(order) == 0 || order[len(order)-1] != e {
				order = append(order, e)
			}
		}
		_, stopHub := w.hub(nil)
		_, stopNode := w.node("node-1", "10.0.1.1", src, nil)
		w.until(10*time.Second, "both epochs", func() bool { return w.sink.records("node-1", "wind") == 1000 })
		if got := strings.Join(order, " "); got != "01 02" {
			t.Errorf("epochs were stored in the order %s", got)
		}
		stopNode()
		stopHub()
		w.sink.check(t)
		settle()
	})
}

// A log that was cut after a disk error goes on in a new epoch while the node runs.
func TestNewEpochStartsANewSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lan)
		src := newSource(1, "wind")
		src.put(0, 100, 100)
		_, stopHub := w.hub(nil)
		_, stopNode := w.node("node-1", "10.0.1.1", src, nil)
		w.until(5*time.Second, "first epoch", func() bool { return src.ackedTo(0) == 100 })
		src.mu.Lock()
		src.epochs = append(src.epochs, wire.EpochInfo{ID: wire.ID{2}, Parent: wire.ID{1}, Number: 2, Forks: []wire.ForkPoint{{Topic: "wind", Offset: 100}}})
		src.gen++
		w.sink.stored[originKey{"node-1", wire.ID{2}, "wind", 0}] = &memLog{held: uplink.RangeSet{{From: 0, To: 100}}, next: 100, lanes: map[wire.Lane]int64{}}
		src.mu.Unlock()
		src.put(0, 10, 100)
		w.until(time.Second, "second epoch", func() bool { return w.sink.records("node-1", "wind") == 110 })
		if w.sink.sessions != 2 {
			t.Errorf("%d sessions", w.sink.sessions)
		}
		stopNode()
		stopHub()
		w.sink.check(t)
		settle()
	})
}

func TestLiveFirstSendsNewDataBeforeTheBacklog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, linktest.Path{Rate: 1e6, Delay: 50 * time.Millisecond, Queue: 60_000})
		src := newSource(1, "live-first")
		src.parts[0].mode = wire.ModeLiveFirst
		rng := mrand.New(mrand.NewPCG(3, 4))
		for range 400 { // 4 MB that do not compress
			b := make([]byte, 10_000)
			for i := range b {
				b[i] = byte(rng.Uint32())
			}
			p := src.parts[0]
			p.batches = append(p.batches, memBatch{p.next, p.next + 10, linktest.AppendBatch(nil, p.next, 10, 1, b)})
			p.next += 10
		}
		_, stopHub := w.hub(nil)
		c, stopNode := w.node("node-1", "10.0.1.1", src, nil)
		w.until(5*time.Second, "connected", func() bool { return c.State().Connected })
		time.Sleep(2 * time.Second)
		src.put(0, 1, 100)
		log := func() *memLog { return w.sink.stored[originKey{"node-1", wire.ID{1}, "live-first", 0}] }
		d := w.until(5*time.Second, "the new record", func() bool {
			w.sink.mu.Lock()
			defer w.sink.mu.Unlock()
			return log() != nil && log().held.Contains(4000)
		})
		w.sink.mu.Lock()
		if held := log().held.Count(); held > 3900 {
			t.Errorf("the backlog of %d was there first", held)
		}
		w.sink.mu.Unlock()
		t.Logf("new record %v after its publish, behind %d bytes of backlog", d, 4_000_000)
		w.until(2*time.Minute, "the backlog", func() bool { return src.ackedTo(0) == 4001 })
		if n := log().lanes[wire.LaneBackfill]; n != 4000 {
			t.Errorf("%d records by the backfill lane", n)
		}
		stopNode()
		stopHub()
		w.sink.check(t)
		settle()
	})
}

func TestOnDemandRangeIsSentWhenAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lan)
		src := newSource(1, "on-demand")
		src.parts[0].mode = wire.ModeOnDemand
		for range 100 {
			src.put(0, 10, 100)
		}
		hub, stopHub := w.hub(nil)
		c, stopNode := w.node("node-1", "10.0.1.1", src, nil)
		w.until(5*time.Second, "connected", func() bool { return c.State().Connected })
		time.Sleep(5 * time.Second)
		if n := w.sink.records("node-1", "on-demand"); n != 0 {
			t.Errorf("%d records came unasked", n)
		}
		if err := hub.Want("node-1", "on-demand", 0, wire.ID{1}, uplink.RangeSet{{From: 200, To: 300}, {From: 700, To: 750}}, wire.LaneBackfill, 0); err != nil {
			t.Fatal(err)
		}
		w.until(5*time.Second, "the range", func() bool { return w.sink.records("node-1", "on-demand") == 150 })
		time.Sleep(5 * time.Second)
		if got := w.sink.stored[originKey{"node-1", wire.ID{1}, "on-demand", 0}].held.String(); got != "[200,300)[700,750)" {
			t.Errorf("got %s", got)
		}
		if err := hub.Want("nobody", "x", 0, wire.ID{1}, uplink.RangeSet{{From: 0, To: 1}}, 0, 0); !errors.Is(err, link.ErrNotConnected) {
			t.Errorf("want from an absent node: %v", err)
		}
		stopNode()
		stopHub()
		settle()
	})
}

func TestNewTopicIsReplicatedWithoutReconnecting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lan)
		src := newSource(1, "wind")
		_, stopHub := w.hub(nil)
		c, stopNode := w.node("node-1", "10.0.1.1", src, func(c *link.ClientConfig) {
			c.Status = func() wire.Status { return wire.Status{Devices: 3} }
			c.StatusInterval = time.Second
		})
		w.until(5*time.Second, "connected", func() bool { return c.State().Connected })
		src.addTopic("sun")
		src.put(1, 10, 100)
		w.until(time.Second, "record of the new topic", func() bool { return w.sink.records("node-1", "sun") == 10 })
		if w.sink.sessions != 1 {
			t.Errorf("%d sessions", w.sink.sessions)
		}
		w.until(5*time.Second, "status", func() bool { w.sink.mu.Lock(); defer w.sink.mu.Unlock(); return w.sink.statuses > 0 })
		src.put(1, 10, 100)
		w.until(5*time.Second, "status after more records", func() bool { w.sink.mu.Lock(); defer w.sink.mu.Unlock(); return w.sink.statuses > 1 })
		stopNode()
		stopHub()
		w.sink.check(t)
		settle()
	})
}

// Publish to hub is one hop and no polling: half a round trip of the link.
func TestLiveRecordTakesOneHop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, linktest.Path{Delay: 40 * time.Millisecond})
		src := newSource(1, "wind")
		_, stopHub := w.hub(nil)
		c, stopNode := w.node("node-1", "10.0.1.1", src, nil)
		w.until(5*time.Second, "connected", func() bool { return c.State().Connected })
		time.Sleep(time.Second)
		for i := range 20 {
			start := time.Now()
			src.put(0, 1, 100)
			w.until(time.Second, "record", func() bool { return w.sink.records("node-1", "wind") == int64(i+1) })
			l := w.sink.stored[originKey{"node-1", wire.ID{1}, "wind", 0}]
			if d := l.times[len(l.times)-1].Sub(start); d > 42*time.Millisecond {
				t.Errorf("record %d took %v", i, d)
			}
			time.Sleep(time.Second)
		}
		stopNode()
		stopHub()
		settle()
	})
}

func TestFencedNodeIsRefusedAndComesBackLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lan)
		w.sink.refuse = &link.RefuseError{Code: wire.CodeFenced, Message: "a clone", RetryAfter: time.Minute}
		src := newSource(1, "wind")
		src.put(0, 10, 100)
		_, stopHub := w.hub(nil)
		start := time.Now()
		c, stopNode := w.node("node-1", "10.0.1.1", src, nil)
		w.until(5*time.Second, "refusal", func() bool { return strings.Contains(c.State().LastError, "a clone") })
		w.sink.mu.Lock()
		w.sink.refuse = nil
		w.sink.mu.Unlock()
		w.until(3*time.Minute, "connected", func() bool { return c.State().Connected })
		if d := time.Since(start); d < time.Minute || d > 100*time.Second {
			t.Errorf("came back after %v, the hub asked for a minute", d)
		}
		stopNode()
		stopHub()
		w.sink.check(t)
		settle()
	})
}

func TestRealLoopback(t *testing.T) {
	w := newWorld(t, lan)
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	hub, stopHub := w.runHub(pc, nil)
	src := newSource(1, "wind")
	for range 2000 {
		src.put(0, 10, 100)
	}
	_, stopNode := w.node("node-1", "", src, func(c *link.ClientConfig) {
		c.Hubs = []string{pc.LocalAddr().String()}
		c.PacketConn = nil
	})
	for end := time.After(30 * time.Second); src.ackedTo(0) < 20000; {
		select {
		case <-src.ackCame:
		case <-end:
			t.Fatal("not everything was acknowledged")
		}
	}
	if n := w.sink.records("node-1", "wind"); n != 20000 {
		t.Errorf("%d records arrived over UDP", n)
	}
	if n := hub.Nodes(); len(n) != 1 || n[0].Node != "node-1" || n[0].WireBytes == 0 || n[0].WireBytes > n[0].BytesReceived/2 {
		t.Errorf("nodes: %+v", n)
	}
	stopNode()
	stopHub()
	w.sink.check(t)
}
