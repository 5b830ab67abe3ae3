package kafka

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"tailrace/storage/record"
	"tailrace/uplink/hub/kafka/access"
	"tailrace/uplink/pki"
)

const (
	// A frame up to freeFrameBytes is a connection's by right; larger ones
	// take from the budget of all.
	freeFrameBytes = 64 << 10
	// Requests other than Produce: decoded, a byte of them may take a hundred
	// (an array of small structs), which the budget counts from
	// freeDecodeBytes on.
	maxDecodeBytes  = 1 << 20
	freeDecodeBytes = 4 << 10
	decodeFactor    = 100
	maxLoginBytes   = 8 << 10 // a request before the login
)

// conn is one client. Its goroutine reads requests and answers them one at a
// time, as a Kafka broker does; produce requests alone may overlap: they wait
// in pending for the disk, answered in order by a second goroutine that exists
// from the first produce on.
type conn struct {
	s    *Server
	nc   net.Conn
	br   *bufio.Reader
	peer Peer
	buf  []byte // the frame at hand, reused
	out  []byte // the response at hand, reused
	dec  *record.Decompressor

	backlog       bool            // the last fetch took much
	sasl          *access.Session // a login under way
	authenticated bool
	ending        error // close after the answer at hand, because of this

	pending     chan pending   // capacity MaxInFlight; closed by serve
	outstanding sync.WaitGroup // pending answers not yet written; Add and Wait by serve only
	writerDone  chan struct{}  // closed when the second goroutine has ended; nil before it exists
}

// pending is an answer that waits for done.
type pending struct {
	h     header
	done  <-chan struct{}
	reply func() (kmsg.Response, error) // called after done; a nil response is not written (acks=0)
	since time.Time
}

func newConn(s *Server, nc net.Conn) *conn {
	return &conn{s: s, authenticated: s.cfg.Users == nil, nc: nc, br: bufio.NewReaderSize(countReader{nc, s}, 4096), peer: Peer{Remote: nc.RemoteAddr()}}
}

// countReader counts what arrives.
type countReader struct {
	r io.Reader
	s *Server
}

func (r countReader) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	r.s.stats.bytesIn.Add(n)
	return n, err
}

// errGone says that the client has left; it is no fault.
var errGone = errors.New("client closed the connection")

