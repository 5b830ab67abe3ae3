package storage_test

import (
	"context"
	"fmt"
	"testing"

	"tailrace/storage"
	"tailrace/storage/record"
)

func open(t testing.TB, dir string, mod ...func(*storage.Config)) *storage.Store {
	t.Helper()
	cfg := storage.Config{Dir: dir, NodeID: "n1", Classes: []storage.ClassConfig{{Name: "main"}}, RetentionInterval: -1}
	for _, m := range mod {
		m(&cfg)
	}
	s, err := storage.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func topic(t testing.TB, s *storage.Store, name string, parts int) *storage.Topic {
	t.Helper()
	tp, err := s.CreateTopic(name, storage.TopicConfig{Partitions: parts})
	if err != nil {
		t.Fatal(err)
	}
	return tp
}

// rec is a record as a test compares it.
type rec struct {
	Offset, TS int64
	Key, Value string
}

func readAll(t testing.TB, p *storage.Partition, from int64) []rec {
	t.Helper()
	var out []rec
	for {
		b, next, err := p.Read(nil, from, 64<<10)
		if err != nil {
			t.Fatalf("read %d: %v", from, err)
		}
		if next == from {
			return out
		}
		out = append(out, decode(t, b)...)
		from = next
	}
}

func decode(t testing.TB, b []byte) []rec {
	t.Helper()
	var out []rec
	for len(b) > 0 {
		batch, rest, err := record.Next(b)
		if err == nil {
			err = batch.Verify()
		}
		if err != nil {
			t.Fatal(err)
		}
		it := batch.Iter(nil)
		for it.Next() {
			r := it.Record()
			out = append(out, rec{r.Offset, r.Timestamp, string(r.Key), string(r.Value)})
		}
		if it.Err() != nil {
			t.Fatal(it.Err())
		}
		b = rest
	}
	return out
}

func put(t testing.TB, s *storage.Store, p *storage.Partition, ts int64, values ...string) {
	t.Helper()
	a := s.NewAppend(p.Topic().Config().Class)
	for _, v := range values {
		if err := a.Record(p, ts, []byte("k"), []byte(v), nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Commit(context.Background(), a); err != nil {
		t.Fatal(err)
	}
}

func TestRecordsComeBackAfterReopen(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	p := topic(t, s, "wind", 2).Partition(1)
	for i := range 100 {
		put(t, s, p, int64(i), fmt.Sprint("v", i), fmt.Sprint("w", i))
	}
	want := readAll(t, p, 0)
	if len(want) != 200 {
		t.Fatalf("%d records", len(want))
	}
	id := s.Identity()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir)
	tp, _ := s.Topic("wind")
	got := readAll(t, tp.Partition(1), 0)
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Fatalf("got %v\nwant %v", got, want)
	}
	if id2 := s.Identity(); id2.StoreID != id.StoreID || id2.Epoch.ID != id.Epoch.ID || id2.BootID == id.BootID || len(id2.Recovered) != 0 {
		t.Fatalf("identity %+v, was %+v", id2, id)
	}
}
