package kafka_test

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/sasl"
	"github.com/twmb/franz-go/pkg/sasl/plain"
	"github.com/twmb/franz-go/pkg/sasl/scram"

	"tailrace/uplink/hub/kafka"
	"tailrace/uplink/hub/kafka/access"
	"tailrace/uplink/pki"
)

// pass is what a test's users log in with.
func pass(user string) string { return "pass of " + user }

// usersFile writes users with their passwords.
func usersFile(t testing.TB, names ...string) string {
	t.Helper()
	var b strings.Builder
	for _, n := range names {
		l, err := access.Line(n, pass(n))
		if err != nil {
			t.Fatal(err)
		}
		b.WriteString(l + "\n")
	}
	return writeFile(t, "users", b.String())
}

func writeFile(t testing.TB, name, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// secured asks for a login of one of these users and holds to the rules.
func secured(t testing.TB, rules string, users ...string) func(*kafka.Config) {
	t.Helper()
	u, err := access.LoadUsers(usersFile(t, users...), nil)
	if err != nil {
		t.Fatal(err)
	}
	r, err := access.LoadRules(writeFile(t, "rules", rules), nil)
	if err != nil {
		t.Fatal(err)
	}
	return func(c *kafka.Config) {
		c.Users = u
		c.Authorize = func(p kafka.Peer, op kafka.Operation, name string) bool { return r.Allow(p.User, string(op), name) }
	}
}

func mechanisms(user, password string) map[string]sasl.Mechanism {
	return map[string]sasl.Mechanism{
		access.Plain:       plain.Auth{User: user, Pass: password}.AsMechanism(),
		access.ScramSHA256: scram.Auth{User: user, Pass: password}.AsSha256Mechanism(),
		access.ScramSHA512: scram.Auth{User: user, Pass: password}.AsSha512Mechanism(),
	}
}

func TestSaslLogin(t *testing.T) {
	h := newHub(t, secured(t, "ann all *\n", "ann", "bob"))
	h.fill(h.topic("wind", 1).Partition(0), 0, 10, 10, false)
	ctx := withTimeout(t)
	for name, m := range mechanisms("ann", pass("ann")) {
		if n := len(poll(t, h.client(kgo.SASL(m), kgo.ConsumeTopics("wind")), 10)); n != 10 {
			t.Errorf("%s: %d records", name, n)
		}
	}
	for name, m := range mechanisms("ann", "wrong") {
		if err := h.client(kgo.SASL(m)).Ping(ctx); !errors.Is(err, kerr.SaslAuthenticationFailed) {
			t.Errorf("%s with a wrong password: %v", name, err)
		}
	}
	// Who has not logged in is served nothing.
	for key, vs := range kafka.Versions() {
		if key == 17 || key == 18 || key == 36 {
			continue
		}
		r := h.raw()
		req := sample(key, vs[1], [16]byte{})
		req.SetVersion(vs[1])
		r.send(req)
		r.closed("before a login: " + kmsg.NameForKey(key))
	}
	r := h.raw()
	hs := kmsg.NewPtrSASLHandshakeRequest()
	hs.Mechanism = "GSSAPI"
	if got := ask[*kmsg.SASLHandshakeResponse](r, hs, 1); got.ErrorCode != kerr.UnsupportedSaslMechanism.Code || len(got.SupportedMechanisms) != 3 {
		t.Errorf("%+v", got)
	}
	hs.Mechanism = "PLAIN"
	if got := ask[*kmsg.SASLHandshakeResponse](r, hs, 0); got.ErrorCode != kerr.UnsupportedVersion.Code {
		t.Errorf("%+v", got)
	}
	auth := kmsg.NewPtrSASLAuthenticateRequest()
	auth.SASLAuthBytes = []byte("\x00ann\x00" + pass("ann"))
	for v := range kafka.Versions()[36][1] + 1 { // not without a handshake before it
		if got := ask[*kmsg.SASLAuthenticateResponse](r, auth, v); got.ErrorCode != kerr.IllegalSaslState.Code {
			t.Errorf("v%d: %+v", v, got)
		}
	}
	for v := range kafka.Versions()[36][1] + 1 {
		r := h.raw()
		ask[*kmsg.SASLHandshakeResponse](r, hs, 1)
		if got := ask[*kmsg.SASLAuthenticateResponse](r, auth, v); got.ErrorCode != 0 {
			t.Errorf("v%d: %+v", v, got)
		}
		ask[*kmsg.MetadataResponse](r, kmsg.NewPtrMetadataRequest(), 9)
	}
	// A failure ends the connection after its answer.
	ask[*kmsg.SASLHandshakeResponse](r, hs, 1)
	auth.SASLAuthBytes = []byte("\x00ann\x00guess")
	if got := ask[*kmsg.SASLAuthenticateResponse](r, auth, 2); got.ErrorCode != kerr.SaslAuthenticationFailed.Code || strings.Contains(*got.ErrorMessage, "ann") {
		t.Errorf("%+v", got)
	}
	r.closed("after a wrong password")
}

func TestSilentStrangerLosesItsConnection(t *testing.T) {
	h := newHub(t, secured(t, "", "ann"), func(c *kafka.Config) { c.TransferTimeout = 200 * time.Millisecond })
	h.raw().closed("without a login")
}

func TestRulesOfTopicsAndGroups(t *testing.T) {
	h := newHub(t, secured(t, `
reader  read        wind
reader  group       reports-*
writer  write       wind
admin   all         *
`, "reader", "writer", "admin"))
	h.fill(h.topic("wind", 1).Partition(0), 0, 10, 10, false)
	h.fill(h.topic("press", 1).Partition(0), 0, 10, 10, false)
	ctx := withTimeout(t)
	as := func(user string, opts ...kgo.Opt) *kgo.Client {
		return h.client(append(opts, kgo.SASL(scram.Auth{User: user, Pass: pass(user)}.AsSha256Mechanism()))...)
	}
	if n := len(poll(t, as("reader", kgo.ConsumeTopics("wind"), kgo.ConsumerGroup("reports-1")), 10)); n != 10 {
		t.Fatal(n)
	}
	denied := func(what string, err error, want error) {
		t.Helper()
		if !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", what, err, want)
		}
	}
	firstErr := func(cl *kgo.Client) error {
		for _, e := range cl.PollFetches(ctx).Errors() {
			return e.Err
		}
		return nil
	}
	denied("reader reads press", firstErr(as("reader", kgo.ConsumeTopics("press"))), kerr.TopicAuthorizationFailed)
	denied("reader in another group", firstErr(as("reader", kgo.ConsumeTopics("wind"), kgo.ConsumerGroup("other"))), kerr.GroupAuthorizationFailed)
	denied("reader writes", as("reader").ProduceSync(ctx, &kgo.Record{Topic: "wind"}).FirstErr(), kerr.TopicAuthorizationFailed)
	denied("writer reads", firstErr(as("writer", kgo.ConsumeTopics("wind"))), kerr.TopicAuthorizationFailed)
	denied("writer writes", as("writer").ProduceSync(ctx, &kgo.Record{Topic: "wind", Value: []byte("v")}).FirstErr(), nil)
	adm := kadm.NewClient(as("reader"))
	topics, err := adm.ListTopics(ctx)
	if err != nil || len(topics) != 1 {
		t.Errorf("reader sees %v %v", topics.Names(), err)
	}
	_, err = adm.CreateTopic(ctx, 1, 1, nil, "new")
	denied("reader creates", err, kerr.TopicAuthorizationFailed)
	_, err = adm.DeleteTopic(ctx, "wind")
	denied("reader deletes", err, kerr.TopicAuthorizationFailed)
	if _, err := kadm.NewClient(as("admin")).CreateTopic(ctx, 1, 1, nil, "new"); err != nil {
		t.Errorf("admin creates: %v", err)
	}
}

