package scenario

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"tailrace/edge"
	"tailrace/firmware-sim/ledger"
	"tailrace/storage"
	"tailrace/storage/record"
)

// observeBoth shows the ledger a live-first topic and its companion: each by itself has
// nothing twice and nothing out of order, together they have everything once.
func observeBoth(s *storage.Store, b *ledger.Book) (together ledger.Report, err error) {
	names := []string{stream + ".backfill", stream}
	for _, name := range names {
		obs := b.Observe(name)
		if err := observeTopic(s, name, obs, 0); err != nil {
			return together, err
		}
		if r := obs.Report(); r.Duplicate != 0 || r.OutOfOrder != 0 || r.BootDisorder != 0 || r.Invented != 0 || r.Altered != 0 {
			return together, fmt.Errorf("%s alone: %v", name, r)
		}
	}
	all := b.Observe("topic and companion")
	for i, name := range names {
		if err := observeTopic(s, name, all, int64(1000*i)); err != nil {
			return together, err
		}
	}
	together = all.Report()
	together.OutOfOrder, together.BootDisorder = 0, 0 // of two topics one after the other
	return together, nil
}

// ascending checks that in every partition of a topic the positions of the node ascend.
func ascending(s *storage.Store, name string) error {
	next := map[*storage.Partition]int64{}
	return eachBatch(s, name, func(p *storage.Partition, batch record.Batch) error {
		o, ok := p.Origin(batch.BaseOffset())
		if !ok || o.From < next[p] {
			return fmt.Errorf("positions from %d come after %d", o.From, next[p])
		}
		next[p] = o.To
		return nil
	})
}

// A live-first topic through outages, a node's power cut and a hub's: after each outage new
// records arrive at once although minutes of backlog wait for a slow link, an alarm topic of
// higher priority never waits, and in the end topic and companion have everything exactly once.
func TestLiveFirstThroughOutages(t *testing.T) {
	rounds, outage := 4, 10*time.Minute
	if testing.Short() {
		rounds, outage = 2, 3*time.Minute
	}
	certs, dir := scratch(t), scratch(t)
	if err := makeCerts(certs); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(7, filepath.Join(dir, "world"), certs)
		defer w.end()
		w.tuneNode = func(c *edge.Config) {
			c.Topics = []edge.TopicConfig{{Match: stream, Mode: "live-first"}, {Match: "alarms", Priority: 5}}
		}
		good := conditions{Rate: 128e3, Delay: 100 * time.Millisecond} // 16 KB/s
		w.wan.set(good)
		for _, m := range []*machine{w.hub, w.node} {
			if err := m.on(); err != nil {
				t.Fatal(err)
			}
		}
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		results := w.telemetry(ctx, 4, 40)
		time.Sleep(20 * time.Second)
		alarm := func(n int) {
			s := w.node.store()
			tp, ok := s.Topic("alarms")
			if !ok {
				var err error
				if tp, err = s.CreateTopic("alarms", storage.TopicConfig{Partitions: 1}); err != nil {
					t.Fatal(err)
				}
			}
			a := s.NewAppend("")
			if err := a.Record(tp.Partition(0), time.Now().UnixMilli(), nil, fmt.Appendf(nil, "alarm %d", n), nil); err != nil {
				t.Fatal(err)
			}
			if err := s.Commit(t.Context(), a); err != nil {
				t.Fatal(err)
			}
		}
		alarm(0) // the node tells of a new topic with its next inventory
		var worst, worstAlarm time.Duration
		for round := range rounds {
			w.wan.set(conditions{Down: [2]bool{true, true}})
			time.Sleep(outage)
			w.wan.set(good)
			var healed time.Time
			// The newest record of the topic at the hub is young long before the backlog has drained.
			for healed = time.Now(); ; time.Sleep(100 * time.Millisecond) {
				if age := w.age(stream); age < 2*time.Second {
					break
				}
				if time.Since(healed) > outage {
					t.Fatalf("round %d: the newest record at the hub is %v old, %v after the link came back\n%s", round, w.age(stream), time.Since(healed), w.history())
				}
			}
			first := time.Since(healed)
			worst = max(worst, first)
			// An alarm while the backlog drains.
			for i := range 20 {
				if left := w.node.records() - w.hub.records() - w.backfilled(); i == 0 && left < 1000 {
					t.Errorf("round %d: only %d records of backlog left: the test proves nothing", round, left)
				}
				n := w.count("alarms")
				sent := time.Now()
				alarm(100*round + i)
				for w.count("alarms") == n {
					if time.Since(sent) > time.Minute {
						t.Fatalf("round %d: an alarm waited for a minute\n%s", round, w.history())
					}
					time.Sleep(10 * time.Millisecond)
				}
				worstAlarm = max(worstAlarm, time.Since(sent))
				time.Sleep(time.Second)
			}
			switch round { // while it drains
			case 0:
				if err := w.node.crash(1, 3, true); err != nil {
					t.Fatal(err)
				}
				time.Sleep(5 * time.Second)
				if err := w.node.on(); err != nil {
					t.Fatal(err)
				}
			case 1:
				if err := w.hub.crash(2, 3, false); err != nil {
					t.Fatal(err)
				}
				time.Sleep(5 * time.Second)
				if err := w.hub.on(); err != nil {
					t.Fatal(err)
				}
			}
			time.Sleep(30 * time.Second)
		}
		stop()
		if r := <-results; r.Failed != 0 || r.Refused != 0 || r.Unknown != 0 || r.FirstError != "" {
			t.Errorf("devices: %+v", r)
		}
		w.wan.set(conditions{Rate: 20e6, Delay: 20 * time.Millisecond})
		for start := time.Now(); w.hub.store() == nil || w.node.store() == nil || w.hub.records()+w.backfilled() < w.node.records(); time.Sleep(time.Second) {
			if time.Since(start) > 30*time.Minute {
				t.Fatalf("not drained: node %d, hub %d and %d in the companion\n%s", w.node.records(), w.hub.records(), w.backfilled(), w.history())
			}
		}
		rep, err := observeBoth(w.hub.store(), w.book)
		if err != nil {
			t.Fatal(err)
		}
		backfilled := w.backfilled()
		if !rep.OK() || backfilled == 0 {
			t.Errorf("topic and companion: %v", rep)
		}
		for _, name := range []string{stream, stream + ".backfill"} {
			if err := ascending(w.hub.store(), name); err != nil {
				t.Error(err)
			}
		}
		if worst > 5*time.Second || worstAlarm > time.Second {
			t.Errorf("newest record within %v of the link's return (allowed 5 s), alarms within %v (allowed 1 s; the one-way delay is 0.1 s)", worst, worstAlarm)
		}
		t.Logf("%v; %d of them in the companion; newest record %v after the link came back at worst, an alarm beside the backlog %v", rep, backfilled, worst, worstAlarm)
	})
}

// age is how old the newest record of a topic at the hub is.
func (w *world) age(topic string) time.Duration {
	newest := int64(0)
	if s := w.hub.store(); s != nil {
		if t, ok := s.Topic(topic); ok {
			for _, p := range t.Partitions() {
				if ts, ok := p.LastTime(); ok {
					newest = max(newest, ts)
				}
			}
		}
	}
	return time.Since(time.UnixMilli(newest))
}

// count is how many records of a topic the hub has.
func (w *world) count(topic string) (n int64) {
	if s := w.hub.store(); s != nil {
		if t, ok := s.Topic(topic); ok {
			for _, p := range t.Partitions() {
				n += p.HighWatermark()
			}
		}
	}
	return n
}

func (w *world) backfilled() int64 { return w.count(stream + ".backfill") }
