package edge_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"tailrace/edge"
	"tailrace/storage"
	"tailrace/uplink"
	"tailrace/uplink/link"
	"tailrace/uplink/wire"
)

func ranges(from, to int64) uplink.RangeSet { return uplink.RangeSet{{From: from, To: to}} }

func TestAcknowledgedOffsetIsTheEndOfTheFirstRunWithoutAHole(t *testing.T) {
	n := node(t, plain+"default: {stream: s}\n")
	p := client(t, n, "d")
	for i := range 10 {
		publish(t, p, "a", fmt.Sprint(i))
	}
	src := n.Source()
	inv := src.Inventory()
	if len(inv.Epochs) != 1 || len(inv.Partitions) != 1 || inv.Partitions[0].Next != 10 || inv.Partitions[0].Topic != "s" {
		t.Fatalf("%+v", inv)
	}
	epoch := inv.Epochs[0].ID
	tp, _ := n.Store().Topic("s")
	part := tp.Partition(0)
	other := epoch
	other[0] ^= 1
	src.Acked("s", 0, other, ranges(0, 99)) // another log's acknowledgement counts for nothing
	src.Acked("none", 0, epoch, ranges(0, 5))
	for _, step := range []struct {
		from, to, want int64
	}{{4, 6, 0}, {0, 2, 2}, {8, 10, 2}, {2, 4, 6}, {3, 5, 6}, {6, 8, 10}, {0, 99, 10}} {
		src.Acked("s", 0, epoch, ranges(step.from, step.to))
		if got := n.AckedOffset(part); got != step.want {
			t.Fatalf("after [%d,%d): acked %d, want %d", step.from, step.to, got, step.want)
		}
	}
	if start, next := src.Bounds("s", 0); start != 0 || next != 10 {
		t.Fatalf("bounds %d %d", start, next)
	}
	if _, _, err := src.Read(nil, "none", 0, 0, 100); !errors.Is(err, link.ErrGone) {
		t.Fatalf("unknown topic: %v", err)
	}
	b, nextOff, err := src.Read(nil, "s", 0, 10, 100)
	if err != nil || len(b) != 0 || nextOff != 10 {
		t.Fatalf("at the end: %d bytes, %d, %v", len(b), nextOff, err)
	}
	g := src.Generation()
	if n.Status().Topics[0].Lag != 0 {
		t.Fatalf("%+v", n.Status().Topics)
	}
	code, _ := get(t, n, "/api/v1/topics")
	if code != 200 || src.Generation() != g {
		t.Fatal("generation moves without a new partition")
	}
}

// TestAcksOfAnotherStoreCountNoMore: at each welcome what was acknowledged before is
// forgotten, and only what this hub's store says from then on counts.
func TestAcksOfAnotherStoreCountNoMore(t *testing.T) {
	n := node(t, plain+"default: {stream: s}\n")
	p := client(t, n, "d")
	for i := range 10 {
		publish(t, p, "a", fmt.Sprint(i))
	}
	src := n.Source()
	tp, _ := n.Store().Topic("s")
	part, epoch := tp.Partition(0), src.Inventory().Epochs[0].ID
	src.Acked("s", 0, epoch, ranges(0, 10))
	if got := n.AckedOffset(part); got != 10 {
		t.Fatalf("acked %d", got)
	}
	for store := range 2 {
		if err := n.Welcomed(wire.Welcome{StoreID: wire.ID{byte(store + 1)}, StoreEpoch: 1}); err != nil {
			t.Fatal(err)
		}
		if got := n.AckedOffset(part); got != 0 {
			t.Fatalf("store %d: acked %d by another", store, got)
		}
		src.Acked("s", 0, epoch, ranges(0, 4))
		if got := n.AckedOffset(part); got != 4 {
			t.Fatalf("store %d: acked %d", store, got)
		}
	}
}

// TestWhatIsGivenUpStaysProposedUntilTheHubHasIt: that the start has moved past a loss, and
// the hub has acknowledged what comes behind it, does not mean that the hub knows of it.
func TestWhatIsGivenUpStaysProposedUntilTheHubHasIt(t *testing.T) {
	n := node(t, `
node: node-1
storage: {dir: "%DIR%/data", classes: [{name: main, when_full: drop-oldest, max_size: 384KiB, segment_size: 64KiB, commit_interval: 0s}]}
mqtt:
  listeners: [{address: "127.0.0.1:0"}]
  auth: {allow_anonymous: true}
default: {stream: s}
http: {address: "127.0.0.1:0"}
`)
	src := n.Source()
	p := client(t, n, "d")
	publish(t, p, "a", "first")
	tp, _ := n.Store().Topic("s")
	part, epoch := tp.Partition(0), src.Inventory().Epochs[0].ID
	for i := 0; part.Start() == 0; i++ {
		if r := publish(t, p, "a", strings.Repeat("x", 8000)); r != 0 || i > 1000 {
			t.Fatalf("publish %d: 0x%02X", i, r)
		}
	}
	start, next := src.Bounds("s", 0)
	want := fmt.Sprintf("[0,%d)", start)
	proposed := func() (set uplink.RangeSet) {
		for _, g := range src.Gaps() {
			if g.Gap.Reason != wire.GapEvicted {
				t.Errorf("%+v", g)
			}
			set.AddSet(g.Gap.Ranges)
		}
		return set
	}
	for range 3 {
		src.Acked("s", 0, epoch, ranges(next-1, next)) // behind it
		if got := proposed(); got.String() != want {
			t.Fatalf("proposed %s, want %s", got, want)
		}
	}
	if off := n.AckedOffset(part); off != start {
		t.Errorf("acked to %d, want the start %d", off, start)
	}
	src.Acked("s", 0, epoch, ranges(start/2, start)) // a part
	if got := proposed(); got.String() != want {
		t.Fatalf("half of it is declared: proposed %s, want %s", got, want)
	}
	src.Acked("s", 0, epoch, ranges(0, start/2))
	if got := proposed(); len(got) > 0 {
		t.Errorf("the hub has it, and %s is proposed", got)
	}
}

func TestSpansOfEpochsFollowEachOther(t *testing.T) {
	n := node(t, plain+"default: {stream: s}\n")
	p := client(t, n, "d")
	publish(t, p, "a", "x")
	tp, _ := n.Store().Topic("s")
	part := tp.Partition(0)
	id := part.ID()
	epochs := []storage.Epoch{
		{Number: 1},
		{Number: 2, ForkAt: map[storage.PartitionID]int64{id: 100}},
		{Number: 3, ForkAt: map[storage.PartitionID]int64{id: 100}}, // nothing was written in epoch 2
		{Number: 4, ForkAt: map[storage.PartitionID]int64{id: 250}},
	}
	want := [][2]int64{{0, 100}, {100, 100}, {100, 250}, {250, uplink.Forever}}
	for i, w := range want {
		if from, to := edge.Span(epochs, i, part); from != w[0] || to != w[1] {
			t.Errorf("epoch %d: [%d,%d), want %v", i+1, from, to, w)
		}
	}
	// A partition made in epoch 2 has no offsets in epoch 1.
	epochs[1].ForkAt, epochs[2].ForkAt = nil, map[storage.PartitionID]int64{id: 7}
	if from, to := edge.Span(epochs, 0, part); from != 0 || to != 0 {
		t.Errorf("before it was made: [%d,%d)", from, to)
	}
	if from, to := edge.Span(epochs, 1, part); from != 0 || to != 7 {
		t.Errorf("its first epoch: [%d,%d)", from, to)
	}
}
