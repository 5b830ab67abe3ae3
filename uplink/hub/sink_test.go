package hub_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"tailrace/uplink"
	"tailrace/uplink/hub"
	"tailrace/uplink/link"
	"tailrace/uplink/wire"
)

// hello is what a node with one topic says.
func hello(boot byte, sequence uint64, epochs []wire.EpochInfo, next int64) wire.Hello {
	return wire.Hello{Node: "n1", Boot: wire.ID{boot}, Sequence: sequence,
		Inventory: wire.Inventory{Epochs: epochs, Partitions: []wire.PartitionInfo{{ID: 1, Topic: "wind", Next: next}}}}
}

func refused(t *testing.T, err error, code wire.Code) {
	t.Helper()
	var re *link.RefuseError
	if !errors.As(err, &re) || re.Code != code {
		t.Errorf("refused with %v, want code %d", err, code)
	}
}

// clock is moved by the test.
type clock struct{ now time.Time }

func newSink(t *testing.T) (*hub.Hub, link.Sink, *clock) {
	t.Helper()
	c := &clock{time.UnixMilli(1_800_000_000_000)}
	cfg := hubConfig(t, certs(t))
	cfg.Now = func() time.Time { return c.now }
	h, err := hub.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	return h, hub.SinkOf(h), c
}

func put(t *testing.T, s link.Sink, o wire.Origin, from, to int64) {
	t.Helper()
	ch := make(chan error, 1)
	s.Append(context.Background(), o, batch(o, from, to), func(_ uplink.RangeSet, err error) { ch <- err })
	if err := <-ch; err != nil {
		t.Fatal(err)
	}
}

// TestLostTailAndReplacedLogAreDeclared: the hub had heard of records that the
// node can no longer send, since its log was cut or replaced.
func TestLostTailAndReplacedLogAreDeclared(t *testing.T) {
	ctx := context.Background()
	h, s, c := newSink(t)
	a := chain("A")
	if _, err := s.Hello(ctx, "n1", hello(1, 1, a, 100)); err != nil { // it has 100
		t.Fatal(err)
	}
	o := wire.Origin{Node: "n1", Epoch: a[0].ID, Topic: "wind"}
	put(t, s, o, 0, 60)

	ab := chain("AB") // after a power cut it has 90, and went on from there
	ab[1].Forks = []wire.ForkPoint{{Topic: "wind", Offset: 90}}
	plan, err := s.Hello(ctx, "n1", hello(2, 1, ab, 95))
	if err != nil {
		t.Fatal(err)
	}
	rows := h.Central().Losses("", "", 10)
	if len(rows) != 1 || rows[0].From != 90 || rows[0].To != 100 || rows[0].Epoch != a[0].ID.String() {
		t.Fatalf("lost tail: %+v", rows)
	}
	if len(plan.Progress) != 1 || plan.Progress[0].Held.String() != "[0,60)[90,100)" || plan.Progress[0].Last == nil {
		t.Fatalf("plan %+v", plan.Progress)
	}
	put(t, s, o, 60, 90) // the parent epoch is finished first
	put(t, s, wire.Origin{Node: "n1", Epoch: ab[1].ID, Topic: "wind"}, 90, 92)

	c.now = c.now.Add(time.Hour) // a new disk; 92 to 94 of B went with the old one
	if _, err := s.Hello(ctx, "n1", hello(3, 1, chain("X"), 5)); err != nil {
		t.Fatal(err)
	}
	rows = h.Central().Losses("", "", 10)
	if len(rows) != 2 || rows[0].From != 92 || rows[0].To != 95 || rows[0].Epoch != ab[1].ID.String() {
		t.Fatalf("replaced log: %+v", rows)
	}
}

func TestNewerBootTakesOverAndTheOldOneDoesNotComeBack(t *testing.T) {
	ctx := context.Background()
	h, s, _ := newSink(t)
	a := chain("A")
	for _, hi := range []wire.Hello{hello(1, 1, a, 0), hello(1, 2, a, 0), hello(2, 1, a, 0)} {
		if _, err := s.Hello(ctx, "n1", hi); err != nil {
			t.Fatal(err)
		}
	}
	s.Status("n1", wire.Status{}) // it lives
	_, err := s.Hello(ctx, "n1", hello(1, 3, a, 0))
	refused(t, err, wire.CodeFenced)
	if n := h.Nodes()[0]; n.Fenced == "" || n.State != "fenced" {
		t.Errorf("the operator is not told: %+v", n)
	}
	if _, err := s.Hello(ctx, "n1", hello(2, 2, a, 0)); err != nil { // the newer one goes on
		t.Fatal(err)
	}
	_, err = s.Hello(ctx, "n1", hello(2, 1, a, 0)) // a late packet of an older session
	refused(t, err, wire.CodeSuperseded)
}

// TestOperatorEndsAFence over the API: the next log is taken whatever it is.
func TestOperatorEndsAFence(t *testing.T) {
	ctx := context.Background()
	h, s, _ := newSink(t)
	ab := chain("AB")
	if _, err := s.Hello(ctx, "n1", hello(1, 1, ab, 0)); err != nil {
		t.Fatal(err)
	}
	clone := chain("AX")
	_, err := s.Hello(ctx, "n1", hello(2, 1, clone, 0))
	refused(t, err, wire.CodeFenced)
	if w := call(h, "POST", "/api/v1/nodes/n1/accept", "", nil); w.Code != 200 {
		t.Fatal(w.Code, w.Body)
	}
	if _, err := s.Hello(ctx, "n1", hello(2, 2, clone, 0)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Hello(ctx, "n1", hello(2, 3, clone, 0)); err != nil { // and it stays
		t.Fatal(err)
	}
	_, err = s.Hello(ctx, "n1", hello(3, 1, ab, 0)) // the other copy is the old one now
	refused(t, err, wire.CodeFenced)
	if w := call(h, "POST", "/api/v1/nodes/nobody/accept", "", nil); w.Code != 404 {
		t.Error(w.Code)
	}
}

func TestNodeWithABadNameIsRefused(t *testing.T) {
	_, s, _ := newSink(t)
	for _, id := range []string{"", "a/b", "..", "a b", "a\n"} {
		_, err := s.Hello(context.Background(), id, hello(1, 1, chain("A"), 0))
		refused(t, err, wire.CodeAuth)
	}
}
