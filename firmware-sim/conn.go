package firmwaresim

import (
	"net"
	"sync"
	"time"
)

// writeTimeout cuts a connection whose other end does not read.
const writeTimeout = 20 * time.Second

// bufferedConn reads in larger pieces and sends what is written between Lock
// and Unlock with one call: paho locks a connection around every packet, writes it
// in four pieces, and reads it byte by byte.
type bufferedConn struct {
	net.Conn
	mu   sync.Mutex
	out  []byte // guarded by mu
	in   [512]byte
	r, w int // of in; used by the reading goroutine alone
}

func (c *bufferedConn) Lock() { c.mu.Lock() }

// Unlock sends the packet. An error closes the connection, which the reader notices.
func (c *bufferedConn) Unlock() {
	if len(c.out) > 0 {
		_ = c.Conn.SetWriteDeadline(time.Now().Add(writeTimeout))
		if _, err := c.Conn.Write(c.out); err != nil {
			_ = c.Conn.Close()
		}
		if c.out = c.out[:0]; cap(c.out) > 4096 {
			c.out = nil
		}
	}
	c.mu.Unlock()
}

// Write collects; the caller holds the lock.
func (c *bufferedConn) Write(p []byte) (int, error) {
	c.out = append(c.out, p...)
	return len(p), nil
}

func (c *bufferedConn) Read(p []byte) (int, error) {
	if c.r == c.w {
		if len(p) >= len(c.in) {
			return c.Conn.Read(p)
		}
		n, err := c.Conn.Read(c.in[:])
		if n == 0 {
			return 0, err
		}
		c.r, c.w = 0, n // an error shows again at the next read
	}
	n := copy(p, c.in[c.r:c.w])
	c.r += n
	return n, nil
}

// powerCut ends the connection as a dead device does: nothing more is sent, also
// not what the kernel still holds.
func (c *bufferedConn) powerCut() {
	raw := c.Conn
	if t, ok := raw.(interface{ NetConn() net.Conn }); ok { // TLS
		raw = t.NetConn()
	}
	if tcp, ok := raw.(interface{ SetLinger(int) error }); ok {
		_ = tcp.SetLinger(0)
	}
	_ = raw.Close()
	_ = c.Conn.Close()
}
