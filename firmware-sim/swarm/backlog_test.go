package swarm

import (
	"testing"

	"tailrace/uplink"
	"tailrace/uplink/wire"
)

// A backlog is whole batches that are good, one after the other, from wherever it is read.
func TestBacklogReadsInWholeBatches(t *testing.T) {
	r, err := Readings(1)
	if err != nil {
		t.Fatal(err)
	}
	const total = (someBatches + 10) * perBatch // once around, and further
	l := &backlog{memLog: newLog("t", "n", 1), of: r, total: total}
	var b []byte
	for from := int64(0); from < total; {
		var next int64
		if b, next, err = l.Read(b[:0], "t", 0, from, 64<<10); err != nil || next <= from {
			t.Fatalf("read at %d: %d %v", from, next, err)
		}
		for rest := b; len(rest) > 0; {
			x, more, err := wire.NextBatch(rest)
			if err == nil {
				err = x.Verify()
			}
			if err != nil || x.Base != from || x.Next != from+perBatch {
				t.Fatalf("batch [%d, %d) at %d: %v", x.Base, x.Next, from, err)
			}
			from, rest = x.Next, more
		}
		if from != next {
			t.Fatalf("read to %d, said %d", from, next)
		}
	}
	if made, acked, waiting := l.counts(); made != total || acked != 0 || !waiting.Equal(l.begin) {
		t.Errorf("%d %d %v", made, acked, waiting)
	}
	l.Acked("t", 0, wire.ID{}, uplink.RangeSet{{From: 0, To: total}})
	if _, acked, waiting := l.counts(); acked != total || !waiting.IsZero() {
		t.Errorf("%d %v", acked, waiting)
	}
}
