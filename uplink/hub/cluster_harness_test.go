package hub_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"tailrace/storage"
	"tailrace/uplink/hub/relay/kafkatest"
	"tailrace/uplink/ranges"
	"tailrace/uplink/wire"
)

var sharedKafka struct {
	once sync.Once
	c    *kafkatest.Cluster
	err  error
}

var sharedBins struct {
	once sync.Once
	dir  string
	err  error
}

func TestMain(m *testing.M) {
	code := m.Run()
	if sharedKafka.c != nil {
		sharedKafka.c.Close()
		os.RemoveAll(filepath.Dir(sharedKafka.c.Dir()))
	}
	os.RemoveAll(sharedBins.dir)
	os.Exit(code)
}

// brokers is a cluster of three that the tests of this package share; each has a fleet and
// topics of its own there.
func brokers(t *testing.T) *kafkatest.Cluster {
	t.Helper()
	if testing.Short() {
		t.Skip("a real cluster runs in the long form")
	}
	sharedKafka.once.Do(func() {
		dir, err := os.MkdirTemp("", "hubs")
		if err != nil {
			sharedKafka.err = err
			return
		}
		sharedKafka.c, sharedKafka.err = kafkatest.Start(context.Background(), kafkatest.Options{Dir: filepath.Join(dir, "kafka"), Brokers: 3})
	})
	if sharedKafka.err != nil {
		t.Fatal(sharedKafka.err)
	}
	return sharedKafka.c
}

// binary is a command of this project, as it is shipped.
func binary(t *testing.T, name string) string {
	t.Helper()
	sharedBins.once.Do(func() {
		if sharedBins.dir, sharedBins.err = os.MkdirTemp("", "bins"); sharedBins.err != nil {
			return
		}
		cmd := exec.Command("go", "build", "-trimpath", "-o", sharedBins.dir+"/", "tailrace/cmd/tailrace-hub", "tailrace/cmd/tailrace")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			sharedBins.err = fmt.Errorf("%w: %s", err, out)
		}
	})
	if sharedBins.err != nil {
		t.Fatal(sharedBins.err)
	}
	return filepath.Join(sharedBins.dir, name)
}

// daemon is a hub's process.
type daemon struct {
	t         *testing.T
	conf      string
	addr, url string
	kafka     string // of an embedded one
	cmd       *exec.Cmd
	ended     chan struct{}
	mu        sync.Mutex
	log       bytes.Buffer
}

// hubYAML writes a hub's configuration; store is its block, empty for an embedded one.
func hubYAML(t *testing.T, certDir, dataDir, store string) string {
	t.Helper()
	f := filepath.Join(t.TempDir(), "hub.yaml")
	pc, err := net.ListenPacket("udp", "127.0.0.1:0") // a free port: a cluster is told where the hub is
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	addr := pc.LocalAddr().String()
	if store == "" {
		store = "kafka: {listen: 127.0.0.1:0}\n"
	}
	y := fmt.Sprintf("data_dir: %s\nlisten: %s\ntls: {cert: %[3]s/hub.crt, key: %[3]s/hub.key, ca: %[3]s/ca.crt}\nhttp: {listen: 127.0.0.1:0}\ntopics: [{match: \"*\", partitions: 4}]\n%s",
		dataDir, addr, certDir, strings.ReplaceAll(store, "ADDRESS", addr))
	if err := os.WriteFile(f, []byte(y), 0o600); err != nil {
		t.Fatal(err)
	}
	return f
}

// clusterYAML is the store block of a hub on a cluster.
func clusterYAML(k *kafkatest.Cluster, name string) string {
	return fmt.Sprintf("store: {kafka: {brokers: [%s], name: %s, address: ADDRESS, shards: 4, longest_outage: 24h, linger: 10ms}}\n", strings.Join(k.Addrs, ", "), name)
}

var startedAt = regexp.MustCompile(`msg="hub started".* nodes=(\S+) http=(\S+) kafka=(\S+)`)

// startDaemon starts a hub's process, and returns when it is ready.
func startDaemon(t *testing.T, conf string) *daemon {
	t.Helper()
	d := &daemon{t: t, conf: conf, ended: make(chan struct{})}
	d.cmd = exec.Command(binary(t, "tailrace-hub"), "-config", conf)
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	errs, err := d.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	addrs := make(chan []string, 1)
	go func() {
		defer close(d.ended)
		for s := bufio.NewScanner(errs); s.Scan(); {
			d.mu.Lock()
			d.log.WriteString(s.Text() + "\n")
			d.mu.Unlock()
			if m := startedAt.FindStringSubmatch(s.Text()); m != nil {
				addrs <- m
			}
		}
		d.cmd.Wait()
	}()
	t.Cleanup(func() {
		if d.kill(); t.Failed() {
			t.Logf("the hub said:\n%s", d.text())
		}
	})
	select {
	case m := <-addrs:
		d.addr, d.url, d.kafka = m[1], "http://"+m[2], m[3]
	case <-d.ended:
		t.Fatalf("the hub ended: %s", d.text())
	case <-time.After(2 * time.Minute):
		t.Fatalf("the hub does not start: %s", d.text())
	}
	until(t, "the hub is ready", func() bool { return d.status("/readyz") == 200 })
	return d
}

