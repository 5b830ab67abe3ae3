//go:build linux

package kill

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"tailrace/firmware-sim/rawload"
)

// modes is a site whose operator uses the command.
type modes struct {
	*site
	t       *testing.T
	command string
	loads   int
}

const modesConfig = `routes:
  - {topic: "live/#", stream: live}
  - {topic: "raw/#", stream: raw}
  - {topic: "alarm/#", stream: alarm}
topics:
  - {match: live, mode: live-first}
  - {match: raw, mode: on-demand}
  - {match: alarm, priority: 1}
`

func newModes(t *testing.T) *modes {
	t.Helper()
	dir := t.TempDir()
	s, err := newSite(dir)
	if err != nil {
		t.Fatal(err)
	}
	m := &modes{site: s, t: t, command: filepath.Join(dir, "tailrace")}
	if out, err := exec.Command("go", "build", "-o", m.command, "tailrace/cmd/tailrace").CombinedOutput(); err != nil {
		t.Fatalf("build tailrace: %v\n%s", err, out)
	}
	m.change("default:", modesConfig+"default:")
	s.endWith(t)
	m.start(s.hub)
	m.start(s.node)
	return m
}

func (m *modes) start(p *proc) {
	m.t.Helper()
	if err := p.start(); err != nil {
		m.t.Fatal(err)
	}
}

func (m *modes) stop(p *proc) {
	m.t.Helper()
	if err := p.end(syscall.SIGKILL); err != nil {
		m.t.Fatal(err)
	}
}

// change changes the node's configuration file.
func (m *modes) change(old, new string) {
	m.t.Helper()
	file := filepath.Join(m.dir, "edge.yaml")
	b, err := os.ReadFile(file)
	if err != nil {
		m.t.Fatal(err)
	}
	if !strings.Contains(string(b), old) {
		m.t.Fatalf("no %q in the configuration", old)
	}
	if err := os.WriteFile(file, []byte(strings.Replace(string(b), old, new, 1)), 0o600); err != nil {
		m.t.Fatal(err)
	}
}

// run is a command line; what it prints, and whether it ended well.
func (m *modes) run(args ...string) (string, bool) {
	out, err := exec.Command(m.command, append(args, "--url", "http://"+m.hubHTTP)...).Output()
	return string(out), err == nil
}

func (m *modes) until(what string, f func() bool) {
	m.t.Helper()
	begin := time.Now()
	defer func() { m.t.Logf("%s: %v", what, time.Since(begin).Round(time.Millisecond)) }()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(time.Minute); !f(); <-tick.C {
		if time.Now().After(end) {
			m.t.Fatalf("not within a minute: %s", what)
		}
	}
}

// publish sends n messages of 200 bytes, and waits for their acknowledgements.
func (m *modes) publish(topic string, n int) {
	m.t.Helper()
	m.loads++
	r, err := rawload.Run(m.t.Context(), rawload.Config{Dial: rawload.DialTCP(m.mqtt, nil), QoS: 1, Count: int64(n), PayloadBytes: 200, Drain: 30 * time.Second, Reconnect: true,
		ClientPrefix: fmt.Sprintf("d%d", m.loads), Topic: topic + "/{client}", Seed: uint64(m.loads)})
	if err != nil || r.Acked != int64(n) {
		m.t.Fatalf("publish to %s: %+v %v", topic, r, err)
	}
}

// count is how many records `tailrace replay` gives of a topic at the hub.
func (m *modes) count(topic string) int {
	out, ok := m.run("replay", topic, "-q")
	if !ok {
		return 0
	}
	return strings.Count(out, "\n")
}

// link is what `tailrace nodes -o json` says of the node's class of links.
func (m *modes) link() (used, left int64, held string) {
	out, _ := m.run("nodes", "-o", "json")
	var all struct {
		Nodes []struct {
			Status struct {
				Links []struct {
					Used int64  `json:"used_bytes"`
					Left int64  `json:"left_bytes"`
					Held string `json:"held"`
				} `json:"links"`
			} `json:"status"`
		} `json:"nodes"`
	}
	if err := json.Unmarshal([]byte(out), &all); err != nil || len(all.Nodes) == 0 || len(all.Nodes[0].Status.Links) == 0 {
		return 0, 0, ""
	}
	l := all.Nodes[0].Status.Links[0]
	return l.Used, l.Left, l.Held
}

// The daemons as they are shipped, and the operator's command: a live-first topic over a
// hub that was away, a topic on demand fetched from a node that is away,
// and a monthly budget that runs out.
func TestModesAndBudgetsOfTheDaemons(t *testing.T) {
	m := newModes(t)
	m.publish("live", 100)
	m.publish("raw", 300)
	m.until("the first records are at the hub", func() bool { return m.count("live") == 100 })

	m.stop(m.hub)
	m.publish("live", 2000)
	m.start(m.hub)
	m.until("the node is back", func() bool { out, ok := m.run("nodes"); return ok && strings.Contains(out, nodeID) })
	m.publish("live", 10)
	m.until("all is there once, topic and companion together", func() bool { return m.count("live")+m.count("live.backfill") == 2110 })
	if n := m.count("live.backfill"); n < 1000 {
		t.Errorf("%d records of the gap are in the companion topic", n)
	}
	if n := m.count("raw"); n != 0 {
		t.Errorf("%d records of a topic on demand came by themselves", n)
	}

	m.stop(m.node)
	out, ok := m.run("fetch", nodeID, "raw", "--from", "1h", "-o", "json")
	if !ok || !strings.Contains(out, `"queued"`) {
		t.Errorf("a fetch from a node that is away: %s", out)
	}
	m.change("uplink:\n", "uplink:\n  links: [{name: metered, match: [\"*\"], monthly: 256KiB}]\n")
	m.start(m.node)
	m.until("what was fetched is there", func() bool { return m.count("raw") == 300 })

	rounds := 0
	m.until("the budget is used up and the hub says so", func() bool { // with the next report, every 15 s
		if used, left, held := m.link(); used >= 256<<10 && left == 0 && strings.Contains(held, "used up") {
			return true
		}
		if rounds++; rounds < 60 {
			m.publish("live", 1000)
		}
		return false
	})
	before := -1
	m.until("what was under way is there", func() bool {
		was := before
		before = m.count("live") + m.count("live.backfill")
		return was == before
	})
	m.publish("live", 500)
	m.publish("alarm", 1)
	m.until("an alarm comes all the same", func() bool { return m.count("alarm") == 1 })
	if n := m.count("live") + m.count("live.backfill"); n > before {
		t.Errorf("%d records came beyond the budget", n-before)
	}
	for _, p := range []*proc{m.node, m.hub} {
		for _, r := range append(p.unasked(), p.log.crashes()...) {
			t.Errorf("%s: %s", p.name, r)
		}
	}
}
