package link_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	mrand "math/rand/v2"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"tailrace/uplink/link"
	"tailrace/uplink/link/linktest"
	"tailrace/uplink/wire"
)

var (
	chaosSeed  = flag.Uint64("chaos.seed", 0, "run this one history")
	chaosCount = flag.Int("chaos.count", 12, "histories to run")
)

// Random histories of cuts, losses, restarts and store failures on two nodes and a hub:
// whatever happens, everything arrives once and in order, and no ack is early.
func TestRandomHistories(t *testing.T) {
	first := uint64(1)
	if testing.Short() {
		*chaosCount = min(*chaosCount, 3)
	}
	if *chaosSeed != 0 {
		first, *chaosCount = *chaosSeed, 1
	}
	for seed := first; seed < first+uint64(*chaosCount); seed++ {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { history(t, seed) })
		})
	}
}

func history(t *testing.T, seed uint64) {
	rng := mrand.New(mrand.NewPCG(seed, 77))
	w := newWorld(t, linktest.Path{Rate: float64(1+rng.IntN(20)) * 1e6, Delay: time.Duration(1+rng.IntN(300)) * time.Millisecond, Queue: 200_000, Loss: float64(rng.IntN(4)) / 100})
	tcp := func(c *link.ServerConfig) { c.Listener = w.r.Listen(tcpHub) }
	_, stopHub := w.hub(tcp)
	const nodes = 2
	var src [nodes]*memSource
	var stop [nodes]func()
	id := func(i int) string { return fmt.Sprintf("node-%d", i) }
	ip := func(i int) string { return fmt.Sprintf("10.0.1.%d", i+1) }
	start := func(i int) {
		_, stop[i] = w.node(id(i), ip(i), src[i], func(c *link.ClientConfig) {
			c.BackoffMax, c.ReturnAfter = 10*time.Second, 20*time.Second
			if seed%2 == 0 {
				c.Fallback = []string{tcpHub}
				c.DialTCP = func(ctx context.Context, hub string) (net.Conn, error) { return w.r.DialTCP(ctx, ip(i), hub) }
			}
		})
	}
	for i := range nodes {
		src[i] = newSource(byte(i+1), "wind", "sun")
		start(i)
	}
	var story []string
	tell := func(format string, args ...any) { story = append(story, fmt.Sprintf(format, args...)) }
	for range 25 {
		for range 20 {
			i, p := rng.IntN(nodes), rng.IntN(2)
			for range 1 + rng.IntN(30) {
				src[i].put(p, 1+rng.IntN(20), 1+rng.IntN(400))
			}
			time.Sleep(time.Duration(rng.IntN(100)) * time.Millisecond)
		}
		i := rng.IntN(nodes)
		switch rng.IntN(8) {
		case 0:
			d := time.Duration(rng.IntN(60)) * time.Second
			tell("link %d down %v", i, d)
			w.r.Link(ip(i)).Down(true)
			time.Sleep(d)
			w.r.Link(ip(i)).Down(false)
		case 1:
			tell("hub restarts")
			stopHub()
			_, stopHub = w.hub(tcp)
		case 2:
			tell("hub restarts unheard")
			for n := range nodes {
				w.r.Link(ip(n)).Down(true)
			}
			stopHub()
			_, stopHub = w.hub(tcp)
			for n := range nodes {
				w.r.Link(ip(n)).Down(false)
			}
		case 3:
			tell("node %d restarts", i)
			stop[i]()
			start(i)
		case 4:
			tell("node %d restarts unheard", i)
			w.r.Link(ip(i)).Down(true)
			stop[i]()
			start(i)
			w.r.Link(ip(i)).Down(false)
		case 5:
			tell("store fails")
			w.sink.mu.Lock()
			w.sink.failing = errors.New("no space")
			w.sink.mu.Unlock()
			time.Sleep(time.Duration(rng.IntN(2000)) * time.Millisecond)
			w.sink.mu.Lock()
			w.sink.failing = nil
			w.sink.mu.Unlock()
		case 7:
			tell("link %d passes no UDP up", i)
			w.r.Link(ip(i)).Drop(true, func(int) bool { return true })
			time.Sleep(time.Duration(rng.IntN(60)) * time.Second)
			w.r.Link(ip(i)).Drop(true, nil)
		case 6:
			w.sink.mu.Lock()
			w.sink.latency = time.Duration(rng.IntN(200)) * time.Millisecond
			tell("store takes %v", w.sink.latency)
			w.sink.mu.Unlock()
		}
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("seed %d: %s", seed, strings.Join(story, "; "))
		}
	})
	for i := range nodes {
		for p, topic := range []string{"wind", "sun"} {
			w.until(30*time.Minute, fmt.Sprintf("everything of %s %s (%s)", id(i), topic, strings.Join(story, "; ")), func() bool {
				return src[i].ackedTo(p) == src[i].parts[p].next
			})
			if l := w.sink.stored[originKey{id(i), wire.ID{byte(i + 1)}, topic, 0}]; l != nil && l.records != src[i].parts[p].next {
				t.Errorf("%s %s: %d records stored of %d", id(i), topic, l.records, src[i].parts[p].next)
			}
		}
	}
	for i := range nodes {
		stop[i]()
	}
	stopHub()
	if len(w.sink.forks) > 0 {
		t.Errorf("%d forks of logs that never forked", len(w.sink.forks))
	}
	w.sink.check(t)
	settle()
}

func TestFailingStoreIsRetriedWithBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lan)
		src := newSource(1, "wind")
		src.put(0, 10, 100)
		w.sink.failing = errors.New("no space")
		_, stopHub := w.hub(nil)
		c, stopNode := w.node("node-1", "10.0.1.1", src, func(c *link.ClientConfig) { c.BackoffMax = 5 * time.Second })
		time.Sleep(time.Minute)
		w.sink.mu.Lock()
		n := w.sink.sessions
		w.sink.failing = nil
		w.sink.mu.Unlock()
		if n < 5 || n > 60 {
			t.Errorf("%d sessions in a minute with a store that fails", n)
		}
		if st := c.State(); st.LastError == "" {
			t.Errorf("state says nothing of it: %+v", st)
		}
		w.until(20*time.Second, "the record", func() bool { return src.ackedTo(0) == 10 })
		stopNode()
		stopHub()
		w.sink.check(t)
		settle()
	})
}
