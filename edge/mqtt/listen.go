package mqtt

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"runtime"
	"sync"
	"time"

	"github.com/coder/websocket"

	"tailrace/edge/mqtt/packet"
)

// Serve accepts connections from l until Shutdown (ErrServerClosed) or until l
// fails for good. It closes l. Errors of single accepts, such as no free file
// descriptor, are counted and waited out.
func (s *Server) Serve(l net.Listener, o ListenerOptions) error {
	defer l.Close()
	s.mu.Lock()
	if s.closing {
		s.mu.Unlock()
		return ErrServerClosed
	}
	s.listeners[l] = struct{}{}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.listeners, l)
		s.mu.Unlock()
	}()
	if o.Name == "" {
		o.Name = l.Addr().String()
	}
	a := &admission{Listener: l, s: s}
	var err error
	if o.WebSocket {
		err = s.serveWeb(a, o)
	} else {
		err = s.servePlain(a, o)
	}
	select {
	case <-s.quit:
		return ErrServerClosed
	default:
		return err
	}
}

// servePlain serves TCP and TLS, one goroutine per connection.
func (s *Server) servePlain(a *admission, o ListenerOptions) error {
	for {
		nc, err := a.Accept()
		if err != nil {
			return err
		}
		ad := nc.(*admitted)
		if !s.hold() {
			ad.Close()
			return ErrServerClosed
		}
		inner := ad.Conn // the bare TCP connection: read by readiness
		if o.TLS != nil {
			inner = tls.Server(inner, o.TLS)
		}
		go s.begin(inner, ad, o.Name)
	}
}

// inTurn is for the end of connections that were never answered: thousands of them may end in one
// moment, and everybody else's goroutine would stand in the scheduler's line behind theirs. They wait
// here instead, and a few at a time join that line at its end. Call what it returns after.
func (s *Server) inTurn() (done func()) {
	s.turns <- struct{}{}
	runtime.Gosched() // a waiter that is woken would run before all others
	return func() { <-s.turns }
}

// hold counts a goroutine that Shutdown waits for; false when it is too late.
func (s *Server) hold() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return false
	}
	s.wg.Add(1)
	return true
}

// begin runs a connection that hold has counted.
func (s *Server) begin(nc net.Conn, ad *admitted, listener string) {
	c := newConn(s, nc)
	c.Remote = nc.RemoteAddr().String()
	c.Listener = listener
	c.admitted = ad
	s.mu.Lock()
	s.conns[c] = struct{}{}
	closing := s.closing
	s.mu.Unlock()
	if closing { // Shutdown has not seen it
		c.stop(cause{code: packet.ServerShuttingDown})
	}
	c.start()
}

// drained runs on the writer when a full outbox has room again.
func (c *conn) drained() {
	c.mu.Lock()
	c.signal()
	c.mu.Unlock()
	if ss := c.ss; ss != nil {
		ss.mu.Lock()
		if ss.conn == c {
			ss.pump()
		}
		ss.mu.Unlock()
	}
}

// serveWeb serves MQTT over WebSocket (MQTT 5.0, 6).
func (s *Server) serveWeb(a *admission, o ListenerOptions) error {
	a.web = true
	l := net.Listener(a)
	if o.TLS != nil {
		l = tls.NewListener(a, o.TLS)
	}
	h := http.Server{
		ReadHeaderTimeout: s.cfg.Limits.LoginTimeout,
		ReadTimeout:       s.cfg.Limits.LoginTimeout,
		IdleTimeout:       s.cfg.Limits.LoginTimeout,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
		ConnContext: func(ctx context.Context, nc net.Conn) context.Context {
			return context.WithValue(ctx, connKey{}, nc)
		},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { s.upgrade(w, r, o) }),
	}
	h.SetKeepAlivesEnabled(false)
	go func() {
		<-s.quit
		h.Close() // upgraded connections are ours and end on their own
	}()
	return h.Serve(l)
}

type connKey struct{}

// upgrade turns one request into an MQTT connection and runs it.
func (s *Server) upgrade(w http.ResponseWriter, r *http.Request, o ListenerOptions) {
	if o.Path != "" && r.URL.Path != o.Path {
		http.NotFound(w, r)
		return
	}
	ws, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: []string{"mqtt", "mqttv3.1"}, OriginPatterns: o.Origins})
	if err != nil {
		return // answered
	}
	if ws.Subprotocol() == "" { // 6.0.0-3
		ws.Close(websocket.StatusPolicyViolation, "subprotocol mqtt required")
		return
	}
	if !s.hold() {
		ws.CloseNow()
		return
	}
	nc, _ := r.Context().Value(connKey{}).(net.Conn)
	var web net.Conn = &webConn{Conn: websocket.NetConn(context.Background(), ws, websocket.MessageBinary), ws: ws}
	if t, ok := nc.(*tls.Conn); ok {
		web = &secureWebConn{web.(*webConn), t}
		nc = t.NetConn()
	}
	ad := nc.(*admitted)
	ad.inTurn = false // conn.end sees to that
	s.begin(web, ad, o.Name)
}

// webConn closes without waiting for the peer's close frame.
type webConn struct {
	net.Conn
	ws *websocket.Conn
}

