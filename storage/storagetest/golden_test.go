package storagetest_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"tailrace/storage"
	"tailrace/storage/record"
	"tailrace/storage/storagetest"
)

// golden is a closed store, what each of its files held, and what can be read of it.
type golden struct {
	files   map[string][]byte // by path below the store
	parts   map[string][]piece
	starts  map[string]int64
	ends    map[string]int64
	last    []byte // the state that each append set
	windows []byte // and the one it folded
	id      storage.Identity
	epochs  []storage.Epoch
	target  string // the sealed segment of 64 KiB that is swept
	side    string // its index
	tail    string
}

// piece is one stored batch.
type piece struct {
	from, to int64
	bytes    []byte
}

func sweepConfig(dir string) storage.Config {
	return storage.Config{
		Dir: dir, NodeID: "n1", RetentionInterval: -1,
		Classes: []storage.ClassConfig{{Name: "main", SegmentBytes: 64 << 10, MinFreeBytes: -1, Pack: *sweepPacked}},
		Folds:   map[storage.StateKind]storage.FoldFunc{storage.KindWindow: countFold},
	}
}

// makeGolden writes some segments of 64 KiB. The topics were made in one that is gone and
// their state was written forward: Open believes the index of the target and does not read
// it, unless the index is missing. With own, topics are made and deleted, starts moved and
// an epoch begun in the target: Open reads it, and nothing tells that state again later.
func makeGolden(t *testing.T, dir string, own bool) *golden {
	t.Helper()
	s, err := storage.Open(sweepConfig(dir))
	must(t, err)
	defer func() { s.Close() }()
	for topic, n := range map[string]int{"a": 2, "b": 1} {
		_, err := s.CreateTopic(topic, storage.TopicConfig{Partitions: n})
		must(t, err)
	}
	parts := sweepParts(s)
	r := rand.New(rand.NewPCG(4, 4))
	n := uint64(0)
	segments := func() []string {
		list, err := filepath.Glob(filepath.Join(dir, "main", "log", "0*"))
		must(t, err)
		sort.Strings(list)
		return list
	}
	commit := func() {
		n++
		a := s.NewAppend("")
		for _, name := range []string{"a/0", "a/1", "b/0"} {
			if r.IntN(3) == 0 {
				continue
			}
			for i := range 1 + r.IntN(3) {
				must(t, a.Record(parts[name], int64(n), []byte(name), value(n, i)[:12+r.IntN(160)%max(len(value(n, i))-11, 1)], nil))
			}
		}
		num := binary.BigEndian.AppendUint64(nil, n)
		a.Set(storage.KindMeta, "last", num)
		a.Fold(storage.KindWindow, "all", num)
		must(t, s.Commit(t.Context(), a))
	}
	fill := func(segs int) {
		for len(segments()) < segs {
			commit()
		}
		for range 5 {
			commit()
		}
	}
	fill(3)
	if own {
		ownState(t, s)
		must(t, s.Close())
		cfg := sweepConfig(dir)
		cfg.NewEpoch = true
		s, err = storage.Open(cfg)
		must(t, err)
		parts = sweepParts(s)
	}
	fill(4)
	segs := segments()
	var first uint64
	fmt.Sscanf(filepath.Base(segs[2]), "%020d", &first)
	o, err := storagetest.ReadLog(filepath.Join(dir, "main", "log"))
	must(t, err)
	starts := map[uint32]int64{}
	for _, e := range o.Entries {
		if e.Index < first && e.Kind == 1 {
			b := record.Batch(e.Payload)
			starts[e.Partition] = b.NextOffset()
		}
	}
	for _, p := range parts {
		if to := starts[uint32(p.ID())]; to > p.Start() {
			must(t, p.SetStart(to))
		}
	}
	must(t, s.Retain())
	target := 1 // what TruncateFront leaves stands before it
	fill(4)
	g := &golden{files: map[string][]byte{}, parts: map[string][]piece{}, starts: map[string]int64{}, ends: map[string]int64{}, id: s.Identity(), epochs: s.Epochs()}
	for name, p := range parts {
		g.starts[name], g.ends[name] = p.Start(), p.HighWatermark()
		g.parts[name], err = readPieces(p, p.Start())
		must(t, err)
	}
	g.last, _ = s.State(storage.KindMeta, "last")
	g.windows, _ = s.State(storage.KindWindow, "all")
	segs = segments()
	rel := func(p string) string { p, _ = filepath.Rel(dir, p); return p }
	g.target, g.tail = rel(segs[target]), rel(segs[len(segs)-1])
	g.side = filepath.Join("main", "index", filepath.Base(g.target)+".idx")
	must(t, s.Close())
	must(t, filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() && e.Name() != "reserve" {
			g.files[rel(path)], err = os.ReadFile(path)
		}
		return err
	}))
	if size := len(g.files[g.target]); size < 64<<10 || size > 70<<10 || g.target == g.tail {
		t.Fatalf("the segment to damage has %d bytes", size)
	}
	if len(g.files[g.side]) == 0 {
		t.Fatalf("segment %s has no index", g.target)
	}
	return g
}

