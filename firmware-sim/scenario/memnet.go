package scenario

import (
	"context"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// socketBytes is what each direction of a connection holds, like a kernel's buffers.
const socketBytes = 64 << 10

// memAddr is the address of an in-memory connection.
type memAddr string

func (a memAddr) Network() string { return "mem" }
func (a memAddr) String() string  { return string(a) }

// half is one direction of a connection: a bounded pipe of bytes.
type half struct {
	mu     sync.Mutex
	cond   sync.Cond // on mu: any change
	buf    []byte
	under  []onWay       // how much of buf has arrived when, oldest first
	delay  time.Duration // of the network
	closed bool          // no more writes; what is buffered can still be read
	broken bool          // reset: neither side reads or writes any more

	readBy, writeBy deadline
}

// onWay says that the next n bytes can be read from some time on.
type onWay struct {
	n  int
	at time.Time
}

// arrived is how many bytes can be read now; the caller has h.mu.
func (h *half) arrived() int {
	n, now := 0, time.Now()
	for _, u := range h.under {
		if u.at.After(now) {
			break
		}
		n += u.n
	}
	return n
}

// take removes n bytes that have arrived; the caller has h.mu.
func (h *half) take(n int) {
	h.buf = h.buf[:copy(h.buf, h.buf[n:])]
	for n > 0 {
		k := min(n, h.under[0].n)
		n -= k
		if h.under[0].n -= k; h.under[0].n == 0 {
			h.under = h.under[1:]
		}
	}
}

// deadline belongs to one side of a half; guarded by half.mu.
type deadline struct {
	at    time.Time
	timer *time.Timer
}

func newHalf(delay time.Duration) *half {
	h := &half{delay: delay}
	h.cond.L = &h.mu
	return h
}

func (d *deadline) passed() bool { return !d.at.IsZero() && !time.Now().Before(d.at) }

func (h *half) setDeadline(d *deadline, at time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	d.at = at
	if !at.IsZero() {
		d.timer = time.AfterFunc(time.Until(at), func() {
			h.mu.Lock()
			h.cond.Broadcast()
			h.mu.Unlock()
		})
	}
	h.cond.Broadcast()
}

func (h *half) read(b []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for {
		switch {
		case h.broken:
			return 0, syscall.ECONNRESET
		case h.readBy.passed():
			return 0, os.ErrDeadlineExceeded
		case h.arrived() > 0:
			n := copy(b, h.buf[:h.arrived()])
			h.take(n)
			h.cond.Broadcast()
			return n, nil
		case h.closed && len(h.buf) == 0:
			return 0, io.EOF
		}
		h.cond.Wait()
	}
}

func (h *half) write(b []byte) (n int, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for {
		switch {
		case h.broken || h.closed:
			return n, syscall.EPIPE
		case h.writeBy.passed():
			return n, os.ErrDeadlineExceeded
		}
		if room := socketBytes - len(h.buf); room > 0 {
			k := min(room, len(b)-n)
			h.buf = append(h.buf, b[n:n+k]...)
			h.under = append(h.under, onWay{k, time.Now().Add(h.delay)})
			n += k
			if h.delay == 0 {
				h.cond.Broadcast()
			} else {
				time.AfterFunc(h.delay, func() {
					h.mu.Lock()
					h.cond.Broadcast()
					h.mu.Unlock()
				})
			}
		}
		if n == len(b) {
			return n, nil
		}
		h.cond.Wait()
	}
}

func (h *half) close(reset bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	h.broken = h.broken || reset
	for _, d := range []*deadline{&h.readBy, &h.writeBy} {
		if d.timer != nil {
			d.timer.Stop()
		}
	}
	h.cond.Broadcast()
}

// memConn is one end of an in-memory connection with the behaviour of TCP that matters
// here: bounded buffers, deadlines, an orderly end and a reset.
type memConn struct {
	in, out       *half
	local, remote memAddr
	onClose       func()
}

func memPipe(a, b memAddr, delay time.Duration) (*memConn, *memConn) {
	x, y := newHalf(delay), newHalf(delay)
	return &memConn{in: x, out: y, local: a, remote: b}, &memConn{in: y, out: x, local: b, remote: a}
}

func (c *memConn) Read(b []byte) (int, error)  { return c.in.read(b) }
func (c *memConn) Write(b []byte) (int, error) { return c.out.write(b) }
func (c *memConn) LocalAddr() net.Addr         { return c.local }
func (c *memConn) RemoteAddr() net.Addr        { return c.remote }

// Close ends both directions; the peer still reads what was written.
func (c *memConn) Close() error {
	c.out.close(false)
	c.in.close(true)
	if c.onClose != nil {
		c.onClose()
	}
	return nil
}

// reset ends the connection at once; bytes under way are lost.
func (c *memConn) reset() {
	c.out.close(true)
	c.in.close(true)
}

func (c *memConn) SetDeadline(t time.Time) error {
	_ = c.SetReadDeadline(t)
	return c.SetWriteDeadline(t)
}

func (c *memConn) SetReadDeadline(t time.Time) error {
	c.in.setDeadline(&c.in.readBy, t)
	return nil
}

func (c *memConn) SetWriteDeadline(t time.Time) error {
	c.out.setDeadline(&c.out.writeBy, t)
	return nil
}

// memNet is the site's network between devices and node: one address that a node listens
// on while it lives.
type memNet struct {
	delay time.Duration // one way

	mu sync.Mutex
	l  *memListener // nil while nobody listens
}

// errRefused is what a device gets while the node is down.
var errRefused = &net.OpError{Op: "dial", Net: "mem", Err: syscall.ECONNREFUSED}

// dial connects a device.
func (n *memNet) dial(ctx context.Context) (net.Conn, error) {
	n.mu.Lock()
	l := n.l
	n.mu.Unlock()
	if l == nil {
		return nil, errRefused
	}
	client, server := memPipe("device", "node", n.delay)
	select {
	case l.accept <- server:
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.dead {
			client.reset()
			return nil, errRefused
		}
		l.conns[client] = struct{}{}
		return client, nil
	case <-l.done:
		return nil, errRefused
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// cut breaks the connections that pick chooses, with what is under way on them.
func (n *memNet) cut(pick func() bool) (broken int) {
	n.mu.Lock()
	l := n.l
	n.mu.Unlock()
	if l == nil {
		return 0
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for c := range l.conns {
		if pick() {
			c.reset()
			delete(l.conns, c)
			broken++
		}
	}
	return broken
}

// listen opens the address.
func (n *memNet) listen() *memListener {
	l := &memListener{accept: make(chan *memConn), done: make(chan struct{}), conns: map[*memConn]struct{}{}}
	n.mu.Lock()
	n.l = l
	n.mu.Unlock()
	return l
}

// memListener is a net.Listener on a memNet.
type memListener struct {
	accept chan *memConn
	done   chan struct{}
	once   sync.Once

	mu    sync.Mutex
	dead  bool
	conns map[*memConn]struct{} // the devices' ends
}

func (l *memListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.accept:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *memListener) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

func (l *memListener) Addr() net.Addr { return memAddr("node") }

// kill is what the death of the listening machine does to its connections: no packet
// leaves any more. Bytes that had reached the device's kernel are still read when
// delivered says so.
func (l *memListener) kill(delivered func() bool) {
	_ = l.Close()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.dead = true
	for c := range l.conns {
		if delivered() {
			c.out.close(true)
			c.in.close(false)
		} else {
			c.reset()
		}
	}
	l.conns = nil
}

var _ net.Listener = (*memListener)(nil)
var _ net.Conn = (*memConn)(nil)
