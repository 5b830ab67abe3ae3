package mqtt_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coder/websocket"

	"tailrace/edge/mqtt"
)

// admitted waits until n connections are open.
func (w *world) admitted(n int) {
	w.t.Helper()
	until(w.t, fmt.Sprint(n, " connections"), func() bool { return w.s.Admitted() == n })
}

// silence is a way of saying nothing: dial leaves a connection that never sends a CONNECT, and returns
// its socket.
type silence struct {
	name string
	dial func(t *testing.T, addr string) net.Conn
	o    mqtt.ListenerOptions
}

// silences are all ways, on every kind of listener.
func silences(t *testing.T) []silence {
	crt, _, pool := authority(t)
	secure := &tls.Config{Certificates: []tls.Certificate{crt}}
	saying := func(p string) func(*testing.T, string) net.Conn {
		return func(t *testing.T, addr string) net.Conn {
			nc, err := net.Dial("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := nc.Write([]byte(p)); err != nil {
				t.Fatal(err)
			}
			return nc
		}
	}
	const hello, request = "\x16\x03\x01\x01\x00\x01\x00", "GET /mqtt HTTP/1.1\r\nHost: x\r\n" // without an end
	shaken := func(t *testing.T, addr string) net.Conn {
		nc := saying("")(t, addr)
		if err := tls.Client(nc, &tls.Config{RootCAs: pool, ServerName: "localhost"}).Handshake(); err != nil {
			t.Fatal(err)
		}
		return nc
	}
	return []silence{
		{"tcp", saying(""), mqtt.ListenerOptions{}},
		{"tcp, half a CONNECT", saying("\x10\x20\x00"), mqtt.ListenerOptions{}},
		{"tls", saying(""), mqtt.ListenerOptions{TLS: secure}},
		{"tls, half a hello", saying(hello), mqtt.ListenerOptions{TLS: secure}},
		{"tls, no CONNECT", shaken, mqtt.ListenerOptions{TLS: secure}},
		{"ws", saying(""), mqtt.ListenerOptions{WebSocket: true}},
		{"ws, half a request", saying(request), mqtt.ListenerOptions{WebSocket: true}},
		{"ws, no CONNECT", upgraded(pool, "ws"), mqtt.ListenerOptions{WebSocket: true}},
		{"wss", saying(""), mqtt.ListenerOptions{WebSocket: true, TLS: secure}},
		{"wss, half a hello", saying(hello), mqtt.ListenerOptions{WebSocket: true, TLS: secure}},
		{"wss, no request", shaken, mqtt.ListenerOptions{WebSocket: true, TLS: secure}},
		{"wss, no CONNECT", upgraded(pool, "wss"), mqtt.ListenerOptions{WebSocket: true, TLS: secure}},
	}
}

// upgraded dials a WebSocket and says nothing on it.
func upgraded(pool *x509.CertPool, scheme string) func(*testing.T, string) net.Conn {
	return func(t *testing.T, addr string) (nc net.Conn) {
		hc := &http.Client{Transport: &http.Transport{
			DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
				var err error
				nc, err = new(net.Dialer).DialContext(ctx, network, addr)
				return nc, err
			},
			TLSClientConfig: &tls.Config{RootCAs: pool},
		}}
		if _, _, err := websocket.Dial(t.Context(), scheme+"://"+addr, &websocket.DialOptions{Subprotocols: []string{"mqtt"}, HTTPClient: hc}); err != nil {
			t.Fatal(err)
		}
		return nc
	}
}

// The end of sockets that never said anything waits for its turn; nobody who has logged in waits
// for them, nor does who logs in, and all end.
func TestSilentSocketsEndInTurn(t *testing.T) {
	for _, c := range silences(t) {
		t.Run(c.name, func(t *testing.T) {
			const n = 8
			w := newWorld(t, newBackend(), func(c *mqtt.Config) { c.Limits.LoginTimeout, c.Limits.MaxLogins = time.Minute, n+1 })
			addr := w.listen(c.o)
			good, _ := w.login(4, opts{id: "good"})
			release := w.s.HoldTurns()
			var silent []net.Conn
			for range n {
				silent = append(silent, c.dial(t, addr))
			}
			w.admitted(n + 1)
			for _, nc := range silent {
				nc.(*net.TCPConn).SetLinger(0)
				nc.Close()
			}
			until(t, "their ends are known", func() bool { return w.s.LoggingIn() == 0 })
			for i := range uint16(n) {
				good.send(publish(4, 1, i+1, "t", "x"))
				good.want(puback(i + 1))
				other, _ := w.login(4, opts{id: "other"})
				other.nc.Close()
				w.admitted(n + 1)
			}
			release()
			w.admitted(1)
		})
	}
}

