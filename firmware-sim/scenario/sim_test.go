package scenario

import (
	"flag"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"tailrace/storage/record"
)

var (
	oneSeed   = flag.Uint64("seed", 0, "live this one history (0: those of -histories)")
	histories = flag.Int("histories", 200, "how many seeded histories")
	fromSeed  = flag.Uint64("from", 1, "first seed")
	failures  = flag.Int("failures", 3, "stop after so many failed histories")
	logs      = flag.Bool("logs", false, "print what node and hub log, with -seed")
)

// scratch is a directory in memory where there is one.
func scratch(t testing.TB) string {
	t.Helper()
	base := os.TempDir()
	if fi, err := os.Stat("/dev/shm"); err == nil && fi.IsDir() && os.Getenv("TMPDIR") == "" {
		base = "/dev/shm"
	}
	dir, err := os.MkdirTemp(base, "scenario-*")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// The shared encoder of package record holds a channel that must not belong to a bubble.
func TestMain(m *testing.M) {
	var b record.Builder
	b.Reset(nil)
	b.Add(1, nil, make([]byte, 64<<10), nil)
	record.Compress(nil, b.Finish(0, 0))
	os.Exit(m.Run())
}

// Two hundred histories: link cuts, loss and reordering, power cuts of node and hub, disk
// faults, while devices send; and what the seed's plan says. When all is healed, what was
// acknowledged is at the hub once and in order or is declared, and nothing else is.
func TestHistoriesLoseAndDoubleNothing(t *testing.T) {
	certs := scratch(t)
	if err := makeCerts(certs); err != nil {
		t.Fatal(err)
	}
	n, from := *histories, *fromSeed
	if testing.Short() {
		n /= 10
	}
	if *oneSeed != 0 {
		n, from = 1, *oneSeed
	}
	dir := scratch(t)
	start := time.Now()
	var total outcome
	var mu sync.Mutex
	var failed atomic.Int64
	t.Run("all", func(t *testing.T) {
		for i := range n {
			seed := from + uint64(i)
			t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
				t.Parallel()
				if failed.Load() >= int64(*failures) {
					t.Skip("enough histories have failed already")
				}
				out, story, err := history(t, seed, filepath.Join(dir, fmt.Sprint(seed)), certs, *withFeatures, 30*time.Second)
				if err != nil {
					failed.Add(1)
					t.Errorf("seed %d: %v\nits story (run again with -run TestHistories -seed %d):\n%s", seed, err, seed, story)
				}
				mu.Lock()
				defer mu.Unlock()
				total.add(out)
			})
		}
	})
	t.Logf("%d histories in %v, %v simulated: %d records, %d power cuts, %d outages, %d disk faults, %d reconnects of devices, %d re-sends",
		n, time.Since(start).Round(time.Millisecond), total.Simulated.Round(time.Second), total.HubRecords, total.Cuts, total.Outages, total.Faults, total.Reconnects, total.Resent)
	t.Logf("%d records declared, %d with QoS 2, %d wills, %d retained topics, %d disks of the hub replaced, %d copies of the node's card (the hub told of %d), %d steps of the clock, %d corrections",
		total.Declared, total.QoS2, total.Wills, total.Retained, total.HubDisks, total.Copies, total.Fenced, total.ClockSteps, total.ClockRows)
	quiet := total.Cuts == 0 || total.Faults == 0 || total.Outages == 0 || total.Resent == 0
	rare := total.Declared == 0 || total.QoS2 == 0 || total.Wills == 0 || total.Retained == 0 || total.HubDisks == 0 || total.Copies == 0 ||
		total.Fenced == 0 || total.ClockSteps == 0 || total.ClockRows == 0
	if !t.Failed() && (n >= 20 && quiet || n >= 100 && rare && *withFeatures == "") {
		t.Errorf("the histories were too quiet to prove anything")
	}
}

// history lives one history in a bubble of its own.
func history(t *testing.T, seed uint64, dir, certs, features string, storm time.Duration) (out outcome, story string, err error) {
	defer os.RemoveAll(dir)
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(seed, dir, certs)
		w.features = features
		if *logs && *oneSeed != 0 {
			w.log = slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})
		}
		out, err = w.live(storm)
		story = w.history()
	})
	return out, story, err
}
