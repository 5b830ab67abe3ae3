package storage

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"testing"

	"tailrace/storage/record"
)

// goldenEntry is a data entry of version 1 as FORMAT.md describes it: epoch 3, index
// 7, commit 5, time 1,700,000,000,000, partition 9, with an origin and one record.
const goldenEntry = "5452010103000027" + "16371747" + "00000003" + "0000000000000007" + "0000000000000005" +
	"0000018bcfe56800" + "00000009" + "00000047" +
	"026e31" + "01000000000000000000000000000000" + "00000002" + "0000000000000064" + "0000000000000065" +
	"000000000000000a" + "0000003b" + "00000003" + "02" + "29dbcff8" + "0000" + "00000000" +
	"00000000000003e8" + "00000000000003e8" + "ffffffffffffffff" + "ffff" + "ffffffff" + "00000001" +
	"12" + "00" + "00" + "00" + "026b" + "0476" + "7600"

func buildGolden() []byte {
	b := make([]byte, envelopeBytes)
	b = appendOrigin(b, &Origin{Node: "n1", Epoch: [16]byte{1}, Partition: 2, From: 100, To: 101})
	n := len(b) - envelopeBytes
	var bl record.Builder
	bl.Reset(b)
	bl.Add(1000, []byte("k"), []byte("vv"), nil)
	b = bl.Finish(10, 3)
	sealEnvelope(b, &envelope{kind: entryData, flags: flagFirst | flagLast, epoch: 3, index: 7, commit: 5, time: 1_700_000_000_000, partition: 9}, n)
	return b
}

// TestEntryBytesAreThoseOfTheFormat: what is on disk does not change by accident.
func TestEntryBytesAreThoseOfTheFormat(t *testing.T) {
	want, err := hex.DecodeString(goldenEntry)
	if err != nil {
		t.Fatal(err)
	}
	if got := buildGolden(); !bytes.Equal(got, want) {
		t.Fatalf("got  %x\nwant %x", got, want)
	}
	for i := range want {
		b := bytes.Clone(want)
		b[i] ^= 0x40
		if _, err := decodeEnvelope(b); err == nil {
			t.Fatalf("flip in byte %d is not seen", i)
		}
	}
}

// TestLaterVersionIsNotDamage: an intact entry of a later format stops the scan
// with an error, and nothing is cut.
func TestLaterVersionIsNotDamage(t *testing.T) {
	for _, at := range []int{2, 3} {
		b := buildGolden()
		b[at] = 77
		sum := envelopeSum(b)
		b[8], b[9], b[10], b[11] = byte(sum>>24), byte(sum>>16), byte(sum>>8), byte(sum)
		if _, err := scanSegment(appendFramed(nil, b), 7); err == nil {
			t.Fatalf("byte %d: a later format was taken for damage", at)
		}
	}
}

// FuzzScanSegment: no bytes make the scan, or what is done with its result, panic,
// and it accounts for every byte and every index.
func FuzzScanSegment(f *testing.F) {
	g := buildGolden()
	f.Add(appendFramed(nil, g))
	f.Add(appendFramed(appendFramed([]byte{9, 9, 9}, g), g))
	f.Add(append(make([]byte, 120), appendFramed(nil, g)...))
	f.Fuzz(func(t *testing.T, data []byte) {
		sc, err := scanSegment(data, 7)
		if err != nil {
			return
		}
		pos, index := int64(0), uint64(7)
		for i := range sc.entries {
			e := &sc.entries[i]
			if e.pos != pos || e.end < e.pos || e.env.index != index {
				t.Fatalf("entry %d at [%d, %d), index %d; expected at %d, index %d", i, e.pos, e.end, e.env.index, pos, index)
			}
			pos = e.end
			if index++; e.damaged {
				index += e.lost - 1
			}
		}
		if sc.next != index || sc.tornAt != pos || sc.size != int64(len(data)) {
			t.Fatalf("scan ends at %d, index %d; entries at %d, index %d", sc.tornAt, sc.next, pos, index)
		}
		lastComplete(sc, 0)
		x := collectIndex(sc, 7)
		if y, err := decodeSide(x.encode(), true); err != nil || y.refCount() != x.refCount() {
			t.Fatalf("side file of the scan: %v", err)
		}
		m := newStateMap(nil)
		var scratch []byte
		for i := range sc.entries {
			if env := &sc.entries[i].env; env.kind == entryState {
				if ops, err := env.ops(&scratch); err == nil {
					m.applyAll(env.index, ops)
				}
			}
			decodeOrigin(sc.entries[i].env.origin)
			parseDamage(sc.entries[i].env.payload)
		}
		salvage(data, map[PartitionID]int64{9: 10})
	})
}

