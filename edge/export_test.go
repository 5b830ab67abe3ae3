package edge

import (
	"crypto/tls"
	"crypto/x509"
	"net/netip"
	"time"

	"tailrace/edge/auth"
	"tailrace/edge/mqtt"
	"tailrace/storage"
	"tailrace/uplink/link"
	"tailrace/uplink/wire"
)

// What the tests of package edge_test need beyond the public face.

func (n *Node) Backend() mqtt.Backend { return n.ingest }

func (n *Node) Source() link.Source { return n.source }

func (n *Node) AckedOffset(p *storage.Partition) int64 { return n.source.ackedOffset(p) }

func (n *Node) Welcomed(w wire.Welcome) error { return n.source.welcomed(w) }

func (n *Node) Healthy() bool { return n.healthy() }

type Authenticator struct{ a *authenticator }

func NewAuthenticator(c AuthConfig, now func() time.Time) (Authenticator, error) {
	a, err := newAuthenticator(c.withDefaults(), now)
	return Authenticator{a}, err
}

func (a Authenticator) Login(user string, password []byte, cert *x509.Certificate) (string, error) {
	return a.LoginFrom(user, password, cert, netip.MustParseAddr("127.0.0.1"))
}

func (a Authenticator) LoginFrom(user string, password []byte, cert *x509.Certificate, from netip.Addr) (string, error) {
	id, _, err := a.a.login(user, password, cert, from)
	return id, err
}

func (a Authenticator) May(identity, client, topic string) bool {
	return a.a.may(identity, client, auth.Publish, topic)
}

func (a Authenticator) Hashes() int64 { return a.a.hashes.Load() }

func (a Authenticator) HashesAtOnce() int64 { return a.a.hashPeak.Load() }

func (a Authenticator) Reload(force bool) (bool, error) { return a.a.reload(force) }

func DetectMedium(sys string, major, minor uint32) (device, kind string, interval time.Duration, sectors int64) {
	m := detectMedium(sys, major, minor)
	s, ok := m.sectorsWritten(sys)
	if !ok {
		s = -1
	}
	return m.Device, m.Kind, m.commitInterval(), s
}

func Span(epochs []storage.Epoch, i int, p *storage.Partition) (from, to int64) {
	return span(epochs, i, p)
}

func LoadClientTLS(cert, key, ca string, now func() time.Time) (*tls.Config, error) {
	t := ClientTLS{Cert: cert, Key: key, CA: ca}
	return t.load(now)
}
