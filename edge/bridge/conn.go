package bridge

import (
	"bufio"
	"fmt"
	"net"
	"sync"
	"time"
)

// conn is the connection that paho works on. paho reads byte by byte and allocates
// what a packet's header announces, and writes every packet in several pieces;
// here reads are buffered and packets larger than the limit end the connection
// before anything is allocated, and writes are gathered: paho locks the connection
// around each packet (sync.Locker), and whatever packets were written while one
// write to the socket was under way leave together in the next.
//
// 1,000 acknowledgements so cost a few system calls, not 1,000.
type conn struct {
	net.Conn
	maxPacket    int
	writeTimeout time.Duration

	// Owned by paho's reading goroutine.
	r    *bufio.Reader
	left int // bytes of the present packet not yet handed out

	packetMu sync.Mutex // held by paho while it writes one packet

	mu      sync.Mutex // guards the fields below
	cond    sync.Cond  // out became empty, or not; closed
	out     []byte
	closed  bool
	err     error
	flushed chan struct{} // closed when the writer has ended
}

// maxOut bounds what waits for the socket; beyond it Write blocks.
const maxOut = 64 << 10

func newConn(c net.Conn, maxPacket int, writeTimeout time.Duration) *conn {
	w := &conn{Conn: c, maxPacket: maxPacket, writeTimeout: writeTimeout, r: bufio.NewReaderSize(c, 16<<10), flushed: make(chan struct{})}
	w.cond.L = &w.mu
	go w.writer()
	return w
}

// Lock and Unlock make conn a sync.Locker, which paho holds around a packet.
func (c *conn) Lock()   { c.packetMu.Lock() }
func (c *conn) Unlock() { c.packetMu.Unlock() }

// Write implements net.Conn. The bytes leave soon; a failure is reported by a later
// Write, and closes the connection so that the reader sees it at once.
func (c *conn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.out) > maxOut && !c.closed {
		c.cond.Wait()
	}
	if c.closed {
		if c.err != nil {
			return 0, c.err
		}
		return 0, net.ErrClosed
	}
	c.out = append(c.out, p...)
	c.cond.Broadcast()
	return len(p), nil
}

// writer moves out to the socket until Close.
func (c *conn) writer() {
	defer close(c.flushed)
	var spare []byte
	for {
		c.mu.Lock()
		for len(c.out) == 0 && !c.closed {
			c.cond.Wait()
		}
		batch := c.out
		if len(batch) == 0 {
			c.mu.Unlock()
			return
		}
		c.out = spare[:0]
		c.cond.Broadcast()
		c.mu.Unlock()
		err := c.Conn.SetWriteDeadline(time.Now().Add(c.writeTimeout))
		if err == nil {
			_, err = c.Conn.Write(batch)
		}
		if err != nil {
			c.mu.Lock()
			c.err, c.closed, c.out = err, true, nil
			c.cond.Broadcast()
			c.mu.Unlock()
			c.Conn.Close()
			return
		}
		spare = batch
	}
}

// Close sends what waits (within the write timeout, one second at most) and closes.
func (c *conn) Close() error {
	c.mu.Lock()
	c.closed = true
	c.cond.Broadcast()
	c.mu.Unlock()
	t := time.NewTimer(min(c.writeTimeout, time.Second))
	defer t.Stop()
	select {
	case <-c.flushed:
	case <-t.C:
	}
	return c.Conn.Close()
}

// Read implements net.Conn and hands out at most the rest of one packet.
func (c *conn) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if c.left == 0 {
		if err := c.header(); err != nil {
			return 0, err
		}
	}
	n, err := c.r.Read(p[:min(len(p), c.left)])
	c.left -= n
	return n, err
}

// header looks at the fixed header of the next packet (MQTT 5.0, 2.1).
func (c *conn) header() error {
	length, shift := 0, 0
	for i := 2; i <= 5; i++ {
		h, err := c.r.Peek(i)
		if err != nil {
			return err
		}
		length |= int(h[i-1]&0x7f) << shift
		shift += 7
		if h[i-1]&0x80 == 0 {
			if length > c.maxPacket {
				return fmt.Errorf("the broker sent a packet of %d bytes; it was told that the limit is %d", length, c.maxPacket)
			}
			c.left = i + length
			return nil
		}
	}
	return fmt.Errorf("the broker sent a malformed packet length")
}
