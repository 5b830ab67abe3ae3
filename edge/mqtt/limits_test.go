package mqtt_test

import (
	"bytes"
	"fmt"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"tailrace/edge/mqtt"
	"tailrace/edge/mqtt/packet"
)

func TestReceiveMaximumIsEnforced(t *testing.T) {
	for _, qos := range []byte{1, 2} {
		b := newBackend()
		w := newWorld(t, b, func(c *mqtt.Config) { c.Limits.ReceiveMaximum = 3 })
		d := w.dial(5)
		d.send(connect(5, opts{id: "a"}))
		if p := d.next(); !bytes.Contains(p, []byte{0x21, 0, 3}) {
			t.Fatalf("CONNACK %x", p)
		}
		for i := range 5 { // again and again up to the maximum
			for id := uint16(1); id <= 3; id++ {
				d.send(publish(5, qos, id, "t", fmt.Sprint(i)))
			}
			for id := uint16(1); id <= 3; id++ {
				d.want(frame(0x40+0x10*(qos-1), u16(id)))
			}
			if qos == 2 {
				for id := uint16(1); id <= 3; id++ {
					d.send(pubrel(id))
					d.want(pubcomp(id))
				}
			}
		}
		b.hold(true)
		var four [][]byte // in one write: the fourth is read before any of them is answered
		for id := uint16(1); id <= 4; id++ {
			four = append(four, publish(5, qos, id, "t", "x"))
		}
		d.send(four...)
		b.waiting(1)
		b.hold(false)
		d.disconnected(packet.ReceiveMaxExceeded)
	}
}

func TestSizes(t *testing.T) {
	b := newBackend()
	w := newWorld(t, b, func(c *mqtt.Config) {
		c.Limits.MaxRecordBytes = 1000
		c.Limits.MaxPacketBytes = 100_000
		c.Limits.RefusedHold = 1
	})
	d, _ := w.login(5, opts{id: "a"})
	d.send(publish(5, 1, 1, "t", string(make([]byte, 999))), publish(5, 1, 2, "t", string(make([]byte, 1000))), publish(5, 1, 3, "t", string(make([]byte, 90_000))))
	d.want(puback(1), []byte{0x40, 3, 0, 2, 0x95}, []byte{0x40, 3, 0, 3, 0x95})
	d.send([]byte{0x32, 0xA1, 0x8D, 0x06}) // 100,001 bytes claimed: refused from its length
	d.disconnected(packet.PacketTooLarge)
	d, _ = w.login(4, opts{id: "b"})
	d.send(publish(4, 1, 1, "t", string(make([]byte, 1000))))
	d.disconnected(0)
	if n := len(b.payloads()); n != 1 {
		t.Errorf("%d records", n)
	}
}

// TestReasonIsNotLostToAReset: the client is still sending when it is told to go.
func TestReasonIsNotLostToAReset(t *testing.T) {
	b := newBackend()
	w := newWorld(t, b, nil)
	for range 20 {
		d, _ := w.login(5, opts{id: "a"})
		d.send([]byte{0x36, 0}, make([]byte, 100_000)) // the rest is never decoded
		d.disconnected(packet.Malformed)
	}
}

// TestLargePacketsArriveWhole sends packets around the sizes of the buffers, cut at odd places.
func TestLargePacketsArriveWhole(t *testing.T) {
	b := newBackend()
	w := newWorld(t, b, nil)
	d, _ := w.login(4, opts{id: "a"})
	var all []byte
	var want [][]byte
	var payloads []string
	for i, n := range []int{1, 16<<10 - 9, 16<<10 - 8, 16 << 10, 16<<10 + 1, 100_000, 3, 1<<20 - 100, 5, 64 << 10} {
		p := string(bytes.Repeat([]byte{byte('a' + i)}, n))
		payloads = append(payloads, p)
		all = append(all, publish(4, 1, uint16(i+1), "t", p)...)
		want = append(want, puback(uint16(i+1)))
	}
	for i := 0; i < len(all); i += 7777 {
		d.send(all[i:min(i+7777, len(all))])
	}
	d.want(want...)
	for i, p := range b.payloads() {
		if p != payloads[i] {
			t.Fatalf("payload %d differs", i)
		}
	}
}

