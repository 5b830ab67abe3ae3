package link_test

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/binary"
	"flag"
	"fmt"
	"io"
	mrand "math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"tailrace/uplink"
	"tailrace/uplink/link"
	"tailrace/uplink/link/linktest"
	"tailrace/uplink/pki"
	"tailrace/uplink/wire"
)

// The bars of a drain on real sockets and the kernel's own network, in real time: node and hub in two network
// namespaces, joined by a TUN link. It needs root, and is no test of every day: make link-bench runs it.
var netns = flag.Bool("netns", false, "run the drains between two network namespaces (root)")

const (
	netnsRole = "TAILRACE_NETNS_ROLE"
	netnsDir  = "TAILRACE_NETNS_DIR"
	netnsHub  = "10.9.0.2:7443"
)

func TestDrainsBetweenNamespaces(t *testing.T) {
	if !*netns {
		t.Skip("-netns runs it, as root")
	}
	edge, hub := fmt.Sprintf("trl-edge-%d", os.Getpid()), fmt.Sprintf("trl-hub-%d", os.Getpid())
	ip := func(args ...string) {
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v: %s", strings.Join(args, " "), err, out)
		}
	}
	for _, ns := range []string{edge, hub} {
		ip("netns", "add", ns)
		defer exec.Command("ip", "netns", "del", ns).Run()
	}
	tun, err := linktest.NewTun(edge, hub, mrand.New(mrand.NewPCG(1, 1)))
	if err != nil {
		t.Fatal(err)
	}
	defer tun.Close()
	for _, ns := range []string{edge, hub} {
		ip("-n", ns, "link", "set", "lo", "up")
	}
	ip("-n", edge, "addr", "add", "10.9.0.1", "peer", "10.9.0.2", "dev", "tun0")
	ip("-n", hub, "addr", "add", "10.9.0.2", "peer", "10.9.0.1", "dev", "tun0")
	for _, ns := range []string{edge, hub} {
		ip("-n", ns, "link", "set", "tun0", "up", "mtu", "1500")
	}
	for _, b := range drainBars {
		down := b.path
		down.Loss = 0
		tun.Set(b.path, down)
		n := runNetns(t, edge, hub, b, tun)
		slices.Sort(n.over)
		p99 := n.over[len(n.over)*99/100] - b.path.Delay
		fmt.Printf("NETNS %s | %.2f %.0f | %.1f %% | live p50 %d ms p99 %d ms over the one-way delay | %d connections | first record after an outage of 10 s: %d ms\n", b.name, b.share, b.p99.Seconds()*1000, n.share*100,
			(n.over[len(n.over)/2] - b.path.Delay).Milliseconds(), p99.Milliseconds(), n.conns, n.first.Milliseconds())
	}
}

type netnsRun struct {
	share float64
	conns int
	over  []time.Duration // one way
	first time.Duration   // after link-up
}

