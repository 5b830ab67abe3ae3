package hub_test

import (
	"os"
	"strings"
	"testing"

	"tailrace/uplink/hub"
)

const minimal = "data_dir: d\ntls: {cert: c, key: k, ca: a}\n"

const cluster = "store:\n  kafka:\n    brokers: [b1:9092, b2:9092]\n    address: hub-1:7443\n    longest_outage: 30d\n"

func TestConfigReportsEveryProblem(t *testing.T) {
	for _, c := range []struct {
		name, yaml string
		want       []string // none: it is accepted
	}{
		{"minimal", minimal, nil},
		{"empty", "", []string{"data_dir is required", "tls: cert, key and ca are required"}},
		{"unknown key", minimal + "htttp: {}\n", []string{"htttp"}},
		{"unknown nested key", minimal + "http: {port: 1}\n", []string{"port"}},
		{"two documents", minimal + "---\n" + minimal, []string{"more than one"}},
		{"http to the network", minimal + "http: {listen: '0.0.0.0:8080'}\n", []string{"http.listen", "reachable from other machines", "client_ca or token_file"}},
		{"every interface", minimal + "http: {listen: ':8080'}\n", []string{"reachable from other machines"}},
		{"a name is not loopback", minimal + "http: {listen: 'hub.example:8080'}\n", []string{"reachable from other machines"}},
		{"tls without authentication", minimal + "http: {listen: ':8080', cert: c, key: k}\n", []string{"reachable from other machines"}},
		{"authentication without tls", minimal + "http: {listen: ':8080', token_file: t}\n", []string{"reachable from other machines"}},
		{"both", minimal + "http: {listen: ':8080', cert: c, key: k, token_file: t}\n", nil},
		{"client certificates", minimal + "http: {listen: ':8080', cert: c, key: k, client_ca: a}\n", nil},
		{"ipv6 loopback", minimal + "http: {listen: '[::1]:0'}\nkafka: {listen: 'localhost:0'}\n", nil},
		{"off", minimal + "http: {listen: 'off'}\nkafka: {listen: 'off'}\n", nil},
		{"kafka to the network", minimal + "kafka: {listen: ':9092', cert: c, key: k}\n", []string{"kafka.listen", "client_ca or users_file"}},
		{"kafka to the network with passwords only", minimal + "kafka: {listen: ':9092', users_file: u}\n", []string{"kafka.listen"}},
		{"kafka to the network with TLS and passwords", minimal + "kafka: {listen: ':9092', cert: c, key: k, users_file: u}\n", nil},
		{"cert without key", minimal + "http: {cert: c}\n", []string{"cert and key go together"}},
		{"client_ca without cert", minimal + "kafka: {client_ca: c}\n", []string{"client_ca needs cert"}},
		{"no port", minimal + "listen: here\nkafka: {advertised: there}\n", []string{"listen", "kafka.advertised"}},
		{"a cluster", minimal + cluster, nil},
		{"a cluster with everything", minimal + cluster + "    name: wind\n    shards: 16\n    replication: 2\n    linger: 20ms\n    tls: {ca: a, cert: c, key: k}\n    sasl: {mechanism: SCRAM-SHA-512, user: u, password_file: p}\n" +
			"topics: [{match: '*', partitions: 32, retention: 90d}]\n", nil},
		{"a cluster without anything", minimal + "store: {kafka: {}}\n", []string{"brokers: at least one", "store.kafka.address", "longest_outage is required"}},
		{"a misspelt key of a cluster", minimal + "store: {kafka: {broker: [a:1]}}\n", []string{"broker"}},
		{"retention below the longest outage", minimal + cluster + "topics: [{match: '*', retention: 1h}]\n", []string{"below longest_outage"}},
		{"fewer partitions than shards", minimal + cluster + "topics: [{match: '*', partitions: 4}]\n", []string{"at least the number of shards, 8"}},
		{"a listener beside a cluster", minimal + cluster + "kafka: {listen: '127.0.0.1:9092'}\n", []string{"consumers read the cluster itself"}},
		{"classes beside a cluster", minimal + cluster + "classes: [{name: a}]\n", []string{"classes"}},
		{"retention by arrival in a cluster", minimal + cluster + "topics: [{match: '*', retention_by: arrival}]\n", []string{"records' own time"}},
		{"a password in the clear", minimal + cluster + "    sasl: {mechanism: PLAIN, user: u, password_file: p}\n", []string{"configure tls"}},
		{"a login of no kind", minimal + cluster + "    sasl: {mechanism: GSSAPI, user: u, password_file: p}\n", []string{"GSSAPI"}},
		{"port of no kind", minimal + "listen: ':99999'\n", []string{"port"}},
		{"sizes and times", minimal + "classes: [{name: a, segment_bytes: 4MiB, commit_interval: 5ms, max_bytes: 2GB, when_full: reject}]\ntopics: [{match: '*', retention: 90d12h, retention_bytes: 1GiB}]\n", nil},
		{"bad size", minimal + "limits: {max_body: 5 parsecs}\n", []string{"not a size"}},
		{"huge size", minimal + "limits: {max_body: 99999999999TiB}\n", []string{"not a size"}},
		{"bad duration", minimal + "topics: [{match: x, retention: soon}]\n", []string{"not a duration"}},
		{"negative duration", minimal + "topics: [{match: x, retention: -1h}]\n", []string{"not a duration"}},
		{"budget without policy", minimal + "classes: [{name: a, max_bytes: 1GiB}]\n", []string{"when_full"}},
		{"unknown policy", minimal + "classes: [{name: a, max_bytes: 1GiB, when_full: panic}]\n", []string{"when_full"}},
		{"class twice", minimal + "classes: [{name: a}, {name: a}]\n", []string{"twice"}},
		{"class that is not there", minimal + "topics: [{match: x, class: b}]\n", []string{`no class "b"`}},
		{"bad patterns", minimal + "nodes: ['[']\ntopics: [{match: '['}, {partitions: 3}]\n", []string{"nodes:", "topics[0]", "topics[1]"}},
		{"too many partitions", minimal + "topics: [{match: x, partitions: 5000}]\n", []string{"1 to 1024"}},
		{"retention by what", minimal + "topics: [{match: x, retention_by: moon}]\n", []string{"arrival or record"}},
		{"log", minimal + "log: {level: loud, format: xml}\n", []string{"log.level", "log.format"}},
		{"limits", minimal + "limits: {max_nodes: -1, queued_bytes: 1}\n", []string{"max_nodes", "queued_bytes"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := hub.ParseConfig([]byte(c.yaml))
			if len(c.want) == 0 {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if err == nil {
				t.Fatal("accepted")
			}
			for _, w := range c.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%v\ndoes not say %q", err, w)
				}
			}
		})
	}
}

func TestExampleConfigIsAccepted(t *testing.T) {
	for _, file := range []string{"hub.example.yaml", "hub.kafka.example.yaml"} {
		b, err := os.ReadFile("../../deploy/" + file)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := hub.ParseConfig(b); err != nil {
			t.Errorf("%s: %v", file, err)
		}
	}
}
