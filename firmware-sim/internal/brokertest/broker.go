// Package brokertest is a tiny MQTT 3.1.1 and 5 server for the tests of the
// simulated devices. It keeps everything in memory, accepts publishes, and lets a
// test decide what happens to each. It is strict: a client that breaks the
// protocol is noted in Violations.
package brokertest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// Publish is one received publish, or a will that was sent for a client.
type Publish struct {
	Client  string
	Topic   string
	Payload []byte
	QoS     byte
	Dup     bool
	Retain  bool
	ID      uint16
	Will    bool
}

// Verdict is what to do with a publish.
type Verdict struct {
	Code    byte // MQTT 5 PUBACK reason; 0 = success
	NoAck   bool // store, but do not acknowledge
	NotKept bool // do not store
	HangUp  bool // close the connection after this
}

// Broker is the server. Fields are set before the first connection.
type Broker struct {
	ReceiveMaximum uint16
	RefuseConnect  func(client string) byte // CONNACK code
	Decide         func(p Publish) Verdict  // nil: acknowledge all

	mu         sync.Mutex
	sessions   map[string]bool // guarded by mu, as all below
	live       map[string]net.Conn
	log        []Publish
	connects   map[string]int
	violations []string
	down       bool
	wg         sync.WaitGroup
}

// Dial returns the client's end of an in-memory connection.
func (b *Broker) Dial(context.Context) (net.Conn, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.down {
		return nil, errors.New("broker is down")
	}
	client, server := net.Pipe()
	b.wg.Go(func() { b.Handle(server) })
	return client, nil
}

// Serve accepts from ln until it is closed.
func (b *Broker) Serve(ln net.Listener) {
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		b.wg.Go(func() { b.Handle(c) })
	}
}

// SetDown refuses new connections, and with true cuts the living ones.
func (b *Broker) SetDown(down bool) {
	b.mu.Lock()
	b.down = down
	b.mu.Unlock()
	if down {
		b.Cut()
	}
}

// Cut closes all connections.
func (b *Broker) Cut() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, c := range b.live {
		c.Close()
	}
}

// Forget drops all sessions.
func (b *Broker) Forget() {
	b.mu.Lock()
	b.sessions = nil
	b.mu.Unlock()
}

// Log returns all publishes kept so far, in order.
func (b *Broker) Log() []Publish {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]Publish(nil), b.log...)
}

// Connects counts accepted CONNECTs of a client ("" = of all).
func (b *Broker) Connects(client string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	if client != "" {
		return b.connects[client]
	}
	n := 0
	for _, c := range b.connects {
		n += c
	}
	return n
}

// Violations lists protocol errors of clients.
func (b *Broker) Violations() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]string(nil), b.violations...)
}

// Wait returns when all connections have ended.
func (b *Broker) Wait() { b.wg.Wait() }

// Handle serves one connection.
func (b *Broker) Handle(c net.Conn) {
	defer c.Close()
	k := &conn{b: b, c: c, out: make(chan []byte, 1<<14)}
	// Answers have a writer of their own: net.Pipe has no buffer, and a client that
	// sends a backlog again before it reads would wait for us, and we for it.
	written := make(chan struct{})
	go func() {
		defer close(written)
		for p := range k.out {
			if _, err := c.Write(p); err != nil {
				c.Close()
			}
		}
	}()
	err := k.run()
	close(k.out)
	_ = c.SetWriteDeadline(time.Now().Add(time.Second))
	<-written
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrClosedPipe) && !errors.Is(err, net.ErrClosed) && !errors.Is(err, io.ErrUnexpectedEOF) {
		b.mu.Lock()
		b.violations = append(b.violations, fmt.Sprintf("%s: %v", k.id, err))
		b.mu.Unlock()
	}
	if k.id == "" {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.live[k.id] == c {
		delete(b.live, k.id)
		if k.will != nil {
			b.log = append(b.log, *k.will)
		}
	}
}

type conn struct {
	b       *Broker
	c       net.Conn
	out     chan []byte
	id      string
	version byte
	will    *Publish
}

var errHangUp = io.EOF

func (k *conn) packet() (typ byte, body []byte, err error) {
	var one [1]byte
	if _, err = io.ReadFull(k.c, one[:]); err != nil {
		return
	}
	typ = one[0]
	n := 0
	for shift := 0; ; shift += 7 {
		if shift > 21 {
			return 0, nil, errors.New("remaining length of five bytes")
		}
		if _, err = io.ReadFull(k.c, one[:]); err != nil {
			return
		}
		n |= int(one[0]&0x7f) << shift
		if one[0] < 0x80 {
			break
		}
	}
	if n > 1<<20 {
		return 0, nil, fmt.Errorf("packet of %d bytes", n)
	}
	body = make([]byte, n)
	_, err = io.ReadFull(k.c, body)
	return
}

