package storagetest_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"tailrace/storage"
	"tailrace/storage/record"
	"tailrace/storage/storagetest"
)

// compactRun is the life of a store with a compacted topic through power cuts, beside
// what was appended.
type compactRun struct {
	r    *rand.Rand
	base string
	gen  int
	fs   *storagetest.CrashFS
	s    *storage.Store
	p    *storage.Partition

	all          []compactRecord // by offset; those of an append that was not answered come last
	acked        int             // of them
	start, asked int64           // acknowledged, asked for
	compactions  int
}

type compactRecord struct{ key, value string }

func (h *compactRun) image() string { return filepath.Join(h.base, fmt.Sprint("gen-", h.gen+1)) }

func (h *compactRun) open() error {
	var err error
	if h.fs == nil {
		if h.fs, err = storagetest.NewCrashFS(filepath.Join(h.base, fmt.Sprint("gen-", h.gen))); err != nil {
			return err
		}
	}
	cfg := config(h.fs.Dir(), h.fs, h.r)
	cfg.CompactBytes = 24 * 16
	now := time.UnixMilli(1e12)
	cfg.Now = func() time.Time { now = now.Add(time.Minute); return now }
	if h.s, err = storage.Open(cfg); err != nil {
		return err
	}
	tp, ok := h.s.Topic("table")
	if !ok {
		rules := storage.DefaultCompaction()
		rules.TombstoneAge = 20 * time.Minute
		if tp, err = h.s.CreateTopic("table", storage.TopicConfig{Compaction: &rules}); err != nil {
			return err
		}
	}
	h.p = tp.Partition(0)
	return nil
}

// work appends, compacts and deletes until the power goes, or for a while.
func (h *compactRun) work() error {
	for range 60 {
		switch h.r.IntN(8) {
		case 0, 1:
			if err := h.s.Compact(); err != nil {
				return err
			}
			h.compactions++
			continue
		case 2:
			if h.r.IntN(4) == 0 && h.p.HighWatermark() > 0 {
				h.asked = max(h.asked, h.r.Int64N(h.p.HighWatermark()))
				if err := h.p.SetStart(h.asked); err != nil {
					return err
				}
				h.start = h.asked
			}
			continue
		}
		a := h.s.NewAppend("")
		for range 1 + h.r.IntN(5) {
			rec := compactRecord{fmt.Sprint("k", h.r.IntN(12)), fmt.Sprint(h.r.Uint64())}
			value := []byte(rec.value)
			if h.r.IntN(8) == 0 {
				rec.value, value = "", nil
			}
			if err := a.Record(h.p, int64(len(h.all)), []byte(rec.key), value, nil); err != nil {
				return err
			}
			h.all = append(h.all, rec)
		}
		done := make(chan error, 1)
		h.s.Submit(a, func(_ *storage.Append, err error) { done <- err })
		if err := <-done; err != nil {
			return err
		}
		h.acked = len(h.all)
	}
	return nil
}

// check compares what can be read with what was appended.
func (h *compactRun) check() error {
	hw, start := h.p.HighWatermark(), h.p.Start()
	if hw < int64(h.acked) || hw > int64(len(h.all)) {
		return fmt.Errorf("high watermark %d, acknowledged %d, appended %d", hw, h.acked, len(h.all))
	}
	if start < h.start || start > h.asked {
		return fmt.Errorf("start %d, acknowledged %d, asked for %d", start, h.start, h.asked)
	}
	h.all, h.acked, h.start, h.asked = h.all[:hw], int(hw), start, start
	newest := map[string]int64{}
	for off, rec := range h.all {
		newest[rec.key] = int64(off)
	}
	seen := map[string]int64{} // the last of each key
	last := int64(-1)
	d := record.NewDecompressor(0)
	for at := start; at < hw; {
		b, next, err := h.p.Read(nil, at, 1<<20)
		if err != nil || next <= at || len(b) == 0 {
			return fmt.Errorf("read %d below %d: next %d, %d bytes, %v", at, hw, next, len(b), err)
		}
		for at = next; len(b) > 0; {
			batch, rest, err := record.Next(b)
			if err == nil {
				err = batch.VerifyThinned()
			}
			if err != nil {
				return err
			}
			it := batch.Iter(d)
			for it.Next() {
				rec := it.Record()
				if want := h.all[rec.Offset]; rec.Offset <= last || string(rec.Key) != want.key || string(rec.Value) != want.value || rec.Timestamp != rec.Offset {
					return fmt.Errorf("offset %d after %d: %s=%s, appended was %+v", rec.Offset, last, rec.Key, rec.Value, want)
				}
				last = rec.Offset
				seen[string(rec.Key)] = rec.Offset
			}
			if it.Err() != nil {
				return it.Err()
			}
			b = rest
		}
	}
	for key, off := range newest {
		at, ok := seen[key]
		switch {
		case off < start || ok && at == off:
		case h.all[off].value != "":
			return fmt.Errorf("the newest record of %s, offset %d, is gone", key, off)
		case ok:
			return fmt.Errorf("%s was deleted at offset %d, and offset %d came back", key, off, at)
		}
	}
	if rows := h.s.Losses(); len(rows) > 0 {
		return fmt.Errorf("declared lost: %+v", rows)
	}
	return nil
}

