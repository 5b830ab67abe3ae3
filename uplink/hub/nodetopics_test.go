package hub_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"tailrace/uplink/hub"
	"tailrace/uplink/link"
	"tailrace/uplink/wire"
)

// The API, and the metrics with it, say of every topic how far behind it is in records,
// bytes and seconds, when that is over, and what a record took on the wire.
func TestLagDrainAndWirePerTopic(t *testing.T) {
	ctx := context.Background()
	h, s, c := newSink(t)
	a := chain("A")
	hi := hello(1, 1, a, 1000)
	hi.Inventory.Partitions[0].Mode, hi.Inventory.Partitions[0].Priority = wire.ModeLiveFirst, 3
	hi.Inventory.Partitions = append(hi.Inventory.Partitions, wire.PartitionInfo{ID: 2, Topic: "raw", Next: 70, Mode: wire.ModeOnDemand})
	if _, err := s.Hello(ctx, "n1", hi); err != nil {
		t.Fatal(err)
	}
	s.Connected("n1", link.SessionInfo{})
	o := wire.Origin{Node: "n1", Epoch: a[0].ID, Topic: "wind"}
	put(t, s, o, 600, 1000) // newest at once
	o.Backfill = true
	put(t, s, o, 0, 200)
	m := s.(link.Meter).WireCount("n1", "wind")
	m.Records.Add(600)
	m.Wire.Add(600 * 20)
	find := func() (i int) {
		for i, x := range h.Nodes()[0].Topics {
			if x.Topic == "wind" {
				return i
			}
		}
		t.Fatal("no topic wind")
		return
	}
	report := func(lag int64) {
		c.now = c.now.Add(15 * time.Second)
		s.Status("n1", wire.Status{Backlog: []wire.Backlog{{Topic: "wind", Next: 1000, Records: lag, Bytes: lag * 100, OldestMS: c.now.Add(-time.Minute).UnixMilli()}}})
	}
	report(700)
	n := h.Nodes()[0]
	x := n.Topics[find()]
	if x.LagRecords != 400 || x.DrainSeconds != nil || n.DrainSeconds != nil || x.LagBytes != 70000 || x.LagSeconds != 60 {
		t.Errorf("after one report: %+v", x)
	}
	if x.Mode != "live-first" || x.Priority != 3 || x.BackfillTopic != "wind.backfill" || x.Backfilled != 200 || x.Stored != 600 || x.WirePerRecord != 20 {
		t.Errorf("%+v", x)
	}
	report(550) // 10 records a second
	n = h.Nodes()[0]
	if x = n.Topics[find()]; x.DrainSeconds == nil || *x.DrainSeconds != 40 || n.DrainSeconds == nil || *n.DrainSeconds != 40 {
		t.Errorf("400 records at 10 a second: %v", x.DrainSeconds)
	}
	report(900)
	report(1900)
	if x = h.Nodes()[0].Topics[find()]; x.DrainSeconds != nil {
		t.Errorf("the lag grows: %v", *x.DrainSeconds)
	}
	put(t, s, o, 200, 600)
	s.Status("n1", wire.Status{})
	n = h.Nodes()[0]
	if x = n.Topics[find()]; x.LagRecords != 0 || x.DrainSeconds == nil || *x.DrainSeconds != 0 || *n.DrainSeconds != 0 || x.CompleteTo != 1000 {
		t.Errorf("complete: %+v", x)
	}
	for _, x := range n.Topics {
		if x.Topic == "raw" && (x.AtNode != 70 || x.LagRecords != 0 || x.Mode != "on-demand") {
			t.Errorf("on demand: %+v", x)
		}
	}
	body := metricsOf(h)
	for _, want := range []string{
		`tailrace_wire_bytes_total{node="n1",topic="wind"} 12000`, `tailrace_wire_records_total{node="n1",topic="wind"} 600`,
		`tailrace_lag_drain_seconds{node="n1",topic="wind"} 0`, `tailrace_at_node_records{node="n1",topic="raw"} 70`, `tailrace_node_refused_topics{node="n1"} 0`,
		`tailrace_lag_records{node="n1",topic="wind"} 0`, `tailrace_lag_bytes{node="n1",topic="wind"} 0`, `tailrace_lag_seconds{node="n1",topic="wind"} 0`,
	} {
		if !strings.Contains(body, want) {
			t.Errorf("/metrics lacks %s", want)
		}
	}
}

func metricsOf(h *hub.Hub) string {
	var b strings.Builder
	h.WriteMetrics(&b)
	return b.String()
}
