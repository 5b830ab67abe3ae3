package scenario

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"tailrace/edge"
	"tailrace/storage"
	"tailrace/storage/record"
	"tailrace/uplink/hub"
)

// truth is a world on real files in which the test itself appends at the node: what its
// commits acknowledged must be at the hub or declared there, exactly.
type truth struct {
	*world
	t     *testing.T
	acked map[string]int64 // by topic: appended and durable at a node, over all of its logs
}

// quiet is a second topic that seldom gets a record.
const quiet = "quiet"

// newTruth makes one that is switched off, in a bubble.
func newTruth(t *testing.T, seed uint64, dir, certs string, tune func(*edge.Config)) *truth {
	w := &truth{world: newWorld(seed, filepath.Join(dir, "world"), certs), t: t, acked: map[string]int64{}}
	w.node.real, w.hub.real = true, true
	w.tune(tune)
	return w
}

func inTruth(t *testing.T, tune func(*edge.Config), f func(w *truth)) {
	t.Helper()
	inSeededTruth(t, 1, tune, f)
}

func inSeededTruth(t *testing.T, seed uint64, tune func(*edge.Config), f func(w *truth)) {
	t.Helper()
	certs, dir := scratch(t), scratch(t)
	if err := makeCerts(certs); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		w := newTruth(t, seed, dir, certs, tune)
		defer w.end()
		w.up()
		w.flash(w.node)
		w.must(w.hub.on())
		w.must(w.node.on())
		f(w)
	})
}

// tune sets the configuration of the node's next starts.
func (w *truth) tune(f func(*edge.Config)) {
	w.tuneNode = func(c *edge.Config) {
		c.Storage.Classes[0].SegmentSize = 64 << 10
		if f != nil {
			f(c)
		}
	}
}

// recent is the end of the history.
func (w *truth) recent() string {
	s := w.history()
	return s[max(0, len(s)-2000):]
}

func (w *truth) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatalf("%v\n%s", err, w.recent())
	}
}

func (w *truth) up()   { w.wan.set(conditions{Rate: 20e6, Delay: 10 * time.Millisecond}) }
func (w *truth) down() { w.wan.set(conditions{Down: [2]bool{true, true}}) }

// flash gives a machine that is off an empty store with the two topics.
func (w *truth) flash(m *machine) {
	w.t.Helper()
	w.must(os.RemoveAll(m.dir()))
	s, err := storage.Open(storage.Config{Dir: m.dir(), NodeID: nodeID, OriginHeaders: true, Classes: []storage.ClassConfig{{Name: "main", SegmentBytes: 64 << 10}}})
	w.must(err)
	for _, name := range []string{stream, quiet} {
		_, err := s.CreateTopic(name, storage.TopicConfig{Partitions: 1})
		w.must(err)
	}
	w.must(s.Close())
}

// save copies the directory of a machine, which must be off.
func (w *truth) save(m *machine) string {
	w.t.Helper()
	to, err := os.MkdirTemp(w.dir, "saved-*")
	w.must(err)
	w.must(os.CopyFS(to, os.DirFS(m.dir())))
	return to
}

// restore gives it back.
func (w *truth) restore(m *machine, from string) {
	w.t.Helper()
	w.must(os.RemoveAll(m.dir()))
	w.must(os.CopyFS(m.dir(), os.DirFS(from)))
}

func (w *truth) until(what string, f func() bool) {
	w.t.Helper()
	for start := time.Now(); !f(); time.Sleep(200 * time.Millisecond) {
		if time.Since(start) > 15*time.Minute {
			w.t.Fatalf("not within 15 minutes: %s\nhub: %s\n%s", what, w.fleet(), w.recent())
		}
	}
}

func (w *truth) ready(m *machine) {
	w.t.Helper()
	w.until(m.name+" runs", func() bool { return m.store() != nil })
}

