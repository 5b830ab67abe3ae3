package link_test

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"net/url"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"tailrace/uplink/link"
	"tailrace/uplink/link/linktest"
	"tailrace/uplink/pki"
	"tailrace/uplink/wire"
)

const tcpHub = "10.0.0.1:443"

// tcpWorld is a hub that listens on TCP too, and a node that may use it.
func tcpWorld(w *world, ip string, src *memSource, change func(*link.ClientConfig)) (hub *link.Server, c *link.Client, stop func()) {
	hub, stopHub := w.hub(func(c *link.ServerConfig) { c.Listener = w.r.Listen(tcpHub) })
	c, stopNode := w.node("node-1", ip, src, func(c *link.ClientConfig) {
		c.Fallback = []string{tcpHub}
		c.DialTCP = func(ctx context.Context, hub string) (net.Conn, error) { return w.r.DialTCP(ctx, ip, hub) }
		if change != nil {
			change(c)
		}
	})
	return hub, c, func() { stopNode(); stopHub() }
}

// UDP is blocked: the same protocol goes over TCP, and back to QUIC once that works.
func TestFallsBackToTCPAndReturns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lte)
		l := w.r.Link("10.0.1.1")
		l.Drop(true, func(int) bool { return true })
		src := newSource(1, "wind", "sun")
		for range 400 {
			src.put(0, 10, 500)
		}
		hub, c, stop := tcpWorld(w, "10.0.1.1", src, nil)
		d := w.until(10*time.Second, "connected", func() bool { return c.State().Connected })
		if d > 5*time.Second || c.State().Transport != link.OverTCP {
			t.Errorf("connected after %v over %s", d, c.State().Transport)
		}
		w.until(time.Minute, "the backlog", func() bool { return src.ackedTo(0) == 4000 })
		for range 100 {
			src.put(1, 1, 200)
			time.Sleep(100 * time.Millisecond)
		}
		w.until(time.Second, "live", func() bool { return src.ackedTo(1) == 100 })
		if n := hub.Nodes(); len(n) != 1 || n[0].Transport != link.OverTCP {
			t.Errorf("the hub sees %+v", n)
		}
		l.Down(true)
		time.Sleep(20 * time.Second)
		src.put(1, 1, 200)
		l.Down(false)
		w.until(30*time.Second, "after an outage", func() bool { return src.ackedTo(1) == 101 })
		l.Drop(true, nil)
		d = w.until(6*time.Minute, "QUIC again", func() bool { return c.State().Transport == link.OverQUIC && c.State().Connected })
		t.Logf("back over QUIC after %v", d)
		src.put(1, 1, 200)
		w.until(time.Second, "live over QUIC", func() bool { return src.ackedTo(1) == 102 })
		l.Drop(true, func(int) bool { return true }) // and away in the middle of a session
		src.put(1, 1, 200)
		d = w.until(30*time.Second, "TCP again", func() bool { return src.ackedTo(1) == 103 })
		t.Logf("TCP took over after %v", d)
		if d > 10*time.Second { // 3 s and a bit of silence, 3 s for QUIC to answer, TLS
			t.Errorf("%v until TCP took over", d)
		}
		stop()
		w.sink.check(t)
		settle()
	})
}

// throttleUDP lets 400 kbit/s of a node's packets through and drops the rest.
func (w *world) throttleUDP(node string) {
	var mu sync.Mutex
	var tokens float64
	last := time.Now()
	w.r.Link(node).Drop(true, func(n int) bool {
		mu.Lock()
		defer mu.Unlock()
		tokens = min(tokens+time.Since(last).Seconds()*50_000, 20_000)
		last = time.Now()
		if tokens < float64(n) {
			return true
		}
		tokens -= float64(n)
		return false
	})
}

// A UDP throttle lets every handshake pass and little else: progress decides.
func TestThrottledUDPIsLeftForTCP(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lte)
		w.throttleUDP("10.0.1.1")
		src := newSource(1, "wind")
		noise(src, 6000, 10_000)
		_, c, stop := tcpWorld(w, "10.0.1.1", src, nil)
		w.until(10*time.Second, "connected", func() bool { return c.State().Connected })
		if c.State().Transport != link.OverQUIC {
			t.Error("the handshake should pass over QUIC")
		}
		d := w.until(10*time.Minute, "the backlog", func() bool { return src.ackedTo(0) == 60_000 })
		t.Logf("60 MB after %v over %s", d, c.State().Transport)
		if c.State().Transport != link.OverTCP || d > 4*time.Minute {
			t.Errorf("60 MB took %v, at the end over %s", d, c.State().Transport)
		}
		stop()
		w.sink.check(t)
		settle()
	})
}

