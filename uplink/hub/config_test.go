package hub_test

import (
	"os"
	"strings"
	"testing"

	"tailrace/uplink/hub"
)

const minimal = "data_dir: d\ntls: {cert: c, key: k, ca: a}\n"

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
	b, err := os.ReadFile("../../deploy/hub.example.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := hub.ParseConfig(b); err != nil {
		t.Error(err)
	}
}