func (c *conn) serve(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// At shutdown a reader that waits for a request is woken; what is being
	// answered has TransferTimeout to leave.
	stop := context.AfterFunc(ctx, func() { c.nc.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	var err error
	for err == nil {
		err = c.one(ctx)
	}
	c.drain(ctx)
	c.nc.Close()
	if c.dec != nil {
		c.dec.Close()
	}
	if ctx.Err() == nil && !errors.Is(err, errGone) {
		c.s.stats.broken.Inc()
		c.s.log.Info("kafka connection closed", "remote", c.peer.Remote, "client", c.peer.ClientID, "err", err)
	}
}

// drain lets the answers that wait for the disk leave, then ends the writer.
func (c *conn) drain(context.Context) {
	if c.pending != nil {
		close(c.pending)
		<-c.writerDone
	}
}

// one reads and answers one request.
func (c *conn) one(ctx context.Context) error {
	h, body, release, err := c.read(ctx)
	defer release()
	if err != nil {
		return err
	}
	a := c.s.apis[h.key]
	start := time.Now()
	c.s.stats.request(a.key)
	if h.key != kmsg.Produce.Int16() { // which has a decoder of its own
		if h.flexible { // not for an ApiVersions that is too new: it has no body here
			if _, ok := soundFlexible(h.key, h.version, body); !ok {
				return fmt.Errorf("%s v%d of %d bytes: %w", a.name, h.version, len(body), errShortRequest)
			}
		}
		c.outstanding.Wait() // answers keep the order of the requests
	}
	if a.raw != nil {
		if err := a.raw(ctx, c, h, body); err != nil {
			return fmt.Errorf("%s v%d: %w", a.name, h.version, err)
		}
		c.s.stats.took(a.key, start)
		return nil
	}
	req := kmsg.RequestForKey(h.key)
	req.SetVersion(h.version)
	if err := req.ReadFrom(body); err != nil {
		return fmt.Errorf("%s v%d of %d bytes: %w", a.name, h.version, len(body), err)
	}
	resp, err := a.handle(ctx, c, req)
	if err != nil {
		return fmt.Errorf("%s v%d: %w", a.name, h.version, err)
	}
	resp.SetVersion(h.version)
	if err := c.write(h, resp); err != nil {
		return err
	}
	c.s.stats.took(a.key, start)
	return c.ending
}

// read takes one frame from the client. The body lies in c.buf. release gives
// back what the frame took from the budget; it is never nil.
func (c *conn) read(ctx context.Context) (h header, body []byte, release func(), err error) {
	release = func() {}
	idle := c.s.cfg.IdleTimeout
	if !c.authenticated {
		idle = min(idle, c.s.cfg.TransferTimeout)
	}
	c.deadline(ctx, idle)
	if _, err := c.br.Peek(1); err != nil {
		if ctx.Err() != nil || errors.Is(err, io.EOF) || errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, net.ErrClosed) {
			err = errGone // between two requests: leave, idle or shutdown
		}
		return h, nil, release, err
	}
	c.deadline(ctx, c.s.cfg.TransferTimeout)
	var fixed [12]byte
	if _, err := io.ReadFull(c.br, fixed[:]); err != nil {
		return h, nil, release, fmt.Errorf("read request: %w", err)
	}
	size := int64(int32(binary.BigEndian.Uint32(fixed[:])))
	if size < 10 || size > int64(c.s.cfg.MaxFrameBytes) {
		return h, nil, release, fmt.Errorf("frame of %d bytes from a client, allowed are 10 to %d (max_frame_bytes); is it speaking Kafka without TLS?", size, c.s.cfg.MaxFrameBytes)
	}
	if h, _, err = parseFixed(fixed[4:]); err != nil {
		return h, nil, release, err
	}
	// The key decides before anything is allocated or decoded:
	// kmsg.RequestForKey is nil for keys it does not know.
	a, ok := c.s.apis[h.key]
	if !ok {
		return h, nil, release, fmt.Errorf("api key %d is not served", h.key)
	}
	if !c.authenticated {
		switch h.key {
		case kmsg.ApiVersions.Int16(), kmsg.SASLHandshake.Int16(), kmsg.SASLAuthenticate.Int16():
		default:
			return h, nil, release, fmt.Errorf("%s before a login: the client is not configured for SASL", a.name)
		}
		if size > maxLoginBytes {
			return h, nil, release, fmt.Errorf("%s request of %d bytes before a login, allowed are %d", a.name, size, maxLoginBytes)
		}
	}
	if h.version < 0 || h.version > a.max || h.version < a.min {
		if h.key != kmsg.ApiVersions.Int16() {
			return h, nil, release, fmt.Errorf("%s v%d is not served, only v%d to v%d", a.name, h.version, a.min, a.max)
		}
		// KIP-511: a version that we do not know is answered as v0. Its body
		// cannot be read.
		if _, err = io.CopyN(io.Discard, c.br, size-8); err != nil {
			return h, nil, release, fmt.Errorf("read request: %w", err)
		}
		return h, nil, release, nil
	}
	cost := int64(0)
	if h.key != kmsg.Produce.Int16() {
		if size > maxDecodeBytes {
			return h, nil, release, fmt.Errorf("%s request of %d bytes, allowed are %d", a.name, size, maxDecodeBytes)
		}
		if size > freeDecodeBytes {
			cost = min(size*decodeFactor, c.s.cfg.RequestBytes)
		}
	} else if size > freeFrameBytes {
		cost = size
	}
	// A frame takes from the budget only when a part of it is here: announcing
	// costs nobody anything.
	c.shrink(int(size) - 8)
	if err := c.fill(min(int(size)-8, freeFrameBytes)); err != nil {
		return h, nil, release, fmt.Errorf("read %s request of %d bytes: %w", a.name, size, err)
	}
	if cost > 0 {
		if err := c.s.requests.Acquire(ctx, cost); err != nil {
			return h, nil, release, errGone
		}
		release = func() { c.s.requests.Release(cost) }
		c.deadline(ctx, c.s.cfg.TransferTimeout) // the wait was ours
	}
	if err := c.fill(int(size) - 8); err != nil {
		return h, nil, release, fmt.Errorf("read %s request of %d bytes: %w", a.name, size, err)
	}
	h.flexible = flexible(h.key, h.version)
	if body, err = h.finish(c.buf); err != nil {
		return h, nil, release, fmt.Errorf("%s v%d header: %w", a.name, h.version, err)
	}
	c.identify(h.clientID)
	return h, body, release, nil
}

// shrink empties c.buf for n bytes; a large buffer is not kept for a small
// request.
func (c *conn) shrink(n int) {
	if cap(c.buf) > freeFrameBytes && n <= freeFrameBytes {
		c.buf = nil
	}
	c.buf = c.buf[:0]
}

// fill reads until c.buf has n bytes. It grows as they arrive: an announced
// length costs nothing.
func (c *conn) fill(n int) error {
	for len(c.buf) < n {
		if len(c.buf) == cap(c.buf) {
			size := min(max(2*cap(c.buf), 4<<10), n)
			c.buf = append(make([]byte, 0, size), c.buf...)
		}
		part := c.buf[len(c.buf):min(cap(c.buf), n)]
		if _, err := io.ReadFull(c.br, part); err != nil {
			return err
		}
		c.buf = c.buf[:len(c.buf)+len(part)]
	}
	return nil
}

// deadline bounds the following reads, unless the server is ending.
func (c *conn) deadline(ctx context.Context, d time.Duration) {
	c.nc.SetReadDeadline(time.Now().Add(d))
	if ctx.Err() != nil {
		c.nc.SetReadDeadline(time.Unix(1, 0))
	}
}

func (c *conn) identify(clientID string) {
	if c.peer.ClientID != clientID {
		if len(clientID) > 256 {
			clientID = clientID[:256]
		}
		c.peer.ClientID = clientID
	}
	if c.peer.TLS == nil {
		if tc, ok := c.nc.(*tls.Conn); ok {
			st := tc.ConnectionState()
			c.peer.TLS = &st
			if len(st.VerifiedChains) > 0 {
				c.peer.User = certUser(st.PeerCertificates[0])
			}
		}
	}
}

// certUser is the user that a client's certificate names. A certificate that
// Tailrace's own CA has issued for a node or a device carries its role, so that a
// device called admin is not the user admin.
func certUser(cert *x509.Certificate) string {
	role, name := pki.Identity(cert)
	if role != "" {
		return string(role) + ":" + name
	}
	return name
}

// write encodes and sends one response. It is called by serve when nothing is
// pending, or by the writer.
func (c *conn) write(h header, resp kmsg.Response) error {
	h.flexible = resp.IsFlexible()
	c.out = resp.AppendTo(appendHeader(c.out[:0], h))
	setLength(c.out, 0)
	err := c.send(net.Buffers{c.out})
	if cap(c.out) > freeFrameBytes {
		c.out = nil
	}
	return err
}

// send writes pieces within TransferTimeout: a client that does not read loses
// its connection and holds nobody else.
func (c *conn) send(pieces net.Buffers) error {
	c.nc.SetWriteDeadline(time.Now().Add(c.s.cfg.TransferTimeout))
	n, err := pieces.WriteTo(c.nc)
	c.s.stats.bytesOut.Add(int(n))
	if err != nil {
		if errors.Is(err, os.ErrDeadlineExceeded) {
			if tc, ok := c.nc.(*net.TCPConn); ok {
				tc.SetLinger(0) // what the kernel still holds for it goes, too
			}
			return fmt.Errorf("client did not take its response within %v: %w", c.s.cfg.TransferTimeout, err)
		}
		return errGone
	}
	return nil
}

// enqueue hands an answer that waits for the disk to the writer. It blocks
// while MaxInFlight are waiting.
func (c *conn) enqueue(p pending) {
	if c.pending == nil {
		c.pending = make(chan pending, c.s.cfg.MaxInFlight)
		c.writerDone = make(chan struct{})
		go c.answer()
	}
	c.outstanding.Add(1)
	c.pending <- p
}

// answer is the writer: it writes pending answers in order. After a failure it
// only lets them pass, so that serve can end.
func (c *conn) answer() {
	defer close(c.writerDone)
	failed := false
	for p := range c.pending {
		<-p.done
		resp, err := p.reply()
		if err == nil && resp != nil && !failed {
			err = c.write(p.h, resp)
		}
		if err != nil && !failed {
			failed = true
			c.nc.Close()
		}
		c.s.stats.took(p.h.key, p.since)
		c.outstanding.Done()
	}
}

func (c *conn) decompressor() *record.Decompressor {
	if c.dec == nil {
		c.dec = record.NewDecompressor(0)
	}
	return c.dec
}

// fault counts an error code that is about to be answered and returns it.
func (c *conn) fault(key int16, e *kerr.Error) int16 {
	c.s.stats.fault(key, e)
	return e.Code
}
