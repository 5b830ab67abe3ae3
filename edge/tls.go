package edge

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"runtime/debug"
	"sync/atomic"
	"time"

	"tailrace/uplink/pki"
)

func (t *ServerTLS) load() (*tls.Config, error) {
	pair, err := tls.LoadX509KeyPair(t.Cert, t.Key)
	if err != nil {
		return nil, fmt.Errorf("load certificate %s with key %s: %w", t.Cert, t.Key, err)
	}
	c := &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}
	if t.ClientCA != "" {
		if c.ClientCAs, err = loadPool(t.ClientCA); err != nil {
			return nil, err
		}
		c.ClientAuth = tls.VerifyClientCertIfGiven
		if t.RequireClientCert {
			c.ClientAuth = tls.RequireAndVerifyClientCert
		}
	}
	return c, nil
}

// liveTLS is the TLS of a listener, whose files can be read again while it listens.
type liveTLS struct {
	files   *ServerTLS
	current atomic.Pointer[tls.Config]
}

func newLiveTLS(files *ServerTLS) (*liveTLS, error) {
	l := &liveTLS{files: files}
	return l, l.reload()
}

// reload leaves the old certificate in use when the files cannot be read. Connections
// stay; session tickets of before are not taken any more.
func (l *liveTLS) reload() error {
	c, err := l.files.load()
	if err == nil {
		l.current.Store(c)
	}
	return err
}

func (l *liveTLS) config() *tls.Config {
	c := l.current.Load().Clone()
	c.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { return l.current.Load(), nil }
	return c
}

// load reads the files; now is the clock that certificates are checked against. A
// board without a battery boots in 1970, and then every certificate is "not yet
// valid": the clock is taken to be no earlier than the beginning of our own
// certificate, than this program, and (see Node.open) than the last time that was
// known. It is never turned back, so an expired one stays expired.
func (t *ClientTLS) load(now func() time.Time) (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: t.ServerName, Time: now}
	if t.Cert != "" {
		pair, err := tls.LoadX509KeyPair(t.Cert, t.Key)
		if err != nil {
			return nil, fmt.Errorf("load certificate %s with key %s: %w", t.Cert, t.Key, err)
		}
		c.Certificates = []tls.Certificate{pair}
		if pair.Leaf != nil {
			floor := later(pair.Leaf.NotBefore, buildTime())
			c.Time = func() time.Time { return later(now(), floor) }
		}
	}
	if t.CA != "" {
		var err error
		if c.RootCAs, err = loadPool(t.CA); err != nil {
			return nil, err
		}
	}
	return c, nil
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// buildTime is when the source of this program was committed, zero when unknown.
func buildTime() time.Time {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return time.Time{}
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.time" {
			t, _ := time.Parse(time.RFC3339, s.Value)
			return t
		}
	}
	return time.Time{}
}

func loadPool(file string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read CA: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("read CA %s: no PEM certificate in the file", file)
	}
	return pool, nil
}

// loadUplink loads the node's certificate and checks that it carries the node's id:
// the hub would refuse it, and say so only in its own log.
func (c Config) loadUplink() (*tls.Config, error) {
	t, err := c.Uplink.TLS.load(c.Now)
	if err != nil {
		return nil, err
	}
	leaf := t.Certificates[0].Leaf
	if leaf == nil {
		return t, nil
	}
	switch role, name := pki.Identity(leaf); {
	case name != c.Node:
		return nil, fmt.Errorf("certificate %s is of %q and node is %q: the hub knows a node by its certificate", c.Uplink.TLS.Cert, name, c.Node)
	case role != "" && role != pki.RoleNode:
		return nil, fmt.Errorf("certificate %s is of a %s, not of a node", c.Uplink.TLS.Cert, role)
	}
	return t, nil
}