func (h *compactRun) close() error {
	var err error
	if h.s != nil {
		err = h.s.Close()
		h.s = nil
	}
	if h.fs != nil {
		h.fs.Close()
		h.fs = nil
	}
	return err
}

// run lives through some power cuts and one clean start.
func (h *compactRun) run(cuts int, prepare func()) error {
	defer h.close()
	for ; h.gen < cuts; h.gen++ {
		var err error
		if h.fs, err = storagetest.NewCrashFS(filepath.Join(h.base, fmt.Sprint("gen-", h.gen))); err != nil {
			return err
		}
		seed := h.r.Uint64()
		h.fs.CutAt(int64(1+h.r.IntN(250)), h.r.IntN(2) == 0, seed, h.image())
		if prepare != nil {
			prepare()
		}
		err = h.open()
		off, _, _ := h.fs.Off()
		if err == nil && !off {
			if err = h.check(); err == nil {
				err = h.work()
			}
			off, _, _ = h.fs.Off()
		}
		if err != nil && !off {
			return fmt.Errorf("generation %d: %w", h.gen, err)
		}
		if _, err := h.fs.Cut(seed, h.image()); err != nil {
			return err
		}
		_ = h.close() // the power is off
	}
	if err := h.open(); err != nil {
		return err
	}
	if err := h.check(); err != nil {
		return err
	}
	if err := h.s.Compact(); err != nil {
		return err
	}
	return h.check()
}

// Power cuts while a topic is compacted: at every instant the newest record of each key
// that was acknowledged is there, with its offset, and every reader comes to the end.
func TestPowerCutsDuringCompaction(t *testing.T) {
	n, from := uint64(*count)/2, uint64(1)
	if testing.Short() {
		n /= 5
	}
	if *oneSeed != 0 {
		n, from = 1, *oneSeed
	}
	dir := scratch(t)
	compactions := 0
	for seed := from; seed < from+n; seed++ {
		h := &compactRun{r: rand.New(rand.NewPCG(seed, 5)), base: filepath.Join(dir, fmt.Sprint(seed))}
		must(t, os.MkdirAll(filepath.Join(h.base, "gen-0"), 0o755))
		if err := h.run(4, nil); err != nil {
			t.Errorf("seed %d: %v", seed, err)
			keep(t, h.base, seed)
			return
		}
		compactions += h.compactions
		os.RemoveAll(h.base)
	}
	t.Logf("%d histories of four power cuts, %d compactions that ended", n, compactions)
}

// A control: on a disk that pretends to flush the same check finds that something is gone.
func TestPowerCutsDuringCompactionNoticeADiskThatLies(t *testing.T) {
	dir := scratch(t)
	for _, kind := range []storagetest.Call{storagetest.Sync, storagetest.SyncDir} {
		found := uint64(0)
		var why error
		for seed := uint64(1); seed <= 200 && found == 0; seed++ {
			h := &compactRun{r: rand.New(rand.NewPCG(seed, 5)), base: filepath.Join(dir, fmt.Sprint(kind, seed))}
			must(t, os.MkdirAll(filepath.Join(h.base, "gen-0"), 0o755))
			if why = h.run(2, func() { h.fs.Lie(kind, true) }); why != nil {
				found = seed
			}
			os.RemoveAll(h.base)
		}
		if found == 0 {
			t.Errorf("a disk that lies about %q went unnoticed", kind)
			continue
		}
		t.Logf("a disk that lies about %q: found by seed %d: %.200s", kind, found, why)
	}
}