func TestLimitsBeforeLogin(t *testing.T) {
	b := newBackend()
	w := newWorld(t, b, func(c *mqtt.Config) {
		c.Limits.MaxLoginsPerAddress = 2
		c.Limits.LoginBytes = 200
	})
	a, _ := w.login(4, opts{id: "a"})
	// A length claim of 256 MB, a first packet that is not CONNECT, a second CONNECT.
	for _, p := range [][]byte{{0x10, 0xFF, 0xFF, 0xFF, 0x7F}, {0xC0, 0}, publish(4, 0, 0, "t", "x"), {0x20, 2, 0, 0}, {0x10, 0xFF, 0xFF, 0xFF, 0xFF, 1}} {
		d := w.dial(4)
		d.send(p)
		if got := d.closed(); len(got) != 0 {
			t.Errorf("%x answered with %x", p, got)
		}
	}
	a.silent()
}

// Two may be silent, the third is closed at once, and after the timeout there is room.
func TestSilentLoginsEndByTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const timeout = 5 * time.Second
		b := newBackend()
		s, l := servePipes(t, mqtt.Config{Backend: b, State: b, Limits: mqtt.Limits{MaxLoginsPerAddress: 2, LoginTimeout: timeout}})
		dial := func() *device { return l.dial(t, 4) }
		start := time.Now()
		s1, s2, s3 := dial(), dial(), dial()
		s1.send([]byte{0x10}) // a byte buys no time
		s3.closed()
		if e := time.Since(start); e > 0 {
			t.Errorf("third closed after %v", e)
		}
		s1.closed()
		s2.closed()
		if e := time.Since(start); e != timeout {
			t.Errorf("silent ones closed after %v", e)
		}
		d := dial()
		d.send(connect(4, opts{id: "b"}))
		d.want([]byte{0x20, 2, 0, 0})
		d.nc.Close()
		s.Shutdown(t.Context())
		b.close()
	})
}

func TestPacketsThatEndTheirConnectionOnly(t *testing.T) {
	b := newBackend()
	w := newWorld(t, b, nil)
	good, _ := w.login(5, opts{id: "good"})
	for _, c := range []struct {
		name string
		p    []byte
		code packet.Code
	}{
		{"subscribe of eight bytes", []byte{0x82, 6, 0, 1, 0, 0, 1, 'a'}, packet.Malformed},
		{"qos 3", []byte{0x36, 5, 0, 1, 'a', 0, 1}, packet.Malformed},
		{"connack from a client", []byte{0x20, 3, 0, 0, 0}, packet.ProtocolError},
		{"second connect", connect(5, opts{id: "x"}), packet.ProtocolError},
		{"auth", []byte{0xF0, 0}, packet.ProtocolError},
		{"reserved type", []byte{0x00, 0}, packet.ProtocolError},
		{"length of five bytes", []byte{0x30, 0xFF, 0xFF, 0xFF, 0xFF, 1}, packet.Malformed},
		{"wildcard in topic", publish(5, 1, 1, "a/+", "x"), packet.TopicNameInvalid},
		{"packet id 0", publish(5, 1, 0, "a", "x"), packet.ProtocolError},
		{"not UTF-8", publish(5, 1, 1, "a\xff", "x"), packet.Malformed},
		{"NUL in topic", publish(5, 1, 1, "a\x00", "x"), packet.Malformed},
		{"subscription id from a client", frame(0x32, str("a"), u16(1), props(5, []byte{0x0B, 1})), packet.ProtocolError},
		{"property twice", frame(0x32, str("a"), u16(1), props(5, []byte{1, 1, 1, 1})), packet.ProtocolError},
		{"user properties without end", frame(0x32, str("a"), u16(1), props(5, bytes.Repeat([]byte{0x26, 0, 0, 0, 0}, 1025))), packet.QuotaExceeded},
		{"the same in a subscribe", frame(0x82, u16(1), props(5, bytes.Repeat([]byte{0x26, 0, 0, 0, 0}, 1025)), str("a"), []byte{0}), packet.QuotaExceeded},
		{"pingreq with a body", []byte{0xC0, 1, 0}, packet.Malformed},
	} {
		t.Run(c.name, func(t *testing.T) {
			d, _ := w.login(5, opts{id: "bad"})
			d.send(publish(5, 1, 9, "t", "before"), c.p)
			d.want(puback(9)) // what came before it keeps its promise
			d.disconnected(c.code)
			good.silent()
		})
	}
}

