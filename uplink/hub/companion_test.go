package hub_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"sync"
	"syscall"
	"testing"

	"tailrace/storage/storagetest"
	"tailrace/uplink"
	"tailrace/uplink/hub"
	"tailrace/uplink/wire"
)

// What comes below something stored goes to the companion topic, with the same progress:
// topic and companion together have every record once, each in order, through power cuts.
func TestTopicAndCompanionThroughPowerCuts(t *testing.T) {
	seeds := 20
	if testing.Short() {
		seeds = 6
	}
	for seed := range seeds {
		liveFirst(t, uint64(seed+1))
	}
}

func liveFirst(t *testing.T, seed uint64) {
	rnd := rand.New(rand.NewPCG(seed, 2))
	w := newWorld(t, hub.TopicRule{Match: "*", Partitions: 3})
	o := origin("n1", "temp")
	w.adopt("n1", root(epochA))
	live, back := int64(0), int64(0)
	for life := range 4 {
		hub.SetLiveFirst(w.eng, "n1", "temp")
		p := w.progress(o) // a session begins: it goes on from what is durable
		live += rnd.Int64N(50)
		missing := p.Held.Missing(0, live) // the gap of this session
		if rnd.IntN(2) == 0 {
			w.cutAt(rnd.Int64N(30)+1, rnd.IntN(2) == 0, seed*1000+uint64(life))
		}
		var wg sync.WaitGroup
		var mu sync.Mutex
		acked := p.Held.Clone()
		send := func(o wire.Origin, from, to int64) {
			wg.Add(1)
			w.eng.Append(context.Background(), o, batch(o, from, to), func(held uplink.RangeSet, err error) {
				defer wg.Done()
				if err == nil {
					mu.Lock()
					acked.AddSet(held)
					mu.Unlock()
				}
			})
		}
		filled := o
		filled.Backfill = true
		for range 10 + rnd.IntN(30) {
			if rnd.IntN(2) == 0 {
				n := 1 + rnd.Int64N(5)
				send(o, live, live+n)
				live += n
			} else if len(missing) > 0 {
				back = missing[0].From
				n := min(missing[0].Len(), 1+rnd.Int64N(20))
				send(filled, back, back+n)
				missing.Remove(back, back+n)
			}
		}
		wg.Wait()
		w.crash(seed*1000 + uint64(life))
		if p := w.progress(o); len(acked) > 0 && !coversAll(p.Held, acked) {
			t.Fatalf("seed %d: acknowledged %s, after the power cut progress is %s", seed, acked, p.Held)
		}
		w.auditCompanion(o)
	}
	hub.SetLiveFirst(w.eng, "n1", "temp")
	o.Backfill = true
	for _, r := range w.progress(o).Held.Missing(0, live) { // whatever failed when: the rest can still come in order
		w.mustAppend(o, batch(o, r.From, r.To))
	}
	o.Backfill = false
	w.auditCompanion(o)
	if p := w.progress(o); live > 0 && !p.Held.Covers(0, live) {
		t.Fatalf("seed %d: progress %s, the node has %d", seed, p.Held, live)
	}
}

func coversAll(have, want uplink.RangeSet) bool {
	for _, r := range want {
		if !have.Covers(r.From, r.To) {
			return false
		}
	}
	return true
}

// auditCompanion reads topic and companion: ascending in each, in one of both, and
// together exactly what progress says.
func (w *world) auditCompanion(o wire.Origin) {
	w.t.Helper()
	var union uplink.RangeSet
	var backfilled int64
	for name, set := range w.positions(o) {
		for _, r := range set {
			if union.Within(r.From, r.To).Count() > 0 {
				w.t.Fatalf("%s of %s is in the topic and in its companion", r, name)
			}
			union.Add(r.From, r.To)
		}
		if strings.HasSuffix(name, ".backfill") {
			backfilled = set.Count()
		}
	}
	if p := w.progress(o); !p.Held.Equal(union) || p.Stored != union.Count() || p.Backfill != backfilled {
		w.t.Fatalf("progress says %s (%d stored, %d in the companion), the topics hold %s (%d in the companion)", p.Held, p.Stored, p.Backfill, union, backfilled)
	}
}

// What a session of a live-first topic left open goes to the companion even when the
// topic is in order now, and a client that sends it twice changes nothing.
func TestInOrderFillsHolesByTheCompanion(t *testing.T) {
	w := newWorld(t)
	o := origin("n1", "temp")
	w.adopt("n1", root(epochA))
	hub.SetLiveFirst(w.eng, "n1", "temp")
	w.mustAppend(o, batch(o, 0, 10))
	w.mustAppend(o, batch(o, 50, 60))
	hub.SetInOrder(w.eng, "n1", "temp")
	var oe *hub.OrderError
	if _, err := w.append(o, batch(o, 70, 80)); !errors.As(err, &oe) || oe.Expected != 10 {
		t.Fatalf("a hole above a hole: %v", err)
	}
	w.mustAppend(o, batch(o, 10, 50)) // whoever sends it
	w.mustAppend(o, batch(o, 10, 50))
	w.mustAppend(o, batch(o, 60, 80))
	w.auditCompanion(o)
	got := w.positions(o)
	if got["temp"].String() != "[0,10)[50,80)" || got["temp.backfill"].String() != "[10,50)" {
		t.Fatalf("%v", got)
	}
}

// What lies behind a piece of a gap that was not stored is not stored either, until the
// node begins anew: the companion only ascends, so the piece could never come again.
func TestNothingOfAGapIsStoredBehindAPieceThatWasNot(t *testing.T) {
	w := newWorld(t)
	o := origin("n1", "temp")
	w.adopt("n1", root(epochA))
	hub.SetLiveFirst(w.eng, "n1", "temp")
	w.mustAppend(o, batch(o, 100, 110))
	gap := o
	gap.Backfill = true
	w.mustAppend(gap, batch(gap, 0, 10))
	w.fs.Inject(storagetest.Fault{Call: storagetest.Sync, Err: syscall.EIO, Forever: true})
	if _, err := w.append(gap, batch(gap, 10, 20)); err == nil {
		t.Fatal("stored on a disk that fails")
	}
	w.heal(origin("n1", "other"))
	// Of the same session, on its way when the disk failed.
	if held, err := w.append(gap, batch(gap, 20, 30)); err == nil {
		t.Errorf("a piece behind the one that failed was stored: %s", held)
	}
	if held, err := w.append(o, batch(o, 110, 120)); err == nil {
		t.Errorf("live records behind it were stored: %s", held)
	}
	hub.Resume(w.eng, "n1")
	w.mustAppend(gap, batch(gap, 10, 100))
	w.mustAppend(o, batch(o, 110, 120))
	w.auditCompanion(o)
	if p := w.progress(o); p.Held.String() != "[0,120)" {
		t.Errorf("progress %s", p.Held)
	}
}

func TestACompanionTopicThatCannotBe(t *testing.T) {
	w := newWorld(t, hub.TopicRule{Match: "*.backfill", Class: "bulk"}, hub.TopicRule{Match: "*"})
	if _, err := w.eng.EnsureTopic("temp.backfill"); err != nil { // somebody made it, in another class
		t.Fatal(err)
	}
	for _, name := range []string{"temp", strings.Repeat("x", 245), "__tailrace_loss"} {
		if _, err := w.eng.Companion(name); err == nil {
			t.Errorf("%.20s has a companion", name)
		}
	}
	if c, err := w.eng.Companion("wind"); err != nil || c.Name() != "wind.backfill" {
		t.Error(err)
	}
}
