package link_test

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/testutils/simnet"

	"tailrace/uplink/pki"
	"tailrace/uplink/wire"
)

// undisturbed runs a node, has attack do its worst beside it, and wants the node's session to go on as if nothing were.
func undisturbed(t *testing.T, attack func(t *testing.T, w *world, session wire.ID)) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lan)
		hub, stopHub := w.hub(nil)
		src := newSource(1, "wind")
		c, stopNode := w.node("node-1", "10.0.1.1", src, nil)
		src.put(0, 10, 100)
		w.until(5*time.Second, "records", func() bool { return src.ackedTo(0) == 10 })
		session := c.State().Session
		attack(t, w, session)
		time.Sleep(30 * time.Second)
		src.put(0, 10, 100)
		w.until(5*time.Second, "records after the attack", func() bool { return src.ackedTo(0) == 20 })
		if st := c.State(); st.Session != session || st.Reconnects != 0 {
			t.Errorf("the node's session was disturbed: %+v", st)
		}
		if n := hub.Nodes(); len(n) != 1 || n[0].Info.Session != session || w.sink.sessions != 1 {
			t.Errorf("the hub has %+v after %d Hellos", n, w.sink.sessions)
		}
		stopNode()
		stopHub()
		w.sink.check(t)
		settle()
	})
}

// stranger dials with a certificate of its own and says Hello; the refusal comes back.
func (w *world) stranger(t *testing.T, role pki.Role, name string, hello *wire.Hello) wire.Code {
	tr := &quic.Transport{Conn: w.r.NodeConn("10.0.9.9:6000")}
	defer tr.Close()
	conf := &tls.Config{Certificates: []tls.Certificate{w.cert(w.ca, role, name)}, RootCAs: w.pool, ServerName: "hub.test", NextProtos: []string{wire.ALPN}, Time: time.Now}
	addr, _ := net.ResolveUDPAddr("udp", hubAddr)
	conn, err := tr.Dial(context.Background(), addr, conf, &quic.Config{InitialPacketSize: 1200, DisablePathMTUDiscovery: true})
	if err != nil {
		t.Fatal(err)
	}
	st, err := conn.OpenStream()
	if err != nil {
		t.Fatal(err)
	}
	b, _ := wire.Append(nil, hello)
	st.Write(b)
	m, err := wire.NewReader(st).Read()
	if e, ok := m.(*wire.Error); ok {
		return e.Code
	}
	var tlsError *quic.TransportError
	if errors.As(err, &tlsError) && tlsError.ErrorCode.IsCryptoError() {
		return wire.CodeAuth // refused in the handshake already
	}
	p := &peer{t: t, conn: conn, ctl: st, r: wire.NewReader(st)}
	if err == nil {
		t.Errorf("answered with %T", m)
		return 0
	}
	return p.code()
}

func TestWrongIdentityDisturbsNoSession(t *testing.T) {
	for name, x := range map[string]struct {
		role pki.Role
		cert string
		bulk bool
		want wire.Code
	}{
		"another node's certificate":              {pki.RoleNode, "node-2", false, wire.CodeAuth},
		"a hub's certificate":                     {pki.RoleHub, "node-1", false, wire.CodeAuth},
		"a bulk connection to another's session":  {pki.RoleNode, "node-2", true, wire.CodeSuperseded},
		"a bulk connection in another's own name": {pki.RoleNode, "node-2", true, wire.CodeAuth},
	} {
		t.Run(name, func(t *testing.T) {
			undisturbed(t, func(t *testing.T, w *world, session wire.ID) {
				h := helloOf("node-1")
				h.Boot, h.Sequence = wire.ID{0xee}, 99
				if x.bulk {
					h.Role, h.Session = wire.RoleBulk, session
					if x.want == wire.CodeSuperseded {
						h.Node = "node-2"
					}
				}
				if code := w.stranger(t, x.role, x.cert, h); code != x.want {
					t.Errorf("refused with code %d, want %d", code, x.want)
				}
			})
		})
	}
}

