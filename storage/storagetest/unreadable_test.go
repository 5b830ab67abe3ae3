package storagetest_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"tailrace/storage"
	"tailrace/storage/storagetest"
)

// onBadDisk restores the golden store and calls f with it on a disk whose reads can fail, in
// simulated time: what a disk refuses is asked for again after a while.
func (b *bench) onBadDisk(t *testing.T, h harm, f func(fs *storagetest.CrashFS, cfg storage.Config)) {
	t.Helper()
	must(t, b.restore(h))
	synctest.Test(t, func(t *testing.T) {
		fs, err := storagetest.NewCrashFS(b.dir)
		must(t, err)
		defer fs.Close()
		cfg := sweepConfig(b.dir)
		cfg.FS = fs
		f(fs, cfg)
	})
}

// Each page of each file cannot be read when a store starts, with indexes and without: it
// starts, all that lies on other pages is there, what lay on this one is declared as
// unreadable, and stays so when the disk gives it again.
func TestUnreadablePageAtAStart(t *testing.T) {
	for _, own := range []bool{false, true} {
		g := makeGolden(t, filepath.Join(scratch(t), "golden"), own)
		b := newBench(g, filepath.Join(scratch(t), "disk"))
		b.reason = storage.LossUnreadable
		runs, lost, aside := 0, 0, 0
		for name, whole := range g.files {
			for at := 0; at < len(whole); at += 4096 {
				for _, sides := range []bool{true, false} {
					h := harm{what: fmt.Sprintf("%s, page at %d of %d bytes", name, at, len(whole)), files: map[string][]byte{}}
					if strings.HasSuffix(name, ".idx") && !sides {
						continue
					}
					if !sides {
						h = g.withoutSides(h)
					}
					b.dirty[name], b.tail = true, name == g.tail
					var v harmed
					b.onBadDisk(t, h, func(fs *storagetest.CrashFS, cfg storage.Config) {
						must(t, fs.Unreadable(filepath.Join(b.dir, name), int64(at), int64(at)+1, -1))
						s, err := storage.Open(cfg)
						if err != nil {
							t.Errorf("%s: %v", h.what, err)
							return
						}
						// Readers are refused until the committer has looked.
						must(t, s.Scrub(t.Context()))
						if v, err = b.compare(s); err != nil {
							t.Errorf("%s: %v", h.what, err)
						}
						must(t, s.Close())
						if v.cut || v.batches > 40 || v.batches > 0 && !strings.Contains(name, "/log/") {
							t.Errorf("%s: %+v", h.what, v)
						}
					})
					if v.batches > 0 {
						kept, _ := filepath.Glob(filepath.Join(b.dir, "main", "quarantine", "*.unreadable.*"))
						aside += len(kept)
					}
					if runs++; !t.Failed() {
						if err := b.again(v); err != nil {
							t.Errorf("%s, opened on a sound disk: %v", h.what, err)
						}
					}
					lost += v.batches
					if t.Failed() {
						t.FailNow()
					}
				}
			}
		}
		t.Logf("%d starts, %d batches declared, %d files set aside", runs, lost, aside)
		if runs < 60 || lost < runs || aside < runs/2 {
			t.Error("the bad pages hardly ever hit a batch")
		}
	}
}

// What a disk gives when it is asked a third time is not lost.
func TestPageThatIsReadInTheEnd(t *testing.T) {
	g := makeGolden(t, filepath.Join(scratch(t), "golden"), true)
	b := newBench(g, filepath.Join(scratch(t), "disk"))
	for name := range g.files {
		b.onBadDisk(t, g.withoutSides(harm{files: map[string][]byte{}}), func(fs *storagetest.CrashFS, cfg storage.Config) {
			if _, err := os.Stat(filepath.Join(b.dir, name)); err != nil {
				return
			}
			must(t, fs.Unreadable(filepath.Join(b.dir, name), 0, 1, 3))
			s, err := storage.Open(cfg)
			must(t, err)
			if v, err := b.compare(s); err != nil || v != (harmed{}) {
				t.Errorf("%s: %+v, %v", name, v, err)
			}
			if r := s.Identity().Recovered; len(r) > 0 {
				t.Errorf("%s: repaired %+v", name, r)
			}
			must(t, s.Close())
		})
	}
}

