package mqtt

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"tailrace/edge/mqtt/packet"
)

// conn is one connection. Its goroutine reads, decodes and hands bursts to the
// backend; answers leave through the outbox. Locks, never taken the other way round:
//
//	in  >  srv.mu  >  ss.mu  >  out.mu
//	in  >  srv.mu  >  mu  >  retained.mu, out.mu
type conn struct {
	Client
	srv      *Server
	nc       net.Conn
	admitted *admitted  // its place among the connections
	raw      *rawReader // TCP: waits for bytes without holding a buffer; nil = probe
	out      outbox

	// Owned by the connection's goroutine.
	rd         *chunk // received, not yet decoded: rd.b[rpos:]; nil = nothing
	rpos       int
	extra      int           // bytes of rd beyond the pooled size, charged to srv.buffers
	probe      []byte        // made on first use, for connections that raw cannot read
	keepAlive  time.Duration // 0 = none
	readBy     time.Time     // the read deadline as it is set
	maxPacket  int           // the client's Maximum Packet Size, 0 = none
	outMax     int           // deliveries in flight
	aliasMax   int           // topic aliases the client takes
	recvMax    int32         // 0 = no limit (3.x)
	willExpiry uint32
	pace       pace
	grown      bool // the stack, by a SUBSCRIBE
	busy       bool // publishes or acknowledgements were in the last read

	// in guards what the reader shares with the timer that ends a line-up.
	in        sync.Mutex
	cur       *burst   // being filled
	taken     int32    // QoS 1 and 2 publishes since the last submit
	sc        *scratch // during process only
	topics    topicCache
	qos2      map[uint16]struct{} // received, not yet released
	lineup    *lineup             // nil = over
	held      []heldPublish       // re-sends that wait for the verdict
	heldBytes int
	holdTimer *time.Timer

	aliases map[string]uint16 // of deliveries; guarded by ss.mu
	ss      *session
	unacked atomic.Int32 // QoS 1 and 2 publishes without an answer, up to the last submit

	mu           sync.Mutex
	fifo         []*burst // committed, in order, the first not yet durable
	work         []work
	pending      int    // bursts in fifo and work
	submitted    uint64 // bursts with messages for subscribers,
	distributed  uint64 // and those of them that are offered, or failed
	distributing bool
	waiting      bool // the reader, for room
	mute         bool // nothing is acknowledged any more
	why          cause
	stopped      bool
	room         chan struct{} // made by await, cap 1: a burst was finished
	quit         chan struct{} // made by quitting, closed by stop
	gone         chan struct{} // made by leaving, closed when the session is free
	left         bool          // the session is free

	// park.go
	parked, woken    bool // without a goroutine; no more, and has not read yet
	resting, asked   bool // waits for bytes after publishes; to park
	rests, restsSeen uint32
	parkedFd         int

	distributor func() // = distribute, bound on first use
}

// cause is why a connection ends. The first one counts.
type cause struct {
	code     packet.Code // sent in DISCONNECT to an MQTT 5 client when not Success
	clean    bool        // the client said DISCONNECT: no will
	takeover bool
	panicked bool // what was being filled is not committed
	hold     bool // a 3.x client whose publish was refused
	err      error
}

func newConn(s *Server, nc net.Conn) *conn {
	c := &conn{srv: s, nc: nc}
	c.out.init(c, s.cfg.Limits.WriteTimeout, s.cfg.Limits.OutboundBytes)
	if c.raw = newRawReader(nc); c.raw != nil {
		c.out.rc, c.out.flusher = c.raw.rc, &s.flusher
	}
	return c
}

// stop ends the connection from any goroutine: the reader wakes, waits for what is
// in flight, says why and closes. It does not wait.
func (c *conn) stop(why cause) {
	c.mu.Lock()
	c.stopLocked(why)
	c.mu.Unlock()
}

