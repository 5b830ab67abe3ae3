package hub_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"syscall"
	"testing"
	"time"

	"tailrace/storage/record"
	"tailrace/storage/storagetest"
	"tailrace/uplink"
	"tailrace/uplink/hub"
	"tailrace/uplink/wire"
)

var seedFlag = flag.Uint64("seed", 0, "run only this seed of the model test")

func root(id wire.ID) wire.EpochInfo { return wire.EpochInfo{ID: id, Number: 1} }

// TestExactlyOnceThroughPowerCuts drives the engine with what a bad link does
// (re-sends, overlaps, holes, whole replays), many in flight, and cuts the
// power at a random call of the disk, again and again. After every cut what
// was acknowledged must be there, once, in order, and progress must be exactly
// what is there.
func TestExactlyOnceThroughPowerCuts(t *testing.T) {
	seeds := 40
	if testing.Short() {
		seeds = 8
	}
	for i := range seeds {
		seed := uint64(i + 1)
		if *seedFlag != 0 {
			seed = *seedFlag
		}
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) { model(t, seed) })
		if *seedFlag != 0 {
			break
		}
	}
}

func model(t *testing.T, seed uint64) {
	rnd := rand.New(rand.NewPCG(seed, 1))
	w := newWorld(t, hub.TopicRule{Match: "b*", Class: "bulk", Partitions: 2}, hub.TopicRule{Match: "*", Partitions: 3})
	var origins []wire.Origin
	for _, node := range []string{"n1", "n2", "n3"} {
		w.adopt(node, root(epochA))
		origins = append(origins, origin(node, "temp"), origin(node, "bulk"))
	}
	var mu sync.Mutex
	acked := map[wire.Origin]uplink.RangeSet{}
	sent := map[wire.Origin]int64{} // the source's position
	assigned := map[wire.Origin]hub.Assignment{}
	for life := range 4 {
		if rnd.IntN(2) == 0 { // at a call of the disk instead of at the end
			w.cutAt(rnd.Int64N(40)+1, rnd.IntN(2) == 0, seed*1000+uint64(life))
		}
		var wg sync.WaitGroup
		ops := 30 + rnd.IntN(60)
		for range ops {
			o := origins[rnd.IntN(len(origins))]
			from := sent[o]
			switch rnd.IntN(6) {
			case 0:
				from = max(0, from-rnd.Int64N(20)) // a re-send that overlaps
			case 1:
				from = 0 // everything again
			case 2:
				from += rnd.Int64N(3) // perhaps a hole: must be refused
			}
			to := from + 1 + rnd.Int64N(12)
			if from == 0 && sent[o] > 0 {
				to = max(to, rnd.Int64N(sent[o]+10))
			}
			if rnd.IntN(12) == 0 {
				g := []wire.Gap{{Ranges: uplink.RangeSet{{From: from, To: to}}, Reason: wire.GapEvicted}}
				held, err := w.eng.Declare(context.Background(), o, g)
				if err == nil {
					mu.Lock()
					set := acked[o]
					set.AddSet(held)
					acked[o] = set
					mu.Unlock()
					sent[o] = max(sent[o], held.End())
				}
				continue
			}
			var b []byte
			for at := from; at < to; {
				end := min(to, at+1+rnd.Int64N(4))
				b = append(b, batch(o, at, end)...)
				at = end
			}
			wg.Add(1)
			before := sent[o]
			w.eng.Append(context.Background(), o, b, func(held uplink.RangeSet, err error) {
				defer wg.Done()
				if err != nil {
					return
				}
				if !held.Covers(from, to) {
					t.Errorf("%s: [%d,%d) acknowledged with %s", o, from, to, held)
				}
				mu.Lock()
				set := acked[o]
				set.AddSet(held)
				acked[o] = set
				mu.Unlock()
			})
			if from <= before { // else refused
				sent[o] = max(sent[o], to)
			}
			if rnd.IntN(25) == 0 {
				break
			}
		}
		mu.Lock()
		promised := map[wire.Origin]uplink.RangeSet{}
		for o, set := range acked {
			promised[o] = set.Clone()
		}
		mu.Unlock()
		if rnd.IntN(3) == 0 {
			wg.Wait() // sometimes everything is done before the cut
		}
		w.crash(seed*1000 + uint64(life))
		wg.Wait()
		w.audit()
		for o, set := range promised {
			p := w.progress(o)
			for _, r := range set {
				if !p.Held.Covers(r.From, r.To) {
					t.Fatalf("%s: %s was acknowledged and is gone; held is %s", o, r, p.Held)
				}
			}
			if a, ok := assigned[o]; ok && p.Central.Topic != "" && a != p.Central {
				t.Fatalf("%s moved from %v to %v", o, a, p.Central)
			}
			if p.Central.Topic != "" {
				assigned[o] = p.Central
			}
		}
		mu.Lock()
		for _, o := range origins { // the node asks the hub where it was
			sent[o] = w.progress(o).Held.End()
			acked[o] = w.progress(o).Held.Clone()
		}
		mu.Unlock()
	}
}

