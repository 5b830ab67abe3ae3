package relay

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"tailrace/storage/record"
	"tailrace/uplink"
	"tailrace/uplink/hub/relay/kafkatest"
	"tailrace/uplink/wire"
)

var perfRate = regexp.MustCompile(`([0-9.]+) records/sec`)

// BenchmarkRelay compares the relay with Kafka's own ProducerPerformance (acks=all, zstd) on
// one cluster of three brokers, in turns: 180-byte records, 8 partitions. Needs the clients
// of .ci/kafka-clients.
//
//	go test -run - -bench Relay -benchtime 1x ./uplink/hub/relay
func BenchmarkRelay(b *testing.B) {
	lib, err := kafkatest.Lib()
	if err != nil {
		b.Fatal(err)
	}
	dir := b.TempDir()
	k, err := kafkatest.Start(context.Background(), kafkatest.Options{Dir: filepath.Join(dir, "kafka"), Brokers: 3, Fast: true, Heap: "512m"})
	if err != nil {
		b.Fatal(err)
	}
	defer k.Close()
	const records, nodes, shards = 1_000_000, 32, 8
	var lines strings.Builder
	line := func(i int) string {
		s := fmt.Sprintf(`{"turbine":"WT-%04d","ts":%d,"wind_speed":%.3f,"power_kw":%.3f,"rotor_rpm":%.2f,"pitch":%.2f`, i%200, 1_790_000_000_000+int64(i)*37,
			7.5+float64(i*7919%371)/100, 1500+float64(i*104729%9771)/10, 12.5+float64(i*31%51)/10, float64(i*17%90)/4)
		return fmt.Sprintf("%s,%q:%0*d}", s, "seq", max(1, 180-len(s)-8), i)
	}
	for i := range 20_000 {
		lines.WriteString(line(i) + "\n")
	}
	payload := filepath.Join(dir, "payload")
	if err := os.WriteFile(payload, []byte(lines.String()), 0o600); err != nil {
		b.Fatal(err)
	}
	ctx := context.Background()
	cl, err := kgo.NewClient(kgo.SeedBrokers(k.Addrs...))
	if err != nil {
		b.Fatal(err)
	}
	defer cl.Close()
	brokersCPU := func() (sum time.Duration) {
		for i := range k.Addrs {
			f, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", k.PID(i)))
			s := strings.Fields(string(f[strings.LastIndexByte(string(f), ')')+1:]))
			u, _ := strconv.Atoi(s[11])
			t, _ := strconv.Atoi(s[12])
			sum += time.Duration(u+t) * 10 * time.Millisecond
		}
		return sum
	}
	r, err := Open(ctx, Config{Brokers: k.Addrs, Name: "bench", Shards: shards, Outage: time.Hour, Topics: []TopicRule{{Match: "*"}}, LossRow: func(Loss) []byte { return nil }})
	if err != nil {
		b.Fatal(err)
	}
	defer r.Close()
	for len(r.Served()) < shards {
		pause(ctx, 20*time.Millisecond)
	}
	for round := range b.N * 3 {
		topic := fmt.Sprint("perf-", round)
		if _, err := kadm.NewClient(cl).CreateTopic(ctx, shards, 3, nil, topic); err != nil {
			b.Fatal(err)
		}
		before := brokersCPU()
		cmd := exec.Command("java", "-Dorg.slf4j.simpleLogger.defaultLogLevel=error", "-cp", filepath.Join(lib, "*"), "org.apache.kafka.tools.ProducerPerformance",
			"--topic", topic, "--num-records", fmt.Sprint(records), "--throughput", "-1", "--payload-file", payload,
			"--producer-props", "bootstrap.servers="+k.Addrs[0], "acks=all", "linger.ms=20", "batch.size=131072", "buffer.memory=67108864", "compression.type=zstd")
		out, err := cmd.CombinedOutput()
		m := perfRate.FindAllStringSubmatch(string(out), -1)
		if err != nil || len(m) == 0 {
			b.Fatal(err, string(out))
		}
		java, _ := strconv.ParseFloat(m[len(m)-1][1], 64)
		javaCPU, javaBrokers := cmd.ProcessState.UserTime()+cmd.ProcessState.SystemTime(), brokersCPU()-before

		for _, per := range []int{50, 500} {
			// What nodes would send is made before the clock starts.
			sent := make([][][]byte, nodes)
			for n := range nodes {
				for off := 0; off < records/nodes; off += per {
					var bl record.Builder
					bl.Reset(nil)
					for i := off; i < off+per; i++ {
						bl.Add(t0+int64(i), []byte("WT"), []byte(line(i%20_000)), nil)
					}
					sent[n] = append(sent[n], record.Compress(nil, record.Batch(bl.Finish(int64(off), 1))))
				}
			}
			var before0, after syscall.Rusage
			before = brokersCPU()
			syscall.Getrusage(syscall.RUSAGE_SELF, &before0)
			began := time.Now()
			var wg sync.WaitGroup
			for n := range nodes {
				wg.Go(func() {
					o := wire.Origin{Node: fmt.Sprint("node", n), Epoch: epochA, Topic: fmt.Sprintf("relay-%d-%d", round, per)}
					if round == 0 && per == 50 {
						if err := r.Adopt(ctx, o.Node, []wire.EpochInfo{{ID: epochA}}); err != nil {
							b.Error(err)
						}
					}
					var all sync.WaitGroup
					window := make(chan struct{}, max(1, 10_000/per))
					for _, x := range sent[n] {
						all.Add(1)
						window <- struct{}{}
						r.Append(ctx, o, x, func(_ uplink.RangeSet, err error) {
							if err != nil {
								b.Error(err)
							}
							<-window
							all.Done()
						})
					}
					all.Wait()
				})
			}
			wg.Wait()
			took := time.Since(began)
			syscall.Getrusage(syscall.RUSAGE_SELF, &after)
			cpu := time.Duration(after.Utime.Nano() + after.Stime.Nano() - before0.Utime.Nano() - before0.Stime.Nano())
			total := len(sent[0]) * per * nodes
			b.Logf("round %d, batches of %d: relay %.0f records/s, producer %.0f, ratio %.2f; CPU-s per million, client/brokers: relay %.2f/%.2f, producer %.2f/%.2f", round, per,
				float64(total)/took.Seconds(), java, float64(total)/took.Seconds()/java, cpu.Seconds()*1e6/float64(total), (brokersCPU()-before).Seconds()*1e6/float64(total),
				javaCPU.Seconds()*1e6/records, javaBrokers.Seconds()*1e6/records)
		}
	}
}
