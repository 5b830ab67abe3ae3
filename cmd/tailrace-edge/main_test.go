package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestMain lets the test binary be the daemon: the tests run it as a process of its
// own and kill it as a power cut would.
func TestMain(m *testing.M) {
	if os.Getenv("TAILRACE_EDGE_MAIN") == "1" {
		os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}

// daemon is one tailrace-edge process with its directory.
type daemon struct {
	t          *testing.T
	dir        string
	mqtt, http string
	cmd        *exec.Cmd
	log        bytes.Buffer
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func newDaemon(t *testing.T, extra string) *daemon {
	t.Helper()
	d := &daemon{t: t, dir: t.TempDir(), mqtt: freePort(t), http: freePort(t)}
	cfg := fmt.Sprintf(`node: node-1
storage:
  dir: %s
  classes: [{name: main, when_full: reject, commit_interval: 0s}]
mqtt:
  listeners: [{address: "%s"}]
  auth: {allow_anonymous: true}
http: {address: "%s"}
log: {level: warn, format: text}
routes:
  - {topic: "wind/{site}/{turbine}/scada", stream: "wind", key: "{site}/{turbine}", time: {encoding: json, field: ts, format: rfc3339}}
default: {stream: unrouted}
%s`, filepath.Join(d.dir, "data"), d.mqtt, d.http, extra)
	if err := os.WriteFile(filepath.Join(d.dir, "edge.yaml"), []byte(cfg), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if d.cmd != nil {
			d.kill()
		}
		if t.Failed() {
			t.Logf("daemon's log:\n%s", d.log.String())
		}
	})
	return d
}

// start runs the daemon and returns when it is ready.
func (d *daemon) start() {
	d.t.Helper()
	exe, err := os.Executable()
	if err != nil {
		d.t.Fatal(err)
	}
	d.cmd = exec.Command(exe, "-config", filepath.Join(d.dir, "edge.yaml"))
	d.cmd.Env = append(os.Environ(), "TAILRACE_EDGE_MAIN=1")
	d.cmd.Stderr = &d.log
	if err := d.cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	d.ready()
}

func (d *daemon) ready() {
	d.t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); <-tick.C {
		if r, err := http.Get("http://" + d.http + "/readyz"); err == nil {
			r.Body.Close()
			if r.StatusCode == http.StatusOK {
				return
			}
		}
	}
	d.t.Fatalf("the daemon is not ready within 30 s\n%s", d.log.String())
}

func (d *daemon) kill() {
	d.cmd.Process.Signal(syscall.SIGKILL)
	d.cmd.Wait()
	d.cmd = nil
}

// stop ends the daemon as systemd would, and expects a clean exit.
func (d *daemon) stop() {
	d.t.Helper()
	d.cmd.Process.Signal(syscall.SIGTERM)
	if err := d.cmd.Wait(); err != nil {
		d.t.Fatalf("SIGTERM: %v\n%s", err, d.log.String())
	}
	d.cmd = nil
}

// rec is a record as the HTTP API gives it.
type rec struct {
	Offset    int64           `json:"offset"`
	Timestamp int64           `json:"timestamp"`
	Key       string          `json:"key"`
	Value     json.RawMessage `json:"value"`
	Headers   []struct {
		Key   string `json:"key"`
		Value string `json:"value"`
	} `json:"headers"`
}

func (d *daemon) records(topic string) []rec {
	d.t.Helper()
	r, err := http.Get("http://" + d.http + "/api/v1/topics/" + topic + "/records?limit=1000000")
	if err != nil {
		d.t.Fatal(err)
	}
	defer r.Body.Close()
	if r.StatusCode == http.StatusNotFound {
		return nil
	}
	var out []rec
	for s := bufio.NewScanner(r.Body); s.Scan(); {
		var x rec
		if err := json.Unmarshal(s.Bytes(), &x); err != nil {
			d.t.Fatalf("line %q: %v", s.Text(), err)
		}
		out = append(out, x)
	}
	return out
}

func (d *daemon) get(path string) string {
	d.t.Helper()
	r, err := http.Get("http://" + d.http + path)
	if err != nil {
		d.t.Fatal(err)
	}
	defer r.Body.Close()
	b, _ := io.ReadAll(r.Body)
	return string(b)
}

