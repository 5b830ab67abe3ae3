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
// valid": the clock is taken to be no earlier than certFloor. It is never turned back,
// so an expired one stays expired. The uplink knows more, see Node.certTime.
func (t *ClientTLS) load(now func() time.Time) (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: t.ServerName, Time: now}
	if t.Cert != "" {
		pair, err := tls.LoadX509KeyPair(t.Cert, t.Key)
		if err != nil {
			return nil, fmt.Errorf("load certificate %s with key %s: %w", t.Cert, t.Key, err)
		}
		c.Certificates = []tls.Certificate{pair}
		if pair.Leaf != nil {
			floor := certFloor(pair.Leaf, buildTime())
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

// certFloor is a time that has passed for certain: our own certificate was made, and so
// was this program, unless that would mean that our certificate is no good any more (the
// date of a commit is what its author's machine thought).
func certFloor(own *x509.Certificate, built time.Time) time.Time {
	if own == nil {
		return built
	}
	if built.After(own.NotAfter) {
		return own.NotBefore
	}
	return later(own.NotBefore, built)
}

// certTime is the time at which the hub's certificates must be valid. While the clock is
// trusted it is now. While it is not, all that is certain is that now is not before the
// last time that was known (and certFloor): the chain is good if there is any time from
// then on at which all of it is valid, and the earliest such time is taken. So a board
// that boots in 1970, or whose clock has jumped years ahead, still finds a hub whose
// certificate is newer than all it knows; and one that was expired when the node last
// knew the time stays expired. What this gives up is told in DESIGN.md.
func (n *Node) certTime(chain []*x509.Certificate) time.Time {
	now := n.cfg.Now()
	floor := later(n.clock.floor, n.clock.known())
	if n.clock.isTrusted() {
		return later(now, floor)
	}
	t := floor
	for _, c := range chain {
		t = later(t, c.NotBefore)
	}
	if leaf := chain[0]; now.Before(leaf.NotBefore) || now.After(leaf.NotAfter) {
		n.logger.Warn("the hub's certificate is not valid by this node's clock, which is not trusted; it is checked at a time that may be now",
			"clock", now.UTC(), "checked_at", t.UTC(), "not_before", leaf.NotBefore.UTC(), "not_after", leaf.NotAfter.UTC())
	}
	return t
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
