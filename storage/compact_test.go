package storage_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"tailrace/storage"
	"tailrace/storage/record"
)

// table is a store with one compacted topic beside what must be read of it.
type table struct {
	t     testing.TB
	s     *storage.Store
	p     *storage.Partition
	dir   string
	now   time.Time
	mod   []func(*storage.Config)
	all   []kv // every record ever appended, by offset
	codec bool
}

type kv struct {
	key, value string
	null       bool
}

func newTable(t testing.TB, rules storage.Compaction, mod ...func(*storage.Config)) *table {
	tb := &table{t: t, dir: filepath.Join(quickDir(t), "s"), now: time.UnixMilli(1e12), mod: mod}
	tb.open()
	tp, err := tb.s.CreateTopic("table", storage.TopicConfig{Compaction: &rules})
	if err != nil {
		t.Fatal(err)
	}
	tb.p = tp.Partition(0)
	return tb
}

func (tb *table) open() {
	tb.t.Helper()
	mods := append([]func(*storage.Config){func(c *storage.Config) { c.Now = func() time.Time { return tb.now } }, segmentBytes(8 << 10), onFS(&testFS{})}, tb.mod...)
	tb.s = open(tb.t, tb.dir, mods...)
	if tp, ok := tb.s.Topic("table"); ok {
		tb.p = tp.Partition(0)
	}
}

func (tb *table) reopen() {
	tb.t.Helper()
	if err := tb.s.Close(); err != nil {
		tb.t.Fatal(err)
	}
	tb.open()
	if r := repairs(tb.s); r != "" {
		tb.t.Fatalf("repairs %q", r)
	}
}

// put appends one batch.
func (tb *table) put(recs ...kv) {
	tb.t.Helper()
	var bl record.Builder
	bl.Reset(nil)
	for _, r := range recs {
		value := []byte(r.value)
		if r.null {
			value = nil
		}
		var key []byte
		if r.key != "" {
			key = []byte(r.key)
		}
		bl.Add(int64(len(tb.all)), key, value, []record.Header{{Key: "h", Value: []byte(r.key)}})
		tb.all = append(tb.all, r)
	}
	b := record.Batch(bl.Finish(0, 1))
	if tb.codec {
		b = record.Compress(nil, b)
	}
	a := tb.s.NewAppend("")
	if err := a.Batch(tb.p, b, &storage.Origin{Node: "n", Topic: "t", From: 1, To: 2}); err != nil {
		tb.t.Fatal(err)
	}
	if err := tb.s.Commit(context.Background(), a); err != nil {
		tb.t.Fatal(err)
	}
}

// random appends n batches over the keys k0 … k(keys-1).
func (tb *table) random(r *rand.Rand, n, keys int) {
	for range n {
		var recs []kv
		for range 1 + r.IntN(6) {
			rec := kv{key: fmt.Sprint("k", r.IntN(keys)), value: fmt.Sprint("value ", len(tb.all)+len(recs), " ", r.Uint64())}
			switch r.IntN(12) {
			case 0:
				rec.null = true
			case 1:
				rec.key = ""
			}
			recs = append(recs, rec)
		}
		tb.put(recs...)
	}
}

func (tb *table) compact() {
	tb.t.Helper()
	if err := tb.s.Compact(); err != nil {
		tb.t.Fatal(err)
	}
}