// put appends n records of 1 KiB, each named by tag and number.
func (w *truth) put(m *machine, topic, tag string, from, n int) {
	w.t.Helper()
	w.ready(m)
	s := m.store()
	t, ok := s.Topic(topic)
	if !ok {
		w.t.Fatalf("no topic %s", topic)
	}
	for i := from; i < from+n; {
		a := s.NewAppend("")
		k := 0
		for ; k < 7 && i < from+n; k, i = k+1, i+1 {
			w.must(a.Record(t.Partition(0), time.Now().UnixMilli(), []byte("k"), fmt.Appendf(nil, "%s %05d %01000d", tag, i, 0), nil))
		}
		w.must(s.Commit(w.t.Context(), a))
		w.acked[topic] += int64(k)
		time.Sleep(time.Millisecond)
	}
}

func (w *truth) fleet() string {
	if h := w.central(); h != nil {
		b, _ := json.MarshalIndent(h.Nodes(), "", " ")
		return string(b)
	}
	return "off"
}

// told are the names of the records of a topic at the hub, in order.
func (w *truth) told(topic string) []string {
	w.t.Helper()
	var out []string
	w.each(topic, func(v []byte) { out = append(out, string(v[:min(len(v), strings.LastIndexByte(string(v), ' '))])) })
	return out
}

func (w *truth) each(topic string, f func(value []byte)) {
	w.t.Helper()
	s := w.hub.store()
	if s == nil {
		return
	}
	w.must(eachRecord(s, topic, func(_ *storage.Partition, r *record.Record) { f(r.Value) }))
}

// ledger reads the loss ledger as a consumer does, and checks that no range is there twice.
func (w *truth) ledger(topic string) (rows []hub.LossRow, records int64) {
	w.t.Helper()
	w.each("__tailrace_loss", func(v []byte) {
		var r hub.LossRow
		w.must(json.Unmarshal(v, &r))
		if r.Topic != topic {
			return
		}
		for _, o := range rows {
			if o.Epoch == r.Epoch && o.From < r.To && r.From < o.To {
				w.t.Errorf("[%d,%d) and [%d,%d) of one epoch are both in the ledger", o.From, o.To, r.From, r.To)
			}
		}
		rows = append(rows, r)
		records += r.To - r.From
	})
	return rows, records
}

// complete waits until the hub has, or has declared, all that the node has.
func (w *truth) complete() {
	w.t.Helper()
	w.ready(w.node)
	w.ready(w.hub)
	w.until("the hub is complete", func() bool {
		s := w.node.store()
		if s == nil {
			return false
		}
		info := w.info()
		for _, name := range []string{stream, quiet} {
			t, _ := s.Topic(name)
			next := t.Partition(0).HighWatermark()
			if next == 0 {
				continue
			}
			i := slices.IndexFunc(info.Topics, func(x hub.NodeTopicInfo) bool { return x.Topic == name })
			if i < 0 || info.Topics[i].CompleteTo != next {
				return false
			}
		}
		return info.State == "connected"
	})
}

// exact checks acked = delivered + declared, and that nothing is there twice.
func (w *truth) exact(topic string) (delivered, declared int64) {
	w.t.Helper()
	names := w.told(topic)
	seen := map[string]bool{}
	for _, n := range names {
		if seen[n] {
			w.t.Errorf("%s: %q is at the hub twice", topic, n)
		}
		seen[n] = true
	}
	_, declared = w.ledger(topic)
	delivered = int64(len(names))
	if delivered+declared != w.acked[topic] {
		w.t.Errorf("%s: %d acknowledged, %d delivered, %d declared", topic, w.acked[topic], delivered, declared)
	}
	return delivered, declared
}

// small makes the node's budget six segments of 64 KiB.
func small(policy string) func(*edge.Config) {
	return func(c *edge.Config) {
		c.Storage.Classes[0].WhenFull, c.Storage.Classes[0].MaxSize = policy, 6*64<<10
	}
}