// certs are a server's listener configuration that asks for certificates, and
// what a client of the given name connects with.
func certs(t testing.TB, name string) (server, client *tls.Config) {
	t.Helper()
	now := time.Now()
	ca, caPair, err := pki.NewCA(rand.Reader, "test", now, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(caPair.Cert)
	issue := func(role pki.Role, name string) tls.Certificate {
		p, err := ca.Issue(rand.Reader, role, name, []string{"localhost", "127.0.0.1"}, now, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		c, err := tls.X509KeyPair(p.Cert, p.Key)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	return &tls.Config{Certificates: []tls.Certificate{issue(pki.RoleHub, "hub")}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert},
		&tls.Config{RootCAs: pool, Certificates: []tls.Certificate{issue(pki.RoleNode, name)}}
}

func TestCertificateNamesTheUser(t *testing.T) {
	server, client := certs(t, "dashboard")
	r, err := access.LoadRules(writeFile(t, "rules", "node:dashboard read wind\ndashboard write wind\n"), nil)
	if err != nil {
		t.Fatal(err)
	}
	h := newHub(t, func(c *kafka.Config) {
		c.Authorize = func(p kafka.Peer, op kafka.Operation, name string) bool { return r.Allow(p.User, string(op), name) }
	})
	h.fill(h.topic("wind", 1).Partition(0), 0, 10, 10, false)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(withTimeout(t))
	done := make(chan error, 1)
	go func() { done <- h.srv.Serve(ctx, tls.NewListener(ln, server)) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	cl := h.client(kgo.SeedBrokers(ln.Addr().String()), kgo.DialTLSConfig(client), kgo.ConsumeTopics("wind"))
	if n := len(poll(t, cl, 10)); n != 10 {
		t.Fatal(n)
	}
	if err := cl.ProduceSync(ctx, &kgo.Record{Topic: "wind"}).FirstErr(); !errors.Is(err, kerr.TopicAuthorizationFailed) {
		t.Errorf("the certificate's user writes: %v", err)
	}
	cl.Close()
	stranger := client.Clone()
	stranger.Certificates = nil
	cl = h.client(kgo.SeedBrokers(ln.Addr().String()), kgo.DialTLSConfig(stranger))
	if err := cl.Ping(ctx); err == nil {
		t.Error("a client without a certificate is served")
	}
	// The plain listener of the same server knows nobody.
	if err := h.client().ProduceSync(ctx, &kgo.Record{Topic: "wind"}).FirstErr(); !errors.Is(err, kerr.TopicAuthorizationFailed) {
		t.Errorf("anonymous writes: %v", err)
	}
}
