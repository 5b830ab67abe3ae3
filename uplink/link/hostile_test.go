package link_test

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/quic-go/quic-go"

	"tailrace/uplink/link/linktest"
	"tailrace/uplink/pki"
	"tailrace/uplink/wire"
)

// peer is a node that speaks the protocol by hand.
type peer struct {
	t    *testing.T
	conn *quic.Conn
	ctl  *quic.Stream
	r    *wire.Reader
	want *wire.Want
	w    *wire.Welcome
}

func (w *world) peer(t *testing.T, ip string, hello *wire.Hello) *peer {
	tr := &quic.Transport{Conn: w.r.NodeConn(ip + ":6000")}
	t.Cleanup(func() { tr.Close() })
	conf := &tls.Config{Certificates: []tls.Certificate{w.cert(w.ca, pki.RoleNode, hello.Node)}, RootCAs: w.pool, ServerName: "hub.test", NextProtos: []string{wire.ALPN}, Time: time.Now}
	addr, _ := net.ResolveUDPAddr("udp", hubAddr)
	conn, err := tr.Dial(context.Background(), addr, conf, &quic.Config{InitialPacketSize: 1200, DisablePathMTUDiscovery: true})
	if err != nil {
		t.Fatal(err)
	}
	p := &peer{t: t, conn: conn}
	if p.ctl, err = conn.OpenStream(); err != nil {
		t.Fatal(err)
	}
	p.r = wire.NewReader(p.ctl)
	p.send(hello)
	for p.want == nil || p.w == nil {
		m, err := p.r.Read()
		if err != nil {
			t.Fatal(err)
		}
		switch m := m.(type) {
		case *wire.Welcome:
			p.w = m
		case *wire.Want:
			p.want = m
		}
	}
	return p
}

func (p *peer) send(m wire.Message) {
	b, err := wire.Append(nil, m)
	if err != nil {
		p.t.Fatal(err)
	}
	p.ctl.Write(b)
}

func (p *peer) stream(b []byte) {
	st, err := p.conn.OpenUniStream()
	if err != nil {
		p.t.Fatal(err)
	}
	go st.Write(b)
}

// code waits until the hub closes, and says why.
func (p *peer) code() wire.Code {
	for {
		if _, err := p.r.Read(); err != nil {
			var app *quic.ApplicationError
			if !errors.As(err, &app) || !app.Remote {
				p.t.Fatalf("connection ended with %v", err)
			}
			return wire.Code(app.ErrorCode)
		}
	}
}

func helloOf(node string) *wire.Hello {
	return &wire.Hello{Version: 1, MinVersion: 1, Node: node, Session: wire.ID{1, 2}, Boot: wire.ID{3}, Sequence: 1, Codecs: []wire.Codec{wire.CodecNone},
		Inventory: wire.Inventory{Epochs: []wire.EpochInfo{{ID: wire.ID{9}, Number: 1}}, Partitions: []wire.PartitionInfo{{ID: 4, Topic: "wind", Next: 1000}}}}
}