// TestProgressAndRecordsAreAtomic cuts the power at every change of the disk in
// turn, before and after it took effect.
func TestProgressAndRecordsAreAtomic(t *testing.T) {
	for n := int64(1); ; n++ {
		reached := false
		for _, after := range []bool{false, true} {
			w := newWorld(t)
			o := origin("n1", "temp")
			w.adopt("n1", root(epochA))
			w.mustAppend(o, batch(o, 0, 2))
			w.cutAt(n, after, uint64(n))
			acked := int64(2)
			for off := int64(2); off < 40; off += 2 {
				held, err := w.append(o, batch(o, off, off+2))
				if err != nil {
					break
				}
				acked = held.End()
			}
			off, _, _ := w.fs.Off()
			reached = reached || off
			w.crash(uint64(n))
			w.audit()
			if p := w.progress(o); !p.Held.Covers(0, acked) {
				t.Fatalf("cut at change %d (after=%v): [0,%d) was acknowledged, held is %s", n, after, acked, p.Held)
			}
		}
		if !reached {
			if n < 10 {
				t.Fatalf("only %d changes of the disk were seen", n)
			}
			return
		}
		if testing.Short() && n > 12 {
			return
		}
	}
}

func TestHoleIsRefusedAndOrderKept(t *testing.T) {
	w := newWorld(t)
	o := origin("n1", "temp")
	w.adopt("n1", root(epochA))
	w.mustAppend(o, batch(o, 0, 5))
	_, err := w.append(o, batch(o, 7, 9))
	var oe *hub.OrderError
	if !errors.As(err, &oe) || oe.Expected != 5 || oe.Got != 7 {
		t.Fatalf("records behind a hole: %v", err)
	}
	held := w.mustAppend(o, append(batch(o, 3, 7), batch(o, 7, 9)...))
	if !held.Equal(uplink.RangeSet{{From: 0, To: 9}}) {
		t.Fatalf("held %s", held)
	}
	w.audit()
}

func TestUnknownEpochAndBadBytesAreRefused(t *testing.T) {
	w := newWorld(t)
	o := origin("n1", "temp")
	if _, err := w.append(o, batch(o, 0, 1)); !errors.Is(err, hub.ErrUnknownEpoch) {
		t.Errorf("epoch never introduced: %v", err)
	}
	if _, ok := w.store.Topic("temp"); ok {
		t.Error("a refused node made a topic")
	}
	w.adopt("n1", wire.EpochInfo{ID: epochA, Number: 2, Forks: []wire.ForkPoint{{Topic: "temp", Offset: 100}}})
	if _, err := w.append(o, batch(o, 0, 1)); err == nil {
		t.Error("a record from before the epoch was taken")
	}
	bad := batch(o, 100, 103)
	bad[len(bad)-1] ^= 1
	if _, err := w.append(o, bad); !errors.Is(err, record.ErrCorrupt) {
		t.Errorf("flipped bit: %v", err)
	}
	if _, err := w.append(origin("n1", "__tailrace_loss"), batch(o, 0, 1)); err == nil {
		t.Error("a node wrote into the loss ledger")
	}
	w.mustAppend(o, batch(o, 100, 103)) // an epoch begins at its fork
	w.audit()
}