// check reads the partition from every offset: what must be there is there, once and
// in order, with its offset, and what is there was appended. It returns the records
// that are left. upTo is the offset below which superseded records must be gone.
func (tb *table) check(upTo int64) map[int64]bool {
	tb.t.Helper()
	start := tb.p.Start()
	newest := map[string]int64{}
	for off, r := range tb.all {
		newest[r.key] = int64(off)
	}
	left := map[int64]bool{}
	seen := map[string]int64{}
	last := int64(-1)
	for _, r := range tb.read(start) {
		if r.Offset <= last {
			tb.t.Fatalf("offset %d after %d", r.Offset, last)
		}
		last = r.Offset
		want := tb.all[r.Offset]
		if r.Key != want.key || r.Value != want.value && !want.null || r.TS < 0 {
			tb.t.Fatalf("offset %d is %+v, appended was %+v", r.Offset, r, want)
		}
		left[r.Offset] = true
		seen[r.Key] = r.Offset
	}
	for key, off := range newest {
		if at, ok := seen[key]; ok && key != "" && at != off {
			tb.t.Fatalf("key %s was last written at offset %d; a reader ends with offset %d", key, off, at)
		}
	}
	for off := start; off < int64(len(tb.all)); off++ {
		r := tb.all[off]
		must := r.key == "" || newest[r.key] == off && !r.null
		if must && !left[off] {
			tb.t.Fatalf("offset %d (%+v) must stay and is gone", off, r)
		}
		if off < upTo && left[off] && r.key != "" && newest[r.key] > off && newest[r.key] < upTo {
			tb.t.Fatalf("offset %d (%+v) was superseded at %d and is there", off, r, newest[r.key])
		}
	}
	return left
}

// read reads to the end from an offset, and from some offsets in between.
func (tb *table) read(from int64) []rec {
	tb.t.Helper()
	out := tb.readFrom(from)
	for _, at := range []int{len(out) / 3, len(out) / 2, len(out) - 1} {
		if at < 0 || len(out) == 0 {
			continue
		}
		for _, off := range []int64{out[at].Offset, out[at].Offset + 1} {
			if off > tb.p.HighWatermark() {
				continue
			}
			got := tb.readFrom(off)
			want := out
			for len(want) > 0 && want[0].Offset < off {
				want = want[1:]
			}
			if fmt.Sprint(got) != fmt.Sprint(want) {
				tb.t.Fatalf("from offset %d: %v\nwant %v", off, got, want)
			}
		}
	}
	return out
}

// readFrom also checks that a reader always comes to the high watermark.
func (tb *table) readFrom(from int64) (out []rec) {
	tb.t.Helper()
	d := record.NewDecompressor(0)
	for at := from; at < tb.p.HighWatermark(); {
		b, next, err := tb.p.Read(nil, at, 2048)
		if err != nil {
			tb.t.Fatal(err)
		}
		if next <= at || len(b) == 0 {
			tb.t.Fatalf("stuck at %d (next %d) below the high watermark %d", at, next, tb.p.HighWatermark())
		}
		for len(b) > 0 {
			batch, rest, err := record.Next(b)
			if err == nil {
				err = batch.VerifyThinned()
			}
			if err != nil {
				tb.t.Fatal(err)
			}
			maxTime := int64(-1)
			it := batch.Iter(d)
			for it.Next() {
				r := it.Record()
				maxTime = max(maxTime, r.Timestamp)
				if r.Offset >= from {
					out = append(out, rec{r.Offset, r.Timestamp, string(r.Key), string(r.Value)})
				}
				if len(r.Headers) != 1 || string(r.Headers[0].Value) != string(r.Key) {
					tb.t.Fatalf("headers %v", r.Headers)
				}
			}
			if it.Err() != nil || maxTime != batch.MaxTimestamp() {
				tb.t.Fatalf("%v, greatest time %d, header %d", it.Err(), maxTime, batch.MaxTimestamp())
			}
			b = rest
		}
		at = next
	}
	return out
}

func rules() storage.Compaction {
	c := storage.DefaultCompaction()
	c.TombstoneAge = time.Hour
	return c
}

