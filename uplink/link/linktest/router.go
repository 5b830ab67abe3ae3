// Package linktest is a simulated network for tests of the uplink: quic-go's simnet
// endpoints joined by a Router with rate, delay, queue, loss and outages for each
// node's link. In a testing/synctest bubble it runs in virtual time; hours of outage
// cost milliseconds.
//
//	r := linktest.NewRouter(rng)
//	hub := r.HubConn("10.0.0.1:7443")
//	node := r.NodeConn("10.0.1.1:5000")
//	r.Link("10.0.1.1").Set(linktest.Path{Rate: 10e6, Delay: 50 * time.Millisecond, Queue: 125_000, Loss: 0.01})
//	r.Link("10.0.1.1").Down(true)
//
// Packets of one direction are delivered in order, unless Path.Jitter is set. At the end of a bubble, sleep some
// virtual minutes so that quic-go's timers finish.
package linktest

import (
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/quic-go/quic-go/testutils/simnet"
)

// Path is one direction of a link.
type Path struct {
	Rate  float64       // bits per second; 0 = no limit
	Delay time.Duration // one way
	Queue int           // bytes that wait for the rate at most; 0 = no limit
	Loss  float64       // probability of loss per packet
	// Jitter delays every packet by up to so much more, each by itself: they overtake each other.
	Jitter time.Duration
	MTU    int // larger IP packets vanish; 0 = no limit
}

// Router is a simnet.Router. Every node IP has a link of its own to the hubs; hubs
// reach each other over none.
type Router struct {
	mu    sync.Mutex // guards everything here and in links
	rng   *rand.Rand
	nodes map[string]simnet.PacketReceiver // by ip:port
	hubs  map[string]bool                  // by ip
	links map[string]*Link                 // by node ip
	path  Path                             // of new links
	tap   func(simnet.Packet)

	mapped map[string]mapping // by outer address
	ports  int                // outer ones given out

	listeners map[string]*listener
}

// NewRouter makes a network without delay or limits; rng decides about losses.
func NewRouter(rng *rand.Rand) *Router {
	return &Router{rng: rng, nodes: map[string]simnet.PacketReceiver{}, hubs: map[string]bool{}, links: map[string]*Link{}, mapped: map[string]mapping{}}
}

// Default sets both directions of links that are not made yet.
func (r *Router) Default(p Path) {
	r.mu.Lock()
	r.path = p
	r.mu.Unlock()
}

// Tap shows every packet that is sent to f, which must not keep Data.
func (r *Router) Tap(f func(simnet.Packet)) {
	r.mu.Lock()
	r.tap = f
	r.mu.Unlock()
}

// Link is the link of one node IP.
type Link struct {
	r     *Router
	dirs  [2]direction            // up, down
	nat   int                     // how often the node's outer addresses changed
	outer map[string]*net.UDPAddr // by inner address, since then
}

// mapping is an outer address of a node, known until its NAT forgets it.
type mapping struct {
	inner net.Addr
	nat   int
}

type direction struct {
	Path
	down    bool
	free    time.Time // when the sender's queue is empty
	queue   []delayed // in order of delivery
	running bool      // a timer or delivery is under way
	drop    func(n int) bool
	stats   Stats
}

type delayed struct {
	at time.Time
	p  simnet.Packet
}

// Stats counts packets of one direction.
type Stats struct {
	Packets, Bytes, Lost, Overflow int64
}

// Link finds or makes the link of a node IP.
func (r *Router) Link(ip string) *Link {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.link(ip)
}

func (r *Router) link(ip string) *Link {
	l := r.links[ip]
	if l == nil {
		l = &Link{r: r}
		l.dirs[0].Path, l.dirs[1].Path = r.path, r.path
		r.links[ip] = l
	}
	return l
}

// Set sets both directions.
func (l *Link) Set(p Path) { l.SetUp(p); l.SetDown(p) }

// SetUp sets node to hub.
func (l *Link) SetUp(p Path) {
	l.r.mu.Lock()
	l.dirs[0].Path = p
	l.r.mu.Unlock()
}

// SetDown sets hub to node.
func (l *Link) SetDown(p Path) {
	l.r.mu.Lock()
	l.dirs[1].Path = p
	l.r.mu.Unlock()
}

// Down cuts or restores both directions; what is under way when cut is lost.
func (l *Link) Down(down bool) {
	l.r.mu.Lock()
	for i := range l.dirs {
		l.dirs[i].down = down
	}
	l.r.mu.Unlock()
}

// Rebind changes the address under which the hub sees the node, as a NAT does that lost its
// table: what is sent to the one before vanishes.
func (l *Link) Rebind() {
	l.r.mu.Lock()
	l.nat++
	clear(l.outer)
	l.r.mu.Unlock()
}

// Drop has f decide about every packet up (up) or down the link, besides Loss; nil ends it.
func (l *Link) Drop(up bool, f func(bytes int) bool) {
	l.r.mu.Lock()
	if up {
		l.dirs[0].drop = f
	} else {
		l.dirs[1].drop = f
	}
	l.r.mu.Unlock()
}

