package bundle_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"tailrace/storage/record"
	"tailrace/uplink"
	"tailrace/uplink/bundle"
	"tailrace/uplink/link"
	"tailrace/uplink/pki"
	"tailrace/uplink/ranges"
	"tailrace/uplink/wire"
)

var now = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)

// log is a node's log in memory: two epochs, a hole that retention made below 4, one
// that the disk made, and a fork at 20.
type log struct {
	batches [][]byte
	start   int64
	next    int64
}

var epochs = []wire.EpochInfo{
	{ID: wire.ID{1}, Number: 1},
	{ID: wire.ID{2}, Parent: wire.ID{1}, Number: 2, Forks: []wire.ForkPoint{{Topic: "t", Partition: 0, Offset: 20}}},
}

func newLog() *log {
	l := &log{start: 4, next: 30}
	for _, r := range []uplink.Range{{From: 4, To: 10}, {From: 13, To: 20}, {From: 20, To: 22}, {From: 22, To: 30}} {
		var b record.Builder
		b.Reset(nil)
		for off := r.From; off < r.To; off++ {
			b.Add(1_700_000_000_000+off*1000, []byte("wtg-1"), fmt.Appendf(nil, `{"n":%d,"power_kw":%d}`, off, off*7%100), nil)
		}
		l.batches = append(l.batches, b.Finish(r.From, 1))
	}
	return l
}

func (l *log) Inventory() wire.Inventory {
	return wire.Inventory{Epochs: epochs, Partitions: []wire.PartitionInfo{{ID: 7, Topic: "t", Start: l.start, Next: l.next}}}
}
func (l *log) Generation() uint64                          { return 1 }
func (l *log) Bounds(string, int) (int64, int64)           { return l.start, l.next }
func (l *log) Changed() <-chan struct{}                    { return nil }
func (l *log) Acked(string, int, wire.ID, uplink.RangeSet) {}
func (l *log) Gaps() []link.GapProposal {
	return []link.GapProposal{{Topic: "t", Epoch: wire.ID{1}, Gap: wire.Gap{Ranges: ranges.Of(10, 12), Reason: wire.GapDamaged, At: 5}}}
}

func (l *log) Read(dst []byte, _ string, _ int, from int64, maxBytes int) ([]byte, int64, error) {
	if from < l.start {
		return dst, from, link.ErrGone
	}
	next := from
	for _, b := range l.batches {
		rb := record.Batch(b)
		if rb.NextOffset() <= from || next != from && rb.BaseOffset() != next || next != from && len(dst) > maxBytes {
			continue
		}
		dst, next = append(dst, b...), rb.NextOffset()
	}
	return dst, next, nil
}

type authority struct {
	ca   *pki.CA
	pool *x509.CertPool
}

func newAuthority(t testing.TB) authority {
	ca, pair, err := pki.NewCA(rand.Reader, "test", now, 24*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pair.Cert)
	return authority{ca, pool}
}

