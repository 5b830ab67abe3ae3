package mqtt

import (
	"io"
	"net"
	"sync"
	"syscall"
	"time"
)

// outbox is what waits to be written to one peer. Appending never blocks, so one
// that does not read delays nobody else. The flusher writes what a TCP socket takes at
// once; the rest, and everything to other transports, a goroutine of its own. An idle
// connection has none, and no buffer.
type outbox struct {
	c       *conn
	nc      net.Conn
	rc      syscall.RawConn // nil = not for the flusher
	flusher *flusher
	timeout time.Duration
	limit   int // bytes above which full() is true; then c.drained is called, without locks

	mu      sync.Mutex
	cur     *chunk // appended to; nil = empty
	running bool   // the flusher or the goroutine will look at cur
	over    bool   // was full since the last drained
	said    bool   // something was appended, ever
	broken  bool   // a write failed or the box was closed; nothing is accepted any more
	closing bool   // close nc when all is written
	linger  bool
	ended   chan struct{} // made by finish, closed when nc is

	loop     func() // = o.run, bound once: starting the writer again allocates nothing
	deadline time.Time
}

func (o *outbox) init(c *conn, timeout time.Duration, limit int) {
	o.c, o.nc, o.timeout, o.limit = c, c.nc, timeout, limit
}

// start starts the writer; running is set.
func (o *outbox) start() {
	if o.loop == nil {
		o.loop = o.run
	}
	go o.loop()
}

// fail closes the connection, which wakes the reader.
func (o *outbox) fail() {
	o.nc.Close()
	o.c.unpark()
}

// begin locks the outbox and returns the buffer to append to, nil when the peer is
// gone. end must follow.
func (o *outbox) begin() *chunk {
	o.mu.Lock()
	if o.broken || o.closing {
		return nil
	}
	if o.cur == nil {
		o.cur, o.said = getChunk(), true
	}
	return o.cur
}

// silent reports whether the peer was never told anything.
func (o *outbox) silent() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return !o.said
}

// end unlocks and starts the writer when it is needed.
func (o *outbox) end() {
	if o.cur == nil || o.running || o.broken {
		o.mu.Unlock()
		return
	}
	o.running = true
	o.mu.Unlock()
	if o.rc != nil {
		o.flusher.add(o)
	} else {
		o.start()
	}
}

// write appends p.
func (o *outbox) write(p []byte) {
	if c := o.begin(); c != nil {
		c.b = append(c.b, p...)
	}
	o.end()
}

// full reports whether more than limit bytes wait; then drained will be called.
func (o *outbox) full() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.fullLocked()
}

func (o *outbox) fullLocked() bool {
	if o.broken || o.cur == nil || len(o.cur.b) < o.limit {
		return false
	}
	o.over = true
	return true
}

// finish closes the connection once everything is written, at the latest after the
// write timeout, and waits for that. With linger it first closes only its own
// direction and reads on for a moment: closing a socket with unread bytes resets it,
// and the reset may overtake the DISCONNECT that says why.
func (o *outbox) finish(linger bool) {
	o.mu.Lock()
	if !o.said { // there is nothing that a reset could overtake
		o.broken, o.closing = true, true
		o.mu.Unlock()
		o.nc.Close()
		return
	}
	if !o.closing {
		o.closing, o.linger = true, linger && !o.broken
		o.ended = make(chan struct{})
		if !o.running {
			o.running = true
			o.start()
		}
	}
	o.mu.Unlock()
	<-o.ended
}

func (o *outbox) run() {
	for {
		o.mu.Lock()
		c := o.cur
		if c == nil || o.broken {
			closing, over := o.closing, o.over
			o.over = false
			o.broken = o.broken || closing
			if !o.deadline.IsZero() && o.rc != nil { // the flusher sets none, and would meet this one
				o.deadline = time.Time{}
				o.nc.SetWriteDeadline(o.deadline)
			}
			o.cur, o.running = nil, false
			o.mu.Unlock()
			if c != nil {
				putChunk(c)
			}
			if closing {
				o.lingerOn()
				o.nc.Close()
				close(o.ended)
			} else {
				o.hasRoom(over)
			}
			return
		}
		o.cur = nil
		over := o.over
		o.over = false
		o.mu.Unlock()

		// The deadline moves only after a quarter of it has passed: it is for a peer
		// that takes nothing at all, and must not cost a timer per write.
		if now := time.Now(); o.deadline.Sub(now) < o.timeout {
			o.deadline = now.Add(o.timeout + o.timeout/4)
			o.nc.SetWriteDeadline(o.deadline)
		}
		_, err := o.nc.Write(c.b)
		putChunk(c)
		if err != nil {
			o.mu.Lock()
			o.broken = true
			o.mu.Unlock()
			o.fail()
		}
		o.hasRoom(over)
	}
}

// lingerTime and lingerBytes bound what is read from a peer that has been told to go.
const (
	lingerTime  = 500 * time.Millisecond
	lingerBytes = 1 << 20
)

func (o *outbox) lingerOn() {
	half, ok := o.nc.(interface{ CloseWrite() error })
	if !o.linger || !ok || half.CloseWrite() != nil {
		return
	}
	o.nc.SetReadDeadline(time.Now().Add(lingerTime))
	io.CopyN(io.Discard, o.nc, lingerBytes)
}
