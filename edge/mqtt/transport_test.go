package mqtt_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/csv"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"

	"tailrace/edge/mqtt"
	"tailrace/edge/mqtt/packet"
)

// authority is a throw-away CA with a server and a client certificate.
func authority(t testing.TB) (server, client tls.Certificate, pool *x509.CertPool) {
	t.Helper()
	key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}, NotAfter: time.Now().Add(time.Hour), IsCA: true,
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	raw, err := x509.CreateCertificate(rand.Reader, ca, ca, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	root, _ := x509.ParseCertificate(raw)
	pool = x509.NewCertPool()
	pool.AddCert(root)
	leaf := func(name string, n int64) tls.Certificate {
		k, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		c := &x509.Certificate{SerialNumber: big.NewInt(n), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour),
			DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
		raw, err := x509.CreateCertificate(rand.Reader, c, root, &k.PublicKey, key)
		if err != nil {
			t.Fatal(err)
		}
		return tls.Certificate{Certificate: [][]byte{raw}, PrivateKey: k}
	}
	return leaf("server", 2), leaf("turbine-7", 3), pool
}

func (w *world) listen(o mqtt.ListenerOptions) string {
	w.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	go w.s.Serve(l, o)
	return l.Addr().String()
}

// exercise publishes through nc at QoS 1 and 2 and subscribes.
func exercise(t *testing.T, nc net.Conn, big int) {
	t.Helper()
	d := &device{t: t, nc: nc, v: 5}
	d.send(connect(5, opts{id: t.Name(), keepAlive: 60}))
	if p := d.next(); p[0] != 0x20 || p[3] != 0 {
		t.Fatalf("CONNACK %x", p)
	}
	d.send(subscribe(5, 1, "t", 0))
	d.want(suback(5, 1, 0))
	for i := range 20 {
		id := uint16(i + 1)
		payload := strings.Repeat("x", 1+i*big/20)
		p := publish(5, 1, id, "t", payload)
		d.send(p[:1])
		d.send(p[1:])
		var seen int
		for seen < 2 {
			switch p := d.next(); p[0] {
			case 0x40, 0x30:
				seen++
			default:
				t.Fatalf("got %x", p)
			}
		}
	}
	d.send([]byte{0xE0, 0})
	d.closed()
}

func TestTLSAndClientCertificate(t *testing.T) {
	server, client, pool := authority(t)
	b := newBackend()
	b.auth = func(c *mqtt.Client, user string, pw []byte, cert *x509.Certificate) error {
		if cert == nil {
			return &mqtt.ReasonError{Code: packet.NotAuthorized, Reason: "no certificate"}
		}
		c.Identity = cert.Subject.CommonName
		return nil
	}
	w := newWorld(t, b, nil)
	addr := w.listen(mqtt.ListenerOptions{TLS: &tls.Config{Certificates: []tls.Certificate{server}, ClientCAs: pool, ClientAuth: tls.VerifyClientCertIfGiven}})
	nc, err := tls.Dial("tcp", addr, &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{client}})
	if err != nil {
		t.Fatal(err)
	}
	exercise(t, nc, 50_000)
	nc, err = tls.Dial("tcp", addr, &tls.Config{RootCAs: pool})
	if err != nil {
		t.Fatal(err)
	}
	d := &device{t: t, nc: nc, v: 5}
	d.send(connect(5, opts{id: "x"}))
	if p := d.next(); p[3] != 0x87 {
		t.Fatalf("CONNACK %x", p)
	}
	plain, _ := net.Dial("tcp", addr)
	(&device{t: t, nc: plain, v: 4}).send(connect(4, opts{id: "y"}))
	plain.Close()
}