// TestFailedCommitIsNotAcknowledgedAndMayBeSentAgain is a fault pair: the fsync
// fails before and after it took effect.
func TestFailedCommitIsNotAcknowledgedAndMayBeSentAgain(t *testing.T) {
	for _, after := range []bool{false, true} {
		t.Run(fmt.Sprint("after=", after), func(t *testing.T) {
			w := newWorld(t)
			o := origin("n1", "temp")
			w.adopt("n1", root(epochA))
			w.mustAppend(o, batch(o, 0, 3))
			fired := w.fs.Inject(storagetest.Fault{Call: storagetest.Sync, Err: syscall.EIO, After: after})
			var errs int
			var wg sync.WaitGroup
			for off := int64(3); off < 6; off++ { // what is queued behind fails with it, or is refused
				wg.Add(1)
				w.eng.Append(context.Background(), o, batch(o, off, off+1), func(_ uplink.RangeSet, err error) {
					if err != nil {
						errs++
					}
					wg.Done()
				})
			}
			wg.Wait()
			if fired() == 0 {
				t.Fatal("the fault never fired")
			}
			if errs == 0 {
				t.Fatal("an fsync failed and everything was acknowledged")
			}
			w.audit()
			w.fs.Heal()
			next := w.progress(o).Held.End()
			if held := w.mustAppend(o, batch(o, next, 10)); !held.Covers(0, 10) {
				t.Fatalf("after the disk healed held is %s", held)
			}
			w.audit()
			w.crash(7)
			w.audit()
			if p := w.progress(o); !p.Held.Covers(0, 10) {
				t.Fatalf("after the crash held is %s", p.Held)
			}
		})
	}
}

// TestMergedBatchesKeepPositionsAndProof: many single-record batches of one
// origin end in few, no record loses its position, and progress names the last
// batch as the node stored it, not as it was merged.
func TestMergedBatchesKeepPositionsAndProof(t *testing.T) {
	w := newWorld(t, hub.TopicRule{Match: "*", Partitions: 1})
	o := origin("n1", "temp")
	w.adopt("n1", root(epochA))
	var all []byte
	for off := range int64(3000) {
		all = append(all, batch(o, off, off+1)...)
	}
	w.mustAppend(o, all)
	if n := w.eng.Stats().BatchesStored; n < 3 || n > 4 {
		t.Errorf("3000 single-record batches are stored as %d, want 3 of 1000 records", n)
	}
	if s := w.audit()[o]; !s.Equal(uplink.RangeSet{{From: 0, To: 3000}}) {
		t.Errorf("stored %s", s)
	}
	last := record.Batch(batch(o, 2999, 3000))
	if p := w.progress(o); p.Last == nil || *p.Last != (wire.Held{Offset: 2999, CRC: last.CRC()}) {
		t.Errorf("last batch held is %+v, the node stored offset 2999, crc %08x", p.Last, last.CRC())
	}
}

func TestBatchWithProducerIDIsNeverMerged(t *testing.T) {
	w := newWorld(t, hub.TopicRule{Match: "*", Partitions: 1})
	o := origin("n1", "temp")
	w.adopt("n1", root(epochA))
	mid := record.Batch(batch(o, 2, 4))
	mid.SetProducer(77, 1, 0, false)
	w.mustAppend(o, append(append(append(batch(o, 0, 1), batch(o, 1, 2)...), mid...), batch(o, 4, 5)...))
	if n := w.eng.Stats().BatchesStored; n != 3 {
		t.Errorf("%d batches stored, want 3: merged, with producer id, single", n)
	}
	topic, _ := w.store.Topic("temp")
	out, _, err := topic.Partition(0).Read(nil, 2, 1)
	if err != nil {
		t.Fatal(err)
	}
	if b := record.Batch(out); b.ProducerID() != 77 || b.CRC() != mid.CRC() {
		t.Errorf("stored with producer %d, crc %08x; sent with 77, %08x", b.ProducerID(), b.CRC(), mid.CRC())
	}
	w.audit()
}