// A node with room for a few hundred records takes 2,000 while the link is down, and more
// while it drains: acknowledged = delivered + declared.
func TestWhatTheNodeGaveUpIsDeclaredExactly(t *testing.T) {
	inTruth(t, small("drop-oldest"), func(w *truth) {
		w.put(w.node, stream, "a", 0, 50)
		w.put(w.node, quiet, "q", 0, 3)
		w.complete()
		w.down()
		w.put(w.node, stream, "a", 50, 2000)
		w.put(w.node, quiet, "q", 3, 2)
		w.wan.set(conditions{Rate: 256e3, Delay: 100 * time.Millisecond}) // slower than what comes
		w.put(w.node, stream, "a", 2050, 700)
		w.up()
		w.complete()
		delivered, declared := w.exact(stream)
		w.exact(quiet)
		if declared < 500 || delivered < 100 {
			t.Errorf("%d delivered and %d declared: the test evicted too little or too much", delivered, declared)
		}
		rows, _ := w.ledger(stream)
		for _, r := range rows {
			// "expired" when the sender met the hole before the row of the ledger.
			if r.Reason != "evicted" && r.Reason != "expired" || r.Epoch == "" || r.CentralTopic != stream {
				t.Errorf("ledger row %+v", r)
			}
		}
		info := w.info()
		for _, x := range info.Topics {
			if x.Topic == stream && (x.CompleteTo != 2750 || x.CompleteTime == "" || x.Lost != declared || x.Stored != delivered) {
				t.Errorf("completeness %+v", x)
			}
		}
		w.until("the node forgot what is in the ledger", func() bool { return len(w.node.store().Losses()) == 0 })
		w.put(w.node, stream, "a", 2750, 100)
		w.complete()
		if _, d := w.exact(stream); d != declared {
			t.Errorf("%d declared after the node recovered, %d before", d, declared)
		}
	})
}

// A bit of a sealed segment flips while the node is off, or under the running node: what
// was in that batch is declared, everything else arrives.
func TestFlippedBitIsDeclaredExactly(t *testing.T) {
	for _, running := range []bool{false, true} {
		t.Run(fmt.Sprintf("running=%v", running), func(t *testing.T) {
			inTruth(t, nil, func(w *truth) {
				w.put(w.node, stream, "a", 0, 50)
				w.complete()
				w.down()
				w.put(w.node, stream, "a", 50, 900) // more than the link has read ahead
				if !running {
					w.node.off()
				}
				segs, err := filepath.Glob(filepath.Join(w.node.dir(), "main", "log", "0*"))
				w.must(err)
				if len(segs) < 4 {
					t.Fatalf("%d segments", len(segs))
				}
				f, err := os.OpenFile(segs[len(segs)-2], os.O_RDWR, 0)
				w.must(err)
				b := make([]byte, 1)
				_, err = f.ReadAt(b, 30000)
				w.must(err)
				b[0] ^= 4
				_, err = f.WriteAt(b, 30000)
				w.must(err)
				w.must(f.Close())
				if !running {
					w.must(w.node.on())
				}
				w.up()
				w.complete()
				w.put(w.node, stream, "a", 950, 20)
				w.complete()
				delivered, declared := w.exact(stream)
				if declared < 1 || declared > 7 {
					t.Errorf("%d delivered, %d declared; one batch holds at most 7", delivered, declared)
				}
				if rows, _ := w.ledger(stream); len(rows) == 0 || rows[0].Reason != "damaged" {
					t.Errorf("rows %+v", rows)
				}
			})
		})
	}
}

// fenced waits until the hub says so, in words.
func (w *truth) fenced(words ...string) {
	w.t.Helper()
	w.until("the node is fenced", func() bool { return w.info().State == "fenced" })
	for _, s := range append(words, "Both logs are kept") {
		if why := w.info().Fenced; !strings.Contains(why, s) {
			w.t.Errorf("the reason %q does not say %q", why, s)
		}
	}
	if st := w.node.edge().Status(); st.Uplink == nil || !strings.Contains(st.Uplink.LastError, words[0]) {
		w.t.Errorf("the node's own status says %+v", st.Uplink)
	}
}