func TestWebSocket(t *testing.T) {
	server, client, pool := authority(t)
	for _, secure := range []bool{false, true} {
		t.Run(fmt.Sprint("tls=", secure), func(t *testing.T) {
			b := newBackend()
			b.auth = func(c *mqtt.Client, user string, pw []byte, cert *x509.Certificate) error {
				if secure && (cert == nil || cert.Subject.CommonName != "turbine-7") {
					return fmt.Errorf("certificate %v", cert)
				}
				return nil
			}
			w := newWorld(t, b, nil)
			o := mqtt.ListenerOptions{WebSocket: true, Path: "/mqtt"}
			url, hc := "ws://", http.DefaultClient
			if secure {
				o.TLS = &tls.Config{Certificates: []tls.Certificate{server}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert}
				url = "wss://"
				hc = &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{client}}}}
			}
			url += w.listen(o)
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			ws, _, err := websocket.Dial(ctx, url+"/mqtt", &websocket.DialOptions{Subprotocols: []string{"mqtt"}, HTTPClient: hc})
			if err != nil {
				t.Fatal(err)
			}
			ws.SetReadLimit(1 << 20)
			exercise(t, websocket.NetConn(ctx, ws, websocket.MessageBinary), 50_000)
			if ws, _, err := websocket.Dial(ctx, url+"/mqtt", &websocket.DialOptions{HTTPClient: hc}); err == nil {
				if _, _, err = ws.Read(ctx); websocket.CloseStatus(err) != websocket.StatusPolicyViolation {
					t.Errorf("without subprotocol: %v", err)
				}
			}
			if _, _, err := websocket.Dial(ctx, url+"/other", &websocket.DialOptions{Subprotocols: []string{"mqtt"}, HTTPClient: hc}); err == nil {
				t.Error("other path accepted")
			}
			w.stop()
			if n := w.s.Stats().Connections; n != 0 {
				t.Errorf("%d connections left", n)
			}
		})
	}
}

// TestRecordedSessionsReplay sends what real clients sent and compares with what a
// real broker answered: type, packet id and reason; properties are each server's own.
func TestRecordedSessionsReplay(t *testing.T) {
	f, err := os.Open("testdata/wire_mqtt_sessions.csv")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	rows, err := csv.NewReader(f).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	sessions := map[string][][]string{}
	var order []string
	for _, r := range rows[1:] {
		k := r[0] + "/" + r[1]
		if sessions[k] == nil {
			order = append(order, k)
		}
		sessions[k] = append(sessions[k], r)
	}
	b := newBackend()
	w := newWorld(t, b, nil)
	for _, name := range order {
		t.Run(name, func(t *testing.T) {
			d := w.dial(4)
			d.t = t
			for i, r := range sessions[name] {
				p, err := hex.DecodeString(r[5])
				if err != nil {
					t.Fatal(err)
				}
				if r[2] == "c2s" {
					if i == 0 && p[0] == 0xC0 { // the capture began after CONNECT
						d.send(connect(4, opts{id: "ping"}))
						d.next()
					}
					d.send(p)
					continue
				}
				for len(p) > 0 {
					_, _, end, _, err := packet.Frame(p, 1<<20)
					if err != nil || end == 0 {
						t.Fatalf("recorded %x: %v", p, err)
					}
					if got, want := essence(d.next()), essence(p[:end]); got != want {
						t.Fatalf("got %s, recorded %s", got, want)
					}
					p = p[end:]
				}
			}
			d.nc.(*net.TCPConn).CloseWrite() // some captures stop before DISCONNECT
			d.closed()
		})
	}
	if len(order) < 20 {
		t.Errorf("only %d sessions", len(order))
	}
}

func essence(p []byte) string {
	switch packet.Type(p[0] >> 4) {
	case packet.CONNACK:
		return fmt.Sprintf("CONNACK %x", p[2:4])
	case packet.PUBACK, packet.PUBREC, packet.PUBCOMP:
		ok := len(p) < 5 || p[4] < 0x80 // 0x10 = no subscribers: may be told (3.4.2-1)
		return fmt.Sprintf("%x %x %v", p[0], p[2:4], ok)
	}
	return fmt.Sprintf("%x", p)
}