func (c *webConn) Close() error { return c.ws.CloseNow() }

// secureWebConn remembers the TLS connection below, for the client certificate.
type secureWebConn struct {
	*webConn
	tls *tls.Conn
}

// admission is a listener that keeps the limits before login: too many connections
// are closed before a byte is read or a goroutine started.
type admission struct {
	net.Listener
	s   *Server
	web bool
}

func (a *admission) Accept() (net.Conn, error) {
	var wait time.Duration
	for {
		nc, err := a.Listener.Accept()
		if err != nil {
			var ne net.Error
			if errors.Is(err, net.ErrClosed) || !errors.As(err, &ne) {
				return nil, err
			}
			a.s.stats.AcceptErrors.Add(1)
			wait = min(max(2*wait, 5*time.Millisecond), time.Second)
			a.s.log.Warn("accept failed, trying again", "listener", a.Addr().String(), "error", err, "wait", wait)
			select {
			case <-time.After(wait):
			case <-a.s.quit:
				return nil, err
			}
			continue
		}
		wait = 0
		runtime.Gosched() // who is there goes before who comes
		ad := &admitted{Conn: nc, s: a.s, addr: addrOf(nc), inTurn: a.web}
		if !a.s.connects.Take(ad.addr, time.Now()) || !a.s.admit(ad) {
			a.s.stats.ConnectionsRefused.Add(1)
			nc.Close()
			continue
		}
		a.s.stats.Accepted.Add(1)
		return ad, nil
	}
}

func addrOf(nc net.Conn) netip.Addr {
	ap, err := netip.ParseAddrPort(nc.RemoteAddr().String())
	if err != nil {
		return netip.Addr{} // not an IP connection: all count together
	}
	return ap.Addr().Unmap()
}

// admitted is one counted connection; Close gives its places back once, welcome and
// refused that among the logins.
type admitted struct {
	net.Conn
	s       *Server
	addr    netip.Addr
	arrival uint64 // order among all; guarded by s.mu
	guest   bool   // has logged in; guarded by s.mu
	inTurn  bool   // net/http has it and will end it
	once    sync.Once
}

// welcome counts a client that is in, before it hears so: the next one finds its place
// among the logins free.
func (a *admitted) welcome() {
	a.s.mu.Lock()
	defer a.s.mu.Unlock()
	a.s.loggedIn(a)
	if n := a.s.byAddr[a.addr]; n != nil && !a.guest {
		a.guest = true
		n.guests++
	}
}

func (s *Server) admit(a *admitted) bool {
	l := &s.cfg.Limits
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.byAddr[a.addr]
	if (n == nil || n.guests == 0) && !s.mayTry(a.addr) {
		return false
	}
	if s.admitted >= l.MaxConnections || n != nil && (n.conns >= l.MaxPerAddress || len(n.pending) >= l.MaxLoginsPerAddress) ||
		s.logins >= l.MaxLogins && !s.makeRoom(n) {
		return false
	}
	if n == nil {
		n = &addrCount{pending: map[*admitted]struct{}{}}
		s.byAddr[a.addr] = n
	}
	s.admitted++
	s.logins++
	s.arrivals++
	a.arrival = s.arrivals
	n.conns++
	n.pending[a] = struct{}{}
	return true
}

// makeRoom ends the oldest login of the address that has the most under way, if that is
// more than the newcomer's address has: sockets that say nothing, from a few addresses, must
// not keep everybody else out. Caller holds s.mu.
func (s *Server) makeRoom(newcomer *addrCount) bool {
	var most *addrCount
	for _, n := range s.byAddr {
		if most == nil || len(n.pending) > len(most.pending) {
			most = n
		}
	}
	if most == nil || newcomer != nil && len(most.pending) <= len(newcomer.pending)+1 || len(most.pending) < 2 {
		return false
	}
	var oldest *admitted
	for a := range most.pending {
		if oldest == nil || a.arrival < oldest.arrival {
			oldest = a
		}
	}
	s.loggedIn(oldest)
	s.stats.LoginsDropped.Add(1)
	go oldest.Conn.Close() // its goroutine sees the end and does the rest
	return true
}

// loggedIn gives the place among the logins back, once. Caller holds s.mu.
func (s *Server) loggedIn(a *admitted) {
	if n := s.byAddr[a.addr]; n != nil {
		if _, ok := n.pending[a]; ok {
			delete(n.pending, a)
			s.logins--
		}
	}
}

// refused is the end of a login, before the client can see it.
func (a *admitted) refused() {
	a.s.mu.Lock()
	defer a.s.mu.Unlock()
	a.s.loggedIn(a)
}

func (a *admitted) Close() error {
	if a.inTurn { // no WebSocket has come of it
		a.refused()
		defer a.s.inTurn()()
	}
	a.once.Do(func() {
		a.s.mu.Lock()
		defer a.s.mu.Unlock()
		a.s.loggedIn(a)
		a.s.admitted--
		n := a.s.byAddr[a.addr]
		if a.guest {
			n.guests--
		}
		if n.conns--; n.conns == 0 {
			delete(a.s.byAddr, a.addr)
		}
	})
	return a.Conn.Close()
}