func (m *machine) edge() *edge.Node {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.life.mu.Lock()
	defer m.life.mu.Unlock()
	return m.life.edge
}

// tear cuts the last 9,000 bytes off the log of a machine that is off.
func (w *truth) tear(m *machine) {
	w.t.Helper()
	segs, err := filepath.Glob(filepath.Join(m.dir(), "main", "log", "0*"))
	w.must(err)
	last := segs[len(segs)-1]
	fi, err := os.Stat(last)
	w.must(err)
	w.must(os.Truncate(last, fi.Size()-9000))
}

// onlyTags: the records of a topic at the hub are those of the logs named, in this order.
func (w *truth) onlyTags(topic string, want ...string) {
	w.t.Helper()
	if got := w.tags(topic); !slices.Equal(got, want) {
		w.t.Errorf("%s at the hub has records of %v, want %v", topic, got, want)
	}
}

func (w *truth) tags(topic string) (tags []string) {
	for _, n := range w.told(topic) {
		tag, _, _ := strings.Cut(n, " ")
		if len(tags) == 0 || tags[len(tags)-1] != tag {
			tags = append(tags, tag)
		}
	}
	return tags
}

// Copies of a node's log are never merged with it.
func TestCopiesOfALogAreNeverMerged(t *testing.T) {
	// begin: 100 records everywhere, a copy of the disk, then 100 more everywhere.
	begin := func(w *truth) (older, newer string) {
		w.put(w.node, stream, "a", 0, 100)
		w.put(w.node, quiet, "qa", 0, 5)
		w.complete()
		w.node.off()
		older = w.save(w.node)
		w.must(w.node.on())
		w.put(w.node, stream, "a", 100, 100)
		w.complete()
		w.node.off()
		return older, w.save(w.node)
	}
	for name, f := range map[string]func(w *truth){
		"older copy restored": func(w *truth) {
			older, newer := begin(w)
			w.restore(w.node, older)
			w.must(w.node.on())
			w.fenced("older copy of the log")
			w.put(w.node, stream, "copy", 100, 50) // a fenced node goes on taking data
			w.put(w.node, quiet, "qcopy", 5, 5)
			time.Sleep(5 * time.Minute)
			w.onlyTags(stream, "a")
			w.node.off()
			w.restore(w.node, newer) // the right card again
			w.must(w.node.on())
			w.put(w.node, stream, "a2", 200, 10)
			w.complete()
			w.onlyTags(stream, "a", "a2")
			w.onlyTags(quiet, "qa")
		},
		"older copy that has overtaken the hub": func(w *truth) {
			older, newer := begin(w)
			w.restore(w.node, older)
			w.down()
			w.must(w.node.on())
			w.put(w.node, stream, "copy", 100, 250) // to 350; the hub has 200
			w.put(w.node, quiet, "qcopy", 5, 40)
			time.Sleep(2 * time.Minute) // a Hello of before, sent as early data, is not repeated any more
			w.up()
			w.fenced("not the one stored here")
			time.Sleep(5 * time.Minute)
			w.onlyTags(stream, "a")
			w.onlyTags(quiet, "qa") // a topic that did not differ is not mixed either
			if got := w.node.store(); got == nil || w.node.records() != 350 {
				w.t.Errorf("the copy's log has %d records, it had 350", w.node.records())
			}
			w.node.off()
			w.restore(w.node, newer)
			w.must(w.node.on())
			w.put(w.node, stream, "a2", 200, 10)
			w.put(w.node, quiet, "qa2", 5, 2)
			w.complete()
			w.onlyTags(stream, "a", "a2")
			w.onlyTags(quiet, "qa", "qa2")
		},
		"clone, both running": func(w *truth) {
			older, _ := begin(w)
			clone := &machine{w: w.world, name: "clone", real: true, run: w.runNodeAt(&memNet{})}
			w.restore(clone, older)
			w.must(w.node.on())
			w.complete()
			w.must(clone.on())
			w.put(w.node, stream, "a2", 200, 20)
			w.put(clone, stream, "clone", 100, 300)
			w.put(clone, quiet, "qclone", 5, 10)
			w.put(w.node, quiet, "qa2", 5, 3)
			w.until("the operator is told of the other machine", func() bool { return w.info().OtherCopy != "" || w.info().Fenced != "" })
			time.Sleep(10 * time.Minute)
			w.put(w.node, stream, "a2", 220, 20)
			w.complete() // the one whose log is stored is served all the time
			clone.off()
			w.onlyTags(stream, "a", "a2")
			w.onlyTags(quiet, "qa", "qa2")
		},
		"copy with an epoch of its own, the node has another": func(w *truth) {
			older, _ := begin(w)
			w.tune(func(c *edge.Config) { c.NewEpoch = true })
			w.must(w.node.on())
			w.put(w.node, stream, "a2", 200, 20)
			w.complete()
			w.node.off()
			newer := w.save(w.node)
			w.restore(w.node, older) // at a time when the node is not connected
			w.must(w.node.on())
			w.put(w.node, stream, "copy", 100, 50)
			w.put(w.node, quiet, "qcopy", 5, 5)
			time.Sleep(5 * time.Minute)
			w.onlyTags(stream, "a", "a2")
			w.onlyTags(quiet, "qa")
			w.fenced("two copies of one log")
			w.node.off()
			w.tune(nil)
			w.restore(w.node, newer)
			w.must(w.node.on())
			w.put(w.node, stream, "a3", 220, 10)
			w.complete()
			w.onlyTags(stream, "a", "a2", "a3")
		},
		// The copy begins an epoch of its own at its torn end, as a node does that lost its last
		// commits: that goes on. So it is the node's own card that is an older one then.
		"copy with a torn end in the node's place, then the node's card": func(w *truth) {
			older, newer := begin(w)
			w.restore(w.node, older)
			w.tear(w.node)
			w.must(w.node.on())
			w.put(w.node, stream, "copy", 100, 150)
			w.until("the copy goes on", func() bool { return slices.Contains(w.tags(stream), "copy") })
			time.Sleep(time.Minute)
			w.onlyTags(stream, "a", "copy")
			w.node.off()
			w.restore(w.node, newer)
			w.must(w.node.on())
			w.fenced("the hub has already seen the later epoch", "-new-epoch")
			w.put(w.node, stream, "a2", 200, 10)
			time.Sleep(5 * time.Minute)
			w.onlyTags(stream, "a", "copy")
			if n := w.node.records(); n != 210 {
				w.t.Errorf("the node's log has %d records, it had 210", n)
			}
		},
		"end lost without a trace": func(w *truth) {
			older, _ := begin(w)
			w.restore(w.node, older)
			w.must(w.node.on())
			w.fenced("older copy of the log", "-new-epoch")
			w.node.off()
			w.tune(func(c *edge.Config) { c.NewEpoch = true })
			w.must(w.node.on())
			w.put(w.node, stream, "b", 100, 30)
			w.complete()
			w.tune(nil)
			w.node.off()
			w.must(w.node.on())
			w.put(w.node, stream, "b", 130, 30)
			w.complete()
			w.onlyTags(stream, "a", "b")
			w.exact(stream)
		},
		"end torn": func(w *truth) {
			begin(w)
			w.tear(w.node)
			w.must(w.node.on())
			w.put(w.node, stream, "b", 100, 30)
			w.complete()
			w.onlyTags(stream, "a", "b")
			w.exact(stream)
			if n := w.info().Epochs; n != 2 {
				w.t.Errorf("%d epochs, want 2", n)
			}
		},
		"new store, same certificate": func(w *truth) {
			begin(w)
			w.flash(w.node)
			w.must(w.node.on())
			w.put(w.node, stream, "b", 0, 30)
			w.complete()
			w.onlyTags(stream, "a", "b")
			w.exact(stream)
		},
	} {
		t.Run(name, func(t *testing.T) { inTruth(t, nil, f) })
	}
}

