package link_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/quic-go/quic-go"

	"tailrace/uplink/link"
	"tailrace/uplink/link/linktest"
	"tailrace/uplink/pki"
	"tailrace/uplink/wire"
)

// knock begins a handshake with the hub from ip and lets it hang: the client never gets over the hub's certificate.
func (w *world) knock(t *testing.T, ip string, port int, hang <-chan struct{}) {
	tr := &quic.Transport{Conn: w.r.NodeConn(fmt.Sprintf("%s:%d", ip, port))}
	conf := &tls.Config{Certificates: []tls.Certificate{w.cert(w.ca, pki.RoleNode, "node-x")}, RootCAs: w.pool, ServerName: "hub.test", NextProtos: []string{wire.ALPN}, Time: time.Now,
		VerifyConnection: func(tls.ConnectionState) error { <-hang; return nil }}
	addr, err := net.ResolveUDPAddr("udp", hubAddr)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if conn, err := tr.Dial(ctx, addr, conf, &quic.Config{InitialPacketSize: 1200, DisablePathMTUDiscovery: true}); err == nil {
			conn.CloseWithError(0, "")
		}
	}()
	t.Cleanup(func() { cancel(); <-done; tr.Close() })
}

// watchDoor says how many handshakes were under way at most until ok.
func (w *world) watchDoor(limit time.Duration, what string, hub *link.Server, ok func() bool) (took time.Duration, most int64) {
	took = w.until(limit, what, func() bool {
		most = max(most, hub.Door().UnderWay)
		return ok()
	})
	return took, most
}

// Of a fleet that comes at once as many handshakes are under way as allowed. The rest come in turn, and
// hardly one is begun for nothing.
func TestHandshakesUnderWayAreBounded(t *testing.T) {
	const nodes = 100
	for _, c := range []struct {
		name  string
		most  int
		limit time.Duration
	}{{"8 allowed", 8, time.Minute}, {"control: more allowed than come", 512, 3 * time.Second}} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, linktest.Path{Delay: 50 * time.Millisecond})
				hub, stopHub := w.hub(func(s *link.ServerConfig) { s.MaxHandshakes = c.most })
				var clients []*link.Client
				var stops []func()
				for i := range nodes {
					cl, stop := w.node(fmt.Sprintf("node-%d", i), fmt.Sprintf("10.0.1.%d", i+1), newSource(1, "wind"), nil)
					clients, stops = append(clients, cl), append(stops, stop)
					time.Sleep(time.Millisecond) // no more at once than the hub looks at
				}
				took, most := w.watchDoor(c.limit, "all connected", hub, func() bool {
					return !slices.ContainsFunc(clients, func(c *link.Client) bool { return !c.State().Connected })
				})
				d := hub.Door()
				t.Logf("%d nodes after %v, at most %d under way: %+v", nodes, took, most, d)
				switch over := most > int64(c.most); {
				case over:
					t.Errorf("%d handshakes were under way, %d are allowed", most, c.most)
				case c.most == 8 && (d.Refused < nodes/2 || d.Refused > 4*nodes):
					t.Errorf("%d were refused", d.Refused)
				case c.most > nodes && (most < nodes/2 || d.Refused > 0):
					t.Errorf("at most %d under way, %d refused: nothing is bounded here", most, d.Refused)
				}
				if d.Begun > nodes+nodes/10 || d.Ended < nodes {
					t.Errorf("%d begun, %d ended", d.Begun, d.Ended)
				}
				for _, stop := range stops {
					stop()
				}
				stopHub()
				settle()
			})
		})
	}
}

// Who begins handshakes and ends none takes no place from nodes: at one address because of its limit; under
// addresses that are not his because he is asked to show what came there.
func TestHandshakesThatHangTakeNoPlaceFromNodes(t *testing.T) {
	const most, ofOne, knocks = 32, 8, 60
	for _, c := range []struct {
		name      string
		ofOne     int
		addresses bool // another one for each
		deaf      bool // nothing that the hub sends arrives there
		atMost    int64
		free      bool // a node comes through
	}{
		{"one address", ofOne, false, false, ofOne, true},
		{"addresses that do not receive", ofOne, true, true, most / 4, true},
		{"control: one address may take all places", most, false, false, most, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, linktest.Path{Delay: 20 * time.Millisecond})
				hub, stopHub := w.hub(func(s *link.ServerConfig) { s.MaxHandshakes, s.MaxHandshakesPerAddress = most, c.ofOne })
				hang := make(chan struct{})
				for i := range knocks {
					ip := "10.0.9.1"
					if c.addresses {
						ip = fmt.Sprintf("10.0.9.%d", i+1)
					}
					if c.deaf {
						w.r.Link(ip).Drop(false, func(int) bool { return true })
					}
					w.knock(t, ip, 7000+i, hang)
					time.Sleep(5 * time.Millisecond)
				}
				time.Sleep(500 * time.Millisecond)
				if n := hub.Door().UnderWay; n != c.atMost {
					t.Errorf("%d handshakes hang, expected are %d", n, c.atMost)
				}
				src := newSource(1, "wind")
				src.put(0, 10, 100)
				_, stopNode := w.node("node-1", "10.0.1.1", src, nil)
				time.Sleep(time.Second)
				if free := src.ackedTo(0) == 10; free != c.free {
					t.Errorf("the node came through: %v; %+v", free, hub.Door())
				}
				close(hang)
				w.until(time.Minute, "the node, in the end", func() bool { return src.ackedTo(0) == 10 })
				t.Logf("%+v", hub.Door())
				stopNode()
				stopHub()
				w.sink.check(t)
				settle()
			})
		})
	}
}

// Whoever begins handshakes and says nothing more, or half of a first message, is waited for and is no sign that the
// hub is short of CPU: it takes the places of its address, and none of nodes.
func TestHandshakesWithoutAFirstMessageTakeNoPlaceFromNodes(t *testing.T) {
	const most, ofOne = 64, 8
	for _, c := range []struct {
		name string
		tcp  bool
	}{
		{"TCP connections that are silent", true},
		{"half of a ClientHello, of addresses that are not his", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, linktest.Path{Delay: 20 * time.Millisecond})
				hub, stopHub := w.hub(func(s *link.ServerConfig) {
					s.MaxHandshakes, s.MaxHandshakesPerAddress, s.Listener = most, ofOne, w.r.Listen(tcpHub)
				})
				var conns []net.Conn
				hang := make(chan struct{})
				for i := range 60 {
					if c.tcp {
						conn, err := w.r.DialTCP(t.Context(), "10.0.9.1", tcpHub)
						if err != nil {
							t.Fatal(err)
						}
						conns = append(conns, conn)
						continue
					}
					ip, sent := fmt.Sprintf("10.0.9.%d", i+1), 0
					w.r.Link(ip).Drop(true, func(int) bool { sent++; return sent > 1 })
					w.knock(t, ip, 7000+i, hang)
					time.Sleep(time.Millisecond)
				}
				time.Sleep(100 * time.Millisecond)
				t.Logf("%+v", hub.Door())
				src := newSource(1, "wind")
				src.put(0, 10, 100)
				_, stopNode := w.node("node-1", "10.0.1.1", src, nil)
				time.Sleep(time.Second)
				if src.ackedTo(0) != 10 {
					t.Errorf("the node did not come through: %+v", hub.Door())
				}
				close(hang)
				for _, c := range conns {
					c.Close()
				}
				w.until(time.Minute, "the node, in the end", func() bool { return src.ackedTo(0) == 10 })
				stopNode()
				stopHub()
				w.sink.check(t)
				settle()
			})
		})
	}
}
