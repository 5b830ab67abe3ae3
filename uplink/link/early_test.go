package link_test

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/quic-go/quic-go/testutils/simnet"

	"tailrace/uplink/link"
	"tailrace/uplink/link/linktest"
	"tailrace/uplink/pki"
	"tailrace/uplink/wire"
)

// Preview answers what Hello would, and notes nothing.
func (s *memSink) Preview(_ context.Context, node string, h wire.Hello) (link.Plan, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stale { // more became durable since
		return link.Plan{}, true
	}
	return s.plan(node, h.Inventory), s.refuse == nil
}

// keeper is a state directory's file in memory.
type keeper struct {
	mu    sync.Mutex
	b     []byte
	saves int
}

func (k *keeper) Load() ([]byte, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.b), nil
}

func (k *keeper) Save(b []byte) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.b = slices.Clone(b)
	k.saves++
	return nil
}

// logged is a log that both ends write.
type logged struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *logged) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

// take returns what was logged since it was called last.
func (l *logged) take() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.b.String()
	l.b.Reset()
	return s
}

// early is a hub and a node that keep their tickets, and both of which have been started twice: the second
// session of the node is resumed, with a Hello in early data.
type early struct {
	w             *world
	keys, tickets keeper
	hub           *link.Server
	src           *memSource
	stopHub       func()
	stopNode      func()
	node          *link.Client
	plain         bool // no early data
	hubTLS        func(*tls.Config)
	cert          tls.Certificate
	log           logged // what either end warned of
}

func (e *early) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(&e.log, &slog.HandlerOptions{Level: slog.LevelWarn}))
}

func (e *early) startHub() {
	e.hub, e.stopHub = e.w.hub(func(c *link.ServerConfig) {
		c.TicketKeys, c.Logger = &e.keys, e.logger()
		if e.hubTLS != nil {
			e.hubTLS(c.TLS)
		}
	})
}

func (e *early) startNode() {
	e.node, e.stopNode = e.w.node("node-1", "10.0.1.1", e.src, func(c *link.ClientConfig) {
		c.Tickets, c.NoEarlyData, c.Logger = &e.tickets, e.plain, e.logger()
		c.TLS.Certificates = []tls.Certificate{e.cert}
	})
}

func newEarly(t *testing.T, p linktest.Path) *early {
	e := &early{w: newWorld(t, p), src: newSource(1, "wind")}
	e.cert = e.w.cert(e.w.ca, pki.RoleNode, "node-1")
	e.startHub()
	e.startNode()
	e.src.put(0, 10, 100)
	e.w.until(10*time.Second, "records", func() bool { return e.src.ackedTo(0) == 10 })
	time.Sleep(2 * time.Second)
	e.stopNode()
	time.Sleep(2 * time.Second)
	return e
}

// come starts the node and says how long the first record took.
func (e *early) come() time.Duration {
	want := e.src.ackedTo(0) + 10
	e.src.put(0, 10, 100)
	var at time.Time
	e.w.sink.mu.Lock()
	e.w.sink.appended = func(wire.Origin, int64) {
		if at.IsZero() {
			at = time.Now()
		}
	}
	e.w.sink.mu.Unlock()
	begin := time.Now()
	e.startNode()
	e.w.until(30*time.Second, "records of the next start", func() bool { return e.src.ackedTo(0) == want })
	e.w.sink.mu.Lock()
	defer e.w.sink.mu.Unlock()
	e.w.sink.appended = nil
	return at.Sub(begin)
}

func (e *early) end(t *testing.T) {
	e.stopNode()
	e.stopHub()
	e.w.sink.check(t)
	settle()
}