func mosquittoPub(t *testing.T, addr string, args ...string) {
	t.Helper()
	host, port, _ := net.SplitHostPort(addr)
	out, err := exec.Command("mosquitto_pub", append([]string{"-h", host, "-p", port}, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("mosquitto_pub (apt-get install mosquitto-clients): %v\n%s", err, out)
	}
}

func TestPublishedRecordIsReadBackWithKeyTimeAndHeaders(t *testing.T) {
	d := newDaemon(t, "")
	d.start()
	mosquittoPub(t, d.mqtt, "-q", "1", "-i", "T01", "-t", "wind/marge/T01/scada", "-m", `{"ts":"2026-01-02T03:04:05.123456789Z","p":919.5}`)
	mosquittoPub(t, d.mqtt, "-q", "2", "-V", "5", "-i", "x", "-t", "other", "-m", "raw", "-D", "publish", "user-property", "k", "v", "-D", "publish", "content-type", "text/plain")
	got := d.records("wind")
	if len(got) != 1 || got[0].Key != "marge/T01" || got[0].Timestamp != 1767323045123 || string(got[0].Value) != `{"ts":"2026-01-02T03:04:05.123456789Z","p":919.5}` {
		t.Fatalf("%+v", got)
	}
	want := map[string]string{"mqtt.topic": "wind/marge/T01/scada", "mqtt.client": "T01", "mqtt.qos": "1"}
	for _, h := range got[0].Headers {
		if v, ok := want[h.Key]; ok && v == h.Value {
			delete(want, h.Key)
		}
	}
	if len(want) > 0 {
		t.Fatalf("headers missing: %v in %+v", want, got[0].Headers)
	}
	got = d.records("unrouted")
	want = map[string]string{"mqtt.topic": "other", "mqtt.client": "x", "mqtt.qos": "2", "mqtt.user.k": "v", "mqtt.content-type": "text/plain"}
	if len(got) != 1 || got[0].Key != "other" || string(got[0].Value) != `"raw"` {
		t.Fatalf("%+v", got)
	}
	for _, h := range got[0].Headers {
		if v, ok := want[h.Key]; ok && v == h.Value {
			delete(want, h.Key)
		}
	}
	if len(want) > 0 {
		t.Fatalf("headers missing: %v in %+v", want, got[0].Headers)
	}
	if s := d.get("/metrics"); !strings.Contains(s, `tailrace_durable_offset{topic="wind",partition="0"} 1`) {
		t.Errorf("metrics without the durable offset:\n%s", s)
	}
	if s := d.get("/api/v1/devices/marge/T01"); !strings.Contains(s, `"records": 1`) {
		t.Errorf("registry: %s", s)
	}
	d.stop()
	d.start() // the registry was written at the clean end
	if s := d.get("/api/v1/devices/marge/T01"); !strings.Contains(s, `"records": 1`) {
		t.Errorf("registry after a restart: %s", s)
	}
}

// rawClient speaks MQTT 3.1.1 with a persistent session and full control over ids and DUP.
type rawClient struct {
	t       *testing.T
	c       net.Conn
	r       *bufio.Reader
	present bool
}

func (d *daemon) connect(id string) *rawClient {
	d.t.Helper()
	c, err := net.Dial("tcp", d.mqtt)
	if err != nil {
		d.t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(20 * time.Second))
	x := &rawClient{t: d.t, c: c, r: bufio.NewReader(c)}
	body := append([]byte{0, 4, 'M', 'Q', 'T', 'T', 4, 0, 0, 60, 0, byte(len(id))}, id...)
	c.Write(append([]byte{0x10, byte(len(body))}, body...))
	var ack [4]byte
	if _, err := io.ReadFull(x.r, ack[:]); err != nil || ack[0] != 0x20 || ack[3] != 0 {
		d.t.Fatalf("CONNACK % x, %v", ack, err)
	}
	x.present = ack[2] == 1
	return x
}

// publish writes one QoS 1 publish; the answer is read by acks.
func (x *rawClient) publish(id uint16, dup bool, topic, payload string) {
	head := byte(0x32)
	if dup {
		head |= 8
	}
	body := binary.BigEndian.AppendUint16(nil, uint16(len(topic)))
	body = binary.BigEndian.AppendUint16(append(body, topic...), id)
	body = append(body, payload...)
	pkt := append([]byte{head}, binary.AppendUvarint(nil, uint64(len(body)))...)
	x.c.Write(append(pkt, body...))
}

// ack reads one PUBACK; false when the connection ends.
func (x *rawClient) ack() (uint16, bool) {
	var a [4]byte
	if _, err := io.ReadFull(x.r, a[:]); err != nil {
		return 0, false
	}
	if a[0] != 0x40 {
		x.t.Fatalf("want PUBACK, got % x", a)
	}
	return binary.BigEndian.Uint16(a[2:]), true
}

// A device as firmware does it: a window of publishes, everything not acknowledged
// is sent again with DUP in the same order after each reconnect.
func TestAcknowledgedRecordsSurviveKillNineExactlyOnceInOrder(t *testing.T) {
	d := newDaemon(t, "")
	d.start()
	const window = 20
	kills := 12
	if testing.Short() {
		kills = 4
	}
	next, acked := 0, 0 // publishes written at least once; acknowledged in order
	for k := range kills + 1 {
		x := d.connect("device")
		if k > 0 && acked > 0 && !x.present {
			t.Fatal("the session is forgotten: a compliant client would now drop what it could not deliver")
		}
		for i := acked; i < next; i++ {
			x.publish(uint16(i%60000+1), true, "dev/a", fmt.Sprintf(`{"n":%d}`, i))
		}
		stopAt := acked + 200 + rand.IntN(300)
		die := time.AfterFunc(time.Duration(rand.IntN(30))*time.Millisecond, func() {
			if k < kills {
				d.cmd.Process.Signal(syscall.SIGKILL)
			}
		})
		for {
			for next < acked+window && next < stopAt {
				x.publish(uint16(next%60000+1), false, "dev/a", fmt.Sprintf(`{"n":%d}`, next))
				next++
			}
			if acked == stopAt {
				break
			}
			id, ok := x.ack()
			if !ok {
				break
			}
			if want := uint16(acked%60000 + 1); id != want {
				t.Fatalf("PUBACK for %d, want %d: acknowledgements are out of order", id, want)
			}
			acked++
		}
		x.c.Close()
		if k < kills {
			die.Stop()
			d.kill()
			d.start()
		}
	}
	got := d.records("unrouted")
	for i, r := range got {
		if want := fmt.Sprintf(`{"n":%d}`, i); string(r.Value) != want {
			t.Fatalf("record %d is %s, want %s: %d kills, %d acknowledged, %d stored", i, r.Value, want, kills, acked, len(got))
		}
	}
	if len(got) != acked {
		t.Fatalf("%d records stored, %d acknowledged", len(got), acked)
	}
	t.Logf("%d kills, %d records, each once and in order; %s", kills, len(got), d.duplicates())
}

func (d *daemon) duplicates() string {
	var s struct {
		MQTT struct{ Duplicates int } `json:"mqtt"`
	}
	json.Unmarshal([]byte(d.get("/api/v1/status")), &s)
	return fmt.Sprintf("%d re-sends recognised since the last start", s.MQTT.Duplicates)
}

func TestResentPublishIsNotStoredTwice(t *testing.T) {
	d := newDaemon(t, "")
	d.start()
	x := d.connect("device")
	for i := range 5 {
		x.publish(uint16(i+1), false, "dev/a", fmt.Sprint(i))
	}
	for range 5 {
		if _, ok := x.ack(); !ok {
			t.Fatal("connection lost")
		}
	}
	x.c.Close() // the device has not seen the last acks, so it thinks
	d.kill()
	d.start()
	x = d.connect("device")
	for i := 2; i < 7; i++ { // 2, 3, 4 are durable already; 5, 6 are new
		x.publish(uint16(i+1), i < 5, "dev/a", fmt.Sprint(i))
	}
	for i := 2; i < 7; i++ {
		if id, ok := x.ack(); !ok || id != uint16(i+1) {
			t.Fatalf("ack %d, %v; want %d", id, ok, i+1)
		}
	}
	got := d.records("unrouted")
	if len(got) != 7 {
		t.Fatalf("%d records, want 7: %+v", len(got), got)
	}
}

func TestCheckConfigFindsEveryProblemAtOnce(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "edge.yaml")
	check := func(content string) (int, string) {
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		code := run([]string{"-config", file, "-check-config"}, &out, &out)
		return code, out.String()
	}
	code, out := check("node: \"\"\nstorage: {dir: x, classes: [{name: a}]}\n")
	if code != 2 {
		t.Fatalf("exit %d: %s", code, out)
	}
	for _, want := range []string{"node: required", "when_full", "default:", "mqtt.listeners"} {
		if !strings.Contains(out, want) {
			t.Errorf("no word about %q in:\n%s", want, out)
		}
	}
	if code, out = check("node: n\nnodes: 5\n"); code != 2 || !strings.Contains(out, "nodes") {
		t.Errorf("unknown key: exit %d: %s", code, out)
	}
	if code, _ = check(""); code != 2 {
		t.Errorf("empty file: exit %d", code)
	}
	if code = run([]string{"version"}, io.Discard, io.Discard); code != 0 {
		t.Errorf("version: exit %d", code)
	}
	if code = run(nil, io.Discard, io.Discard); code != 2 {
		t.Errorf("no arguments: exit %d", code)
	}
}