// outside finds a program the test cannot do without.
func outside(t *testing.T, name string) string {
	t.Helper()
	if testing.Short() {
		t.Skip("uses outside programs")
	}
	p, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("%v; on Debian: apt-get install mosquitto-clients python3-paho-mqtt", err)
	}
	return p
}

func TestMosquittoClients(t *testing.T) {
	pub, sub := outside(t, "mosquitto_pub"), outside(t, "mosquitto_sub")
	b := newBackend()
	w := newWorld(t, b, nil)
	_, port, _ := net.SplitHostPort(w.addr)
	for _, v := range []string{"31", "311", "5"} {
		for _, qos := range []string{"0", "1", "2"} {
			t.Run("v="+v+"/qos="+qos, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				topic := "m/" + v + "/" + qos
				s := exec.CommandContext(ctx, sub, "-p", port, "-V", v, "-q", qos, "-t", topic, "-C", "20", "-i", "s"+v+qos)
				var out strings.Builder
				s.Stdout = &out
				until(t, "the last one has gone", func() bool { return w.s.Stats().Subscriptions == 0 })
				if err := s.Start(); err != nil {
					t.Fatal(err)
				}
				until(t, "a subscription", func() bool { return w.s.Stats().Subscriptions == 1 })
				p := exec.CommandContext(ctx, pub, "-p", port, "-V", v, "-q", qos, "-t", topic, "-l", "-i", "p"+v+qos)
				var want strings.Builder
				for i := range 20 {
					fmt.Fprintf(&want, "line %d\n", i)
				}
				p.Stdin = strings.NewReader(want.String())
				if o, err := p.CombinedOutput(); err != nil {
					t.Fatalf("%v: %s", err, o)
				}
				if err := s.Wait(); err != nil || out.String() != want.String() {
					t.Fatalf("%v, got %q", err, out.String())
				}
			})
		}
	}
}

// cutter is a listener whose connections can be cut as by kill -9 of the server:
// with a reset, what was written and not yet read is lost.
type cutter struct {
	net.Listener
	mu    sync.Mutex
	conns []*net.TCPConn
}

func (c *cutter) Accept() (net.Conn, error) {
	nc, err := c.Listener.Accept()
	if err == nil {
		c.mu.Lock()
		c.conns = append(c.conns, nc.(*net.TCPConn))
		c.mu.Unlock()
	}
	return nc, err
}

func (c *cutter) cut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, nc := range c.conns {
		nc.SetLinger(0)
		nc.Close()
	}
	c.conns = nil
}

