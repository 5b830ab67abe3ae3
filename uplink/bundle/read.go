package bundle

import (
	"bytes"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	"tailrace/uplink/pki"
	"tailrace/uplink/wire"
)

// Trust says which nodes are believed.
type Trust struct {
	Roots *x509.CertPool // the CA of the nodes
	Now   time.Time
}

// Reader reads a bundle and believes nothing that its node did not sign. It holds
// one block at a time.
type Reader struct {
	Header Header
	Totals Totals // after io.EOF

	r    io.Reader
	sum  chain
	cert *x509.Certificate
	buf  []byte
	data []byte

	fr    *wire.FrameReader // of the data block that is being read
	ended bool
	seen  Totals
}

// Item is one piece of a bundle: a run of batches, or ranges that will never come.
type Item struct {
	Partition wire.PartitionInfo
	Epoch     wire.EpochInfo
	Batches   []byte // until the next call of Next
	Gaps      []wire.Gap
}

// NewReader reads and verifies the header: the certificate against trust, and that it
// is the one of the node that the header names.
func NewReader(r io.Reader, trust Trust) (*Reader, error) {
	var magic [len(Magic)]byte
	if _, err := io.ReadFull(r, magic[:]); err != nil || string(magic[:len(Magic)-1]) != Magic[:len(Magic)-1] {
		return nil, fmt.Errorf("this is no bundle (tailrace export-bundle makes them)")
	}
	if magic[len(Magic)-1] != Magic[len(Magic)-1] {
		return nil, fmt.Errorf("the bundle has version %d, this program knows %d", magic[len(Magic)-1], Magic[len(Magic)-1])
	}
	b := &Reader{r: r}
	k, content, sig, err := b.read()
	if err != nil {
		return nil, err
	}
	if k != kindHeader {
		return nil, fmt.Errorf("%w: it begins with a block of kind %d", ErrDamaged, k)
	}
	h := &b.Header
	if err := decMode.Unmarshal(content, h); err != nil {
		return nil, fmt.Errorf("%w: header: %v", ErrDamaged, err)
	}
	if err := h.check(); err != nil {
		return nil, err
	}
	if b.cert, err = trust.verify(h); err != nil {
		return nil, err
	}
	if b.sum = b.sum.next(k, content); !verify(b.cert, b.sum[:], sig) {
		return nil, fmt.Errorf("%w: its header was not signed with the key of node %s", ErrDamaged, h.Node)
	}
	return b, nil
}

func (h *Header) check() error {
	m, err := wire.Decode(h.Message)
	inv, ok := m.(*wire.Inventory)
	if err != nil || !ok {
		return fmt.Errorf("%w: header: inventory: %v", ErrDamaged, err)
	}
	h.Inventory = *inv
	if len(h.Certs) == 0 || len(h.Certs) > maxCerts || len(h.Inventory.Epochs) == 0 {
		return fmt.Errorf("%w: header with %d certificates and %d epochs", ErrDamaged, len(h.Certs), len(h.Inventory.Epochs))
	}
	seen := map[uint32]bool{}
	for _, p := range h.Parts {
		if _, ok := h.partition(p.Partition); !ok || seen[p.Partition] || p.From < 0 || p.To <= p.From {
			return fmt.Errorf("%w: header: partition %d, offsets [%d, %d)", ErrDamaged, p.Partition, p.From, p.To)
		}
		seen[p.Partition] = true
		for _, b := range p.Before {
			if int(b.Epoch) >= len(h.Inventory.Epochs) {
				return fmt.Errorf("%w: header: epoch %d", ErrDamaged, b.Epoch)
			}
		}
	}
	return nil
}

func (h *Header) partition(id uint32) (wire.PartitionInfo, bool) {
	for _, p := range h.Inventory.Partitions {
		if p.ID == id {
			return p, true
		}
	}
	return wire.PartitionInfo{}, false
}

