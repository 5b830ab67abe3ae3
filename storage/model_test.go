package storage_test

import (
	"bytes"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"tailrace/storage"
	"tailrace/storage/record"
)

var seedFlag = flag.Uint64("seed", 0, "seed of TestStoreEqualsModel; 0: from the clock")

// model is the store as slices and a map.
type model struct {
	parts map[string][]rec // by topic/partition, all ever
	start map[string]int64
	state map[string]string
}

func concat(old, delta []byte) []byte {
	out := append(old, delta...)
	return out[max(0, len(out)-12):]
}

func (m *model) check(t *testing.T, s *storage.Store, seed uint64, step int) {
	t.Helper()
	for _, tp := range s.Topics() {
		for _, p := range tp.Partitions() {
			key := fmt.Sprintf("%s/%d", tp.Name(), p.Index())
			want := m.parts[key]
			if p.HighWatermark() != int64(len(want)) || p.Start() != m.start[key] {
				t.Fatalf("seed %d step %d: %s is [%d, %d), want [%d, %d)", seed, step, key, p.Start(), p.HighWatermark(), m.start[key], len(want))
			}
			got := readAll(t, p, p.Start())
			for len(got) > 0 && got[0].Offset < p.Start() {
				got = got[1:] // the batch that holds the start is given whole
			}
			if !slices.Equal(got, want[m.start[key]:]) {
				t.Fatalf("seed %d step %d: %s\ngot  %v\nwant %v", seed, step, key, got, want[m.start[key]:])
			}
			if n := len(got); n > 0 {
				ts := got[n/2].TS
				off, _, ok, err := p.OffsetForTime(ts)
				i := slices.IndexFunc(got, func(r rec) bool { return r.TS >= ts })
				if err != nil || !ok || off != got[i].Offset {
					t.Fatalf("seed %d step %d: %s: offset for time %d is %d %v %v, want %d", seed, step, key, ts, off, ok, err, got[i].Offset)
				}
			}
		}
	}
	state := make(map[string]string)
	for _, k := range []storage.StateKind{storage.KindMeta, storage.KindWindow} {
		s.RangeState(k, func(key string, v []byte) bool {
			state[fmt.Sprint(k, key)] = string(v)
			return true
		})
	}
	if !maps.Equal(state, m.state) {
		t.Fatalf("seed %d step %d: state\ngot  %v\nwant %v", seed, step, state, m.state)
	}
}

// TestStoreEqualsModel runs random operations on a store with tiny segments and on
// the model, reopens at random, and compares everything.
func TestStoreEqualsModel(t *testing.T) {
	seed := *seedFlag
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	rounds := 20
	if testing.Short() {
		rounds = 4
	}
	truncated := 0
	for i := range rounds {
		if runModel(t, seed+uint64(i)) {
			truncated++
		}
	}
	if truncated == 0 {
		t.Fatalf("seed %d: no run dropped a segment", seed)
	}
}

