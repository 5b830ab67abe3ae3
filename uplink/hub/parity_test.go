package hub_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"tailrace/uplink/hub"
	"tailrace/uplink/link"
	"tailrace/uplink/ranges"
	"tailrace/uplink/wire"
)

// TestOneScriptOnBothEngines runs the same steps with the shipped hub and the shipped CLI
// on the hub's own store and on a real Kafka cluster. What each step shows is written down
// without what must differ (places in the central topics, store ids, sizes), and must be
// the same, line for line.
func TestOneScriptOnBothEngines(t *testing.T) {
	k := brokers(t)
	var said [2][]string
	for i, store := range []string{"", clusterYAML(k, "parity")} {
		t.Run([]string{"embedded", "cluster"}[i], func(t *testing.T) {
			s := &script{t: t, certDir: certs(t, "n0", "n1", "n2")}
			s.d = startDaemon(t, hubYAML(t, s.certDir, filepath.Join(t.TempDir(), "data"), store))
			s.run()
			said[i] = s.lines
		})
	}
	if t.Failed() {
		return
	}
	for i := range max(len(said[0]), len(said[1])) {
		a, b := "(nothing)", "(nothing)"
		if i < len(said[0]) {
			a = said[0][i]
		}
		if i < len(said[1]) {
			b = said[1][i]
		}
		if a != b {
			t.Errorf("line %d\nembedded: %s\ncluster:  %s", i+1, a, b)
		}
	}
	if len(said[0]) < 1500 {
		t.Errorf("the script wrote %d lines down", len(said[0]))
	}
}

type script struct {
	t       *testing.T
	certDir string
	d       *daemon
	lines   []string
}

func (s *script) say(format string, args ...any) {
	s.lines = append(s.lines, fmt.Sprintf(format, args...))
}

// sayRows writes records down by their origin, whatever the order of partitions is; an
// origin's own order must be its order in the answer.
func (s *script) sayRows(what, ndjson string) (n int) {
	s.t.Helper()
	type row struct {
		Topic, Time, Key string
		Partition        int
		Offset           int64
		Value            json.RawMessage
		Headers          json.RawMessage
		Origin           struct {
			Node, Epoch string
			Offset      int64
		}
	}
	var rows []row
	last, at := map[string]int64{}, map[int]int64{}
	for line := range strings.Lines(ndjson) {
		var r row
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			s.t.Fatalf("%s: %v in %s", what, err, line)
		}
		if p, ok := last[r.Origin.Node]; ok && r.Origin.Node != "" && r.Origin.Offset <= p {
			s.t.Errorf("%s: %s offset %d comes after %d", what, r.Origin.Node, r.Origin.Offset, p)
		}
		if p, ok := at[r.Partition]; ok && r.Offset <= p {
			s.t.Errorf("%s: offset %d of partition %d comes after %d", what, r.Offset, r.Partition, p)
		}
		last[r.Origin.Node], at[r.Partition] = r.Origin.Offset, r.Offset
		rows = append(rows, r)
	}
	slices.SortStableFunc(rows, func(a, b row) int {
		if c := strings.Compare(a.Origin.Node, b.Origin.Node); c != 0 {
			return c
		}
		if c := a.Origin.Offset - b.Origin.Offset; c != 0 {
			return int(c)
		}
		return strings.Compare(string(a.Value), string(b.Value))
	})
	for _, r := range rows {
		s.say("%s: %s %s key=%s %s %s from %s/%d", what, r.Topic, r.Time, r.Key, r.Value, r.Headers, r.Origin.Node, r.Origin.Offset)
	}
	return len(rows)
}

func (s *script) sayNodes() {
	s.t.Helper()
	var l struct{ Nodes []hub.NodeInfo }
	if err := json.Unmarshal([]byte(s.d.cli(0, "nodes", "-o", "json")), &l); err != nil {
		s.t.Fatal(err)
	}
	for _, n := range l.Nodes {
		s.say("node %s: %s stored %d lost %d lag %d epochs %d %s", n.Node, n.State, n.Stored, n.Lost, n.LagRecords, n.Epochs, n.Software)
		for _, t := range n.Topics {
			s.say("node %s %s/%d: %s complete to %d, %s, next %d lag %d stored %d lost %d at node %d backfill %q %d", n.Node, t.Topic, t.Partition, t.Mode,
				t.CompleteTo, t.CompleteTime, t.Next, t.LagRecords, t.Stored, t.Lost, t.AtNode, t.BackfillTopic, t.Backfilled)
		}
	}
}

