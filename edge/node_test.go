package edge_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/paho"

	"tailrace/edge"
	"tailrace/storage"
	"tailrace/storage/record"
)

// node starts a node in this process from YAML; %DIR% is its directory. It is ended
// with the test.
func node(t testing.TB, yaml string) *edge.Node {
	t.Helper()
	n, _ := stoppableNode(t, yaml, t.TempDir())
	return n
}

func stoppableNode(t testing.TB, yaml, dir string) (n *edge.Node, stop func()) {
	t.Helper()
	return nodeOn(t, yaml, dir, nil)
}

// nodeOn is stoppableNode on a file system of its own; nil = the operating system's.
func nodeOn(t testing.TB, yaml, dir string, fs storage.FS) (n *edge.Node, stop func()) {
	t.Helper()
	c, err := edge.ParseConfig(strings.NewReader(strings.ReplaceAll(yaml, "%DIR%", dir)))
	if err != nil {
		t.Fatal(err)
	}
	c.ShutdownTimeout, c.FS = 5*time.Second, fs
	if n, err = edge.New(c); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- n.Run(ctx) }()
	select {
	case <-n.Ready():
	case err := <-ended:
		t.Fatalf("node ends before it is ready: %v", err)
	case <-time.After(10 * time.Second):
		t.Fatal("node is not ready")
	}
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(15 * time.Second):
			t.Error("node does not end")
		}
	}
	t.Cleanup(stop)
	return n, stop
}

const plain = `
node: node-1
storage: {dir: "%DIR%/data", classes: [{name: main, when_full: reject, commit_interval: 0s}]}
mqtt:
  listeners: [{address: "127.0.0.1:0"}]
  auth: {allow_anonymous: true}
http: {address: "127.0.0.1:0"}
`

// until looks again and again whether ok holds.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(90 * time.Second); !ok(); <-tick.C {
		if time.Now().After(end) {
			t.Fatalf("not within 90 s: %s", what)
		}
	}
}

func client(t testing.TB, n *edge.Node, id string) *paho.Client {
	t.Helper()
	c, err := net.Dial("tcp", n.MQTTAddrs()[0].String())
	if err != nil {
		t.Fatal(err)
	}
	p := paho.NewClient(paho.ClientConfig{Conn: c})
	expiry := uint32(3600)
	if _, err := p.Connect(t.Context(), &paho.Connect{ClientID: id, KeepAlive: 30, Properties: &paho.ConnectProperties{SessionExpiryInterval: &expiry}}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Disconnect(&paho.Disconnect{}) })
	return p
}

// publish returns the PUBACK's reason.
func publish(t testing.TB, p *paho.Client, topic, body string) byte {
	t.Helper()
	r, err := p.Publish(t.Context(), &paho.Publish{Topic: topic, QoS: 1, Payload: []byte(body)})
	if r == nil {
		t.Fatalf("publish to %s: %v", topic, err)
	}
	return r.ReasonCode
}

