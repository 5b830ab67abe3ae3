package edge_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/eclipse/paho.golang/paho"

	"tailrace/edge"
)

// A device sends again what it is not sure of, on a new connection, under another client
// id and after a kill of the node: by its own count each message is stored once.
func TestADeviceWithACountIsStoredOnce(t *testing.T) {
	dir := t.TempDir()
	yaml := plain + `
routes:
  - {topic: "m/{d}", stream: m, key: "{d}", dedupe: {encoding: json, field: seq, boot: b}}
  - {topic: "p/{d}", stream: p, key: "{d}", dedupe: {property: n, boot_property: boot}}
default: {stream: rest}
devices: {max: 3}
`
	n, stop := stoppableNode(t, yaml, dir)
	send := func(c *paho.Client, topic, body string, props ...string) {
		t.Helper()
		pp := &paho.PublishProperties{}
		for i := 0; i+1 < len(props); i += 2 {
			pp.User.Add(props[i], props[i+1])
		}
		if r, err := c.Publish(t.Context(), &paho.Publish{Topic: topic, QoS: 1, Payload: []byte(body), Properties: pp}); err != nil || r.ReasonCode != 0 {
			t.Fatalf("%s %s: %v", topic, body, err)
		}
	}
	m := func(boot, seq int) string { return fmt.Sprintf(`{"b":%d,"seq":%d}`, boot, seq) }
	c := client(t, n, "one")
	for _, s := range []int{0, 1, 2, 1, 4, 3, 4} { // out of order is no duplicate
		send(c, "m/x", m(1, s))
	}
	send(c, "m/y", m(1, 1)) // another device
	send(c, "m/x", m(2, 0)) // a restart: it counts anew
	send(c, "m/x", `{"seq":1}`)
	send(c, "m/x", `{"seq":1}`)                             // no boot: stored each time
	for _, boot := range []string{"5e1f", "5e1f", "77ab"} { // a boot id as Linux has it is text
		send(c, "m/x", fmt.Sprintf(`{"b":%q,"seq":9}`, boot))
	}
	send(c, "p/x", "a", "n", "7", "boot", "blue")
	send(c, "p/x", "b", "n", "7", "boot", "blue")
	send(c, "p/x", "c", "n", "7", "boot", "green")
	send(client(t, n, "two"), "m/x", m(1, 3))
	want := []string{m(1, 0), m(1, 1), m(1, 2), m(1, 4), m(1, 3), m(1, 1), m(2, 0), `{"seq":1}`, `{"seq":1}`, `{"b":"5e1f","seq":9}`, `{"b":"77ab","seq":9}`}
	if got := values(t, n, "m"); !slices.Equal(got, want) {
		t.Errorf("stored\n%q, want\n%q", got, want)
	}
	if got := values(t, n, "p"); strings.Join(got, "") != "ac" {
		t.Errorf("stored %q", got)
	}
	var st edge.Status
	if _, body := get(t, n, "/api/v1/status"); json.Unmarshal([]byte(body), &st) != nil || st.Rules[0].Duplicates != 4 || st.Rules[0].NoSequence != 2 || st.Rules[1].Duplicates != 1 {
		t.Errorf("%+v", st.Rules)
	}
	stop()
	n, stop = stoppableNode(t, yaml, dir)
	defer stop()
	c = client(t, n, "three")
	send(c, "m/x", m(1, 2))
	send(c, "m/x", m(2, 0))
	send(c, "m/x", m(1, 5))
	if got := values(t, n, "m"); !slices.Equal(got, append(want, m(1, 5))) {
		t.Errorf("after a restart %q", got)
	}
	// Bounded: many devices push the oldest out, and what is pushed out is stored again.
	for i := range 10 {
		send(c, fmt.Sprint("m/d", i), m(1, 1))
	}
	before := len(values(t, n, "m"))
	send(c, "m/x", m(1, 5))
	send(c, "m/d9", m(1, 1))
	if got := len(values(t, n, "m")); got != before+1 {
		t.Errorf("%d stored, want one more than %d", got, before)
	}
}

func TestADedupeRuleThatCouldLoseIsRefused(t *testing.T) {
	for _, rule := range []string{"{encoding: json, field: seq}", "{property: n}", "{field: seq, boot: b}", "{encoding: json, field: seq, property: n, boot: b}", "{encoding: xml, field: seq, boot: b}",
		"{encoding: json, field: \"a|b\", boot: b}", "{encoding: json, property: n, boot_property: b}", "{boot: b, encoding: json}"} {
		if _, err := edge.ParseConfig(strings.NewReader(plain + "routes: [{topic: t, stream: s, dedupe: " + rule + "}]\ndefault: {stream: s}\n")); err == nil {
			t.Errorf("%s: accepted", rule)
		}
	}
}
