package storage_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"tailrace/storage"
	"tailrace/storage/record"
)

// contents opens a directory and returns every record by partition and offset, what is
// declared lost, and closes it.
func contents(t *testing.T, dir string) (map[string]string, int64) {
	t.Helper()
	st, err := storage.Open(storage.Config{Dir: dir, RetentionInterval: -1, Classes: []storage.ClassConfig{{Name: "main", SegmentBytes: 64 << 10}}})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	out := map[string]string{}
	top, ok := st.Topic("wind")
	if !ok {
		return out, 0 // the only entry that told of it was hit
	}
	for _, p := range top.Partitions() {
		for off := p.Start(); off < p.HighWatermark(); {
			b, next, err := p.Read(nil, off, 1<<20)
			if err != nil {
				t.Fatal(err)
			}
			for len(b) > 0 {
				var batch record.Batch
				if batch, b, err = record.Next(b); err != nil {
					t.Fatal(err)
				}
				for it := batch.Iter(nil); it.Next(); {
					out[fmt.Sprint(p.Index(), "/", it.Record().Offset)] = string(it.Record().Value)
				}
			}
			off = next
		}
	}
	var lost int64
	for _, l := range st.Losses() {
		lost += l.To - l.From
	}
	return out, lost
}

// hurt damages a log and says how.
func hurt(t *testing.T, dir string, r *rand.Rand) string {
	t.Helper()
	segs, _ := filepath.Glob(filepath.Join(dir, "main", "log", "0*"))
	path := segs[r.IntN(len(segs))]
	b, err := os.ReadFile(path)
	if err != nil || len(b) == 0 {
		return "an empty segment left alone"
	}
	at := r.IntN(len(b))
	var how string
	switch r.IntN(6) {
	case 0, 1:
		b[at] ^= 1 << r.IntN(8)
		how = "bit flipped"
	case 2:
		n := min(512, len(b)-at)
		clear(b[at : at+n])
		how = "sector of zeros"
	case 3:
		b = b[:at]
		how = "cut"
	case 4:
		for range 100 + r.IntN(900) {
			b = append(b, byte(r.Uint32()))
		}
		how = "garbage behind it"
	case 5:
		if len(segs) > 2 {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			return "removed " + filepath.Base(path)
		}
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%s in %s at %d", how, filepath.Base(path), at)
}

// Whatever is wrong with a log: after the repair it is sound, no record is wrong, none
// is gone that the next Open would have kept, every file that was changed is kept as it
// was, and a second repair changes nothing.
func TestRepairIsNeverWorseThanOpen(t *testing.T) {
	seeds := 40
	if testing.Short() {
		seeds = 12
	}
	whole := filled(t)
	all, _ := contents(t, whole)
	for seed := range uint64(seeds) {
		r := rand.New(rand.NewPCG(seed, 1))
		dir, plain := t.TempDir(), t.TempDir()
		for _, d := range []string{dir, plain} {
			if err := os.CopyFS(d, os.DirFS(whole)); err != nil {
				t.Fatal(err)
			}
		}
		var what []string
		for range 1 + r.IntN(3) {
			what = append(what, hurt(t, dir, r))
		}
		if err := os.RemoveAll(plain); err != nil {
			t.Fatal(err)
		}
		if err := os.CopyFS(plain, os.DirFS(dir)); err != nil {
			t.Fatal(err)
		}
		damaged := tree(t, filepath.Join(dir, "main", "log"))
		rep, err := storage.RepairDir(storage.RepairConfig{Dir: dir})
		if err != nil {
			t.Fatalf("seed %d, %v: %v", seed, what, err)
		}
		for _, p := range rep.After.Problems {
			if !p.Settled {
				t.Errorf("seed %d, %v: after the repair: %+v", seed, what, p)
			}
		}
		kept := map[string]bool{}
		for _, b := range tree(t, filepath.Join(dir, "main", "quarantine")) {
			kept[string(b)] = true
		}
		after := tree(t, filepath.Join(dir, "main", "log"))
		for path, b := range damaged {
			if len(b) > 0 && !bytes.HasPrefix(after[path], b) && !kept[string(b)] {
				t.Errorf("seed %d, %v: %s changed and is not in quarantine as it was", seed, what, filepath.Base(path))
			}
		}
		before := tree(t, dir)
		again, err := storage.RepairDir(storage.RepairConfig{Dir: dir})
		if err != nil || len(again.Copies) != 0 || len(again.Done) != 0 {
			t.Errorf("seed %d, %v: repaired twice: %+v, %v", seed, what, again, err)
		}
		for path, b := range tree(t, dir) {
			if !bytes.Equal(b, before[path]) {
				t.Errorf("seed %d, %v: the second repair changed %s", seed, what, path)
			}
		}
		opened, _ := contents(t, plain)
		have, lost := contents(t, dir)
		for k, v := range have {
			if all[k] != v {
				t.Fatalf("seed %d, %v: record %s is %q", seed, what, k, v)
			}
		}
		for k := range opened {
			if _, ok := have[k]; !ok {
				t.Fatalf("seed %d, %v: record %s is gone, Open alone keeps it", seed, what, k)
			}
		}
		if !rep.Before.Lossy() && len(have) != len(all) && !strings.Contains(fmt.Sprint(what), "cut") && !strings.Contains(fmt.Sprint(what), "removed") {
			t.Errorf("seed %d, %v: %d of %d records, %d declared, and nothing was called a loss", seed, what, len(have), len(all), lost)
		}
	}
}

func TestRepairLeavesASoundStoreAndOneInUseAlone(t *testing.T) {
	dir := filled(t)
	before := tree(t, dir)
	rep, err := storage.RepairDir(storage.RepairConfig{Dir: dir})
	if err != nil || len(rep.Done) != 0 {
		t.Fatalf("%+v, %v", rep, err)
	}
	for path, b := range tree(t, dir) {
		if !bytes.Equal(b, before[path]) {
			t.Errorf("%s changed", path)
		}
	}
	st, err := storage.Open(storage.Config{Dir: dir, Classes: []storage.ClassConfig{{Name: "main"}}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := storage.RepairDir(storage.RepairConfig{Dir: dir}); !errors.Is(err, storage.ErrInUse) {
		t.Errorf("a store in use: %v", err)
	}
	if err := st.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := storage.RepairDir(storage.RepairConfig{Dir: t.TempDir()}); err == nil {
		t.Error("an empty directory is repaired")
	}
}

// The new epoch keeps what comes after the repair apart from what was cut.
func TestRepairThatCutBeginsAnEpoch(t *testing.T) {
	dir := filled(t)
	segs, _ := filepath.Glob(filepath.Join(dir, "main", "log", "0*"))
	b, err := os.ReadFile(segs[0])
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 4
	if err := os.WriteFile(segs[0], b, 0o600); err != nil {
		t.Fatal(err)
	}
	rep, err := storage.RepairDir(storage.RepairConfig{Dir: dir})
	if err != nil || rep.Epoch != 2 || !rep.Before.Lossy() || len(rep.Copies) != 1 {
		t.Fatalf("%+v, %v", rep, err)
	}
	if have, lost := contents(t, dir); int64(len(have))+lost != 3000 || lost == 0 {
		t.Errorf("%d records and %d declared, 3000 were acknowledged", len(have), lost)
	}
}

func TestRaiseEpoch(t *testing.T) {
	dir := filled(t)
	classes := []storage.ClassConfig{{Name: "main"}}
	st, err := storage.Open(storage.Config{Dir: dir, Classes: classes})
	if err != nil {
		t.Fatal(err)
	}
	if err := st.RaiseEpoch(7); err != nil {
		t.Fatal(err)
	}
	first := st.Identity().Epoch
	if st.EpochNumber() != 7 || len(st.Epochs()) != 2 || first.Parent != st.Epochs()[0].ID || len(first.ForkAt) != 2 {
		t.Errorf("epoch %+v of %d", first, len(st.Epochs()))
	}
	if err := st.Close(); err != nil {
		t.Fatal(err)
	}
	if st, err = storage.Open(storage.Config{Dir: dir, Classes: classes, NewEpoch: true}); err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	if e := st.Identity().Epoch; e.Number != 8 || e.Parent != first.ID {
		t.Errorf("epoch %+v, want number 8, child of 7", e)
	}
}