// TestPahoPython is a client nobody here wrote: re-sends over a restart of the server.
func TestPahoPython(t *testing.T) {
	python := outside(t, "/usr/bin/python3")
	b := newBackend()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	start := func() (*mqtt.Server, context.CancelFunc, chan error) {
		s, err := mqtt.NewServer(mqtt.Config{Backend: b, State: b})
		if err != nil {
			t.Fatal(err)
		}
		l, err := net.Listen("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		c := &cutter{Listener: l}
		ctx, cancel := context.WithCancel(context.Background())
		ran := make(chan error, 1)
		go func() { ran <- s.Run(ctx) }()
		go s.Serve(c, mqtt.ListenerOptions{})
		return s, func() { c.cut(); b.hold(false); cancel() }, ran
	}
	_, cancel, ran := start()
	script := filepath.Join(t.TempDir(), "client.py")
	os.WriteFile(script, []byte(pahoScript), 0o600)
	_, port, _ := net.SplitHostPort(addr)
	ctx, stop := context.WithTimeout(t.Context(), 60*time.Second)
	defer stop()
	cmd := exec.CommandContext(ctx, python, script, port)
	done := make(chan struct{})
	var out []byte
	var cmdErr error
	go func() { out, cmdErr = cmd.CombinedOutput(); close(done) }()
	restarts := 0
	var servers []*mqtt.Server
	for running := true; running; {
		b.mu.Lock()
		n := len(b.records)
		b.mu.Unlock()
		if n > 200*(restarts+1) && restarts < 4 { // cut it in the middle of things
			restarts++
			b.hold(true)
			b.waiting(1) // so that something becomes durable whose ack is lost
			cancel()
			<-ran
			b = b.restart()
			var s *mqtt.Server
			s, cancel, ran = start()
			servers = append(servers, s)
		}
		select {
		case <-done:
			running = false
		case <-time.After(time.Millisecond):
		}
	}
	cancel()
	<-ran
	if cmdErr != nil {
		t.Fatalf("%v: %s", cmdErr, out)
	}
	seen := map[string]int{}
	for _, p := range b.payloads() {
		seen[p]++
	}
	for i := range 2000 {
		if n := seen[fmt.Sprint(i)]; n != 1 {
			t.Errorf("payload %d stored %d times", i, n)
		}
	}
	var dups uint64
	for _, s := range servers {
		dups += s.Stats().Duplicates
	}
	t.Logf("%d restarts, %d re-sends recognised", restarts, dups)
	if dups == 0 {
		t.Error("no re-send of a durable publish: the test has not tested")
	}
	if restarts < 4 {
		t.Errorf("only %d restarts", restarts)
	}
}

// One thread: with paho's own, publish() may send new messages between a reconnect and
// the re-sends, against the order the standard asks for; such a re-send is stored.
const pahoScript = `
import sys, time
import paho.mqtt.client as m
c = m.Client("paho", clean_session=False, protocol=m.MQTTv311)
c.max_inflight_messages_set(20)
c.max_queued_messages_set(0)
acked, up = set(), []
c.on_publish = lambda c, u, mid: acked.add(mid)
c.on_connect = lambda *a: up.append(1)
c.on_disconnect = lambda *a: up.clear()
end = time.time() + 50
def settle():
    while not up and time.time() < end:
        try:
            c.reconnect()
        except OSError:
            time.sleep(0.01)
            continue
        for _ in range(100):
            if up or c.loop(0.05) != 0: break
c.connect("127.0.0.1", int(sys.argv[1]), 30)
for _ in range(100):
    if up: break
    c.loop(0.05)
for i in range(2000):
    settle()
    c.publish("paho/x", str(i), qos=1)
    c.loop(0.0001)
while len(acked) < 2000 and time.time() < end:
    settle()
    c.loop(0.05)
c.disconnect()
sys.exit(0 if len(acked) == 2000 else "only %d acked" % len(acked))
`

// A handshake that does not get on counts as a login that does not: its time and its places are
// bounded, and others come in beside it.
func TestAHandshakeThatStallsIsEnded(t *testing.T) {
	server, _, pool := authority(t)
	w := newWorld(t, newBackend(), func(c *mqtt.Config) { c.Limits.LoginTimeout, c.Limits.MaxLogins = time.Second, 20 })
	addr := w.listen(mqtt.ListenerOptions{TLS: &tls.Config{Certificates: []tls.Certificate{server}}})
	var stalled []net.Conn
	for i := range 30 { // more than may log in at once: the oldest make room
		nc, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		nc.Write([]byte("\x16\x03\x01\x02\x00\x01")[:i%7])
		stalled = append(stalled, nc)
	}
	for _, nc := range stalled {
		nc.SetReadDeadline(time.Now().Add(30 * time.Second))
		for b := make([]byte, 64); ; { // an alert may come first
			if _, err := nc.Read(b); errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatal("still open")
			} else if err != nil {
				break
			}
		}
	}
	nc, err := tls.Dial("tcp", addr, &tls.Config{RootCAs: pool})
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	d := &device{t: t, nc: nc, v: 4}
	d.send(connect(4, opts{id: "x"}))
	if p := d.next(); p[3] != 0 {
		t.Errorf("CONNACK %x", p)
	}
}
