package edge_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/packets"
	"github.com/eclipse/paho.golang/paho"

	"tailrace/edge"
	"tailrace/uplink/pki"
)

const guarded = `
node: node-1
storage: {dir: "%DIR%/data", classes: [{name: main, when_full: reject, commit_interval: 0s}]}
mqtt:
  listeners: [{address: "127.0.0.1:0"}]
  auth: {password_file: "%DIR%/passwd", acl_file: "%DIR%/acl", bind_client_id: true}
  quarantine: {strikes: 3, duration: 2s}
http: {address: "127.0.0.1:0"}
default: {stream: s}
`

// guest is a client of a guarded node.
type guest struct {
	*paho.Client
	code  byte        // of CONNACK
	got   chan string // topics delivered
	ended chan byte   // reason of DISCONNECT
}

func login(t *testing.T, n *edge.Node, user, id string, edit func(*paho.Connect)) *guest {
	t.Helper()
	nc, err := net.Dial("tcp", n.MQTTAddrs()[0].String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	g := &guest{got: make(chan string, 100), ended: make(chan byte, 1)}
	g.Client = paho.NewClient(paho.ClientConfig{Conn: packets.NewThreadSafeConn(nc),
		OnPublishReceived: []func(paho.PublishReceived) (bool, error){func(p paho.PublishReceived) (bool, error) {
			g.got <- p.Packet.Topic
			return true, nil
		}},
		OnServerDisconnect: func(d *paho.Disconnect) { g.ended <- d.ReasonCode },
	})
	expiry := uint32(3600)
	c := &paho.Connect{ClientID: id, KeepAlive: 30, Username: user, UsernameFlag: true, Password: []byte("pw-" + user), PasswordFlag: true,
		Properties: &paho.ConnectProperties{SessionExpiryInterval: &expiry}}
	if edit != nil {
		edit(c)
	}
	ack, err := g.Connect(t.Context(), c)
	if ack == nil {
		t.Fatalf("%s: %v", user, err)
	}
	g.code = ack.ReasonCode
	return g
}

func (g *guest) subscribe(t *testing.T, filter string) byte {
	t.Helper()
	a, err := g.Subscribe(t.Context(), &paho.Subscribe{Subscriptions: []paho.SubscribeOptions{{Topic: filter, QoS: 1}}})
	if a == nil {
		t.Fatal(err)
	}
	return a.Reasons[0]
}

func within[T any](t *testing.T, what string, ch <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-ch:
	case <-time.After(30 * time.Second):
		t.Fatal("no " + what)
	}
	return v
}

func guardedNode(t *testing.T) (n *edge.Node, write func(file, body string)) {
	t.Helper()
	return guardedBy(t, guarded)
}

