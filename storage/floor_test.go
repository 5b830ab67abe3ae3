package storage_test

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"tailrace/storage"
)

// floored makes a log whose state is told near its end, so that Open believes the side files
// of the segments before; middle is called while the second segment of it is written.
func floored(t *testing.T, fs storage.FS, dir string, middle func(s *storage.Store)) *storage.Store {
	t.Helper()
	s := open(t, dir, onFS(fs), segmentBytes(4096))
	p := topic(t, s, "wind", 1).Partition(0)
	topic(t, s, "gone", 1)
	n := int64(0)
	fill := func(more int) {
		for segs := len(segments(t, dir)); len(segments(t, dir)) < segs+more; n++ {
			put(t, s, p, n, fmt.Sprintf("%0100d", n))
		}
	}
	fill(2)
	keep := p.HighWatermark()
	fill(1)
	middle(s)
	fill(2)
	if err := p.SetStart(keep); err != nil {
		t.Fatal(err)
	}
	if err := s.Retain(); err != nil { // writes forward what the first segments told
		t.Fatal(err)
	}
	fill(2)
	return s
}

// TestOpenReadsWhatTheSecondCopyLacks: the copy could not be written when a topic was deleted.
// The segment that tells it is read, although no state stands in it, so that the topic does
// not come back from the copy when the log loses something else.
func TestOpenReadsWhatTheSecondCopyLacks(t *testing.T) {
	dir, fs := filepath.Join(quickDir(t), "s"), &testFS{}
	s := floored(t, fs, dir, func(s *storage.Store) {
		fs.setHook(func(op, name string) error {
			if strings.HasPrefix(filepath.Base(name), "twin") {
				return errors.New("no")
			}
			return nil
		})
		if err := s.DeleteTopic("gone"); err != nil {
			t.Fatal(err)
		}
	})
	crashed := copyDir(t, dir)
	fs.setHook(nil)
	s.Close()
	segs := segments(t, crashed)
	name := segs[len(segs)-2]
	r := entriesOf(mustRead(t, name))
	damageFile(t, name, r[len(r)/2][0]+60, []byte("rot"))
	damageFile(t, filepath.Join(crashed, "main", "index", filepath.Base(name)+".idx"), 0, []byte("rot"))
	s = open(t, crashed, onFS(fs), segmentBytes(4096))
	defer s.Close()
	if !strings.Contains(repairs(s), "rot") {
		t.Fatalf("repaired %q", repairs(s))
	}
	if _, ok := s.Topic("gone"); ok {
		t.Errorf("a deleted topic is back; repaired %q", repairs(s))
	}
}

// TestRepairReadsWhatASideFileVouchesFor: Open would not read this segment.
func TestRepairReadsWhatASideFileVouchesFor(t *testing.T) {
	dir, fs := filepath.Join(quickDir(t), "s"), &testFS{}
	s := floored(t, fs, dir, func(*storage.Store) {})
	s.Close()
	name := segments(t, dir)[2]
	r := entriesOf(mustRead(t, name))
	damageFile(t, name, r[len(r)/2][0]+60, []byte("rot"))
	s = open(t, copyDir(t, dir), onFS(fs), segmentBytes(4096))
	if repairs(s) != "" {
		t.Fatalf("Open reads the segment anyway: %q", repairs(s))
	}
	s.Close()
	rep, err := storage.RepairDir(storage.RepairConfig{Dir: dir, FS: fs})
	if err != nil || !rep.Before.Lossy() {
		t.Fatalf("%v %+v", err, rep)
	}
	if slices.ContainsFunc(rep.After.Problems, func(p storage.Problem) bool { return !p.Settled }) || len(rep.Copies) != 1 {
		t.Errorf("left: %+v, copies %v", rep.After.Problems, rep.Copies)
	}
}
