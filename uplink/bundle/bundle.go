// Package bundle carries a range of a node's log to a hub in a file: on a USB
// stick, by mail, from a site whose link will not come back. What is in it is what
// the link would have sent, as signed blocks, and the hub takes it with the same
// exactly-once. The format is in uplink/PROTOCOL.md, "Bundles".
//
// Every block is signed with the key of the node's certificate and names, by its
// digest, the block before it. A hub can therefore store a bundle while it reads it,
// in bounded memory and without a copy of the file: what was cut off behind a good
// block is missing, never wrong, and may be brought again.
package bundle

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/fxamacker/cbor/v2"

	"tailrace/uplink/wire"
)

// Magic begins every bundle; its last byte is the version.
const Magic = "TRBUNDLE\x01"

const domain = "tailrace bundle 1\x00" // of the signatures

type kind uint8

const (
	kindHeader kind = 1 // CBOR Header, the first block
	kindData   kind = 2 // data frames of the uplink protocol, one compression context
	kindGaps   kind = 3 // a GapReport as the protocol encodes it, without length
	kindEnd    kind = 4 // CBOR Totals, the last block
)

const (
	// blockRaw is how many bytes of batches a data block holds, about.
	blockRaw = 4 << 20
	// maxBlock bounds one block in a file.
	maxBlock     = 2 * wire.MaxFrameBytes
	maxSignature = 1024
	windowBytes  = 512 << 10
	maxCerts     = 8
)

// ErrDamaged is wrapped by errors about bytes that are not, or no longer, what a node signed.
var ErrDamaged = errors.New("the bundle is damaged")

// ErrCut is returned where a bundle ends before its last block. What came before is good.
var ErrCut = errors.New("the bundle is cut off")

// Header says whose records a bundle holds, and which.
type Header struct {
	ID       wire.ID        `cbor:"1,keyasint"` // of this bundle, random
	Node     string         `cbor:"2,keyasint"`
	Created  wire.Clock     `cbor:"3,keyasint"` // the node's clock
	Software string         `cbor:"4,keyasint,omitempty"`
	Message  []byte         `cbor:"5,keyasint"`           // Inventory as the protocol encodes it
	Parts    []Part         `cbor:"6,keyasint"`           // what is in here
	Certs    [][]byte       `cbor:"7,keyasint"`           // the node's certificate chain, DER, its own first
	Store    *wire.StoreRef `cbor:"8,keyasint,omitempty"` // the hub's store that welcomed the node last

	Inventory wire.Inventory `cbor:"-"` // what the node had; frames name partition and epoch by it
}

// Part is a range of one partition.
type Part struct {
	Partition uint32   `cbor:"1,keyasint"` // PartitionInfo.ID
	From      int64    `cbor:"2,keyasint"`
	To        int64    `cbor:"3,keyasint"`
	Before    []Before `cbor:"4,keyasint,omitempty"`
}

// Before is the batch in front of a part's range within one epoch: a hub that holds
// another one there holds another log.
type Before struct {
	Epoch uint32    `cbor:"1,keyasint"` // index in the inventory
	Held  wire.Held `cbor:"2,keyasint"`
}

// Totals end a bundle.
type Totals struct {
	Records int64 `cbor:"1,keyasint"`
	Bytes   int64 `cbor:"2,keyasint"` // of batches
	Lost    int64 `cbor:"3,keyasint"` // offsets declared lost
}

var (
	encMode = func() cbor.EncMode {
		m, err := cbor.CoreDetEncOptions().EncMode()
		if err != nil {
			panic(err)
		}
		return m
	}()
	decMode = func() cbor.DecMode {
		m, err := cbor.DecOptions{DupMapKey: cbor.DupMapKeyEnforcedAPF, IndefLength: cbor.IndefLengthForbidden, TagsMd: cbor.TagsForbidden,
			MaxNestedLevels: 12, MaxArrayElements: 2*wire.MaxRanges + 16, MaxMapPairs: 256}.DecMode()
		if err != nil {
			panic(err)
		}
		return m
	}()
)

// chain is the digest of all blocks so far.
type chain [sha256.Size]byte

func (c chain) next(k kind, content []byte) chain {
	h := sha256.New()
	h.Write([]byte(domain))
	h.Write(c[:])
	h.Write([]byte{byte(k)})
	h.Write(content)
	var out chain
	h.Sum(out[:0])
	return out
}

// writer writes blocks.
type writer struct {
	w    io.Writer
	sum  chain
	sign func(digest []byte) ([]byte, error)
	head [5]byte
}

func (w *writer) block(k kind, content []byte) error {
	if len(content) > maxBlock {
		return fmt.Errorf("bundle: block of %d bytes, the limit is %d", len(content), maxBlock)
	}
	w.sum = w.sum.next(k, content)
	sig, err := w.sign(w.sum[:])
	if err != nil {
		return fmt.Errorf("sign a block: %w", err)
	}
	w.head[0] = byte(k)
	binary.BigEndian.PutUint32(w.head[1:], uint32(len(content)))
	if _, err := w.w.Write(w.head[:]); err != nil {
		return err
	}
	if _, err := w.w.Write(content); err != nil {
		return err
	}
	var n [2]byte
	binary.BigEndian.PutUint16(n[:], uint16(len(sig)))
	if _, err := w.w.Write(append(n[:], sig...)); err != nil {
		return err
	}
	return nil
}

// signer makes signatures with the key of a certificate: ECDSA and RSA over the
// digest (PKCS #1 v1.5, as X.509 does), Ed25519 over the digest as its message.
func signer(key crypto.PrivateKey, rand io.Reader) (func([]byte) ([]byte, error), error) {
	s, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("bundle: a key of type %T cannot sign", key)
	}
	opts := crypto.SignerOpts(crypto.SHA256)
	if _, ok := s.Public().(ed25519.PublicKey); ok {
		opts = crypto.Hash(0)
	}
	return func(d []byte) ([]byte, error) { return s.Sign(rand, d, opts) }, nil
}

func verify(cert *x509.Certificate, digest, sig []byte) bool {
	switch k := cert.PublicKey.(type) {
	case *ecdsa.PublicKey:
		return ecdsa.VerifyASN1(k, digest, sig)
	case ed25519.PublicKey:
		return ed25519.Verify(k, digest, sig)
	case *rsa.PublicKey:
		return rsa.VerifyPKCS1v15(k, crypto.SHA256, digest, sig) == nil
	}
	return false
}
