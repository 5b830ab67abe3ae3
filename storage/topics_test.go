package storage_test

import (
	"errors"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"tailrace/storage"
)

func twoClasses(c *storage.Config) {
	c.FS = &testFS{}
	c.Classes = append(c.Classes, storage.ClassConfig{Name: "bulk", SegmentBytes: 8192})
}

// TestTopicsAreDurable: what was created, changed or deleted is so after reopening,
// ids are never reused, classes keep apart.
func TestTopicsAreDurable(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "s")
	s := open(t, dir, twoClasses)
	a := topic(t, s, "a", 2)
	b, err := s.CreateTopic("b", storage.TopicConfig{Class: "bulk", RetentionAge: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.CreateTopic("a", storage.TopicConfig{}); !errors.Is(err, storage.ErrExists) {
		t.Fatal(err)
	}
	for _, name := range []string{"", "..", "a/b", "ä"} {
		if _, err := s.CreateTopic(name, storage.TopicConfig{}); !errors.Is(err, storage.ErrInvalid) {
			t.Fatalf("%q: %v", name, err)
		}
	}
	if err := s.EnsurePartitions("a", 4); err != nil {
		t.Fatal(err)
	}
	if err := s.SetTopicConfig("b", storage.TopicConfig{RetentionBytes: 5, Labels: map[string]string{"x": "y"}}); err != nil {
		t.Fatal(err)
	}
	if err := s.SetTopicConfig("b", storage.TopicConfig{Class: "main"}); !errors.Is(err, storage.ErrInvalid) {
		t.Fatal(err)
	}
	put(t, s, a.Partition(3), 1, "x")
	put(t, s, b.Partition(0), 1, "y")
	ap := s.NewAppend("")
	if err := ap.Record(b.Partition(0), 1, nil, nil, nil); !errors.Is(err, storage.ErrWrongClass) {
		t.Fatal(err)
	}
	c := topic(t, s, "c", 1)
	cp := c.Partition(0)
	put(t, s, cp, 1, "z")
	if err := s.DeleteTopic("c"); err != nil {
		t.Fatal(err)
	}
	ap.Reset()
	ap.Record(cp, 1, nil, nil, nil)
	if err := s.Commit(t.Context(), ap); !errors.Is(err, storage.ErrUnknownTopic) {
		t.Fatal(err)
	}
	ids := fmt.Sprint(a.ID(), b.ID(), a.Partition(3).ID(), b.Partition(0).ID())
	s.Close()
	s = open(t, dir, twoClasses)
	a, _ = s.Topic("a")
	b, _ = s.Topic("b")
	if _, ok := s.Topic("c"); ok || len(s.Topics()) != 2 {
		t.Fatal("the deleted topic is back")
	}
	if got := fmt.Sprint(a.ID(), b.ID(), a.Partition(3).ID(), b.Partition(0).ID()); got != ids {
		t.Fatalf("ids %s, were %s", got, ids)
	}
	if bc := b.Config(); bc.Class != "bulk" || bc.RetentionBytes != 5 || bc.RetentionAge != 0 || bc.Labels["x"] != "y" || bc.Partitions != 1 {
		t.Fatalf("config %+v", bc)
	}
	if len(readAll(t, a.Partition(3), 0)) != 1 || len(readAll(t, b.Partition(0), 0)) != 1 || a.Partition(4) != nil {
		t.Fatal("records are not where they were")
	}
	if again := topic(t, s, "c", 1); again.Partition(0).ID() <= cp.ID() || again.ID() == c.ID() {
		t.Fatalf("partition id %v was given out before", again.Partition(0).ID())
	}
}

// TestWaitAndSubscribe wake for durable records only, and on Close.
func TestWaitAndSubscribe(t *testing.T) {
	s := open(t, t.TempDir(), twoClasses)
	p := topic(t, s, "a", 1).Partition(0)
	ch, all := make(chan struct{}, 1), make(chan struct{}, 1)
	defer p.Subscribe(ch)()
	defer s.Subscribe(all)()
	waited := make(chan error, 1)
	go func() { waited <- p.Wait(t.Context(), 0) }()
	put(t, s, p, 1, "x")
	if err := <-waited; err != nil {
		t.Fatal(err)
	}
	<-ch
	<-all
	go func() { waited <- p.Wait(t.Context(), 1) }()
	s.Close()
	if err := <-waited; !errors.Is(err, storage.ErrClosed) {
		t.Fatal(err)
	}
}
