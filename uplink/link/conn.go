package link

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"time"

	"github.com/quic-go/quic-go"

	"tailrace/uplink/wire"
)

// Transport is what carries a connection.
type Transport string

// The transports.
const (
	OverQUIC Transport = "quic"
	OverTCP  Transport = "tcp" // TLS over TCP, where UDP does not pass
)

// carrier is one connection: a control stream opened by the node, and data streams from
// the node to the hub. QUIC is one, a TLS connection with a small multiplexer the other.
type carrier interface {
	openControl(ctx context.Context) (controlStream, error)
	acceptControl(ctx context.Context) (controlStream, error)
	openData(ctx context.Context, lane wire.Lane) (io.Writer, error)
	acceptData(ctx context.Context) (io.Reader, error)
	close(code wire.Code, text string) // does not block
	Context() context.Context          // ends with the connection
	ConnectionStats() quic.ConnectionStats
	RemoteAddr() net.Addr
	tlsState() tls.ConnectionState
	transport() Transport
}

type controlStream interface {
	io.ReadWriteCloser
	SetReadDeadline(time.Time) error
	SetWriteDeadline(time.Time) error
}

// quicConn is a carrier over QUIC.
type quicConn struct{ *quic.Conn }

func (c quicConn) openControl(ctx context.Context) (controlStream, error) {
	st, err := c.OpenStreamSync(ctx)
	if err != nil {
		return nil, err
	}
	st.SetPriority(urgencyControl, false)
	return st, nil
}

func (c quicConn) acceptControl(ctx context.Context) (controlStream, error) {
	st, err := c.AcceptStream(ctx)
	if err != nil {
		return nil, err
	}
	st.SetPriority(urgencyControl, false)
	return st, nil
}

func (c quicConn) openData(ctx context.Context, lane wire.Lane) (io.Writer, error) {
	st, err := c.OpenUniStreamSync(ctx)
	if err != nil {
		return nil, err
	}
	st.SetPriority(urgency(lane), true)
	return st, nil
}

func (c quicConn) acceptData(ctx context.Context) (io.Reader, error) {
	st, err := c.AcceptUniStream(ctx)
	if err != nil {
		return nil, err
	}
	return st, nil
}

func (c quicConn) close(code wire.Code, text string) {
	c.CloseWithError(quic.ApplicationErrorCode(code), text)
}

func (c quicConn) tlsState() tls.ConnectionState { return c.ConnectionState().TLS }

func (c quicConn) transport() Transport { return OverQUIC }
