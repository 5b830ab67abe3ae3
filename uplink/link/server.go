package link

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"

	"tailrace/uplink/wire"
)

// Server is the hub's end. Run once.
//
// Lock order: node.admit, then Server.mu or hubSession.mu; never both of the latter.
type Server struct {
	cfg      ServerConfig
	lost     atomic.Int64
	boot     wire.ID      // this start of the hub
	reserved atomic.Int64 // raw bytes that sessions may have outstanding
	wg       sync.WaitGroup

	mu    sync.Mutex // guards the following
	nodes map[string]*node
	byID  map[wire.ID]*hubSession
	count int // sessions being admitted or running

	tests tests
	door  *door

	tickets    *ticketKeys
	previews   chan struct{} // taken while an early Hello is answered and waits
	handshakes struct{ full, resumed, early atomic.Int64 }
}

// node is what the server remembers of one node id. admit is held while a session
// displaces another, so that one at a time does.
type node struct {
	admit sync.Mutex
	users int         // guarded by Server.mu: connections that hold or wait for admit, and the session
	cur   *hubSession // guarded by Server.mu
}

// NewServer checks the configuration; it starts nothing.
func NewServer(cfg ServerConfig) (*Server, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	s := &Server{cfg: cfg, nodes: map[string]*node{}, byID: map[wire.ID]*hubSession{}, previews: make(chan struct{}, maxPreviews)}
	s.tickets = newTicketKeys(cfg.TicketKeys, cfg.Logger, cfg.TLS.Time)
	s.cfg.TLS = s.tickets.serve(cfg.TLS)
	s.door = newDoor(cfg.MaxHandshakes, cfg.MaxHandshakesPerAddress, cfg.Logger)
	s.cfg.TLS = s.door.watch(s.cfg.TLS)
	rand.Read(s.boot[:])
	return s, nil
}

// Run accepts nodes until ctx ends, then closes every connection, waits until the
// Sink is done with what it was given, and returns ctx's error.
func (s *Server) Run(ctx context.Context) error {
	tr := &quic.Transport{Conn: quiet(s.cfg.PacketConn, &s.lost), ConnContext: s.door.quicAttempt, VerifySourceAddress: s.door.doubts}
	if k := s.cfg.StatelessResetKey; k != nil {
		key := quic.StatelessResetKey(*k)
		tr.StatelessResetKey = &key
	}
	defer s.cfg.PacketConn.Close()
	defer tr.Close()
	conf := quicConfig(s.cfg.IdleTimeout, s.cfg.HelloTimeout)
	conf.MaxIncomingStreams, conf.MaxIncomingUniStreams = 1, 8
	conf.InitialStreamReceiveWindow, conf.MaxStreamReceiveWindow = 64<<10, 2<<20
	conf.InitialConnectionReceiveWindow, conf.MaxConnectionReceiveWindow = 128<<10, 4<<20
	conf.Allow0RTT = !s.cfg.NoEarlyData
	l, err := tr.ListenEarly(s.cfg.TLS, conf)
	if err != nil {
		return fmt.Errorf("listen for nodes on %s: %w", s.cfg.PacketConn.LocalAddr(), err)
	}
	defer s.wg.Wait()
	defer l.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s.wg.Go(func() { s.answerProbes(ctx, tr) })
	if l := s.cfg.Listener; l != nil {
		defer l.Close()
		s.wg.Go(func() { s.acceptTCP(ctx, l) })
	}
	for { // quic-go queues 32 connections: nothing else happens here
		conn, err := l.Accept(ctx)
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return fmt.Errorf("accept nodes: %w", err)
		}
		s.wg.Go(func() { s.serve(ctx, quicConn{conn}) })
	}
}

