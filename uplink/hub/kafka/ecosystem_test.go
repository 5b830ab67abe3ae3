package kafka_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"

	"tailrace/storage/record"
	"tailrace/storage/storagetest"
)

// The ecosystem on the hub: real programs that are built on Kafka. They take long to
// start, so CI runs one of them, another with each commit; TAILRACE_ECOSYSTEM=all (make
// ecosystem), or the name of one.

var ecosystemParts = []string{"streams", "debezium", "mirror"}

func ecosystem(t *testing.T, part string) (dir string) {
	t.Helper()
	dir = clientsDir(t)
	want := os.Getenv("TAILRACE_ECOSYSTEM")
	if want == "" {
		want = ecosystemParts[storagetest.Rotation()%uint64(len(ecosystemParts))]
	}
	if want != "all" && want != part {
		t.Skipf("it is the turn of %s (TAILRACE_ECOSYSTEM=all runs all)", want)
	}
	return dir
}

// TestStreamsApplication: a stateful Kafka Streams application is killed, loses its
// disk, restores its store from the compacted topic on the hub, and ends with what it
// would have had without.
func TestStreamsApplication(t *testing.T) {
	dir := ecosystem(t, "streams")
	h := newHub(t)
	in, out := h.topic("readings", 2), h.topic("windows", 1)
	const turbines, windows = 5, 8
	send := func(from, to int) {
		t.Helper()
		for part := range 2 {
			var bl record.Builder
			bl.Reset(nil)
			for w := range windows {
				for i := from; i < to; i++ {
					for k := part; k < turbines; k += 2 {
						bl.Add(t0+int64(w)*10_000+int64(i), fmt.Appendf(nil, "wtg-%d", k), fmt.Append(nil, i), nil)
					}
				}
			}
			a := h.store.NewAppend("")
			if err := a.Batch(in.Partition(part), record.Batch(bl.Finish(0, 0)), nil); err != nil {
				t.Fatal(err)
			}
			h.commit(a)
		}
	}
	state := t.TempDir()
	start := func() *program {
		return java(t, "streams", filepath.Join(dir, "lib"), "testdata/java/Streams.java", h.addr, state)
	}
	// complete tells how many windows have all numbers below n.
	complete := func(n int) (count int) {
		last := map[string]string{}
		if hw := out.Partition(0).HighWatermark(); hw > 0 {
			for _, r := range poll(t, h.client(consumeAll("windows")), int(hw)) {
				last[string(r.Key)] = string(r.Value)
			}
		}
		for k := range turbines {
			for w := range windows {
				if last[fmt.Sprintf("WTG-%d@%d", k, t0+int64(w)*10_000)] == fmt.Sprint(int64(1)<<n-1) {
					count++
				}
			}
		}
		return count
	}
	// In two steps: what it keeps of the first is in its topic when the second comes, so
	// there is something to compact however seldom it commits.
	send(0, 15)
	p := start()
	p.await("the first quarter", func() bool { return complete(15) == turbines*windows })
	send(15, 30)
	p.await("the first half", func() bool { return complete(30) == turbines*windows })
	p.kill()
	if err := os.RemoveAll(state); err != nil {
		t.Fatal(err)
	}
	// What Streams made is as it asked for, and compacted the store can still be restored.
	rs, err := kadm.NewClient(h.client()).DescribeTopicConfigs(withTimeout(t), "bits-bits-changelog", "bits-bits-repartition")
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rs {
		for _, c := range r.Configs {
			if want := map[string]string{"bits-bits-changelog": "compact,delete", "bits-bits-repartition": "delete"}[r.Name]; c.Key == "cleanup.policy" && *c.Value != want {
				t.Errorf("%s: cleanup.policy %s, want %s", r.Name, *c.Value, want)
			}
		}
	}
	if err := h.store.Compact(); err != nil {
		t.Fatal(err)
	}
	if st := h.store.Stats().Classes[0]; st.CompactedAway == 0 {
		t.Errorf("nothing was compacted: %+v", st)
	}
	send(30, 62)
	p = start()
	p.await("the second half", func() bool { return complete(62) == turbines*windows })
	p.kill()
	if s := p.out.String(); strings.Contains(s, "Exception") {
		t.Errorf("it complained:\n%.4000s", s)
	}
}

// freePort is a port on loopback that nobody has now.
func freePort(t *testing.T) int {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().(*net.TCPAddr).Port
}

// postgres starts a PostgreSQL server of its own and returns its port and a way to ask.
func postgres(t *testing.T) (port int, query func(sql string) (string, error)) {
	t.Helper()
	bins, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
	if len(bins) == 0 {
		t.Fatal("PostgreSQL is not there, run .ci/kafka-clients")
	}
	bin := bins[len(bins)-1]
	base, err := os.MkdirTemp("", "pg")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(base) })
	as := func(name string, args ...string) *exec.Cmd {
		cmd := exec.Command(filepath.Join(bin, name), args...)
		if os.Geteuid() == 0 { // it does not run as root
			cmd = exec.Command("runuser", append([]string{"-u", "postgres", "--", filepath.Join(bin, name)}, args...)...)
		}
		cmd.Dir = base
		return cmd
	}
	if os.Geteuid() == 0 {
		if out, err := exec.Command("chown", "postgres", base).CombinedOutput(); err != nil {
			t.Fatalf("%v %s", err, out)
		}
	}
	if out, err := as("initdb", "-D", filepath.Join(base, "data"), "-U", "test", "-A", "trust", "--no-sync", "--locale=C").CombinedOutput(); err != nil {
		t.Fatalf("initdb: %v\n%s", err, out)
	}
	port = freePort(t)
	p := launch(t, "PostgreSQL", as("postgres", "-D", filepath.Join(base, "data"), "-p", fmt.Sprint(port), "-k", base, "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"))
	// Before the kill, which as root reaches runuser only.
	t.Cleanup(func() { as("pg_ctl", "stop", "-D", filepath.Join(base, "data"), "-m", "immediate", "-s").Run() })
	query = func(sql string) (string, error) {
		out, err := exec.Command(filepath.Join(bin, "psql"), "-h", "127.0.0.1", "-p", fmt.Sprint(port), "-U", "test", "-d", "postgres", "-Atc", sql).CombinedOutput()
		return strings.TrimSpace(string(out)), err
	}
	p.await("an answer", func() bool {
		_, err := query("select 1")
		return err == nil
	})
	return port, query
}

