package pki_test

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"testing"
	"time"

	"tailrace/uplink/pki"
)

var now = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)

func parse(t *testing.T, p pki.Pair) *x509.Certificate {
	t.Helper()
	if _, err := tls.X509KeyPair(p.Cert, p.Key); err != nil {
		t.Fatalf("pair does not fit: %v", err)
	}
	b, _ := pem.Decode(p.Cert)
	c, err := x509.ParseCertificate(b.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestRolesDoNotPassForEachOther(t *testing.T) {
	_, caPair, err := pki.NewCA(rand.Reader, "test CA", now, 10*365*24*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	ca, err := pki.LoadCA(caPair) // what is loaded signs as what was made
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(caPair.Cert)
	for _, tc := range []struct {
		role           pki.Role
		client, server bool
	}{
		{pki.RoleHub, false, true},
		{pki.RoleNode, true, true},
		{pki.RoleDevice, true, false},
	} {
		p, err := ca.Issue(rand.Reader, tc.role, "wtg-07", []string{"localhost", "127.0.0.1"}, now, 24*time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		c := parse(t, p)
		if role, name := pki.Identity(c); role != tc.role || name != "wtg-07" {
			t.Errorf("identity = %s %s, want %s wtg-07", role, name, tc.role)
		}
		for use, want := range map[x509.ExtKeyUsage]bool{x509.ExtKeyUsageClientAuth: tc.client, x509.ExtKeyUsageServerAuth: tc.server} {
			_, err := c.Verify(x509.VerifyOptions{Roots: pool, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{use}})
			if (err == nil) != want {
				t.Errorf("%s for usage %d: %v, want accepted = %v", tc.role, use, err, want)
			}
		}
		if err := c.VerifyHostname("127.0.0.1"); err != nil {
			t.Error(err)
		}
		if _, err := c.Verify(x509.VerifyOptions{Roots: pool, CurrentTime: now.Add(25 * time.Hour), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err == nil {
			t.Error("accepted after its end")
		}
	}
}

func TestNamesThatWouldEscapeAreRefused(t *testing.T) {
	for _, bad := range []string{"", ".", "a/b", "../x", "-a", "a ", "ä", string(make([]byte, 65))} {
		if pki.ValidName(bad) == nil {
			t.Errorf("%q accepted", bad)
		}
	}
	for _, good := range []string{"a", "node-1", "WTG_07.site", "x9"} {
		if err := pki.ValidName(good); err != nil {
			t.Error(err)
		}
	}
}

func TestForeignKeyIsNotACA(t *testing.T) {
	_, a, _ := pki.NewCA(rand.Reader, "a", now, time.Hour)
	_, b, _ := pki.NewCA(rand.Reader, "b", now, time.Hour)
	if _, err := pki.LoadCA(pki.Pair{Cert: a.Cert, Key: b.Key}); err == nil {
		t.Error("key of another CA accepted")
	}
	if _, err := pki.LoadCA(pki.Pair{Cert: []byte("x"), Key: []byte("y")}); err == nil {
		t.Error("garbage accepted")
	}
}
