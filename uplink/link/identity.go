package link

import (
	"crypto/tls"
	"errors"
	"fmt"

	"tailrace/uplink/pki"
)

// nodeOf is the node id that a verified client certificate proves.
func nodeOf(cs tls.ConnectionState) (string, error) {
	if len(cs.PeerCertificates) == 0 {
		return "", errors.New("no client certificate")
	}
	return pki.NodeOf(cs.PeerCertificates[0])
}

// verifyHub refuses a server whose certificate was issued for a node or a device.
func verifyHub(then func(tls.ConnectionState) error) func(tls.ConnectionState) error {
	return func(cs tls.ConnectionState) error {
		if len(cs.PeerCertificates) == 0 {
			return errors.New("no hub certificate")
		}
		if role, name := pki.Identity(cs.PeerCertificates[0]); role != "" && role != pki.RoleHub {
			return fmt.Errorf("the certificate of %q is for a %s, not for a hub", name, role)
		}
		if then != nil {
			return then(cs)
		}
		return nil
	}
}