func sweepParts(s *storage.Store) map[string]*storage.Partition {
	m := map[string]*storage.Partition{}
	for _, tp := range s.Topics() {
		for _, p := range tp.Partitions() {
			m[partName(tp.Name(), p.Index())] = p
		}
	}
	return m
}

func readPieces(p *storage.Partition, from int64) (out []piece, err error) {
	for off := from; off < p.HighWatermark(); {
		b, next, err := p.Read(nil, off, 64<<10)
		if err != nil {
			return nil, fmt.Errorf("read at %d: %w", off, err)
		}
		if next <= off {
			return nil, fmt.Errorf("read at %d gave nothing below the high watermark %d", off, p.HighWatermark())
		}
		for len(b) > 0 {
			batch, rest, err := record.Next(b)
			if err != nil {
				return nil, fmt.Errorf("batch at %d: %w", off, err)
			}
			out = append(out, piece{batch.BaseOffset(), batch.NextOffset(), batch})
			b = rest
		}
		off = next
	}
	return out, nil
}

// harm is one damage: files that differ from the golden ones; nil is a missing file.
type harm struct {
	what  string
	files map[string][]byte
	again bool // open it again in any case
}

// verdict of a damaged store.
type harmed struct {
	batches int  // lost and declared
	cut     bool // the end of the log was taken for a torn write
	refused bool // Open gave a reason and did nothing
}

// bench is a directory in which one worker damages copies of a golden store.
type bench struct {
	g    *golden
	dir  string
	n    int
	tail bool // the tail was damaged: the last state of others may be in what is lost
	// dirty are the files that were damaged, and perhaps repaired.
	dirty  map[string]bool
	reason storage.LossReason // that what is lost must be declared with
}

func newBench(g *golden, dir string) *bench {
	return &bench{g: g, dir: dir, dirty: map[string]bool{}, reason: storage.LossDamaged}
}

// restore puts every file back that anything may have changed. A file that only grew is
// cut: the bytes of a sound one are never rewritten in place.
func (b *bench) restore(h harm) error {
	for _, d := range []string{"main/log", "main/index", "main/quarantine"} {
		dir := filepath.Join(b.dir, d)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		list, err := os.ReadDir(dir)
		if err != nil {
			return err
		}
		for _, e := range list {
			if _, known := b.g.files[filepath.Join(d, e.Name())]; !known {
				if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
					return err
				}
			}
		}
	}
	for name, data := range b.g.files {
		path := filepath.Join(b.dir, name)
		bad, hit := h.files[name]
		switch {
		case hit && bad == nil:
			os.Remove(path)
			b.dirty[name] = true
			continue
		case hit:
			data = bad
		case !b.dirty[name] && filepath.Base(name) != "twin": // that one is replaced
			if fi, err := os.Stat(path); err == nil && fi.Size() > int64(len(data)) {
				if err := os.Truncate(path, int64(len(data))); err != nil {
					return err
				}
				continue
			} else if err == nil && fi.Size() == int64(len(data)) {
				continue
			}
		}
		b.dirty[name] = hit
		if err := os.WriteFile(path, data, 0o640); err != nil {
			return err
		}
	}
	return nil
}

// try opens the damaged store and compares everything in it with the golden one: each
// record is there as it was or declared, never both, never another.
func (b *bench) try(h harm) (v harmed, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%s: panic: %v", h.what, p)
		} else if err != nil {
			err = fmt.Errorf("%s: %w", h.what, err)
		}
	}()
	if err := b.restore(h); err != nil {
		return v, err
	}
	_, b.tail = h.files[b.g.tail]
	s, err := storage.Open(sweepConfig(b.dir))
	if err != nil {
		if _, hit := h.files["IDENTITY"]; hit {
			v.refused = true
			return v, nil
		}
		return v, fmt.Errorf("open: %w", err)
	}
	v, err = b.compare(s)
	if cerr := s.Close(); err == nil {
		err = cerr
	}
	b.n++
	if err == nil && (h.again || b.n%61 == 0) { // what was repaired stays repaired
		if err := b.again(v); err != nil {
			return v, fmt.Errorf("opened again: %w", err)
		}
	}
	return v, err
}

func (b *bench) again(was harmed) error {
	s, err := storage.Open(sweepConfig(b.dir))
	if err != nil {
		return err
	}
	v, err := b.compare(s)
	if cerr := s.Close(); err == nil {
		err = cerr
	}
	if err == nil && v != was { // what was declared lost stays lost
		err = fmt.Errorf("at first %+v, then %+v", was, v)
	}
	if err != nil {
		return err
	}
	// Repaired by now also where a reader found it, so that the second reader finds no fault.
	o, err := storagetest.ReadStore(b.dir)
	if err != nil {
		return err
	}
	for _, p := range o.Logs["main"].Problems {
		// The offsets of what was lost are missing. State that newer state has replaced is
		// not read any more where an index is believed, so nobody repairs it.
		if !strings.Contains(p, "is due") && (was.batches > 0 || !strings.Contains(p, "and segments follow")) {
			return fmt.Errorf("the second reader: %s", p)
		}
	}
	return nil
}

