package storage_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"tailrace/storage"
)

// filled returns a directory with a closed store of some segments.
func filled(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	st, err := storage.Open(storage.Config{Dir: dir, NodeID: "n1", Classes: []storage.ClassConfig{{Name: "main", SegmentBytes: 64 << 10}}})
	if err != nil {
		t.Fatal(err)
	}
	top, err := st.CreateTopic("wind", storage.TopicConfig{Partitions: 2})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 300 {
		a := st.NewAppend("")
		for k := range 10 {
			if err := a.Record(top.Partition(i%2), int64(1000+i*10+k), []byte("k"), fmt.Appendf(make([]byte, 0, 64), "%060d", i), nil); err != nil {
				t.Fatal(err)
			}
		}
		a.Set(storage.KindMeta, "last", fmt.Append(nil, i))
		if err := st.Commit(context.Background(), a); err != nil {
			t.Fatal(err)
		}
	}
	if err := st.Close(); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestInspectCountsASoundStoreAndChangesNothing(t *testing.T) {
	dir := filled(t)
	before := tree(t, dir)
	in, err := storage.Inspect(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(in.Problems) != 0 || len(in.Classes) != 1 {
		t.Fatalf("problems %v, %d classes", in.Problems, len(in.Classes))
	}
	c := in.Classes[0]
	if c.Records != 3000 || c.Segments < 3 || len(c.Partitions) != 2 || c.State["meta"] != 1 || in.Identity["node"] != "n1" {
		t.Errorf("%+v", c)
	}
	for i, p := range c.Partitions {
		if p.Topic != "wind" || p.Index != i || p.Next != 1500 || p.Records != 1500 || p.MaxTime < 3900 {
			t.Errorf("partition %+v", p)
		}
	}
	for name, b := range tree(t, dir) {
		if string(before[name]) != string(b) {
			t.Errorf("%s changed", name)
		}
	}
}

func TestInspectTellsRotFromATornTail(t *testing.T) {
	dir := filled(t)
	segs, _ := filepath.Glob(filepath.Join(dir, "main", "log", "*"))
	last := segs[len(segs)-1]
	st, _ := os.Stat(last)
	if st.Size() == 0 {
		last = segs[len(segs)-2]
		os.Remove(segs[len(segs)-1])
		st, _ = os.Stat(last)
	}
	if err := os.Truncate(last, st.Size()-7); err != nil {
		t.Fatal(err)
	}
	in, err := storage.Inspect(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	if in.Lossy() || len(in.Problems) != 1 || in.Problems[0].Severity != "note" {
		t.Errorf("torn tail: %+v", in.Problems)
	}
	b, err := os.ReadFile(segs[0])
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 4
	if err := os.WriteFile(segs[0], b, 0o600); err != nil {
		t.Fatal(err)
	}
	if in, err = storage.Inspect(dir, nil); err != nil {
		t.Fatal(err)
	}
	if !in.Lossy() {
		t.Errorf("a flipped bit in the first segment is not found: %+v", in.Problems)
	}
}

func TestInspectRefusesWhatIsNoStore(t *testing.T) {
	if _, err := storage.Inspect(t.TempDir(), nil); err == nil {
		t.Error("an empty directory passes for a store")
	}
}

func tree(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	out := map[string][]byte{}
	err := filepath.Walk(dir, func(path string, fi os.FileInfo, err error) error {
		if err != nil || fi.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		out[path] = b
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}
