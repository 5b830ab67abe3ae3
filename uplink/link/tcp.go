package link

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"

	"tailrace/uplink/wire"
)

// Over TCP a connection is a TLS connection that carries chunks:
//
//	stream u8 | length u16 | bytes
//
// Stream 0 is the control stream, both ways; 1 to 8 are data streams of the node, in
// the order of their opening; 255 closes: code uvarint, then text as QUIC's close has
// it. A chunk of no bytes ends its stream. There is no flow control: what a node may
// have outstanding is bounded by credit, and both ends read always. Of several streams
// with something to write the most urgent one goes first; TCP_NOTSENT_LOWAT keeps little in the kernel.
const (
	tcpChunk     = 8 << 10
	tcpStreams   = 8
	tcpClose     = 255
	tcpStall     = 30 * time.Second // one chunk must leave within
	tcpLowWater  = 16 << 10
	tcpKeepAlive = 15 * time.Second
)

type tcpConn struct {
	c    *tls.Conn
	raw  net.Conn // below TLS
	idle time.Duration

	ctx    context.Context
	cancel context.CancelCauseFunc
	data   chan io.Reader // streams that the peer opened

	sent, received, chunks atomic.Int64

	mu      sync.Mutex // guards the following
	turn    *sync.Cond
	busy    bool
	closing bool
	waiting [8]int            // writers by urgency
	in      map[byte]net.Conn // the reader's ends
	opened  byte

	head [3 + tcpChunk]byte // owned by who is busy
}

// newTCPConn takes a TLS connection whose handshake is over. The node's end opens streams.
func newTCPConn(ctx context.Context, c *tls.Conn, idle time.Duration) *tcpConn {
	t := &tcpConn{c: c, raw: c.NetConn(), idle: idle, data: make(chan io.Reader, tcpStreams), in: map[byte]net.Conn{}}
	t.turn = sync.NewCond(&t.mu)
	t.ctx, t.cancel = context.WithCancelCause(ctx)
	tuneTCP(t.raw)
	return t
}

// start begins to read; control is the stream that is open from the start.
func (t *tcpConn) start() *tcpStream {
	control := t.stream(0, urgencyControl)
	go t.read()
	return control
}

// stream makes the end of a stream that this side reads, writes or both.
func (t *tcpConn) stream(id byte, urgency int8) *tcpStream {
	mine, reader := net.Pipe()
	t.mu.Lock()
	if t.in[id] = reader; t.ctx.Err() != nil { // end has passed already
		reader.Close()
	}
	t.mu.Unlock()
	return &tcpStream{t: t, id: id, urgency: urgency, Conn: mine}
}

type tcpStream struct {
	net.Conn // what was read for it
	t        *tcpConn
	id       byte
	urgency  int8
}

func (s *tcpStream) Read(b []byte) (int, error) {
	n, err := s.Conn.Read(b)
	if err != nil && s.t.ctx.Err() != nil {
		err = context.Cause(s.t.ctx)
	}
	return n, err
}

func (s *tcpStream) Write(b []byte) (int, error) {
	n := 0
	for len(b) > 0 {
		k := min(len(b), tcpChunk)
		if err := s.t.write(s.id, s.urgency, b[:k]); err != nil {
			return n, err
		}
		n, b = n+k, b[k:]
	}
	return n, nil
}

// Close ends the stream for the peer.
func (s *tcpStream) Close() error { return s.t.write(s.id, s.urgency, nil) }

// SetWriteDeadline does nothing: a write that does not leave within tcpStall ends the connection.
func (s *tcpStream) SetWriteDeadline(time.Time) error { return nil }

func (t *tcpConn) write(id byte, urgency int8, b []byte) error {
	t.mu.Lock()
	t.waiting[urgency]++
	for t.busy || t.moreUrgent(urgency) {
		t.turn.Wait()
	}
	t.waiting[urgency]--
	if t.closing && id != tcpClose || t.ctx.Err() != nil && id != tcpClose {
		t.mu.Unlock()
		t.turn.Broadcast()
		if err := context.Cause(t.ctx); err != nil {
			return err
		}
		return net.ErrClosed
	}
	t.busy = true
	t.mu.Unlock()
	t.head[0] = id
	binary.BigEndian.PutUint16(t.head[1:], uint16(len(b)))
	n := copy(t.head[3:], b)
	patience := tcpStall
	if id == tcpClose {
		patience = time.Second
	}
	t.c.SetWriteDeadline(time.Now().Add(patience))
	_, err := t.c.Write(t.head[:3+n])
	t.sent.Add(int64(3 + n))
	t.mu.Lock()
	t.busy = false
	t.mu.Unlock()
	t.turn.Broadcast()
	if err != nil {
		t.end(err)
	}
	return err
}

func (t *tcpConn) moreUrgent(urgency int8) bool {
	for _, n := range t.waiting[:urgency] {
		if n > 0 {
			return true
		}
	}
	return false
}