// Stats counts what was sent, up and down.
func (l *Link) Stats() (up, down Stats) {
	l.r.mu.Lock()
	defer l.r.mu.Unlock()
	return l.dirs[0].stats, l.dirs[1].stats
}

// HubConn makes a hub's socket at ip:port. A later one at the same address replaces it.
func (r *Router) HubConn(addr string) net.PacketConn {
	a := mustAddr(addr)
	r.mu.Lock()
	r.hubs[a.IP.String()] = true
	r.mu.Unlock()
	return simnet.NewBlockingSimConn(a, r)
}

// NodeConn makes a node's socket at ip:port.
func (r *Router) NodeConn(addr string) net.PacketConn {
	return nodeConn{simnet.NewBlockingSimConn(mustAddr(addr), r), r}
}

// nodeConn is forgotten when it is closed: a node opens many in a long history.
type nodeConn struct {
	*simnet.SimConn
	r *Router
}

func (c nodeConn) Close() error {
	c.r.mu.Lock()
	delete(c.r.nodes, c.LocalAddr().String())
	c.r.mu.Unlock()
	return c.SimConn.Close()
}

func mustAddr(addr string) *net.UDPAddr {
	a, err := net.ResolveUDPAddr("udp", addr)
	if err != nil {
		panic("linktest: " + err.Error())
	}
	return a
}

// AddNode implements simnet.Router.
func (r *Router) AddNode(addr net.Addr, receiver simnet.PacketReceiver) {
	r.mu.Lock()
	r.nodes[addr.String()] = receiver
	r.mu.Unlock()
}

func ipOf(a net.Addr) string {
	if u, ok := a.(*net.UDPAddr); ok {
		return u.IP.String()
	}
	host, _, _ := net.SplitHostPort(a.String())
	return host
}

// SendPacket implements simnet.Router. Lost packets are not an error, as on a real network.
func (r *Router) SendPacket(p simnet.Packet) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.tap != nil {
		r.tap(p)
	}
	ip, i := ipOf(p.From), 0
	if r.hubs[ip] {
		ip, i = ipOf(p.To), 1
	}
	l := r.link(ip)
	d := &l.dirs[i]
	n := len(p.Data) + 28 // IP and UDP headers
	d.stats.Packets++
	d.stats.Bytes += int64(n)
	p, known := l.translate(p, i)
	if !known || d.down || d.drop != nil && d.drop(len(p.Data)) || d.MTU > 0 && n > d.MTU {
		d.stats.Lost++
		return nil
	}
	now := time.Now()
	if d.free.Before(now) {
		d.free = now
	}
	if d.Rate > 0 {
		if d.Queue > 0 && int(d.free.Sub(now).Seconds()*d.Rate/8)+n > d.Queue {
			d.stats.Overflow++
			return nil
		}
		d.free = d.free.Add(time.Duration(float64(n) * 8e9 / d.Rate))
	}
	if d.Loss > 0 && r.rng.Float64() < d.Loss { // on the way: it took its time on the link
		d.stats.Lost++
		return nil
	}
	x := delayed{d.free.Add(d.Delay), p}
	if d.Jitter > 0 {
		x.at = x.at.Add(time.Duration(r.rng.Int64N(int64(d.Jitter))))
	}
	at := len(d.queue)
	for at > 0 && d.queue[at-1].at.After(x.at) {
		at--
	}
	d.queue = slices.Insert(d.queue, at, x)
	if !d.running {
		d.running = true
		time.AfterFunc(d.queue[0].at.Sub(now), func() { r.run(d) })
	}
	return nil
}

// translate gives a packet up the node's outer address, and one down its inner one.
func (l *Link) translate(p simnet.Packet, dir int) (_ simnet.Packet, known bool) {
	if dir == 1 {
		m, ok := l.r.mapped[p.To.String()]
		if !ok {
			return p, l.nat == 0
		}
		p.To = m.inner
		return p, m.nat == l.nat
	}
	if l.nat == 0 {
		return p, true
	}
	inner := p.From.String()
	a := l.outer[inner]
	if a == nil {
		l.r.ports++
		a = &net.UDPAddr{IP: p.From.(*net.UDPAddr).IP, Port: 20000 + l.r.ports%40000}
		if l.outer == nil {
			l.outer = map[string]*net.UDPAddr{}
		}
		l.outer[inner] = a
		l.r.mapped[a.String()] = mapping{p.From, l.nat}
	}
	p.From = a
	return p, true
}

// run delivers what is due and arms the timer for the next.
func (r *Router) run(d *direction) {
	for {
		r.mu.Lock()
		if len(d.queue) == 0 {
			d.queue, d.running = nil, false
			r.mu.Unlock()
			return
		}
		if wait := time.Until(d.queue[0].at); wait > 0 {
			time.AfterFunc(wait, func() { r.run(d) })
			r.mu.Unlock()
			return
		}
		p := d.queue[0].p
		d.queue = d.queue[1:]
		to := r.nodes[p.To.String()]
		if d.down {
			d.stats.Lost++
			to = nil
		}
		r.mu.Unlock()
		if to != nil {
			to.RecvPacket(p) // blocks while the receiver's buffer is full
		}
	}
}