// runModel tells whether the front of the log was ever truncated.
func runModel(t *testing.T, seed uint64) bool {
	rnd := rand.New(rand.NewPCG(seed, 7))
	dir := filepath.Join(quickDir(t), fmt.Sprint(seed))
	fs := &testFS{}
	mod := func(c *storage.Config) {
		c.FS = fs
		c.Classes[0].SegmentBytes = 4096
		c.Classes[0].MaxBatchBytes = 1024
		c.Classes[0].Pack = seed%2 == 0
		c.Folds = map[storage.StateKind]storage.FoldFunc{storage.KindWindow: concat}
	}
	s := open(t, dir, mod)
	m := &model{parts: map[string][]rec{}, start: map[string]int64{}, state: map[string]string{}}
	for i := range 3 {
		topic(t, s, fmt.Sprint("t", i), i+1)
	}
	pick := func() (*storage.Partition, string) {
		tp := s.Topics()[rnd.IntN(3)]
		p := tp.Partitions()[rnd.IntN(len(tp.Partitions()))]
		return p, fmt.Sprintf("%s/%d", tp.Name(), p.Index())
	}
	ts := int64(1000)
	for step := range 400 {
		switch rnd.IntN(20) {
		case 0:
			if err := s.Close(); err != nil {
				t.Fatalf("seed %d step %d: %v", seed, step, err)
			}
			plainRead(t, dir)
			s = open(t, dir, mod)
			if repairs(s) != "" {
				t.Fatalf("seed %d step %d: repairs %q", seed, step, repairs(s))
			}
			m.check(t, s, seed, step)
		case 1:
			p, key := pick()
			if hw := p.HighWatermark(); hw > 0 && rnd.IntN(3) == 0 {
				off := rnd.Int64N(hw + 1)
				if err := p.SetStart(off); err != nil {
					t.Fatal(err)
				}
				m.start[key] = max(m.start[key], off)
			}
		case 2:
			if rnd.IntN(2) == 0 { // everything but the last few goes
				for _, tp := range s.Topics() {
					for _, p := range tp.Partitions() {
						key := fmt.Sprintf("%s/%d", tp.Name(), p.Index())
						off := max(0, p.HighWatermark()-rnd.Int64N(4))
						if err := p.SetStart(off); err != nil {
							t.Fatal(err)
						}
						m.start[key] = max(m.start[key], off)
					}
				}
			}
			if err := s.Retain(); err != nil { // drops what the starts allow
				t.Fatal(err)
			}
			m.check(t, s, seed, step)
		default:
			a := s.NewAppend("")
			type added struct {
				key   string
				index int
				recs  []rec
			}
			var adds []added
			for range rnd.IntN(6) {
				p, key := pick()
				ts += rnd.Int64N(10) - 4
				var recs []rec
				if rnd.IntN(4) > 0 {
					r := rec{TS: ts, Key: fmt.Sprint(step), Value: string(bytes.Repeat([]byte{'x'}, rnd.IntN(200)))}
					if err := a.Record(p, r.TS, []byte(r.Key), []byte(r.Value), nil); err != nil {
						t.Fatal(err)
					}
					recs = append(recs, r)
				} else {
					var bl record.Builder
					bl.Reset(nil)
					for j := range 1 + rnd.IntN(5) {
						r := rec{TS: ts + int64(j%3), Key: "", Value: fmt.Sprint("b", step, j)}
						bl.Add(r.TS, nil, []byte(r.Value), nil)
						recs = append(recs, r)
					}
					if err := a.Batch(p, record.Batch(bl.Finish(777, 3)), &storage.Origin{Node: "n", Topic: key, From: 1, To: 2}); err != nil {
						t.Fatal(err)
					}
				}
				adds = append(adds, added{key, a.Len() - 1, recs})
			}
			for range rnd.IntN(3) {
				key := fmt.Sprint("k", rnd.IntN(12))
				v := fmt.Appendf(nil, "%d.", step)
				meta, window := fmt.Sprint(storage.KindMeta, key), fmt.Sprint(storage.KindWindow, key)
				switch rnd.IntN(5) {
				case 0:
					a.Set(storage.KindMeta, key, nil)
					delete(m.state, meta)
				case 1:
					a.Set(storage.KindWindow, key, nil)
					delete(m.state, window)
				case 2:
					a.Set(storage.KindMeta, key, v)
					m.state[meta] = string(v)
				default:
					a.Fold(storage.KindWindow, key, v)
					m.state[window] = string(concat([]byte(m.state[window]), v))
				}
			}
			if err := s.Commit(t.Context(), a); err != nil {
				t.Fatalf("seed %d step %d: %v", seed, step, err)
			}
			for _, ad := range adds {
				base := a.Base(ad.index)
				for j, r := range ad.recs {
					r.Offset = base + int64(j)
					if r.Offset != int64(len(m.parts[ad.key])) {
						t.Fatalf("seed %d step %d: offset %d, want %d", seed, step, r.Offset, len(m.parts[ad.key]))
					}
					m.parts[ad.key] = append(m.parts[ad.key], r)
				}
			}
		}
	}
	m.check(t, s, seed, -1)
	s.Close()
	return filepath.Base(segments(t, dir)[0]) != "00000000000000000001"
}

// TestSideFilesAreRebuilt: a missing, cut or flipped side file changes nothing.
func TestSideFilesAreRebuilt(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "s")
	fs := &testFS{}
	s := open(t, dir, onFS(fs), segmentBytes(4096))
	p := topic(t, s, "wind", 1).Partition(0)
	for i := range 200 {
		put(t, s, p, int64(i), fmt.Sprintf("value %d of a record that is not that short", i))
	}
	want := fmt.Sprint(readAll(t, p, 0))
	s.Close()
	names, _ := filepath.Glob(filepath.Join(dir, "main", "index", "*.idx"))
	if len(names) < 3 {
		t.Fatalf("%d side files", len(names))
	}
	for at := range mustRead(t, names[1]) {
		if at%3 != 0 {
			continue
		}
		b := mustRead(t, names[1])
		b[at] ^= 0x10
		if at%2 == 0 {
			b = b[:at]
		}
		mustWrite(t, names[1], b)
		s := open(t, dir, onFS(fs), segmentBytes(4096))
		tp, _ := s.Topic("wind")
		if got := fmt.Sprint(readAll(t, tp.Partition(0), 0)); got != want || repairs(s) != "" {
			t.Fatalf("side file damaged at %d: repairs %q, %v", at, repairs(s), got)
		}
		s.Close()
	}
}