func (s *script) run() {
	t, d := s.t, s.d
	names := []string{"n0", "n1", "n2"}
	var sites []*site
	for _, n := range names {
		sites = append(sites, newSite(t, s.certDir, n, d.addr))
	}
	acked := func(topic string, to int64) {
		t.Helper()
		for _, x := range sites {
			until(t, fmt.Sprint(x.id, " ", topic, " is acknowledged to ", to), func() bool { return x.ackedTo(topic) == to })
		}
	}
	settled := func() { // the hub has heard the last reports
		until(t, "no lag", func() bool {
			var l struct{ Nodes []hub.NodeInfo }
			getJSON(t, d.url+"/api/v1/nodes", &l)
			return len(l.Nodes) == 3 && !slices.ContainsFunc(l.Nodes, func(n hub.NodeInfo) bool { return n.LagRecords != 0 || n.State != "connected" })
		})
	}
	// In order, through a cut of the link.
	for _, x := range sites {
		x.publish("wind", 40)
	}
	acked("wind", 40)
	for _, x := range sites {
		x.disconnect()
		x.publish("wind", 20)
		x.connect(s.certDir, d.addr)
	}
	acked("wind", 60)
	// Live first: what came while the link was cut is in the companion.
	for _, x := range sites {
		x.setMode("live", wire.ModeLiveFirst)
		x.publish("live", 30)
	}
	acked("live", 30)
	for _, x := range sites {
		x.disconnect()
		x.fill("live", 300, 0)
		x.connect(s.certDir, d.addr)
		until(t, "the gap is here", func() bool { return x.ackedTo("live") == 330 })
		x.publish("live", 5)
	}
	acked("live", 335)
	// On demand: nothing comes before it is asked for.
	for _, x := range sites {
		x.setMode("raw", wire.ModeOnDemand)
		x.publish("raw", 50)
	}
	until(t, "the hub knows of raw", func() bool {
		_, body := d.ask("GET", "/api/v1/nodes", "")
		return strings.Count(body, `"on-demand"`) == 3
	})
	settled()
	s.sayNodes()
	for _, x := range sites[:2] {
		d.cli(0, "fetch", x.id, "raw", "--from", "1700000010000", "--to", "1700000020000", "--wait")
	}
	var fs struct{ Fetches []hub.FetchInfo }
	if err := json.Unmarshal([]byte(d.cli(0, "fetch", "--list", "-o", "json")), &fs); err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(fs.Fetches, func(a, b hub.FetchInfo) int { return strings.Compare(a.Node, b.Node) })
	for _, f := range fs.Fetches {
		s.say("fetch %s %s %s-%s: %s wanted %d stored %d lost %d", f.Node, f.Topic, f.From, f.To, f.State, f.Wanted, f.Stored, f.Lost)
	}
	// A bundle from a site without a link.
	x := sites[2]
	x.disconnect()
	x.publish("wind", 10)
	file := filepath.Join(t.TempDir(), "b.trbundle")
	if err := os.WriteFile(file, x.bundle(s.certDir, "wind", 50, 70), 0o600); err != nil {
		t.Fatal(err)
	}
	var br hub.BundleResult
	for range 2 { // the second time everything is there
		if err := json.Unmarshal([]byte(d.cli(0, "import-bundle", file, "-o", "json")), &br); err != nil {
			t.Fatal(err)
		}
		s.say("bundle of %s: complete %v %s stored %d held %d lost %d", br.Node, br.Complete, br.Problem, br.Records, br.Held, br.Lost)
	}
	// A loss.
	x.publish("lossy", 20)
	x.mu.Lock()
	x.gaps = []link.GapProposal{{Topic: "lossy", Epoch: x.Inventory().Epochs[0].ID, Gap: wire.Gap{Ranges: ranges.Of(20, 32), Reason: wire.GapEvicted, Detail: "the disk was full"}}}
	x.mu.Unlock()
	x.connect(s.certDir, d.addr)
	var ls struct {
		Losses []hub.LossRow
		Totals []hub.LossTotalInfo
	}
	until(t, "the loss is in the ledger", func() bool {
		if err := json.Unmarshal([]byte(d.cli(0, "losses", "-o", "json")), &ls); err != nil {
			t.Fatal(err)
		}
		return len(ls.Losses) > 0
	})
	for _, l := range ls.Losses {
		s.say("loss: %s %s/%d [%d,%d) %d %s %s in %s", l.Node, l.Topic, l.Partition, l.From, l.To, l.Records, l.Reason, l.Detail, l.CentralTopic)
	}
	s.say("totals: %+v", ls.Totals)
	until(t, "lossy is acknowledged", func() bool { return x.ackedTo("lossy") >= 20 })
	settled()
	s.sayNodes()

	s.topics()
	s.replays()
	s.tails(sites[0])
	s.writes()
	s.refusals()

	// The account of devices is behind what is stored.
	var ds struct{ Devices []hub.DeviceInfo }
	until(t, "twelve devices are known", func() bool {
		getJSON(t, d.url+"/api/v1/devices", &ds)
		return len(ds.Devices) == 12
	})
	for _, v := range ds.Devices {
		s.say("device %s/%s", v.Node, v.Device)
	}
	for _, page := range []string{"/", "/topics", "/topics/wind", "/losses", "/nodes/n0", "/metrics", "/healthz", "/readyz"} {
		s.say("GET %s: %d", page, d.status(page))
	}
}