// TestDebeziumSink: distributed Connect, whose configuration, offsets and status are
// compacted topics of the hub, writes a topic into PostgreSQL by the Debezium JDBC sink,
// is killed, and goes on.
func TestDebeziumSink(t *testing.T) {
	dir := ecosystem(t, "debezium")
	h := newHub(t)
	topic := h.topic("readings", 1)
	port, query := postgres(t)
	schema := func(fields string) string {
		return `{"type":"struct","name":"reading","optional":false,"fields":[` + fields + `]}`
	}
	send := func(from, to int) {
		t.Helper()
		a := h.store.NewAppend("")
		for i := from; i < to; i++ {
			key := fmt.Sprintf(`{"schema":%s,"payload":{"id":%d}}`, schema(`{"type":"int32","optional":false,"field":"id"}`), i%100)
			value := fmt.Sprintf(`{"schema":%s,"payload":{"turbine":"wtg-%d","power":%d}}`,
				schema(`{"type":"string","optional":false,"field":"turbine"},{"type":"int32","optional":false,"field":"power"}`), i%7, i)
			if err := a.Record(topic.Partition(0), t0+int64(i), []byte(key), []byte(value), nil); err != nil {
				t.Fatal(err)
			}
		}
		h.commit(a)
	}
	send(0, 500)
	rest := freePort(t)
	worker := properties(t, "distributed.properties", "bootstrap.servers="+h.addr, "group.id=connect", "key.converter=org.apache.kafka.connect.json.JsonConverter",
		"value.converter=org.apache.kafka.connect.json.JsonConverter", "config.storage.topic=connect-configs", "offset.storage.topic=connect-offsets",
		"status.storage.topic=connect-status", "config.storage.replication.factor=1", "offset.storage.replication.factor=1", "status.storage.replication.factor=1",
		"offset.storage.partitions=2", "status.storage.partitions=1", "offset.flush.interval.ms=500", fmt.Sprintf("listeners=http://127.0.0.1:%d", rest),
		"plugin.path="+filepath.Join(dir, "plugins"), "session.timeout.ms=6000", "heartbeat.interval.ms=1000", "scheduled.rebalance.max.delay.ms=0",
		"consumer.session.timeout.ms=6000", "consumer.heartbeat.interval.ms=1000")
	start := func() *program {
		return java(t, "connect", filepath.Join(dir, "lib"), "org.apache.kafka.connect.cli.ConnectDistributed", worker)
	}
	call := func(method, path, body string) (int, string) {
		req, err := http.NewRequest(method, fmt.Sprintf("http://127.0.0.1:%d%s", rest, path), strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return 0, err.Error()
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(b)
	}
	rows := func(sql, want string) func() bool {
		return func() bool {
			out, err := query(sql)
			if _, status := call("GET", "/connectors/sink/status", ""); strings.Contains(status, "FAILED") {
				t.Fatalf("the connector failed: %s", status)
			}
			return err == nil && out == want
		}
	}
	p := start()
	p.await("the worker", func() bool {
		code, out := call("PUT", "/connectors/sink/config", fmt.Sprintf(`{"connector.class":"io.debezium.connector.jdbc.JdbcSinkConnector","tasks.max":"1","topics":"readings",
			"connection.url":"jdbc:postgresql://127.0.0.1:%d/postgres","connection.username":"test","connection.password":"",
			"insert.mode":"upsert","delete.enabled":"true","primary.key.mode":"record_key","schema.evolution":"basic","collection.name.format":"readings"}`, port))
		if code == http.StatusBadRequest {
			t.Fatalf("the connector is refused: %s", out)
		}
		return code == http.StatusCreated || code == http.StatusOK
	})
	p.await("the first rows", rows("select count(*), min(power), max(power) from readings", "100|400|499"))
	p.kill()
	for _, name := range []string{"connect-configs", "connect-offsets", "connect-status"} {
		if tp, ok := h.store.Topic(name); !ok || !tp.Compacted() {
			t.Errorf("topic %s: there %v, compacted %v", name, ok, ok && tp.Compacted())
		}
	}
	if err := h.store.Compact(); err != nil {
		t.Fatal(err)
	}
	send(500, 1000)
	a := h.store.NewAppend("") // deletes the row 42
	if err := a.Record(topic.Partition(0), t0+1000, fmt.Appendf(nil, `{"schema":%s,"payload":{"id":42}}`, schema(`{"type":"int32","optional":false,"field":"id"}`)), nil, nil); err != nil {
		t.Fatal(err)
	}
	h.commit(a)
	p = start()
	p.await("the other rows", rows("select count(*), min(power), max(power), count(*) filter (where id = 42) from readings", "99|900|999|0"))
}