func (d *daemon) text() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.log.String()
}

func (d *daemon) status(path string) int {
	resp, err := http.Get(d.url + path)
	if err != nil {
		return 0
	}
	resp.Body.Close()
	return resp.StatusCode
}

func (d *daemon) kill() {
	d.cmd.Process.Kill()
	<-d.ended
}

// stop ends it as an operator would.
func (d *daemon) stop() {
	d.t.Helper()
	d.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-d.ended:
	case <-time.After(time.Minute):
		d.t.Fatalf("the hub does not stop: %s", d.text())
	}
	if !d.cmd.ProcessState.Success() {
		d.t.Fatalf("the hub: %v: %s", d.cmd.ProcessState, d.text())
	}
}

// cli runs the operator's tool on a hub, and wants the exit status.
func (d *daemon) cli(want int, args ...string) string {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary(d.t, "tailrace"), append(args, "--url", d.url)...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if got := cmd.ProcessState.ExitCode(); got != want {
		d.t.Fatalf("tailrace %s: exit %d (%v), want %d\n%s%s", strings.Join(args, " "), got, err, want, out.String(), errs.String())
	}
	return out.String()
}

// ask is a request of the API: status and body.
func (d *daemon) ask(method, path, body string) (int, string) {
	d.t.Helper()
	req, err := http.NewRequest(method, d.url+path, strings.NewReader(body))
	if err != nil {
		d.t.Fatal(err)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		d.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		d.t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// setMode says how a topic of the site is replicated.
func (s *site) setMode(topic string, m wire.Mode) { s.modes.Store(topic, m) }

// Command answers where the records of a span of time are.
func (s *site) Command(c wire.Command) wire.CommandResult {
	l, err := wire.DecodeLocate(c.Args)
	if err != nil {
		return wire.CommandResult{Error: err.Error()}
	}
	p := s.topic(l.Topic)
	at := func(ms int64) int64 { return min(max(0, (ms-1_700_000_000_000+999)/1000), p.HighWatermark()) }
	body, err := wire.EncodeLocated(wire.Located{Oldest: 1_700_000_000_000, Ranges: []wire.PartitionRanges{
		{Partition: uint32(p.ID()), Epoch: s.Inventory().Epochs[0].ID, Ranges: ranges.Of(at(l.From), at(l.To))}}})
	if err != nil {
		return wire.CommandResult{Error: err.Error()}
	}
	return wire.CommandResult{Body: body}
}

// auditTopic reads a topic as a read_committed consumer that knows nothing of hubs, to its
// end, and checks that each node's records are there once and in order: from 0 to want.
// Values tell which record of its node each is, the last header whose.
func auditTopic(t *testing.T, brokers []string, topic string, want map[string]int64) (records []*kgo.Record) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cl, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.ConsumeTopics(topic), kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.KeepControlRecords())
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	left := map[int32]int64{}
	ends, err := kadm.NewClient(cl).ListCommittedOffsets(ctx, topic)
	if err != nil {
		t.Fatal(err)
	}
	ends.Each(func(o kadm.ListedOffset) {
		if o.Offset > 0 {
			left[o.Partition] = o.Offset
		}
	})
	next, place := map[string]int64{}, map[string]int32{}
	for len(left) > 0 {
		fs := cl.PollFetches(ctx)
		if ctx.Err() != nil {
			t.Fatalf("%s: still to read %v", topic, left)
		}
		fs.EachRecord(func(r *kgo.Record) {
			if r.Offset >= left[r.Partition]-1 {
				delete(left, r.Partition)
			}
			if r.Attrs.IsControl() {
				return
			}
			records = append(records, r)
			if len(r.Headers) == 0 {
				return // of an application
			}
			node, _, _, ok := storage.ParseOriginHeader(r.Headers[len(r.Headers)-1].Value)
			if !ok {
				t.Errorf("%d/%d: the last header is no origin", r.Partition, r.Offset)
			}
			var v struct{ N int64 }
			if err := json.Unmarshal(r.Value, &v); err != nil || v.N != next[node] {
				t.Errorf("%s at %d/%d: %s where %d belongs", node, r.Partition, r.Offset, r.Value, next[node])
			}
			if p, ok := place[node]; ok && p != r.Partition {
				t.Errorf("%s is in partitions %d and %d", node, p, r.Partition)
			}
			next[node], place[node] = v.N+1, r.Partition
		})
	}
	for node, n := range want {
		if next[node] != n {
			t.Errorf("%s: %d records of %s, want %d", topic, next[node], node, n)
		}
	}
	return records
}
