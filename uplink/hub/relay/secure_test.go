package relay

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/sasl/plain"

	"tailrace/storage/record"
	"tailrace/uplink/hub/relay/kafkatest"
)

// acls are all that a hub may do; deploy/hub.kafka.example.yaml lists them.
func acls(name, user string) []kmsg.CreateACLsRequestCreation {
	one := func(kind kmsg.ACLResourceType, resource string, pattern kmsg.ACLResourcePatternType, ops ...kmsg.ACLOperation) (out []kmsg.CreateACLsRequestCreation) {
		for _, op := range ops {
			c := kmsg.NewCreateACLsRequestCreation()
			c.ResourceType, c.ResourceName, c.ResourcePatternType = kind, resource, pattern
			c.Principal, c.Host, c.Operation, c.PermissionType = "User:"+user, "*", op, kmsg.ACLPermissionTypeAllow
			out = append(out, c)
		}
		return out
	}
	all := one(kmsg.ACLResourceTypeTopic, "wind", kmsg.ACLResourcePatternTypePrefixed, kmsg.ACLOperationCreate, kmsg.ACLOperationDescribe, kmsg.ACLOperationRead, kmsg.ACLOperationWrite, kmsg.ACLOperationDescribeConfigs)
	all = append(all, one(kmsg.ACLResourceTypeTopic, "__"+name+"_", kmsg.ACLResourcePatternTypePrefixed,
		kmsg.ACLOperationCreate, kmsg.ACLOperationDescribe, kmsg.ACLOperationRead, kmsg.ACLOperationWrite, kmsg.ACLOperationDescribeConfigs)...)
	all = append(all, one(kmsg.ACLResourceTypeGroup, name+"-hubs", kmsg.ACLResourcePatternTypeLiteral, kmsg.ACLOperationRead, kmsg.ACLOperationDescribe)...)
	return append(all, one(kmsg.ACLResourceTypeTransactionalId, name+"-shard-", kmsg.ACLResourcePatternTypePrefixed, kmsg.ACLOperationDescribe, kmsg.ACLOperationWrite)...)
}

