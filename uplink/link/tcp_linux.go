package link

import (
	"net"
	"time"

	"github.com/quic-go/quic-go"
	"golang.org/x/sys/unix"
)

func control(c net.Conn, f func(fd int)) {
	if t, ok := c.(*net.TCPConn); ok {
		if rc, err := t.SyscallConn(); err == nil {
			rc.Control(func(fd uintptr) { f(int(fd)) })
		}
	}
}

// tuneTCP keeps what is written and not sent short, so that urgent chunks pass it.
func tuneTCP(c net.Conn) {
	control(c, func(fd int) {
		unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, tcpLowWater)
		unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, "bbr") // where the kernel has it: random loss does not stop it
	})
}

// tcpInfo adds what the kernel knows.
func tcpInfo(c net.Conn, q *quic.ConnectionStats) {
	control(c, func(fd int) {
		i, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		if err != nil {
			return
		}
		q.SmoothedRTT = time.Duration(i.Rtt) * time.Microsecond
		q.LatestRTT = q.SmoothedRTT
		q.MeanDeviation = time.Duration(i.Rttvar) * time.Microsecond
		q.MinRTT = time.Duration(i.Min_rtt) * time.Microsecond
		q.PacketsSent, q.PacketsReceived = uint64(i.Segs_out), uint64(i.Segs_in)
		q.PacketsLost = uint64(i.Total_retrans)
	})
}
