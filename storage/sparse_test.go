package storage

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"tailrace/storage/internal/durable"
)

// TestBeyondFourGiB: positions, sizes and offsets beyond 32 bits, in a sparse file, also
// on 32-bit machines. A batch that stands at 5 GiB is read from there, the index keeps
// the place, a file is cut there, and offsets and budgets of that size are counted.
func TestBeyondFourGiB(t *testing.T) {
	const far = 5<<30 + 12345
	dir := filepath.Join(t.TempDir(), "s")
	s, err := Open(Config{Dir: dir, NodeID: "n1", RetentionInterval: -1, Classes: []ClassConfig{{Name: "main"}}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	tp, err := s.CreateTopic("wind", TopicConfig{})
	if err != nil {
		t.Fatal(err)
	}
	p := tp.Partition(0)
	a := s.NewAppend("")
	if err := a.Record(p, 1_700_000_000_000, nil, []byte("far away"), nil); err != nil {
		t.Fatal(err)
	}
	if err := s.Commit(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	want, _, err := p.Read(nil, 0, 1<<20)
	if err != nil || !bytes.Contains(want, []byte("far away")) {
		t.Fatalf("%q, %v", want, err)
	}

	seg, refs, err := p.locate(nil, 0, 1, 1<<20, true)
	if err != nil {
		t.Fatal(err)
	}
	moved := *seg
	moved.path = filepath.Join(dir, "sparse")
	entry := make([]byte, refs[0].size)
	src, err := os.ReadFile(seg.path)
	if err != nil {
		t.Fatal(err)
	}
	copy(entry, src[refs[0].pos:])
	f, err := os.Create(moved.path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(entry, far); err != nil {
		t.Skipf("no sparse files here: %v", err)
	}
	r := refs[0]
	r.pos = far

	x := &segmentIndex{first: 1 << 40, last: 1<<40 + 7, size: far + int64(r.size), arrival: 1, parts: []partIndex{newPartIndex(p.id, []ref{r})}}
	y, err := decodeSide(x.encode(), true)
	if err != nil || y.size != x.size || y.first != x.first || !slices.Equal(y.parts[0].refs, []ref{r}) {
		t.Fatalf("side file: %+v, %v", y, err)
	}
	got, next, _, err := p.readRefs(nil, 0, &moved, y.parts[0].refs, readSpan, true)
	if err != nil || next != 1 || !bytes.Equal(got, want) {
		t.Fatalf("read at 5 GiB: %q, next %d, %v", got, next, err)
	}
	if err := durable.CutFile(durable.OS{}, moved.path, far); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(moved.path); err != nil || st.Size() != far {
		t.Fatalf("cut to %v, %v", st, err)
	}

	l := s.logs[0]
	err = l.do(func() error {
		tail := l.tailSegment()
		l.segMu.Lock()
		defer l.segMu.Unlock()
		l.setSegments([]*segment{{first: 1, size: far}, {first: 2, size: far}, tail})
		return nil
	})
	if err != nil || l.diskBytes() < 2*far {
		t.Fatalf("%d bytes on disk, %v", l.diskBytes(), err)
	}
	p.publish(seg, ref{base: 1 << 33, next: 1<<33 + 1, pos: far, size: 100})
	p.advance(1<<33 + 1)
	if p.HighWatermark() != 1<<33+1 {
		t.Fatal(p.HighWatermark())
	}
}