// TestTLSAndLoginWithFewRights: a cluster that speaks TLS, wants a password, and allows the
// hub what it needs and nothing else. A topic that it may not write holds up nothing.
func TestTLSAndLoginWithFewRights(t *testing.T) {
	if testing.Short() {
		t.Skip("a real cluster runs in the long form")
	}
	dir := t.TempDir()
	keystore, pool, client := certificate(t, dir)
	conf := &tls.Config{RootCAs: pool}
	login := func(user string) []kgo.Opt {
		return []kgo.Opt{kgo.DialTLSConfig(conf), kgo.SASL(plain.Auth{User: user, Pass: user + "-secret"}.AsMechanism())}
	}
	k, err := kafkatest.Start(context.Background(), kafkatest.Options{Dir: filepath.Join(dir, "kafka"), Brokers: 1, Protocol: "SASL_SSL", Also: "SSL", Client: login("admin"),
		Properties: []string{"ssl.keystore.type=PEM", "ssl.keystore.location=" + keystore, "listener.name.client.sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512",
			"listener.name.client.scram-sha-256.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;",
			"listener.name.client.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;",
			"listener.name.also.ssl.client.auth=required", "ssl.truststore.type=PEM", "ssl.truststore.location=" + filepath.Join(dir, "ca.pem"),
			`listener.name.client.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required user_admin="admin-secret" user_hub="hub-secret";`,
			"authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer", "super.users=User:ANONYMOUS;User:admin"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.Close)
	admin, err := kgo.NewClient(append(login("admin"), kgo.SeedBrokers(k.Addrs...))...)
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	f := &fleet{t: t, c: k, Config: Config{Brokers: k.Addrs, Name: "fleet", Shards: 2, Replication: 1, Outage: time.Hour, Linger: 10 * time.Millisecond, TLS: conf,
		SASL: SASL{Mechanism: "PLAIN", User: "hub", Password: "wrong"}, Topics: []TopicRule{{Match: "*"}}, LossRow: func(Loss) []byte { return nil }}}
	if r, err := Open(within(t), f.Config); err == nil || !strings.Contains(err.Error(), "SASL") {
		t.Errorf("a wrong password: %v", err)
		r.Close()
	}
	f.SASL.Password = "hub-secret"
	if r, err := Open(within(t), f.Config); err == nil || !strings.Contains(err.Error(), "AUTHORIZATION_FAILED") {
		t.Errorf("without rights: %v", err)
		r.Close()
	}
	req := kmsg.NewPtrCreateACLsRequest()
	req.Creations = append(acls("fleet", "hub"), acls("fleet", "CN=hub")...)
	resp, err := req.RequestWith(within(t), admin)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range resp.Results {
		if r.ErrorCode != 0 {
			t.Fatal("acl", r.ErrorCode, *r.ErrorMessage)
		}
	}
	r := f.all(f.open())
	o, forbidden := f.origin(1), f.origin(1)
	o.Topic, forbidden.Topic = "wind", "press"
	f.adopt(r, o)
	if held := f.mustAppend(r, o, batch(o, 0, 10)); held.Count() != 10 {
		t.Errorf("held %s", held)
	}
	if owner, err := r.Owner(within(t), r.Shard(o.Node)); err != nil {
		t.Errorf("owner %q: %v", owner, err)
	}
	// Another has made the topic, and the hub may look at it only.
	if rs, err := kadm.NewClient(admin).CreateTopics(within(t), 2, 1, nil, "press"); err != nil || rs.Error() != nil {
		t.Fatal(err, rs.Error())
	}
	req.Creations = nil
	for _, op := range []kmsg.ACLOperation{kmsg.ACLOperationDescribe, kmsg.ACLOperationDescribeConfigs} {
		c := kmsg.NewCreateACLsRequestCreation()
		c.ResourceType, c.ResourceName, c.ResourcePatternType = kmsg.ACLResourceTypeTopic, "press", kmsg.ACLResourcePatternTypeLiteral
		c.Principal, c.Host, c.Operation, c.PermissionType = "User:hub", "*", op, kmsg.ACLPermissionTypeAllow
		req.Creations = append(req.Creations, c)
	}
	if _, err := req.RequestWith(within(t), admin); err != nil {
		t.Fatal(err)
	}
	f.until("the topic is refused", func() bool {
		_, err := appendTo(within(t), r, forbidden, batch(forbidden, 0, 10))
		r.Resume(o.Node)
		return err != nil && strings.Contains(err.Error(), "TOPIC_AUTHORIZATION_FAILED: ")
	})
	if held := f.mustAppend(r, o, batch(o, 10, 30)); held.Count() != 30 {
		t.Errorf("held %s behind a topic that is refused", held)
	}
	// It is listed with the others, without what only a reader knows.
	if at, err := r.LastTime(within(t), "press", 0, 0, 1); at != -1 || err != nil {
		t.Errorf("the last time of a topic that may not be read: %d, %v", at, err)
	}
	// With Read on the topic, what replay and the API do.
	ends, err := r.Offsets(within(t), []string{"wind"}, AtStable)
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for n, p := range ends["wind"] {
		for from := int64(0); from < p.Offset; {
			var out []byte
			if out, from, err = r.Fetch(within(t), nil, "wind", int32(n), from, p.Offset, 1<<20); err != nil {
				t.Fatal(err)
			}
			for len(out) > 0 {
				b, rest, err := record.Next(out)
				if err != nil {
					t.Fatal(err)
				}
				found, out = found+b.Count(), rest
			}
		}
	}
	if found != 30 {
		t.Errorf("%d records are read, want 30", found)
	}
	if err := r.Produce(within(t), "wind", []Post{{Value: []byte("posted")}}); err != nil {
		t.Errorf("a record of the API: %v", err)
	}
	r.Close()

	// The other logins: each takes over from the one before it, and goes on.
	at := int64(30)
	goesOn := func(what string) {
		t.Helper()
		r := f.all(f.open())
		at += 10
		if held := f.mustAppend(r, o, batch(o, at-10, at)); held.Count() != at {
			t.Errorf("%s: held %s", what, held)
		}
		r.Close()
	}
	for i, m := range []kadm.ScramMechanism{kadm.ScramSha256, kadm.ScramSha512} {
		f.SASL = SASL{Mechanism: []string{"SCRAM-SHA-256", "SCRAM-SHA-512"}[i], User: "hub", Password: "scram-secret"}
		if r, err := Open(within(t), f.Config); err == nil || !strings.Contains(err.Error(), "SASL") {
			t.Errorf("%s that nobody has set up: %v", f.SASL.Mechanism, err)
			r.Close()
		}
		if rs, err := kadm.NewClient(admin).AlterUserSCRAMs(within(t), nil, []kadm.UpsertSCRAM{{User: "hub", Mechanism: m, Iterations: 4096, Password: "scram-secret"}}); err != nil || rs.Error() != nil {
			t.Fatal(err, rs.Error())
		}
		f.until("the broker knows the password", func() bool {
			r, err := Open(within(t), f.Config)
			if err == nil {
				r.Close()
			}
			return err == nil
		})
		goesOn(f.SASL.Mechanism)
	}
	// Mutual TLS, and no password: the certificate's name has the rights.
	f.SASL, f.Brokers = SASL{}, k.Also
	short, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if r, err := Open(short, f.Config); err == nil {
		t.Error("without a certificate the hub is let in")
		r.Close()
	}
	f.TLS = &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{client}}
	goesOn("mutual TLS")
}

// certificate makes a key store for a broker on loopback, and who trusts it.
func certificate(t *testing.T, dir string) (file string, pool *x509.CertPool, client tls.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "broker"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	pk, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	file = filepath.Join(dir, "broker.pem")
	if err := os.WriteFile(file, append(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pk}), cert...), 0o600); err != nil {
		t.Fatal(err)
	}
	pool = x509.NewCertPool()
	pool.AppendCertsFromPEM(cert)
	if err := os.WriteFile(filepath.Join(dir, "ca.pem"), cert, 0o600); err != nil {
		t.Fatal(err)
	}
	hubKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	hub := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "hub"}, NotBefore: tmpl.NotBefore, NotAfter: tmpl.NotAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	hubDER, err := x509.CreateCertificate(rand.Reader, hub, tmpl, &hubKey.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return file, pool, tls.Certificate{Certificate: [][]byte{hubDER}, PrivateKey: hubKey}
}
