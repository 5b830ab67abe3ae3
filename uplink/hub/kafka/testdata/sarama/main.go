// Command saramamatrix runs sarama against a hub: saramamatrix HOST:PORT. It is a
// module of its own, so that the hub does not depend on sarama. It prints "ok STEP"
// for each step and ends with 1 at the first that fails. With a topic behind the address
// it prints offset, key and value of all that partition 0 has.
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"sync"
	"time"

	"github.com/IBM/sarama"
)

const (
	t0    = 1_700_000_000_000
	limit = 60 * time.Second
)

var addr []string

func ok(step string) { fmt.Println("ok", step) }

func check(err error) {
	if err != nil {
		log.Output(2, err.Error())
		os.Exit(1)
	}
}

func must(cond bool, format string, args ...any) {
	if !cond {
		log.Output(2, fmt.Sprintf(format, args...))
		os.Exit(1)
	}
}

func config() *sarama.Config {
	c := sarama.NewConfig()
	c.Version = sarama.V3_6_0_0
	c.Producer.Return.Successes = true
	c.Producer.RequiredAcks = sarama.WaitForAll
	c.Producer.Idempotent = true
	c.Net.MaxOpenRequests = 1
	c.Producer.Partitioner = sarama.NewManualPartitioner
	c.Consumer.Offsets.Initial = sarama.OffsetOldest
	c.Consumer.Offsets.AutoCommit.Interval = 200 * time.Millisecond
	c.Consumer.Group.Session.Timeout = 30 * time.Second
	c.Consumer.Group.Heartbeat.Interval = 500 * time.Millisecond
	return c
}

func consume() {
	cl, err := sarama.NewClient(addr, config())
	check(err)
	defer cl.Close()
	ps, err := cl.Partitions("wind")
	check(err)
	must(len(ps) == 2, "%d partitions", len(ps))
	ok("list")
	c, err := sarama.NewConsumerFromClient(cl)
	check(err)
	read := func(first, start int64, n int) {
		pc, err := c.ConsumePartition("wind", 0, start)
		check(err)
		defer pc.Close()
		for i := range n {
			want := first + int64(i)
			select {
			case m := <-pc.Messages():
				must(m.Offset == want && string(m.Value) == fmt.Sprint("v", want) && m.Timestamp.UnixMilli() == t0+want*1000 && len(m.Headers) == 1, "%+v instead of %d", m, want)
			case <-time.After(limit):
				must(false, "only up to %d", want)
			}
		}
	}
	read(0, sarama.OffsetOldest, 1000)
	ok("beginning")
	read(555, 555, 445)
	ok("offset")
	off, err := cl.GetOffset("wind", 0, t0+500_500)
	check(err)
	must(off == 501, "offset for time %d", off)
	read(501, off, 10)
	ok("timestamp")
}

func send(topic string, from, to int, codec sarama.CompressionCodec, parts int32) {
	c := config()
	c.Producer.Compression = codec
	p, err := sarama.NewSyncProducer(addr, c)
	check(err)
	defer p.Close()
	var ms []*sarama.ProducerMessage
	for i := from; i < to; i++ {
		for part := range parts {
			ms = append(ms, &sarama.ProducerMessage{Topic: topic, Partition: part, Key: sarama.StringEncoder(fmt.Sprint("k", i)), Value: sarama.StringEncoder(fmt.Sprint("value number ", i))})
		}
	}
	check(p.SendMessages(ms))
}

// member is one member of a group.
type member struct {
	s     *sharing
	claim map[int32]bool // guarded by s.mu
	stop  func()
}

type sharing struct {
	mu   sync.Mutex
	seen map[string]bool
}

func (m *member) Setup(s sarama.ConsumerGroupSession) error {
	m.s.mu.Lock()
	defer m.s.mu.Unlock()
	m.claim = map[int32]bool{}
	for _, ps := range s.Claims() {
		for _, p := range ps {
			m.claim[p] = true
		}
	}
	return nil
}

func (m *member) Cleanup(s sarama.ConsumerGroupSession) error {
	m.s.mu.Lock()
	defer m.s.mu.Unlock()
	m.claim = nil
	return nil
}

func (m *member) ConsumeClaim(s sarama.ConsumerGroupSession, c sarama.ConsumerGroupClaim) error {
	for {
		select {
		case msg, open := <-c.Messages():
			if !open {
				return nil
			}
			m.s.mu.Lock()
			m.s.seen[fmt.Sprintf("%d/%d=%s", msg.Partition, msg.Offset, msg.Value)] = true
			m.s.mu.Unlock()
			s.MarkMessage(msg, "")
		case <-s.Context().Done():
			return nil
		}
	}
}

func join(sh *sharing, topic string, strategy sarama.BalanceStrategy) *member {
	c := config()
	c.Consumer.Group.Rebalance.GroupStrategies = []sarama.BalanceStrategy{strategy}
	g, err := sarama.NewConsumerGroup(addr, topic, c)
	check(err)
	m := &member{s: sh}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			if err := g.Consume(ctx, []string{topic}, m); err != nil && !errors.Is(err, sarama.ErrClosedConsumerGroup) {
				check(err)
			}
		}
	}()
	m.stop = func() {
		cancel()
		<-done
		check(g.Close())
	}
	return m
}