func get(t testing.TB, n *edge.Node, path string) (int, string) {
	t.Helper()
	r, err := http.Get("http://" + n.HTTPAddr().String() + path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return r.StatusCode, string(b)
}

// values reads a whole partition from the store, verified.
func values(t testing.TB, n *edge.Node, topic string) (out []string) {
	t.Helper()
	tp, ok := n.Store().Topic(topic)
	if !ok {
		return nil
	}
	p := tp.Partition(0)
	for off := p.Start(); off < p.HighWatermark(); {
		b, next, err := p.Read(nil, off, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		for len(b) > 0 {
			var batch record.Batch
			if batch, b, err = record.Next(b); err != nil {
				t.Fatal(err)
			}
			if err := batch.Verify(); err != nil {
				t.Fatal(err)
			}
			it := batch.Iter(nil)
			for it.Next() {
				out = append(out, string(it.Record().Value))
			}
			if it.Err() != nil {
				t.Fatal(it.Err())
			}
		}
		off = next
	}
	return out
}

func TestDevicesHearWhyAPublishIsRefused(t *testing.T) {
	n := node(t, plain+`
routes:
  - {topic: "ok/#", stream: ok}
  - {topic: "no/#", reject: true}
  - {topic: "by/{x}", stream: "{x}"}
  - {topic: "timed", stream: timed, time: {encoding: json, field: ts, format: unix_s, else: reject}}
default: {reject: true}
`)
	p := client(t, n, "d")
	for _, c := range []struct {
		topic, body string
		reason      byte
	}{
		{"ok/1", "a", 0},
		{"no/1", "b", 0x90},
		{"other", "c", 0x90},
		{"by/__system", "d", 0x90},
		{"timed", "{}", 0x99},
		{"timed", `{"ts":5}`, 0},
		{"ok/2", strings.Repeat("x", 1<<20), 0x95},
		{"ok/3", "last", 0},
	} {
		if got := publish(t, p, c.topic, c.body); got != c.reason {
			t.Errorf("%s: reason 0x%02X, want 0x%02X", c.topic, got, c.reason)
		}
	}
	if got := values(t, n, "ok"); fmt.Sprint(got) != "[a last]" {
		t.Errorf("stored: %q", got)
	}
	_, m := get(t, n, "/metrics")
	for _, want := range []string{`tailrace_ingest_refused_total{reason="unmatched"} 1`, `tailrace_ingest_refused_total{reason="rule"} 2`, `tailrace_ingest_refused_total{reason="time"} 1`,
		`tailrace_route_rejected_total{route="default"} 1`, `tailrace_route_records_total{route="ok/#"} 2`} {
		if !strings.Contains(m, want) {
			t.Errorf("metrics lack %s", want)
		}
	}
}

func TestStreamsAreBoundedWhateverDevicesInvent(t *testing.T) {
	n := node(t, strings.Replace(plain, "classes:", "max_topics: 3, classes:", 1)+"routes: [{topic: \"by/{x}\", stream: \"{x}\"}]\ndefault: {reject: true}\n")
	p := client(t, n, "d")
	for i := range 6 {
		want := byte(0)
		if i >= 3 {
			want = 0x97
		}
		if got := publish(t, p, fmt.Sprint("by/s", i), "x"); got != want {
			t.Errorf("stream %d: reason 0x%02X, want 0x%02X", i, got, want)
		}
	}
	if got := publish(t, p, "by/s0", "y"); got != 0 {
		t.Errorf("an existing stream: 0x%02X", got)
	}
}

func TestAFullDiskIsToldAndNothingAcknowledgedIsLost(t *testing.T) {
	n := node(t, strings.Replace(plain, "when_full: reject", "when_full: reject, segment_size: 64KiB, max_size: 512KiB", 1)+"default: {stream: s}\n")
	p := client(t, n, "d")
	body, acked := strings.Repeat("x", 8000), 0
	for range 200 {
		switch r := publish(t, p, "a", body); r {
		case 0:
			acked++
			continue
		case 0x97:
		default:
			t.Fatalf("reason 0x%02X, want 0x97 Quota exceeded", r)
		}
		break
	}
	if acked == 0 || acked == 200 {
		t.Fatalf("%d acknowledged in a budget of 512 KiB", acked)
	}
	if got := len(values(t, n, "s")); got != acked {
		t.Fatalf("%d stored, %d acknowledged", got, acked)
	}
	// The hub's acknowledgement makes room again.
	tp, _ := n.Store().Topic("s")
	pt := tp.Partition(0)
	src := n.Source()
	inv := src.Inventory()
	src.Acked("s", 0, inv.Epochs[len(inv.Epochs)-1].ID, ranges(0, pt.HighWatermark()))
	until(t, "room after the hub has everything", func() bool { return publish(t, p, "a", body) == 0 })
}

func TestRecordsOfSeveralClassesAreDurableWithOneAcknowledgement(t *testing.T) {
	n := node(t, strings.Replace(plain, "[{name: main, when_full: reject, commit_interval: 0s}]", "[{name: main, when_full: reject}, {name: bulk, when_full: drop-oldest, max_size: 64MiB}]", 1)+`
routes: [{topic: "bulk/#", stream: bulk}, {topic: "#", stream: main}]
topics: [{match: bulk, class: bulk}]
default: {reject: true}
`)
	p := client(t, n, "d")
	for i := range 50 {
		topic := "a"
		if i%2 == 1 {
			topic = "bulk/a"
		}
		if r := publish(t, p, topic, fmt.Sprint(i)); r != 0 {
			t.Fatalf("publish %d: 0x%02X", i, r)
		}
	}
	if a, b := values(t, n, "main"), values(t, n, "bulk"); len(a) != 25 || len(b) != 25 || a[1] != "2" || b[1] != "3" {
		t.Fatalf("main %q bulk %q", a, b)
	}
	tp, _ := n.Store().Topic("bulk")
	if tp.Config().Class != "bulk" {
		t.Fatalf("class %q", tp.Config().Class)
	}
}

func TestBridgedMessagesGoTheSameWay(t *testing.T) {
	exe := "/usr/sbin/mosquitto"
	if p, err := exec.LookPath("mosquitto"); err == nil {
		exe = p
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	_, port, _ := net.SplitHostPort(addr)
	broker := exec.Command(exe, "-p", port)
	if err := broker.Start(); err != nil {
		t.Fatalf("mosquitto is needed for this test (apt-get install mosquitto): %v", err)
	}
	defer func() { broker.Process.Kill(); broker.Wait() }()
	n := node(t, plain+`
routes: [{topic: "plant/{m}", stream: plant, key: "{m}"}]
default: {reject: true}
bridges: [{name: hall, brokers: ["mqtt://`+addr+`"], subscriptions: [{filter: "#"}]}]
`)
	until(t, "the bridge is connected", func() bool { return n.Status().Bridges[0].Connected })
	for i := range 3 {
		if out, err := exec.Command("mosquitto_pub", "-p", port, "-q", "1", "-t", fmt.Sprint("plant/", i), "-m", fmt.Sprint(i)).CombinedOutput(); err != nil {
			t.Fatalf("%v %s", err, out)
		}
	}
	exec.Command("mosquitto_pub", "-p", port, "-q", "1", "-t", "elsewhere", "-m", "x").Run()
	until(t, "three are stored and one is refused", func() bool { return len(values(t, n, "plant")) == 3 && n.Status().Bridges[0].Refused == 1 })
	if d := n.Status().Devices; d != 3 {
		t.Errorf("%d devices known, want 3", d)
	}
}

func TestHTTPAnswersOnlyToLoopbackNamesAndKnownPaths(t *testing.T) {
	n := node(t, plain+"default: {stream: s}\n")
	for path, want := range map[string]int{"/healthz": 200, "/readyz": 200, "/api/v1/status": 200, "/api/v1/devices": 200, "/api/v1/topics": 200, "/nothing": 404, "/api/v1/devices?limit=0": 400, "/api/v1/devices/none": 404} {
		if code, body := get(t, n, path); code != want {
			t.Errorf("%s: %d, want %d: %s", path, code, want, body)
		}
	}
	req, _ := http.NewRequest("GET", "http://"+n.HTTPAddr().String()+"/api/v1/status", nil)
	req.Host = "evil.example"
	r, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	r.Body.Close()
	if r.StatusCode != http.StatusMisdirectedRequest {
		t.Errorf("a rebound name gets %d", r.StatusCode)
	}
	var st edge.Status
	_, body := get(t, n, "/api/v1/status")
	if err := json.Unmarshal([]byte(body), &st); err != nil || st.Node != "node-1" || !st.Ready || st.Uplink != nil {
		t.Errorf("%v %+v", err, st)
	}
}

func TestPostedRecordsMakeTheirTopicWithinTheRules(t *testing.T) {
	n := node(t, plain+"default: {stream: s}\ntopics: [{match: \"post*\", retention: 1h}]\n")
	post := func(topic string) int {
		r, err := http.Post("http://"+n.HTTPAddr().String()+"/api/v1/topics/"+topic+"/records", "application/x-ndjson", strings.NewReader("{\"key\":\"k\",\"value\":\"v\"}\n"))
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		if b, _ := io.ReadAll(r.Body); r.StatusCode != 200 {
			t.Logf("%s: %s", topic, b)
		}
		return r.StatusCode
	}
	if c := post("posted"); c != 200 {
		t.Fatalf("status %d", c)
	}
	tp, ok := n.Store().Topic("posted")
	if !ok || tp.Config().RetentionAge != time.Hour {
		t.Fatalf("topic %v", ok)
	}
	if c := post("__x"); c < 400 || c > 499 {
		t.Fatalf("a system name is taken: %d", c)
	}
}

func TestANodeOfAnotherNameIsRefusedByTheDirectory(t *testing.T) {
	dir := t.TempDir()
	_, stop := stoppableNode(t, plain+"default: {stream: s}\n", dir)
	stop()
	c, err := edge.ParseConfig(strings.NewReader(strings.ReplaceAll(strings.Replace(plain, "node-1", "node-2", 1)+"default: {stream: s}\n", "%DIR%", dir)))
	if err != nil {
		t.Fatal(err)
	}
	n, err := edge.New(c)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "node-1") {
		t.Fatalf("Run: %v", err)
	}
}

func TestSystemdIsNotified(t *testing.T) {
	sock := filepath.Join(t.TempDir(), "n")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: sock, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	t.Setenv("NOTIFY_SOCKET", sock)
	t.Setenv("WATCHDOG_USEC", "40000")
	n, stop := stoppableNode(t, plain+"default: {stream: s}\n", t.TempDir())
	seen := ""
	buf := make([]byte, 256)
	c.SetReadDeadline(time.Now().Add(10 * time.Second))
	for !strings.Contains(seen, "READY=1") || !strings.Contains(seen, "WATCHDOG=1") {
		k, err := c.Read(buf)
		if err != nil {
			t.Fatalf("%v, seen %q", err, seen)
		}
		seen += string(buf[:k]) + " "
	}
	if !n.Healthy() {
		t.Error("an idle node is not healthy")
	}
	go stop()
	for !strings.Contains(seen, "STOPPING=1") {
		k, err := c.Read(buf)
		if err != nil {
			t.Fatalf("%v, seen %q", err, seen)
		}
		seen += string(buf[:k]) + " "
	}
	stop()
}

func TestTheMediumDecidesTheCommitInterval(t *testing.T) {
	sys := t.TempDir()
	mk := func(dir string, files map[string]string) {
		for name, body := range files {
			f := filepath.Join(sys, dir, name)
			os.MkdirAll(filepath.Dir(f), 0o755)
			os.WriteFile(f, []byte(body), 0o644)
		}
	}
	link := func(dev, dir string) {
		os.MkdirAll(filepath.Join(sys, "dev", "block"), 0o755)
		os.Symlink(filepath.Join(sys, dir), filepath.Join(sys, "dev", "block", dev))
	}
	mk("devices/mmc/mmcblk0", map[string]string{"device/type": "SD\n"})
	mk("devices/mmc/mmcblk0/mmcblk0p2", map[string]string{"partition": "2"})
	mk("devices/mmc/mmcblk1", map[string]string{"device/type": "MMC\n"})
	mk("devices/sda", map[string]string{"queue/rotational": "0\n"})
	mk("devices/nvme0n1", map[string]string{"queue/rotational": "0\n"})
	mk("block/mmcblk0", map[string]string{"stat": "1 2 3 4 5 6 7000 8 9 10 11\n"})
	link("179:2", "devices/mmc/mmcblk0/mmcblk0p2")
	link("179:8", "devices/mmc/mmcblk1")
	link("8:0", "devices/sda")
	link("259:0", "devices/nvme0n1")
	for _, c := range []struct {
		major, minor uint32
		device, kind string
		interval     time.Duration
		sectors      int64
	}{
		{179, 2, "mmcblk0", "sd", 100 * time.Millisecond, 7000},
		{179, 8, "mmcblk1", "emmc", 100 * time.Millisecond, -1},
		{8, 0, "sda", "ssd", 0, -1},
		{259, 0, "nvme0n1", "nvme", 0, -1},
		{0, 42, "", "unknown", 0, -1},
	} {
		device, kind, interval, sectors := edge.DetectMedium(sys, c.major, c.minor)
		if device != c.device || kind != c.kind || interval != c.interval || sectors != c.sectors {
			t.Errorf("%d:%d: %s %s %v %d, want %+v", c.major, c.minor, device, kind, interval, sectors, c)
		}
	}
}
