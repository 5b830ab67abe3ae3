package mqtt

import (
	"errors"
	"os"
	"time"

	"tailrace/edge/mqtt/packet"
)

// errParked ends a connection's goroutine, not the connection.
var errParked = errors.New("idle: waits without a goroutine")

// parkKeepAlive is the least keep-alive of a connection that is parked: what it may be
// silent is then looked at every few seconds only.
const parkKeepAlive = 30 * time.Second

// park gives the goroutine up until there is something to read; the caller, whose
// goroutine it is, must not touch c after true. A connection whose last read held
// publishes is not parked at once: it waits with its goroutine, and the sweep asks it to
// go when it has been silent for a while.
func (c *conn) park() bool {
	if !c.parkable() {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stopped {
		return false
	}
	if c.parkedFd == 0 {
		fd := -1
		c.raw.rc.Control(func(f uintptr) { fd = int(f) })
		if fd <= 0 {
			return false
		}
		c.parkedFd = fd
	}
	c.parked = c.srv.parker.add(c, c.parkedFd)
	return c.parked
}

func (c *conn) parkable() bool {
	return c.raw != nil && (c.keepAlive == 0 || c.keepAlive >= parkKeepAlive)
}

// unpark starts the goroutine of a parked connection.
func (c *conn) unpark() {
	c.mu.Lock()
	c.unparkLocked()
	c.mu.Unlock()
}

func (c *conn) unparkLocked() {
	if c.parked {
		c.parked, c.woken = false, true
		c.srv.parker.remove(c, c.parkedFd)
		go c.run()
	}
}

// lookAround ends parked connections whose keep-alive is over, and asks those that have
// been silent since the last time to park.
func (s *Server) lookAround(now time.Time) {
	for _, c := range s.parker.overdue(now) {
		s.stats.KeepAliveTimeouts.Add(1)
		c.stop(cause{code: packet.KeepAliveTimeout, err: os.ErrDeadlineExceeded})
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		c.mu.Lock()
		if c.resting && !c.stopped && c.parkable() {
			if c.rests == c.restsSeen {
				c.asked = true
				c.nc.SetReadDeadline(time.Unix(1, 0))
			}
			c.restsSeen = c.rests
		}
		c.mu.Unlock()
	}
}

// rest is the wait of a connection that has published. It reports whether the goroutine
// is to go.
func (c *conn) rest() (gone bool, err error) {
	c.setResting(true)
	ch, err := c.raw.read()
	c.rd, c.rpos = ch, 0
	if asked := c.setResting(false); !asked {
		return false, err
	}
	// The deadline was lookAround's. Bytes that came at the same moment are here.
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		return false, err
	}
	c.setReadDeadline(c.readBy)
	if c.rd != nil {
		return false, nil
	}
	return c.park(), nil
}

// setResting returns whether the connection was asked to park.
func (c *conn) setResting(r bool) (asked bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	asked = c.asked && !c.stopped
	c.resting, c.asked = r, false
	c.rests++
	return asked
}