func (a authority) identity(t testing.TB, role pki.Role, name string) bundle.Identity {
	p, err := a.ca.Issue(rand.Reader, role, name, nil, now, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(p.Cert, p.Key)
	if err != nil {
		t.Fatal(err)
	}
	return bundle.Identity{Certs: pair.Certificate, Key: pair.PrivateKey}
}

func export(t testing.TB, id bundle.Identity, from, to int64) []byte {
	return exportOf(t, newLog(), id, from, to)
}

func exportOf(t testing.TB, src link.Source, id bundle.Identity, from, to int64) []byte {
	var buf bytes.Buffer
	_, err := bundle.Write(context.Background(), &buf, src, bundle.Options{Node: "node-1", Identity: id, Software: "test",
		Select: func(wire.PartitionInfo) (int64, int64) { return from, to }, Rand: rand.Reader})
	if err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// read lists what a bundle gives, one line an item.
func read(b []byte, trust bundle.Trust) (lines []string, err error) {
	r, err := bundle.NewReader(bytes.NewReader(b), trust)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	for {
		it, err := r.Next()
		if err != nil {
			return lines, err
		}
		s := fmt.Sprintf("%s/%d epoch %d", it.Partition.Topic, it.Partition.Partition, it.Epoch.Number)
		for _, g := range it.Gaps {
			s += fmt.Sprintf(" gap %s %s", g.Ranges, g.Reason)
		}
		for rest := it.Batches; len(rest) > 0; {
			var one record.Batch
			if one, rest, err = record.Next(rest); err != nil {
				return lines, err
			}
			if err := one.Verify(); err != nil {
				return lines, err
			}
			s += fmt.Sprintf(" [%d,%d)#%08x", one.BaseOffset(), one.NextOffset(), one.CRC())
		}
		lines = append(lines, s)
	}
}

func TestBundleHoldsWhatWasSelected(t *testing.T) {
	a := newAuthority(t)
	id, trust := a.identity(t, pki.RoleNode, "node-1"), bundle.Trust{Roots: a.pool, Now: now}
	lines, err := read(export(t, id, 0, 99), trust)
	if err != io.EOF {
		t.Fatal(err)
	}
	l := newLog()
	crc := func(i int) string { return fmt.Sprintf("#%08x", record.Batch(l.batches[i]).CRC()) }
	want := []string{
		"t/0 epoch 1 gap [0,4) expired",
		"t/0 epoch 1 [4,10)" + crc(0),
		"t/0 epoch 1 gap [10,12) damaged gap [12,13) missing",
		"t/0 epoch 1 [13,20)" + crc(1),
		"t/0 epoch 2 [20,22)" + crc(2) + " [22,30)" + crc(3),
	}
	if got := strings.Join(lines, "\n"); got != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", got, strings.Join(want, "\n"))
	}

	r, err := bundle.NewReader(bytes.NewReader(export(t, id, 21, 25)), trust)
	if err != nil {
		t.Fatal(err)
	}
	before := r.Header.Parts[0].Before
	if len(before) != 2 || before[0].Epoch != 0 || before[0].Held.Offset != 13 || before[1].Epoch != 1 || before[1].Held.Offset != 20 {
		t.Errorf("before the range: %+v", before)
	}
	lines, err = read(export(t, id, 21, 25), trust)
	if err != io.EOF || strings.Join(lines, "\n") != want[4] {
		t.Errorf("part of an epoch: %v %v", lines, err)
	}
}

// thirdEpoch is the log after one more recovery, which cut it at 13: below where the
// second epoch began.
type thirdEpoch struct{ *log }

func (l thirdEpoch) Inventory() wire.Inventory {
	inv := l.log.Inventory()
	inv.Epochs = append(slices.Clone(epochs), wire.EpochInfo{ID: wire.ID{3}, Parent: wire.ID{2}, Number: 3, Forks: []wire.ForkPoint{{Topic: "t", Partition: 0, Offset: 13}}})
	return inv
}

// An offset is in a bundle once, in the epoch that the link would name.
func TestAnEpochThatALaterOneTookOverIsNotExported(t *testing.T) {
	a := newAuthority(t)
	id, trust := a.identity(t, pki.RoleNode, "node-1"), bundle.Trust{Roots: a.pool, Now: now}
	l := newLog()
	lines, err := read(exportOf(t, thirdEpoch{l}, id, 4, 99), trust)
	if err != io.EOF {
		t.Fatal(err)
	}
	crc := func(i int) string { return fmt.Sprintf("#%08x", record.Batch(l.batches[i]).CRC()) }
	want := []string{
		"t/0 epoch 1 [4,10)" + crc(0),
		"t/0 epoch 1 gap [10,12) damaged gap [12,13) missing",
		"t/0 epoch 3 [13,20)" + crc(1) + " [20,22)" + crc(2) + " [22,30)" + crc(3),
	}
	if got := strings.Join(lines, "\n"); got != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", got, strings.Join(want, "\n"))
	}
}