// TestPanicEndsOneConnection: the second line behind decoders that do not panic.
func TestPanicEndsOneConnection(t *testing.T) {
	b := newBackend()
	b.add = func(p *mqtt.Publish) error {
		if string(p.Payload) == "boom" {
			panic("a bug")
		}
		return nil
	}
	w := newWorld(t, b, nil)
	good, _ := w.login(5, opts{id: "good"})
	d, _ := w.login(5, opts{id: "bad", will: &will{topic: "w", payload: "gone"}})
	d.send(publish(5, 1, 1, "t", "a"), publish(5, 1, 2, "t", "boom"))
	d.closed()
	good.silent()
	w.login(5, opts{id: "bad"})
	if got := b.payloads(); fmt.Sprint(got) != "[gone]" {
		t.Errorf("durable %q", got)
	}
	w.panics = 1
}

// pipeListener hands out net.Pipe connections, for simulated time.
type pipeListener struct {
	c    chan net.Conn
	done chan struct{}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.c:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}
func (l *pipeListener) Close() error {
	select {
	case <-l.done:
	default:
		close(l.done)
	}
	return nil
}
func (l *pipeListener) Addr() net.Addr { return &net.TCPAddr{} }

func (l *pipeListener) dial(t testing.TB, v byte) *device {
	cl, sv := net.Pipe()
	l.c <- sv
	return &device{t: t, nc: cl, v: v}
}

// servePipes starts a server that may be in a bubble.
func servePipes(t testing.TB, c mqtt.Config) (*mqtt.Server, *pipeListener) {
	t.Helper()
	s, err := mqtt.NewServer(c)
	if err != nil {
		t.Fatal(err)
	}
	l := &pipeListener{c: make(chan net.Conn), done: make(chan struct{})}
	go s.Serve(l, mqtt.ListenerOptions{})
	return s, l
}

// TestKeepAlive in simulated time: closed after one and a half keep-alives without
// a packet and not before, at 65,535 s too (where 16 bits overflow); never at 0.
func TestKeepAlive(t *testing.T) {
	for _, ka := range []uint16{1, 60, 43690, 43691, 65535, 0} {
		t.Run(fmt.Sprint(ka), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBackend()
				s, l := servePipes(t, mqtt.Config{Backend: b, State: b})
				cl := l.dial(t, 5).nc
				go cl.Write(connect(5, opts{id: "a", keepAlive: ka}))
				buf := make([]byte, 100)
				cl.Read(buf)
				start := time.Now()
				k := time.Duration(ka) * time.Second
				var last time.Time
				for range 10 { // a ping every 1.2 keep-alives is enough
					time.Sleep(k * 6 / 5)
					cl.Write([]byte{0xC0, 0})
					last = time.Now()
					if n, err := cl.Read(buf); err != nil || n != 2 {
						t.Fatalf("after %v: %x %v", time.Since(start), buf[:n], err)
					}
				}
				if ka == 0 {
					time.Sleep(1000 * time.Hour)
					cl.Write([]byte{0xC0, 0})
					if n, err := cl.Read(buf); err != nil || n != 2 {
						t.Fatalf("keep-alive 0: %v", err)
					}
				} else {
					n, err := cl.Read(buf)
					if e := time.Since(last); err != nil || buf[0] != 0xE0 || buf[2] != 0x8D || e < k*3/2 || e > 2*k {
						t.Errorf("after %v: %x %v", e, buf[:n], err)
					}
				}
				cl.Close()
				s.Shutdown(t.Context())
				b.close()
			})
		})
	}
}

func TestServerKeepAliveIsImposed(t *testing.T) {
	b := newBackend()
	w := newWorld(t, b, func(c *mqtt.Config) { c.Limits.MaxKeepAlive = 60 * time.Second })
	for ka, want := range map[uint16]bool{0: true, 120: true, 60: false, 10: false} {
		d := w.dial(5)
		d.send(connect(5, opts{id: "a", keepAlive: ka}))
		if p := d.next(); bytes.Contains(p, []byte{0x13, 0, 60}) != want {
			t.Errorf("keep-alive %d: CONNACK %x", ka, p)
		}
	}
}

// The line of the flusher is no longer than the connections that stand in it, however long it is
// not empty.
func TestTheLineOfTheFlusherDoesNotGrow(t *testing.T) {
	if n := mqtt.FlusherRoom(10_000); n > 256 {
		t.Errorf("%d places for 33 connections", n)
	}
}
