package main

import (
	"encoding/json"
	"fmt"
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

	"tailrace/edge"
)

// mosquitto starts a real broker on a free port.
func mosquitto(t *testing.T) (addr string) {
	t.Helper()
	addr = freePort(t)
	host, port, _ := net.SplitHostPort(addr)
	conf := filepath.Join(t.TempDir(), "mosquitto.conf")
	if err := os.WriteFile(conf, []byte("listener "+port+" "+host+"\nallow_anonymous true\nmax_queued_messages 0\nmax_inflight_messages 1000\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	exe, err := exec.LookPath("mosquitto")
	if err != nil {
		exe = "/usr/sbin/mosquitto"
	}
	cmd := exec.Command(exe, "-c", conf)
	if err := cmd.Start(); err != nil {
		t.Fatalf("mosquitto (apt-get install mosquitto): %v", err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); {
		if out, _ := exec.Command("mosquitto_pub", "-h", host, "-p", port, "-t", "ready", "-m", "x").CombinedOutput(); len(out) == 0 {
			return addr
		}
	}
	t.Fatal("mosquitto does not listen")
	return ""
}

func (d *daemon) bridges() []edge.BridgeState {
	var st edge.Status
	resp, err := http.Get("http://" + d.http + "/api/v1/status")
	if err == nil {
		defer resp.Body.Close()
		err = json.NewDecoder(resp.Body).Decode(&st)
	}
	if err != nil {
		d.t.Fatal(err)
	}
	return st.Bridges
}

// The node is killed -9 with messages of two real brokers under way, one of them by a shared
// subscription. What a broker sends again is recognised: nothing is lost, nothing stored twice.
func TestBridgesOverKillNine(t *testing.T) {
	kills, per := 6, 400
	if testing.Short() {
		kills = 3
	}
	a, b := mosquitto(t), mosquitto(t)
	d := newDaemon(t, fmt.Sprintf(`bridges:
  - {name: a, brokers: ["mqtt://%s"], subscriptions: [{filter: "a/#"}]}
  - {name: b, brokers: ["mqtt://%s"], subscriptions: [{filter: "$share/nodes/b/#"}]}
`, a, b))
	d.start()
	connected := func() {
		t.Helper()
		for end := time.Now().Add(30 * time.Second); time.Now().Before(end); {
			if s := d.bridges(); len(s) == 2 && s[0].State == "connected" && s[1].State == "connected" {
				return
			}
		}
		t.Fatalf("the bridges are not connected: %+v", d.bridges())
	}
	connected() // from here on the brokers keep sessions for us
	published := 0
	feed := func(addr, topic string) *exec.Cmd {
		host, port, _ := net.SplitHostPort(addr)
		var lines strings.Builder
		for i := range per {
			fmt.Fprintf(&lines, "{\"n\":\"%s-%d\"}\n", topic, published+i)
		}
		pub := exec.Command("mosquitto_pub", "-h", host, "-p", port, "-q", "1", "-t", topic+"/x", "-l")
		pub.Stdin = strings.NewReader(lines.String())
		if err := pub.Start(); err != nil {
			t.Fatalf("mosquitto_pub (apt-get install mosquitto-clients): %v", err)
		}
		return pub
	}
	var redelivered, known uint64
	for range kills {
		pa, pb := feed(a, "a"), feed(b, "b")
		die := time.AfterFunc(time.Duration(rand.IntN(150))*time.Millisecond, func() { d.cmd.Process.Signal(syscall.SIGKILL) })
		if err := pa.Wait(); err != nil {
			t.Fatal(err)
		}
		if err := pb.Wait(); err != nil {
			t.Fatal(err)
		}
		published += per
		die.Stop()
		d.kill()
		d.start()
		connected()
		for _, s := range d.bridges() {
			redelivered, known = redelivered+s.Redelivery, known+s.Duplicates
		}
	}
	count := map[string]int{}
	for end := time.Now().Add(60 * time.Second); len(count) < 2*published && time.Now().Before(end); {
		clear(count)
		for _, r := range d.records("unrouted") {
			var v struct{ N string }
			if json.Unmarshal(r.Value, &v) == nil && v.N != "" {
				count[v.N]++
			}
		}
	}
	lost, again := 0, 0
	for _, topic := range []string{"a", "b"} {
		for i := range published {
			switch n := count[fmt.Sprint(topic, "-", i)]; {
			case n == 0:
				lost++
			case n > 1:
				again += n - 1
			}
		}
	}
	for _, s := range d.bridges() {
		if s.Lag != 0 || s.State != "connected" || s.Reconnects != 0 {
			t.Errorf("%+v", s)
		}
	}
	t.Logf("%d kills, 2 x %d published, %d lost, %d stored again; %d redelivered after the restarts, %d of them recognised", kills, published, lost, again, redelivered, known)
	if lost > 0 || again > 0 {
		t.Errorf("%d lost, %d stored again", lost, again)
	}
}