// acceptTCP accepts nodes over TLS on l until it is closed.
func (s *Server) acceptTCP(ctx context.Context, l net.Listener) {
	for {
		raw, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			s.cfg.Logger.Warn("accept nodes over TCP", "err", err)
			t := time.NewTimer(time.Second) // out of file descriptors
			select {
			case <-t.C:
			case <-ctx.Done():
			}
			t.Stop()
			continue
		}
		a, err := s.door.begin(raw.RemoteAddr(), true)
		if err != nil {
			raw.Close()
			continue
		}
		s.wg.Go(func() {
			a.look()
			tc := tls.Server(raw, s.cfg.TLS)
			hctx, cancel := context.WithTimeout(context.WithValue(ctx, attemptKey{}, a), s.cfg.HelloTimeout)
			err := tc.HandshakeContext(hctx)
			cancel()
			a.end(err)
			if p := tc.ConnectionState().NegotiatedProtocol; err != nil || p != wire.ALPN && p != alpnTest {
				raw.Close()
				return
			}
			s.serve(ctx, newTCPConn(context.WithoutCancel(ctx), tc, s.cfg.IdleTimeout))
		})
	}
}

// serve runs one connection from its Hello to its end. An admitted session goes on in a
// goroutine of its own: the stack that a Hello has grown is not kept for thousands of
// silent nodes.
func (s *Server) serve(ctx context.Context, conn carrier) {
	isEarly := early(conn) && !isTest(conn.tlsState())
	if !isEarly { // nobody in particular, before
		if err := confirmed(ctx, conn); err != nil { // QUIC bounds how long that takes
			conn.close(codeOf(err), "")
			return
		}
	}
	cs := conn.tlsState()
	if isTest(cs) {
		err := s.test(ctx, conn)
		conn.close(codeOf(err), closeText(err))
		return
	}
	if cs.DidResume {
		s.handshakes.resumed.Add(1)
	} else {
		s.handshakes.full.Add(1)
	}
	run, err := s.connection(ctx, conn, isEarly)
	if run == nil {
		conn.close(codeOf(err), closeText(err))
		return
	}
	s.wg.Go(func() {
		err := run()
		conn.close(codeOf(err), closeText(err))
	})
}

// connection reads the Hello. run is the admitted session, nil when there is none.
func (s *Server) connection(ctx context.Context, conn carrier, isEarly bool) (run func() error, err error) {
	id, err := nodeOf(conn.tlsState())
	if err != nil {
		return nil, &RefuseError{Code: wire.CodeAuth, Message: err.Error()}
	}
	hctx, cancel := context.WithTimeout(ctx, s.cfg.HelloTimeout)
	defer cancel()
	st, err := conn.acceptControl(hctx)
	if err != nil {
		return nil, err
	}
	st.SetReadDeadline(time.Now().Add(s.cfg.HelloTimeout))
	r := wire.NewReader(st)
	m, err := r.Read()
	if err != nil {
		return nil, err
	}
	st.SetReadDeadline(time.Time{})
	h, ok := m.(*wire.Hello)
	if !ok {
		return nil, fmt.Errorf("%w: message type %d where Hello is expected", wire.ErrMalformed, m.Type())
	}
	var told *hubSession
	if isEarly {
		select {
		case s.previews <- struct{}{}:
			if early(conn) {
				told = s.preview(hctx, conn, st, r, id, h)
			}
			err = confirmed(hctx, conn)
			<-s.previews
		default:
			err = confirmed(hctx, conn)
		}
		if err != nil {
			return nil, err
		}
	}
	run, err = s.admit(ctx, conn, st, r, id, h, told)
	var re *RefuseError
	if errors.As(err, &re) {
		s.cfg.Logger.Warn("node refused", "node", id, "remote", conn.RemoteAddr().String(), "code", int(re.Code), "err", re.Message)
		s.refuse(conn, st, re)
	}
	return run, err
}