// TestCompactionKeepsTheNewestOfEachKey through random appends, compactions and
// reopenings: offsets, times, headers and origins stay, every reader comes to the end,
// and what is superseded goes.
func TestCompactionKeepsTheNewestOfEachKey(t *testing.T) {
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 7))
		tb := newTable(t, rules(), func(c *storage.Config) { c.CompactBytes = 24 * int64(8<<r.IntN(8)) })
		tb.codec = seed%2 == 1
		keys := 1 + r.IntN(60)
		for range 12 {
			tb.random(r, 1+r.IntN(80), keys)
			switch r.IntN(4) {
			case 0:
				tb.reopen()
			case 1:
				tb.now = tb.now.Add(30 * time.Minute)
			}
			for st := tb.p.CompactStatus(); st.To < tb.p.HighWatermark(); st = tb.p.CompactStatus() {
				tb.compact() // a small table takes several passes
				to := tb.p.CompactStatus().To
				if to <= st.To {
					t.Fatalf("seed %d: no progress at %d of %d", seed, st.To, tb.p.HighWatermark())
				}
				if r.IntN(2) == 0 { // in the middle of a segment
					if r.IntN(3) == 0 {
						tb.reopen()
					}
					tb.check(to)
				}
			}
			tb.check(tb.p.HighWatermark())
			if r.IntN(3) == 0 {
				tb.reopen()
				tb.check(tb.p.HighWatermark())
			}
			if o, ok := tb.p.Origin(tb.p.HighWatermark() - 1); !ok || o.Node != "n" {
				t.Fatalf("origin %+v %v", o, ok)
			}
			for range 5 { // by time: times are offsets here
				ts := r.Int64N(int64(len(tb.all)))
				off, _, ok, err := tb.p.OffsetForTime(ts)
				if want := tb.readFrom(ts); err != nil || ok != (len(want) > 0) || ok && off != want[0].Offset {
					t.Fatalf("seed %d: time %d is offset %d %v %v, want %v", seed, ts, off, ok, err, want[:min(1, len(want))])
				}
			}
		}
	}
}

// TestTombstonesGoAfterTheirTime, not before, also when nothing is written any more;
// the partition's last record stays, so that readers come to the end.
func TestTombstonesGoAfterTheirTime(t *testing.T) {
	tb := newTable(t, rules())
	tb.put(kv{key: "a", value: "1"}, kv{key: "b", value: "2"})
	tb.put(kv{key: "a", null: true})
	tb.put(kv{key: "c", value: "3"})
	tb.compact()
	if left := tb.check(4); len(left) != 3 || !left[2] {
		t.Fatalf("left %v", left)
	}
	tb.now = tb.now.Add(59 * time.Minute)
	tb.reopen()
	tb.compact()
	if left := tb.check(4); !left[2] {
		t.Fatal("a tombstone went before its time")
	}
	tb.now = tb.now.Add(2 * time.Minute)
	tb.compact()
	if left := tb.check(4); left[2] || len(left) != 2 {
		t.Fatalf("left %v", left)
	}
	tb.put(kv{key: "c", null: true})
	tb.compact()
	tb.now = tb.now.Add(2 * time.Hour)
	tb.compact()
	if left := tb.check(5); !left[4] || left[3] {
		t.Fatalf("left %v", left)
	}
}

// TestMinLagKeepsWhatIsNew as it came.
func TestMinLagKeepsWhatIsNew(t *testing.T) {
	c := rules()
	c.MinLag = time.Hour
	tb := newTable(t, c)
	tb.put(kv{key: "a", value: "1"})
	tb.put(kv{key: "a", value: "2"})
	tb.compact()
	if left := tb.check(0); len(left) != 2 {
		t.Fatalf("left %v", left)
	}
	tb.now = tb.now.Add(time.Hour + time.Second)
	tb.compact()
	if left := tb.check(2); len(left) != 1 {
		t.Fatalf("left %v", left)
	}
}

// TestCompactionGivesSpaceBack: the log's segments go although nothing else is written,
// what stays is a file of the keys' size, and no file is left over.
func TestCompactionGivesSpaceBack(t *testing.T) {
	tb := newTable(t, rules())
	r := rand.New(rand.NewPCG(1, 1))
	for range 5 {
		tb.random(r, 2000, 50)
		tb.compact()
	}
	tb.check(tb.p.HighWatermark())
	st := tb.s.Stats().Classes[0]
	if st.DiskBytes > 900<<10 || st.CompactedAway == 0 || st.CompactBytes == 0 { // records without a key stay: a twelfth
		t.Fatalf("%d bytes on disk, %+v", st.DiskBytes, st)
	}
	files, err := os.ReadDir(filepath.Join(tb.dir, "main", "compact"))
	if err != nil || len(files) != 4 { // what was there, what came last, and their indexes
		t.Fatalf("%v %v", files, err)
	}
	if err := tb.s.DeleteTopic("table"); err != nil {
		t.Fatal(err)
	}
	tb.compact()
	if files, err = os.ReadDir(filepath.Join(tb.dir, "main", "compact")); err != nil || len(files) != 0 {
		t.Fatalf("after the deletion: %v %v", files, err)
	}
}

