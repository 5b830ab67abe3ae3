package bridge_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/paho"

	"tailrace/edge/bridge"
	"tailrace/uplink/pki"
)

// fileSink makes bursts durable as lines of a file, one fsync per burst.
type fileSink struct {
	mu sync.Mutex
	f  *os.File
}

type fileBurst struct {
	s   *fileSink
	buf bytes.Buffer
}

func (s *fileSink) Begin() bridge.Burst { return &fileBurst{s: s} }

func (b *fileBurst) Add(m *bridge.Message) error {
	fmt.Fprintf(&b.buf, "%s %s\n", m.Topic, m.Payload)
	return nil
}

func (b *fileBurst) Commit(done func(error)) {
	b.s.mu.Lock()
	defer b.s.mu.Unlock()
	_, err := b.s.f.Write(b.buf.Bytes())
	if err == nil {
		err = b.s.f.Sync()
	}
	done(err)
}

// memSink keeps messages; fail is asked for each burst.
type memSink struct {
	mu     sync.Mutex
	got    []bridge.Message
	fail   func() error
	reject func(m *bridge.Message) error
	change chan struct{}
}

func newMemSink() *memSink { return &memSink{change: make(chan struct{}, 1)} }

type memBurst struct {
	s  *memSink
	ms []bridge.Message
}

func (s *memSink) Begin() bridge.Burst { return &memBurst{s: s} }

func (b *memBurst) Add(m *bridge.Message) error {
	if b.s.reject != nil {
		if err := b.s.reject(m); err != nil {
			return err
		}
	}
	b.ms = append(b.ms, *m)
	return nil
}

func (b *memBurst) Commit(done func(error)) {
	b.s.mu.Lock()
	var err error
	if b.s.fail != nil {
		err = b.s.fail()
	}
	if err == nil {
		b.s.got = append(b.s.got, b.ms...)
	}
	b.s.mu.Unlock()
	done(err)
	select {
	case b.s.change <- struct{}{}:
	default:
	}
}

// wait blocks until ok, checked after every commit.
func (s *memSink) wait(t *testing.T, what string, ok func(got []bridge.Message) bool) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		s.mu.Lock()
		done := ok(s.got)
		n := len(s.got)
		s.mu.Unlock()
		if done {
			return
		}
		select {
		case <-s.change:
		case <-deadline:
			t.Fatalf("%s: not within 20 s; %d messages stored", what, n)
		}
	}
}

// broker starts a real mosquitto on a free port.
func broker(t testing.TB) (addr string) {
	t.Helper()
	addr, _ = brokerAt(t, "", "")
	return addr
}

// brokerAt starts one on addr ("" = a free port) with further lines of configuration.
func brokerAt(t testing.TB, addr, extra string) (string, *exec.Cmd) {
	t.Helper()
	exe, err := exec.LookPath("mosquitto")
	if err != nil {
		exe = "/usr/sbin/mosquitto"
	}
	if _, err := os.Stat(exe); err != nil {
		t.Fatal("mosquitto is needed for this test: apt-get install mosquitto")
	}
	if addr == "" {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		addr = l.Addr().String()
		l.Close()
	}
	_, port, _ := net.SplitHostPort(addr)
	conf := filepath.Join(t.TempDir(), "mosquitto.conf")
	if err := os.WriteFile(conf, []byte("listener "+port+" 127.0.0.1\nallow_anonymous true\nmax_queued_messages 0\nmax_inflight_messages 1000\n"+extra), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, "-c", conf)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	until(t, "mosquitto listens", func() bool {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	return addr, cmd
}

func publisher(t testing.TB, addr string) *paho.Client {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	p := paho.NewClient(paho.ClientConfig{Conn: c})
	if _, err := p.Connect(t.Context(), &paho.Connect{ClientID: "source", CleanStart: true, KeepAlive: 30}); err != nil {
		t.Fatal(err)
	}
	return p
}

func publish(t testing.TB, p *paho.Client, topic, body string) {
	t.Helper()
	if _, err := p.Publish(t.Context(), &paho.Publish{Topic: topic, QoS: 1, Payload: []byte(body)}); err != nil {
		t.Fatal(err)
	}
}

func config(addr string, sink bridge.Sink) bridge.Config {
	return bridge.Config{
		Name: "plant", Brokers: []string{"mqtt://" + addr}, ClientID: "tailrace-test", Sink: sink,
		Subscriptions: []bridge.Subscription{{Filter: "plant/#", QoS: 1}},
		BackoffMin:    20 * time.Millisecond, BackoffMax: 100 * time.Millisecond,
	}
}

func run(t *testing.T, b *bridge.Bridge) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- b.Run(ctx) }()
	return sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-ended:
			if !errors.Is(err, context.Canceled) {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(10 * time.Second):
			t.Error("Run does not end")
		}
	})
}