func (s *script) topics() {
	var l struct {
		Topics []struct {
			Name           string
			Records        int64
			PartitionCount int    `json:"partition_count"`
			Retention      int64  `json:"retention_seconds"`
			MinTime        string `json:"min_time"`
			MaxTime        string `json:"max_time"`
			Internal       bool
		}
	}
	if err := json.Unmarshal([]byte(s.d.cli(0, "topics", "-o", "json")), &l); err != nil {
		s.t.Fatal(err)
	}
	least := map[string]int64{"wind": 190, "live": 35, "live.backfill": 900, "raw": 20, "lossy": 20}
	for _, t := range l.Topics {
		// Of the cluster the test shares with others there are more.
		if n, ok := least[t.Name]; ok {
			if t.Records < n { // a cluster's offsets count its transactions, too
				s.t.Errorf("topic %s: %d records", t.Name, t.Records)
			}
			s.say("topic %s: %d partitions, kept %d, %s to %s, internal %v", t.Name, t.PartitionCount, t.Retention, t.MinTime, t.MaxTime, t.Internal)
		} else if t.Name == "__tailrace_loss" || t.Name == "__parity_loss" {
			s.say("a loss ledger, internal %v", t.Internal)
		}
	}
	if out := s.d.cli(0, "topics", "wind"); strings.Count(out, "\n") != 5 {
		s.t.Errorf("tailrace topics wind:\n%s", out)
	}
}

func (s *script) replays() {
	replay := func(want int, args ...string) {
		s.t.Helper()
		if n := s.sayRows(strings.Join(args, " "), s.d.cli(0, append([]string{"replay", "-q"}, args...)...)); n != want {
			s.t.Errorf("replay %s: %d records, want %d", strings.Join(args, " "), n, want)
		}
	}
	replay(190, "wind")
	replay(190, "wind") // as often as wanted
	replay(15, "wind", "--from", "1700000010000", "--to", "1700000015000")
	replay(63, "wind", "--device", "wtg-1")
	replay(70, "wind", "--node", "n2")
	replay(7, "wind", "--node", "n1", "--limit", "7")
	replay(105, "live")
	replay(900, "live.backfill")
	replay(20, "raw")
	replay(20, "lossy")
	replay(0, "lossy", "--from", "2100-01-01T00:00:00Z")
	csv := strings.Split(strings.TrimSpace(s.d.cli(0, "replay", "-q", "lossy", "--format", "csv")), "\n")
	s.say("csv: %s, %d lines", csv[0], len(csv))
	// By offset: each partition in pieces is the partition.
	var t struct {
		Partitions []struct {
			Partition     int
			Start         int64
			HighWatermark int64 `json:"high_watermark"`
		}
	}
	if err := json.Unmarshal([]byte(s.d.cli(0, "topics", "wind", "-o", "json")), &t); err != nil {
		s.t.Fatal(err)
	}
	var pieces strings.Builder
	for _, p := range t.Partitions {
		mid := (p.Start + p.HighWatermark) / 2
		for _, r := range [][2]int64{{p.Start, mid}, {mid, p.HighWatermark}} {
			pieces.WriteString(s.d.cli(0, "replay", "-q", "wind", "--partition", fmt.Sprint(p.Partition), "--from-offset", fmt.Sprint(r[0]), "--to-offset", fmt.Sprint(r[1])))
		}
	}
	if n := s.sayRows("in pieces", pieces.String()); n != 190 {
		s.t.Errorf("in pieces: %d records", n)
	}
	for _, f := range []string{"raw", "csv"} {
		code, body := s.d.ask("GET", "/api/v1/topics/lossy/records?limit=0&format="+f, "")
		s.say("format %s: %d, %d lines", f, code, strings.Count(body, "\n"))
	}
}

