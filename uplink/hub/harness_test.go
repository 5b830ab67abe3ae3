package hub_test

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"tailrace/storage"
	"tailrace/storage/record"
	"tailrace/storage/storagetest"
	"tailrace/uplink"
	"tailrace/uplink/hub"
	"tailrace/uplink/wire"
)

var epochA = wire.ID{0xa1, 2, 3}

// world is a central store on a disk that can lose power.
type world struct {
	t     *testing.T
	fs    *storagetest.CrashFS
	store *storage.Store
	eng   *hub.Embedded
	rules []hub.TopicRule
	lives int
	dst   string // where an armed power cut leaves the disk
}

func newWorld(t *testing.T, rules ...hub.TopicRule) *world {
	w := &world{t: t, rules: rules}
	w.open(filepath.Join(t.TempDir(), "store"))
	t.Cleanup(func() {
		w.eng.Close()
		w.store.Close()
		w.fs.Close()
	})
	return w
}

func (w *world) open(dir string) {
	w.t.Helper()
	var err error
	if w.fs, err = storagetest.NewCrashFS(dir); err != nil {
		w.t.Fatal(err)
	}
	w.store, err = storage.Open(storage.Config{Dir: w.fs.Dir(), FS: w.fs, RetentionInterval: -1,
		Classes: []storage.ClassConfig{{Name: "data", SegmentBytes: 16 << 10}, {Name: "bulk", SegmentBytes: 16 << 10}}})
	if err != nil {
		w.t.Fatal(err)
	}
	w.eng, err = hub.NewEmbedded(hub.EmbeddedConfig{Store: w.store, Classes: []string{"data", "bulk"}, Topics: w.rules})
	if err != nil {
		w.t.Fatal(err)
	}
}

// crash cuts the power and opens what the disk held.
func (w *world) crash(seed uint64) {
	w.t.Helper()
	dir := w.dst // an armed cut may come first, so both leave the disk there
	if dir == "" {
		dir = w.nextDir()
	}
	w.dst = ""
	if note, err := w.fs.Cut(seed, dir); err != nil {
		w.t.Fatalf("cut (%s): %v", note, err)
	}
	w.eng.Close()
	w.store.Close() // the power is off: its error is expected
	w.fs.Close()
	w.open(dir)
}

func (w *world) nextDir() string {
	w.lives++
	return filepath.Join(w.t.TempDir(), fmt.Sprint("life", w.lives))
}

// cutAt arms a power cut at the n-th change of the disk from now.
func (w *world) cutAt(n int64, after bool, seed uint64) {
	w.dst = w.nextDir()
	w.fs.CutAt(n, after, seed, w.dst)
}

func (w *world) adopt(node string, epochs ...wire.EpochInfo) {
	w.t.Helper()
	if err := w.eng.Adopt(context.Background(), node, epochs); err != nil {
		w.t.Fatal(err)
	}
}

func origin(node, topic string) wire.Origin {
	return wire.Origin{Node: node, Epoch: epochA, Topic: topic}
}

// batch holds records [from, to) of an origin; the value of each says which it is.
func batch(o wire.Origin, from, to int64) []byte {
	var bl record.Builder
	bl.Reset(nil)
	for off := from; off < to; off++ {
		bl.Add(1_700_000_000_000+off, []byte(o.Node), []byte(value(o, off)), nil)
	}
	return bl.Finish(from, 1)
}

func value(o wire.Origin, off int64) string {
	return fmt.Sprintf("%s %s %s %d %d", o.Node, o.Epoch.String()[:4], o.Topic, o.Partition, off)
}

// append waits for the outcome.
func (w *world) append(o wire.Origin, batches []byte) (uplink.RangeSet, error) {
	w.t.Helper()
	type result struct {
		held uplink.RangeSet
		err  error
	}
	ch := make(chan result, 1)
	w.eng.Append(context.Background(), o, batches, func(held uplink.RangeSet, err error) { ch <- result{held, err} })
	select {
	case r := <-ch:
		return r.held, r.err
	case <-time.After(30 * time.Second):
		w.t.Fatal("append is not done after 30 s")
		return nil, nil
	}
}

func (w *world) mustAppend(o wire.Origin, batches []byte) uplink.RangeSet {
	w.t.Helper()
	held, err := w.append(o, batches)
	if err != nil {
		w.t.Fatal(err)
	}
	return held
}

func (w *world) progress(o wire.Origin) hub.Progress {
	w.t.Helper()
	list, err := w.eng.Progress(context.Background(), o.Node)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, p := range list {
		if p.Epoch == o.Epoch && p.Topic == o.Topic && p.Partition == o.Partition {
			return p
		}
	}
	return hub.Progress{}
}

// heal mends the disk, and returns when the store writes again, an origin that a test
// does not look at: it waits a little before it tries.
func (w *world) heal(o wire.Origin) {
	w.t.Helper()
	w.fs.Heal()
	until(w.t, "the store writes again", func() bool {
		_, err := w.append(o, batch(o, 0, 1))
		return err == nil
	})
}