// FuzzDecodeSide: a side file of any bytes is refused or consistent, and does not
// allocate beyond its size.
func FuzzDecodeSide(f *testing.F) {
	sc, _ := scanSegment(appendFramed(nil, buildGolden()), 7)
	f.Add(collectIndex(sc, 7).encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		if x, err := decodeSide(b, true); err == nil {
			if _, err := decodeSide(x.encode(), true); err != nil {
				t.Fatal(err)
			}
		}
		decodeSide(b, false)
	})
}

// TestStateForwardIsTheState: what forward writes gives the same map.
func TestStateForwardIsTheState(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 1))
	folds := map[StateKind]FoldFunc{KindWindow: func(old, delta []byte) []byte { return append(old, delta...) }}
	m := newStateMap(folds)
	for i := range uint64(500) {
		key := []byte{byte(rnd.IntN(40))}
		m.apply(i, []StateKind{KindMeta, KindWindow}[rnd.IntN(2)], byte(rnd.IntN(3)), key, []byte{byte(i)})
	}
	n := newStateMap(folds)
	ops, all := m.forward(nil, 1000, 1<<30)
	if err := n.applyAll(1001, ops); err != nil || !all {
		t.Fatal(err)
	}
	for _, k := range []StateKind{KindMeta, KindWindow} {
		if len(m.keys(k)) != len(n.keys(k)) || len(m.keys(k)) == 0 {
			t.Fatal(k, m.keys(k), n.keys(k))
		}
		for _, key := range m.keys(k) {
			a, _ := m.get(k, key)
			b, _ := n.get(k, key)
			if !bytes.Equal(a, b) {
				t.Fatalf("%v %q: %v, %v", k, key, a, b)
			}
		}
	}
	if m.bytes != n.bytes || m.count != n.count {
		t.Fatal(m.bytes, n.bytes, m.count, n.count)
	}
	if ops, all := n.forward(nil, 1000, 1<<30); len(ops) != 0 || !all {
		t.Fatal("forwarded twice")
	}
}

// TestPackedStateUnpacks: the block, then the plain operations behind it; what does not parse
// is an error.
func TestPackedStateUnpacks(t *testing.T) {
	var ops []byte
	for i := range 20 {
		ops = appendOp(ops, KindWindow, opFold, fmt.Sprint("client-of-the-hall-", i), []byte("delta"))
	}
	p, ok := packOps([]byte("before"), ops)
	if !ok || len(p)-6 > len(ops)/2 {
		t.Fatalf("%d of %d bytes, %v", len(p)-6, len(ops), ok)
	}
	more := appendOp(nil, KindMeta, opSet, "k", []byte("v"))
	env := envelope{kind: entryState, packed: true, payload: append(bytes.Clone(p[6:]), more...)}
	var scratch []byte
	for range 2 {
		if got, err := env.ops(&scratch); err != nil || !bytes.Equal(got, append(bytes.Clone(ops), more...)) {
			t.Fatalf("%q, %v", got, err)
		}
	}
	for _, bad := range [][]byte{nil, {5, 1}, {0x80}, {1, 0xff}, {6, 0xff, 0xff, 0xff, 0xff, 0x0f, 0}} {
		env.payload = bad
		if got, err := env.ops(&scratch); err == nil {
			t.Errorf("%x: %q", bad, got)
		}
	}
	if _, ok := packOps(nil, []byte{1, 2, 3, 4}); ok {
		t.Error("four bytes were packed")
	}
}

// TestSalvageOfAShortEntry: what is left of a damaged entry tells its offsets, also of a packed
// one, whose payload may be shorter than the header of a batch; any beginning of one is taken.
func TestSalvageOfAShortEntry(t *testing.T) {
	for _, packed := range []bool{false, true} {
		var bl record.Builder
		bl.Reset(nil)
		bl.Add(1_700_000_000_000, nil, []byte("21.5"), nil)
		payload := bl.Finish(77, 3)
		if packed {
			var ok bool
			if payload, ok = record.Pack(nil, payload); !ok || len(payload) >= record.HeaderBytes {
				t.Fatalf("packed %v, %d bytes", ok, len(payload))
			}
		}
		e := append(make([]byte, envelopeBytes), payload...)
		sealEnvelope(e, &envelope{kind: entryData, packed: packed, epoch: 3, index: 5, partition: 9}, 0)
		b := appendFramed(nil, e)
		b[len(b)-1] ^= 1
		got, ok := salvage(b, map[PartitionID]int64{9: 77})
		if want := (lostRange{9, 77, 78}); !ok || got != want {
			t.Errorf("packed %v: %v, %v, want %v", packed, got, ok, want)
		}
		if got, ok := salvage(b, map[PartitionID]int64{9: 76}); ok {
			t.Errorf("packed %v: another offset was next, %v", packed, got)
		}
		for n := range b {
			salvage(b[:n:n], map[PartitionID]int64{9: 77})
		}
	}
}