// TestAssignmentIsStable: node partitions spread evenly, and stay where they
// are after restarts, when partitions are added, and in later epochs.
func TestAssignmentIsStable(t *testing.T) {
	w := newWorld(t, hub.TopicRule{Match: "*", Partitions: 2})
	load := map[hub.Assignment]int{}
	first := map[string]hub.Assignment{}
	for i := range 6 {
		node := fmt.Sprint("n", i)
		o := origin(node, "temp")
		w.adopt(node, root(epochA))
		w.mustAppend(o, batch(o, 0, 2))
		first[node] = w.progress(o).Central
		load[first[node]]++
	}
	for a, n := range load {
		if n != 3 {
			t.Errorf("%v has %d of 6 nodes", a, n)
		}
	}
	if err := w.store.EnsurePartitions("temp", 8); err != nil {
		t.Fatal(err)
	}
	w.crash(3)
	child := wire.ID{9}
	for node, a := range first {
		w.adopt(node, root(epochA), wire.EpochInfo{ID: child, Parent: epochA, Number: 2, Forks: []wire.ForkPoint{{Topic: "temp", Offset: 2}}})
		o := wire.Origin{Node: node, Epoch: child, Topic: "temp"}
		w.mustAppend(o, batch(o, 2, 4))
		if got := w.progress(o).Central; got != a {
			t.Errorf("%s moved from %v to %v", node, a, got)
		}
	}
	w.audit()
}

// TestDeclaredGapIsLedgerAndProgressInOneStep: what is held is subtracted, a
// declared range is acknowledged, and records behind it are taken.
func TestDeclaredGapIsLedgerAndProgressInOneStep(t *testing.T) {
	for _, topic := range []string{"temp", "bulk"} { // the second is in another storage class
		t.Run(topic, func(t *testing.T) {
			w := newWorld(t, hub.TopicRule{Match: "bulk", Class: "bulk"}, hub.TopicRule{Match: "*"})
			o := origin("n1", topic)
			w.adopt("n1", root(epochA))
			w.mustAppend(o, batch(o, 0, 10))
			gap := []wire.Gap{{Ranges: uplink.RangeSet{{From: 5, To: 20}, {From: 25, To: 26}}, Reason: wire.GapEvicted, Detail: "disk budget"}}
			for range 2 { // the node proposes until it hears the ack
				held, err := w.eng.Declare(context.Background(), o, gap)
				if err != nil || !held.Equal(uplink.RangeSet{{From: 0, To: 20}, {From: 25, To: 26}}) {
					t.Fatalf("held %s, %v", held, err)
				}
			}
			w.mustAppend(o, batch(o, 20, 25))
			check := func() {
				rows := w.eng.Losses("n1", topic, 10)
				if len(rows) != 2 || rows[1].From != 10 || rows[1].To != 20 || rows[1].Reason != "evicted" || rows[0].From != 25 {
					t.Fatalf("ledger %+v", rows)
				}
				if sum := w.eng.LossTotals()[hub.LossKey{Node: "n1", Topic: topic, Reason: "evicted"}]; sum.Records != 11 || sum.Ranges != 2 {
					t.Fatalf("totals %+v", sum)
				}
				if s := w.audit()[o]; !s.Equal(uplink.RangeSet{{From: 0, To: 10}, {From: 20, To: 25}}) {
					t.Fatalf("stored %s", s)
				}
			}
			check()
			w.crash(11)
			check()
			// The lost records turn up after all (a second copy): they are declared, and stay out.
			w.mustAppend(o, batch(o, 10, 12))
			check()
		})
	}
}

// TestAppendsOfManyOriginsShareCommits: while one commit is under
// way, appends of many origins gather and share the next one.
func TestAppendsOfManyOriginsShareCommits(t *testing.T) {
	w := newWorld(t)
	const nodes = 50
	var origins []wire.Origin
	for i := range nodes {
		node := fmt.Sprint("n", i)
		w.adopt(node, root(epochA))
		origins = append(origins, origin(node, "temp"))
	}
	for _, o := range origins {
		w.mustAppend(o, batch(o, 0, 1)) // topics and assignments are there
	}
	before := w.store.Stats().Classes[0].Commits
	w.fs.Delay(storagetest.Sync, 2*time.Millisecond)
	var wg sync.WaitGroup
	for off := int64(1); off < 11; off++ {
		for _, o := range origins {
			wg.Add(1)
			w.eng.Append(context.Background(), o, batch(o, off, off+1), func(_ uplink.RangeSet, err error) {
				if err != nil {
					t.Error(err)
				}
				wg.Done()
			})
		}
	}
	wg.Wait()
	if n := w.store.Stats().Classes[0].Commits - before; n > 100 {
		t.Errorf("500 appends of 50 origins took %d commits", n)
	}
	w.fs.Delay(storagetest.Sync, 0)
	w.audit()
}

