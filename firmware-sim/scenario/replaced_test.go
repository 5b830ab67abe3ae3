package scenario

import (
	"fmt"
	"path/filepath"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"tailrace/storage/storagetest"
)

// Histories in which the hub's disk is lost, or replaced by an older state of itself: beside
// what every history must show, a hub that has lost its disk gives out no offset twice under
// one leader epoch, and goes on in a higher one.
func TestHistoriesOfAReplacedHub(t *testing.T) {
	seeds := 10
	if testing.Short() {
		seeds = 2
	}
	sameKind(t, seeds, map[string]func(outcome) bool{
		"hub-lost":   func(o outcome) bool { return o.Told > 0 },
		"hub-backup": func(o outcome) bool { return o.HubDisks > 0 },
	})
}

// Histories in which a copy of the node's card runs, in its place or beside it.
func TestHistoriesOfACopiedCard(t *testing.T) {
	seeds := 10
	if testing.Short() {
		seeds = 3
	}
	ran := func(o outcome) bool { return o.Copies > 0 }
	sameKind(t, seeds, map[string]func(outcome) bool{"card-wrong": ran, "card-clone": ran})
}

// sameKind lives histories with one feature each; happened says whether one of them shows it.
func sameKind(t *testing.T, seeds int, happened map[string]func(outcome) bool) {
	certs, dir := scratch(t), scratch(t)
	if err := makeCerts(certs); err != nil {
		t.Fatal(err)
	}
	for f, shows := range happened {
		n := 0
		for seed := range uint64(seeds) {
			out, story, err := history(t, 100+seed, filepath.Join(dir, fmt.Sprint(f, seed)), certs, f, 30*time.Second)
			if err != nil {
				t.Fatalf("%s, seed %d: %v\n%s", f, 100+seed, err, story)
			}
			if shows(out) {
				n++
			}
		}
		if n == 0 {
			t.Errorf("%s never happened", f)
		}
	}
}

// The node's disk takes nothing when a hub welcomes it for the first time, and nothing is
// acknowledged later: when the disk is well again the note of the hub's store is made, or
// after a restart of the node nobody could tell that the hub's disk was lost.
func TestHubStoreIsNotedWhenTheDiskIsWellAgain(t *testing.T) {
	certs, dir := scratch(t), scratch(t)
	if err := makeCerts(certs); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(1, filepath.Join(dir, "world"), certs)
		defer w.end()
		w.wan.set(conditions{Rate: 20e6, Delay: 20 * time.Millisecond})
		if err := w.node.on(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		w.node.disk().Inject(storagetest.Fault{Call: storagetest.Sync, N: 1, Err: syscall.EROFS, Forever: true})
		if err := w.hub.on(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		store := w.hub.store().Identity().StoreID
		if st := w.node.edge().Status().Uplink; st == nil || !st.Connected || notedBy(w.node.store(), store) {
			t.Fatalf("noted while the disk takes nothing, or not connected: %+v", st)
		}
		w.node.disk().Heal()
		time.Sleep(time.Minute)
		if !notedBy(w.node.store(), store) {
			t.Error("the node has not noted the hub's store")
		}
	})
}
