package edge

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"tailrace/storage"
	"tailrace/storage/record"
)

// board is a machine whose clock the test turns.
type board struct {
	t      *testing.T
	dir    string
	boot   string
	up     time.Duration // since the boot
	shift  time.Duration // wall minus up
	synced bool
	hub    *time.Duration // offset, when measured
	store  *storage.Store
	c      *clock
}

var truth = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)

func newBoard(t *testing.T) *board {
	b := &board{t: t, dir: t.TempDir(), boot: "boot-1", up: 10 * time.Second}
	b.start()
	t.Cleanup(func() { b.store.Close() })
	return b
}

func (b *board) wall() time.Time { return time.Unix(0, int64(b.shift+b.up)) }

func (b *board) start() {
	b.t.Helper()
	var err error
	if b.store, err = storage.Open(storage.Config{Dir: b.dir, OriginHeaders: true, NodeID: "n", Classes: []storage.ClassConfig{{Name: "main"}}}); err != nil {
		b.t.Fatal(err)
	}
	if _, ok := b.store.Topic("wind"); !ok {
		if _, err := b.store.CreateTopic("wind", storage.TopicConfig{Partitions: 1}); err != nil {
			b.t.Fatal(err)
		}
	}
	b.c = &clock{node: "n", wall: b.wall, mono: func() time.Duration { return b.up }, boot: b.boot, synced: func() bool { return b.synced },
		offset: func() (time.Duration, bool) {
			if b.hub == nil {
				return 0, false
			}
			return *b.hub, true
		}, store: b.store, logger: slog.New(slog.DiscardHandler)}
	b.c.load()
}

func (b *board) restart() {
	b.t.Helper()
	if err := b.store.Close(); err != nil {
		b.t.Fatal(err)
	}
	b.start()
}

// put appends n records, one a second, stamped by the wall clock.
func (b *board) put(n int) {
	b.t.Helper()
	top, _ := b.store.Topic("wind")
	for range n {
		b.up += time.Second
		a := b.store.NewAppend("")
		if err := a.Record(top.Partition(0), b.wall().UnixMilli(), nil, []byte("v"), nil); err != nil {
			b.t.Fatal(err)
		}
		if err := b.store.Commit(context.Background(), a); err != nil {
			b.t.Fatal(err)
		}
	}
}

// set turns the wall clock to the truth at this moment of the boot.
func (b *board) set() { b.shift = time.Duration(truth.UnixNano()) }

func (b *board) rows() []ClockRow {
	b.t.Helper()
	top, ok := b.store.Topic(clockTopic)
	if !ok {
		return nil
	}
	var out []ClockRow
	for off := int64(0); off < top.Partition(0).HighWatermark(); {
		buf, next, err := top.Partition(0).Read(nil, off, 1<<20)
		if err != nil {
			b.t.Fatal(err)
		}
		off = next
		for len(buf) > 0 {
			var batch record.Batch
			if batch, buf, err = record.Next(buf); err != nil {
				b.t.Fatal(err)
			}
			for it := batch.Iter(nil); it.Next(); {
				var r ClockRow
				if err := json.Unmarshal(it.Record().Value, &r); err != nil {
					b.t.Fatal(err)
				}
				out = append(out, r)
			}
		}
	}
	return out
}

func (b *board) want(want ...string) {
	b.t.Helper()
	var got []string
	for _, r := range b.rows() {
		if r.Node != "n" || r.Topic != "wind" || len(r.Epoch) != 32 || r.At == 0 {
			b.t.Errorf("row %+v", r)
		}
		s := fmt.Sprintf("%s [%d,%d) %+dms", r.Boot, r.From, r.To, r.DeltaMS)
		if r.Unknown {
			s = fmt.Sprintf("%s [%d,%d) unknown", r.Boot, r.From, r.To)
		}
		got = append(got, s)
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		b.t.Errorf("rows\n %q, want\n %q", got, want)
	}
}

func TestClockThatIsSetLateIsCorrected(t *testing.T) {
	b := newBoard(t)
	b.put(10)
	b.c.look()
	if b.c.isTrusted() {
		t.Error("a clock in 1970 that nobody keeps is trusted")
	}
	b.want()
	b.put(3)
	b.set() // between two looks, records on both sides
	b.put(4)
	b.c.look()
	b.want() // the clock was set, but nobody vouches for it yet
	b.synced = true
	b.c.look()
	delta := truth.UnixMilli()
	b.want(fmt.Sprintf("boot-1 [0,13) %+dms", delta))
	if !b.c.isTrusted() || b.c.known().Before(truth) {
		t.Errorf("trusted %v, known %v", b.c.isTrusted(), b.c.known())
	}
	b.put(5)
	b.c.look()
	b.restart()
	b.c.look()
	b.want(fmt.Sprintf("boot-1 [0,13) %+dms", delta))
}

