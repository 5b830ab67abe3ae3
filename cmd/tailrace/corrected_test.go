package main

import (
	"bufio"
	"context"
	"crypto/rand"
	be "encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"tailrace/devices"
	"tailrace/edge"
	"tailrace/firmware-sim/rawload"
	"tailrace/uplink/hub"
	"tailrace/uplink/pki"
)

// site is a node and a hub on loopback sockets; the node's clock is the test's.
type site struct {
	t         *testing.T
	url       string // of the hub's API
	kafka     string
	mqtt      string
	wrong     atomic.Int64 // nanoseconds
	kept      atomic.Bool
	published int
}

// newSite starts both; the node's clock is wrong and nobody keeps it. The hub's certificate
// is newer than the node's.
func newSite(t *testing.T, wrong time.Duration) *site {
	t.Helper()
	s := &site{t: t}
	s.wrong.Store(int64(wrong))
	dir := t.TempDir()
	now := time.Now()
	ca, pair, err := pki.NewCA(rand.Reader, "clock test", now.Add(-48*time.Hour), 96*time.Hour)
	s.must(err)
	files := map[string][]byte{"ca.crt": pair.Cert}
	for name, c := range map[string]struct {
		role pki.Role
		from time.Time
	}{"hub": {pki.RoleHub, now}, "n": {pki.RoleNode, now.Add(-24 * time.Hour)}} {
		p, err := ca.Issue(rand.Reader, c.role, name, []string{"127.0.0.1"}, c.from, 72*time.Hour)
		s.must(err)
		files[name+".crt"], files[name+".key"] = p.Cert, p.Key
	}
	at := func(name string) string { return filepath.Join(dir, name) }
	for name, b := range files {
		s.must(os.WriteFile(at(name), b, 0o600))
	}
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	s.must(err)
	h, err := hub.New(hub.Config{DataDir: at("hub"), TLS: hub.TLSConfig{Cert: at("hub.crt"), Key: at("hub.key"), CA: at("ca.crt")},
		HTTP: hub.HTTPConfig{Listen: "127.0.0.1:0"}, Kafka: hub.KafkaConfig{Listen: "127.0.0.1:0"},
		Topics: []hub.TopicConfig{{Match: "*", Partitions: 1}}, Logger: slog.New(slog.DiscardHandler), PacketConn: udp})
	s.must(err)
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	t.Cleanup(func() { stop(); wg.Wait() })
	wg.Go(func() {
		if err := h.Run(ctx); ctx.Err() == nil {
			t.Errorf("hub: %v", err)
		}
	})
	_, web, kafka := h.Addrs()
	s.url, s.kafka = "http://"+web, kafka
	zero := time.Duration(0)
	n, err := edge.New(edge.Config{Node: "n",
		Storage: edge.StorageConfig{Dir: at("node"), Classes: []edge.ClassConfig{{Name: "main", WhenFull: "reject", CommitInterval: &zero}}},
		MQTT:    edge.MQTTConfig{Listeners: []edge.ListenerConfig{{Address: "127.0.0.1:0", Transport: "tcp"}}, Auth: edge.AuthConfig{AllowAnonymous: true}},
		Routes:  []devices.Rule{{Topic: "dated/#", Stream: "dated", Time: devices.TimeRule{Encoding: "json", Field: "ts", Format: "unix_ms"}}},
		Default: devices.Default{Stream: "telemetry"},
		Uplink:  edge.UplinkConfig{Hubs: []string{udp.LocalAddr().String()}, TLS: &edge.ClientTLS{Cert: at("n.crt"), Key: at("n.key"), CA: at("ca.crt")}},
		HTTP:    edge.HTTPConfig{Address: "off"}, Logger: slog.New(slog.DiscardHandler),
		Now:         func() time.Time { return time.Now().Add(time.Duration(s.wrong.Load())) },
		ClockSynced: s.kept.Load,
	})
	s.must(err)
	wg.Go(func() {
		if err := n.Run(ctx); ctx.Err() == nil {
			t.Errorf("node: %v", err)
		}
	})
	<-n.Ready()
	s.mqtt = n.MQTTAddrs()[0].String()
	return s
}

func (s *site) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// publish sends n records whose payload has a time of its own.
func (s *site) publish(topic string, n int, ts time.Time) {
	s.t.Helper()
	s.published++
	r, err := rawload.Run(s.t.Context(), rawload.Config{Dial: rawload.DialTCP(s.mqtt, nil), Version: 5, QoS: 1, Clients: 1, Count: int64(n), Drain: time.Minute,
		ClientPrefix: fmt.Sprintf("d%d", s.published), Topic: topic + "/{client}", Epoch: ts, Seed: uint64(s.published)})
	if err != nil || r.Acked != int64(n) {
		s.t.Fatalf("%+v %v", r, err)
	}
}

// replayed is what `tailrace replay` prints of a topic, once it has n records.
func (s *site) replayed(topic string, n int, more ...string) []string {
	s.t.Helper()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(2 * time.Minute); ; <-tick.C {
		out, code := runCommand(s.t, append([]string{"replay", topic, "-q", "--url", s.url}, more...)...)
		var lines []string
		for sc := bufio.NewScanner(strings.NewReader(out)); sc.Scan(); {
			lines = append(lines, sc.Text())
		}
		if code == 0 && len(lines) >= n {
			return lines
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("replay %s: exit %d, %d lines of %d: %s", topic, code, len(lines), n, out)
		}
	}
}