// With a ticket that both ends have kept over their restarts, the first record comes a round trip earlier.
func TestEarlyHelloSavesARoundTrip(t *testing.T) {
	for _, rtt := range []time.Duration{100 * time.Millisecond, 600 * time.Millisecond} {
		took := map[string]time.Duration{}
		for _, how := range []string{"full", "resumed", "early"} {
			t.Run(fmt.Sprintf("%v/%s", rtt, how), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					e := newEarly(t, linktest.Path{Rate: 2e6, Delay: rtt / 2, Queue: 150_000})
					e.stopHub()
					e.startHub()
					if how == "full" {
						e.tickets.b = nil
					}
					e.plain = how != "early"
					took[how] = e.come()
					h := e.hub.Handshakes()
					if want := (link.Handshakes{Full: 1}); how == "full" && h != want {
						t.Errorf("%+v, want %+v", h, want)
					}
					if want := (link.Handshakes{Resumed: 1}); how == "resumed" && h != want {
						t.Errorf("%+v, want %+v", h, want)
					}
					if want := (link.Handshakes{Resumed: 1, Early: 1}); how == "early" && h != want {
						t.Errorf("%+v, want %+v", h, want)
					}
					e.end(t)
				})
			})
		}
		t.Logf("first record after the start of the node, round trip %v: full %v, resumed %v, early %v", rtt, took["full"], took["resumed"], took["early"])
		if took["early"] > took["full"]-rtt*9/10 {
			t.Errorf("round trip %v: full %v, early %v", rtt, took["full"], took["early"])
		}
	}
}

// What a node sent as early data, sent again by someone who saw it: the hub reads and answers it, and it does nothing.
func TestReplayedEarlyDataDoesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newEarly(t, linktest.Path{Rate: 10e6, Delay: 50 * time.Millisecond, Queue: 125_000})
		w := e.w
		var tape [][]byte
		var recording atomic.Bool
		w.r.Tap(func(p simnet.Packet) {
			if recording.Load() && p.To.String() == hubAddr {
				tape = append(tape, slices.Clone(p.Data))
			}
		})
		begin := time.Now()
		recording.Store(true)
		time.AfterFunc(75*time.Millisecond, func() { recording.Store(false) }) // before anything of the hub came back
		e.come()
		if h := e.hub.Handshakes(); h.Early != 1 || len(tape) == 0 {
			t.Fatalf("%+v, %d packets within %v", h, len(tape), time.Since(begin))
		}
		session := e.node.State().Session
		addr, _ := net.ResolveUDPAddr("udp", hubAddr)
		port := 6000
		replay := func(what string) {
			port++
			from := w.r.NodeConn(fmt.Sprintf("10.0.9.9:%d", port))
			before := e.hub.Handshakes().Early
			w.sink.mu.Lock()
			sessions, stored := w.sink.sessions, w.sink.stored[originKey{"node-1", wire.ID{1}, "wind", 0}].held.Clone()
			w.sink.mu.Unlock()
			for _, b := range tape {
				if _, err := from.WriteTo(b, addr); err != nil {
					t.Fatal(err)
				}
			}
			time.Sleep(20 * time.Second)
			from.Close()
			w.sink.mu.Lock()
			defer w.sink.mu.Unlock()
			if w.sink.sessions != sessions || !w.sink.stored[originKey{"node-1", wire.ID{1}, "wind", 0}].held.Equal(stored) {
				t.Errorf("%s: the replay began a session or moved progress", what)
			}
			if n := e.hub.Handshakes().Early - before; n != 1 {
				t.Errorf("%s: %d early Hellos were read, the replay was none", what, n)
			}
		}
		time.Sleep(20 * time.Second) // else the packets belong to the connection of which they are
		replay("beside the session")
		replay("once more")
		if e.node.State().Session != session || e.node.State().Reconnects != 0 || len(e.hub.Nodes()) != 1 {
			t.Errorf("the node's session was disturbed: %+v", e.node.State())
		}
		e.src.put(0, 10, 100)
		w.until(5*time.Second, "records after the replay", func() bool { return e.src.ackedTo(0) == 30 })
		e.stopNode()
		time.Sleep(time.Second)
		replay("after the node has gone")
		if len(e.hub.Nodes()) != 0 || e.hub.Sessions() != 0 {
			t.Error("the replay is a session")
		}
		e.stopHub()
		e.startHub()
		replay("at the next start of the hub")
		if len(e.hub.Nodes()) != 0 || e.hub.Sessions() != 0 {
			t.Error("the replay is a session")
		}
		e.come()
		e.end(t)
	})
}

