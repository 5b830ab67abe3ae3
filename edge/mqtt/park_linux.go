package mqtt

import (
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// parker waits for bytes on behalf of TCP connections that are idle: a goroutine that
// does nothing but wait is 2.5 KB, more than all else that an idle connection holds.
// Who is parked is in an epoll set of our own, each for one event; what wakes it starts
// the connection's goroutine again. The set itself is watched by the runtime's poller,
// so no thread waits here.
type parker struct {
	count atomic.Int64

	mu   sync.Mutex // below conn.mu
	set  *os.File   // nil before the first use, and when there can be none
	fd   int
	off  bool
	turn uint32
	at   []parked // by file descriptor
}

type parked struct {
	c    *conn
	turn uint32 // tells an event of a closed descriptor from one of its successor
}

// add watches c; false when that cannot be. Caller holds c.mu.
func (p *parker) add(c *conn, fd int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.set == nil && !p.open() {
		return false
	}
	for fd >= len(p.at) {
		p.at = append(p.at, make([]parked, 1+len(p.at)/4)...)
	}
	p.turn++
	ev := syscall.EpollEvent{Events: syscall.EPOLLIN | syscall.EPOLLRDHUP | syscall.EPOLLONESHOT, Fd: int32(fd), Pad: int32(p.turn)}
	err := syscall.EpollCtl(p.fd, syscall.EPOLL_CTL_ADD, fd, &ev)
	if err == syscall.EEXIST { // parked before
		err = syscall.EpollCtl(p.fd, syscall.EPOLL_CTL_MOD, fd, &ev)
	}
	if err != nil {
		return false
	}
	p.at[fd] = parked{c, p.turn}
	p.count.Add(1)
	return true
}

// open makes the set and starts its goroutine.
func (p *parker) open() bool {
	if p.off {
		return false
	}
	fd, err := syscall.EpollCreate1(syscall.EPOLL_CLOEXEC)
	if err == nil {
		err = syscall.SetNonblock(fd, true) // os.NewFile hands it to the runtime's poller then
	}
	if err != nil {
		p.off = true
		return false
	}
	p.set, p.fd = os.NewFile(uintptr(fd), "mqtt idle connections"), fd
	rc, err := p.set.SyscallConn()
	if err != nil || p.set.SetReadDeadline(time.Time{}) != nil { // not in the poller
		p.set.Close()
		p.set, p.off = nil, true
		return false
	}
	go p.run(rc)
	return true
}

// close ends the goroutine; nobody is parked any more.
func (p *parker) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.off = true
	if p.set != nil {
		p.set.Close()
		p.set = nil
	}
}

func (p *parker) run(rc syscall.RawConn) {
	events := make([]syscall.EpollEvent, 64)
	n := 0
	ready := func(fd uintptr) bool {
		n, _ = syscall.EpollWait(int(fd), events, 0)
		return n > 0
	}
	for rc.Read(ready) == nil {
		for i := range events[:n] {
			p.mu.Lock()
			fd := int(events[i].Fd)
			c := p.at[fd].c
			if p.at[fd].turn != uint32(events[i].Pad) {
				c = nil
			}
			p.mu.Unlock()
			if c != nil {
				c.unpark()
			}
		}
	}
}

// remove forgets c.
func (p *parker) remove(c *conn, fd int) {
	p.mu.Lock()
	if p.at[fd].c == c {
		p.at[fd].c = nil
		p.count.Add(-1)
	}
	p.mu.Unlock()
}

// overdue lists who has been silent for longer than its keep-alive allows.
func (p *parker) overdue(now time.Time) (out []*conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range p.at {
		if c := p.at[i].c; c != nil && c.keepAlive > 0 && now.After(c.readBy) {
			out = append(out, c)
		}
	}
	return out
}
