package scenario

import (
	"errors"
	"fmt"
	mrand "math/rand/v2"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"tailrace/edge"
	"tailrace/storage"
	"tailrace/storage/record"
)

// A live-first topic on a link of 16 kbit/s that can carry half of what comes: the newest
// records arrive young all the time, what falls behind comes to the companion topic when
// there is room, and topic and companion together have everything once, over a restart of
// the hub and a power cut of the node on the way.
func TestLiveFirstOnALinkSlowerThanWhatComes(t *testing.T) {
	certs, dir := scratch(t), scratch(t)
	if err := makeCerts(certs); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name  string
		queue int           // bytes that the link's queue holds
		delay time.Duration // one way
	}{{"a queue of 8 s", 16 << 10, 100 * time.Millisecond}, {"a queue of 16 s", 32 << 10, 100 * time.Millisecond}, {"a queue of 32 s", 64 << 10, 300 * time.Millisecond}} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				skipAhead(t, filepath.Join(dir, c.name), certs, conditions{Rate: 16e3, Delay: c.delay, Queue: c.queue})
			})
		})
	}
}

func skipAhead(t *testing.T, dir, certs string, slow conditions) {
	w := newWorld(5, dir, certs)
	defer w.end()
	w.tuneNode = func(c *edge.Config) { c.Topics = []edge.TopicConfig{{Match: stream, Mode: "live-first"}} }
	w.wan.set(slow)
	w.onWithTopic(t)
	time.Sleep(5 * time.Second)
	r := mrand.New(mrand.NewPCG(5, 5))
	acked := map[string]bool{}
	produced := 0
	var ages []time.Duration
	seen := map[int]int64{}
	look := func(judge bool) {
		s := w.hub.store()
		if s == nil {
			return
		}
		tp, ok := s.Topic(stream)
		if !ok {
			return
		}
		for _, p := range tp.Partitions() {
			b, next, err := p.Read(nil, seen[p.Index()], 1<<20)
			if err != nil {
				continue
			}
			seen[p.Index()] = next
			d := record.NewDecompressor(0)
			for len(b) > 0 && judge {
				var batch record.Batch
				if batch, b, err = record.Next(b); err != nil {
					t.Fatal(err)
				}
				for it := batch.Iter(d); it.Next(); {
					ages = append(ages, time.Since(time.UnixMilli(it.Record().Timestamp)))
				}
			}
			d.Close()
		}
	}
	// 50 records of some 80 bytes that nothing compresses a second: 4 KB/s on a link of 2 KB/s.
	produce := func(d time.Duration, judge bool) {
		for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
			if s := w.node.store(); s != nil {
				tp, _ := s.Topic(stream)
				a := s.NewAppend("")
				var names []string
				for range 5 {
					names = append(names, fmt.Sprint(produced))
					v := fmt.Appendf(nil, "%d %016x%016x%016x%016x%016x%016x%016x%016x", produced, r.Uint64(), r.Uint64(), r.Uint64(), r.Uint64(), r.Uint64(), r.Uint64(), r.Uint64(), r.Uint64())
					produced++
					if err := a.Record(tp.Partition(0), time.Now().UnixMilli(), []byte("d"), v, nil); err != nil {
						t.Fatal(err)
					}
				}
				if err := s.Commit(t.Context(), a); err == nil {
					for _, n := range names {
						acked[n] = true
					}
				}
			}
			look(judge)
		}
	}
	produce(10*time.Second, false)
	produce(4*time.Minute, true)
	w.hub.off()
	if err := w.hub.on(); err != nil {
		t.Fatal(err)
	}
	produce(30*time.Second, false)
	produce(time.Minute, true)
	if err := w.node.crash(3, 2, true); err != nil {
		t.Fatal(err)
	}
	if err := w.node.on(); err != nil {
		t.Fatal(err)
	}
	produce(30*time.Second, false)
	produce(time.Minute, true)
	late := w.backfilled()
	w.wan.set(conditions{Rate: 20e6, Delay: 20 * time.Millisecond})
	for start := time.Now(); w.hub.records()+w.backfilled() < w.node.records(); time.Sleep(time.Second) {
		if time.Since(start) > 10*time.Minute {
			t.Fatalf("not drained: node %d, hub %d and %d\n%s", w.node.records(), w.hub.records(), w.backfilled(), w.history())
		}
	}
	times := map[string]int{}
	for _, name := range []string{stream, stream + ".backfill"} {
		if err := ascending(w.hub.store(), name); err != nil {
			t.Error(err)
		}
		if err := eachRecord(w.hub.store(), name, func(_ *storage.Partition, r *record.Record) {
			var n string
			fmt.Sscan(string(r.Value), &n)
			times[n]++
		}); err != nil {
			t.Fatal(err)
		}
	}
	var errs []error
	for n := range acked {
		if times[n] != 1 {
			errs = append(errs, fmt.Errorf("record %s is %d times at the hub", n, times[n]))
		}
	}
	for n, k := range times {
		if k != 1 {
			errs = append(errs, fmt.Errorf("record %s is %d times at the hub", n, k))
		}
	}
	if len(errs) > 0 {
		t.Errorf("%d of %d: %v", len(errs), len(acked), errors.Join(errs[:min(len(errs), 5)]...))
	}
	slices.Sort(ages)
	if len(ages) < produced/5 {
		t.Errorf("%d of %d records came live", len(ages), produced)
	}
	p99 := ages[len(ages)*99/100]
	if p99 > 6*time.Second {
		t.Errorf("of records that came live the 99th percentile was %v old", p99)
	}
	t.Logf("%d records, %d live: age p50 %v, p99 %v, most %v; %d in the companion, %d of them while the link was slow", produced, len(ages), ages[len(ages)/2], p99, ages[len(ages)-1], w.backfilled(), late)
}