func (h *Header) part(id uint32) (Part, bool) {
	for _, p := range h.Parts {
		if p.Partition == id {
			return p, true
		}
	}
	return Part{}, false
}

func (t Trust) verify(h *Header) (*x509.Certificate, error) {
	var leaf *x509.Certificate
	pool := x509.NewCertPool()
	for i, der := range h.Certs {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("%w: certificate: %v", ErrDamaged, err)
		}
		if i == 0 {
			leaf = c
		} else {
			pool.AddCert(c)
		}
	}
	name, err := pki.NodeOf(leaf)
	if err != nil {
		return nil, err
	}
	if name != h.Node {
		return nil, fmt.Errorf("the bundle says that it is of node %q, its certificate is of %q", h.Node, name)
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: t.Roots, Intermediates: pool, CurrentTime: t.Now,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		var invalid x509.CertificateInvalidError
		if errors.As(err, &invalid) && invalid.Reason == x509.Expired {
			return nil, fmt.Errorf("the certificate of node %s in the bundle is not valid now (%s to %s): renew it at the node and export again", h.Node,
				leaf.NotBefore.Format(time.DateOnly), leaf.NotAfter.Format(time.DateOnly))
		}
		return nil, fmt.Errorf("the certificate of node %s in the bundle: %w", h.Node, err)
	}
	return leaf, nil
}

// read reads one block into b.buf. io.EOF never: a bundle ends with its last block.
func (b *Reader) read() (k kind, content, sig []byte, err error) {
	var head [5]byte
	if _, err := io.ReadFull(b.r, head[:]); err != nil {
		return 0, nil, nil, cut(err)
	}
	n := int(binary.BigEndian.Uint32(head[1:]))
	if n < 0 || n > maxBlock {
		return 0, nil, nil, fmt.Errorf("%w: block of %d bytes", ErrDamaged, n)
	}
	if b.buf, err = readFull(b.r, b.buf[:0], n); err != nil {
		return 0, nil, nil, err
	}
	var sl [2]byte
	if _, err := io.ReadFull(b.r, sl[:]); err != nil {
		return 0, nil, nil, cut(err)
	}
	sn := int(binary.BigEndian.Uint16(sl[:]))
	if sn > maxSignature {
		return 0, nil, nil, fmt.Errorf("%w: signature of %d bytes", ErrDamaged, sn)
	}
	sig = make([]byte, sn)
	if _, err := io.ReadFull(b.r, sig); err != nil {
		return 0, nil, nil, cut(err)
	}
	return kind(head[0]), b.buf, sig, nil
}

// readFull reads n bytes. The buffer grows with what has arrived: a length alone
// makes nobody allocate.
func readFull(r io.Reader, dst []byte, n int) ([]byte, error) {
	const step = 64 << 10
	for len(dst) < n {
		have := len(dst)
		want := min(n-have, max(step, have))
		if cap(dst)-have < want {
			grown := make([]byte, have, have+want)
			copy(grown, dst)
			dst = grown
		}
		dst = dst[:have+want]
		if _, err := io.ReadFull(r, dst[have:]); err != nil {
			return dst[:have], cut(err)
		}
	}
	return dst, nil
}

func cut(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return ErrCut
	}
	return err
}

