package storage_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// TestADeletionThatIsLostBringsNothingBack: a topic was deleted, and what told so is rotten
// or gone with its file, at a start or under an open store. Its second copy knows, so the
// topic does not come back.
func TestADeletionThatIsLostBringsNothingBack(t *testing.T) {
	fs := &testFS{}
	base := filepath.Join(quickDir(t), "s")
	s := open(t, base, onFS(fs), segmentBytes(4096))
	p := topic(t, s, "wind", 1).Partition(0)
	topic(t, s, "old", 1)
	add := func(n int) {
		for range n {
			put(t, s, p, 1, fmt.Sprintf("%0100d", p.HighWatermark()))
		}
	}
	add(40)
	if err := s.DeleteTopic("old"); err != nil {
		t.Fatal(err)
	}
	at := len(segments(t, base)) - 1
	add(40)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for _, how := range []string{"gone", "rotten", "gone, open", "rotten, open"} {
		dir := copyDir(t, base)
		name := segments(t, dir)[at]
		hurt := func() {
			b := mustRead(t, name)
			if how[:4] == "gone" {
				os.Remove(name)
				return
			}
			hit := false
			for _, e := range entriesOf(b) {
				if b[e[0]+1] == 'T' && b[e[0]+1+3] == 2 || b[e[0]+2] == 'T' && b[e[0]+2+3] == 2 { // state
					damageFile(t, name, e[0]+20, []byte{^b[e[0]+20]})
					hit = true
				}
			}
			if !hit || !bytes.Contains(b, []byte("old")) {
				t.Fatal("the segment does not hold the deletion")
			}
		}
		if how == "gone" || how == "rotten" {
			hurt()
			os.RemoveAll(filepath.Join(dir, "main", "index"))
		} else {
			s := open(t, dir, onFS(fs), segmentBytes(4096))
			hurt()
			if err := s.Scrub(t.Context()); err != nil || s.Stats().Classes[0].Healed != 1 {
				t.Fatalf("%s: %v", how, err)
			}
			dir = copyDir(t, dir) // the power goes
			s.Close()
			os.RemoveAll(filepath.Join(dir, "main", "index"))
		}
		for range 2 {
			s := open(t, dir, onFS(fs), segmentBytes(4096))
			_, wind := s.Topic("wind")
			if _, back := s.Topic("old"); back || !wind {
				t.Fatalf("%s: the topic that was deleted is back: %v, the other is there: %v; repairs %q", how, back, wind, repairs(s))
			}
			s.Close()
		}
	}
}

// TestWhatIsDeclaredAlreadyIsNotDeclaredAgain: a file is gone of which some batches were
// declared before. What is declared now lies around them. And without the second copy of the
// state the side file tells how far a partition had come that has nothing behind the hole.
func TestWhatIsDeclaredAlreadyIsNotDeclaredAgain(t *testing.T) {
	fs := &testFS{}
	g := makeGone(t, fs)
	for i := 3; i < len(g.names)-2; i++ {
		dir := copyDir(t, g.dir)
		name := filepath.Join(dir, "main", "log", filepath.Base(g.names[i]))
		lost := g.lostIn(t, g.dir, name)
		b := mustRead(t, name)
		ranges := entriesOf(b)
		e := ranges[len(ranges)/2]
		s := open(t, dir, onFS(fs), segmentBytes(4096))
		damageFile(t, name, e[0]+30, make([]byte, 400)) // two or three entries in the middle
		if err := s.Scrub(t.Context()); err != nil {
			t.Fatal(err)
		}
		before := s.Losses()
		s.Close()
		if len(before) == 0 {
			t.Fatalf("segment %d: nothing was declared", i)
		}
		os.Remove(name)
		s = open(t, dir, onFS(fs), segmentBytes(4096))
		var now, want int64
		seen := map[string]bool{}
		for _, l := range s.Losses() {
			for off := l.From; off < l.To; off++ {
				k := fmt.Sprint(l.Topic, "/", l.Index, " ", off)
				if seen[k] {
					t.Fatalf("segment %d: %s is declared twice: %+v", i, k, s.Losses())
				}
				seen[k] = true
				now++
			}
		}
		for _, rs := range lost {
			for _, r := range rs {
				want += r.To - r.From
			}
		}
		if now != want {
			t.Fatalf("segment %d: %d offsets are declared, %d were in it", i, now, want)
		}
		s.Close()

		dir = copyDir(t, g.dir)
		os.Remove(filepath.Join(dir, "main", "twin"))
		os.Remove(filepath.Join(dir, "main", "log", filepath.Base(name)))
		lost = g.lostIn(t, g.dir, name)
		s = open(t, dir, onFS(fs), segmentBytes(4096))
		got := declared(s)
		for _, key := range []string{"wind/0", "wind/1"} {
			if fmt.Sprint(got[key]) != fmt.Sprint(lost[key]) {
				t.Fatalf("segment %d, no second copy: %s: declared %v, lost %v", i, key, got[key], lost[key])
			}
		}
		s.Close()
	}
}
