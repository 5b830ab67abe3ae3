package hub_test

import (
	"context"
	"errors"
	"sync"
	"syscall"
	"testing"
	"time"

	"tailrace/storage"
	"tailrace/storage/record"
	"tailrace/storage/storagetest"
	"tailrace/uplink"
	"tailrace/uplink/hub"
	"tailrace/uplink/wire"
)

var epochB = wire.ID{0xb2, 3, 4}

// elders is a hub that knows a node with two epochs, and the origins of one partition.
func elders(t *testing.T) (w *world, old, young wire.Origin) {
	w = newWorld(t, hub.TopicRule{Match: "*", Partitions: 1})
	w.adopt("n1", root(epochA), wire.EpochInfo{ID: epochB, Number: 2, Parent: epochA})
	old, young = origin("n1", "temp"), origin("n1", "temp")
	young.Epoch = epochB
	return w, old, young
}

// order is which epochs the records of the central partition come from, in its order.
func order(t *testing.T, w *world) (epochs []wire.ID) {
	t.Helper()
	tp, ok := w.store.Topic("temp")
	if !ok {
		return nil
	}
	p := tp.Partition(0)
	for off := p.Start(); off < p.HighWatermark(); off++ {
		o, ok := p.Origin(off)
		if !ok {
			t.Fatalf("offset %d has no origin", off)
		}
		epochs = append(epochs, o.Epoch)
	}
	return epochs
}

// While records of the older epoch are on their way to the disk those of the younger wait.
func TestAYoungerEpochWaitsForTheOlderOnItsWayToTheDisk(t *testing.T) {
	w, old, young := elders(t)
	w.mustAppend(old, batch(old, 0, 1)) // topic and stream are there
	w.fs.Delay(storagetest.Sync, 50*time.Millisecond)
	var wg sync.WaitGroup
	for from := int64(1); from < 9; from++ {
		wg.Add(1)
		w.eng.Append(context.Background(), old, batch(old, from, from+1), func(_ uplink.RangeSet, err error) {
			defer wg.Done()
			if err != nil {
				t.Error(err)
			}
		})
	}
	w.mustAppend(young, batch(young, 0, 1)) // in its own queue: nothing but the rule holds it back
	wg.Wait()
	got := order(t, w)
	if len(got) != 10 || got[9] != epochB {
		t.Fatalf("epochs in the order of the disk: %v", got)
	}
	for _, id := range got[:9] {
		if id != epochA {
			t.Fatalf("the younger epoch overtook: %v", got)
		}
	}
	w.audit()
}

// After a failed write the older epoch comes again; until then the younger is refused.
func TestAYoungerEpochIsRefusedUntilTheOlderIsStored(t *testing.T) {
	w, old, young := elders(t)
	w.mustAppend(old, batch(old, 0, 1))
	w.fs.Inject(storagetest.Fault{Call: storagetest.Sync, Err: syscall.EIO, Forever: true})
	if _, err := w.append(old, batch(old, 1, 2)); err == nil {
		t.Fatal("stored on a disk that fails")
	}
	w.heal(origin("n1", "other"))
	if _, err := w.append(young, batch(young, 0, 1)); err == nil {
		t.Fatalf("the younger epoch overtook: %v", order(t, w))
	}
	w.mustAppend(old, batch(old, 1, 2))
	w.mustAppend(young, batch(young, 0, 1))
	if got := order(t, w); len(got) != 3 || got[1] != epochA || got[2] != epochB {
		t.Fatalf("epochs in the order of the disk: %v", got)
	}
	w.audit()
}

// Records that are refused for good, whatever is sent again, hold nobody back.
func TestAYoungerEpochDoesNotWaitForWhatIsRefusedForGood(t *testing.T) {
	w, old, young := elders(t)
	w.mustAppend(old, batch(old, 0, 1))
	var bl record.Builder
	bl.Reset(nil)
	bl.Add(1, nil, make([]byte, storage.MaxRecordBytes), nil)
	if _, err := w.append(old, bl.Finish(1, 1)); !errors.Is(err, storage.ErrTooLarge) {
		t.Fatalf("a batch larger than any may be: %v", err)
	}
	w.mustAppend(young, batch(young, 0, 1))
	if got := order(t, w); len(got) != 2 || got[1] != epochB {
		t.Fatalf("epochs in the order of the disk: %v", got)
	}
}