func TestCloseAnswersEveryAppend(t *testing.T) {
	w := newWorld(t)
	o := origin("n1", "temp")
	w.adopt("n1", root(epochA))
	w.mustAppend(o, batch(o, 0, 1))
	var mu sync.Mutex
	answered := 0
	for off := int64(1); off < 200; off++ {
		w.eng.Append(context.Background(), o, batch(o, off, off+1), func(uplink.RangeSet, error) {
			mu.Lock()
			answered++
			mu.Unlock()
		})
	}
	w.eng.Close()
	mu.Lock()
	defer mu.Unlock()
	if answered != 199 {
		t.Errorf("%d of 199 appends were answered", answered)
	}
	if _, err := w.append(o, batch(o, 500, 501)); !errors.Is(err, hub.ErrStopped) {
		t.Errorf("after Close: %v", err)
	}
}

// Progress is written by hand and read by the library.
func TestProgressIsTheSameCBOR(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for i := range 20_000 {
		if own, library := hub.ProgressForms(r); !bytes.Equal(own, library) {
			t.Fatalf("progress %d: %x, the library writes %x", i, own, library)
		}
	}
}

// However many nodes share the disk, a record takes about as much of it: what one of them sends alone is
// compressed as what is merged, and what the node compares is still the batch as the node has it.
func TestABatchStoredAloneIsCompressed(t *testing.T) {
	w := newWorld(t)
	for i := range 20 {
		node := fmt.Sprint("n", i)
		w.adopt(node, root(epochA))
		o := origin(node, "wind")
		b := batch(o, 0, 200)
		w.mustAppend(o, b)
		if last := w.progress(o).Last; last == nil || last.CRC != record.Batch(b).CRC() {
			t.Fatalf("node %s: progress names %+v", node, last)
		}
	}
	if s := w.eng.Stats(); s.BatchesStored != 20 || 3*s.BytesStored > s.BytesIn {
		t.Errorf("%d batches, %d bytes, stored as %d of %d bytes", s.BatchesIn, s.BytesIn, s.BatchesStored, s.BytesStored)
	}
	w.crash(1)
	for o, held := range w.audit() {
		if held.Count() != 200 {
			t.Errorf("%s: %s", o, held)
		}
	}
}

// After damage every row of the ledger counts, those that are no longer in memory, too.
func TestProgressIsRegainedFromTheWholeLedger(t *testing.T) {
	w := newWorld(t)
	w.adopt("n1", root(epochA))
	const each, topics = 3800, 3
	for i := range topics {
		o := origin("n1", fmt.Sprint("temp", i))
		w.mustAppend(o, batch(o, 0, 1))
		var lost uplink.RangeSet
		for k := range int64(each) {
			lost.Add(2*k+2, 2*k+3)
		}
		if _, err := w.eng.Declare(context.Background(), o, []wire.Gap{{Ranges: lost, Reason: wire.GapEvicted}}); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(w.eng.Losses("", "", math.MaxInt)); n == each*topics {
		t.Fatalf("all of %d rows are in memory", n)
	}
	for i := range topics {
		o := origin("n1", fmt.Sprint("temp", i))
		was := w.progress(o).Held
		if err := hub.Regain(w.eng, o); err != nil {
			t.Fatal(err)
		}
		if is := w.progress(o).Held; !is.Equal(was) || is.Count() != each+1 {
			t.Errorf("%s: %d regained of %d", o, is.Count(), was.Count())
		}
	}
}

// What the account of devices of a hub on a cluster has no time for is bounded in bytes, whatever nodes send.
func TestBatchesOfferedToTheAccountOfDevicesAreBounded(t *testing.T) {
	for size, want := range map[int]int{1 << 10: 256 << 10, 8 << 20: 16 << 20} {
		if n := hub.OfferedBytes(size, 300); n != want {
			t.Errorf("batches of %d bytes: %d bytes are kept, want %d", size, n, want)
		}
	}
}