// positions are those of an origin in each topic, which must ascend there.
func (w *world) positions(o wire.Origin) map[string]uplink.RangeSet {
	w.t.Helper()
	out := map[string]uplink.RangeSet{}
	dec := record.NewDecompressor(0)
	defer dec.Close()
	for _, t := range w.store.Topics() {
		for _, p := range t.Partitions() {
			var set uplink.RangeSet
			for off := p.Start(); off < p.HighWatermark(); {
				b, next, err := p.Read(nil, off, 1<<20)
				if err != nil {
					w.t.Fatal(err)
				}
				off = next
				for len(b) > 0 {
					var one record.Batch
					if one, b, err = record.Next(b); err != nil {
						w.t.Fatal(err)
					}
					so, ok := p.Origin(one.BaseOffset())
					if !ok || so.Node != o.Node || so.Topic != o.Topic {
						continue
					}
					for it := one.Iter(dec); it.Next(); {
						r := it.Record()
						at := so.From + r.Offset - one.BaseOffset()
						if string(r.Value) != value(o, at) || at < set.End() {
							w.t.Fatalf("%s/%d offset %d: position %d after %d, holds %q", t.Name(), p.Index(), r.Offset, at, set.End()-1, r.Value)
						}
						set.Add(at, at+1)
					}
				}
			}
			if len(set) > 0 {
				out[t.Name()] = set
			}
		}
	}
	return out
}

// audit reads everything that consumers can and checks, per origin: each record
// is where its batch's origin says and says itself; offsets ascend, so none is
// there twice or out of order; and progress is exactly the records that are
// there and the ranges that the ledger declares, which do not overlap.
func (w *world) audit() map[wire.Origin]uplink.RangeSet {
	w.t.Helper()
	stored := map[wire.Origin]uplink.RangeSet{}
	lost := map[wire.Origin]uplink.RangeSet{}
	place := map[wire.Origin]string{}
	dec := record.NewDecompressor(0)
	defer dec.Close()
	for _, t := range w.store.Topics() {
		for _, p := range t.Partitions() {
			for off := p.Start(); off < p.HighWatermark(); {
				out, next, err := p.Read(nil, off, 1<<20)
				if err != nil {
					w.t.Fatalf("read %s/%d at %d: %v", t.Name(), p.Index(), off, err)
				}
				off = next
				for len(out) > 0 {
					var b record.Batch
					if b, out, err = record.Next(out); err != nil {
						w.t.Fatal(err)
					}
					so, ok := p.Origin(b.BaseOffset())
					it := b.Iter(dec)
					for it.Next() {
						r := it.Record()
						if !ok {
							var row hub.LossRow
							if err := json.Unmarshal(r.Value, &row); err != nil {
								w.t.Fatalf("ledger row: %v", err)
							}
							o := wire.Origin{Node: row.Node, Epoch: epochA, Topic: row.Topic, Partition: row.Partition}
							set := lost[o]
							if set.Within(row.From, row.To).Count() > 0 {
								w.t.Errorf("%s: [%d,%d) is declared twice", o, row.From, row.To)
							}
							set.Add(row.From, row.To)
							lost[o] = set
							continue
						}
						o := wire.Origin{Node: so.Node, Epoch: so.Epoch, Topic: so.Topic, Partition: so.Partition}
						at := so.From + r.Offset - b.BaseOffset()
						if string(r.Value) != value(o, at) {
							w.t.Fatalf("%s/%d offset %d should hold position %d of %s, it holds %q", t.Name(), p.Index(), r.Offset, at, o, r.Value)
						}
						set := stored[o]
						if at < set.End() {
							w.t.Fatalf("%s: position %d comes after %d: doubled or out of order", o, at, set.End()-1)
						}
						set.Add(at, at+1)
						stored[o] = set
						where := fmt.Sprint(t.Name(), "/", p.Index())
						if place[o] == "" {
							place[o] = where
						}
						if place[o] != where {
							w.t.Fatalf("%s is in %s and in %s", o, place[o], where)
						}
					}
					if err := it.Err(); err != nil {
						w.t.Fatal(err)
					}
				}
			}
		}
	}
	origins := map[wire.Origin]bool{}
	for o := range stored {
		origins[o] = true
	}
	for o := range lost {
		origins[o] = true
	}
	for o := range origins {
		both := stored[o].Clone()
		for _, r := range lost[o] {
			if both.Within(r.From, r.To).Count() > 0 {
				w.t.Errorf("%s: %s is stored and declared lost", o, r)
			}
			both.Add(r.From, r.To)
		}
		p := w.progress(o)
		if !p.Held.Equal(both) || p.Stored != stored[o].Count() {
			w.t.Fatalf("%s: progress says %s (%d stored), the store holds %s and the ledger %s", o, p.Held, p.Stored, stored[o], lost[o])
		}
	}
	return stored
}