func (c *conn) stopLocked(why cause) {
	if c.stopped {
		return
	}
	c.stopped, c.why = true, why
	if c.quit != nil {
		close(c.quit)
	}
	c.nc.SetReadDeadline(time.Unix(1, 0))
	c.unparkLocked()
}

// quitting is closed when the connection is stopped.
func (c *conn) quitting() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.quit == nil {
		c.quit = make(chan struct{})
		if c.stopped {
			close(c.quit)
		}
	}
	return c.quit
}

// leaving is closed when everything that the connection had in flight is answered.
func (c *conn) leaving() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.gone == nil {
		c.gone = make(chan struct{})
		if c.left {
			close(c.gone)
		}
	}
	return c.gone
}

func (c *conn) leave() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.left = true
	if c.gone != nil {
		close(c.gone)
	}
}

func (c *conn) isStopped() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.stopped
}

// setReadDeadline sets the deadline unless stop has set its own.
func (c *conn) setReadDeadline(t time.Time) {
	c.mu.Lock()
	if !c.stopped {
		c.nc.SetReadDeadline(t)
	}
	c.mu.Unlock()
}

// start logs the client in and leaves the connection to a goroutine of its own: the
// handshake and the password hash have grown this one's stack, and a stack that has
// grown does not shrink below 4 KB again, which matters when 5,000 clients idle.
func (c *conn) start() {
	if c.enter() {
		go c.run()
	} else {
		c.end()
	}
}

func (c *conn) enter() (ok bool) {
	defer c.srv.recovered(c)
	c.setReadDeadline(time.Now().Add(c.srv.cfg.Limits.LoginTimeout))
	crt, err := peerCertificate(c.nc)
	if err == nil {
		err = c.login(crt)
	}
	if err != nil {
		c.admitted.refused()
		c.stop(c.causeOf(err))
	}
	return err == nil
}

// run reads until the connection ends. Few and small frames below it.
func (c *conn) run() {
	switch c.serve() {
	case errStack:
		go c.run()
	case errParked: // c belongs to another goroutine, or to none
	default:
		c.end()
	}
}

// serve returns errStack or errParked when the connection goes on.
func (c *conn) serve() error {
	defer c.srv.recovered(c)
	err := c.loop()
	if err != errStack && err != errParked {
		c.stop(c.causeOf(err))
	}
	return err
}

// end is the last thing of every connection.
func (c *conn) end() {
	s := c.srv
	defer s.wg.Done()
	if c.out.silent() {
		defer s.inTurn()()
	}
	defer c.admitted.Close()
	defer func() {
		s.mu.Lock()
		delete(s.conns, c)
		s.mu.Unlock()
	}()
	defer s.recovered(c)
	c.teardown()
}

// causeOf turns the reader's error into the reason of the connection's end.
func (c *conn) causeOf(err error) cause {
	var pe *packet.Error
	var re *ReasonError
	switch {
	case err == errClean:
		return cause{clean: true}
	case err == errWithWill:
		return cause{}
	case err == errRefused3:
		return cause{hold: true, err: err}
	case errors.As(err, &pe):
		c.srv.stats.Malformed.Add(1)
		return cause{code: pe.Code, err: err}
	case errors.As(err, &re):
		return cause{code: re.Code, err: err}
	case errors.Is(err, os.ErrDeadlineExceeded):
		if c.isStopped() { // the deadline was stop's
			return cause{err: err}
		}
		c.srv.stats.KeepAliveTimeouts.Add(1)
		return cause{code: packet.KeepAliveTimeout, err: err}
	}
	return cause{err: err}
}

var (
	errClean    = errors.New("client disconnected")
	errWithWill = errors.New("client disconnected with its will")
	errRefused3 = errors.New("publish refused, which MQTT 3 cannot say")
	errStack    = errors.New("stack has grown")
	errLogin    = errors.New("login refused")
)

