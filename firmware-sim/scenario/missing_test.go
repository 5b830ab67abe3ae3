package scenario

import (
	"context"
	"os"
	"path/filepath"
	"sort"
	"testing"
	"testing/synctest"
	"time"

	"tailrace/storage"
)

// A file in the middle of a node's log is gone, with a backlog on both sides of it that the
// hub has not seen: at a start, and under the running node. Everything else comes to the hub,
// once and in order, what lay in the file is declared there, and the sum is exact. The check
// of the directory said before which offsets these would be.
func TestFileOfTheBacklogIsGone(t *testing.T) {
	certs, dir := scratch(t), scratch(t)
	if err := makeCerts(certs); err != nil {
		t.Fatal(err)
	}
	for _, live := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(7, filepath.Join(dir, map[bool]string{false: "start", true: "live"}[live]), certs)
			defer w.end()
			good := conditions{Rate: 20e6, Delay: 20 * time.Millisecond}
			w.wan.set(good)
			if err := w.hub.on(); err != nil {
				t.Fatal(err)
			}
			if err := w.node.on(); err != nil {
				t.Fatal(err)
			}
			ctx, stop := context.WithCancel(t.Context())
			defer stop()
			results := w.telemetry(ctx, 5, 200)
			time.Sleep(5 * time.Second)
			w.wan.set(conditions{Down: [2]bool{true, true}})
			time.Sleep(2 * time.Second)
			at := w.hub.records()
			time.Sleep(20 * time.Second)
			stop()
			if r := <-results; r.Failed != 0 || r.Unknown != 0 {
				t.Fatalf("devices: %+v", r)
			}
			logDir := filepath.Join(w.node.dir(), "main", "log")
			files, err := filepath.Glob(filepath.Join(logDir, "0*"))
			if err != nil || len(files) < 8 {
				t.Fatalf("%d segments, %v", len(files), err)
			}
			sort.Strings(files)
			if !live {
				w.node.off()
			}
			if err := os.Remove(files[len(files)*2/3]); err != nil {
				t.Fatal(err)
			}
			in, err := storage.Inspect(w.node.dir(), nil)
			if err != nil {
				t.Fatal(err)
			}
			p := ofStream(in)
			missing := p.Missing
			if len(missing) != 1 || missing[0].From <= at || missing[0].To >= p.Next {
				t.Fatalf("the check says that %v is missing; the hub has %d", missing, at)
			}
			if !live {
				if err := w.node.on(); err != nil {
					t.Fatal(err)
				}
			}
			w.wan.set(good)
			if err := w.drained(10 * time.Minute); err != nil {
				t.Fatal(err)
			}
			declared, err := account(w.node.store(), w.hub.store(), stream)
			if err != nil {
				t.Fatal(err)
			}
			if declared != missing[0].To-missing[0].From || declared < 20 {
				t.Errorf("%d records are declared, %v was missing", declared, missing)
			}
			for _, m := range []*machine{w.node, w.hub} {
				obs := w.book.Observe(m.name)
				if err := observe(m.store(), obs); err != nil {
					t.Fatal(err)
				}
				rep, err := only(obs.Report(), declared)
				if m == w.node && int64(rep.OffsetHoles) == declared { // there the hole shows
					rep.OffsetHoles = 0
				}
				if err != nil || !rep.OK() {
					t.Errorf("%s: %v, %v", m.name, rep, err)
				}
			}
		})
	}
}

// ofStream is what a check says of the stream's partition.
func ofStream(in *storage.Inspection) (p storage.PartitionInspection) {
	for _, p = range in.Classes[0].Partitions {
		if p.Topic == stream {
			return p
		}
	}
	return storage.PartitionInspection{}
}