// A Hello of the session itself, or of an earlier one, said again by who has the key: it came late, or a log of messages is played.
func TestRepeatedHelloDisplacesNothing(t *testing.T) {
	undisturbed(t, func(t *testing.T, w *world, session wire.ID) {
		h := helloOf("node-1")
		h.Session, h.Boot, h.Sequence = session, w.boot("node-1"), 1
		if code := w.stranger(t, pki.RoleNode, "node-1", h); code != wire.CodeSuperseded {
			t.Errorf("refused with code %d", code)
		}
	})
}

func (w *world) boot(node string) wire.ID {
	for _, n := range w.srv.Nodes() {
		if n.Node == node {
			return n.Info.Boot
		}
	}
	return wire.ID{}
}

// Packets of a session's beginning, Hello included, sent again from elsewhere, at once and later.
func TestReplayedPacketsDisplaceNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lan)
		var tape [][]byte
		recording := true
		w.r.Tap(func(p simnet.Packet) {
			if a := p.To.String(); recording && a == hubAddr {
				tape = append(tape, append([]byte(nil), p.Data...))
			}
		})
		hub, stopHub := w.hub(nil)
		src := newSource(1, "wind")
		c, stopNode := w.node("node-1", "10.0.1.1", src, nil)
		src.put(0, 10, 100)
		w.until(5*time.Second, "records", func() bool { return src.ackedTo(0) == 10 })
		recording = false
		session := c.State().Session
		addr, _ := net.ResolveUDPAddr("udp", hubAddr)
		for i := range 3 {
			from := w.r.NodeConn("10.0.9.9:600" + string(rune('0'+i)))
			for _, b := range tape {
				if _, err := from.WriteTo(b, addr); err != nil {
					t.Fatal(err)
				}
			}
			time.Sleep(20 * time.Second)
			from.Close()
		}
		src.put(0, 10, 100)
		w.until(5*time.Second, "records after the replay", func() bool { return src.ackedTo(0) == 20 })
		if len(tape) < 4 || c.State().Session != session || c.State().Reconnects != 0 || len(hub.Nodes()) != 1 || w.sink.sessions != 1 {
			t.Errorf("%d packets on tape, %+v, %d Hellos", len(tape), c.State(), w.sink.sessions)
		}
		stopNode()
		stopHub()
		w.sink.check(t)
		settle()
	})
}

// Early data, which may be a replay, does nothing: the hub answers it, and the Hello counts only when the
// handshake is over. Here it never is.
func TestEarlyDataDisplacesNothing(t *testing.T) {
	undisturbed(t, func(t *testing.T, w *world, session wire.ID) {
		l := w.r.Link("10.0.9.9")
		var asked atomic.Bool
		tr := &quic.Transport{Conn: w.r.NodeConn("10.0.9.9:6000")}
		defer tr.Close()
		conf := &tls.Config{Certificates: []tls.Certificate{w.cert(w.ca, pki.RoleNode, "node-1")}, RootCAs: w.pool, ServerName: "hub.test", NextProtos: []string{wire.ALPN}, Time: time.Now,
			ClientSessionCache: tls.NewLRUClientSessionCache(4)}
		addr, _ := net.ResolveUDPAddr("udp", hubAddr)
		qc := &quic.Config{InitialPacketSize: 1200, DisablePathMTUDiscovery: true}
		first, err := tr.Dial(context.Background(), addr, conf, qc) // for the ticket
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		first.CloseWithError(0, "")
		time.Sleep(time.Second)
		begin := time.Now()
		l.Drop(true, func(int) bool { asked.Store(true); return time.Since(begin) > 5*time.Millisecond }) // the first flight arrives, no Finished
		ctx, cancel := context.WithTimeout(context.Background(), 8*time.Second)
		defer cancel()
		conn, err := tr.DialEarly(ctx, addr, conf, qc)
		if err == nil {
			h := helloOf("node-1")
			h.Boot, h.Sequence = wire.ID{0xee}, 99
			if st, err := conn.OpenStream(); err == nil {
				b, _ := wire.Append(nil, h)
				st.Write(b)
			}
			time.Sleep(8 * time.Second)
			if n := w.srv.Handshakes().Early; n != 1 {
				t.Errorf("the hub answered %d early Hellos", n)
			}
			conn.CloseWithError(0, "")
		}
		if !asked.Load() {
			t.Error("nothing was sent")
		}
		l.Drop(true, nil)
	})
}
