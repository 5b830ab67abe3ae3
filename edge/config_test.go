package edge_test

import (
	"os"
	"strings"
	"testing"
	"time"

	"tailrace/edge"
)

const good = `
node: node-1
storage: {dir: d, classes: [{name: main, when_full: reject, max_size: 64MiB}]}
mqtt: {listeners: [{address: "127.0.0.1:1883"}], auth: {allow_anonymous: true}}
default: {stream: s}
`

func TestConfigurationsThatCannotWorkAreRefusedWithTheRule(t *testing.T) {
	if _, err := edge.ParseConfig(strings.NewReader(good)); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ name, old, new, want string }{
		{"unknown key", "node: node-1", "node: node-1\nnodee: x", "nodee"},
		{"unknown key inside", "dir: d", "dir: d, drr: e", "drr"},
		{"bad node id", "node: node-1", "node: \"a/b\"", "letters"},
		{"no policy", "when_full: reject, ", "", "when_full"},
		{"unknown policy", "when_full: reject", "when_full: drop-newest", "drop-oldest"},
		{"budget below six segments", "max_size: 64MiB", "max_size: 1MiB", "6 segments"},
		{"not a size", "max_size: 64MiB", "max_size: much", "want a number"},
		{"no class", "classes: [{name: main, when_full: reject, max_size: 64MiB}]", "classes: []", "at least one"},
		{"class twice", "classes: [{", "classes: [{name: main, when_full: reject}, {", "twice"},
		{"no default", "default: {stream: s}", "", "no route matches"},
		{"plaintext for others", "127.0.0.1:1883", "0.0.0.0:1883", "allow_plaintext"},
		{"plaintext by empty host", "127.0.0.1:1883", ":1883", "allow_plaintext"},
		{"nobody can log in", "auth: {allow_anonymous: true}", "auth: {}", "nobody could log in"},
		{"transport", "address: \"127.0.0.1:1883\"", "address: \"127.0.0.1:1883\", transport: udp", "websocket"},
		{"client cert without ca", "address: \"127.0.0.1:1883\"", "address: \"127.0.0.1:1883\", tls: {cert: a, key: b, require_client_cert: true}", "client_ca"},
		{"http for others", "default:", "http: {address: \"0.0.0.0:80\"}\ndefault:", "allow_remote"},
		{"hubs without tls", "default:", "uplink: {hubs: [\"h:7443\"]}\ndefault:", "uplink.tls"},
		{"hub without port", "default:", "uplink: {hubs: [h], tls: {cert: a, key: b, ca: c}}\ndefault:", "host:port"},
		{"topic class", "default:", "topics: [{match: x, class: gone}]\ndefault:", "no such storage class"},
		{"topic mode", "default:", "topics: [{match: x, mode: fast}]\ndefault:", "live-first"},
		{"sketch window", "default:", "topics: [{match: x, sketch: {window: 10ms}}]\ndefault:", "1s to 24h"},
		{"bridge without broker", "default:", "bridges: [{name: b, subscriptions: [{filter: a}]}]\ndefault:", "brokers"},
		{"bridge qos", "default:", "bridges: [{name: b, brokers: [\"mqtt://x\"], subscriptions: [{filter: a, qos: 3}]}]\ndefault:", "qos"},
		{"bad route", "default:", "routes: [{topic: \"a/#/b\", stream: s}]\ndefault:", "last segment"},
		{"log level", "default:", "log: {level: loud}\ndefault:", "debug, info"},
		{"two documents", "default: {stream: s}", "default: {stream: s}\n---\nnode: x", "more than one document"},
		{"nothing in", "listeners: [{address: \"127.0.0.1:1883\"}], ", "", "takes nothing in"},
	} {
		text := strings.Replace(good, c.old, c.new, 1)
		if text == good {
			t.Fatalf("%s: the test changes nothing", c.name)
		}
		_, err := edge.ParseConfig(strings.NewReader(text))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v; want something with %q", c.name, err, c.want)
		}
	}
}

func TestAllProblemsAreReportedAtOnce(t *testing.T) {
	_, err := edge.ParseConfig(strings.NewReader("storage: {classes: [{name: a}]}\nhttp: {address: \"0.0.0.0:1\"}\n"))
	for _, want := range []string{"node:", "storage.dir", "when_full", "default:", "takes nothing in", "http.address"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("no word about %s in: %v", want, err)
		}
	}
}

func TestSizes(t *testing.T) {
	for in, want := range map[string]edge.ByteSize{"0": 0, "512": 512, "512B": 512, "64KiB": 64 << 10, "1.5 MiB": 3 << 19, "2GB": 2e9, "4GiB": 4 << 30} {
		if got, err := edge.ParseByteSize(in); err != nil || got != want {
			t.Errorf("%q: %d, %v", in, got, err)
		}
	}
	for _, in := range []string{"", "x", "-1", "1XB", "9e30GiB", "NaN"} {
		if v, err := edge.ParseByteSize(in); err == nil {
			t.Errorf("%q: accepted as %d", in, v)
		}
	}
	if s := edge.ByteSize(3 << 20).String(); s != "3MiB" {
		t.Error(s)
	}
}

// The example is the documentation of every field: it has to decode.
func TestTheExampleConfigurationIsValid(t *testing.T) {
	f, err := os.Open("../deploy/edge.example.yaml")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	c, err := edge.ParseConfig(f)
	if err != nil {
		t.Fatal(err)
	}
	if c.Node != "node-1" || c.Uplink.TLS.CA != "certs/ca.crt" || len(c.Routes) == 0 || c.ShutdownTimeout != 10*time.Second {
		t.Errorf("%+v", c)
	}
}
