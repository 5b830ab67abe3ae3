package kafka_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"tailrace/storage/record"
	"tailrace/uplink/pki"
)

// The client matrix: every client lists, consumes from the beginning, an offset
// and a time, shares a topic in a group of two of which one goes away, produces
// idempotently with each compression, and administers. The programs lie in
// testdata and print "ok STEP"; .ci/kafka-clients sets them up. About a minute
// together; short: kcat and franz-go have tests of their own, the rest is left
// out by "go test -short".

// clientTime bounds one client's whole program on a loaded machine.
const clientTime = 4 * time.Minute

func clientsDir(t *testing.T) string {
	t.Helper()
	if testing.Short() {
		t.Skip("outside clients run in the long form")
	}
	dir := os.Getenv("TAILRACE_KAFKA_CLIENTS")
	if dir == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			t.Fatal(err)
		}
		dir = filepath.Join(cache, "tailrace", "kafka-clients")
	}
	if _, err := os.Stat(filepath.Join(dir, "lib")); err != nil {
		t.Fatalf("the clients are not set up, run .ci/kafka-clients: %v", err)
	}
	return dir
}

// matrixHub has what the programs expect.
func matrixHub(t *testing.T, client string, groups ...string) *hub {
	h := newHub(t)
	wind := h.topic("wind", 2)
	h.fill(wind.Partition(0), 0, 1000, 100, false)
	h.fill(wind.Partition(1), 0, 1000, 100, true)
	for _, g := range groups {
		h.topic(client+"-"+g, 2)
	}
	for _, codec := range codecs {
		h.topic(client+"-in-"+codec, 1)
	}
	return h
}

var codecs = []string{"none", "gzip", "snappy", "lz4", "zstd"}

// run runs a program and returns what it printed.
func run(t *testing.T, stdin, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), clientTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdin = strings.NewReader(stdin)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		e := errs.String()
		t.Fatalf("%s: %v\n%s\n%s", filepath.Base(name), err, out.String(), e[max(0, len(e)-4000):])
	}
	return out.String()
}

func steps(t *testing.T, out string, groups ...string) {
	t.Helper()
	want := append([]string{"list", "beginning", "offset", "timestamp", "admin-topics", "admin-groups", "admin-delete"}, groups...)
	for _, c := range codecs {
		want = append(want, "produce-"+c)
	}
	for _, w := range want {
		if !slices.Contains(strings.Split(out, "\n"), "ok "+w) {
			t.Errorf("step %s is missing in\n%s", w, out)
		}
	}
}

// produced checks what a client has stored: 1,001 records in batches of its
// codec, each with a producer id.
func (h *hub) produced(client string) {
	h.t.Helper()
	d := record.NewDecompressor(0)
	defer d.Close()
	for codec, name := range codecs {
		tp, _ := h.store.Topic(client + "-in-" + name)
		p := tp.Partition(0)
		if p.HighWatermark() != 1001 {
			h.t.Errorf("%s: %d records", name, p.HighWatermark())
		}
		compressed := 0
		for from := p.Start(); from < p.HighWatermark(); {
			b, next, err := p.Read(nil, from, 1)
			if err != nil {
				h.t.Fatal(err)
			}
			batch, _, err := record.Next(b)
			if err != nil {
				h.t.Fatal(err)
			}
			if batch.ProducerID() < 0 || batch.Codec() != codec && batch.Codec() != 0 {
				h.t.Errorf("%s: codec %d, producer %d", name, batch.Codec(), batch.ProducerID())
			}
			if batch.Codec() == codec { // a batch that would not shrink is sent as it is
				compressed += batch.Count()
			}
			for it := batch.Iter(d); it.Next(); {
				r := it.Record()
				if want := fmt.Sprint("value number ", r.Offset); string(r.Value) != want || string(r.Key) != fmt.Sprint("k", r.Offset) {
					h.t.Fatalf("%s: offset %d holds %q %q", name, r.Offset, r.Key, r.Value)
				}
			}
			from = next
		}
		if compressed == 0 {
			h.t.Errorf("%s: no batch is compressed so", name)
		}
	}
}

