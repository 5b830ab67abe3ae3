package hub_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl/scram"

	"tailrace/uplink/hub"
	"tailrace/uplink/hub/kafka/access"
)

// The configuration's users and rules hold over TLS, and a file with a fault
// keeps the hub from starting.
func TestKafkaUsersAndRules(t *testing.T) {
	dir := certs(t)
	c := hubConfig(t, dir)
	write := func(name, text string) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	line, err := access.Line("ann", "secret")
	if err != nil {
		t.Fatal(err)
	}
	c.Kafka.Cert, c.Kafka.Key = dir+"/hub.crt", dir+"/hub.key"
	c.Kafka.UsersFile, c.Kafka.RulesFile = write("users", line+"\n"), write("rules", "ann describe,read *\n")
	for _, bad := range []func(*hub.Config){
		func(c *hub.Config) { c.Kafka.UsersFile = write("bad-users", "ann:secret\n") },
		func(c *hub.Config) { c.Kafka.RulesFile = write("bad-rules", "ann everything *\n") },
		func(c *hub.Config) { c.Kafka.UsersFile = dir + "/absent" },
	} {
		cc := c
		bad(&cc)
		if h, err := hub.New(cc); err == nil {
			h.Close()
			t.Errorf("a hub starts with %q, %q", cc.Kafka.UsersFile, cc.Kafka.RulesFile)
		}
	}
	h, _, stop := startHub(t, c)
	defer stop()
	_, _, addr := h.Addrs()
	pem, err := os.ReadFile(dir + "/ca.crt")
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	client := func(password string) *kgo.Client {
		cl, err := kgo.NewClient(kgo.SeedBrokers(addr), kgo.DialTLSConfig(&tls.Config{RootCAs: pool}), kgo.SASL(scram.Auth{User: "ann", Pass: password}.AsSha512Mechanism()))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(cl.Close)
		return cl
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	adm := kadm.NewClient(client("secret"))
	if ts, err := adm.ListTopics(ctx); err != nil || !ts.Has("__tailrace_loss") {
		t.Errorf("list: %v %v", ts.Names(), err)
	}
	if _, err := adm.CreateTopic(ctx, 1, 1, nil, "new"); !errors.Is(err, kerr.TopicAuthorizationFailed) {
		t.Errorf("create: %v", err)
	}
	if err := client("guess").Ping(ctx); !errors.Is(err, kerr.SaslAuthenticationFailed) {
		t.Errorf("wrong password: %v", err)
	}
}