// A disk of which nothing can be read has lost its contact: the store says so, changes
// nothing, and has everything when it is back.
func TestDiskThatGivesNothing(t *testing.T) {
	g := makeGolden(t, filepath.Join(scratch(t), "golden"), true)
	b := newBench(g, filepath.Join(scratch(t), "disk"))
	for _, but := range []string{"", "IDENTITY"} { // read before it went
		b.onBadDisk(t, g.withoutSides(harm{files: map[string][]byte{}}), func(fs *storagetest.CrashFS, cfg storage.Config) {
			fired := fs.Inject(storagetest.Fault{Call: storagetest.Read, Err: syscall.EIO, Forever: true, Match: func(path string) bool {
				return but == "" || !strings.Contains(filepath.Base(path), but)
			}})
			s, err := storage.Open(cfg)
			if err == nil {
				s.Close()
				t.Fatal("a store was opened on a disk that gives nothing")
			}
			if fired() == 0 || but != "" && !strings.Contains(err.Error(), "the disk is gone") {
				t.Errorf("after %d failed reads: %v", fired(), err)
			}
			for name, want := range g.files {
				if have, err := os.ReadFile(filepath.Join(b.dir, name)); !strings.HasSuffix(name, ".idx") && (err != nil || !bytes.Equal(have, want)) {
					t.Errorf("%s was changed (%v)", name, err)
				}
			}
			fs.Heal()
			s, err = storage.Open(cfg)
			must(t, err)
			if v, err := b.compare(s); err != nil || v != (harmed{}) {
				t.Errorf("when it is back: %+v, %v", v, err)
			}
			must(t, s.Close())
		})
	}
}

// A reader of an open store meets a page that cannot be read: it hears of it, the batches on
// it are declared, and then it goes on behind them. While the disk takes nothing either it is
// the disk that is gone, and nothing is declared.
func TestUnreadablePageUnderAnOpenStore(t *testing.T) {
	g := makeGolden(t, filepath.Join(scratch(t), "golden"), false)
	b := newBench(g, filepath.Join(scratch(t), "disk"))
	b.reason = storage.LossUnreadable
	for _, name := range []string{g.target, g.tail} {
		for _, dead := range []storagetest.Call{storagetest.Any, storagetest.Read, storagetest.Sync} {
			b.dirty[name], b.tail = true, name == g.tail
			b.onBadDisk(t, harm{files: map[string][]byte{}}, func(fs *storagetest.CrashFS, cfg storage.Config) {
				s, err := storage.Open(cfg)
				must(t, err)
				defer s.Close()
				readAll := func() (err error) {
					for part, p := range sweepParts(s) {
						_, e := readPieces(p, g.starts[part])
						err = errors.Join(err, e)
					}
					return err
				}
				must(t, fs.Unreadable(filepath.Join(b.dir, name), 0, 1, -1))
				for _, call := range []storagetest.Call{storagetest.Read, storagetest.Sync} {
					if dead <= call { // Read: both of them; Any: none
						fs.Inject(storagetest.Fault{Call: call, Err: syscall.EIO, Forever: true})
					}
				}
				if err := readAll(); !errors.Is(err, syscall.EIO) {
					t.Errorf("%s: the reader hears %v", name, err)
				}
				time.Sleep(time.Minute) // of the bubble: the committer asks again
				if dead != storagetest.Any {
					if l := s.Losses(); len(l) > 0 {
						t.Errorf("declared while the disk was gone: %+v", l)
					}
					return
				}
				for tries := 0; readAll() != nil && tries < 5; tries++ {
					time.Sleep(time.Minute)
				}
				v, err := b.compare(s)
				if err != nil || v.batches == 0 || v.cut {
					t.Errorf("%s: %+v, %v", name, v, err)
				}
				if !slices.ContainsFunc(s.Losses(), func(l storage.Loss) bool { return l.Reason.String() == "unreadable" }) {
					t.Errorf("%s: losses %+v", name, s.Losses())
				}
			})
		}
	}
}