func (s *script) tails(x *site) {
	n := s.sayRows("tail of what is there", s.d.cli(0, "tail", "lossy", "--last", "1000", "--limit", "20", "-o", "json"))
	if n != 20 {
		s.t.Errorf("a tail from the beginning: %d", n)
	}
	out := make(chan string, 1)
	go func() { out <- s.d.cli(0, "tail", "wind", "--node", "n0", "--limit", "3", "-o", "json") }()
	until(s.t, "the tail has what is new", func() bool {
		select {
		case got := <-out:
			if s.sayRows("live", "") != 0 || strings.Count(got, "\n") != 3 || !strings.Contains(got, `"node":"n0"`) {
				s.t.Errorf("a live tail:\n%s", got)
			}
			return true
		default: // it may not be there yet
			x.publish("wind", 1)
			return false
		}
	})
}

func (s *script) writes() {
	code, body := s.d.ask("POST", "/api/v1/topics/notes/records", `{"records":[{"key":"a","value":{"text":"one"}},{"key":"a","value":"two","headers":{"h":"1"}},{"key":"b","value":3,"timestamp":1700000000123}]}`)
	s.say("POST: %d, %d places", code, strings.Count(body, `"offset"`))
	var p struct {
		Records []struct {
			Partition int
			Offset    int64
		}
	}
	if err := json.Unmarshal([]byte(body), &p); err != nil || len(p.Records) != 3 {
		s.t.Fatalf("POST: %d %s", code, body)
	}
	read := func() string { return s.d.cli(0, "replay", "-q", "notes") }
	until(s.t, "what was posted is there", func() bool { return strings.Count(read(), "\n") == 3 })
	for line := range strings.Lines(read()) {
		var r struct {
			Partition int
			Offset    int64
			Key       string
			Value     json.RawMessage
			Headers   json.RawMessage
		}
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			s.t.Fatal(err)
		}
		said := slices.IndexFunc(p.Records, func(x struct {
			Partition int
			Offset    int64
		}) bool {
			return x.Partition == r.Partition && x.Offset == r.Offset
		})
		s.say("posted %d: partition %d key %s %s %s", said, r.Partition, r.Key, r.Value, r.Headers)
	}
	code, _ = s.d.ask("POST", "/api/v1/topics/notes/records", `{"records":[{"value":1,"partition":1},{"value":2,"partition":17}]}`)
	s.say("one record that cannot be: %d", code)
	if n := strings.Count(read(), "\n"); n != 3 {
		s.t.Errorf("after a POST that was refused there are %d records", n)
	}
}

func (s *script) refusals() {
	for _, q := range []string{
		"GET /api/v1/topics/none", "GET /api/v1/topics/none/records", "GET /api/v1/topics/none/tail", "GET /api/v1/topics/wind/records?partition=9",
		"GET /api/v1/topics/wind/records?from=3", "GET /api/v1/topics/wind/records?partition=0&from=999999", "GET /api/v1/topics/wind/records?from_time=yesterday",
		"GET /api/v1/topics/wind/records?form=csv", "GET /api/v1/topics/wind/records?format=xml", "GET /api/v1/topics/wind/tail?to=4",
		"POST /api/v1/topics/__x/records", "POST /api/v1/topics/bad%20name/records", "GET /api/v1/nodes/none", "POST /api/v1/bundles", "DELETE /api/v1/fetches/none", "GET /api/v1/none",
	} {
		method, path, _ := strings.Cut(q, " ")
		body := ""
		if method == "POST" {
			body = `{"records":[{"value":1}]}`
		}
		code, text := s.d.ask(method, path, body)
		var e struct {
			Error struct{ Code, Message string }
		}
		if err := json.Unmarshal([]byte(text), &e); err != nil {
			s.t.Errorf("%s: %d %s", q, code, text)
		}
		s.say("%s: %d %s", q, code, e.Error.Code)
	}
	for _, f := range []string{`{"node":"n0","topic":"wind","from":"1","to":"2"}`, `{"node":"n0","topic":"none","from":"1"}`, `{"node":"n0","topic":"raw","from":"9","to":"2"}`, `{}`, `[`} {
		code, _ := s.d.ask("POST", "/api/v1/fetches", f)
		s.say("fetch %s: %d", f, code)
	}
}