// What was told before the handshake and does not hold afterwards is not gone on with.
func TestEarlyAnswerThatNoLongerHolds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newEarly(t, linktest.Path{Rate: 10e6, Delay: 50 * time.Millisecond, Queue: 125_000})
		e.w.sink.stale = true
		took := e.come()
		if h := e.hub.Handshakes(); h.Early != 1 || h.Resumed != 2 || took > 3*time.Second {
			t.Errorf("%+v, first record after %v", h, took)
		}
		e.end(t)
	})
}

// A ticket is worth what the certificate in it is worth when it is used.
func TestTicketOfACertificateThatIsNoGood(t *testing.T) {
	_, anotherPool := newCA(t)
	for name, x := range map[string]struct {
		hub  func(*tls.Config)
		wait time.Duration
	}{
		"revoked": {hub: func(c *tls.Config) {
			c.VerifyConnection = func(cs tls.ConnectionState) error {
				return errors.New("node-1 is not among nodes")
			}
		}},
		"of another authority than today's": {hub: func(c *tls.Config) { c.ClientCAs = anotherPool }},
		"expired":                           {wait: 3 * 24 * time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				e := newEarly(t, lan)
				e.stopHub()
				if x.wait > 0 { // the next certificate lives for two days
					pair, err := e.w.ca.Issue(rand.Reader, pki.RoleNode, "node-1", nil, time.Now(), 2*24*time.Hour)
					if err != nil {
						t.Fatal(err)
					}
					if e.cert, err = tls.X509KeyPair(pair.Cert, pair.Key); err != nil {
						t.Fatal(err)
					}
					e.startHub()
					e.come()
					time.Sleep(time.Second)
					e.stopNode()
					e.stopHub()
					time.Sleep(x.wait)
				}
				e.hubTLS = x.hub
				e.startHub()
				e.w.sink.mu.Lock()
				before := e.w.sink.sessions
				e.w.sink.mu.Unlock()
				e.startNode()
				time.Sleep(time.Minute)
				e.w.sink.mu.Lock()
				after := e.w.sink.sessions
				e.w.sink.mu.Unlock()
				if h := e.hub.Handshakes(); after != before || h != (link.Handshakes{}) || e.node.State().Connected {
					t.Errorf("%d sessions before, %d after; %+v", before, after, h)
				}
				// The certificate alone keeps it out, not the ticket.
				e.stopNode()
				e.stopHub()
				e.hubTLS = nil
				e.cert = e.w.cert(e.w.ca, pki.RoleNode, "node-1")
				e.startHub()
				e.come()
				e.end(t)
			})
		})
	}
}

