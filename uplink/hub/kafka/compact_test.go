package kafka_test

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"tailrace/storage"
)

// compactedTopic makes a compacted topic by the protocol, fills it, compacts it, and
// returns what every client must read: "offset key value" a line.
func compactedTopic(t *testing.T, h *hub) string {
	t.Helper()
	adm := kadm.NewClient(h.client())
	ctx := withTimeout(t)
	compact, hour := "compact", "3600000"
	if r, err := adm.CreateTopic(ctx, 1, 1, map[string]*string{"delete.retention.ms": &hour, "cleanup.policy": &compact, "segment.bytes": &hour}, "table"); err != nil || r.Err != nil {
		t.Fatal(err, r.Err, r.ErrMessage)
	}
	var want strings.Builder
	off := 0
	for round := range 4 {
		codec := []kgo.CompressionCodec{kgo.NoCompression(), kgo.ZstdCompression(), kgo.GzipCompression(), kgo.Lz4Compression()}[round]
		cl := h.client(kgo.ProducerBatchCompression(codec), kgo.DefaultProduceTopic("table"), kgo.ProducerLinger(5*time.Millisecond))
		var rs []*kgo.Record
		for i := range 500 {
			key := i % 100 // each key is written five times a round …
			r := &kgo.Record{Key: fmt.Append(nil, "k", key), Value: fmt.Append(nil, "value ", off)}
			if key%10 == 3 && round == 3 && i >= 400 {
				r.Value = nil // … and ten end as tombstones
			}
			if key%2 == 1 && round > 1 && key%10 != 3 {
				r.Key = fmt.Append(nil, "k", key, "/", round) // gaps of different lengths
			}
			rs = append(rs, r)
			off++
		}
		if err := cl.ProduceSync(ctx, rs...).FirstErr(); err != nil {
			t.Fatal(err)
		}
		if round == 1 {
			if err := h.store.Compact(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := h.store.Compact(); err != nil {
		t.Fatal(err)
	}
	tp, _ := h.store.Topic("table")
	n := 0
	last := map[string]string{}
	for _, r := range poll(t, h.client(kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{"table": {0: kgo.NewOffset().AtStart()}}), kgo.KeepControlRecords()), 60) {
		last[string(r.Key)] = string(r.Value)
		n++
		fmt.Fprintf(&want, "%d %s %s\n", r.Offset, r.Key, r.Value)
	}
	// What must be there follows from what was written: 50 even keys and 10 tombstones at
	// their last offset, 40 odd keys for rounds 0-1 and each later round.
	if st := tp.Partition(0).CompactStatus(); n != 50+10+3*40 || last["k3"] != "" || last["k0"] != "value 1900" || st.To != 2000 || st.Dirty != 0 {
		t.Fatalf("%d records are left, k3=%q k0=%q, %+v", n, last["k3"], last["k0"], st)
	}
	return want.String()
}

func TestCompactedTopic(t *testing.T) {
	h := newHub(t)
	want := compactedTopic(t, h)
	if got := h.kcat("", "-C", "-q", "-t", "table", "-e", "-o", "beginning", "-f", "%o %k %s\n"); got != want {
		t.Errorf("kcat: %d bytes instead of %d: %.200q", len(got), len(want), got)
	}
	// From an offset that is gone, and from a time.
	for _, from := range []string{"777", "1001"} {
		got := h.kcat("", "-C", "-q", "-t", "table", "-e", "-o", from, "-f", "%o %k %s\n")
		if !strings.HasSuffix(want, got) || got == "" {
			t.Errorf("kcat from %s: %.200q", from, got)
		}
	}
	if got := h.kcat("", "-C", "-q", "-t", "table", "-e", "-o", "s@1", "-f", "%o %k %s\n"); got != want {
		t.Errorf("kcat from a time: %d bytes instead of %d", len(got), len(want))
	}
	ctx := withTimeout(t)
	cl := h.client(kgo.DefaultProduceTopic("table"))
	err := cl.ProduceSync(ctx, &kgo.Record{Value: []byte("no key")}).FirstErr()
	if !errors.Is(err, kerr.InvalidRecord) {
		t.Errorf("a record without a key: %v", err)
	}
	adm := kadm.NewClient(cl)
	alter := func(op kadm.IncrementalOp, name, value string) error {
		rs, err := adm.AlterTopicConfigs(ctx, []kadm.AlterConfig{{Op: op, Name: name, Value: &value}}, "table")
		if err != nil {
			t.Fatal(err)
		}
		return rs[0].Err
	}
	describe := func() map[string]string {
		rs, err := adm.DescribeTopicConfigs(ctx, "table")
		if err != nil {
			t.Fatal(err)
		}
		m := map[string]string{}
		for _, c := range rs[0].Configs {
			m[c.Key] = *c.Value
		}
		return m
	}
	if m := describe(); m["cleanup.policy"] != "compact" || m["delete.retention.ms"] != "3600000" || m["segment.bytes"] != "3600000" || m["min.compaction.lag.ms"] != "0" {
		t.Errorf("%v", m)
	}
	if err := alter(kadm.AppendConfig, "cleanup.policy", "delete"); err != nil || describe()["cleanup.policy"] != "compact,delete" {
		t.Errorf("%v %v", err, describe())
	}
	if err := alter(kadm.SubtractConfig, "cleanup.policy", "compact"); err != nil || describe()["cleanup.policy"] != "delete" {
		t.Errorf("%v %v", err, describe())
	}
	if err := cl.ProduceSync(ctx, &kgo.Record{Value: []byte("no key")}).FirstErr(); err != nil {
		t.Errorf("a record without a key, not compacted: %v", err)
	}
	for _, bad := range [][2]string{{"cleanup.policy", "tidy"}, {"delete.retention.ms", "-1"}, {"min.cleanable.dirty.ratio", "2"}, {"max.compaction.lag.ms", "0"}} {
		if err := alter(kadm.SetConfig, bad[0], bad[1]); !errors.Is(err, kerr.InvalidConfig) {
			t.Errorf("%v: %v", bad, err)
		}
	}
	if err := alter(kadm.SetConfig, "cleanup.policy", "compact"); err != nil || describe()["delete.retention.ms"] != "3600000" {
		t.Errorf("%v %v", err, describe())
	}
	// What node data or an earlier policy has stored without a key stays.
	if err := h.store.Compact(); err != nil {
		t.Fatal(err)
	}
	if got := h.kcat("", "-C", "-q", "-t", "table", "-e", "-o", "2000", "-f", "%o %k %s\n"); got != "2000  no key\n" {
		t.Errorf("%q", got)
	}
}

// TestCompactionRunsByItself, and a reader at the end sees what comes meanwhile.
func TestCompactionRunsByItself(t *testing.T) {
	s, err := storage.Open(storage.Config{Dir: t.TempDir(), RetentionInterval: 5 * time.Millisecond, Classes: []storage.ClassConfig{{Name: "main"}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	h := serve(t, s)
	adm := kadm.NewClient(h.client())
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	compact, one, zero := "compact", "1", "0.01"
	if r, err := adm.CreateTopic(ctx, 1, 1, map[string]*string{"cleanup.policy": &compact, "segment.ms": &one, "min.cleanable.dirty.ratio": &zero}, "table"); err != nil || r.Err != nil {
		t.Fatal(err, r.Err)
	}
	cl := h.client(kgo.DefaultProduceTopic("table"), kgo.ConsumeTopics("table"), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	tp, _ := s.Topic("table")
	p := tp.Partition(0)
	seen := int64(-1)
	for i := 0; p.CompactStatus().To < 500; i++ {
		if err := cl.ProduceSync(ctx, &kgo.Record{Key: []byte("one"), Value: fmt.Append(nil, i)}).FirstErr(); err != nil {
			t.Fatal(err)
		}
		if i%50 == 49 {
			for seen < int64(i) {
				for _, r := range poll(t, cl, 1) {
					if r.Offset <= seen || string(r.Value) != fmt.Sprint(r.Offset) {
						t.Fatalf("offset %d after %d: %s", r.Offset, seen, r.Value)
					}
					seen = r.Offset
				}
			}
		}
	}
}

// TestClientsReadACompactedTopic: the same records with the same offsets for each of them.
func TestClientsReadACompactedTopic(t *testing.T) {
	dir := clientsDir(t)
	h := newHub(t)
	want := compactedTopic(t, h)
	records := fmt.Sprint(strings.Count(want, "\n"))
	java := func(class string, args ...string) string {
		return run(t, "", "java", append([]string{"-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-XX:TieredStopAtLevel=1", "-cp", filepath.Join(dir, "lib", "*"),
			"org.apache.kafka.tools." + class, "--bootstrap-server", h.addr}, args...)...)
	}
	got := java("consumer.ConsoleConsumer", "--topic", "table", "--from-beginning", "--max-messages", records, "--formatter-property", "print.key=true",
		"--formatter-property", "print.offset=true", "--formatter-property", "key.separator= ")
	if got = strings.ReplaceAll(strings.ReplaceAll(got, "Offset:", ""), "null", ""); got != want {
		t.Errorf("Java: %d bytes instead of %d: %.300q", len(got), len(want), got)
	}
	if out := java("TopicCommand", "--describe", "--topic", "table"); !strings.Contains(out, "cleanup.policy=compact") {
		t.Errorf("%s", out)
	}
	const script = `
import sys, confluent_kafka as k
c = k.Consumer({"bootstrap.servers": sys.argv[1], "group.id": "x", "enable.partition.eof": True})
c.assign([k.TopicPartition("table", 0, 0)])
while True:
    m = c.poll(30)
    if m is None: sys.exit("nothing came")
    if m.error(): break
    print(m.offset(), m.key().decode(), (m.value() or b"").decode())
c.close()`
	if got := run(t, "", "/usr/bin/python3", "-c", script, h.addr); got != want {
		t.Errorf("confluent-kafka: %d bytes instead of %d: %.300q", len(got), len(want), got)
	}
	out, err := exec.Command(filepath.Join(dir, "saramamatrix"), h.addr, "table").CombinedOutput()
	if got := string(out); err != nil || got != want {
		t.Errorf("sarama: %v, %d bytes instead of %d: %.300q", err, len(got), len(want), got)
	}
}