// TestRetentionOfACompactedTopic: none without Delete, both with it, and DeleteRecords.
func TestRetentionOfACompactedTopic(t *testing.T) {
	tb := newTable(t, rules())
	put100 := func() {
		for i := range 100 {
			tb.put(kv{key: fmt.Sprint("k", len(tb.all)), value: fmt.Sprint(i)})
		}
	}
	set := func(del bool) {
		c := rules()
		c.Delete = del
		if err := tb.s.SetTopicConfig("table", storage.TopicConfig{RetentionAge: time.Hour, RetentionByArrival: true, Compaction: &c}); err != nil {
			t.Fatal(err)
		}
	}
	set(false)
	put100()
	tb.compact()
	tb.now = tb.now.Add(2 * time.Hour)
	put100()
	if err := tb.s.Retain(); err != nil || tb.p.Start() != 0 {
		t.Fatalf("start %d %v", tb.p.Start(), err)
	}
	set(true)
	if err := tb.s.Retain(); err != nil || tb.p.Start() != 100 {
		t.Fatalf("start %d %v", tb.p.Start(), err)
	}
	tb.compact()
	tb.reopen()
	tb.check(200)
	if err := tb.p.SetStart(150); err != nil {
		t.Fatal(err)
	}
	tb.reopen()
	tb.compact()
	if left := tb.check(200); len(left) != 50 {
		t.Fatalf("left %v", left)
	}
}

// TestReadersDuringCompaction meet neither a missing file nor a gap.
func TestReadersDuringCompaction(t *testing.T) {
	tb := newTable(t, rules())
	r := rand.New(rand.NewPCG(3, 1))
	tb.random(r, 300, 20)
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for i := range 4 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(i), 9))
			for {
				select {
				case <-stop:
					return
				default:
				}
				for at := r.Int64N(tb.p.HighWatermark()); at < tb.p.HighWatermark(); {
					b, next, err := tb.p.Read(nil, at, 1000)
					if err != nil || next <= at {
						t.Errorf("at %d: next %d, %d bytes, %v", at, next, len(b), err)
						return
					}
					if len(b) == 0 { // all up to the high watermark that Read saw went meanwhile: then it is gone
						if b, _, err := tb.p.Read(nil, at, 1000); err != nil || len(b) > 0 && record.Batch(b).BaseOffset() < next {
							t.Errorf("at %d: nothing up to %d, then a batch at %d, %v", at, next, record.Batch(b).BaseOffset(), err)
							return
						}
					}
					at = next
				}
				if _, _, _, err := tb.p.OffsetForTime(r.Int64N(1000)); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for range 20 {
		tb.random(r, 100, 20)
		tb.compact()
	}
	close(stop)
	wg.Wait()
	tb.check(tb.p.HighWatermark())
}

// TestTheLogCountsOnlyFromWhereCompactionCame: a segment whose index was rebuilt tells
// of batches that a compaction has taken over; nobody reads them again.
func TestTheLogCountsOnlyFromWhereCompactionCame(t *testing.T) {
	tb := newTable(t, rules())
	tb.put(kv{key: "a", null: true})
	tb.compact()
	for tb.s.Stats().Classes[0].Segments < 3 {
		tb.put(kv{key: fmt.Sprint("b", len(tb.all)), value: "long enough to fill a segment"})
	}
	c := rules()
	c.MinLag = 10 * time.Hour // so that only the tombstone goes
	if err := tb.s.SetTopicConfig("table", storage.TopicConfig{Compaction: &c}); err != nil {
		t.Fatal(err)
	}
	if err := tb.s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(tb.dir, "main", "index")); err != nil {
		t.Fatal(err)
	}
	tb.now = tb.now.Add(2 * time.Hour)
	tb.open()
	tb.compact()
	if left := tb.check(0); left[0] || len(left) != len(tb.all)-1 {
		t.Fatalf("%d left of %d, the tombstone %v", len(left), len(tb.all), left[0])
	}
	if off, _, ok, err := tb.p.OffsetForTime(0); err != nil || !ok || off != 1 {
		t.Fatalf("offset %d %v %v", off, ok, err)
	}
}

