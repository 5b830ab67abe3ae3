package link

import (
	"errors"
	"net"
	"sync/atomic"
	"syscall"

	"github.com/quic-go/quic-go"
)

// quic-go closes a connection at the first send error, but an interface that went
// away comes back: such an error is a lost packet. EIO (no GSO) and EMSGSIZE (packet
// size) stay, quic-go handles them itself. EINVAL may also be a GSO defect of an old
// kernel, so the errors are counted and shown.
func lostPacket(err error) bool {
	for _, e := range []error{syscall.ENETUNREACH, syscall.EHOSTUNREACH, syscall.ENETDOWN, syscall.EADDRNOTAVAIL, syscall.ENOBUFS, syscall.EPERM, syscall.EINVAL, syscall.ECONNREFUSED} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// quietUDP embeds *net.UDPConn, so that quic-go keeps GSO, ECN and batched reads.
type quietUDP struct {
	*net.UDPConn
	lost *atomic.Int64
}

func (c quietUDP) WriteMsgUDP(b, oob []byte, a *net.UDPAddr) (int, int, error) {
	n, on, err := c.UDPConn.WriteMsgUDP(b, oob, a)
	if err != nil && lostPacket(err) {
		c.lost.Add(1)
		return len(b), len(oob), nil
	}
	return n, on, err
}

func (c quietUDP) WriteTo(b []byte, a net.Addr) (int, error) {
	n, err := c.UDPConn.WriteTo(b, a)
	if err != nil && lostPacket(err) {
		c.lost.Add(1)
		return len(b), nil
	}
	return n, err
}

type quietConn struct {
	net.PacketConn
	lost *atomic.Int64
}

func (c quietConn) WriteTo(b []byte, a net.Addr) (int, error) {
	n, err := c.PacketConn.WriteTo(b, a)
	if err != nil && lostPacket(err) {
		c.lost.Add(1)
		return len(b), nil
	}
	return n, err
}

// SetReadBuffer and SetWriteBuffer keep quic-go from warning about sockets that have none.
func (c quietConn) SetReadBuffer(int) error  { return nil }
func (c quietConn) SetWriteBuffer(int) error { return nil }

// quiet makes send errors that heal by themselves look like lost packets.
func quiet(c net.PacketConn, lost *atomic.Int64) net.PacketConn {
	if u, ok := c.(*net.UDPConn); ok {
		return quietUDP{u, lost}
	}
	return quietConn{c, lost}
}

var _ quic.OOBCapablePacketConn = quietUDP{}
