package storagetest_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"testing"

	"tailrace/storage"
	"tailrace/storage/storagetest"
)

// What a recovery cuts or writes anew is kept in quarantine as it was, durably before it is
// gone from the log: at each change that a recovery makes the power goes, and on the disk
// that it leaves the damaged file is in one place or the other. It counts what was lost.
func TestWhatARecoveryReplacesIsKeptThroughPowerCuts(t *testing.T) {
	base := scratch(t)
	dir := filepath.Join(base, "store")
	config := func(dir string) storage.Config {
		cfg := sweepConfig(dir)
		cfg.Classes[0].Pack = false // what repeats itself would be one segment
		return cfg
	}
	s, err := storage.Open(config(dir))
	must(t, err)
	tp, err := s.CreateTopic("wind", storage.TopicConfig{Partitions: 4})
	must(t, err)
	put(t, s, tp.Partition(0), 0, 1500)
	a := s.NewAppend("") // one commit of four entries
	for i := range 4 {
		must(t, a.Record(tp.Partition(i), 1, nil, bytes.Repeat([]byte{'v'}, 300), nil))
	}
	must(t, s.Commit(t.Context(), a))
	crashed := filepath.Join(base, "crashed") // not closed: nothing proves the last commit
	must(t, os.CopyFS(crashed, os.DirFS(dir)))
	must(t, s.Close())
	segs, err := filepath.Glob(filepath.Join(crashed, "main", "log", "0*"))
	must(t, err)
	sort.Strings(segs)
	if len(segs) < 3 {
		t.Fatalf("%d segments", len(segs))
	}
	entries := func(b []byte) (at []int) {
		for pos := 0; pos < len(b); {
			n, w := binary.Uvarint(b[pos:])
			at = append(at, pos)
			pos += w + int(n)
		}
		return at
	}
	for _, h := range []struct {
		what, file  string
		from, to    int // entries that are damaged
		repair      string
		lostEntries int
	}{
		{"rot in a sealed segment", segs[1], 5, 8, "rot", 3},
		{"rot of the first entry of the last commit", segs[len(segs)-1], -4, -3, "tail-cut", 0},
	} {
		name, _ := filepath.Rel(crashed, h.file)
		b, err := os.ReadFile(h.file)
		must(t, err)
		at := append(entries(b), len(b))
		if h.from < 0 {
			h.from, h.to = h.from+len(at)-1, h.to+len(at)-1
		}
		clear(b[at[h.from]:at[h.to]])
		changes, cuts := int64(0), 0
		for n := int64(1); changes == 0 || n <= changes; n++ {
			for seed := range uint64(6) {
				work, image := filepath.Join(base, "work"), filepath.Join(base, "image")
				must(t, os.CopyFS(work, os.DirFS(crashed)))
				must(t, os.WriteFile(filepath.Join(work, name), b, 0o600))
				must(t, os.RemoveAll(filepath.Join(work, "main", "index")))
				must(t, os.Remove(filepath.Join(work, "main", "catalog")))
				fsys, err := storagetest.NewCrashFS(work)
				must(t, err)
				cfg := config(work)
				cfg.FS = fsys
				if changes > 0 {
					fsys.CutAt(n, seed%2 == 0, 10*uint64(n)+seed, image)
				}
				s, err := storage.Open(cfg)
				if changes == 0 { // undisturbed: how many there are, and what it says
					must(t, err)
					changes = fsys.Calls(storagetest.Change)
					found := false
					for _, r := range s.Identity().Recovered {
						found = found || r.What == h.repair && r.Entries == h.lostEntries
					}
					if !found {
						t.Fatalf("%s: repaired %+v", h.what, s.Identity().Recovered)
					}
				}
				if s != nil {
					_ = s.Close()
				}
				if off, note, err := fsys.Off(); off {
					must(t, err)
					cuts++
					if !isKept(t, image, name, b) {
						t.Fatalf("%s: power cut at change %d of %d (%s): the file is neither in the log nor in quarantine as it was", h.what, n, changes, note)
					}
				}
				must(t, fsys.Close())
				must(t, os.RemoveAll(work))
				must(t, os.RemoveAll(image))
			}
		}
		if cuts < 40 {
			t.Errorf("%s: %d power cuts in %d changes", h.what, cuts, changes)
		}
	}
}

// isKept tells whether a file is where it was, or in quarantine.
func isKept(t *testing.T, dir, name string, b []byte) bool {
	t.Helper()
	if have, err := os.ReadFile(filepath.Join(dir, name)); err == nil && bytes.HasPrefix(have, b) {
		return true
	}
	kept, err := filepath.Glob(filepath.Join(dir, "main", "quarantine", fmt.Sprint(filepath.Base(name), ".*")))
	must(t, err)
	for _, k := range kept {
		if have, err := os.ReadFile(k); err == nil && bytes.Equal(have, b) {
			return true
		}
	}
	return false
}
