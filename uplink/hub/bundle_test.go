package hub_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"tailrace/uplink"
	"tailrace/uplink/bundle"
	"tailrace/uplink/hub"
	"tailrace/uplink/link"
	"tailrace/uplink/ranges"
	"tailrace/uplink/wire"
)

// bundle exports offsets [from, to) of a topic.
func (s *site) bundle(certDir, topic string, from, to int64) []byte {
	s.t.Helper()
	return s.bundleOf(s, certDir, topic, from, to)
}

// bundleOf is a bundle of src, signed by the site.
func (s *site) bundleOf(src link.Source, certDir, topic string, from, to int64) []byte {
	s.t.Helper()
	pair, err := tls.LoadX509KeyPair(certDir+"/"+s.id+".crt", certDir+"/"+s.id+".key")
	if err != nil {
		s.t.Fatal(err)
	}
	var buf bytes.Buffer
	if _, err := bundle.Write(context.Background(), &buf, src, bundle.Options{Node: s.id, Rand: rand.Reader,
		Identity: bundle.Identity{Certs: pair.Certificate, Key: pair.PrivateKey},
		Select: func(p wire.PartitionInfo) (int64, int64) {
			if p.Topic != topic {
				return 0, 0
			}
			return from, to
		}}); err != nil {
		s.t.Fatal(err)
	}
	return buf.Bytes()
}