// cursor reads fields; after an error all reads give zero values.
type cursor struct {
	b   []byte
	err error
}

func (r *cursor) take(n int) []byte {
	if r.err != nil || n > len(r.b) {
		r.err = errors.New("packet is cut short")
		return make([]byte, min(n, 4))
	}
	out := r.b[:n]
	r.b = r.b[n:]
	return out
}
func (r *cursor) u8() byte      { return r.take(1)[0] }
func (r *cursor) u16() uint16   { return binary.BigEndian.Uint16(r.take(2)) }
func (r *cursor) bytes() []byte { return r.take(int(r.u16())) }
func (r *cursor) props() {
	n := 0
	for shift := 0; shift <= 21; shift += 7 {
		c := r.u8()
		n |= int(c&0x7f) << shift
		if c < 0x80 {
			break
		}
	}
	r.take(n)
}

func (k *conn) run() error {
	typ, body, err := k.packet()
	if err != nil {
		return err
	}
	if typ != 0x10 {
		return fmt.Errorf("first packet has type %#x", typ)
	}
	if err := k.connect(&cursor{b: body}); err != nil {
		return err
	}
	for {
		typ, body, err := k.packet()
		if err != nil {
			return err
		}
		r := &cursor{b: body}
		switch typ >> 4 {
		case 3:
			if err := k.publish(typ, r); err != nil {
				return err
			}
		case 12:
			k.out <- []byte{0xd0, 0}
		case 14:
			if len(body) == 0 || body[0] != 4 { // 4: disconnect with will
				k.will = nil
			}
			return nil
		default:
			return fmt.Errorf("packet type %#x", typ)
		}
	}
}

func (k *conn) connect(r *cursor) error {
	name, version, flags := string(r.bytes()), r.u8(), r.u8()
	r.u16()
	if version == 5 {
		r.props()
	}
	id := string(r.bytes())
	if flags&0x04 != 0 {
		if version == 5 {
			r.props()
		}
		k.will = &Publish{Client: id, Topic: string(r.bytes()), Payload: r.bytes(), QoS: flags >> 3 & 3, Retain: flags&0x20 != 0, Will: true}
	}
	if r.err != nil || name != "MQTT" || (version != 4 && version != 5) || flags&1 != 0 || id == "" {
		return fmt.Errorf("bad CONNECT: name %q, version %d, flags %#x, id %q, %v", name, version, flags, id, r.err)
	}
	k.version = version
	b := k.b
	var code byte
	if b.RefuseConnect != nil {
		code = b.RefuseConnect(id)
	}
	b.mu.Lock()
	if b.sessions == nil {
		b.sessions = map[string]bool{}
	}
	if b.live == nil {
		b.live, b.connects = map[string]net.Conn{}, map[string]int{}
	}
	present := byte(0)
	if code == 0 {
		if flags&2 == 0 && b.sessions[id] {
			present = 1
		}
		b.sessions[id] = true
		if old := b.live[id]; old != nil {
			old.Close()
		}
		b.live[id] = k.c
		b.connects[id]++
		k.id = id
	}
	b.mu.Unlock()
	ack := []byte{0x20, 2, present, code}
	if version == 5 {
		ack = []byte{0x20, 3, present, code, 0}
		if b.ReceiveMaximum > 0 {
			ack = []byte{0x20, 6, present, code, 3, 0x21, byte(b.ReceiveMaximum >> 8), byte(b.ReceiveMaximum)}
		}
	}
	k.out <- ack
	if code != 0 {
		return errHangUp
	}
	return nil
}

func (k *conn) publish(typ byte, r *cursor) error {
	p := Publish{Client: k.id, Topic: string(r.bytes()), QoS: typ >> 1 & 3, Dup: typ&8 != 0, Retain: typ&1 != 0}
	if p.QoS > 0 {
		p.ID = r.u16()
	}
	if k.version == 5 {
		r.props()
	}
	p.Payload = r.b
	if r.err != nil || p.QoS > 1 || (p.QoS == 1 && p.ID == 0) || p.Topic == "" {
		return fmt.Errorf("bad PUBLISH: topic %q, flags %#x, id %d, %v", p.Topic, typ, p.ID, r.err)
	}
	var v Verdict
	if k.b.Decide != nil {
		v = k.b.Decide(p)
	}
	if !v.NotKept && v.Code < 0x80 {
		k.b.mu.Lock()
		k.b.log = append(k.b.log, p)
		k.b.mu.Unlock()
	}
	if p.QoS == 1 && !v.NoAck {
		ack := []byte{0x40, 2, byte(p.ID >> 8), byte(p.ID)}
		if k.version == 5 && v.Code != 0 {
			ack = []byte{0x40, 3, byte(p.ID >> 8), byte(p.ID), v.Code}
		}
		k.out <- ack
	}
	if v.HangUp {
		return errHangUp
	}
	return nil
}
