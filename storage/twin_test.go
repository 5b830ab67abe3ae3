package storage_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"tailrace/storage"
)

// hiddenTopic is a store whose topic's entry is damaged.
func hiddenTopic(t *testing.T, h *history) (dir string) {
	t.Helper()
	dir = copyDir(t, h.clean)
	name := tailFile(t, dir)
	damageFile(t, name, entriesOf(mustRead(t, name))[1][0]+30, []byte("rot"))
	return dir
}

// TestTwinSurvivesAnInterruptedOpen: the damage is repaired, and the power goes before
// what the second copy has was written into the log. The next Open still does it, and then
// the log has it without the copy.
func TestTwinSurvivesAnInterruptedOpen(t *testing.T) {
	h := makeHistory(t, 6)
	dir := hiddenTopic(t, h)
	tail := tailFile(t, dir)
	h.fs.setHook(func(op, name string) error {
		if op == "sync" && name == tail {
			return errors.New("no")
		}
		return nil
	})
	_, err := storage.Open(storage.Config{Dir: dir, FS: h.fs, NodeID: "n1", Classes: []storage.ClassConfig{{Name: "main", MinFreeBytes: -1}}, RetentionInterval: -1})
	h.fs.setHook(nil)
	if err == nil {
		t.Fatal("Open did not need the log")
	}
	s := open(t, dir, onFS(h.fs))
	if tp, ok := s.Topic("wind"); !ok || len(readAll(t, tp.Partition(0), 0)) != 12 || !strings.Contains(repairs(s), "state-restored") {
		t.Fatalf("topic %v, repairs %q", ok, repairs(s))
	}
	s.Close()
	if err := os.Remove(filepath.Join(dir, "main", "twin")); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir, onFS(h.fs))
	defer s.Close()
	if _, ok := s.Topic("wind"); !ok || repairs(s) != "" {
		t.Fatalf("without the copy: topic %v, repairs %q", ok, repairs(s))
	}
}

// TestTwinCountsALossOnce: the copy cannot be written after the end of the log was found
// missing. The numbers of the lost commits are not given out again, so the next Open does
// not take them for missing once more.
func TestTwinCountsALossOnce(t *testing.T) {
	h := makeHistory(t, 6)
	dir := copyDir(t, h.clean)
	b := mustRead(t, tailFile(t, dir))
	mustWrite(t, tailFile(t, dir), b[:h.sizes[len(h.sizes)-3]])
	h.fs.setHook(func(op, name string) error {
		if op == "rename" && filepath.Base(name) == "twin" {
			return errors.New("no")
		}
		return nil
	})
	s := open(t, dir, onFS(h.fs))
	crashed := copyDir(t, dir)
	h.fs.setHook(nil)
	if e := s.Identity().Epoch.Number; e != 2 {
		t.Fatalf("epoch %d", e)
	}
	rows := len(s.Losses())
	s.Close()
	s = open(t, crashed, onFS(h.fs))
	defer s.Close()
	if e := s.Identity().Epoch.Number; e != 2 || repairs(s) != "" || len(s.Losses()) != rows {
		t.Fatalf("epoch %d, repairs %q, losses %+v", e, repairs(s), s.Losses())
	}
}

// TestTwinIsDurableBeforeOpenMayLeaveASegmentOut: after a change of topics the copy is
// fsynced before the side file of the segment that tells it is written, and not with
// every commit.
func TestTwinIsDurableBeforeOpenMayLeaveASegmentOut(t *testing.T) {
	dir := filepath.Join(quickDir(t), "s")
	fs := &testFS{}
	s := open(t, dir, onFS(fs), segmentBytes(4096))
	defer s.Close()
	tp := topic(t, s, "wind", 1)
	var calls []string
	fs.setHook(func(op, name string) error {
		if base := filepath.Base(name); op == "sync" && base == "twin" || op == "write" && strings.HasSuffix(base, ".idx") {
			calls = append(calls, op)
		}
		return nil
	})
	topic(t, s, "late", 1)
	for i := range 100 {
		put(t, s, tp.Partition(0), int64(i), fmt.Sprintf("%0100d", i))
	}
	fs.setHook(nil)
	if len(calls) < 3 || calls[0] != "sync" || strings.Count(strings.Join(calls, " "), "sync") != 1 {
		t.Fatalf("%q", calls)
	}
}

// TestDamageAcrossTheStartIsDeclared: of a batch that begins below the start what lies
// above it is declared.
func TestDamageAcrossTheStartIsDeclared(t *testing.T) {
	dir := filepath.Join(quickDir(t), "s")
	fs := &testFS{}
	s := open(t, dir, onFS(fs))
	defer s.Close()
	p := topic(t, s, "wind", 1).Partition(0)
	put(t, s, p, 1, "a0", "a1", "a2-in-the-middle", "a3", "a4")
	put(t, s, p, 1, "b")
	if err := p.SetStart(3); err != nil {
		t.Fatal(err)
	}
	name := tailFile(t, dir)
	damageFile(t, name, bytes.Index(mustRead(t, name), []byte("a2-in")), []byte("x"))
	if r := readAll(t, p, 3); len(r) != 1 || r[0].Value != "b" {
		t.Fatalf("read %v", r)
	}
	if err := s.Retain(); err != nil {
		t.Fatal(err)
	}
	if l := s.Losses(); len(l) != 1 || l[0].From != 3 || l[0].To != 5 {
		t.Fatalf("losses %+v", l)
	}
}

// TestCheckKnowsTheSecondCopy: `tailrace check` sees that a closed log has lost its end
// although it ends with a whole commit, and names a topic whose entry is damaged; repair
// declares and writes again.
func TestCheckKnowsTheSecondCopy(t *testing.T) {
	h := makeHistory(t, 6)
	cut := copyDir(t, h.clean)
	b := mustRead(t, tailFile(t, cut))
	mustWrite(t, tailFile(t, cut), b[:h.sizes[len(h.sizes)-3]])
	hidden := copyDir(t, h.clean)
	ranges := entriesOf(b)
	damageFile(t, tailFile(t, hidden), ranges[1][0]+30, []byte("rot")) // the topic
	for i, dir := range []string{cut, hidden} {
		in, err := storage.Inspect(dir, nil)
		if err != nil || !in.Lossy() || in.Classes[0].State["topic"] != 1 || in.Classes[0].Partitions[0].Topic != "wind" {
			t.Fatalf("%d: %v %+v", i, err, in)
		}
		rep, err := storage.RepairDir(storage.RepairConfig{Dir: dir, FS: h.fs})
		if err != nil || rep.After.Lossy() || rep.Epoch != 2 {
			t.Fatalf("%d: %v %+v", i, err, rep)
		}
		s := open(t, dir, onFS(h.fs))
		tp, ok := s.Topic("wind")
		if want := []int64{3, 0}[i]; !ok || tp.Partition(0).HighWatermark() != 12 || int64(len(s.Losses())) != want-want/3 || repairs(s) != "" {
			t.Fatalf("%d: topic %v, losses %+v, repairs %q", i, ok, s.Losses(), repairs(s))
		}
		s.Close()
	}
}
