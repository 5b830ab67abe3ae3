package hub_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"

	"tailrace/uplink/bundle"
	"tailrace/uplink/hub"
	"tailrace/uplink/link"
	"tailrace/uplink/ranges"
	"tailrace/uplink/wire"
)

// bundle exports offsets [from, to) of a topic.
func (s *site) bundle(certDir, topic string, from, to int64) []byte {
	s.t.Helper()
	pair, err := tls.LoadX509KeyPair(certDir+"/"+s.id+".crt", certDir+"/"+s.id+".key")
	if err != nil {
		s.t.Fatal(err)
	}
	var buf bytes.Buffer
	if _, err := bundle.Write(context.Background(), &buf, s, bundle.Options{Node: s.id, Rand: rand.Reader,
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
	pair, err := tls.LoadX509KeyPair(certDir+"/"+c.id+".crt", certDir+"/"+c.id+".key")
	if err != nil {
		c.t.Fatal(err)
	}
	var buf bytes.Buffer
	if _, err := bundle.Write(context.Background(), &buf, c, bundle.Options{Node: c.id, Rand: rand.Reader,
		Identity: bundle.Identity{Certs: pair.Certificate, Key: pair.PrivateKey},
		Select:   func(wire.PartitionInfo) (int64, int64) { return from, to }}); err != nil {
		c.t.Fatal(err)
	}
	return buf.Bytes()
}