// TestRotInACompactedPartition: a damaged, cut or missing file costs what was in it,
// declared, and nothing else; check --repair takes it out; readers come to the end.
func TestRotInACompactedPartition(t *testing.T) {
	for _, how := range []string{"flip", "flip without index", "cut", "missing"} {
		t.Run(how, func(t *testing.T) {
			tb := newTable(t, rules())
			tb.random(rand.New(rand.NewPCG(2, 2)), 200, 400)
			tb.compact()
			before := tb.check(tb.p.HighWatermark())
			tb.put(kv{key: "new", value: "x"})
			tb.s.Close()
			if in, err := storage.Inspect(tb.dir, nil); err != nil || len(in.Problems) > 0 || in.Classes[0].Records < int64(len(before)+1) {
				t.Fatalf("%+v %v", in, err)
			}
			files, _ := filepath.Glob(filepath.Join(tb.dir, "main", "compact", "*[0-9]"))
			b := mustRead(t, files[0])
			switch how {
			case "flip", "flip without index":
				b[len(b)/2] ^= 4
				mustWrite(t, files[0], b)
				if how != "flip" {
					os.Remove(files[0] + ".idx")
				}
			case "cut":
				mustWrite(t, files[0], b[:len(b)-len(b)/8])
			case "missing":
				os.Remove(files[0])
			}
			in, err := storage.Inspect(tb.dir, nil)
			if err != nil || !in.Lossy() {
				t.Fatalf("%+v %v", in.Problems, err)
			}
			tb.open()
			left := map[int64]bool{}
			for _, r := range tb.readFrom(tb.p.Start()) {
				left[r.Offset] = true
			}
			tb.s.Close() // the declaration is on its way
			tb.open()
			declared := func(off int64) bool {
				for _, l := range tb.s.Losses() {
					if off >= l.From && off < l.To {
						return true
					}
				}
				return false
			}
			gone := 0
			for off := range before {
				if !left[off] {
					gone++
					if !declared(off) {
						t.Fatalf("offset %d is gone and not declared: %+v", off, tb.s.Losses())
					}
				}
			}
			if gone == 0 || !left[int64(len(tb.all)-1)] || strings.HasPrefix(how, "flip") && gone > 12 || how == "cut" && gone > len(before)/3 {
				t.Fatalf("%d of %d gone", gone, len(before))
			}
			tb.s.Close()
			rep, err := storage.RepairDir(storage.RepairConfig{Dir: tb.dir})
			if err != nil || rep.After.Lossy() {
				t.Fatalf("%+v %v", rep.After.Problems, err)
			}
			tb.open()
			if got := tb.read(tb.p.Start()); len(got) != len(left) {
				t.Fatalf("%d records after the repair, %d before", len(got), len(left))
			}
		})
	}
}

// TestCompactionOfWhichTheOutcomeIsUnknown: the commit that names the new files fails, and
// so does cutting it off. Whether the next start finds it or not, the files of both are there.
func TestCompactionOfWhichTheOutcomeIsUnknown(t *testing.T) {
	fs := &testFS{}
	tb := newTable(t, rules(), onFS(fs))
	tb.random(rand.New(rand.NewPCG(4, 4)), 100, 10)
	tb.compact()
	tb.random(rand.New(rand.NewPCG(5, 5)), 100, 10)
	fs.setHook(func(op, name string) error {
		if (op == "sync" || op == "truncate") && strings.Contains(name, "/log/") {
			return errors.New("the disk has gone")
		}
		return nil
	})
	if err := tb.s.Compact(); !errors.Is(err, storage.ErrUncertain) && err == nil {
		t.Fatalf("compaction on a broken disk: %v", err)
	}
	fs.setHook(nil)
	crashed := &table{t: t, dir: copyDir(t, tb.dir), now: tb.now, all: tb.all}
	crashed.open()
	crashed.check(0)
	if rows := crashed.s.Losses(); len(rows) > 0 {
		t.Fatalf("lost: %+v", rows)
	}
}