// rush is a listener at which n connections stand at once; they have gone again before anybody reads.
type rush struct {
	n        int64
	accepted atomic.Int64
	quit     chan struct{}
	close    func()
}

func newRush(n int64) *rush {
	r := &rush{n: n, quit: make(chan struct{})}
	r.close = sync.OnceFunc(func() { close(r.quit) })
	return r
}

func (r *rush) Accept() (net.Conn, error) {
	if r.accepted.Load() == r.n {
		<-r.quit
		return nil, net.ErrClosed
	}
	r.accepted.Add(1)
	return passer{}, nil
}
func (r *rush) Close() error   { r.close(); return nil }
func (r *rush) Addr() net.Addr { return &net.TCPAddr{} }

type passer struct{ net.Conn }

func (passer) Read([]byte) (int, error)         { return 0, io.EOF }
func (passer) Close() error                     { return nil }
func (passer) RemoteAddr() net.Addr             { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)} }
func (passer) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (passer) SetDeadline(time.Time) error      { return nil }
func (passer) SetReadDeadline(time.Time) error  { return nil }
func (passer) SetWriteDeadline(time.Time) error { return nil }

// waits is how many of r's connections were accepted at most while somebody with work to do waited
// for the processor.
func (r *rush) waits() (most int64) {
	for last := int64(0); last < r.n; {
		runtime.Gosched()
		now := r.accepted.Load()
		most, last = max(most, now-last), now
	}
	return most
}

// However many come at once, whoever has something to do is not behind all of them.
func TestARushOfConnectionsLetsOthersGoFirst(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	const n = 5000
	for name, o := range map[string]mqtt.ListenerOptions{"tcp": {}, "ws": {WebSocket: true}} {
		w := newWorld(t, newBackend(), func(c *mqtt.Config) {
			l := &c.Limits
			l.MaxConnections, l.MaxPerAddress, l.MaxLogins, l.MaxLoginsPerAddress, l.ConnectRate, l.ConnectBurst = 2*n, 2*n, 2*n, 2*n, 2*n, 2*n
		})
		r := newRush(n)
		served := make(chan error)
		go func() { served <- w.s.Serve(r, o) }()
		most := r.waits()
		w.admitted(0)
		w.stop()
		<-served
		if st := w.s.Stats(); st.Accepted != n || most > 20 {
			t.Errorf("%s: %d of %d accepted, up to %d while another waited", name, st.Accepted, n, most)
		}
		t.Logf("%s: up to %d were accepted while another waited", name, most)
	}
	// The control: a loop that does not yield.
	r := newRush(4 * n)
	go func() {
		for range r.n {
			nc, _ := r.Accept()
			go nc.Read(nil)
		}
	}()
	if most := r.waits(); most < 100 {
		t.Errorf("without a yield only %d were accepted while another waited: this measures nothing", most)
	}
}

// lingerer is a connection whose end can be seen.
type lingerer struct {
	net.Conn
	half   atomic.Bool
	closed chan time.Time
}

func (l *lingerer) CloseWrite() error { l.half.Store(true); return nil }
func (l *lingerer) Close() error {
	select {
	case l.closed <- time.Now():
	default:
	}
	return l.Conn.Close()
}

// Who was never answered is closed at once: there is nothing that a reset could overtake. Who was
// told a reason is read for a moment: the control.
func TestWhoWasNeverAnsweredIsClosedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBackend()
		s, l := servePipes(t, mqtt.Config{Backend: b, State: b})
		for _, told := range []bool{false, true} {
			cl, sv := net.Pipe()
			end := &lingerer{Conn: sv, closed: make(chan time.Time, 1)}
			l.c <- end
			d := &device{t: t, nc: cl, v: 5}
			if told {
				d.send(connect(5, opts{id: "a"}))
				d.next()
			}
			start := time.Now()
			d.send([]byte{0xD0, 0}) // not for a client to say
			if told {
				d.next()
			}
			if e := (<-end.closed).Sub(start); e > 0 != told || end.half.Load() != told {
				t.Errorf("told why: %v; closed after %v, half closed before: %v", told, e, end.half.Load())
			}
			cl.Close()
		}
		s.Shutdown(t.Context())
		b.close()
	})
}