// Next returns the next item; io.EOF after the last block, when nothing is missing.
func (b *Reader) Next() (Item, error) {
	for {
		if b.ended {
			return Item{}, io.EOF
		}
		if b.fr != nil {
			it, err := b.frame()
			if err != io.EOF {
				return it, err
			}
			b.fr.Close()
			b.fr = nil
		}
		k, content, sig, err := b.read()
		if err != nil {
			return Item{}, err
		}
		if b.sum = b.sum.next(k, content); !verify(b.cert, b.sum[:], sig) {
			return Item{}, fmt.Errorf("%w: a block was not signed by node %s, or is not in its place", ErrDamaged, b.Header.Node)
		}
		switch k {
		case kindData:
			b.fr = wire.NewFrameReader(bytes.NewReader(content), wire.MaxFrameBytes, windowBytes)
		case kindGaps:
			it, err := b.gap(content)
			if err != nil {
				return Item{}, err
			}
			return it, nil
		case kindEnd:
			if err := decMode.Unmarshal(content, &b.Totals); err != nil {
				return Item{}, fmt.Errorf("%w: end: %v", ErrDamaged, err)
			}
			if b.Totals != b.seen {
				return Item{}, fmt.Errorf("%w: it holds %+v and says %+v", ErrDamaged, b.seen, b.Totals)
			}
			if n, _ := io.ReadFull(b.r, b.buf[:1]); n != 0 {
				return Item{}, fmt.Errorf("%w: bytes behind its end", ErrDamaged)
			}
			b.ended = true
		case kindHeader:
			return Item{}, fmt.Errorf("%w: a second header", ErrDamaged)
		}
	}
}

func (b *Reader) place(partition uint32, epoch int) (Item, Part, error) {
	p, ok := b.Header.partition(partition)
	part, in := b.Header.part(partition)
	if !ok || !in || epoch < 0 || epoch >= len(b.Header.Inventory.Epochs) {
		return Item{}, part, fmt.Errorf("%w: partition %d, epoch %d are not in its header", ErrDamaged, partition, epoch)
	}
	return Item{Partition: p, Epoch: b.Header.Inventory.Epochs[epoch]}, part, nil
}

func (b *Reader) frame() (Item, error) {
	if _, err := b.fr.Next(); err != nil {
		if err == io.EOF {
			return Item{}, err
		}
		return Item{}, fmt.Errorf("%w: %v", ErrDamaged, err)
	}
	h, batches, err := b.fr.Read(b.data)
	if err != nil {
		return Item{}, fmt.Errorf("%w: %v", ErrDamaged, err)
	}
	if cap(batches) > cap(b.data) {
		b.data = batches[:0]
	}
	it, part, err := b.place(h.Partition, int(h.Epoch))
	if err != nil {
		return Item{}, err
	}
	if err := wire.VerifyFrame(h, batches); err != nil {
		return Item{}, fmt.Errorf("%w: %v", ErrDamaged, err)
	}
	if next := h.Base + h.Count; h.Base >= part.To || next <= part.From {
		return Item{}, fmt.Errorf("%w: offsets [%d, %d) of %s/%d, its header says [%d, %d)", ErrDamaged, h.Base, next, it.Partition.Topic, it.Partition.Partition, part.From, part.To)
	}
	for rest := batches; len(rest) > 0; {
		var one wire.Batch
		one, rest, _ = wire.NextBatch(rest) // VerifyFrame has read it
		b.seen.Records += int64(one.Records)
	}
	b.seen.Bytes += int64(len(batches))
	it.Batches = batches
	return it, nil
}

func (b *Reader) gap(content []byte) (Item, error) {
	m, err := wire.Decode(content)
	g, ok := m.(*wire.GapReport)
	if err != nil || !ok {
		return Item{}, fmt.Errorf("%w: gaps: %v", ErrDamaged, err)
	}
	epoch := -1
	for i, e := range b.Header.Inventory.Epochs {
		if e.ID == g.Epoch {
			epoch = i
		}
	}
	it, part, err := b.place(g.Partition, epoch)
	if err != nil {
		return Item{}, err
	}
	for _, x := range g.Gaps {
		for _, r := range x.Ranges {
			if r.From < part.From || r.To > part.To {
				return Item{}, fmt.Errorf("%w: a gap [%d, %d) outside of [%d, %d)", ErrDamaged, r.From, r.To, part.From, part.To)
			}
		}
		b.seen.Lost += x.Ranges.Count()
	}
	it.Gaps = g.Gaps
	return it, nil
}

// Close frees the decoder.
func (b *Reader) Close() {
	if b.fr != nil {
		b.fr.Close()
		b.fr = nil
	}
}
