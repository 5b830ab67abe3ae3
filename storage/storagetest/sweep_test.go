package storagetest_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"maps"
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
	"time"

	"tailrace/storage"
	"tailrace/storage/record"
	"tailrace/storage/storagetest"
)

var (
	sweepEvery = flag.Int("sweep-every", 16, "damage every n-th bit, beginning at one that rotates with the commit; 1 is the long form")
	sectors    = flag.Int("sectors", 500, "how many random sector faults; 10000 is the long form")
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
		Classes: []storage.ClassConfig{{Name: "main", SegmentBytes: 64 << 10, MinFreeBytes: -1}},
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

// Every bit of a sealed segment of 64 KiB is flipped, and the segment is cut at every byte
// (in CI every 16th of each, another one each commit): where Open reads the segment, and
// where it believes the index and a reader finds the damage. No wrong record, no panic, at
// most one batch lost for a flipped bit, each loss declared.
func TestFlipsAndCutsOfASegment(t *testing.T) {
	g := makeGolden(t, filepath.Join(scratch(t), "golden"), false)
	whole := g.files[g.target]
	start, step := time.Now(), *sweepEvery
	if testing.Short() {
		step *= 16
	}
	first := int(storagetest.Rotation() % uint64(step))
	total, runs := sweep(t, g, func(yield func(harm) bool) {
		for bit := first; bit < 8*len(whole); bit += step {
			b := bytes.Clone(whole)
			b[bit/8] ^= 1 << (bit % 8)
			h := harm{what: fmt.Sprintf("bit %d of byte %d of %d flipped", bit%8, bit/8, len(whole)), files: map[string][]byte{g.target: b}}
			// Both ways of finding it: both for each bit in the long form, in turns in the short one.
			if step == 1 || bit/step%2 == 0 {
				if !yield(g.withoutSides(h)) {
					return
				}
				h = harm{what: h.what, files: map[string][]byte{g.target: b}}
			}
			if (step == 1 || bit/step%2 == 1) && !yield(h) {
				return
			}
		}
	}, func(h harm, v harmed) error {
		if v.batches > 1 || v.cut {
			return fmt.Errorf("%d batches lost, end cut: %v", v.batches, v.cut)
		}
		return nil
	})
	t.Logf("%d flips in %v: %d batches lost, all declared", runs, time.Since(start).Round(time.Millisecond), total.batches)
	if runs > 100 && total.batches < int(runs)/3 {
		t.Errorf("the flips hardly ever hit a batch")
	}
	start = time.Now()
	total, runs = sweep(t, g, func(yield func(harm) bool) {
		for at := first % len(whole); at < len(whole); at += step {
			h := harm{what: fmt.Sprintf("cut to %d of %d bytes", at, len(whole)), files: map[string][]byte{g.target: whole[:at]}}
			if at%2 == 0 {
				h = g.withoutSides(h)
			}
			if !yield(h) {
				return
			}
		}
	}, func(h harm, v harmed) error {
		if v.cut {
			return errors.New("the end of the log was cut")
		}
		return nil
	})
	t.Logf("%d cuts in %v: %d batches lost, all declared", runs, time.Since(start).Round(time.Millisecond), total.batches)
}

// ownRanges are the ranges of entries that hold state of the store itself.
func ownRanges(b []byte) (ranges [][2]int) {
	for pos := 0; pos < len(b); {
		size, n := binary.Uvarint(b[pos:])
		if n <= 0 || int(size) > len(b)-pos-n {
			break
		}
		e := b[pos+n : pos+n+int(size)]
		if e[3] == 2 && len(e) > 48 && e[48] < byte(storage.KindSession) {
			ranges = append(ranges, [2]int{pos, pos + n + int(size)})
		}
		pos += n + int(size)
	}
	return ranges
}

// Every bit of the entries in which topics were made and deleted, starts moved and epochs
// begun, and every byte at which a segment can end among them: no topic is hidden or comes
// back, no start moves, no epoch is lost. Likewise every bit and byte of the newest segment:
// the store was closed, so nothing there can be a torn write, and all that is gone is
// declared.
func TestFlipsAndCutsOfOwnState(t *testing.T) {
	g := makeGolden(t, filepath.Join(scratch(t), "golden"), true)
	start, step := time.Now(), *sweepEvery
	if testing.Short() {
		step *= 16
	}
	first := int(storagetest.Rotation() % uint64(step))
	entries := 0
	total, runs := sweep(t, g, func(yield func(harm) bool) {
		for name, whole := range g.files {
			if !strings.Contains(name, "/log/") {
				continue
			}
			ranges := ownRanges(whole)
			entries += len(ranges)
			if name == g.tail {
				ranges = [][2]int{{0, len(whole)}}
			}
			for _, o := range ranges {
				for bit := 8*o[0] + first; bit < 8*o[1]; bit += step {
					b := bytes.Clone(whole)
					b[bit/8] ^= 1 << (bit % 8)
					h := harm{what: fmt.Sprintf("%s: bit %d of byte %d of %d flipped", name, bit%8, bit/8, len(whole)), files: map[string][]byte{name: b}}
					if bit/step%2 == 0 {
						h = g.withoutSides(h)
					}
					if !yield(h) {
						return
					}
				}
				for at := o[0] + first%8; at < o[1]; at += max(step/8, 1) {
					h := harm{what: fmt.Sprintf("%s cut to %d of %d bytes", name, at, len(whole)), files: map[string][]byte{name: whole[:at]}}
					if name != g.tail && at%2 == 0 {
						h.what += ", cut"
					}
					if !yield(h) {
						return
					}
				}
			}
		}
	}, func(h harm, v harmed) error {
		if flip := strings.Contains(h.what, "flipped"); v.cut || flip && v.batches > 1 {
			return fmt.Errorf("%d batches lost, end cut: %v", v.batches, v.cut)
		}
		return nil
	})
	t.Logf("%d damages of %d entries and of the tail in %v: %d batches lost, all declared", runs, entries, time.Since(start).Round(time.Millisecond), total.batches)
	if entries < 8 {
		t.Errorf("only %d entries hold state of the store", entries)
	}
}

// The same for the index of a segment, for the catalog of indexes and for the second copy
// of the state: nothing is lost, since the log tells it all.
func TestFlipsAndCutsOfAnIndex(t *testing.T) {
	g := makeGolden(t, filepath.Join(scratch(t), "golden"), true)
	for _, name := range []string{g.side, filepath.Join("main", "catalog"), filepath.Join("main", "twin")} {
		if whole := g.files[name]; len(whole) > 0 {
			sweepIndex(t, g, name, whole)
		}
	}
}

func sweepIndex(t *testing.T, g *golden, name string, whole []byte) {
	start, step := time.Now(), *sweepEvery
	first := int(storagetest.Rotation() % uint64(step))
	_, runs := sweep(t, g, func(yield func(harm) bool) {
		for bit := first; bit < 8*len(whole); bit += step {
			b := bytes.Clone(whole)
			b[bit/8] ^= 1 << (bit % 8)
			if !yield(harm{what: fmt.Sprintf("bit %d of byte %d of %s flipped", bit%8, bit/8, name), files: map[string][]byte{name: b}}) {
				return
			}
		}
		for at := first; at < len(whole); at += step {
			if !yield(harm{what: fmt.Sprintf("%s cut to %d bytes", name, at), files: map[string][]byte{name: whole[:at]}}) {
				return
			}
		}
	}, func(h harm, v harmed) error {
		if v.batches > 0 || v.cut {
			return fmt.Errorf("%d batches lost, end cut: %v", v.batches, v.cut)
		}
		return nil
	})
	t.Logf("%d damages of %s, %d bytes, in %v", runs, name, len(whole), time.Since(start).Round(time.Millisecond))
}

// Every bit and every byte of the identity file: with its copy the store opens as the same
// as before. Without, it refuses to open and says why, or it is the same store. It never
// opens as another.
func TestFlipsAndCutsOfTheIdentity(t *testing.T) {
	g := makeGolden(t, filepath.Join(scratch(t), "golden"), false)
	whole := g.files["IDENTITY"]
	run := func(files map[string][]byte) (refused, runs int64) {
		var n atomic.Int64
		_, runs = sweep(t, g, func(yield func(harm) bool) {
			try := func(what string, b []byte) bool {
				h := harm{what: what, files: maps.Clone(files)}
				h.files["IDENTITY"] = b
				return yield(h)
			}
			for bit := range 8 * len(whole) {
				b := bytes.Clone(whole)
				b[bit/8] ^= 1 << (bit % 8)
				if !try(fmt.Sprintf("bit %d of byte %d flipped", bit%8, bit/8), b) {
					return
				}
			}
			for at := range whole {
				if !try(fmt.Sprintf("cut to %d bytes", at), whole[:at]) {
					return
				}
			}
		}, func(h harm, v harmed) error {
			if v.refused {
				n.Add(1)
			}
			if v.batches > 0 || v.cut {
				return errors.New("records are gone")
			}
			return nil
		})
		return n.Load(), runs
	}
	refused, runs := run(map[string][]byte{"IDENTITY.copy": nil})
	t.Logf("%d damages of the identity without its copy, %d refused", runs, refused)
	if refused < runs*9/10 {
		t.Errorf("only %d of %d damaged identities were refused", refused, runs)
	}
	if refused, _ := run(map[string][]byte{}); refused > 0 {
		t.Errorf("%d damaged identities were refused although there is a sound copy", refused)
	}
}

// ownState makes topics, moves a start, deletes a topic: nothing of it is told again.
func ownState(t *testing.T, s *storage.Store) {
	t.Helper()
	for _, name := range []string{"gone", "c", "d"} {
		_, err := s.CreateTopic(name, storage.TopicConfig{Partitions: 2, RetentionAge: time.Hour})
		must(t, err)
	}
	for i := range 3 {
		a := s.NewAppend("")
		for _, name := range []string{"gone", "c"} {
			tp, _ := s.Topic(name)
			must(t, a.Record(tp.Partition(0), 1, nil, value(uint64(i), 7)[:12], nil))
		}
		must(t, s.Commit(t.Context(), a))
	}
	tp, _ := s.Topic("c")
	must(t, tp.Partition(0).SetStart(2))
	must(t, s.DeleteTopic("gone"))
}

// Random sector faults of any file: 512 bytes or 4 KiB are zeroed, hold what belongs
// elsewhere, or what they held before. All that is gone is declared; nothing is taken for
// a torn write, since the store was closed.
func TestSectorFaults(t *testing.T) {
	g := makeGolden(t, filepath.Join(scratch(t), "golden"), true)
	n := *sectors
	if testing.Short() {
		n /= 5
	}
	var names []string
	for name, b := range g.files {
		if len(b) > 0 && name != "LOCK" {
			names = append(names, name)
		}
	}
	sort.Strings(names)
	rot := storagetest.Rotation()
	r := rand.New(rand.NewPCG(rot, 9))
	start := time.Now()
	total, runs := sweep(t, g, func(yield func(harm) bool) {
		for range n {
			name := names[r.IntN(len(names))]
			if r.IntN(2) == 0 {
				name = g.target
			}
			b := bytes.Clone(g.files[name])
			size := []int{512, 4096}[r.IntN(2)]
			pick := func() (int, int) {
				at := r.IntN((len(b)+size-1)/size) * size
				return at, min(at+size, len(b))
			}
			from, to := pick()
			what := ""
			switch r.IntN(3) {
			case 0:
				what = "zeroed"
				clear(b[from:to])
			case 1:
				what = "swapped with another"
				f2, t2 := pick()
				k := min(to-from, t2-f2)
				x := bytes.Clone(b[from : from+k])
				copy(b[from:], b[f2:f2+k])
				copy(b[f2:], x)
			default:
				what = "an old copy"
				other := g.files[names[r.IntN(len(names))]] // what stood there before the file was
				clear(b[from:to])
				if from < len(other) {
					copy(b[from:to], other[from:])
				}
			}
			h := harm{what: fmt.Sprintf("rotation %d: %s, sector [%d, %d) %s", rot, name, from, to, what), files: map[string][]byte{name: b}, again: true}
			if r.IntN(2) == 0 && !strings.HasSuffix(name, ".idx") {
				h = g.withoutSides(h)
			}
			if !yield(h) {
				return
			}
		}
	}, func(h harm, v harmed) error {
		if v.cut {
			return errors.New("the end of the log was cut")
		}
		return nil
	})
	t.Logf("%d sector faults in %v: %d batches lost, all declared", runs, time.Since(start).Round(time.Millisecond), total.batches)
}