func TestClientJava(t *testing.T) {
	dir := clientsDir(t)
	groups := []string{"group-range", "group-cooperative"}
	h := matrixHub(t, "java", groups...)
	t.Log("Java client", glob(t, dir, "kafka-clients-*.jar"))
	out := run(t, "", "java", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-XX:TieredStopAtLevel=1", "-cp", filepath.Join(dir, "lib", "*"), "testdata/java/Matrix.java", h.addr)
	steps(t, out, append(groups, "transactions-refused")...)
	h.produced("java")
}

func glob(t *testing.T, dir, pattern string) string {
	t.Helper()
	m, err := filepath.Glob(filepath.Join(dir, "lib", pattern))
	if err != nil || len(m) == 0 {
		t.Fatalf("%s is not there: %v", pattern, err)
	}
	return filepath.Base(m[0])
}

func TestClientJavaConsoleTools(t *testing.T) {
	dir := clientsDir(t)
	h := newHub(t)
	h.fill(h.topic("wind", 2).Partition(0), 0, 1000, 100, true)
	tool := func(stdin, class string, args ...string) string {
		t.Helper()
		return run(t, stdin, "java", append([]string{"-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-XX:TieredStopAtLevel=1", "-cp", filepath.Join(dir, "lib", "*"),
			"org.apache.kafka.tools." + class, "--bootstrap-server", h.addr}, args...)...)
	}
	has := func(out string, want ...string) {
		t.Helper()
		for _, w := range want {
			if !strings.Contains(out, w) {
				t.Errorf("%q is missing in\n%s", w, out)
			}
		}
	}
	has(tool("", "TopicCommand", "--list"), "wind")
	tool("", "TopicCommand", "--create", "--topic", "new", "--partitions", "2", "--config", "retention.ms=3600000")
	has(tool("", "TopicCommand", "--describe", "--topic", "new"), "PartitionCount: 2", "retention.ms=3600000")
	tool("a:1\nb:2\n", "ConsoleProducer", "--topic", "new", "--reader-property", "parse.key=true", "--reader-property", "key.separator=:", "--compression-codec", "zstd")
	has(tool("", "consumer.ConsoleConsumer", "--topic", "new", "--from-beginning", "--max-messages", "2", "--group", "console", "--formatter-property", "print.key=true"), "a\t1", "b\t2")
	has(tool("", "GetOffsetShell", "--topic", "wind"), "wind:0:1000", "wind:1:0")
	has(tool("", "consumer.group.ConsumerGroupCommand", "--describe", "--group", "console"), "new", "console")
	tool("", "TopicCommand", "--delete", "--topic", "new")
	if _, ok := h.store.Topic("new"); ok {
		t.Error("the topic is still there")
	}
}

func TestClientConfluentPython(t *testing.T) {
	clientsDir(t)
	groups := []string{"group-range", "group-cooperative"}
	h := matrixHub(t, "python", groups...)
	out := run(t, "", "/usr/bin/python3", "testdata/python/matrix.py", h.addr)
	t.Log(strings.SplitN(out, "\n", 2)[0])
	steps(t, out, groups...)
	h.produced("python")
}

func TestClientSarama(t *testing.T) {
	dir := clientsDir(t)
	groups := []string{"group-range", "group-sticky"}
	h := matrixHub(t, "sarama", groups...)
	steps(t, run(t, "", filepath.Join(dir, "saramamatrix"), h.addr), groups...)
	h.produced("sarama")
}

func TestClientFranzGo(t *testing.T) {
	h := matrixHub(t, "franz")
	ctx, cancel := context.WithTimeout(context.Background(), clientTime)
	defer cancel()
	adm := kadm.NewClient(h.client())
	ts, err := adm.ListTopics(ctx)
	if err != nil || len(ts["wind"].Partitions) != 2 {
		t.Fatal(err, ts)
	}
	for what, c := range map[string]struct {
		from  kgo.Offset
		first int64
	}{"beginning": {kgo.NewOffset().AtStart(), 0}, "offset": {kgo.NewOffset().At(555), 555}, "time": {kgo.NewOffset().AfterMilli(t0 + 500_500), 501}} {
		cl := h.client(kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{"wind": {0: c.from}}))
		for i, r := range poll(t, cl, int(1000-c.first)) {
			if want := c.first + int64(i); r.Offset != want || string(r.Value) != fmt.Sprint("v", want) || r.Timestamp.UnixMilli() != t0+want*1000 {
				t.Fatalf("from %s: %d instead of %d", what, r.Offset, want)
			}
		}
	}
	for i, codec := range []kgo.CompressionCodec{kgo.NoCompression(), kgo.GzipCompression(), kgo.SnappyCompression(), kgo.Lz4Compression(), kgo.ZstdCompression()} {
		cl := h.client(kgo.ProducerBatchCompression(codec), kgo.DefaultProduceTopic("franz-in-"+codecs[i]), kgo.ProducerLinger(5*time.Millisecond))
		var rs []*kgo.Record
		for j := range 1001 {
			rs = append(rs, &kgo.Record{Key: fmt.Append(nil, "k", j), Value: fmt.Append(nil, "value number ", j)})
		}
		if err := cl.ProduceSync(ctx, rs...).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	h.produced("franz")
	// Groups and administration: group_test.go and admin_test.go.
}

// lines counts the lines that a program writes.
type lines struct {
	mu      sync.Mutex
	part    []byte
	seen    map[string]int
	changed chan struct{} // capacity 1
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.part = append(l.part, p...)
	for {
		i := bytes.IndexByte(l.part, '\n')
		if i < 0 {
			break
		}
		l.seen[string(l.part[:i])]++
		l.part = l.part[i+1:]
	}
	select {
	case l.changed <- struct{}{}:
	default:
	}
	return len(p), nil
}

func (l *lines) all() map[string]int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return maps.Clone(l.seen)
}