// Whatever happens to the bytes: what is read is a prefix of the truth, and the end is
// not reached.
func TestDamagedBundleGivesAPrefix(t *testing.T) {
	a := newAuthority(t)
	trust := bundle.Trust{Roots: a.pool, Now: now}
	id := a.identity(t, pki.RoleNode, "node-1")
	b := export(t, id, 0, 99)
	truth, _ := read(b, trust)
	check := func(what string, b []byte) {
		t.Helper()
		got, err := read(b, trust)
		if err == io.EOF || len(got) > len(truth) || strings.Join(got, "\n") != strings.Join(truth[:len(got)], "\n") {
			t.Fatalf("%s: %v, %v", what, got, err)
		}
	}
	for i := range b {
		c := bytes.Clone(b)
		c[i] ^= 1 << (i % 8)
		check(fmt.Sprintf("bit %d of byte %d", i%8, i), c)
		check(fmt.Sprintf("cut at %d", i), b[:i])
	}
	if _, err := read(b[:len(b)-1], trust); !errors.Is(err, bundle.ErrCut) {
		t.Errorf("a bundle without its last byte: %v", err)
	}
	// Whole blocks, each signed by this node: left out, swapped, of another bundle.
	mine, other := blocks(b), blocks(export(t, id, 0, 99))
	join := func(list ...[][]byte) []byte {
		return slices.Concat([]byte(bundle.Magic), slices.Concat(slices.Concat(list...)...))
	}
	if !bytes.Equal(join(mine), b) || len(mine) < 5 {
		t.Fatalf("%d blocks", len(mine))
	}
	for i := 1; i < len(mine); i++ {
		check(fmt.Sprintf("without block %d", i), join(mine[:i], mine[i+1:]))
		check(fmt.Sprintf("block %d twice", i), join(mine[:i+1], mine[i:]))
		check(fmt.Sprintf("from block %d on another's", i), join(mine[:i], other[i:]))
	}
}

// blocks takes a bundle apart, as PROTOCOL.md has it.
func blocks(b []byte) (out [][]byte) {
	b = b[len(bundle.Magic):]
	for len(b) > 0 {
		n := 5 + int(binary.BigEndian.Uint32(b[1:]))
		n += 2 + int(binary.BigEndian.Uint16(b[n:]))
		out, b = append(out, b[:n]), b[n:]
	}
	return out
}

func TestBundleOfAStrangerIsRefused(t *testing.T) {
	a, b := newAuthority(t), newAuthority(t)
	for what, c := range map[string]struct {
		id    bundle.Identity
		trust bundle.Trust
		want  string
	}{
		"another authority": {b.identity(t, pki.RoleNode, "node-1"), bundle.Trust{Roots: a.pool, Now: now}, "unknown authority"},
		"another node":      {a.identity(t, pki.RoleNode, "node-2"), bundle.Trust{Roots: a.pool, Now: now}, `its certificate is of "node-2"`},
		"a device":          {a.identity(t, pki.RoleDevice, "node-1"), bundle.Trust{Roots: a.pool, Now: now}, "not for a node"},
		"a hub":             {a.identity(t, pki.RoleHub, "node-1"), bundle.Trust{Roots: a.pool, Now: now}, "not for a node"},
		"an expired one":    {a.identity(t, pki.RoleNode, "node-1"), bundle.Trust{Roots: a.pool, Now: now.Add(2 * time.Hour)}, "not valid now"},
		"certificate of one, key of another": {bundle.Identity{Certs: a.identity(t, pki.RoleNode, "node-1").Certs, Key: b.identity(t, pki.RoleNode, "node-1").Key},
			bundle.Trust{Roots: a.pool, Now: now}, "not signed with the key"},
	} {
		if _, err := read(export(t, c.id, 0, 99), c.trust); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", what, err, c.want)
		}
	}
}

// A length alone makes nobody allocate.
func FuzzReader(f *testing.F) {
	a := newAuthority(f)
	trust := bundle.Trust{Roots: a.pool, Now: now}
	b := export(f, a.identity(f, pki.RoleNode, "node-1"), 0, 99)
	f.Add(b)
	f.Add(append([]byte(bundle.Magic), 1, 0x00, 0xff, 0xff, 0xff))
	truth, _ := read(b, trust)
	f.Fuzz(func(t *testing.T, in []byte) {
		got, err := read(in, trust)
		if err == io.EOF && !bytes.Equal(in[:len(b)], b) {
			t.Fatal("a bundle that nobody signed was read to its end")
		}
		if len(got) > len(truth) {
			t.Fatal(got)
		}
	})
}