// The hub's own disk is lost, or an older state of it comes back: nodes send again what
// they hold, the rest is declared, and the leader epoch rises.
func TestHubThatLostRecordsIsFilledAgain(t *testing.T) {
	for name, c := range map[string]struct {
		tune func(*edge.Config)
		hurt func(w *truth, older string)
	}{
		"disk lost, all still at the node":           {nil, func(w *truth, _ string) { w.must(os.RemoveAll(w.hub.dir())) }},
		"disk lost, some freed":                      {small("reject"), func(w *truth, _ string) { w.must(os.RemoveAll(w.hub.dir())) }},
		"older backup, all still at the node":        {nil, func(w *truth, older string) { w.restore(w.hub, older) }},
		"older backup, some freed":                   {small("reject"), func(w *truth, older string) { w.restore(w.hub, older) }},
		"older backup, the node restarted meanwhile": {nil, func(w *truth, older string) { w.restore(w.hub, older); w.node.off(); w.must(w.node.on()) }},
	} {
		t.Run(name, func(t *testing.T) {
			inTruth(t, c.tune, func(w *truth) {
				w.put(w.node, stream, "a", 0, 100)
				w.complete()
				w.hub.off()
				older := w.save(w.hub)
				w.must(w.hub.on())
				for i := range 8 {
					w.put(w.node, stream, "a", 100+i*100, 100)
					w.complete()
				}
				id := w.info().StoreID
				epoch := w.hub.store().EpochNumber()
				w.hub.off()
				c.hurt(w, older)
				w.put(w.node, stream, "a", 900, 20)
				w.must(w.hub.on())
				w.complete()
				_, declared := w.exact(stream)
				if (declared > 0) != (c.tune != nil) {
					t.Errorf("%d declared", declared)
				}
				if strings.HasPrefix(name, "disk lost") == (w.info().StoreID == id) {
					t.Errorf("store id %s before, %s now", id, w.info().StoreID)
				}
				if now := w.hub.store().EpochNumber(); now <= epoch && !strings.Contains(name, "restarted") {
					t.Errorf("leader epoch %d before, %d now", epoch, now)
				}
				w.put(w.node, stream, "a", 920, 20)
				w.complete()
				w.exact(stream)
			})
		})
	}
}

