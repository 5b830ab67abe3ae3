package link

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"time"
)

// verifyAt checks the hub's certificates as crypto/tls does (chain, name, use as a
// server), but at a time that depends on them: a node that does not know the time can only
// ask whether there is a time at which all of them are valid and which may be now.
// crypto/tls asks for the time before it shows the chain; that is why its own check is
// switched off where this one is used, and why this one runs in VerifyConnection, which
// resumed sessions pass, too.
func verifyAt(at func(chain []*x509.Certificate) time.Time, roots *x509.CertPool, name string, then func(tls.ConnectionState) error) func(tls.ConnectionState) error {
	return func(cs tls.ConnectionState) error {
		chain := cs.PeerCertificates
		if len(chain) == 0 || name == "" {
			return errors.New("no hub certificate, or no name to look for in it")
		}
		opts := x509.VerifyOptions{Roots: roots, Intermediates: x509.NewCertPool(), DNSName: name, CurrentTime: at(chain)}
		for _, c := range chain[1:] {
			opts.Intermediates.AddCert(c)
		}
		if _, err := chain[0].Verify(opts); err != nil {
			return &tls.CertificateVerificationError{UnverifiedCertificates: chain, Err: err}
		}
		return then(cs)
	}
}
