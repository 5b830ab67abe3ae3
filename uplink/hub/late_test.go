package hub_test

import (
	"context"
	"testing"

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
