package scenario

import (
	"fmt"
	"path/filepath"
	"testing"
	"time"
)

// Histories in which the hub's disk is lost, or replaced by an older state of itself: beside
// what every history must show, a hub that has lost its disk gives out no offset twice under
// one leader epoch (asked for with -given), and goes on in a higher one.
func TestHistoriesOfAReplacedHub(t *testing.T) {
	seeds := 10
	if testing.Short() {
		seeds = 2
	}
	sameKind(t, seeds, "hub-lost", "hub-backup", func(o outcome) bool { return o.HubDisks > 0 })
}

// Histories in which a copy of the node's card runs, in its place or beside it.
func TestHistoriesOfACopiedCard(t *testing.T) {
	seeds := 10
	if testing.Short() {
		seeds = 3
	}
	sameKind(t, seeds, "card-wrong", "card-clone", func(o outcome) bool { return o.Copies > 0 })
}

func sameKind(t *testing.T, seeds int, one, other string, happened func(outcome) bool) {
	certs, dir := scratch(t), scratch(t)
	if err := makeCerts(certs); err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{one, other} {
		n := 0
		for seed := range uint64(seeds) {
			out, story, err := history(t, 100+seed, filepath.Join(dir, fmt.Sprint(f, seed)), certs, f, 30*time.Second)
			if err != nil {
				t.Fatalf("%s, seed %d: %v\n%s", f, 100+seed, err, story)
			}
			if happened(out) {
				n++
			}
		}
		if n == 0 {
			t.Errorf("%s never happened", f)
		}
	}
}