// until waits for the records and for so many partitions of each member.
func (sh *sharing) until(n int, ms []*member, sizes ...int) {
	end := time.Now().Add(limit)
	for {
		sh.mu.Lock()
		done := len(sh.seen) == 2*n
		for i, m := range ms {
			done = done && len(m.claim) == sizes[i]
		}
		got := len(sh.seen)
		sh.mu.Unlock()
		if done {
			return
		}
		must(time.Now().Before(end), "%d records instead of %d", got, 2*n)
		time.Sleep(20 * time.Millisecond)
	}
}

func group(name string, strategy sarama.BalanceStrategy) {
	topic := "sarama-" + name
	sh := &sharing{seen: map[string]bool{}}
	send(topic, 0, 100, sarama.CompressionNone, 2)
	a := join(sh, topic, strategy)
	sh.until(100, []*member{a}, 2)
	b := join(sh, topic, strategy)
	sh.until(100, []*member{a, b}, 1, 1)
	send(topic, 100, 200, sarama.CompressionNone, 2)
	sh.until(200, []*member{a, b}, 1, 1)
	a.stop()
	sh.until(200, []*member{b}, 2) // takeover
	send(topic, 200, 300, sarama.CompressionNone, 2)
	sh.until(300, []*member{b}, 2)
	b.stop()
	ok(name)
}

func admin() {
	a, err := sarama.NewClusterAdmin(addr, config())
	check(err)
	defer a.Close()
	ret := "3600000"
	check(a.CreateTopic("sarama-admin", &sarama.TopicDetail{NumPartitions: 3, ReplicationFactor: 1, ConfigEntries: map[string]*string{"retention.ms": &ret}}, false))
	must(a.CreateTopic("sarama-admin", &sarama.TopicDetail{NumPartitions: 3, ReplicationFactor: 1}, false) != nil, "created twice")
	check(a.CreatePartitions("sarama-admin", 5, nil, false))
	ts, err := a.DescribeTopics([]string{"sarama-admin"})
	check(err)
	must(len(ts[0].Partitions) == 5, "%d partitions", len(ts[0].Partitions))
	retention := func() string {
		es, err := a.DescribeConfig(sarama.ConfigResource{Type: sarama.TopicResource, Name: "sarama-admin", ConfigNames: []string{"retention.ms"}})
		check(err)
		return es[0].Value
	}
	must(retention() == ret, "retention %s", retention())
	two := "7200000"
	check(a.IncrementalAlterConfig(sarama.TopicResource, "sarama-admin", map[string]sarama.IncrementalAlterConfigsEntry{"retention.ms": {Operation: sarama.IncrementalAlterConfigsOperationSet, Value: &two}}, false))
	must(retention() == two, "retention %s", retention())
	check(a.DeleteRecords("sarama-in-none", map[int32]int64{0: 500}))
	ok("admin-topics")
	gs, err := a.ListConsumerGroups()
	check(err)
	_, there := gs["sarama-group-range"]
	must(there, "groups %v", gs)
	ds, err := a.DescribeConsumerGroups([]string{"sarama-group-range"})
	check(err)
	must(ds[0].State == "Empty", "state %s", ds[0].State)
	off, err := a.ListConsumerGroupOffsets("sarama-group-range", map[string][]int32{"sarama-group-range": {0, 1}})
	check(err)
	must(off.GetBlock("sarama-group-range", 1).Offset == 300, "%+v", off.GetBlock("sarama-group-range", 1))
	check(a.DeleteConsumerGroup("sarama-group-range"))
	ok("admin-groups")
	check(a.DeleteTopic("sarama-admin"))
	ok("admin-delete")
}

func dump(topic string) {
	cl, err := sarama.NewClient(addr, config())
	check(err)
	defer cl.Close()
	end, err := cl.GetOffset(topic, 0, sarama.OffsetNewest)
	check(err)
	cs, err := sarama.NewConsumerFromClient(cl)
	check(err)
	pc, err := cs.ConsumePartition(topic, 0, sarama.OffsetOldest)
	check(err)
	for {
		select {
		case m := <-pc.Messages():
			fmt.Printf("%d %s %s\n", m.Offset, m.Key, m.Value)
			if m.Offset == end-1 {
				return
			}
		case <-time.After(limit):
			check(errors.New("time is up"))
		}
	}
}

func main() {
	log.SetFlags(log.Lshortfile)
	addr = []string{os.Args[1]}
	if len(os.Args) > 2 {
		dump(os.Args[2])
		return
	}
	consume()
	group("group-range", sarama.NewBalanceStrategyRange())
	group("group-sticky", sarama.NewBalanceStrategySticky())
	for name, codec := range map[string]sarama.CompressionCodec{"none": sarama.CompressionNone, "gzip": sarama.CompressionGZIP, "snappy": sarama.CompressionSnappy, "lz4": sarama.CompressionLZ4, "zstd": sarama.CompressionZSTD} {
		send("sarama-in-"+name, 0, 1001, codec, 1)
		ok("produce-" + name)
	}
	admin()
}