// A node boots in 1970, though the hub's certificate is newer than all it knows, and takes
// records. When somebody sets its clock, the corrections are on the system topic, `replay
// --corrected` shows the right times, and the stored records are what they were.
func TestReplayCorrectsTheTimesOfANodeThatBootedIn1970(t *testing.T) {
	begin := time.Now()
	s := newSite(t, -time.Since(time.Unix(60, 0)))
	s.publish("site", 20, begin)
	before := s.replayed("telemetry", 20)
	wrongUntil := time.Now()

	s.wrong.Store(0)
	s.kept.Store(true)
	rows := s.replayed("__tailrace_clock", 1)
	if !strings.Contains(rows[0], `"topic":"telemetry"`) || !strings.Contains(rows[0], `"from":0`) {
		t.Errorf("row %s", rows[0])
	}
	s.publish("site", 10, begin)
	s.replayed("telemetry", 30)
	after := s.replayed("telemetry", 30)
	if got, want := strings.Join(after[:20], "\n"), strings.Join(before, "\n"); got != want {
		t.Errorf("the stored records are others than before:\n%s\nwere\n%s", got, want)
	}
	corrected := s.replayed("telemetry", 30, "--corrected")
	for i, line := range corrected {
		var plain, fixed struct {
			Offset    int64           `json:"offset"`
			Timestamp int64           `json:"timestamp"`
			Time      time.Time       `json:"time"`
			Stored    *int64          `json:"stored_timestamp"`
			Value     json.RawMessage `json:"value"`
		}
		s.must(errors.Join(json.Unmarshal([]byte(after[i]), &plain), json.Unmarshal([]byte(line), &fixed)))
		if fixed.Offset != plain.Offset || string(fixed.Value) != string(plain.Value) || fixed.Time.UnixMilli() != fixed.Timestamp {
			t.Errorf("record %d: %s became %s", i, after[i], line)
		}
		if i >= 20 { // written after the clock was right
			if line != after[i] {
				t.Errorf("record %d had the right time: %s became %s", i, after[i], line)
			}
			continue
		}
		at := time.UnixMilli(fixed.Timestamp)
		if at.Before(begin.Add(-2*time.Second)) || at.After(wrongUntil.Add(2*time.Second)) {
			t.Errorf("record %d: corrected time %v, it came between %v and %v", i, at, begin, wrongUntil)
		}
		if plain.Time.Year() != 1970 || fixed.Stored == nil || *fixed.Stored != plain.Timestamp {
			t.Errorf("record %d: stored %v, told as stored %v", i, plain.Time, fixed.Stored)
		}
	}
	year := fmt.Sprint(begin.UTC().Year())
	for _, line := range s.replayed("telemetry", 31, "--corrected", "--format", "csv")[1:] {
		if at := strings.Split(line, ",")[2]; !strings.HasPrefix(at, year) {
			t.Errorf("CSV: %s", line)
		}
	}
	if out, code := runCommand(t, "nodes", "--url", s.url); code != 0 {
		t.Errorf("nodes: exit %d, %s", code, out)
	}
}

// A device's time far ahead is kept in a header; the record's own is clamped to an hour after
// its arrival, as a Kafka consumer sees it: brokers refuse a whole batch for one more.

func TestTimesInTheFutureAreClampedForConsumers(t *testing.T) {
	s := newSite(t, 0)
	s.kept.Store(true)
	begin := time.Now().Truncate(time.Millisecond)
	sent := []time.Time{begin.Add(10 * 365 * 24 * time.Hour), begin.Add(-365 * 24 * time.Hour), begin.Add(30 * time.Minute), begin.Add(2 * time.Hour)}
	for _, ts := range sent {
		s.publish("dated", 1, ts)
	}
	cl, err := kgo.NewClient(kgo.SeedBrokers(s.kafka), kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{"dated": {0: kgo.NewOffset().At(0)}}),
		kgo.MetadataMinAge(50*time.Millisecond), kgo.UnknownTopicRetries(-1))
	s.must(err)
	defer cl.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	var got []*kgo.Record
	for len(got) < len(sent) {
		fs := cl.PollFetches(ctx)
		s.must(ctx.Err())
		fs.EachRecord(func(r *kgo.Record) { got = append(got, r) })
	}
	end := time.Now()
	for i, r := range got {
		nanos := int64(0)
		for _, h := range r.Headers {
			if h.Key == "event.time.ns" && len(h.Value) == 8 {
				nanos = int64(be.BigEndian.Uint64(h.Value))
			}
		}
		if nanos != sent[i].UnixMilli()*1e6 {
			t.Errorf("record %d: the header says %v, the device said %v", i, time.Unix(0, nanos), sent[i])
		}
		if ahead := sent[i].Sub(begin) > time.Hour; !ahead && !r.Timestamp.Equal(sent[i]) {
			t.Errorf("record %d: %v became %v", i, sent[i], r.Timestamp)
		} else if ahead && (r.Timestamp.Before(begin.Add(time.Hour)) || r.Timestamp.After(end.Add(time.Hour))) {
			t.Errorf("record %d: %v was clamped to %v, an hour after its arrival is %v to %v", i, sent[i], r.Timestamp, begin.Add(time.Hour), end.Add(time.Hour))
		}
	}
}
