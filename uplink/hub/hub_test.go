package hub_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"tailrace/storage"
	"tailrace/uplink"
	"tailrace/uplink/hub"
	"tailrace/uplink/link"
	"tailrace/uplink/pki"
	"tailrace/uplink/wire"
)

// certs writes a CA, a hub's certificate and those of nodes.
func certs(t *testing.T, nodes ...string) string {
	t.Helper()
	dir := t.TempDir()
	now := time.Now()
	ca, pair, err := pki.NewCA(rand.Reader, "test", now, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	save := func(name string, p pki.Pair) {
		for ext, b := range map[string][]byte{".crt": p.Cert, ".key": p.Key} {
			if err := os.WriteFile(filepath.Join(dir, name+ext), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	save("ca", pair)
	issue := func(role pki.Role, name string) {
		p, err := ca.Issue(rand.Reader, role, name, []string{"localhost", "127.0.0.1"}, now, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		save(name, p)
	}
	issue(pki.RoleHub, "hub")
	for _, n := range nodes {
		issue(pki.RoleNode, n)
	}
	return dir
}

func hubConfig(t *testing.T, certDir string) hub.Config {
	return hub.Config{
		DataDir: filepath.Join(t.TempDir(), "hub"), Listen: "127.0.0.1:0",
		TLS:    hub.TLSConfig{Cert: certDir + "/hub.crt", Key: certDir + "/hub.key", CA: certDir + "/ca.crt"},
		HTTP:   hub.HTTPConfig{Listen: "127.0.0.1:0"},
		Kafka:  hub.KafkaConfig{Listen: "127.0.0.1:0"},
		Logger: slog.New(slog.NewTextHandler(testLog{t}, &slog.HandlerOptions{Level: slog.LevelWarn})),
	}
}

type testLog struct{ t *testing.T }

func (l testLog) Write(b []byte) (int, error) {
	l.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

// startHub runs a hub until the test ends or stop is called.
func startHub(t *testing.T, c hub.Config) (h *hub.Hub, url string, stop func()) {
	t.Helper()
	h, err := hub.New(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- h.Run(ctx) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			select {
			case err := <-done:
				if err != nil {
					t.Error("hub:", err)
				}
			case <-time.After(20 * time.Second):
				t.Error("the hub does not stop")
			}
		})
	}
	t.Cleanup(stop)
	_, addr, _ := h.Addrs()
	return h, "http://" + addr, stop
}

// until looks again and again whether ok holds.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(30 * time.Second); !ok(); <-tick.C {
		if time.Now().After(end) {
			t.Fatalf("not within 30 s: %s", what)
		}
	}
}

func getJSON(t *testing.T, url string, into any) int {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if into != nil {
		if err := json.Unmarshal(b, into); err != nil {
			t.Fatalf("%s: %v in %q", url, err, b)
		}
	}
	return resp.StatusCode
}

// site is a node: a store, and the link to the hub.
type site struct {
	t      *testing.T
	id     string
	store  *storage.Store
	change chan struct{}
	client *link.Client
	cancel context.CancelFunc
	done   chan struct{}

	mu    sync.Mutex
	acked map[string]uplink.RangeSet
	gaps  []link.GapProposal
	modes sync.Map // topic to wire.Mode, of topics that do not come in order
}

func newSite(t *testing.T, certDir, id string, hubs ...string) *site {
	t.Helper()
	s := &site{t: t, id: id, change: make(chan struct{}, 1), acked: map[string]uplink.RangeSet{}, done: make(chan struct{})}
	var err error
	if s.store, err = storage.Open(storage.Config{Dir: filepath.Join(t.TempDir(), id), NodeID: id, OriginHeaders: true,
		Classes: []storage.ClassConfig{{Name: "data"}}}); err != nil {
		t.Fatal(err)
	}
	s.store.Subscribe(s.change)
	t.Cleanup(func() { s.disconnect(); s.store.Close() })
	s.connect(certDir, hubs...)
	return s
}

func (s *site) connect(certDir string, hubs ...string) {
	s.t.Helper()
	cert, err := tls.LoadX509KeyPair(certDir+"/"+s.id+".crt", certDir+"/"+s.id+".key")
	if err != nil {
		s.t.Fatal(err)
	}
	pem, err := os.ReadFile(certDir + "/ca.crt")
	if err != nil {
		s.t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	s.client, err = link.NewClient(link.ClientConfig{NodeID: s.id, Hubs: hubs, Source: s, Software: "test node",
		TLS: &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: pool}, BackoffMin: 20 * time.Millisecond, BackoffMax: 50 * time.Millisecond,
		StatusInterval: 100 * time.Millisecond,
		Status:         func() wire.Status { return wire.Status{Devices: 3, DiskBytes: 1 << 20} }})
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.cancel, s.done = cancel, make(chan struct{})
	go func() { defer close(s.done); s.client.Run(ctx) }()
}

func (s *site) disconnect() {
	if s.cancel != nil {
		s.cancel()
		<-s.done
	}
}

// topic is the partition of a topic, which is made when it is not there.
func (s *site) topic(topic string) *storage.Partition {
	s.t.Helper()
	t, ok := s.store.Topic(topic)
	if !ok {
		var err error
		if t, err = s.store.CreateTopic(topic, storage.TopicConfig{Partitions: 1}); err != nil {
			s.t.Fatal(err)
		}
	}
	return t.Partition(0)
}

func (s *site) publish(topic string, n int) {
	s.t.Helper()
	p := s.topic(topic)
	for range n {
		a := s.store.NewAppend("")
		off := p.Next()
		if err := a.Record(p, 1_700_000_000_000+off*1000, []byte(fmt.Sprint("wtg-", off%3)), []byte(fmt.Sprintf(`{"n":%d,"power_kw":%d}`, off, off%7*100)), nil); err != nil {
			s.t.Fatal(err)
		}
		if err := s.store.Commit(context.Background(), a); err != nil {
			s.t.Fatal(err)
		}
	}
}

func (s *site) Inventory() wire.Inventory {
	id := s.store.Identity()
	inv := wire.Inventory{Epochs: []wire.EpochInfo{{ID: wire.ID(id.Epoch.ID), Parent: wire.ID(id.Epoch.Parent), Number: id.Epoch.Number}}}
	for _, t := range s.store.Topics() {
		for _, p := range t.Partitions() {
			m, _ := s.modes.Load(t.Name())
			mode, _ := m.(wire.Mode)
			inv.Partitions = append(inv.Partitions, wire.PartitionInfo{ID: uint32(p.ID()), Topic: t.Name(), Partition: p.Index(), Start: p.Start(), Next: p.HighWatermark(), Bytes: p.Bytes(), Mode: mode})
		}
	}
	return inv
}

func (s *site) Generation() uint64 { return uint64(len(s.store.Topics())) }

func (s *site) Bounds(topic string, partition int) (int64, int64) {
	t, _ := s.store.Topic(topic)
	p := t.Partition(partition)
	return p.Start(), p.HighWatermark()
}

func (s *site) Read(dst []byte, topic string, partition int, from int64, maxBytes int) ([]byte, int64, error) {
	t, _ := s.store.Topic(topic)
	p := t.Partition(partition)
	if from < p.Start() {
		return dst, from, link.ErrGone
	}
	return p.Read(dst, from, maxBytes)
}

func (s *site) Changed() <-chan struct{} { return s.change }

func (s *site) Acked(topic string, partition int, epoch wire.ID, held uplink.RangeSet) {
	s.mu.Lock()
	defer s.mu.Unlock()
	set := s.acked[topic].Clone()
	set.AddSet(held)
	s.acked[topic] = set
}

func (s *site) Gaps() []link.GapProposal {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.gaps
}

func (s *site) ackedTo(topic string) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.acked[topic].End()
}

// apiRecord is a record as the API writes it.
type apiRecord struct {
	Topic     string
	Partition int
	Offset    int64
	Key       string
	Value     json.RawMessage
	Origin    struct {
		Node, Epoch string
		Offset      int64
	}
}

func records(t *testing.T, url string) []apiRecord {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != 200 {
		t.Fatalf("%s: %s %v %s", url, resp.Status, err, b)
	}
	var out []apiRecord
	for line := range bytes.Lines(b) {
		var r apiRecord
		if err := json.Unmarshal(line, &r); err != nil {
			t.Fatalf("%v in %q", err, line)
		}
		out = append(out, r)
	}
	return out
}

// TestNodesReplicateThroughCutsAndHubRestarts is the way of a record from a
// node's log to a consumer, over real UDP, with the node's link and the hub
// going away in between: everything once, in order, with its position.
func TestNodesReplicateThroughCutsAndHubRestarts(t *testing.T) {
	dir := certs(t, "site-1", "site-2")
	c := hubConfig(t, dir)
	h, url, stop := startHub(t, c)
	addr, _, _ := h.Addrs()
	c.Listen = addr // the same after the restart
	a, b := newSite(t, dir, "site-1", addr), newSite(t, dir, "site-2", addr)
	a.publish("wind", 40)
	b.publish("wind", 30)
	until(t, "first records acked", func() bool { return a.ackedTo("wind") == 40 && b.ackedTo("wind") == 30 })

	a.disconnect()
	a.publish("wind", 25) // stored and forwarded later
	until(t, "site-1 is dark", func() bool {
		var n hub.NodeInfo
		getJSON(t, url+"/api/v1/nodes/site-1", &n)
		return n.Dark && n.State == "dark"
	})
	a.connect(dir, addr)
	until(t, "backlog acked", func() bool { return a.ackedTo("wind") == 65 })

	stop()
	b.publish("wind", 20)
	h, url, _ = startHub(t, c)
	until(t, "acked by the restarted hub", func() bool { return b.ackedTo("wind") == 50 })
	a.publish("wind", 5)
	until(t, "site-1 is back, too", func() bool { return a.ackedTo("wind") == 70 })

	next := map[string]int64{}
	place := map[string]int{}
	for _, r := range records(t, url+"/api/v1/topics/wind/records?limit=0") {
		n := r.Origin.Node
		if r.Origin.Offset != next[n] {
			t.Fatalf("%s: position %d where %d was due", n, r.Origin.Offset, next[n])
		}
		if want := fmt.Sprintf(`{"n":%d,"power_kw":%d}`, next[n], next[n]%7*100); string(r.Value) != want {
			t.Fatalf("%s %d: value %s", n, next[n], r.Value)
		}
		if len(r.Origin.Epoch) != 32 {
			t.Fatalf("epoch %q", r.Origin.Epoch)
		}
		next[n]++
		place[n] = r.Partition
	}
	if next["site-1"] != 70 || next["site-2"] != 50 {
		t.Fatalf("%v records, want 70 of site-1 and 50 of site-2", next)
	}
	if place["site-1"] == place["site-2"] {
		t.Error("two nodes share a partition though four are free")
	}
	until(t, "lag is 0 and both are complete", func() bool {
		var list struct{ Nodes []hub.NodeInfo }
		getJSON(t, url+"/api/v1/nodes", &list)
		return len(list.Nodes) == 2 && list.Nodes[0].LagRecords == 0 && list.Nodes[0].State == "connected" && list.Nodes[0].Topics[0].CompleteTo == 70 &&
			list.Nodes[0].Stored == 70 && list.Nodes[1].Topics[0].CompleteTo == 50 && list.Nodes[0].Status != nil && list.Nodes[0].Status.Devices == 3
	})
	until(t, "the device account has seen the newest records", func() bool {
		var list struct{ Devices []hub.DeviceInfo }
		getJSON(t, url+"/api/v1/devices", &list)
		return len(list.Devices) >= 3 && list.Devices[0].Node == "site-1" && list.Devices[0].Device == "wtg-0" && list.Devices[0].Records > 0
	})
	var body bytes.Buffer
	h.WriteMetrics(&body)
	for _, want := range []string{`tailrace_node_connected{node="site-1"} 1`, `tailrace_lag_records{node="site-2",topic="wind"} 0`, `tailrace_topic_durable_offset{topic="wind"} 120`} {
		if !strings.Contains(body.String(), want+"\n") {
			t.Errorf("metrics lack %s", want)
		}
	}
}

// TestRestoredNodeDiskIsFenced: a node whose log is an older state of itself,
// or another log altogether while the first is in use, gets nothing stored.
func TestRestoredNodeDiskIsFenced(t *testing.T) {
	dir := certs(t, "site-1")
	h, url, _ := startHub(t, hubConfig(t, dir))
	addr, _, _ := h.Addrs()
	a := newSite(t, dir, "site-1", addr)
	a.publish("wind", 10)
	until(t, "acked", func() bool { return a.ackedTo("wind") == 10 })

	twin := newSite(t, dir, "site-1", addr) // a second machine with the same certificate
	twin.publish("wind", 3)
	until(t, "the twin is fenced", func() bool {
		var n hub.NodeInfo
		getJSON(t, url+"/api/v1/nodes/site-1", &n)
		return strings.Contains(n.Fenced, "two machines") || strings.Contains(twin.client.State().LastError, "two machines")
	})
	if twin.ackedTo("wind") != 0 {
		t.Fatal("records of a second machine were taken")
	}
	twin.disconnect()
	until(t, "the first machine goes on", func() bool { return a.client.State().Connected })
	a.publish("wind", 1)
	until(t, "acked", func() bool { return a.ackedTo("wind") == 11 })
	if n := len(records(t, url+"/api/v1/topics/wind/records?limit=0")); n != 11 {
		t.Fatalf("%d records, want 11", n)
	}
}

func TestNodeNotInTheListIsRefused(t *testing.T) {
	dir := certs(t, "site-1", "stranger")
	c := hubConfig(t, dir)
	c.Nodes = []string{"site-*"}
	h, _, _ := startHub(t, c)
	addr, _, _ := h.Addrs()
	s := newSite(t, dir, "stranger", addr)
	s.publish("wind", 1)
	until(t, "refused", func() bool { return s.client.State().LastError != "" })
	if len(h.Nodes()) != 0 {
		t.Errorf("a node that may not connect is known: %+v", h.Nodes())
	}
}

// TestReplacedDiskBeginsANewLog: a node comes back with an empty log under the
// same name, after the hub restarted; the old records stay, the new ones are taken.
func TestReplacedDiskBeginsANewLog(t *testing.T) {
	dir := certs(t, "site-1")
	c := hubConfig(t, dir)
	h, _, stop := startHub(t, c)
	addr, _, _ := h.Addrs()
	c.Listen = addr
	a := newSite(t, dir, "site-1", addr)
	a.publish("wind", 10)
	until(t, "acked", func() bool { return a.ackedTo("wind") == 10 })
	a.disconnect()
	stop()
	h, url, _ := startHub(t, c)
	b := newSite(t, dir, "site-1", addr)
	b.publish("wind", 4)
	until(t, "the new log is taken", func() bool { return b.ackedTo("wind") == 4 })
	var list struct{ Losses []hub.LossRow }
	getJSON(t, url+"/api/v1/losses", &list)
	if len(list.Losses) != 0 {
		t.Errorf("nothing was missing, the ledger says %+v", list.Losses)
	}
	if n := h.Nodes()[0]; n.Epochs != 2 || n.Stored != 14 || n.Fenced != "" {
		t.Errorf("node %+v", n)
	}
}