// A hub that keeps the keys of its tickets gets its nodes back by resumption; one that does not, by whole handshakes.
func TestFleetResumesAfterARestartOfTheHub(t *testing.T) {
	for name, keep := range map[string]bool{"keys kept": true, "keys lost": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const nodes = 50
				w := newWorld(t, lan)
				var keys keeper
				change := func(c *link.ServerConfig) {
					if keep {
						c.TicketKeys = &keys
					}
				}
				_, stopHub := w.hub(change)
				var stops []func()
				var clients []*link.Client
				for i := range nodes {
					c, stop := w.node(fmt.Sprintf("node-%d", i), fmt.Sprintf("10.0.1.%d", i+1), newSource(1, "wind"), nil)
					clients, stops = append(clients, c), append(stops, stop)
				}
				up := func(n int64) bool {
					return !slices.ContainsFunc(clients, func(c *link.Client) bool { s := c.State(); return !s.Connected || s.Reconnects < n })
				}
				w.until(10*time.Second, "nodes", func() bool { return up(0) })
				time.Sleep(2 * time.Second)
				stopHub()
				time.Sleep(5 * time.Second)
				hub, stopHub := w.hub(change)
				w.until(time.Minute, "nodes again", func() bool { return up(1) })
				want := link.Handshakes{Full: nodes}
				if keep {
					want = link.Handshakes{Resumed: nodes, Early: nodes}
				}
				if h := hub.Handshakes(); h != want {
					t.Errorf("%+v, want %+v", h, want)
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

// Keys are replaced every day and taken for a week; a node proves its key once a week although it resumes every day.
func TestTicketKeysRotate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newEarly(t, lan)
		first := slices.Clone(e.keys.b)
		var full []int
		for day := range 16 {
			time.Sleep(24*time.Hour + time.Minute)
			before := e.hub.Handshakes().Full
			e.come()
			if e.hub.Handshakes().Full != before {
				full = append(full, day+1)
			}
			time.Sleep(time.Second)
			e.stopNode()
		}
		if !slices.Equal(full, []int{7, 14}) {
			t.Errorf("whole handshakes on days %v", full)
		}
		if e.keys.saves < 15 || len(e.keys.b) > 8*(4+8+32)+12 || strings.Contains(string(e.keys.b), string(first[len(first)-32:])) {
			t.Errorf("keys saved %d times, %d bytes", e.keys.saves, len(e.keys.b))
		}
		e.startNode()
		time.Sleep(time.Second)
		e.end(t)
	})
}

// Damaged files are told of and cost a whole handshake, no more.
func TestDamagedTickets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newEarly(t, lan)
		good := slices.Clone(e.tickets.b)
		keys := slices.Clone(e.keys.b)
		for i, spoil := range []func([]byte) []byte{
			func(b []byte) []byte { return b[:len(b)/2] },
			func(b []byte) []byte { b[len(b)/2] ^= 1; return b },
			func(b []byte) []byte { return []byte("x") },
			func(b []byte) []byte { return append(b, make([]byte, 1<<20)...) },
		} {
			e.tickets.b, e.keys.b = spoil(slices.Clone(good)), slices.Clone(keys)
			before := e.hub.Handshakes()
			e.log.take()
			e.come()
			if h, log := e.hub.Handshakes(), e.log.take(); h.Full != before.Full+1 || !strings.Contains(log, "tickets cannot be used") {
				t.Errorf("%d: damaged tickets: %+v after %+v; log: %s", i, h, before, log)
			}
			time.Sleep(time.Second)
			e.stopNode()
			e.stopHub()
			e.tickets.b, e.keys.b = slices.Clone(good), spoil(slices.Clone(keys))
			e.log.take()
			e.startHub()
			e.come()
			if h, log := e.hub.Handshakes(), e.log.take(); h.Full != 1 || !strings.Contains(log, "keys of TLS tickets cannot be used") {
				t.Errorf("%d: damaged keys: %+v; log: %s", i, h, log)
			}
			time.Sleep(time.Second)
			e.stopNode()
			good, keys = slices.Clone(e.tickets.b), slices.Clone(e.keys.b)
		}
		e.startNode()
		time.Sleep(time.Second)
		e.end(t)
	})
}

// A node with another certificate does not use the tickets of the one before; what is kept stays small.
func TestTicketsBelongToACertificateAndAHub(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newEarly(t, lan)
		e.cert = e.w.cert(e.w.ca, pki.RoleNode, "node-1")
		before := e.hub.Handshakes().Full
		e.come()
		if e.hub.Handshakes().Full != before+1 {
			t.Error("the ticket of another certificate was used")
		}
		for range 20 {
			time.Sleep(time.Second)
			e.stopNode()
			e.cert = e.w.cert(e.w.ca, pki.RoleNode, "node-1")
			e.come()
		}
		time.Sleep(time.Second)
		e.stopNode()
		if n := len(e.tickets.b); n == 0 || n > 64<<10 {
			t.Errorf("%d bytes are kept", n)
		}
		e.startNode()
		time.Sleep(time.Second)
		e.end(t)
	})
}