// refuse says why before the connection closes, and lets the node close first: what
// QUIC has not delivered when a connection closes is lost.
func (s *Server) refuse(conn carrier, st controlStream, re *RefuseError) {
	var m wire.Message = &wire.Error{Code: re.Code, Message: clip(re.Message), RetryAfterMS: uint32(re.RetryAfter.Milliseconds())}
	if len(re.Hubs) > 0 {
		m = &wire.Drain{Reason: clip(re.Message), Hubs: re.Hubs, RetryAfterMS: uint32(re.RetryAfter.Milliseconds())}
	}
	if _, err := sendMessages(st, nil, []wire.Message{m}); err != nil {
		return
	}
	st.Close()
	t := time.NewTimer(2 * time.Second)
	defer t.Stop()
	select {
	case <-conn.Context().Done():
	case <-t.C:
	}
}

func (s *Server) admit(ctx context.Context, conn carrier, st controlStream, r *wire.Reader, id string, h *wire.Hello, told *hubSession) (run func() error, err error) {
	if h.Node != id {
		return nil, &RefuseError{Code: wire.CodeAuth, Message: fmt.Sprintf("Hello names node %q, the certificate %q", h.Node, id)}
	}
	if h.MinVersion > wire.Version {
		return nil, &RefuseError{Code: wire.CodeVersion, Message: fmt.Sprintf("the node speaks versions %d to %d, this hub %d: upgrade the hub", h.MinVersion, h.Version, wire.Version)}
	}
	if h.Role == wire.RoleBulk {
		return nil, s.join(ctx, conn, st, r, id, h)
	}
	s.mu.Lock()
	if s.count >= s.cfg.MaxNodes {
		s.mu.Unlock()
		return nil, &RefuseError{Code: wire.CodeOverload, Message: fmt.Sprintf("%d nodes are connected, the limit", s.cfg.MaxNodes), RetryAfter: 30 * time.Second}
	}
	s.count++
	n := s.nodes[id]
	if n == nil {
		n = &node{}
		s.nodes[id] = n
	}
	n.users++
	s.mu.Unlock()
	leave := func() {
		s.mu.Lock()
		s.count--
		if n.users--; n.users == 0 {
			delete(s.nodes, id)
		}
		s.mu.Unlock()
	}
	hs, err := s.takeOver(ctx, conn, st, r, n, id, h, told)
	if err != nil {
		leave()
		return nil, err
	}
	return func() error {
		defer leave()
		return hs.run(ctx)
	}, nil
}

