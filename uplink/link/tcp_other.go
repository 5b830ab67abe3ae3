//go:build !linux

package link

import (
	"net"

	"github.com/quic-go/quic-go"
)

func tuneTCP(net.Conn) {}

func tcpInfo(net.Conn, *quic.ConnectionStats) {}