// read distributes what comes until the connection ends.
func (t *tcpConn) read() {
	err := t.readChunks()
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	t.end(err)
}

func (t *tcpConn) readChunks() error {
	r := bufio.NewReaderSize(t.c, 4096)
	buf := make([]byte, 0, 4096)
	for {
		t.c.SetReadDeadline(time.Now().Add(t.idle))
		var h [3]byte
		if _, err := io.ReadFull(r, h[:]); err != nil {
			return err
		}
		n := int(binary.BigEndian.Uint16(h[1:]))
		if n > tcpChunk {
			return fmt.Errorf("%w: chunk of %d bytes", wire.ErrMalformed, n)
		}
		if cap(buf) < n {
			buf = make([]byte, 0, tcpChunk)
		}
		b := buf[:n]
		if _, err := io.ReadFull(r, b); err != nil {
			return err
		}
		t.received.Add(int64(3 + n))
		t.chunks.Add(1)
		if h[0] == tcpClose {
			code, k := binary.Uvarint(b)
			if k <= 0 || code > 1<<32-1 {
				return fmt.Errorf("%w: close", wire.ErrMalformed)
			}
			return remoteError(wire.Code(code), string(b[k:]))
		}
		w, err := t.reader(h[0])
		if err != nil {
			return err
		}
		if n == 0 {
			w.Close()
			continue
		}
		if _, err := w.Write(b); err != nil && t.ctx.Err() != nil {
			return err
		}
	}
}

// reader finds the pipe into a stream, or opens one.
func (t *tcpConn) reader(id byte) (net.Conn, error) {
	t.mu.Lock()
	w := t.in[id]
	next := t.opened + 1
	t.mu.Unlock()
	if w != nil {
		return w, nil
	}
	if id != next || id > tcpStreams {
		return nil, fmt.Errorf("%w: data on stream %d", wire.ErrMalformed, id)
	}
	s := t.stream(id, urgencyBulk)
	t.mu.Lock()
	t.opened++
	w = t.in[id]
	t.mu.Unlock()
	select {
	case t.data <- s:
		return w, nil
	case <-t.ctx.Done():
		return nil, context.Cause(t.ctx)
	}
}

// end ends the connection without a word; the first reason counts.
func (t *tcpConn) end(err error) {
	t.cancel(err)
	t.mu.Lock()
	closing := t.closing
	in := t.in
	t.in = map[byte]net.Conn{}
	t.mu.Unlock()
	for _, w := range in {
		w.Close()
	}
	t.turn.Broadcast()
	if !closing {
		t.c.NetConn().Close()
	}
}

func (t *tcpConn) close(code wire.Code, text string) {
	t.mu.Lock()
	first := !t.closing
	t.closing = true
	t.mu.Unlock()
	if !first {
		return
	}
	over := t.ctx.Err() != nil
	t.end(net.ErrClosed)
	go func() {
		defer t.raw.Close()
		if over {
			return
		}
		t.raw.SetWriteDeadline(time.Now().Add(time.Second)) // a write that hangs ends
		if t.write(tcpClose, urgencyControl, append(binary.AppendUvarint(nil, uint64(code)), text...)) != nil {
			return
		}
		t.c.CloseWrite()
		// Closed with something unread, TCP would take the reason back.
		t.raw.SetReadDeadline(time.Now().Add(2 * time.Second))
		io.Copy(io.Discard, t.raw)
	}()
}

func (t *tcpConn) openControl(context.Context) (controlStream, error) { return t.start(), nil }

func (t *tcpConn) acceptControl(context.Context) (controlStream, error) { return t.start(), nil }

func (t *tcpConn) openData(_ context.Context, lane wire.Lane) (io.Writer, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.opened++; t.opened > tcpStreams {
		return nil, fmt.Errorf("internal error: more than %d streams", tcpStreams)
	}
	return &tcpStream{t: t, id: t.opened, urgency: urgency(lane)}, nil
}

func (t *tcpConn) acceptData(ctx context.Context) (io.Reader, error) {
	select {
	case s := <-t.data:
		return s, nil
	case <-t.ctx.Done():
		return nil, context.Cause(t.ctx)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (t *tcpConn) Context() context.Context      { return t.ctx }
func (t *tcpConn) RemoteAddr() net.Addr          { return t.c.RemoteAddr() }
func (t *tcpConn) tlsState() tls.ConnectionState { return t.c.ConnectionState() }
func (t *tcpConn) transport() Transport          { return OverTCP }

func (t *tcpConn) ConnectionStats() quic.ConnectionStats {
	q := quic.ConnectionStats{BytesSent: uint64(t.sent.Load()), BytesReceived: uint64(t.received.Load()), PacketsReceived: uint64(t.chunks.Load())}
	tcpInfo(t.raw, &q)
	return q
}
