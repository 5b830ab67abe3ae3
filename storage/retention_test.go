package storage_test

import (
	"errors"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"tailrace/storage"
)

// clock is a settable Config.Now.
type clock struct{ t time.Time }

func (c *clock) now() time.Time { return c.t }

func newClock() *clock { return &clock{time.UnixMilli(1_700_000_000_000)} }

func fill(t *testing.T, s *storage.Store, p *storage.Partition, n int, ts func(i int) int64) {
	t.Helper()
	for i := range n {
		put(t, s, p, ts(i), fmt.Sprintf("%0100d", i))
	}
}

// TestRetentionByBytesAndAge: what is beyond the limits goes, also from the disk;
// what is within stays, over a reopen, too.
func TestRetentionByBytesAndAge(t *testing.T) {
	dir, c := filepath.Join(t.TempDir(), "s"), newClock()
	mod := func(cfg *storage.Config) {
		cfg.FS, cfg.Now = &testFS{}, c.now
		cfg.Classes[0].SegmentBytes = 4096
	}
	s := open(t, dir, mod)
	size, err := s.CreateTopic("size", storage.TopicConfig{RetentionBytes: 10_000})
	if err != nil {
		t.Fatal(err)
	}
	fill(t, s, size.Partition(0), 200, func(i int) int64 { return int64(i) })
	before := len(segments(t, dir))
	if err := s.Retain(); err != nil {
		t.Fatal(err)
	}
	p := size.Partition(0)
	if b := p.Bytes(); b < 10_000 || b > 10_000+4096+300 || p.Start() == 0 {
		t.Fatalf("%d bytes, start %d", b, p.Start())
	}
	if after := len(segments(t, dir)); after > 6 || before < 10 {
		t.Fatalf("%d segments, were %d", after, before)
	}
	if _, _, err := p.Read(nil, p.Start()-1, 100); !errors.Is(err, storage.ErrOffsetOutOfRange) {
		t.Fatal(err)
	}
	age, err := s.CreateTopic("age", storage.TopicConfig{RetentionAge: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	arrival, err := s.CreateTopic("arrival", storage.TopicConfig{RetentionAge: time.Hour, RetentionByArrival: true})
	if err != nil {
		t.Fatal(err)
	}
	old := c.t.Add(-2 * time.Hour).UnixMilli()
	for _, tp := range []*storage.Topic{age, arrival} {
		fill(t, s, tp.Partition(0), 50, func(i int) int64 { return old + int64(i) })
	}
	if err := s.Retain(); err != nil {
		t.Fatal(err)
	}
	if a, b := age.Partition(0).Start(), arrival.Partition(0).Start(); a != 50 || b != 0 {
		t.Fatalf("starts %d by event time, %d by arrival; want 50, 0", a, b)
	}
	c.t = c.t.Add(61 * time.Minute)
	if err := s.Retain(); err != nil {
		t.Fatal(err)
	}
	if b := arrival.Partition(0).Start(); b != 50 {
		t.Fatalf("start by arrival an hour later %d", b)
	}
	want := content(t, s)
	s.Close()
	plainRead(t, dir)
	s = open(t, dir, mod)
	if got := content(t, s); fmt.Sprint(got) != fmt.Sprint(want) || repairs(s) != "" || len(s.Losses()) != 0 {
		t.Fatalf("reopened: %v\nwant %v\nlosses %v", got, want, s.Losses())
	}
	tp, _ := s.Topic("age")
	put(t, s, tp.Partition(0), c.t.UnixMilli(), "next")
	if r := readAll(t, tp.Partition(0), 50); len(r) != 1 || r[0].Offset != 50 {
		t.Fatalf("offsets do not go on: %v", r)
	}
}

// TestStateOutlivesItsSegment: state that only dropped segments held is still
// there, folds whole, deletions deleted, topics and epochs too.
func TestStateOutlivesItsSegment(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "s")
	mod := func(cfg *storage.Config) {
		cfg.FS = &testFS{}
		cfg.Classes[0].SegmentBytes = 4096
		cfg.Folds = map[storage.StateKind]storage.FoldFunc{storage.KindWindow: concat}
	}
	s := open(t, dir, mod)
	id := s.Identity()
	tp, err := s.CreateTopic("wind", storage.TopicConfig{RetentionBytes: 1, Labels: map[string]string{"a": "b"}})
	if err != nil {
		t.Fatal(err)
	}
	a := s.NewAppend("")
	a.Set(storage.KindMeta, "kept", []byte("1"))
	a.Set(storage.KindMeta, "gone", []byte("2"))
	a.Set(storage.KindMeta, "empty", []byte{})
	a.Fold(storage.KindWindow, "w", []byte("a"))
	if err := s.Commit(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	fill(t, s, tp.Partition(0), 100, func(i int) int64 { return int64(i) })
	a.Reset()
	a.Set(storage.KindMeta, "gone", nil)
	a.Fold(storage.KindWindow, "w", []byte("b"))
	if err := s.Commit(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	for range 3 { // three times round
		fill(t, s, tp.Partition(0), 100, func(i int) int64 { return int64(i) })
		if err := s.Retain(); err != nil {
			t.Fatal(err)
		}
	}
	if first := filepath.Base(segments(t, dir)[0]); first < "00000000000000000300" {
		t.Fatalf("the log still begins at %s", first)
	}
	check := func() {
		t.Helper()
		v, ok := s.State(storage.KindMeta, "kept")
		_, gone := s.State(storage.KindMeta, "gone")
		e, empty := s.State(storage.KindMeta, "empty")
		w, _ := s.State(storage.KindWindow, "w")
		tp, there := s.Topic("wind")
		if string(v) != "1" || !ok || gone || !empty || len(e) != 0 || string(w) != "ab" || !there ||
			tp.Config().Labels["a"] != "b" || s.Identity().Epoch.ID != id.Epoch.ID || s.Identity().StoreID != id.StoreID {
			t.Fatalf("kept %q, gone %v, empty %v, window %q, topic %v, epoch %+v", v, gone, empty, w, there, s.Identity().Epoch)
		}
	}
	check()
	s.Close()
	s = open(t, dir, mod)
	check()
}

// TestDropOldestDeclaresWhatGoes: over its budget the class gives up the oldest;
// readable and declared make everything, what the hub had is no loss, the disk
// stays within the budget.
func TestDropOldestDeclaresWhatGoes(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "s")
	const budget = 64 << 10
	mod := func(cfg *storage.Config) {
		cfg.FS = &testFS{}
		cfg.Classes[0].SegmentBytes, cfg.Classes[0].MaxBytes, cfg.Classes[0].WhenFull = 4096, budget, storage.DropOldest
	}
	s := open(t, dir, mod)
	tp := topic(t, s, "wind", 2)
	tp.Partition(1).Acked(150)
	for i := range 600 {
		put(t, s, tp.Partition(i%2), int64(i), fmt.Sprintf("%0200d", i))
		if d := s.Stats().Classes[0].DiskBytes; d > budget {
			t.Fatalf("%d bytes on disk, the budget is %d", d, budget)
		}
	}
	check := func() {
		t.Helper()
		losses := s.Losses()
		if len(losses) != 2 {
			t.Fatalf("losses %+v", losses)
		}
		for i, from := range []int64{0, 150} {
			tp, _ := s.Topic("wind")
			p, l := tp.Partition(i), losses[i]
			if l.Partition != p.ID() || l.Index != i || l.Topic != "wind" || l.Reason != storage.LossEvicted || l.From != from || l.To != p.Start() || p.Start() < 151 {
				t.Fatalf("partition %d begins at %d, loss %+v", i, p.Start(), l)
			}
			if r := readAll(t, p, p.Start()); int64(len(r)) != 300-p.Start() {
				t.Fatalf("partition %d: %d records from %d", i, len(r), p.Start())
			}
		}
	}
	check()
	if n := s.Stats().Classes[0].EvictedRecords; n == 0 {
		t.Fatal("not counted")
	}
	s.Close()
	plainRead(t, dir)
	s = open(t, dir, mod)
	check()
	l := s.Losses()[0]
	l.To -= 5
	if err := s.SettleLoss(t.Context(), l); err != nil {
		t.Fatal(err)
	}
	if got := s.Losses()[0]; got.From != l.To || got.To != l.To+5 {
		t.Fatalf("settled in part: %+v", got)
	}
}

// TestRejectRefusesUntilTheHubHasIt: a full class refuses records, still takes
// state, and frees what the hub has acknowledged.
func TestRejectRefusesUntilTheHubHasIt(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "s")
	s := open(t, dir, func(cfg *storage.Config) {
		cfg.FS = &testFS{}
		cfg.Classes[0].SegmentBytes, cfg.Classes[0].MaxBytes, cfg.Classes[0].WhenFull = 4096, 64<<10, storage.Reject
	})
	p := topic(t, s, "wind", 1).Partition(0)
	one := func(i int) error {
		a := s.NewAppend("")
		a.Record(p, int64(i), nil, fmt.Appendf(nil, "%0200d", i), nil)
		return s.Commit(t.Context(), a)
	}
	n := 0
	for ; n < 1000; n++ {
		if err := one(n); err != nil {
			if !errors.Is(err, storage.ErrFull) {
				t.Fatal(err)
			}
			break
		}
	}
	if n < 50 || n == 1000 || p.HighWatermark() != int64(n) || p.Start() != 0 {
		t.Fatalf("%d taken, [%d, %d)", n, p.Start(), p.HighWatermark())
	}
	a := s.NewAppend("")
	a.Set(storage.KindSession, "c", []byte("state"))
	if err := s.Commit(t.Context(), a); err != nil {
		t.Fatalf("state within the reserve: %v", err)
	}
	p.Acked(int64(n) / 2)
	if err := one(n); err != nil {
		t.Fatal(err)
	}
	if p.Start() == 0 || p.Start() > int64(n)/2 || len(s.Losses()) != 0 {
		t.Fatalf("start %d, losses %v", p.Start(), s.Losses())
	}
}