// compare looks at everything.
func (b *bench) compare(s *storage.Store) (v harmed, err error) {
	g := b.g
	id := s.Identity()
	if id.StoreID != g.id.StoreID || id.NodeID != g.id.NodeID {
		return v, fmt.Errorf("identity %x %q", id.StoreID, id.NodeID)
	}
	raised := id.Epoch.Number > g.id.Epoch.Number
	parts := sweepParts(s)
	if len(parts) != len(g.parts) {
		return v, fmt.Errorf("%d partitions, there were %d", len(parts), len(g.parts))
	}
	epochs := s.Epochs()
	for i, e := range g.epochs {
		if i >= len(epochs) || epochs[i].ID != e.ID || epochs[i].Number != e.Number {
			return v, fmt.Errorf("epoch %d is lost or another: %+v", e.Number, epochs)
		}
	}
	got := map[string][]piece{}
	for name := range g.parts {
		p := parts[name]
		if p == nil {
			return v, fmt.Errorf("partition %s is gone", name)
		}
		if p.Start() != g.starts[name] {
			return v, fmt.Errorf("%s starts at %d, it was %d", name, p.Start(), g.starts[name])
		}
		if got[name], err = readPieces(p, g.starts[name]); err != nil {
			return v, fmt.Errorf("%s: %w", name, err)
		}
	}
	// What readers found is declared by the committer before its next commit.
	a := s.NewAppend("")
	a.Set(storage.KindMeta, "sweep", []byte("x"))
	if err := s.Commit(context.Background(), a); err != nil {
		return v, fmt.Errorf("commit: %w", err)
	}
	lost := map[string][]storage.Loss{}
	for _, l := range s.Losses() {
		name := partName(l.Topic, l.Index)
		if l.Reason != b.reason {
			return v, fmt.Errorf("declared as %v: %+v", l.Reason, l)
		}
		lost[name] = append(lost[name], l)
	}
	declared := func(name string, from, to int64) bool {
		for _, l := range lost[name] {
			if l.From <= from && to <= l.To {
				return true
			}
		}
		return false
	}
	overlaps := func(name string, from, to int64) bool {
		for _, l := range lost[name] {
			if l.From < to && from < l.To {
				return true
			}
		}
		return false
	}
	for name, want := range g.parts {
		have, hw := got[name], parts[name].HighWatermark()
		if hw > g.ends[name] {
			return v, fmt.Errorf("%s ends at %d, it was %d", name, hw, g.ends[name])
		}
		for _, w := range want {
			switch {
			case len(have) > 0 && have[0].from == w.from:
				if !bytes.Equal(have[0].bytes, w.bytes) {
					return v, fmt.Errorf("%s: the batch at offset %d is another one", name, w.from)
				}
				if overlaps(name, w.from, w.to) {
					return v, fmt.Errorf("%s: [%d, %d) is there and declared lost", name, w.from, w.to)
				}
				have = have[1:]
			case declared(name, w.from, w.to):
				v.batches++
			case w.from >= hw && raised:
				v.cut = true
			default:
				return v, fmt.Errorf("%s: [%d, %d) is neither there nor declared; declared is %v, repaired %+v", name, w.from, w.to, lost[name], id.Recovered)
			}
		}
		if len(have) > 0 {
			return v, fmt.Errorf("%s: a batch at offset %d that nobody wrote", name, have[0].from)
		}
	}
	if v.cut || b.tail {
		return v, nil
	}
	last, _ := s.State(storage.KindMeta, "last")
	if !bytes.Equal(last, g.last) {
		return v, fmt.Errorf("the state says %x, it was %x", last, g.last)
	}
	return v, nil
}

// sweep runs damages on several workers and sums up.
func sweep(t *testing.T, g *golden, harms func(yield func(harm) bool), check func(harm, harmed) error) (total harmed, runs int64) {
	t.Helper()
	base := scratch(t)
	defer debug.SetGCPercent(debug.SetGCPercent(400))
	ch := make(chan harm)
	var wg sync.WaitGroup
	var mu sync.Mutex
	var failed atomic.Int64
	for w := range max(runtime.GOMAXPROCS(0), 2) {
		wg.Go(func() {
			b := newBench(g, filepath.Join(base, fmt.Sprint(w)))
			for h := range ch {
				if failed.Load() >= 5 {
					continue
				}
				v, err := b.try(h)
				if err == nil {
					if err = check(h, v); err != nil {
						err = fmt.Errorf("%s: %w", h.what, err)
					}
				}
				if err != nil {
					failed.Add(1)
					t.Error(err)
				}
				mu.Lock()
				runs++
				total.batches += v.batches
				total.cut = total.cut || v.cut
				total.refused = total.refused || v.refused
				mu.Unlock()
			}
		})
	}
	for h := range harms {
		if failed.Load() >= 5 {
			break
		}
		ch <- h
	}
	close(ch)
	wg.Wait()
	return total, runs
}

// sides are the indexes of a golden store, taken away: then Open reads everything.
func (g *golden) withoutSides(h harm) harm {
	for name := range g.files {
		if strings.HasSuffix(name, ".idx") {
			h.files[name] = nil
		}
	}
	h.what += ", without indexes"
	return h
}