// A node whose clock is in 1970 connects, delivers, and says by how much its times were
// wrong; what is stored stays as it was.
func TestNodeInTheYear1970(t *testing.T) {
	const wrong = 30 * 365 * 24 * time.Hour
	tune := func(c *edge.Config) {
		c.Now = func() time.Time { return time.Now().Add(-wrong) }
		c.ClockSynced = func() bool { return false }
	}
	inTruth(t, tune, func(w *truth) {
		w.put(w.node, stream, "a", 0, 30)
		w.complete()
		rows := func() (out []edge.ClockRow) {
			w.each("__tailrace_clock", func(v []byte) {
				var r edge.ClockRow
				w.must(json.Unmarshal(v, &r))
				out = append(out, r)
			})
			return out
		}
		w.until("corrections", func() bool { return len(rows()) > 0 })
		r := rows()[0]
		if off := time.Duration(r.DeltaMS)*time.Millisecond - wrong; r.Topic != stream || r.From != 0 || r.To != 30 || off.Abs() > time.Second || r.Unknown {
			t.Errorf("row %+v, %v off", r, off)
		}
		if st := w.info().Status; st == nil || st.ClockTrusted {
			t.Errorf("the hub takes the clock for a good one: %+v", st)
		}
		w.put(w.node, stream, "a", 30, 10)
		w.complete()
		w.exact(stream)
		w.until("the rest", func() bool { return len(rows()) == 2 })
		if r := rows()[1]; r.From != 30 || r.To != 40 {
			t.Errorf("second row %+v", r)
		}
	})
}