// runNetns starts a hub and a node, and reads what the hub says.
func runNetns(t *testing.T, edge, hub string, b drainBar, tun *linktest.Tun) (r netnsRun) {
	dir := t.TempDir()
	_, pair, err := pki.NewCA(rand.Reader, "test", time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	os.WriteFile(filepath.Join(dir, "ca.crt"), pair.Cert, 0o600)
	os.WriteFile(filepath.Join(dir, "ca.key"), pair.Key, 0o600)
	start := func(ns, role string) (*exec.Cmd, io.WriteCloser, io.Reader) {
		c := exec.Command("ip", "netns", "exec", ns, os.Args[0], "-test.run", "^TestNamespaceChild$", "-test.v")
		c.Env = append(os.Environ(), netnsRole+"="+role, netnsDir+"="+dir, fmt.Sprintf("TAILRACE_NETNS_BATCHES=%d", int(b.path.Rate/8*(b.warm+b.length+20*time.Second).Seconds()/9_000)))
		c.Stderr = os.Stderr
		in, _ := c.StdinPipe()
		out, _ := c.StdoutPipe()
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		return c, in, out
	}
	hc, hin, hout := start(hub, "hub")
	nc, nin, nout := start(edge, "node")
	go io.Copy(io.Discard, nout)
	defer func() {
		for _, in := range []io.Closer{nin, hin} {
			in.Close()
		}
		nc.Wait()
		hc.Wait()
	}()
	type stat struct {
		at    time.Time
		wire  int64
		conns int
	}
	var mu sync.Mutex
	var stats []stat
	var stored time.Time // when the last frame of the backlog was stored
	go func() {
		for sc := bufio.NewScanner(hout); sc.Scan(); {
			var a, b int64
			var s stat
			now := time.Now()
			mu.Lock()
			switch f := strings.Fields(sc.Text()); {
			case len(f) == 3 && f[0] == "STAT":
				fmt.Sscan(f[1]+" "+f[2], &s.wire, &s.conns)
				s.at = now
				stats = append(stats, s)
			case len(f) == 3 && f[0] == "LIVE":
				fmt.Sscan(f[1]+" "+f[2], &a, &b)
				r.over = append(r.over, time.Duration(a-b)*time.Millisecond)
			case len(f) == 2 && f[0] == "BULK":
				fmt.Sscan(f[1], &a)
				stored = time.UnixMilli(a)
			}
			mu.Unlock()
		}
	}()
	for begin := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		mu.Lock()
		going := !stored.IsZero()
		mu.Unlock()
		if going {
			break
		}
		if time.Since(begin) > time.Minute {
			t.Fatal("nothing came within a minute")
		}
	}
	time.Sleep(b.warm)
	mu.Lock()
	from := stats[len(stats)-1]
	mu.Unlock()
	time.Sleep(b.length)
	mu.Lock()
	to := stats[len(stats)-1]
	mu.Unlock()
	r.share, r.conns = float64(to.wire-from.wire)*8/to.at.Sub(from.at).Seconds()/b.path.Rate, to.conns
	mu.Lock()
	over := len(r.over)
	mu.Unlock()
	tun.Down(true)
	time.Sleep(10 * time.Second)
	mu.Lock()
	before := stored
	mu.Unlock()
	tun.Down(false)
	up := time.Now()
	for time.Since(up) < 20*time.Second {
		time.Sleep(5 * time.Millisecond)
		mu.Lock()
		now := stored
		mu.Unlock()
		if now != before {
			r.first = now.Sub(up)
			break
		}
	}
	mu.Lock()
	r.over = slices.Clone(r.over[:over])
	mu.Unlock()
	return r
}

// tellingSink says when what of a backlog and which live record was stored.
type tellingSink struct{ *memSink }

func (s tellingSink) Append(ctx context.Context, o wire.Origin, batches []byte, done func(uplink.RangeSet, error)) {
	sent := int64(binary.BigEndian.Uint64(batches[35:])) // the batch's time
	s.memSink.Append(ctx, o, batches, func(held uplink.RangeSet, err error) {
		if now := time.Now().UnixMilli(); o.Topic == "sun" {
			fmt.Printf("LIVE %d %d\n", now, sent)
		} else {
			fmt.Printf("BULK %d\n", now)
		}
		done(held, err)
	})
}

// TestNamespaceChild is one end of TestDrainsBetweenNamespaces, in a process of its own.
func TestNamespaceChild(t *testing.T) {
	role := os.Getenv(netnsRole)
	if role == "" {
		t.Skip("started by TestDrainsBetweenNamespaces")
	}
	w := &world{t: t, sink: newSink(), pool: x509.NewCertPool()}
	w.sink.noTimes = true
	cert, err := os.ReadFile(filepath.Join(os.Getenv(netnsDir), "ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	key, err := os.ReadFile(filepath.Join(os.Getenv(netnsDir), "ca.key"))
	if err != nil {
		t.Fatal(err)
	}
	w.pool.AppendCertsFromPEM(cert)
	if w.ca, err = pki.LoadCA(pki.Pair{Cert: cert, Key: key}); err != nil {
		t.Fatal(err)
	}
	over := make(chan struct{})
	go func() { io.Copy(io.Discard, os.Stdin); close(over) }()
	if role == "hub" {
		pc, err := net.ListenPacket("udp", netnsHub)
		if err != nil {
			t.Fatal(err)
		}
		hub, stop := w.runHub(pc, func(c *link.ServerConfig) { c.Sink = tellingSink{w.sink} })
		for {
			select {
			case <-over:
				stop()
				return
			case <-time.After(100 * time.Millisecond):
			}
			if n := hub.Nodes(); len(n) == 1 {
				fmt.Printf("STAT %d %d\n", n[0].WireBytes, n[0].Connections)
			}
		}
	}
	var batches int
	fmt.Sscan(os.Getenv("TAILRACE_NETNS_BATCHES"), &batches)
	src := newSource(1, "wind", "sun")
	noise(src, batches, 10_000)
	_, stop := w.node("node-1", "", src, func(c *link.ClientConfig) {
		c.Hubs = []string{netnsHub}
		c.PacketConn = nil
	})
	src.mu.Lock()
	src.sink = nil // the store is in another process
	src.mu.Unlock()
	for {
		select {
		case <-over:
			stop()
			return
		case <-time.After(100 * time.Millisecond):
			src.put(1, 1, 200)
		}
	}
}
