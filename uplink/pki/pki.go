// Package pki is the small certificate authority of a Tailrace installation: one
// CA, server certificates for hubs, client certificates for nodes and devices,
// all ECDSA P-256, made with crypto/x509 only.
//
// A node's id is the name in its certificate: the subject's common name, repeated
// as the URI tailrace://node/<id>, so that a hub certificate can never pass for a
// node and a node for a hub.
//
// Nothing here keeps state: callers pass time and randomness, and get PEM back.
package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/url"
	"regexp"
	"time"
)

// Role is what a certificate may be used for.
type Role string

const (
	RoleHub    Role = "hub"    // server on the uplink, HTTP and Kafka listeners
	RoleNode   Role = "node"   // client on the uplink, server for its devices
	RoleDevice Role = "device" // client of a node's MQTT listener
)

// backdate allows for a peer whose clock is somewhat slow.
const backdate = time.Hour

var validName = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]{0,62}[A-Za-z0-9])?$`)

// ValidName says whether id may be a node id: 1 to 64 letters, digits, dots,
// underscores and hyphens, beginning and ending with a letter or digit. It ends up
// in file names, topic labels and certificates.
func ValidName(id string) error {
	if !validName.MatchString(id) {
		return fmt.Errorf("name %q: use 1 to 64 letters, digits, '.', '_' or '-', starting and ending with a letter or digit", id)
	}
	return nil
}

// Pair is a certificate and its private key, both PEM.
type Pair struct {
	Cert []byte
	Key  []byte // PKCS #8
}

// CA signs certificates.
type CA struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// NewCA makes a CA valid from an hour before now for the given time.
func NewCA(rand io.Reader, name string, now time.Time, valid time.Duration) (*CA, Pair, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand)
	if err != nil {
		return nil, Pair{}, fmt.Errorf("make CA key: %w", err)
	}
	serial, err := serialNumber(rand)
	if err != nil {
		return nil, Pair{}, err
	}
	tmpl := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: name, Organization: []string{"Tailrace"}},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(valid),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	der, err := x509.CreateCertificate(rand, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return nil, Pair{}, fmt.Errorf("sign CA certificate: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, Pair{}, fmt.Errorf("parse own CA certificate: %w", err)
	}
	pair, err := encode(der, key)
	return &CA{cert: cert, key: key}, pair, err
}

// LoadCA reads a CA made by NewCA.
func LoadCA(p Pair) (*CA, error) {
	cb, _ := pem.Decode(p.Cert)
	kb, _ := pem.Decode(p.Key)
	if cb == nil || kb == nil {
		return nil, errors.New("load CA: no PEM block in the certificate or the key")
	}
	cert, err := x509.ParseCertificate(cb.Bytes)
	if err != nil {
		return nil, fmt.Errorf("load CA certificate: %w", err)
	}
	k, err := x509.ParsePKCS8PrivateKey(kb.Bytes)
	if err != nil {
		return nil, fmt.Errorf("load CA key: %w", err)
	}
	key, ok := k.(*ecdsa.PrivateKey)
	if !ok || !key.PublicKey.Equal(cert.PublicKey) {
		return nil, errors.New("load CA: the key does not belong to the certificate")
	}
	if !cert.IsCA {
		return nil, errors.New("load CA: the certificate is not a CA's")
	}
	return &CA{cert: cert, key: key}, nil
}

// Issue makes a key and a certificate for name in the given role. Hosts are the
// DNS names and IP addresses under which a hub or node is reached.
func (ca *CA) Issue(rand io.Reader, role Role, name string, hosts []string, now time.Time, valid time.Duration) (Pair, error) {
	if err := ValidName(name); err != nil {
		return Pair{}, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand)
	if err != nil {
		return Pair{}, fmt.Errorf("make key of %s: %w", name, err)
	}
	serial, err := serialNumber(rand)
	if err != nil {
		return Pair{}, err
	}
	tmpl := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: name, Organization: []string{"Tailrace"}},
		NotBefore:    now.Add(-backdate),
		NotAfter:     now.Add(valid),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		URIs:         []*url.URL{{Scheme: "tailrace", Host: string(role), Path: "/" + name}},
	}
	switch role {
	case RoleHub:
		tmpl.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	case RoleNode:
		tmpl.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}
	case RoleDevice:
		tmpl.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	default:
		return Pair{}, fmt.Errorf("issue certificate of %s: unknown role %q", name, role)
	}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			tmpl.IPAddresses = append(tmpl.IPAddresses, ip)
		} else {
			tmpl.DNSNames = append(tmpl.DNSNames, h)
		}
	}
	if tmpl.NotAfter.After(ca.cert.NotAfter) {
		tmpl.NotAfter = ca.cert.NotAfter
	}
	der, err := x509.CreateCertificate(rand, tmpl, ca.cert, key.Public(), ca.key)
	if err != nil {
		return Pair{}, fmt.Errorf("sign certificate of %s: %w", name, err)
	}
	return encode(der, key)
}

// Identity returns role and name of a certificate that Issue made. A certificate
// without the tailrace URI, as another CA may issue it, has no role and the common
// name as its name.
func Identity(c *x509.Certificate) (Role, string) {
	for _, u := range c.URIs {
		if u.Scheme == "tailrace" && len(u.Path) > 1 {
			return Role(u.Host), u.Path[1:]
		}
	}
	return "", c.Subject.CommonName
}

// NodeOf is the node id that a verified client certificate proves: the name in its
// tailrace://node/ URI, or, from another authority, its common name.
func NodeOf(c *x509.Certificate) (string, error) {
	role, name := Identity(c)
	if role != "" && role != RoleNode {
		return "", fmt.Errorf("the certificate of %q is for a %s, not for a node", name, role)
	}
	return name, ValidName(name)
}

func serialNumber(rand io.Reader) (*big.Int, error) {
	var b [16]byte
	if _, err := io.ReadFull(rand, b[:]); err != nil {
		return nil, fmt.Errorf("draw serial number: %w", err)
	}
	b[0] &= 0x7f // positive (RFC 5280, 4.1.2.2)
	b[15] |= 1   // not zero
	return new(big.Int).SetBytes(b[:]), nil
}

func encode(der []byte, key *ecdsa.PrivateKey) (Pair, error) {
	kd, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return Pair{}, fmt.Errorf("encode key: %w", err)
	}
	return Pair{
		Cert: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		Key:  pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: kd}),
	}, nil
}