func TestTCPThroughAProxyOnRealSockets(t *testing.T) {
	w := newWorld(t, linktest.Path{})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	proxy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer proxy.Close()
	go serveProxy(proxy)
	_, stopHub := w.runHub(pc, func(c *link.ServerConfig) { c.Listener = l })
	src := newSource(1, "wind")
	for range 200 {
		src.put(0, 10, 500)
	}
	deaf, err := net.ListenPacket("udp", "127.0.0.1:0") // takes every packet and answers none
	if err != nil {
		t.Fatal(err)
	}
	defer deaf.Close()
	c, stopNode := w.node("node-1", "", src, func(c *link.ClientConfig) {
		c.Hubs, c.Fallback = []string{deaf.LocalAddr().String()}, []string{l.Addr().String()}
		c.PacketConn = nil
		c.Proxy = &url.URL{Scheme: "http", Host: proxy.Addr().String(), User: url.UserPassword("node", "secret")}
		c.TLS.Certificates[0] = w.cert(w.ca, pki.RoleNode, "node-1")
	})
	for end := time.After(time.Minute); src.ackedTo(0) < 2000; {
		select {
		case <-src.ackCame:
		case <-end:
			t.Fatalf("state %+v", c.State())
		}
	}
	if st := c.State(); st.Transport != link.OverTCP || st.RTT <= 0 {
		t.Errorf("state %+v", st)
	}
	stopNode()
	stopHub()
	w.sink.check(t)
}

func serveProxy(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			r := bufio.NewReader(c)
			req, err := http.ReadRequest(r)
			if err != nil || req.Method != http.MethodConnect || req.Header.Get("Proxy-Authorization") == "" {
				io.WriteString(c, "HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")
				return
			}
			to, err := net.Dial("tcp", req.Host)
			if err != nil {
				io.WriteString(c, "HTTP/1.1 502 Bad Gateway\r\n\r\n")
				return
			}
			defer to.Close()
			io.WriteString(c, "HTTP/1.1 200 Connection established\r\n\r\n")
			go func() { io.Copy(to, r); to.Close() }()
			io.Copy(c, to)
		}()
	}
}

// slowHello holds the hub's answer to a Hello back, while the session before goes on.
type slowHello struct {
	link.Sink
	wait time.Duration
}

func (s slowHello) Admit(string, wire.Hello) error { time.Sleep(s.wait); return nil }

// What the older session delivers after the newer one's Hello was written is not another log.
func TestRecordsSentBesideAHelloAreNoFork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lte)
		l := w.r.Link("10.0.1.1")
		l.Drop(true, func(int) bool { return true })
		src := newSource(1, "wind")
		_, stopHub := w.hub(func(c *link.ServerConfig) {
			c.Listener, c.Sink = w.r.Listen(tcpHub), slowHello{w.sink, time.Second}
		})
		c, stopNode := w.node("node-1", "10.0.1.1", src, func(c *link.ClientConfig) {
			c.Fallback, c.ReturnAfter = []string{tcpHub}, 10*time.Second
			c.DialTCP = func(ctx context.Context, hub string) (net.Conn, error) { return w.r.DialTCP(ctx, "10.0.1.1", hub) }
			c.OnFork = func(wire.Fork, string, int) { t.Error("a fork of a log that never forked") }
		})
		w.until(10*time.Second, "connected", func() bool { return c.State().Connected })
		l.Drop(true, nil)
		for range 2000 {
			src.put(0, 1, 200)
			time.Sleep(10 * time.Millisecond)
		}
		w.until(time.Minute, "all of it", func() bool { return src.ackedTo(0) == 2000 })
		if st := c.State(); st.Transport != link.OverQUIC {
			t.Errorf("over %s at the end", st.Transport)
		}
		stopNode()
		stopHub()
		w.sink.check(t)
		settle()
	})
}