// The records around a step may be gone before it is found: the hub has acknowledged them,
// or the disk was full. Those of which nothing can be known are not called wrong by 56 years.
func TestClockSetAmongRecordsThatHaveLeft(t *testing.T) {
	for name, c := range map[string]struct {
		gone int64
		want []string
	}{
		"old ones only":           {gone: 12, want: []string{"boot-1 [0,13)"}},
		"all old ones":            {gone: 13, want: []string{"boot-1 [0,10)", "boot-1 [10,13) unknown"}},
		"all old and some new":    {gone: 15, want: []string{"boot-1 [0,10)", "boot-1 [10,15) unknown"}},
		"all since the last look": {gone: 17, want: []string{"boot-1 [0,10)", "boot-1 [10,17) unknown"}},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBoard(t)
			b.put(10)
			b.c.look()
			b.put(3)
			b.set()
			b.put(4)
			top, _ := b.store.Topic("wind")
			if err := top.Partition(0).SetStart(c.gone); err != nil {
				t.Fatal(err)
			}
			b.synced = true
			b.c.look()
			for i, w := range c.want {
				if !strings.HasSuffix(w, "unknown") {
					c.want[i] = fmt.Sprintf("%s %+dms", w, truth.UnixMilli())
				}
			}
			b.want(c.want...)
			b.put(3)
			b.c.look()
			b.want(c.want...)
		})
	}
}

func TestClockThatOnlyTheHubKnows(t *testing.T) {
	b := newBoard(t)
	off := time.Duration(truth.UnixNano())
	b.put(10)
	b.hub = &off
	b.c.look()
	b.put(10)
	b.c.look() // within a minute: gathered
	b.up += rowInterval
	b.put(5)
	b.c.look()
	d := truth.UnixMilli()
	b.want(fmt.Sprintf("boot-1 [0,10) %+dms", d), fmt.Sprintf("boot-1 [10,25) %+dms", d))
	if b.c.isTrusted() {
		t.Error("a clock that is 56 years wrong is trusted")
	}
	// Somebody sets it. The hub's offset is of before the step, and not used.
	b.put(2)
	b.set()
	b.put(1)
	b.c.look()
	zero := time.Duration(0)
	b.up, b.hub = b.up+hubSettle, &zero
	b.put(1)
	b.c.look()
	b.want(fmt.Sprintf("boot-1 [0,10) %+dms", d), fmt.Sprintf("boot-1 [10,25) %+dms", d), fmt.Sprintf("boot-1 [25,27) %+dms", d))
	if !b.c.isTrusted() {
		t.Error("a clock that agrees with the hub's is not trusted")
	}
}

func TestProcessStartedAgainBeforeTheTimeIsKnown(t *testing.T) {
	b := newBoard(t)
	b.put(10)
	b.c.look()
	b.restart()
	b.put(5)
	b.set()
	b.synced = true
	b.c.look()
	b.want(fmt.Sprintf("boot-1 [0,15) %+dms", truth.UnixMilli()))
}

func TestMachineSwitchedOffBeforeTheTimeIsKnown(t *testing.T) {
	b := newBoard(t)
	b.put(10)
	b.c.look()
	b.boot, b.up = "boot-2", 3*time.Second
	b.restart()
	b.put(5)
	b.set()
	b.synced = true
	b.put(1)
	b.c.look()
	b.want("boot-1 [0,10) unknown", fmt.Sprintf("boot-2 [10,15) %+dms", truth.UnixMilli()))
}

func TestGoodClockWritesNothing(t *testing.T) {
	b := newBoard(t)
	b.synced = true
	b.set()
	b.boot = "boot-2"
	b.restart()
	before := b.store.Stats().Classes[0].Commits
	b.put(10)
	for range 20 {
		b.up += time.Second
		b.c.look()
	}
	b.want()
	if n := b.store.Stats().Classes[0].Commits - before; n > 11 {
		t.Errorf("%d commits for 10 records: the clock writes while there is nothing to say", n)
	}
}

func TestCertificatesAreCheckedNoEarlierThanTheLastKnownTime(t *testing.T) {
	b := newBoard(t)
	b.set()
	b.synced = true
	b.c.look()
	b.boot, b.up, b.shift, b.synced = "boot-2", 0, 0, true // in 1970 again, and the kernel says it is fine
	b.restart()
	b.c.look()
	if b.c.isTrusted() {
		t.Error("a clock before a time that has passed is trusted")
	}
	if k := b.c.known(); k.Before(truth) {
		t.Errorf("last known time %v, want %v or later", k, truth)
	}
}
