package kafka_test

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"tailrace/uplink/hub/relay/kafkatest"
)

// realBroker starts an Apache Kafka broker (KRaft) and returns a client's options for it.
func realBroker(t *testing.T, lib string) (addr string, seeds kgo.Opt) {
	t.Helper()
	k, err := kafkatest.Start(withTimeout(t), kafkatest.Options{Dir: t.TempDir(), Brokers: 1, Lib: lib})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.Close)
	return k.Addrs[0], kgo.SeedBrokers(k.Addrs...)
}

// TestMirrorMaker: MirrorMaker 2 copies a topic of the hub to a real Kafka broker and one
// of the broker to the hub, with group offsets; it is killed and goes on.
func TestMirrorMaker(t *testing.T) {
	dir := ecosystem(t, "mirror")
	lib := filepath.Join(dir, "lib")
	h := newHub(t)
	brokerAddr, broker := realBroker(t, lib)
	wind := h.topic("wind", 1)
	h.fill(wind.Partition(0), 0, 1000, 100, true)
	ctx := withTimeout(t)
	if r, err := kadm.NewClient(h.client(broker)).CreateTopic(ctx, 1, 1, nil, "orders"); err != nil || r.Err != nil {
		t.Fatal(err, r.Err)
	}
	produce := func(from, to int) {
		t.Helper()
		var rs []*kgo.Record
		for i := from; i < to; i++ {
			rs = append(rs, &kgo.Record{Topic: "orders", Key: fmt.Append(nil, "k", i), Value: fmt.Append(nil, "v", i), Timestamp: time.UnixMilli(t0 + int64(i)*1000)})
		}
		if err := h.client(broker, kgo.ProducerBatchCompression(kgo.ZstdCompression())).ProduceSync(withTimeout(t), rs...).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	produce(0, 1000)
	// A group has read 400 of the hub's records.
	var to kadm.Offsets
	to.AddOffset("wind", 0, 400, -1)
	if rs, err := kadm.NewClient(h.client()).CommitOffsets(ctx, "readers", to); err != nil || rs.Error() != nil {
		t.Fatal(err, rs.Error())
	}
	conf := []string{"clusters=hub,kafka", "hub.bootstrap.servers=" + h.addr, "kafka.bootstrap.servers=" + brokerAddr,
		"hub->kafka.enabled=true", "hub->kafka.topics=wind", "kafka->hub.enabled=true", "kafka->hub.topics=orders",
		"replication.factor=1", "checkpoints.topic.replication.factor=1", "heartbeats.topic.replication.factor=1", "offset-syncs.topic.replication.factor=1",
		"offset.storage.replication.factor=1", "status.storage.replication.factor=1", "config.storage.replication.factor=1",
		"offset.storage.partitions=1", "status.storage.partitions=1", "refresh.topics.interval.seconds=1", "refresh.groups.interval.seconds=1", "emit.checkpoints.interval.seconds=1",
		"sync.group.offsets.enabled=true", "sync.group.offsets.interval.seconds=1", "offset.flush.interval.ms=500", "offset.lag.max=0",
		"scheduled.rebalance.max.delay.ms=0", "session.timeout.ms=10000", "heartbeat.interval.ms=1000", "tasks.max=1"}
	file := properties(t, "mm2.properties", conf...)
	start := func() *program { return java(t, "mirror", lib, "org.apache.kafka.connect.mirror.MirrorMaker", file) }
	// has tells whether the copy has the first n records of its source, in order.
	has := func(cl *kgo.Client, n int) bool {
		defer cl.Close()
		seen := -1
		for seen < n-1 {
			fs := cl.PollFetches(withTimeout(t))
			if len(fs.Errors()) > 0 {
				return false
			}
			for _, r := range fs.Records() {
				var i int
				if _, err := fmt.Sscanf(string(r.Value), "v%d", &i); err != nil || string(r.Key) != fmt.Sprint("k", i) || r.Timestamp.UnixMilli() != t0+int64(i)*1000 {
					t.Fatalf("the copy has %q %q at %v", r.Key, r.Value, r.Timestamp)
				}
				if i > seen+1 {
					t.Fatalf("the copy has record %d after %d", i, seen)
				}
				seen = max(seen, i) // at least once: after a kill some come again
			}
		}
		return true
	}
	end := func(adm *kadm.Client, topic string) int64 {
		os, err := adm.ListEndOffsets(withTimeout(t), topic)
		if err != nil {
			return 0
		}
		o, _ := os.Lookup(topic, 0)
		return o.Offset
	}
	onHub, onBroker := kadm.NewClient(h.client()), kadm.NewClient(h.client(broker))
	p := start()
	t.Cleanup(func() { t.Logf("the broker has %d, the hub %d", end(onBroker, "hub.wind"), end(onHub, "kafka.orders")) })
	both := func(n int) {
		t.Helper()
		p.await(fmt.Sprint(n, " records on both sides"), func() bool {
			return end(onBroker, "hub.wind") >= int64(n) && end(onHub, "kafka.orders") >= int64(n) &&
				has(h.client(broker, consumeAll("hub.wind")), n) && has(h.client(consumeAll("kafka.orders")), n)
		})
	}
	both(1000)
	p.await("the group's offset on the broker", func() bool {
		os, err := onBroker.FetchOffsets(withTimeout(t), "readers")
		o, ok := os.Lookup("hub.wind", 0)
		return err == nil && ok && o.At > 0 && o.At <= 400
	})
	p.kill()
	h.fill(wind.Partition(0), 1000, 500, 50, false)
	produce(1000, 1500)
	if err := h.store.Compact(); err != nil { // MirrorMaker's own topics on the hub
		t.Fatal(err)
	}
	p = start()
	both(1500)
	p.kill()
	if s := p.out.String(); strings.Contains(s, "UnsupportedVersion") || strings.Contains(s, "InvalidConfiguration") {
		t.Errorf("it complained:\n%.6000s", s)
	}
}
