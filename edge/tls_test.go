package edge_test

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
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

// certs writes ca.crt and a pair for each name into dir, valid from the given time.
func certs(t *testing.T, dir string, from time.Time, names map[string]pki.Role) *x509.CertPool {
	t.Helper()
	ca, pair, err := pki.NewCA(rand.Reader, "test", from, 24*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	write := func(name string, b []byte) {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("ca.crt", pair.Cert)
	for name, role := range names {
		p, err := ca.Issue(rand.Reader, role, name, []string{"localhost", "127.0.0.1"}, from, 24*time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		write(name+".crt", p.Cert)
		write(name+".key", p.Key)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pair.Cert)
	return pool
}

func TestDevicesComeInByCertificateOrPasswordOverTLS(t *testing.T) {
	dir := t.TempDir()
	pool := certs(t, dir, time.Now(), map[string]pki.Role{"node-1": pki.RoleNode, "plc-1": pki.RoleDevice})
	if err := os.WriteFile(filepath.Join(dir, "passwd"), []byte("t01:"+hash(t, "secret")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	n, _ := stoppableNode(t, `
node: node-1
storage: {dir: "%DIR%/data", classes: [{name: main, when_full: reject}]}
mqtt:
  listeners: [{address: "127.0.0.1:0", tls: {cert: "%DIR%/node-1.crt", key: "%DIR%/node-1.key", client_ca: "%DIR%/ca.crt"}}]
  auth: {password_file: "%DIR%/passwd"}
http: {address: "off"}
default: {stream: s, key: "{user}"}
`, dir)
	addr := n.MQTTAddrs()[0].String()
	connect := func(withCert bool, user, password string) (*paho.Client, byte) {
		c := &tls.Config{RootCAs: pool, ServerName: "localhost"}
		if withCert {
			pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "plc-1.crt"), filepath.Join(dir, "plc-1.key"))
			if err != nil {
				t.Fatal(err)
			}
			c.Certificates = []tls.Certificate{pair}
		}
		nc, err := tls.Dial("tcp", addr, c)
		if err != nil {
			t.Fatal(err)
		}
		p := paho.NewClient(paho.ClientConfig{Conn: packets.NewThreadSafeConn(nc)})
		id := "plc-1" // a certificate has ids of its own only
		if user != "" {
			id = "c" + user
		}
		cp := &paho.Connect{ClientID: id, KeepAlive: 30, CleanStart: true}
		if user != "" {
			cp.Username, cp.UsernameFlag, cp.Password, cp.PasswordFlag = user, true, []byte(password), true
		}
		ack, err := p.Connect(t.Context(), cp)
		if ack == nil {
			t.Fatal(err)
		}
		return p, ack.ReasonCode
	}
	for _, c := range []struct {
		cert           bool
		user, password string
		reason         byte
		key            string
	}{
		{true, "", "", 0, "cert:plc-1"},
		{false, "t01", "secret", 0, "user:t01"},
		{false, "t01", "wrong", 0x86, ""},
		{false, "", "", 0x87, ""},
	} {
		p, reason := connect(c.cert, c.user, c.password)
		if reason != c.reason {
			t.Errorf("%+v: reason 0x%02X", c, reason)
			continue
		}
		if reason == 0 {
			if r := publish(t, p, "x", c.key); r != 0 {
				t.Errorf("%+v: publish 0x%02X", c, r)
			}
			p.Disconnect(&paho.Disconnect{})
		}
	}
	if got := values(t, n, "s"); strings.Join(got, " ") != "cert:plc-1 user:t01" {
		t.Errorf("stored %q", got)
	}
	// Plain MQTT on a TLS listener gets nowhere.
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	nc.SetDeadline(time.Now().Add(5 * time.Second))
	nc.Write([]byte{0x10, 13, 0, 4, 'M', 'Q', 'T', 'T', 4, 2, 0, 60, 0, 1, 'a'})
	buf := make([]byte, 16)
	if k, _ := nc.Read(buf); k > 0 && buf[0] == 0x20 {
		t.Errorf("CONNACK in plain text: % x", buf[:k])
	}
}

func TestACertificateOfAnotherNodeIsRefusedBeforeTheHubDoesIt(t *testing.T) {
	dir := t.TempDir()
	certs(t, dir, time.Now(), map[string]pki.Role{"node-1": pki.RoleNode, "node-2": pki.RoleNode})
	for name, want := range map[string]string{"node-1": "", "node-2": "node-2", "missing": "missing"} {
		c, err := edge.ParseConfig(strings.NewReader(strings.ReplaceAll(plain+`
default: {stream: s}
uplink: {hubs: ["127.0.0.1:1"], tls: {cert: "%DIR%/`+name+`.crt", key: "%DIR%/`+name+`.key", ca: "%DIR%/ca.crt"}}
`, "%DIR%", dir)))
		if err != nil {
			t.Fatal(err)
		}
		if err := c.CheckFiles(); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestABoardThatBootsIn1970StillProvesTheHub(t *testing.T) {
	dir := t.TempDir()
	from := time.Now()
	pool := certs(t, dir, from, map[string]pki.Role{"node-1": pki.RoleNode, "hub": pki.RoleHub})
	hub, err := tls.LoadX509KeyPair(filepath.Join(dir, "hub.crt"), filepath.Join(dir, "hub.key"))
	if err != nil {
		t.Fatal(err)
	}
	at := func(name string) string { return filepath.Join(dir, name) }
	for name, c := range map[string]struct {
		clock time.Time
		ok    bool
	}{
		"1970":    {time.Unix(60, 0), true},
		"right":   {from.Add(time.Hour), true},
		"expired": {from.Add(48 * time.Hour), false},
	} {
		cfg, err := edge.LoadClientTLS(at("node-1.crt"), at("node-1.key"), at("ca.crt"), func() time.Time { return c.clock })
		if err != nil {
			t.Fatal(err)
		}
		cfg.ServerName = "localhost"
		a, b := net.Pipe()
		go func() {
			s := tls.Server(b, &tls.Config{Certificates: []tls.Certificate{hub}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert})
			s.Handshake()
			s.Close()
		}()
		a.SetDeadline(time.Now().Add(5 * time.Second))
		if err := tls.Client(a, cfg).Handshake(); (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
		a.Close()
	}
}
