package mqtt_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"tailrace/edge/mqtt"
	"tailrace/edge/mqtt/packet"
)

// world is a server on a loopback listener with its backend.
type world struct {
	t    testing.TB
	b    *memBackend
	s    *mqtt.Server
	addr string
	stop func()

	panics uint64 // expected
}

func newWorld(t testing.TB, b *memBackend, edit func(*mqtt.Config)) *world {
	t.Helper()
	cfg := mqtt.Config{Backend: b, State: b}
	if edit != nil {
		edit(&cfg)
	}
	s, err := mqtt.NewServer(cfg)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error, 2)
	go func() { ran <- s.Run(ctx) }()
	go s.Serve(l, mqtt.ListenerOptions{})
	w := &world{t: t, b: b, s: s, addr: l.Addr().String()}
	stopped := false
	w.stop = func() {
		if stopped {
			return
		}
		stopped = true
		b.hold(false)
		cancel()
		if err := <-ran; err != nil {
			t.Errorf("shut down: %v", err)
		}
		if n := s.Stats().Panics; n != w.panics {
			t.Errorf("%d panics", n)
		}
	}
	t.Cleanup(w.stop)
	return w
}

// until looks again and again whether ok holds.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(90 * time.Second); !ok(); <-tick.C {
		if time.Now().After(end) {
			t.Fatalf("not within 90 s: %s", what)
		}
	}
}

// device is a client that speaks raw packets.
type device struct {
	t  testing.TB
	nc net.Conn
	v  byte
	in []byte
}

func (w *world) dial(v byte) *device {
	w.t.Helper()
	nc, err := net.Dial("tcp", w.addr)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { nc.Close() })
	return &device{t: w.t, nc: nc, v: v}
}

func (d *device) send(p ...[]byte) {
	d.t.Helper()
	d.nc.SetWriteDeadline(time.Now().Add(10 * time.Second))
	if _, err := d.nc.Write(bytes.Join(p, nil)); err != nil {
		d.t.Fatalf("write: %v", err)
	}
}

// tryNext returns the next packet or why there is none.
func (d *device) tryNext(wait time.Duration) ([]byte, error) {
	for {
		if _, _, end, _, err := packet.Frame(d.in, 1<<28); err != nil {
			return nil, err
		} else if end > 0 {
			p := d.in[:end:end]
			d.in = d.in[end:]
			return p, nil
		}
		d.nc.SetReadDeadline(time.Now().Add(wait))
		b := make([]byte, 64<<10)
		n, err := d.nc.Read(b)
		d.in = append(d.in, b[:n]...)
		if err != nil && n == 0 {
			return nil, err
		}
	}
}

func (d *device) next() []byte {
	d.t.Helper()
	p, err := d.tryNext(10 * time.Second)
	if err != nil {
		d.t.Fatalf("next packet: %v", err)
	}
	return p
}

// want reads packets and compares each with what is expected.
func (d *device) want(ps ...[]byte) {
	d.t.Helper()
	for i, p := range ps {
		if got := d.next(); !bytes.Equal(got, p) {
			d.t.Fatalf("packet %d: got %x, want %x", i, got, p)
		}
	}
}

// silent fails when anything arrives that is not the answer to a PINGREQ sent now.
func (d *device) silent() {
	d.t.Helper()
	d.send([]byte{0xC0, 0})
	d.want([]byte{0xD0, 0})
}

// closed waits for the end of the connection and returns what came before it.
func (d *device) closed() [][]byte {
	d.t.Helper()
	var got [][]byte
	for {
		p, err := d.tryNext(10 * time.Second)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			d.t.Fatalf("still open, got %x", got)
		}
		if err != nil {
			return got
		}
		got = append(got, p)
	}
}

// disconnected wants the connection closed; on version 5 with this reason.
func (d *device) disconnected(code packet.Code) {
	d.t.Helper()
	got := d.closed()
	if d.v != 5 {
		if len(got) != 0 {
			d.t.Fatalf("got %x before the end", got)
		}
		return
	}
	if len(got) == 0 {
		d.t.Fatalf("closed without DISCONNECT, want reason %x", code)
	}
	last := got[len(got)-1]
	if last[0] != 0xE0 || len(last) < 3 || packet.Code(last[2]) != code {
		d.t.Fatalf("got %x, want DISCONNECT %x", got, code)
	}
}