// teardown runs once the reader has ended for whatever reason: wait for the disk,
// answer, say why, free the session.
func (c *conn) teardown() {
	c.in.Lock()
	c.lineup = nil
	c.dropHeld() // not answered: the client sends them again
	c.mu.Lock()
	if c.why.panicked {
		c.cur = nil
	}
	c.mu.Unlock()
	c.submit()
	c.in.Unlock()
	c.stop(cause{err: io.ErrUnexpectedEOF}) // when the goroutine panicked
	c.waitRoom(1)
	if c.rd != nil {
		c.releaseRead()
	}
	c.mu.Lock()
	why := c.why
	c.mu.Unlock()
	if why.hold {
		// A 3.x client cannot be told; without a pause it would come back at once
		// with the same publish.
		t := time.NewTimer(c.srv.cfg.Limits.RefusedHold)
		select {
		case <-t.C:
		case <-c.srv.quit:
		}
		t.Stop()
	}
	c.srv.detach(c, why)
	if why.code != packet.Success && c.Version == byte(packet.V5) && c.ss != nil {
		reason := ""
		var pe *packet.Error
		if errors.As(why.err, &pe) {
			reason = pe.What
		} else if re := asReason(why.err); re != nil {
			reason = re.Reason
		}
		if ch := c.out.begin(); ch != nil {
			ch.b = packet.AppendDisconnect(ch.b, why.code, reason)
		}
		c.out.end()
	}
	c.leave()
	c.ended(why)
	c.out.finish(why.code != packet.Success)
	if why.err != nil && !errors.Is(why.err, io.EOF) {
		c.srv.log.Debug("connection ended", "client", c.ID, "remote", c.Remote, "error", why.err)
	}
}

// loop reads until the connection ends.
func (c *conn) loop() error {
	for {
		if err := c.process(); err != nil {
			return err
		}
		c.waitRoom(c.srv.cfg.Limits.Bursts)
		if !c.slowDown() {
			return errLogin
		}
		if c.out.full() && !c.waitWritten() {
			return errLogin
		}
		if c.keepAlive > 0 {
			// MQTT 5.0, 3.1.2-22: closed after one and a half keep-alives. The deadline
			// moves only when a quarter of a keep-alive has passed, so it costs nothing per packet.
			now := time.Now()
			if by := now.Add(c.keepAlive * 3 / 2); c.readBy.Before(by) {
				c.readBy = by.Add(c.keepAlive / 4)
				c.setReadDeadline(c.readBy)
			}
		}
		if c.rd == nil && !c.busy && !c.woken {
			c.grown = c.grown && !c.parkable() // there will be a new one
			if c.park() {
				return errParked
			}
		}
		if c.grown { // as start: a client that subscribes and then waits is the usual one
			c.grown = false
			return errStack
		}
		c.woken = false
		if err := c.fill(); err != nil {
			return err
		}
	}
}

// waitWritten blocks while the peer does not take what is waiting for it; false
// when the connection is stopped or broken meanwhile. The writer's deadline bounds it.
func (c *conn) waitWritten() bool {
	defer c.await(false)
	for c.await(true) && c.out.full() {
		select {
		case <-c.room:
		case <-c.quitting():
			return false
		}
	}
	return true
}

// await says whether signal has somebody to wake; it returns true.
func (c *conn) await(w bool) bool {
	c.mu.Lock()
	c.awaitLocked(w)
	c.mu.Unlock()
	return true
}

func (c *conn) awaitLocked(w bool) {
	if c.waiting = w; w && c.room == nil {
		c.room = make(chan struct{}, 1)
	}
}

// scratch is what decoding one publish needs; one per connection would be a third of
// what an idle client costs.
type scratch struct {
	pp  packet.Publish
	pub Publish
}

var scratches = sync.Pool{New: func() any { return new(scratch) }}

