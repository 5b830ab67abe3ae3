package edge

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"tailrace/storage"
)

// Wear is a wear meter on a disk that exists only as a file of /sys.
type Wear struct {
	t     testing.TB
	w     *wear
	start time.Time
	now   time.Time
	st    storage.Stats
}

func NewWear(t testing.TB, endurance int64) *Wear {
	w := &Wear{t: t, start: time.Unix(1_700_000_000, 0)}
	w.w = &wear{medium: medium{Device: "mmcblk0", Kind: "sd"}, sys: t.TempDir(), endurance: endurance, started: w.start}
	return w
}

// Disk sets the sectors written; the first call is what there was at the start.
func (w *Wear) Disk(at time.Duration, sectors int64) {
	dir := filepath.Join(w.w.sys, "block", "mmcblk0")
	os.MkdirAll(dir, 0o700)
	if err := os.WriteFile(filepath.Join(dir, "stat"), fmt.Appendf(nil, " 1 0 8 0 5 0 %d 9 0 0 0\n", sectors), 0o600); err != nil {
		w.t.Fatal(err)
	}
	if at == 0 {
		w.w = newWear(w.w.medium, w.w.sys, w.w.endurance, w.start)
	}
}

func (w *Wear) Tick(at time.Duration, fsyncs, payload uint64) {
	w.now = w.start.Add(at)
	w.st = storage.Stats{Classes: []storage.ClassStats{{Fsyncs: fsyncs, PayloadBytes: payload}}}
	w.w.tick(w.now, w.st)
}

func (w *Wear) Status() FlashStatus { return w.w.status(w.now, w.st) }