// await waits for n different lines.
func (l *lines) await(t *testing.T, n int) {
	t.Helper()
	limit := time.After(clientTime)
	for len(l.all()) < n {
		select {
		case <-l.changed:
		case <-limit:
			t.Fatalf("%d of %d lines", len(l.all()), n)
		}
	}
}

func TestClientKcatTakesOverFromADeadMember(t *testing.T) {
	h := newHub(t)
	tp := h.topic("wind", 2)
	for i := range 2 {
		h.fill(tp.Partition(i), 0, 100, 10, false)
	}
	member := func() (*exec.Cmd, *lines) {
		cmd := exec.Command("kcat", "-b", h.addr, "-G", "readers", "-u", "-X", "session.timeout.ms=6000", "-X", "heartbeat.interval.ms=500", "-X", "auto.offset.reset=earliest",
			"-X", "auto.commit.interval.ms=100", "-f", "%p/%o\n", "wind")
		out := &lines{seen: make(map[string]int), changed: make(chan struct{}, 1)}
		cmd.Stdout = out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
		return cmd, out
	}
	a, outA := member()
	outA.await(t, 200)
	b, outB := member()
	for _, both := range []bool{true, false} {
		// While both live each has one partition; then one has both.
		adm := kadm.NewClient(h.client())
		await(t, fmt.Sprintf("a stable group (of both: %v)", both), func() bool {
			ds, err := adm.DescribeGroups(withTimeout(t), "readers")
			if err != nil {
				t.Fatal(err)
			}
			g := ds["readers"]
			return g.State == "Stable" && (len(g.Members) == 2) == both
		})
		if both {
			a.Process.Kill()
		}
	}
	for i := range 2 {
		h.fill(tp.Partition(i), 100, 100, 10, false)
	}
	outB.await(t, 200)
	b.Process.Kill()
	for line, n := range outB.all() {
		if n != 1 || !strings.Contains(line, "/1") { // offsets 100 to 199
			t.Errorf("the survivor read %s %d times", line, n)
		}
	}
}

func TestClientsLogInOverTLS(t *testing.T) {
	dir := clientsDir(t)
	h := newHub(t, secured(t, "ann all *\n", "ann"))
	h.fill(h.topic("wind", 1).Partition(0), 0, 100, 10, false)
	now := time.Now()
	ca, caPair, err := pki.NewCA(rand.Reader, "test", now, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := ca.Issue(rand.Reader, pki.RoleHub, "hub", []string{"localhost", "127.0.0.1"}, now, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := tls.X509KeyPair(pair.Cert, pair.Key)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- h.srv.Serve(ctx, tls.NewListener(ln, &tls.Config{Certificates: []tls.Certificate{cert}}))
	}()
	defer func() { cancel(); <-done }()
	caFile := writeFile(t, "ca.pem", string(caPair.Cert))
	for _, mech := range []string{"PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"} {
		out := run(t, "", "kcat", "-b", ln.Addr().String(), "-C", "-t", "wind", "-o", "beginning", "-e", "-q", "-X", "security.protocol=SASL_SSL", "-X", "ssl.ca.location="+caFile,
			"-X", "sasl.mechanism="+mech, "-X", "sasl.username=ann", "-X", "sasl.password="+pass("ann"))
		if n := strings.Count(out, "\n"); n != 100 {
			t.Errorf("kcat by %s: %d records", mech, n)
		}
	}
	module := map[string]string{"PLAIN": "plain.PlainLoginModule", "SCRAM-SHA-512": "scram.ScramLoginModule"}
	for mech, m := range module {
		conf := writeFile(t, "client.properties", fmt.Sprintf("security.protocol=SASL_SSL\nssl.truststore.type=PEM\nssl.truststore.location=%s\nsasl.mechanism=%s\n"+
			"sasl.jaas.config=org.apache.kafka.common.security.%s required username=\"ann\" password=\"%s\";\n", caFile, mech, m, pass("ann")))
		out := run(t, "", "java", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-XX:TieredStopAtLevel=1", "-cp", filepath.Join(dir, "lib", "*"), "org.apache.kafka.tools.consumer.ConsoleConsumer",
			"--bootstrap-server", ln.Addr().String(), "--topic", "wind", "--from-beginning", "--max-messages", "100", "--command-config", conf)
		if n := strings.Count(out, "\n"); n != 100 {
			t.Errorf("Java by %s: %d records", mech, n)
		}
	}
}