// process decodes everything that has been received into one burst and commits it.
func (c *conn) process() error {
	if c.rd == nil {
		return nil
	}
	c.in.Lock()
	defer c.in.Unlock()
	c.busy = false
	var err error
	now := c.srv.cfg.Now()
	c.sc = scratches.Get().(*scratch)
	for err == nil {
		var head byte
		var start, end int
		b := c.rd.b[c.rpos:]
		head, start, end, _, err = packet.Frame(b, c.srv.cfg.Limits.MaxPacketBytes)
		if err != nil || end == 0 {
			break
		}
		c.rpos += end
		if packet.Type(head>>4) == packet.PUBLISH {
			c.busy = true
			err = c.publish(head, b[start:end], now)
		} else {
			err = c.control(head, b[start:end])
		}
	}
	scratches.Put(c.sc)
	c.sc = nil
	c.submit()
	if err == nil && c.rpos == len(c.rd.b) {
		c.releaseRead()
	}
	return err
}

// burst returns the burst being filled.
func (c *conn) burst() *burst {
	if c.cur == nil {
		c.cur = getBurst(c)
	}
	return c.cur
}

// control handles every packet but PUBLISH. Caller holds c.in.
func (c *conn) control(head byte, body []byte) error {
	v := packet.Version(c.Version)
	t := packet.Type(head >> 4)
	c.busy = c.busy || t >= packet.PUBACK && t <= packet.PUBCOMP
	switch t {
	case packet.PINGREQ:
		if err := packet.ReadPing(head, body); err != nil {
			return err
		}
		if ch := c.out.begin(); ch != nil {
			ch.b = packet.AppendPingresp(ch.b)
		}
		c.out.end()
		return nil
	case packet.PUBREL:
		a, err := packet.ReadAck(head, body, v)
		if err != nil {
			return err
		}
		c.pubrel(a)
		return nil
	case packet.PUBACK, packet.PUBREC, packet.PUBCOMP:
		a, err := packet.ReadAck(head, body, v)
		if err != nil {
			return err
		}
		c.ss.acked(t, a)
		return nil
	case packet.SUBSCRIBE:
		return c.subscribe(head, body)
	case packet.UNSUBSCRIBE:
		return c.unsubscribe(head, body)
	case packet.DISCONNECT:
		return c.disconnect(head, body)
	case packet.AUTH:
		return &packet.Error{Code: packet.ProtocolError, What: "AUTH without an authentication method in CONNECT"}
	case packet.CONNECT:
		return &packet.Error{Code: packet.ProtocolError, What: "second CONNECT"} // 3.1.0-2
	default:
		return &packet.Error{Code: packet.ProtocolError, What: t.String() + " from a client"}
	}
}

// disconnect handles DISCONNECT; its result ends the reader.
func (c *conn) disconnect(head byte, body []byte) error {
	d, err := packet.ReadDisconnect(head, body, packet.Version(c.Version))
	if err != nil {
		return err
	}
	if d.HasExpiry {
		if c.ss.expiry.Load() == 0 && d.Expiry > 0 { // 3.14.2-2
			return &packet.Error{Code: packet.ProtocolError, What: "session expiry at DISCONNECT of a session without"}
		}
		c.ss.expiry.Store(min(d.Expiry, uint32(c.srv.cfg.Limits.MaxSessionExpiry/time.Second)))
	}
	if d.Code == packet.Success {
		return errClean
	}
	return errWithWill
}

// peerCertificate finishes the TLS handshake and returns the verified certificate.
func peerCertificate(nc net.Conn) (*x509.Certificate, error) {
	var t *tls.Conn
	switch x := nc.(type) {
	case *tls.Conn:
		t = x
	case *secureWebConn:
		t = x.tls
	default:
		return nil, nil
	}
	if err := t.Handshake(); err != nil {
		return nil, err
	}
	st := t.ConnectionState()
	if len(st.VerifiedChains) == 0 {
		return nil, nil
	}
	return st.PeerCertificates[0], nil
}
