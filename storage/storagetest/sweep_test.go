package storagetest_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"sort"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/klauspost/compress/s2"

	"tailrace/storage"
	"tailrace/storage/storagetest"
)

var (
	sweepEvery  = flag.Int("sweep-every", 16, "damage every n-th bit, beginning at one that rotates with the commit; 1 is the long form")
	sweepPacked = flag.Bool("sweep-packed", storagetest.Rotation()/16%2 == 1, "the log that is damaged is packed; by turns with the commit")
	sectors     = flag.Int("sectors", 500, "how many random sector faults; 10000 is the long form")
)

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
		ops := e[48:]
		if e[3] == 5 {
			size, n := binary.Uvarint(ops)
			ops, _ = s2.Decode(nil, ops[n:n+int(size)])
		}
		if (e[3] == 2 || e[3] == 5) && len(ops) > 0 && ops[0] < byte(storage.KindSession) {
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
