package relay

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"
)

var (
	chaosFor   = flag.Duration("chaos.for", 8*time.Second, "how long brokers and hubs are killed and stopped")
	chaosSeed  = flag.Uint64("chaos.seed", 0, "of one run; 0 = another each time")
	chaosNodes = flag.Int("chaos.nodes", 16, "nodes")
	chaosDelay = flag.Duration("chaos.delay", 80*time.Millisecond, "round trip between hubs and the cluster")
	relayNodes = flag.Int("relay.nodes", 500, "nodes of TestManyNodesShareTransactions")
)

// delayed passes connections on to addr, every byte half of rtt late, each way.
func delayed(t *testing.T, addr string, rtt time.Duration) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			in, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				out, err := net.Dial("tcp", addr)
				if err != nil {
					in.Close()
					return
				}
				go late(out, in, rtt/2)
				late(in, out, rtt/2)
			}()
		}
	}()
	return ln.Addr().String()
}

// late copies, each piece after a time.
func late(dst, src net.Conn, by time.Duration) {
	type piece struct {
		b  []byte
		at time.Time
	}
	ch := make(chan piece, 4096) // of at most 32 KiB each: a window that no test fills
	go func() {
		defer close(ch)
		for {
			b := make([]byte, 32<<10)
			n, err := src.Read(b)
			if n > 0 {
				ch <- piece{b[:n], time.Now().Add(by)}
			}
			if err != nil {
				return
			}
		}
	}()
	for p := range ch {
		pause(context.Background(), time.Until(p.at))
		if _, err := dst.Write(p.b); err != nil {
			break
		}
	}
	dst.Close()
	src.Close()
	for range ch { // its reader ends
	}
}

// TestChaos: brokers and hubs are killed and stopped at random, hubs come and go, while
// nodes send, with a long way between hubs and cluster. Then everything runs again, every node
// goes on, and a reader that knows nothing of hubs finds each acknowledged record once and
// in order. make kafka-chaos is the long form.
func TestChaos(t *testing.T) {
	f := newFleet(t, 4)
	seed := *chaosSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("seed %d: %s, %d nodes, %s to the cluster", seed, *chaosFor, *chaosNodes, *chaosDelay)
	rnd := rand.New(rand.NewPCG(seed, 1))
	j := job{Brokers: f.c.Addrs, Name: f.Name, Shards: 4, Nodes: *chaosNodes}
	if *chaosDelay > 0 {
		j.Via = map[string]string{}
		for _, a := range f.c.Addrs {
			j.Via[a] = delayed(t, a, *chaosDelay)
		}
	}
	a := &acks{to: map[string]int64{}}
	goOn := func(what string, n int64) {
		t.Helper()
		began := a.get()
		f.until(fmt.Sprintf("seed %d: %s: every node goes on", seed, what), func() bool {
			now := a.get()
			for i := range j.Nodes {
				if node := fmt.Sprint("node", i); now[node] < began[node]+n {
					return false
				}
			}
			return true
		})
	}
	hubs := []*process{f.hub(j, a), f.hub(j, a)}
	goOn("at first", 20)
	ctx, cancel := context.WithTimeout(context.Background(), *chaosFor)
	defer cancel()
	between := func(lo, hi time.Duration) time.Duration { return lo + time.Duration(rnd.Int64N(int64(hi-lo))) }
	did := map[string]int{}
	for ctx.Err() == nil && pause(ctx, between(300*time.Millisecond, 3*time.Second)) {
		i := rnd.IntN(len(hubs))
		b := rnd.IntN(len(f.c.Addrs)) // one at a time: two of three make a quorum
		var what string
		switch rnd.IntN(6) {
		case 0:
			what = "hub killed, another in its place"
			hubs[i].kill()
			hubs[i] = f.hub(j, a)
		case 1:
			what = "hub stopped"
			hubs[i].cmd.Process.Signal(syscall.SIGSTOP)
			pause(ctx, between(time.Second, 12*time.Second))
			hubs[i].cmd.Process.Signal(syscall.SIGCONT)
		case 2:
			if what = "hub added"; len(hubs) < 4 {
				hubs = append(hubs, f.hub(j, a))
				break
			}
			fallthrough
		case 3:
			if what = "hub removed"; len(hubs) > 1 {
				hubs[i].kill()
				hubs = append(hubs[:i], hubs[i+1:]...)
			}
		case 4:
			what = "broker killed"
			f.c.Kill(b)
			pause(ctx, between(time.Second, 8*time.Second))
			if err := f.c.Restart(within(t), b); err != nil {
				t.Fatal(err)
			}
		case 5:
			what = "broker stopped"
			if err := f.c.Pause(b); err != nil {
				t.Fatal(err)
			}
			pause(ctx, between(time.Second, 8*time.Second))
			if err := f.c.Resume(b); err != nil {
				t.Fatal(err)
			}
		}
		did[what]++
	}
	goOn("at last", 20)
	for _, h := range hubs {
		h.kill()
	}
	acked, sum := a.get(), int64(0)
	for _, n := range acked {
		sum += n
	}
	t.Logf("seed %d: %v, %d records acknowledged", seed, did, sum)
	for i, w := range f.audit(f.Name+".wind", acked) {
		if i < 10 {
			t.Errorf("seed %d: %s", seed, w)
		}
	}
}

// TestManyNodesShareTransactions: ten times as many nodes make no more transactions, and no
// more connections.
func TestManyNodesShareTransactions(t *testing.T) {
	f := newFleet(t, 8)
	f.Linger = 50 * time.Millisecond
	r := f.all(f.open())
	phase := func(first, nodes, rounds int) (perAck, perSecond float64, connections int64) {
		before, began := r.Stats(), time.Now()
		var wg sync.WaitGroup
		var mu sync.Mutex
		var failed error
		for i := range nodes {
			wg.Go(func() {
				o := f.origin(first + i)
				err := r.Adopt(within(t), o.Node, epochsOf(o))
				for n := int64(0); n < int64(rounds) && err == nil; n++ { // the next when the last is durable
					_, err = appendTo(within(t), r, o, batch(o, 5*n, 5*n+5))
				}
				mu.Lock()
				defer mu.Unlock()
				if failed == nil {
					failed = err
				}
			})
		}
		wg.Wait()
		if failed != nil {
			t.Fatal(failed)
		}
		s := r.Stats()
		tx := float64(s.Transactions - before.Transactions)
		return tx / float64(nodes*rounds), tx / time.Since(began).Seconds(), s.Connections
	}
	const rounds = 8
	few := *relayNodes / 10
	phase(0, 8, 1) // makes the topic
	a1, s1, _ := phase(10_000, few, rounds)
	a2, s2, c2 := phase(20_000, *relayNodes, rounds)
	t.Logf("%d nodes: %.3f transactions for each acknowledgement, %.0f a second; %d nodes: %.4f, %.0f a second, %d connections", few, a1, s1, *relayNodes, a2, s2, c2)
	if a2 > a1/4 {
		t.Errorf("ten times as many nodes: %.4f transactions for each acknowledgement, it was %.4f with a tenth", a2, a1)
	}
	// A shard commits once a linger at most, whatever the number of nodes.
	if most := float64(f.Shards) / f.Linger.Seconds(); s1 > most || s2 > most {
		t.Errorf("%.0f and %.0f transactions a second, at most %.0f", s1, s2, most)
	}
	if c2 >= 50 {
		t.Errorf("%d connections to the cluster", c2)
	}
}
