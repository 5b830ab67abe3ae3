package scenario

import (
	"context"
	"fmt"
	"path/filepath"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"tailrace/firmware-sim/rawload"
)

// The link is down for ten minutes while devices send 2,000 records a second. When it is
// back everything arrives once and in order, and the node's memory has not grown with its
// backlog.
func TestLinkDownTenMinutes(t *testing.T) {
	outage, rate := 10*time.Minute, 2000.0
	if testing.Short() {
		outage = time.Minute
	}
	certs, dir := scratch(t), scratch(t)
	if err := makeCerts(certs); err != nil {
		t.Fatal(err)
	}
	real := time.Now()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(1, filepath.Join(dir, "world"), certs)
		w.node.real, w.hub.real = true, true
		defer w.end()
		good := conditions{Rate: 20e6, Delay: 20 * time.Millisecond}
		w.wan.set(good)
		if err := w.hub.on(); err != nil {
			t.Fatal(err)
		}
		if err := w.node.on(); err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		results := w.telemetry(ctx, 20, rate)
		time.Sleep(30 * time.Second)
		lag := w.node.records() - w.hub.records()
		if w.hub.records() == 0 || lag > int64(2*rate) {
			t.Fatalf("before the outage the node holds %d records and the hub %d", w.node.records(), w.hub.records())
		}
		w.wan.set(conditions{Down: [2]bool{true, true}})
		down := time.Now()
		time.Sleep(30 * time.Second)
		before, atHub, atNode := heap(), w.hub.records(), w.node.records()
		most := before
		for time.Since(down) < outage {
			time.Sleep(30 * time.Second)
			most = max(most, heap())
		}
		backlog := w.node.records() - w.hub.records()
		accounts := int64(w.node.records()-atNode) * 6 // the ledger's own growth, about 5 bytes a record, and slack of its slices
		grown := int64(most) - int64(before)
		t.Logf("after %v without link: backlog %d records; heap of the process %.1f MB at the start, %.1f MB at most (the ledger accounts for about %.1f MB of the difference)",
			outage, backlog, mb(before), mb(most), mb(uint64(accounts)))
		if w.hub.records() != atHub {
			t.Errorf("records crossed a link that is down")
		}
		if want := int64(rate * outage.Seconds() * 0.95); backlog < want {
			t.Errorf("backlog of %d records, %d were to be sent", backlog, want)
		}
		if limit := 2*accounts + 8<<20; grown > limit {
			t.Errorf("the heap grew by %.1f MB during the outage, allowed %.1f MB", mb(uint64(grown)), mb(uint64(limit)))
		}
		w.wan.set(good)
		healed := time.Now()
		time.Sleep(10 * time.Second)
		stop()
		if r := <-results; r.Failed != 0 || r.Refused != 0 || r.Unknown != 0 || r.FirstError != "" {
			t.Errorf("devices: %+v", r)
		}
		if err := w.drained(30 * time.Minute); err != nil {
			t.Fatal(err)
		}
		t.Logf("drained %v after the link came back", time.Since(healed).Round(time.Second))
		for _, m := range []*machine{w.node, w.hub} {
			obs := w.book.Observe(m.name)
			if err := observe(m.store(), obs); err != nil {
				t.Fatal(err)
			}
			rep := obs.Report()
			if !rep.OK() {
				t.Errorf("%s: %v", m.name, rep)
			}
			if m == w.hub {
				t.Log(rep)
				fmt.Printf("linkdown: minutes=%.0f rate=%.0f published=%d acked=%d delivered=%d lost=%d duplicate=%d out_of_order=%d heap_before_mb=%.1f heap_max_mb=%.1f\n",
					outage.Minutes(), rate, rep.Published, rep.Acked, rep.Delivered, rep.Lost, rep.Duplicate, rep.OutOfOrder, mb(before), mb(most))
			}
		}
	})
	t.Logf("%v of real time", time.Since(real).Round(time.Second))
}

// telemetry lets devices send to the site until ctx ends.
func (w *world) telemetry(ctx context.Context, clients int, rate float64) <-chan rawload.Result {
	result := make(chan rawload.Result, 1)
	go func() {
		r, err := rawload.Run(ctx, rawload.Config{
			Dial: w.site.dial, Version: 5, QoS: 1, Clients: clients, Window: 20, Rate: rate, Topic: "site/{client}/telemetry",
			Reconnect: true, Drain: time.Minute, Ledger: w.book, Seed: 1, Boot: 1, Epoch: time.Now(),
		})
		if err != nil {
			r.FirstError = err.Error()
		}
		result <- r
	}()
	return result
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func mb(n uint64) float64 { return float64(n) / (1 << 20) }