// until looks again and again whether ok holds.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(30 * time.Second); !ok(); <-tick.C {
		if time.Now().After(end) {
			t.Fatalf("not within 30 s: %s", what)
		}
	}
}

func connected(t *testing.T, b *bridge.Bridge) {
	t.Helper()
	until(t, "connected", func() bool { return b.Stats().Connected })
}

// A child process of TestKilledBridgeLosesNothingTheBrokerHad.
func TestMain(m *testing.M) {
	if addr := os.Getenv("BRIDGE_CHILD_BROKER"); addr != "" {
		f, err := os.OpenFile(os.Getenv("BRIDGE_CHILD_FILE"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			panic(err)
		}
		b, err := bridge.New(config(addr, &fileSink{f: f}))
		if err != nil {
			panic(err)
		}
		b.Run(context.Background())
		return
	}
	os.Exit(m.Run())
}

func TestKilledBridgeLosesNothingTheBrokerHad(t *testing.T) {
	addr := broker(t)
	file := filepath.Join(t.TempDir(), "stored")
	child := func() *exec.Cmd {
		exe, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(exe)
		cmd.Env = append(os.Environ(), "BRIDGE_CHILD_BROKER="+addr, "BRIDGE_CHILD_FILE="+file)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return cmd
	}
	lines := func() []string {
		b, _ := os.ReadFile(file)
		var out []string
		for s := bufio.NewScanner(bytes.NewReader(b)); s.Scan(); {
			out = append(out, s.Text())
		}
		return out
	}

	cmd := child()
	p := publisher(t, addr)
	// The session exists from the first subscription on; before it the broker keeps nothing for us.
	until(t, "first message", func() bool {
		if len(lines()) > 0 {
			return true
		}
		publish(t, p, "plant/start", "x")
		return false
	})
	rounds, per := 6, 300
	if testing.Short() {
		rounds = 2
	}
	n := 0
	for r := range rounds {
		for range per {
			publish(t, p, fmt.Sprint("plant/", n%7), fmt.Sprint(n))
			n++
			if n%per == per/2 { // mid-way, with messages under way
				cmd.Process.Signal(syscall.SIGKILL)
				cmd.Wait()
			}
		}
		cmd = child()
		t.Logf("round %d: %d published, %d lines", r, n, len(lines()))
	}
	defer func() { cmd.Process.Kill(); cmd.Wait() }()
	last := fmt.Sprintf(" %d", n-1)
	until(t, "the last message", func() bool {
		l := lines()
		for i := len(l) - 1; i >= 0; i-- {
			if strings.HasSuffix(l[i], last) {
				return true
			}
		}
		return false
	})
	seen := map[string]int{}
	for _, l := range lines() {
		if _, v, ok := strings.Cut(l, " "); ok {
			seen[v]++
		}
	}
	missing, again := 0, 0
	for i := range n {
		switch c := seen[fmt.Sprint(i)]; {
		case c == 0:
			missing++
		case c > 1:
			again += c - 1
		}
	}
	t.Logf("%d published, %d missing, %d stored again, %d kills", n, missing, again, rounds)
	if missing > 0 {
		t.Fatalf("%d of %d messages that the broker had acknowledged are lost", missing, n)
	}
}

func TestNothingIsAcknowledgedThatIsNotDurable(t *testing.T) {
	addr := broker(t)
	sink := newMemSink()
	full := errors.New("disk full")
	failing := true
	sink.fail = func() error {
		if failing {
			return full
		}
		return nil
	}
	b, err := bridge.New(config(addr, sink))
	if err != nil {
		t.Fatal(err)
	}
	stop := run(t, b)
	defer stop()
	connected(t, b)
	p := publisher(t, addr)
	for i := range 20 {
		publish(t, p, "plant/a", fmt.Sprint(i))
	}
	until(t, "each attempt fails and reconnects", func() bool { return b.Stats().Failed > 20 })
	if st := b.Stats(); st.Failed <= 20 || st.Stored != 0 || !strings.Contains(st.LastError, "disk full") {
		t.Fatalf("while the disk refuses: %+v", st)
	}
	sink.mu.Lock()
	failing = false
	sink.mu.Unlock()
	sink.wait(t, "all messages after the disk took them again", func(got []bridge.Message) bool {
		seen := map[string]bool{}
		for _, m := range got {
			seen[string(m.Payload)] = true
		}
		return len(seen) == 20
	})
}

func TestMessagesThatCanNeverBeStoredDoNotBlockTheOthers(t *testing.T) {
	addr := broker(t)
	sink := newMemSink()
	sink.reject = func(m *bridge.Message) error {
		if m.Topic == "plant/bad" {
			return errors.New("no route")
		}
		return nil
	}
	b, _ := bridge.New(config(addr, sink))
	stop := run(t, b)
	defer stop()
	connected(t, b)
	p := publisher(t, addr)
	publish(t, p, "plant/bad", "1")
	publish(t, p, "plant/good", "2")
	publish(t, p, "plant/bad", "3")
	publish(t, p, "plant/good", "4")
	sink.wait(t, "good messages", func(got []bridge.Message) bool { return len(got) == 2 })
	if st := b.Stats(); st.Refused < 1 {
		t.Fatalf("refusals are not counted: %+v", st)
	}
}

func TestPropertiesAndFlagsArriveWithTheMessage(t *testing.T) {
	addr := broker(t)
	sink := newMemSink()
	b, _ := bridge.New(config(addr, sink))
	stop := run(t, b)
	defer stop()
	connected(t, b)
	p := publisher(t, addr)
	props := &paho.PublishProperties{ContentType: "application/json", ResponseTopic: "r", CorrelationData: []byte{1}, User: paho.UserProperties{{Key: "k", Value: "v"}, {Key: "k", Value: "w"}}}
	if _, err := p.Publish(t.Context(), &paho.Publish{Topic: "plant/x", QoS: 1, Retain: true, Payload: []byte("{}"), Properties: props}); err != nil {
		t.Fatal(err)
	}
	sink.wait(t, "the message", func(got []bridge.Message) bool { return len(got) == 1 })
	m := sink.got[0]
	if m.Topic != "plant/x" || string(m.Payload) != "{}" || m.QoS != 1 || !m.Retain || m.Dup || m.ContentType != "application/json" || m.ResponseTopic != "r" ||
		!bytes.Equal(m.Correlation, []byte{1}) || len(m.User) != 2 || m.User[1] != (bridge.UserProperty{Key: "k", Value: "w"}) {
		t.Fatalf("%+v", m)
	}
}

func TestBridgeComesBackAndSaysThatTheBrokerForgotTheSession(t *testing.T) {
	addr, first := brokerAt(t, "", "")
	sink := newMemSink()
	c := config(addr, sink)
	c.Brokers = []string{"mqtt://127.0.0.1:1", "mqtt://" + addr} // the first one never answers
	b, err := bridge.New(c)
	if err != nil {
		t.Fatal(err)
	}
	stop := run(t, b)
	defer stop()
	connected(t, b)
	publish(t, publisher(t, addr), "plant/a", "1")
	sink.wait(t, "the first message", func(got []bridge.Message) bool { return len(got) == 1 })
	first.Process.Kill()
	first.Wait()
	until(t, "the end of the connection is seen", func() bool { return !b.Stats().Connected })
	brokerAt(t, addr, "") // without persistence: it knows nothing any more
	connected(t, b)
	publish(t, publisher(t, addr), "plant/a", "2")
	sink.wait(t, "a message after the broker's restart", func(got []bridge.Message) bool { return len(got) == 2 })
	if st := b.Stats(); st.LostState != 1 || st.Reconnects < 1 {
		t.Fatalf("%+v", st)
	}
}

func TestBridgeOverTLSWithPassword(t *testing.T) {
	dir := t.TempDir()
	ca, pair, err := pki.NewCA(rand.Reader, "test", time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	hub, err := ca.Issue(rand.Reader, pki.RoleHub, "broker", []string{"127.0.0.1"}, time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{"ca": pair.Cert, "crt": hub.Cert, "key": hub.Key} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.Command("mosquitto_passwd", "-b", "-c", filepath.Join(dir, "pw"), "tr", "secret").CombinedOutput(); err != nil {
		t.Fatalf("mosquitto_passwd: %v %s", err, out)
	}
	os.Chmod(filepath.Join(dir, "pw"), 0o644)
	at := func(n string) string { return filepath.Join(dir, n) }
	addr, _ := brokerAt(t, "", "user root\ncafile "+at("ca")+"\ncertfile "+at("crt")+"\nkeyfile "+at("key")+"\nallow_anonymous false\npassword_file "+at("pw")+"\n")
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pair.Cert)
	sink := newMemSink()
	c := config(addr, sink)
	c.Brokers, c.TLS, c.Username = []string{"mqtts://" + addr}, &tls.Config{RootCAs: pool}, "tr"
	password := "wrong"
	var mu sync.Mutex
	c.Password = func() ([]byte, error) {
		mu.Lock()
		defer mu.Unlock()
		return []byte(password), nil
	}
	b, err := bridge.New(c)
	if err != nil {
		t.Fatal(err)
	}
	stop := run(t, b)
	defer stop()
	until(t, "a refusal", func() bool { return strings.Contains(b.Stats().LastError, "refused") })
	if st := b.Stats(); st.Connected || !strings.Contains(st.LastError, "refused") {
		t.Fatalf("with a wrong password: %+v", st)
	}
	mu.Lock()
	password = "secret" // the file was corrected: the next connect reads it
	mu.Unlock()
	connected(t, b)
	if out, err := exec.Command("mosquitto_pub", "-h", "127.0.0.1", "-p", addr[strings.LastIndex(addr, ":")+1:], "--cafile", at("ca"), "-u", "tr", "-P", "secret", "-q", "1", "-t", "plant/x", "-m", "hi").CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	sink.wait(t, "the message", func(got []bridge.Message) bool { return len(got) == 1 && string(got[0].Payload) == "hi" })
}

// whole reads packets up to one of a type, however many writes they came in, and returns its body:
// paho's PINGREQ may come before its SUBSCRIBE.
func whole(t *testing.T, r *bufio.Reader, kind byte) []byte {
	t.Helper()
	head, err := r.ReadByte()
	n, err1 := binary.ReadUvarint(r) // a Remaining Length is the same encoding
	body := make([]byte, n)
	_, err2 := io.ReadFull(r, body)
	if err := errors.Join(err, err1, err2); err != nil {
		t.Fatal(err)
	}
	if head>>4 != kind {
		return whole(t, r, kind)
	}
	return body
}

// A broker that sends more than it was told it may ends its connection, not our memory.
func TestOversizePacketsEndTheConnectionBeforeAnythingIsAllocated(t *testing.T) {
	for name, packet := range map[string][]byte{
		"256 MB announced":   {0x30, 0xff, 0xff, 0xff, 0x7f},
		"length without end": {0x30, 0xff, 0xff, 0xff, 0xff, 0x01},
	} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		b, err := bridge.New(config(l.Addr().String(), newMemSink()))
		if err != nil {
			t.Fatal(err)
		}
		stop := run(t, b)
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		r := bufio.NewReader(c)
		whole(t, r, 1)                               // CONNECT
		c.Write([]byte{0x20, 3, 0, 0, 0})            // CONNACK
		id := whole(t, r, 8)                         // SUBSCRIBE
		c.Write([]byte{0x90, 4, id[0], id[1], 0, 1}) // SUBACK
		connected(t, b)
		c.Write(packet)
		c.SetReadDeadline(time.Now().Add(10 * time.Second))
		for err = nil; err == nil; {
			_, err = r.ReadByte()
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: the connection stays open", name)
		}
		until(t, name+": the reason", func() bool { return strings.Contains(b.Stats().LastError, "the broker sent") })
		c.Close()
		l.Close()
		stop()
	}
}

func TestConfigurationsThatCannotWorkAreRefused(t *testing.T) {
	ok := config("127.0.0.1:1", newMemSink())
	for name, change := range map[string]func(*bridge.Config){
		"no client id":    func(c *bridge.Config) { c.ClientID = "" },
		"no broker":       func(c *bridge.Config) { c.Brokers = nil },
		"http broker":     func(c *bridge.Config) { c.Brokers = []string{"http://x"} },
		"password in url": func(c *bridge.Config) { c.Brokers = []string{"mqtt://u:p@x"} },
		"no subscription": func(c *bridge.Config) { c.Subscriptions = nil },
		"qos 3":           func(c *bridge.Config) { c.Subscriptions = []bridge.Subscription{{Filter: "a", QoS: 3}} },
		"window":          func(c *bridge.Config) { c.ReceiveMaximum = 70000 },
		"no sink":         func(c *bridge.Config) { c.Sink = nil },
	} {
		c := ok
		change(&c)
		if _, err := bridge.New(c); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := bridge.New(ok); err != nil {
		t.Error(err)
	}
}
