package linktest

import (
	"context"
	"net"
	"sync"
	"time"
)

// Listen makes a hub's TCP listener, reached by DialTCP under the same address.
func (r *Router) Listen(addr string) net.Listener {
	l := &listener{r: r, addr: addr, conns: make(chan net.Conn), closed: make(chan struct{})}
	r.mu.Lock()
	if r.listeners == nil {
		r.listeners = map[string]*listener{}
	}
	r.listeners[addr] = l
	r.mu.Unlock()
	return l
}

type listener struct {
	r      *Router
	addr   string
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *listener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *listener) Addr() net.Addr { return tcpAddr(l.addr) }

type tcpAddr string

func (tcpAddr) Network() string  { return "tcp" }
func (a tcpAddr) String() string { return string(a) }

// DialTCP connects node ip with the listener at addr, over the rate, the delay and the
// outages of the node's link. Its TCP knows neither loss nor congestion: an outage delays.
func (r *Router) DialTCP(ctx context.Context, ip, addr string) (net.Conn, error) {
	r.mu.Lock()
	l := r.listeners[addr]
	k := r.link(ip)
	rtt := k.dirs[0].Delay + k.dirs[1].Delay
	r.mu.Unlock()
	t := time.NewTimer(rtt)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	for r.down(k) {
		t := time.NewTimer(time.Second)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return nil, ctx.Err()
		}
	}
	if l == nil {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Addr: tcpAddr(addr), Err: net.ErrClosed}
	}
	node, up := net.Pipe()
	hub, dn := net.Pipe()
	select {
	case l.conns <- hub:
	case <-l.closed:
		return nil, &net.OpError{Op: "dial", Net: "tcp", Addr: tcpAddr(addr), Err: net.ErrClosed}
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	go r.pump(k, 0, up, dn)
	go r.pump(k, 1, dn, up)
	return node, nil
}

func (r *Router) down(l *Link) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return l.dirs[0].down || l.dirs[1].down
}

// pump carries one direction of a TCP connection, a window of 180 KB at a time.
func (r *Router) pump(l *Link, dir int, from, to net.Conn) {
	ch := make(chan segment, 128)
	go func() {
		defer to.Close()
		for s := range ch {
			time.Sleep(time.Until(s.at))
			for r.down(l) {
				time.Sleep(100 * time.Millisecond)
			}
			if _, err := to.Write(s.b); err != nil {
				from.Close()
				for range ch {
				}
				return
			}
		}
	}()
	defer close(ch)
	for {
		b := make([]byte, 1400)
		n, err := from.Read(b)
		if err != nil {
			return
		}
		r.mu.Lock()
		d := &l.dirs[dir]
		now := time.Now()
		if d.free.Before(now) {
			d.free = now
		}
		if d.Rate > 0 {
			d.free = d.free.Add(time.Duration(float64(n+52) * 8e9 / d.Rate))
		}
		d.stats.Packets++
		d.stats.Bytes += int64(n + 52)
		at := d.free.Add(d.Delay)
		r.mu.Unlock()
		ch <- segment{at, b[:n]}
	}
}

type segment struct {
	at time.Time
	b  []byte
}
