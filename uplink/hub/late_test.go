package hub_test

import (
	"context"
	"testing"

	"tailrace/uplink/link"
	"tailrace/uplink/wire"
)

// Before a power cut the node's last packets took a longer way than all those of its next
// start: the hub hears the dead process last. It must not fence the living one.
func TestLateHelloOfADeadBootDoesNotFenceTheLivingOne(t *testing.T) {
	ctx := context.Background()
	_, s, _ := newSink(t)
	a := chain("A")
	for _, h := range []wire.Hello{hello(2, 1, a, 0), hello(1, 1, a, 0), hello(2, 2, a, 0)} {
		if _, err := s.Hello(ctx, "n1", h); err != nil {
			t.Fatalf("boot %v: %v", h.Boot, err)
		}
	}
	s.Status("n1", wire.Status{}) // the living one is heard: now it is settled
	_, err := s.Hello(ctx, "n1", hello(1, 2, a, 0))
	refused(t, err, wire.CodeFenced)
}

// A Hello in early data is answered when that changes nothing, so not where it tells that this
// store lacks something: the leader epoch is raised before the node hears of the new store.
func TestNoEarlyAnswerBeforeTheLeaderEpochIsRaised(t *testing.T) {
	ctx := context.Background()
	_, s, _ := newSink(t)
	if _, err := s.Hello(ctx, "n1", hello(1, 1, chain("A"), 0)); err != nil {
		t.Fatal(err)
	}
	id, epoch := s.Identity()
	for name, x := range map[string]struct {
		store *wire.StoreRef
		want  bool
	}{
		"knows none":           {nil, true},
		"knows this one":       {&wire.StoreRef{ID: id, Epoch: epoch}, true},
		"knows another":        {&wire.StoreRef{ID: wire.ID{9}, Epoch: epoch}, false},
		"knows a later state":  {&wire.StoreRef{ID: id, Epoch: epoch + 1}, false},
		"of before the raised": {&wire.StoreRef{ID: wire.ID{9}, Epoch: epoch - 1}, true},
	} {
		h := hello(1, 2, chain("A"), 0)
		h.Store = x.store
		if _, ok := s.(link.Previewer).Preview(ctx, "n1", h); ok != x.want {
			t.Errorf("%s: answered early %v, want %v", name, ok, x.want)
		}
	}
}
