package scenario

import (
	"encoding/json"
	"fmt"
	"math"
	mrand "math/rand/v2"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"tailrace/edge"
	"tailrace/edge/sketch"
	"tailrace/storage"
	"tailrace/storage/record"
)

// reading is what a device of the sketch tests says.
func reading(r *mrand.Rand, device, i int) []byte {
	return fmt.Appendf(nil, `{"id":"d%d","i":%d,"signals":{"power_kw":%.3f,"rpm":%.2f,"temps":[%.1f,%.1f]},"blob":"%016x%016x%016x%016x"}`,
		device, i, 1000*r.NormFloat64(), 1500+10*r.NormFloat64(), 60*r.Float64(), 60*r.Float64(), r.Uint64(), r.Uint64(), r.Uint64(), r.Uint64())
}

// onWithTopic starts hub and node, whose log has the topic.
func (w *world) onWithTopic(t *testing.T) {
	t.Helper()
	for _, m := range []*machine{w.hub, w.node} {
		if err := m.on(); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(time.Second)
	if _, err := w.node.store().CreateTopic(stream, storage.TopicConfig{Partitions: 1}); err != nil {
		t.Fatal(err)
	}
	w.node.off() // its next inventory tells of the topic
	if err := w.node.on(); err != nil {
		t.Fatal(err)
	}
}

// produce has ten devices say something every second until end.
func (w *world) produce(t *testing.T, r *mrand.Rand, d time.Duration) {
	t.Helper()
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(time.Second) {
		s := w.node.store()
		if s == nil {
			continue
		}
		tp, _ := s.Topic(stream)
		a := s.NewAppend("")
		for dev := range 10 {
			if err := a.Record(tp.Partition(0), time.Now().UnixMilli(), fmt.Appendf(nil, "d%d", dev), reading(r, dev, int(time.Now().Unix())), nil); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.Commit(t.Context(), a); err != nil && w.node.store() == s {
			t.Fatal(err)
		}
	}
}

// sketchRow is a row as the hub has it.
type sketchRow struct {
	sketch.Row
	key string
}

func (w *world) sketchRows(t *testing.T) (rows []sketchRow) {
	t.Helper()
	s := w.hub.store()
	if _, ok := s.Topic(stream + ".sketch"); !ok {
		return nil
	}
	if err := eachRecord(s, stream+".sketch", func(_ *storage.Partition, r *record.Record) {
		row := sketchRow{key: string(r.Key)}
		if err := json.Unmarshal(r.Value, &row.Row); err != nil {
			t.Fatalf("%s: %v", r.Value, err)
		}
		rows = append(rows, row)
	}); err != nil {
		t.Fatal(err)
	}
	return rows
}

// told is how many offsets the rows tell of, and up to which; no two accounts may overlap.
func told(t *testing.T, rows []sketchRow) (n, to int64) {
	t.Helper()
	accounts := map[int64]int64{}
	for _, r := range rows {
		if e, ok := accounts[r.From]; ok && e != r.To {
			t.Errorf("accounts of [%d,%d) and [%d,%d)", r.From, e, r.From, r.To)
		}
		accounts[r.From] = r.To
	}
	for f, e := range accounts {
		for f2, e2 := range accounts {
			if f != f2 && f < e2 && f2 < e {
				t.Errorf("accounts of [%d,%d) and [%d,%d) overlap", f, e, f2, e2)
			}
		}
		n += e - f
		to = max(to, e)
	}
	return n, to
}

// recount is the account that the rows should be, from the records at the node: by row's
// key, begin of the account and window.
func (w *world) recount(t *testing.T, rows []sketchRow) map[string]*sketch.Row {
	t.Helper()
	type account struct{ from, to int64 }
	accounts := map[account]bool{}
	for _, r := range rows {
		accounts[account{r.From, r.To}] = true
	}
	out := map[string]*sketch.Row{}
	if err := eachRecord(w.node.store(), stream, func(_ *storage.Partition, r *record.Record) {
		for a := range accounts {
			if r.Offset < a.from || r.Offset >= a.to {
				continue
			}
			var v struct {
				I       float64
				Signals struct {
					Power float64 `json:"power_kw"`
					RPM   float64
					Temps []float64
				}
			}
			if err := json.Unmarshal(r.Value, &v); err != nil {
				t.Fatal(err)
			}
			window := r.Timestamp / 60000 * 60000
			k := fmt.Sprint(string(r.Key), " ", a.from, " ", window)
			row := out[k]
			if row == nil {
				row = &sketch.Row{Topic: stream, Window: window, Span: 60000, From: a.from, To: a.to, FirstMS: math.MaxInt64, Signals: map[string]sketch.Signal{}}
				out[k] = row
			}
			row.Records++
			row.FirstMS, row.LastMS = min(row.FirstMS, r.Timestamp), max(row.LastMS, r.Timestamp)
			for name, x := range map[string]float64{"i": v.I, "signals.power_kw": v.Signals.Power, "signals.rpm": v.Signals.RPM, "signals.temps.0": v.Signals.Temps[0], "signals.temps.1": v.Signals.Temps[1]} {
				s, ok := row.Signals[name]
				if !ok {
					s = sketch.Signal{Min: x, Max: x}
				}
				row.Signals[name] = sketch.Signal{Min: min(s.Min, x), Max: max(s.Max, x), Last: x, N: s.N + 1}
			}
		}
	}); err != nil {
		t.Fatal(err)
	}
	return out
}

// After twenty minutes without a link, in which the node also loses power, the sketch of
// those minutes is at the hub within seconds, while the detail takes minutes on a slow link.
// Every row is what the records come to, and every record is in one account.
func TestSketchGoesAheadOfTheDetail(t *testing.T) {
	for _, mode := range []string{"in-order", "live-first"} {
		t.Run(mode, func(t *testing.T) {
			certs, dir := scratch(t), scratch(t)
			if err := makeCerts(certs); err != nil {
				t.Fatal(err)
			}
			synctest.Test(t, func(t *testing.T) { sketchAhead(t, mode, filepath.Join(dir, "world"), certs) })
		})
	}
}

func sketchAhead(t *testing.T, mode, dir, certs string) {
	w := newWorld(11, dir, certs)
	defer w.end()
	w.tuneNode = func(c *edge.Config) {
		c.Topics = []edge.TopicConfig{{Match: stream, Mode: mode, Sketch: &edge.SketchConfig{}}}
	}
	r := mrand.New(mrand.NewPCG(11, 11))
	good := conditions{Rate: 64e3, Delay: 100 * time.Millisecond}
	w.wan.set(good)
	w.onWithTopic(t)
	w.produce(t, r, 5*time.Minute)
	if rows := w.sketchRows(t); len(rows) != 0 {
		t.Errorf("%d rows of a sketch although nothing was missing, the first %+v %s", len(rows), rows[0], w.history())
	}
	held := w.completeTo(stream)
	w.wan.set(conditions{Down: [2]bool{true, true}})
	w.produce(t, r, 7*time.Minute+20*time.Second)
	if err := w.node.crash(3, 2, true); err != nil {
		t.Fatal(err)
	}
	time.Sleep(3 * time.Second)
	if err := w.node.on(); err != nil {
		t.Fatal(err)
	}
	w.produce(t, r, 12*time.Minute)
	w.wan.set(good)
	back, missing := time.Now(), w.node.records()-w.hub.records()-w.backfilled()
	var first time.Duration
	for {
		_, to := told(t, w.sketchRows(t))
		if to >= held+missing {
			first = time.Since(back)
			break
		}
		if time.Since(back) > time.Minute {
			t.Fatalf("after a minute the sketch reaches to %d, the node had %d when the link came back\n%s", to, held+missing, w.history())
		}
		w.produce(t, r, time.Second)
	}
	left := w.node.records() - w.hub.records() - w.backfilled()
	if left < missing*3/4 {
		t.Errorf("when the sketch was there, %d of %d records of detail were missing: the test proves nothing", left, missing)
	}
	if first > 10*time.Second {
		t.Errorf("the sketch took %v", first)
	}
	// A restart while it drains tells nothing twice.
	w.node.off()
	if err := w.node.on(); err != nil {
		t.Fatal(err)
	}
	w.produce(t, r, time.Minute)
	w.wan.set(conditions{Rate: 20e6, Delay: 20 * time.Millisecond})
	for start := time.Now(); w.hub.records()+w.backfilled() < w.node.records(); time.Sleep(time.Second) {
		if time.Since(start) > 10*time.Minute {
			t.Fatalf("not drained\n%s", w.history())
		}
	}
	drained := time.Since(back)
	rows := w.sketchRows(t)
	n, _ := told(t, rows)
	if n < missing || n > missing+3000 {
		t.Errorf("the sketch tells of %d records, %d were missing when the link came back", n, missing)
	}
	want := w.recount(t, rows)
	if len(want) != len(rows) {
		t.Errorf("%d rows, the records make %d", len(rows), len(want))
	}
	for _, row := range rows {
		k := fmt.Sprint(row.key, " ", row.From, " ", row.Window)
		exp := want[k]
		if exp == nil {
			t.Errorf("a row for nothing: %+v", row)
			continue
		}
		got, _ := json.Marshal(row.Row)
		if exp, _ := json.Marshal(exp); string(got) != string(exp) {
			t.Fatalf("row %s\nhas    %s\nshould %s", k, got, exp)
		}
	}
	t.Logf("%d records missing; their sketch (%d rows, %d records) within %v of the link's return, when %d records of detail were still to come (%v in all)", missing, len(rows), n, first, left, drained)
}