func postBundle(t *testing.T, url string, b []byte) (res hub.BundleResult, status int, text string) {
	t.Helper()
	resp, err := http.Post(url+"/api/v1/bundles", "application/octet-stream", bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode == 200 {
		if err := json.Unmarshal(body, &res); err != nil {
			t.Fatal(err)
		}
	}
	return res, resp.StatusCode, string(body)
}

// offsets are the origin offsets of a topic's records, in the order of the hub.
func offsets(t *testing.T, url, topic string) []int64 {
	var out []int64
	for _, r := range records(t, url+"/api/v1/topics/"+topic+"/records?limit=0") {
		out = append(out, r.Origin.Offset)
	}
	return out
}

func wantOffsets(t *testing.T, url, topic string, n int64) {
	t.Helper()
	got := offsets(t, url, topic)
	if int64(len(got)) != n {
		t.Fatalf("%d records at the hub, want %d: %v", len(got), n, got)
	}
	for i, off := range got {
		if off != int64(i) {
			t.Fatalf("record %d of the hub has offset %d at the node", i, off)
		}
	}
}

// A site that never had a link: its records come in three bundles, the second again and
// cut off first, then the link takes over, and each record is there once and in order.
func TestBundlesAndTheLinkStoreEachRecordOnce(t *testing.T) {
	dir := certs(t, "node-1")
	h, url, _ := startHub(t, hubConfig(t, dir))
	s := newSite(t, dir, "node-1", "127.0.0.1:9") // nobody is there
	s.disconnect()
	s.publish("wind", 300)

	if res, code, text := postBundle(t, url, s.bundle(dir, "wind", 0, 100)); code != 200 || !res.Complete || res.Records != 100 || res.Held != 0 {
		t.Fatalf("first bundle: %d %s", code, text)
	}
	if res, _, text := postBundle(t, url, s.bundle(dir, "wind", 200, 300)); res.Complete || res.Records != 0 || !strings.Contains(text, "the hub holds it to offset 100, the bundle goes on at 200") {
		t.Fatalf("a bundle behind a hole: %s", text)
	}
	second := s.bundle(dir, "wind", 50, 250)
	if res, _, text := postBundle(t, url, second[:len(second)-10]); res.Complete || !strings.Contains(res.Problem, "cut off") || res.Records != 150 {
		t.Fatalf("a bundle that lost its last bytes: %s", text)
	}
	if res, _, text := postBundle(t, url, second); !res.Complete || res.Records != 0 || res.Held != 200 {
		t.Fatalf("the same again, whole: %s", text)
	}
	wantOffsets(t, url, "wind", 250)

	nodes, _, _ := h.Addrs()
	s.connect(dir, nodes)
	until(t, "the hub has everything", func() bool { return s.ackedTo("wind") == 300 })
	wantOffsets(t, url, "wind", 300)
	// What a bundle brings of a connected node it acknowledges, too.
	s.publish("wind", 10)
	if res, code, text := postBundle(t, url, s.bundle(dir, "wind", 0, 310)); code != 200 || !res.Complete {
		t.Fatalf("beside the link: %d %s", code, text)
	}
	until(t, "the hub has acknowledged everything", func() bool { return s.ackedTo("wind") == 310 })
	wantOffsets(t, url, "wind", 310)
}

func TestBundleDeclaresWhatTheNodeLost(t *testing.T) {
	dir := certs(t, "node-1")
	_, url, _ := startHub(t, hubConfig(t, dir))
	s := newSite(t, dir, "node-1", "127.0.0.1:9")
	s.disconnect()
	s.publish("wind", 20)
	topic, _ := s.store.Topic("wind")
	if err := topic.Partition(0).SetStart(12); err != nil {
		t.Fatal(err)
	}
	s.gaps = []link.GapProposal{{Topic: "wind", Epoch: s.Inventory().Epochs[0].ID, Gap: wire.Gap{Ranges: ranges.Of(0, 12), Reason: wire.GapEvicted}}}
	res, _, text := postBundle(t, url, s.bundle(dir, "wind", 0, 20))
	if !res.Complete || res.Records != 8 || res.Lost != 12 {
		t.Fatal(text)
	}
	var losses struct{ Losses []hub.LossRow }
	getJSON(t, url+"/api/v1/losses", &losses)
	if len(losses.Losses) != 1 || losses.Losses[0].To != 12 || losses.Losses[0].Reason != "evicted" {
		t.Errorf("ledger: %+v", losses.Losses)
	}
	if res, _, text := postBundle(t, url, s.bundle(dir, "wind", 0, 20)); !res.Complete || res.Records+res.Lost != 0 {
		t.Errorf("again: %s", text)
	}
}

// Another log under the node's name: nothing of it is taken.
func TestBundleOfAnotherLogIsRefused(t *testing.T) {
	dir := certs(t, "node-1", "node-2")
	_, url, _ := startHub(t, hubConfig(t, dir))
	s := newSite(t, dir, "node-1", "127.0.0.1:9")
	s.disconnect()
	s.publish("wind", 20)
	if res, _, text := postBundle(t, url, s.bundle(dir, "wind", 0, 20)); !res.Complete {
		t.Fatal(text)
	}
	clone := newSite(t, dir, "node-1", "127.0.0.1:9")
	clone.disconnect()
	clone.publish("wind", 40)
	if _, code, text := postBundle(t, url, clone.bundle(dir, "wind", 20, 40)); code != 409 || !strings.Contains(text, "fenced") {
		t.Errorf("an epoch that has nothing in common: %d %s", code, text)
	}
	// The same epoch, but other bytes where the hub's last batch is.
	forged := &sameEpoch{site: clone, as: s}
	if _, code, text := postBundle(t, url, forged.bundle(dir, 20, 40)); code != 409 || !strings.Contains(text, "differ in wind/0 at offset 19") {
		t.Errorf("a clone that went on by itself: %d %s", code, text)
	}
	if res, _, text := postBundle(t, url, forged.bundle(dir, 10, 40)); res.Complete || !strings.Contains(text, "differ at offset 19") {
		t.Errorf("a clone whose bundle covers the difference: %s", text)
	}
	wantOffsets(t, url, "wind", 20)
	if _, code, text := postBundle(t, url, []byte("PK\x03\x04 something else")); code != 400 || !strings.Contains(text, "no bundle") {
		t.Errorf("something else: %d %s", code, text)
	}
}

// sameEpoch is a log that names the epoch of another one.
type sameEpoch struct {
	*site
	as *site
}

func (c *sameEpoch) Inventory() wire.Inventory {
	inv := c.site.Inventory()
	inv.Epochs = c.as.Inventory().Epochs
	return inv
}

func (c *sameEpoch) bundle(certDir string, from, to int64) []byte {
	return c.bundleOf(c, certDir, "wind", from, to)
}

// changed is a site's log with another inventory.
type changed struct {
	*site
	by func(inv *wire.Inventory)
}

func (c changed) Inventory() wire.Inventory {
	inv := c.site.Inventory()
	c.by(&inv)
	return inv
}

func withMode(s *site, m wire.Mode) changed {
	return changed{s, func(inv *wire.Inventory) {
		for i := range inv.Partitions {
			inv.Partitions[i].Mode = m
		}
	}}
}

// hello is a session of src that says nothing more; send stores what it would send.
func (s *site) hello(l link.Sink, src link.Source, boot byte) {
	s.t.Helper()
	if _, err := l.Hello(context.Background(), s.id, wire.Hello{Node: s.id, Boot: wire.ID{boot}, Sequence: 1, Inventory: src.Inventory()}); err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) send(l link.Sink, topic string, from, to int64, backfill bool) error {
	s.t.Helper()
	o := wire.Origin{Node: s.id, Epoch: s.Inventory().Epochs[0].ID, Topic: topic, Backfill: backfill}
	for from < to {
		b, next, err := s.Read(nil, topic, 0, from, 1) // the sites here store each record alone
		if err != nil {
			s.t.Fatal(err)
		}
		done := make(chan error, 1)
		l.Append(context.Background(), o, b, func(_ uplink.RangeSet, err error) { done <- err })
		if err := <-done; err != nil {
			return err
		}
		from = next
	}
	return nil
}

// The rules for nodes hold for their bundles.
func TestBundleIsHeldToTheRulesForNodes(t *testing.T) {
	dir := certs(t, "node-1", "stranger")
	c := hubConfig(t, dir)
	c.Nodes = []string{"node-*"}
	c.NodeRules = []hub.NodeRule{{Match: "node-*", Topics: []string{"sun"}}}
	_, url, _ := startHub(t, c)
	s := newSite(t, dir, "node-1", "127.0.0.1:9")
	s.disconnect()
	s.publish("wind", 20)
	s.publish("sun", 10)
	res, code, text := postBundle(t, url, s.bundle(dir, "wind", 0, 20))
	if code != 200 || res.Complete || res.Records != 0 || !strings.Contains(text, "node_rules does not allow this node the topic") {
		t.Errorf("a topic that the node may not write: %d %s", code, text)
	}
	if code := getJSON(t, url+"/api/v1/topics/wind", nil); code != 404 {
		t.Errorf("the topic exists: %d", code)
	}
	if res, _, text := postBundle(t, url, s.bundle(dir, "sun", 0, 10)); !res.Complete || res.Records != 10 {
		t.Errorf("a topic that it may: %s", text)
	}
	x := newSite(t, dir, "stranger", "127.0.0.1:9")
	x.disconnect()
	x.publish("sun", 10)
	if _, code, text := postBundle(t, url, x.bundle(dir, "sun", 0, 10)); code != 403 || !strings.Contains(text, "not among nodes:") {
		t.Errorf("a node that may not connect: %d %s", code, text)
	}
	wantOffsets(t, url, "sun", 10)
}

// The gap of a live-first topic goes to the companion, in order: a piece from its middle would
// hide what lies before it, and is refused.
func TestBundleOfALiveFirstTopicFillsItsGapInOrder(t *testing.T) {
	dir := certs(t, "node-1")
	c := hubConfig(t, dir)
	h, url, stop := startHub(t, c)
	s := newSite(t, dir, "node-1", "127.0.0.1:9")
	s.disconnect()
	s.publish("wind", 80)
	live := withMode(s, wire.ModeLiveFirst)
	l := hub.SinkOf(h)
	s.hello(l, live, 1)
	if err := s.send(l, "wind", 60, 70, false); err != nil {
		t.Fatal(err)
	}
	bundle := func(from, to int64) []byte { return s.bundleOf(live, dir, "wind", from, to) }
	if res, _, text := postBundle(t, url, bundle(20, 40)); res.Complete || res.Records != 0 || !strings.Contains(text, "the hub holds it to offset 0, the bundle goes on at 20") {
		t.Errorf("the middle of the gap: %s", text)
	}
	if res, _, text := postBundle(t, url, bundle(75, 80)); res.Complete || res.Records != 0 || !strings.Contains(text, "the hub holds it to offset 0, the bundle goes on at 75") {
		t.Errorf("what lies above a gap: %s", text)
	}
	if res, _, text := postBundle(t, url, bundle(0, 30)); !res.Complete || res.Records != 30 {
		t.Errorf("its beginning: %s", text)
	}
	// Something else had failed, in a session that is over.
	hub.SetInOrder(hub.CentralOf(h), "node-1", "wind")
	if err := s.send(l, "wind", 78, 79, false); err == nil {
		t.Fatal("a hole in order was stored")
	}
	if res, _, text := postBundle(t, url, bundle(10, 50)); !res.Complete || res.Records != 20 || res.Held != 20 {
		t.Errorf("more of it, after a failure: %s", text)
	}
	stop()
	_, url, _ = startHub(t, c) // which remembers the node's modes
	if res, _, text := postBundle(t, url, s.bundle(dir, "wind", 50, 80)); !res.Complete || res.Records != 20 || res.Held != 10 {
		t.Errorf("the rest, to a hub that was restarted: %s", text)
	}
	var want []int64
	for off := int64(60); off < 80; off++ {
		want = append(want, off)
	}
	if got := offsets(t, url, "wind"); !slices.Equal(got, want) {
		t.Errorf("topic: %v", got)
	}
	wantOffsets(t, url, "wind.backfill", 60)
}

// A topic on demand comes in any pieces, whatever an older bundle says of its mode.
func TestBundleComesAsTheNodeLastSaid(t *testing.T) {
	dir := certs(t, "node-1")
	h, url, _ := startHub(t, hubConfig(t, dir))
	s := newSite(t, dir, "node-1", "127.0.0.1:9")
	s.disconnect()
	s.publish("wind", 40)
	demand := withMode(s, wire.ModeOnDemand)
	s.hello(hub.SinkOf(h), demand, 1)
	if res, _, text := postBundle(t, url, s.bundle(dir, "wind", 20, 40)); !res.Complete || res.Records != 20 {
		t.Errorf("a piece of a topic on demand: %s", text)
	}
	s.hello(hub.SinkOf(h), s, 2)
	s.publish("wind", 20)
	if res, _, text := postBundle(t, url, s.bundleOf(demand, dir, "wind", 50, 60)); res.Complete || !strings.Contains(text, "goes on at 50") {
		t.Errorf("a piece of a topic that is in order now: %s", text)
	}
}

// An epoch that comes in a bundle first closes the one before, as it does by the link.
func TestBundleWithANewEpochDeclaresTheLostTail(t *testing.T) {
	dir := certs(t, "node-1")
	h, url, _ := startHub(t, hubConfig(t, dir))
	s := newSite(t, dir, "node-1", "127.0.0.1:9")
	s.disconnect()
	s.publish("wind", 60)
	l := hub.SinkOf(h)
	s.hello(l, changed{s, func(inv *wire.Inventory) { inv.Partitions[0].Next = 80 }}, 1) // before the power cut
	if err := s.send(l, "wind", 0, 40, false); err != nil {
		t.Fatal(err)
	}
	after := changed{s, func(inv *wire.Inventory) {
		inv.Epochs = append(inv.Epochs, wire.EpochInfo{ID: wire.ID{9}, Parent: inv.Epochs[0].ID, Number: 2, Forks: []wire.ForkPoint{{Topic: "wind", Offset: 60}}})
	}}
	l.Connected("node-1", link.SessionInfo{})
	b := s.bundleOf(after, dir, "wind", 30, 60)
	if _, code, text := postBundle(t, url, b); code != 409 || !strings.Contains(text, "newer than that of the machine connected now") {
		t.Errorf("while the former log is connected: %d %s", code, text)
	}
	l.Disconnected("node-1", link.SessionInfo{}, nil)
	if res, _, text := postBundle(t, url, b); !res.Complete || res.Records != 20 {
		t.Fatal(text)
	}
	var losses struct{ Losses []hub.LossRow }
	getJSON(t, url+"/api/v1/losses", &losses)
	if len(losses.Losses) != 1 || losses.Losses[0].From != 60 || losses.Losses[0].To != 80 {
		t.Errorf("ledger: %+v", losses.Losses)
	}
}

// Batches of one log begin at the same offsets: one that covers where the hub's last one
// begins is of another log.
func TestBundleWithOtherEdgesIsAnotherLog(t *testing.T) {
	dir := certs(t, "node-1")
	h, url, _ := startHub(t, hubConfig(t, dir))
	s := newSite(t, dir, "node-1", "127.0.0.1:9")
	s.disconnect()
	s.publish("wind", 20)
	l := hub.SinkOf(h)
	s.hello(l, s, 1)
	o := wire.Origin{Node: "node-1", Epoch: s.Inventory().Epochs[0].ID, Topic: "wind"}
	put(t, l, o, 0, 15)
	put(t, l, o, 15, 20)
	clone := newSite(t, dir, "node-1", "127.0.0.1:9")
	clone.disconnect()
	p := clone.topic("wind")
	a := clone.store.NewAppend("")
	for off := range int64(30) {
		if err := a.Record(p, 1_700_000_000_000+off*1000, nil, []byte("other"), nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := clone.store.Commit(context.Background(), a); err != nil {
		t.Fatal(err)
	}
	forged := &sameEpoch{site: clone, as: s}
	if res, _, text := postBundle(t, url, forged.bundle(dir, 10, 30)); res.Complete || res.Records != 0 || !strings.Contains(text, "differ at offset 15") {
		t.Errorf("%s", text)
	}
	wantOffsets(t, url, "wind", 20)
}

// A bundle that stands still does not keep others out for ever.
func TestBundleThatStandsStillIsGivenUp(t *testing.T) {
	h := newHub(t, nil)
	w := &deadlined{ResponseRecorder: httptest.NewRecorder()}
	h.Handler().ServeHTTP(w, httptest.NewRequest("POST", "http://127.0.0.1/api/v1/bundles", strings.NewReader("no bundle")))
	if w.Code != 400 || len(w.set) < 2 || time.Until(w.set[0]) > 2*time.Minute || w.set[0].IsZero() || !w.set[len(w.set)-1].IsZero() {
		t.Errorf("%d, read deadlines %v", w.Code, w.set)
	}
}

type deadlined struct {
	*httptest.ResponseRecorder
	set []time.Time
}

func (d *deadlined) SetReadDeadline(t time.Time) error {
	d.set = append(d.set, t)
	return nil
}