func guardedBy(t *testing.T, yaml string) (n *edge.Node, write func(file, body string)) {
	t.Helper()
	dir := t.TempDir()
	write = func(file, body string) {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(body), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("passwd", "a:"+hash(t, "pw-a")+"\nb:"+hash(t, "pw-b")+"\n")
	write("acl", "allow a subscribe x/#\nallow * publish,will x/{user}/#\n")
	n, _ = stoppableNode(t, yaml, dir)
	return n, write
}

// Unless said otherwise nobody takes a client id that names another user, and any other is free.
func TestClientIDsOfOthersAreRefusedByDefault(t *testing.T) {
	for bind, want := range map[string]map[string]byte{
		"":                        {"a": 0, "a-1": 0, "b": 0x85, "b/2": 0x85, "free": 0},
		", bind_client_id: true":  {"a": 0, "a-1": 0, "b": 0x85, "b/2": 0x85, "free": 0x85},
		", bind_client_id: false": {"a": 0, "a-1": 0, "b": 0, "b/2": 0, "free": 0},
	} {
		n, _ := guardedBy(t, strings.Replace(guarded, ", bind_client_id: true", bind, 1))
		for id, code := range want {
			g := login(t, n, "a", id, nil)
			if g.code != code {
				t.Errorf("bind %q, user a as %q: 0x%02X, want 0x%02X", bind, id, g.code, code)
			}
		}
	}
}

func TestWhoIsInMayDoWhatTheRulesSay(t *testing.T) {
	n, _ := guardedNode(t)
	if g := login(t, n, "a", "b", nil); g.code != 0x85 {
		t.Errorf("a client id of another identity: 0x%02X", g.code)
	}
	will := func(topic string) func(*paho.Connect) {
		return func(c *paho.Connect) { c.WillMessage = &paho.WillMessage{Topic: topic, Payload: []byte("w")} }
	}
	if g := login(t, n, "b", "b", will("x/a/will")); g.code != 0x87 {
		t.Errorf("a will to another's topic: 0x%02X", g.code)
	}
	if g := login(t, n, "b", "b", will("x/b/will")); g.code != 0 {
		t.Errorf("a will of its own: 0x%02X", g.code)
	}
	a := login(t, n, "a", "a-1", nil)
	for filter, want := range map[string]byte{"x/#": 1, "#": 0x87, "y": 0x87, "$share/g/x/+/t": 1, "$share/g/#": 0x87} {
		if got := a.subscribe(t, filter); got != want {
			t.Errorf("%s: 0x%02X, want 0x%02X", filter, got, want)
		}
	}
	for topic, want := range map[string]byte{"x/a/t": 0, "x/b/t": 0x87, "y": 0x87} {
		if got := publish(t, a.Client, topic, "v"); got != want {
			t.Errorf("%s: 0x%02X, want 0x%02X", topic, got, want)
		}
	}
	// The alias is resolved before the rules are asked.
	alias := uint16(1)
	pub := func(topic string) byte {
		r, err := a.Publish(t.Context(), &paho.Publish{Topic: topic, QoS: 1, Payload: []byte("v"), Properties: &paho.PublishProperties{TopicAlias: &alias}})
		if r == nil {
			t.Fatal(err)
		}
		return r.ReasonCode
	}
	if c := pub("x/b/t"); c != 0x87 {
		t.Errorf("setting an alias: 0x%02X", c)
	}
	if c := pub(""); c != 0x87 {
		t.Errorf("by its alias: 0x%02X", c)
	}
	if got := values(t, n, "s"); len(got) != 1 {
		t.Errorf("stored %q", got)
	}
}

// What is taken away ends at once; everybody else stays connected.
func TestRightsThatAreTakenAwayEndAtOnce(t *testing.T) {
	n, write := guardedNode(t)
	a, b := login(t, n, "a", "a", nil), login(t, n, "b", "b", nil)
	away := login(t, n, "a", "a-away", nil)
	for _, g := range []*guest{a, away} {
		if c := g.subscribe(t, "x/#"); c != 1 {
			t.Fatalf("SUBACK 0x%02X", c)
		}
	}
	away.Disconnect(&paho.Disconnect{})
	if c := publish(t, b.Client, "x/b/1", "v"); c != 0 {
		t.Fatalf("0x%02X", c)
	}
	within(t, "delivery", a.got)

	write("acl", "allow a subscribe x/a/#\nallow * publish x/{user}/#\nallow b publish y\n")
	if err := n.Reload(); err != nil {
		t.Fatal(err)
	}
	if c := publish(t, b.Client, "x/b/1", "v"); c != 0 {
		t.Fatalf("b's right stayed, but: 0x%02X", c)
	}
	if c := publish(t, b.Client, "y", "v"); c != 0 {
		t.Fatalf("b has a new right, but: 0x%02X", c)
	}
	if c := a.subscribe(t, "x/a/#"); c != 1 {
		t.Fatalf("a is connected, but: 0x%02X", c)
	}
	publish(t, a.Client, "x/a/2", "v")
	if topic := within(t, "delivery", a.got); topic != "x/a/2" {
		t.Errorf("a hears %q after its right was taken", topic)
	}
	away = login(t, n, "a", "a-away", func(c *paho.Connect) { c.CleanStart = false })
	if c := away.subscribe(t, "x/a/#"); c != 1 {
		t.Fatalf("0x%02X", c)
	}
	publish(t, a.Client, "x/a/3", "v")
	if topic := within(t, "delivery", away.got); topic != "x/a/3" {
		t.Errorf("a session that was away hears %q after its right was taken", topic)
	}

	write("acl", "allow a subscribe x/a/#\n")
	if err := n.Reload(); err != nil {
		t.Fatal(err)
	}
	if c := publish(t, b.Client, "x/b/1", "v"); c != 0x87 {
		t.Errorf("a cached route outlived the right: 0x%02X", c)
	}

	write("passwd", "a:"+hash(t, "pw-a")+"\nc:"+hash(t, "pw-c")+"\n") // b is gone, and a's hash is another
	if err := n.Reload(); err != nil {
		t.Fatal(err)
	}
	for _, g := range []*guest{a, b, away} {
		if c := within(t, "DISCONNECT", g.ended); c != 0x87 {
			t.Errorf("DISCONNECT 0x%02X", c)
		}
	}
	if g := login(t, n, "b", "b", nil); g.code != 0x86 {
		t.Errorf("b comes in again: 0x%02X", g.code)
	}
	c := login(t, n, "c", "c", nil)
	write("passwd", "broken\n")
	if err := n.Reload(); err == nil {
		t.Error("a broken file is read")
	}
	within(t, "DISCONNECT", c.ended)
	if g := login(t, n, "a", "a", nil); g.code != 0x88 {
		t.Errorf("login with a broken file: 0x%02X", g.code)
	}
	var st edge.Status
	if _, body := get(t, n, "/api/v1/status"); json.Unmarshal([]byte(body), &st) != nil || st.MQTT.AccessBroken == "" {
		t.Errorf("status does not tell: %s", body)
	}
}

func TestADeviceThatBreaksTheProtocolIsKeptOutForAWhile(t *testing.T) {
	n, write := guardedNode(t)
	_ = write
	good := login(t, n, "a", "a", nil)
	for range 3 {
		nc, err := net.Dial("tcp", n.MQTTAddrs()[0].String())
		if err != nil {
			t.Fatal(err)
		}
		nc.SetDeadline(time.Now().Add(30 * time.Second))
		nc.Write([]byte("\x10\x16\x00\x04MQTT\x04\xc2\x00\x1e\x00\x01b\x00\x01b\x00\x04pw-b"))
		ack := make([]byte, 4)
		if _, err := nc.Read(ack); err != nil || ack[3] != 0 {
			t.Fatalf("CONNACK % x, %v", ack, err)
		}
		nc.Write([]byte{0x36, 0}) // QoS 3
		for _, err = nc.Read(ack); err == nil; _, err = nc.Read(ack) {
		}
		nc.Close()
	}
	g := login(t, n, "b", "b", nil)
	if g.code != 0x97 {
		t.Fatalf("after three strikes: 0x%02X", g.code)
	}
	var st edge.Status
	_, body := get(t, n, "/api/v1/status")
	if err := json.Unmarshal([]byte(body), &st); err != nil || len(st.MQTT.Quarantined) != 1 || st.MQTT.Quarantined[0].Client != "b" || !strings.HasPrefix(st.MQTT.Quarantined[0].Reason, "protocol: ") {
		t.Errorf("status: %v %+v", err, st.MQTT)
	}
	if _, m := get(t, n, "/metrics"); !strings.Contains(m, "tailrace_mqtt_quarantined 1\n") || !strings.Contains(m, `tailrace_mqtt_quarantines_total{reason="protocol"} 1`) {
		t.Error("metrics do not tell")
	}
	if c := publish(t, good.Client, "x/a/t", "v"); c != 0 {
		t.Errorf("another device: 0x%02X", c)
	}
	until(t, "the quarantine is over", func() bool { return login(t, n, "b", "b", nil).code == 0 })
}

func TestTopicFloodsEndAtTheClient(t *testing.T) {
	n := node(t, strings.Replace(plain, "auth: {allow_anonymous: true}", "auth: {allow_anonymous: true}\n  client: {max_topics: 3}", 1)+"default: {stream: s}\n")
	p := client(t, n, "c")
	for i, want := range []byte{0, 0, 0, 0x97, 0x97} {
		if got := publish(t, p, "t/"+string(rune('a'+i)), "v"); got != want {
			t.Errorf("topic %d: 0x%02X, want 0x%02X", i, got, want)
		}
	}
	if got := publish(t, p, "t/a", "v"); got != 0 {
		t.Errorf("a known topic: 0x%02X", got)
	}
	if got := publish(t, client(t, n, "d"), "t/z", "v"); got != 0 {
		t.Errorf("another client: 0x%02X", got)
	}
}

func TestCertificatesAreReadAgainWithoutDroppingConnections(t *testing.T) {
	dir := t.TempDir()
	certs(t, dir, time.Now(), map[string]pki.Role{"node-1": pki.RoleNode})
	n, _ := stoppableNode(t, strings.Replace(plain, `{address: "127.0.0.1:0"}]`, `{address: "127.0.0.1:0", tls: {cert: "%DIR%/node-1.crt", key: "%DIR%/node-1.key"}}]`, 1)+"default: {stream: s}\n", dir)
	serial := func() (string, *tls.Conn) {
		c, err := tls.Dial("tcp", n.MQTTAddrs()[0].String(), &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		return c.ConnectionState().PeerCertificates[0].SerialNumber.String(), c
	}
	before, old := serial()
	defer old.Close()
	p := paho.NewClient(paho.ClientConfig{Conn: packets.NewThreadSafeConn(old)})
	if _, err := p.Connect(context.Background(), &paho.Connect{ClientID: "c", KeepAlive: 30, CleanStart: true}); err != nil {
		t.Fatal(err)
	}
	certs(t, dir, time.Now(), map[string]pki.Role{"node-1": pki.RoleNode})
	if err := n.Reload(); err != nil {
		t.Fatal(err)
	}
	after, c := serial()
	c.Close()
	if after == before {
		t.Error("the old certificate is still shown")
	}
	os.WriteFile(filepath.Join(dir, "node-1.crt"), []byte("broken"), 0o600)
	if err := n.Reload(); err == nil {
		t.Error("a broken certificate is read")
	}
	last, c := serial()
	c.Close()
	if last != after {
		t.Error("the certificate in use is lost")
	}
	if r := publish(t, p, "t", "v"); r != 0 {
		t.Errorf("the old connection: 0x%02X", r)
	}
}

// An address that has guessed too often is not listened to, unless somebody there is logged
// in: then its proven devices still come in, and only new names wait.
func TestAnAddressThatGuessesIsNotListenedTo(t *testing.T) {
	n, _ := guardedNode(t)
	// code is that of the CONNACK (MQTT 3.1.1); -1: closed unread.
	try := func(from byte, id, user, pw string) (nc net.Conn, code int) {
		t.Helper()
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, from)}}
		nc, err := d.Dial("tcp", n.MQTTAddrs()[0].String())
		if err != nil {
			t.Skip("no second loopback address: ", err)
		}
		t.Cleanup(func() { nc.Close() })
		nc.SetDeadline(time.Now().Add(30 * time.Second))
		b := []byte("\x00\x04MQTT\x04\xc2\x00\x3c")
		for _, s := range []string{id, user, pw} {
			b = append(append(b, 0, byte(len(s))), s...)
		}
		nc.Write(append([]byte{0x10, byte(len(b))}, b...))
		ack := make([]byte, 4)
		if _, err := io.ReadFull(nc, ack); err != nil {
			return nc, -1
		}
		return nc, int(ack[3])
	}
	for range 10 {
		if _, c := try(2, "x", "a", "guess"); c != 4 && c != 5 {
			t.Fatalf("a wrong password: code %d", c)
		}
	}
	if _, c := try(2, "a", "a", "pw-a"); c != -1 {
		t.Errorf("the address is listened to: code %d", c)
	}
	if _, c := try(3, "a", "a", "pw-a"); c != 0 { // and stays
		t.Fatalf("another address: code %d", c)
	}
	for range 10 {
		try(3, "x", "a", "guess")
	}
	if _, c := try(3, "a-2", "a", "pw-a"); c != 0 {
		t.Errorf("a proven device beside one that guesses: code %d", c)
	}
	if _, c := try(3, "b", "b", "pw-b"); c == 0 || c == -1 {
		t.Errorf("a new name beside one that guesses: code %d", c)
	}
}
