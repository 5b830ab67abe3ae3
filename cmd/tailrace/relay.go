package main

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
)

// relay forwards UDP datagrams between nodes and a hub, as a link would, and can be
// cut: while cut, every datagram is dropped, so both ends see silence and no error.
type relay struct {
	front *net.UDPConn // what nodes dial
	hub   netip.AddrPort
	cut   atomic.Bool

	mu    sync.Mutex
	peers map[netip.AddrPort]*net.UDPConn // node address → its own socket towards the hub
	done  bool
	wg    sync.WaitGroup
}

// maxRelayPeers bounds the sockets; the demo has a handful of nodes that redial.
const maxRelayPeers = 64

func newRelay(hub string) (*relay, error) {
	to, err := netip.ParseAddrPort(hub)
	if err != nil {
		return nil, err
	}
	front, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return nil, err
	}
	r := &relay{front: front, hub: to, peers: map[netip.AddrPort]*net.UDPConn{}}
	r.wg.Add(1)
	go r.fromNodes()
	return r, nil
}

func (r *relay) addr() string { return r.front.LocalAddr().String() }

func (r *relay) fromNodes() {
	defer r.wg.Done()
	buf := make([]byte, 65536)
	for {
		n, from, err := r.front.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil || r.cut.Load() {
			continue
		}
		if up := r.peer(from); up != nil {
			up.Write(buf[:n]) // a refused datagram is a lost one
		}
	}
}

func (r *relay) peer(node netip.AddrPort) *net.UDPConn {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c := r.peers[node]; c != nil || r.done {
		return c
	}
	if len(r.peers) >= maxRelayPeers {
		for a, c := range r.peers { // any: its node has long redialled
			c.Close()
			delete(r.peers, a)
			break
		}
	}
	c, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(r.hub))
	if err != nil {
		return nil
	}
	r.peers[node] = c
	r.wg.Add(1)
	go r.toNode(c, node)
	return c
}

func (r *relay) toNode(c *net.UDPConn, node netip.AddrPort) {
	defer r.wg.Done()
	buf := make([]byte, 65536)
	for {
		n, err := c.Read(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil || r.cut.Load() { // ECONNREFUSED while the hub is down
			continue
		}
		r.front.WriteToUDPAddrPort(buf[:n], node)
	}
}

func (r *relay) close() {
	r.mu.Lock()
	r.done = true
	for _, c := range r.peers {
		c.Close()
	}
	r.mu.Unlock()
	r.front.Close()
	r.wg.Wait()
}
