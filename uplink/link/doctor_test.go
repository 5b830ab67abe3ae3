package link_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"math"
	mrand "math/rand/v2"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"tailrace/uplink/link"
	"tailrace/uplink/pki"
)

// diagnose runs on the simulated network from ips in turn, one socket each.
func (w *world) diagnose(change func(*link.DiagnoseConfig), ips ...string) *link.Diagnosis {
	w.t.Helper()
	c := link.DiagnoseConfig{Client: link.ClientConfig{NodeID: "node-1", Hubs: []string{hubAddr}, Fallback: []string{tcpHub},
		TLS:  &tls.Config{Certificates: []tls.Certificate{w.cert(w.ca, pki.RoleNode, "node-1")}, RootCAs: w.pool, ServerName: "hub.test", Time: time.Now},
		Rand: mrand.New(mrand.NewPCG(7, 7)),
		PacketConn: func() (net.PacketConn, error) {
			n := w.port.Add(1)
			return w.r.NodeConn(fmt.Sprintf("%s:%d", ips[int(n-1)%len(ips)], 5000+n)), nil
		},
		DialTCP: func(ctx context.Context, hub string) (net.Conn, error) { return w.r.DialTCP(ctx, ips[0], hub) },
	}}
	if change != nil {
		change(&c)
	}
	d, err := link.Diagnose(context.Background(), c)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, f := range d.Findings {
		w.t.Logf("%v: %s -> %s", f.Problem, f.What, f.Do)
	}
	return d
}

func words(d *link.Diagnosis) (s string) {
	for _, f := range d.Findings {
		s += f.What + "\n"
	}
	return s
}

func near(t *testing.T, what string, got, want, tolerance float64) {
	t.Helper()
	if math.Abs(got-want) > tolerance {
		t.Errorf("%s: %g, want %g", what, got, want)
	}
}

func TestDiagnoseMeasuresTheLink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lte)
		// A node of the same name is connected and stays so.
		src := newSource(1, "wind")
		hub, c, stop := tcpWorld(w, "10.0.1.9", src, nil)
		w.until(10*time.Second, "connected", func() bool { return c.State().Connected })
		session := c.State().Session
		d := w.diagnose(nil, "10.0.1.1")
		p := d.Probes
		if p.Sent != 40 || p.Answered != 40 || p.MaxPacket != 1452 {
			t.Errorf("probes: %+v", p)
		}
		near(t, "probe round trip", p.RTTMedian, 100, 2)
		near(t, "QUIC round trip", d.QUIC.RTT, 100, 10)
		near(t, "QUIC Mbit/s", d.QUIC.BitsPerSecond/1e6, 8.5, 1.5)
		near(t, "TCP Mbit/s", d.TCP.BitsPerSecond/1e6, 8.5, 1.6)
		if q := d.QUIC.Queue; q < 20 || q > 110 { // 125 KB at 10 Mbit/s are 100 ms
			t.Errorf("queue of %.0f ms", q)
		}
		if len(d.Findings) != 0 {
			t.Errorf("findings about a good link: %s", words(d))
		}
		if s := c.State(); s.Session != session || !s.Connected || len(hub.Nodes()) != 1 {
			t.Errorf("the node's session was disturbed: %+v", s)
		}
		stop()
		w.sink.check(t)
		settle()
	})
}

func TestDiagnoseSaysWhatIsWrong(t *testing.T) {
	for name, c := range map[string]struct {
		path   func(w *world)
		change func(*link.DiagnoseConfig)
		want   []string
	}{
		"UDP blocked": {path: func(w *world) { w.r.Link("10.0.1.1").Drop(true, func(int) bool { return true }) },
			want: []string{"UDP does not come through to 10.0.0.1:7443; TCP does"}},
		"all blocked": {path: func(w *world) { w.r.Link("10.0.1.1").Down(true) }, want: []string{"neither UDP nor TCP comes through"}},
		"small packets only": {path: func(w *world) { w.r.Link("10.0.1.1").Drop(true, func(n int) bool { return n > 1100 }) },
			want: []string{"no UDP packet of 1200 bytes came back"}},
		"tunnel": {path: func(w *world) { w.r.Link("10.0.1.1").Drop(true, func(n int) bool { return n > 1400 }) },
			want: []string{"the largest UDP payload that passes is 1372 bytes"}},
		"loss": {path: func(w *world) { p := lte; p.Loss = 0.08; w.r.Link("10.0.1.1").Set(p) },
			want: []string{"of small packets or their answers are lost", "% of QUIC packets are lost under load", "with this loss TCP carries more"}},
		"a stranger's certificate": {change: func(c *link.DiagnoseConfig) { c.Client.TLS.RootCAs = nil },
			want: []string{"UDP packets reach the hub and come back, a QUIC connection fails"}},
		"throttled UDP": {path: func(w *world) { w.throttleUDP("10.0.1.1") }, want: []string{"UDP seems to be throttled"}},
		"certificate at its end": {change: func(c *link.DiagnoseConfig) {}, path: func(w *world) { time.Sleep(350 * 24 * time.Hour) },
			want: []string{"certificate ends on"}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, lte)
				id := w.cert(w.ca, pki.RoleNode, "node-1")
				_, stopHub := w.hub(func(c *link.ServerConfig) { c.Listener = w.r.Listen(tcpHub) })
				if c.path != nil {
					c.path(w)
				}
				d := w.diagnose(func(dc *link.DiagnoseConfig) {
					dc.Client.TLS.Certificates = []tls.Certificate{id}
					if c.change != nil {
						c.change(dc)
					}
				}, "10.0.1.1")
				for _, s := range c.want {
					if !strings.Contains(words(d), s) {
						t.Errorf("it does not say %q but\n%s", s, words(d))
					}
				}
				stopHub()
				settle()
			})
		})
	}
}

// A firewall that forgets a flow after 30 s: what the hub says then is lost.
func TestDiagnoseFindsAForgetfulFirewall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lte)
		_, stopHub := w.hub(nil)
		var mu sync.Mutex
		heard := time.Now()
		l := w.r.Link("10.0.1.1") // the socket that is silent; the second one has another
		l.Drop(true, func(int) bool { mu.Lock(); heard = time.Now(); mu.Unlock(); return false })
		l.Drop(false, func(int) bool { mu.Lock(); defer mu.Unlock(); return time.Since(heard) > 30*time.Second })
		d := w.diagnose(func(c *link.DiagnoseConfig) {
			c.Bytes, c.Client.Fallback = -1, nil
			c.Idle = []time.Duration{20 * time.Second, 60 * time.Second}
		}, "10.0.1.1", "10.0.1.2", "10.0.1.2")
		if len(d.Idle) != 2 || !d.Idle[0].Alive || d.Idle[1].Alive || !strings.Contains(words(d), "after 60 s of silence") {
			t.Errorf("%+v %s", d.Idle, words(d))
		}
		stopHub()
		settle()
	})
}