type opts struct {
	id         string
	persistent bool // clean = 0, expiry 1 h
	clean      bool // with persistent: start anew
	keepAlive  uint16
	recvMax    uint16
	maxPacket  uint32
	user       string
	pw         string
	will       *will
	expiry     uint32
}

type will struct {
	topic, payload string
	qos            byte
	retain         bool
	delay          uint32
}

func str(s string) []byte { return append([]byte{byte(len(s) >> 8), byte(len(s))}, s...) }

func frame(head byte, body ...[]byte) []byte {
	b := bytes.Join(body, nil)
	return append(binary.AppendUvarint([]byte{head}, uint64(len(b))), b...)
}

func u16(v uint16) []byte { return []byte{byte(v >> 8), byte(v)} }
func u32(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }
func props(v byte, p ...[]byte) []byte {
	if v != 5 {
		return nil
	}
	b := bytes.Join(p, nil)
	return append(binary.AppendUvarint(nil, uint64(len(b))), b...)
}

func connect(v byte, o opts) []byte {
	var flags byte
	if !o.persistent || o.clean {
		flags |= 2
	}
	var ps, tail [][]byte
	if o.persistent && o.expiry == 0 {
		o.expiry = 3600
	}
	if o.expiry > 0 {
		ps = append(ps, append([]byte{0x11}, u32(o.expiry)...))
	}
	if o.recvMax > 0 {
		ps = append(ps, append([]byte{0x21}, u16(o.recvMax)...))
	}
	if o.maxPacket > 0 {
		ps = append(ps, append([]byte{0x27}, u32(o.maxPacket)...))
	}
	if w := o.will; w != nil {
		flags |= 4 | w.qos<<3
		if w.retain {
			flags |= 0x20
		}
		var wp [][]byte
		if w.delay > 0 {
			wp = append(wp, append([]byte{0x18}, u32(w.delay)...))
		}
		tail = append(tail, props(v, wp...), str(w.topic), str(w.payload))
	}
	if o.user != "" {
		flags |= 0x80
		tail = append(tail, str(o.user))
	}
	if o.pw != "" {
		flags |= 0x40
		tail = append(tail, str(o.pw))
	}
	name := "MQTT"
	if v == 3 {
		name = "MQIsdp"
	}
	return frame(0x10, str(name), []byte{v, flags}, u16(o.keepAlive), props(v, ps...), str(o.id), bytes.Join(tail, nil))
}

// login connects and returns the device and whether the session was present.
func (w *world) login(v byte, o opts) (*device, bool) {
	w.t.Helper()
	d := w.dial(v)
	d.send(connect(v, o))
	ack := d.next()
	if ack[0] != 0x20 || ack[3] != 0 {
		w.t.Fatalf("CONNACK %x", ack)
	}
	return d, ack[2] == 1
}

func publish(v byte, qos byte, id uint16, topic, payload string, flags ...byte) []byte {
	head := 0x30 | qos<<1
	for _, f := range flags {
		head |= f
	}
	var pid []byte
	if qos > 0 {
		pid = u16(id)
	}
	return frame(head, str(topic), pid, props(v), []byte(payload))
}

const (
	fDup    = 8
	fRetain = 1
)

func puback(id uint16) []byte  { return frame(0x40, u16(id)) }
func pubrec(id uint16) []byte  { return frame(0x50, u16(id)) }
func pubrel(id uint16) []byte  { return frame(0x62, u16(id)) }
func pubcomp(id uint16) []byte { return frame(0x70, u16(id)) }

func subscribe(v byte, id uint16, filter string, o byte, ps ...[]byte) []byte {
	return frame(0x82, u16(id), props(v, ps...), str(filter), []byte{o})
}

func suback(v byte, id uint16, codes ...byte) []byte {
	return frame(0x90, u16(id), props(v), codes)
}

var _ = io.EOF