func plainFrame(t *testing.T, h wire.FrameHeader, b []byte) []byte {
	out, err := wire.NewFrameWriter(wire.CodecNone, 0).Append(nil, h, b)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// Whatever a node with a good certificate sends, it harms itself alone.
func TestHostileNodeIsClosedAndNothingElse(t *testing.T) {
	live := wire.AppendPreamble(nil, wire.LaneLive)
	good := linktest.AppendBatch(nil, 0, 10, 1, []byte("payload"))
	flipped := append([]byte(nil), good...)
	flipped[len(flipped)-1] ^= 1
	shifted := linktest.AppendBatch(nil, 5, 10, 1, []byte("payload"))
	for name, attack := range map[string]func(t *testing.T, p *peer){
		"no preamble":     func(t *testing.T, p *peer) { p.stream([]byte("GET / HTTP/1.1\r\n")) },
		"huge frame":      func(t *testing.T, p *peer) { p.stream(binary.AppendUvarint(live, 1<<40)) },
		"huge raw length": func(t *testing.T, p *peer) { p.stream(append(live, 9, 1, 9, 0xff, 0xff, 0xff, 0xff, 0x7f, 0, 0)) },
		"unknown partition": func(t *testing.T, p *peer) {
			p.stream(append(live, plainFrame(t, wire.FrameHeader{Partition: 77, Count: 10}, good)...))
		},
		"unknown epoch": func(t *testing.T, p *peer) {
			p.stream(append(live, plainFrame(t, wire.FrameHeader{Partition: 4, Epoch: 3, Count: 10}, good)...))
		},
		"broken crc": func(t *testing.T, p *peer) {
			p.stream(append(live, plainFrame(t, wire.FrameHeader{Partition: 4, Count: 10}, flipped)...))
		},
		"other offsets": func(t *testing.T, p *peer) {
			p.stream(append(live, plainFrame(t, wire.FrameHeader{Partition: 4, Count: 10}, shifted)...))
		},
		"too few offsets": func(t *testing.T, p *peer) {
			p.stream(append(live, plainFrame(t, wire.FrameHeader{Partition: 4, Count: 20}, good)...))
		},
		"garbage control": func(t *testing.T, p *peer) { p.ctl.Write([]byte{5, 5, 0xff, 0xff, 0xff, 0xff}) },
		"hub's message":   func(t *testing.T, p *peer) { p.send(&wire.Ack{}) },
		"second hello":    func(t *testing.T, p *peer) { p.send(helloOf("node-1")) },
		"other epochs":    func(t *testing.T, p *peer) { p.send(&wire.Inventory{Epochs: []wire.EpochInfo{{ID: wire.ID{8}}}}) },
		"beyond its credit": func(t *testing.T, p *peer) { // ahead of its turn, so that it must be kept
			out := live
			big := make([]byte, 1<<20)
			for i := range 12 {
				base := int64(100 + 10*i)
				out = append(out, plainFrame(t, wire.FrameHeader{Partition: 4, Base: base, Count: 10}, linktest.AppendBatch(nil, base, 10, 1, big))...)
			}
			p.stream(out)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, lan)
				hub, stopHub := w.hub(nil)
				src := newSource(1, "wind")
				_, stopNode := w.node("node-2", "10.0.1.2", src, nil)
				src.put(0, 10, 100)
				w.until(5*time.Second, "the other node", func() bool { return src.ackedTo(0) == 10 })
				p := w.peer(t, "10.0.1.1", helloOf("node-1"))
				attack(t, p)
				if c := p.code(); c != wire.CodeProtocol {
					t.Errorf("closed with code %d", c)
				}
				w.until(5*time.Second, "the session to go", func() bool { return len(hub.Nodes()) == 1 })
				if n := w.sink.records("node-1", "wind"); n != 0 {
					t.Errorf("%d records were stored", n)
				}
				src.put(0, 10, 100)
				w.until(5*time.Second, "the other node again", func() bool { return src.ackedTo(0) == 20 })
				if w.sink.sessions != 2 {
					t.Errorf("%d sessions", w.sink.sessions)
				}
				stopNode()
				stopHub()
				w.sink.check(t)
				settle()
			})
		})
	}
}

// A connection that says nothing is closed after HelloTimeout.
func TestSilentConnectionIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lan)
		_, stopHub := w.hub(nil)
		tr := &quic.Transport{Conn: w.r.NodeConn("10.0.1.1:6000")}
		conf := &tls.Config{Certificates: []tls.Certificate{w.cert(w.ca, pki.RoleNode, "node-1")}, RootCAs: w.pool, ServerName: "hub.test", NextProtos: []string{wire.ALPN}, Time: time.Now}
		addr, _ := net.ResolveUDPAddr("udp", hubAddr)
		conn, err := tr.Dial(context.Background(), addr, conf, &quic.Config{KeepAlivePeriod: time.Second})
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		<-conn.Context().Done()
		if d := time.Since(start); d > 11*time.Second {
			t.Errorf("closed after %v", d)
		}
		tr.Close()
		stopHub()
		settle()
	})
}