// takeOver ends the node's older session and admits the new one. The Sink's plan is
// made only when nothing of the older session can still become durable. told is what an early Hello was answered with.
func (s *Server) takeOver(ctx context.Context, conn carrier, st controlStream, r *wire.Reader, n *node, id string, h *wire.Hello, told *hubSession) (*hubSession, error) {
	n.admit.Lock()
	defer n.admit.Unlock()
	s.mu.Lock()
	old := n.cur
	s.mu.Unlock()
	if old != nil {
		if old.hello.Boot == h.Boot && old.hello.Sequence >= h.Sequence {
			return nil, &RefuseError{Code: wire.CodeSuperseded, Message: "a newer session of this start of the node is connected"}
		}
		if a, ok := s.cfg.Sink.(Admitter); ok {
			if err := a.Admit(id, *h); err != nil {
				return nil, err
			}
		}
		old.end(&localClose{wire.CodeSuperseded, "a newer session of this node has taken over"})
		t := time.NewTimer(s.cfg.HelloTimeout)
		defer t.Stop()
		select {
		case <-old.drained:
		case <-t.C:
			return nil, &RefuseError{Code: wire.CodeUnavailable, Message: "the store has not finished with the session before", RetryAfter: s.cfg.HelloTimeout}
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	hctx, cancel := context.WithTimeout(ctx, s.cfg.HelloTimeout)
	defer cancel()
	plan, err := s.cfg.Sink.Hello(hctx, id, *h)
	if err != nil {
		var re *RefuseError
		if !errors.As(err, &re) {
			re = &RefuseError{Code: wire.CodeUnavailable, Message: err.Error(), RetryAfter: 5 * time.Second}
		}
		return nil, re
	}
	hs := told
	switch {
	case hs == nil:
		hs = newHubSession(s, conn, st, r, id, h, plan)
	case hs.holds(&plan):
		hs.plan.Config = plan.Config
	default:
		return nil, &RefuseError{Code: wire.CodeUnavailable, Message: "what the hub holds has changed since it answered the early Hello", RetryAfter: time.Millisecond}
	}
	s.mu.Lock()
	n.cur = hs
	s.byID[h.Session] = hs
	s.mu.Unlock()
	hs.onDrained = func() {
		s.mu.Lock()
		if n.cur == hs {
			n.cur = nil
		}
		delete(s.byID, h.Session)
		s.mu.Unlock()
	}
	return hs, nil
}

// join adds a bulk connection to the session that it names.
func (s *Server) join(ctx context.Context, conn carrier, st controlStream, r *wire.Reader, id string, h *wire.Hello) error {
	s.mu.Lock()
	hs := s.byID[h.Session]
	s.mu.Unlock()
	if hs == nil || hs.node != id {
		return &RefuseError{Code: wire.CodeSuperseded, Message: "no such session: open a main connection first"}
	}
	if s.cfg.MaxBulk <= int(h.Index) || !hs.addConn(conn) {
		return &RefuseError{Code: wire.CodeOverload, Message: fmt.Sprintf("a session has at most %d bulk connections", s.cfg.MaxBulk)}
	}
	defer hs.removeConn(conn)
	if _, err := sendMessages(st, nil, []wire.Message{hs.welcome()}); err != nil {
		return err
	}
	return hs.readStreams(conn)
}

// reserve takes n bytes of the global budget when they are there.
func (s *Server) reserve(n int64) bool {
	for {
		have := s.reserved.Load()
		if have+n > s.cfg.TotalBytes {
			return false
		}
		if s.reserved.CompareAndSwap(have, have+n) {
			return true
		}
	}
}

func (s *Server) session(node string) *hubSession {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := s.nodes[node]; n != nil && n.cur != nil && n.cur.ctx.Err() == nil {
		return n.cur
	}
	return nil
}

func (s *Server) sessions() []*hubSession {
	s.mu.Lock()
	out := make([]*hubSession, 0, len(s.nodes))
	for _, n := range s.nodes {
		if n.cur != nil && n.cur.ctx.Err() == nil {
			out = append(out, n.cur)
		}
	}
	s.mu.Unlock()
	slices.SortFunc(out, func(a, b *hubSession) int { return strings.Compare(a.node, b.node) })
	return out
}

// Sessions is how many sessions are being admitted or running.
func (s *Server) Sessions() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.count
}

// Nodes lists the connected nodes by name.
func (s *Server) Nodes() []NodeState {
	all := s.sessions()
	out := make([]NodeState, 0, len(all))
	for _, hs := range all {
		out = append(out, hs.state())
	}
	return out
}

// Disconnect closes a node's session.
func (s *Server) Disconnect(node string, code wire.Code, message string) error {
	hs := s.session(node)
	if hs == nil {
		return ErrNotConnected
	}
	hs.end(&localClose{code, message})
	return nil
}

// Want asks a connected node for ranges of one partition and epoch (on-demand
// replay). The batches arrive at Sink.Append with the lane given.
func (s *Server) Want(node, topic string, partition int, epoch wire.ID, ranges wire.RangeSet, lane wire.Lane, rate uint64) error {
	hs := s.session(node)
	if hs == nil {
		return ErrNotConnected
	}
	hs.mu.Lock()
	err := hs.recv.Ask(topic, partition, epoch, ranges, lane, rate)
	hs.mu.Unlock()
	hs.kick()
	return err
}

// Command runs a command on a node and waits for its result.
func (s *Server) Command(ctx context.Context, node, name string, args []byte) (wire.CommandResult, error) {
	hs := s.session(node)
	if hs == nil {
		return wire.CommandResult{}, ErrNotConnected
	}
	return hs.command(ctx, name, args)
}

// Configure sends a configuration to a node.
func (s *Server) Configure(node string, c wire.Config) error {
	hs := s.session(node)
	if hs == nil {
		return ErrNotConnected
	}
	hs.send(&c)
	return nil
}
