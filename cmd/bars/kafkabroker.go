package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// kafkaJars is where .ci/kafka-clients puts Kafka's jars: a broker among them.
func kafkaJars() (string, error) {
	dir := os.Getenv("TAILRACE_KAFKA_CLIENTS")
	if dir == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			return "", err
		}
		dir = filepath.Join(cache, "tailrace", "kafka-clients")
	}
	if _, err := os.Stat(filepath.Join(dir, "lib")); err != nil {
		return "", fmt.Errorf("run .ci/kafka-clients: %w", err)
	}
	return filepath.Join(dir, "lib", "*"), nil
}

// broker starts one Apache Kafka broker (KRaft) with its defaults, one partition a topic.
func (e *env) broker(ctx context.Context, jars string) (d *daemon, addr string, err error) {
	dir, err := e.sub("kafka")
	if err != nil {
		return nil, "", err
	}
	p1, err1 := freePort()
	p2, err2 := freePort()
	if err := errors.Join(err1, err2); err != nil {
		return nil, "", err
	}
	addr = fmt.Sprintf("127.0.0.1:%d", p1)
	conf := fmt.Sprintf(`process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:%[2]d
listeners=PLAINTEXT://%[1]s,CONTROLLER://127.0.0.1:%[2]d
advertised.listeners=PLAINTEXT://%[1]s
controller.listener.names=CONTROLLER
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT
inter.broker.listener.name=PLAINTEXT
log.dirs=%[3]s/data
offsets.topic.replication.factor=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
offsets.topic.num.partitions=8
group.initial.rebalance.delay.ms=0
auto.create.topics.enable=false
`, addr, p2, dir)
	file := filepath.Join(dir, "server.properties")
	if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
		return nil, "", err
	}
	id := make([]byte, 16)
	rand.Read(id)
	out, err := exec.CommandContext(ctx, "java", "-cp", jars, "kafka.tools.StorageTool", "format", "--cluster-id="+base64.RawURLEncoding.EncodeToString(id), "-c", file).CombinedOutput()
	if err != nil {
		return nil, "", fmt.Errorf("format: %w: %s", err, tailOf(string(out)))
	}
	if d, err = start(dir, "java", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-Xmx512m", "-Xms512m", "-cp", jars, "kafka.Kafka", file); err != nil {
		return nil, "", err
	}
	if err = d.waitFor(ctx, listening(addr)); err != nil {
		d.stop()
	}
	return d, addr, err
}

var perfRate = regexp.MustCompile(`([0-9.]+) records/sec`)

// kafkaBroker compares the hub's Kafka listener with a broker: the same Java
// tools and kcat, the same records in the same batches, in turns.
func kafkaBroker(ctx context.Context, e *env) ([]row, error) {
	jars, err := kafkaJars()
	if err != nil {
		return nil, err
	}
	h, _, _, hubAddr, err := e.hub(ctx)
	if err != nil {
		return nil, err
	}
	defer h.stop()
	b, brokerAddr, err := e.broker(ctx, jars)
	if err != nil {
		return nil, err
	}
	defer b.stop()
	sides := []struct {
		name, addr string
		d          *daemon
	}{{"hub", hubAddr, h}, {"broker", brokerAddr, b}}
	records, rounds := 1_000_000, 5
	if e.short {
		records, rounds = 200_000, 3
	}
	dir, err := e.sub("payload")
	if err != nil {
		return nil, err
	}
	payload := filepath.Join(dir, "payload")
	var lines bytes.Buffer
	for i := range 20_000 {
		line := fmt.Sprintf(`{"turbine":"WT-%04d","ts":%d,"wind_speed":%.3f,"power_kw":%.3f,"rotor_rpm":%.2f,"nacelle":%.2f,"pitch":%.2f,"temp":[%.1f,%.1f]`,
			i%200, 1_790_000_000_000+int64(i)*37, 7.5+float64(i*7919%371)/100, 1500+float64(i*104729%9771)/10, 12.5+float64(i*31%51)/10, 180.25+float64(i*53%907)/10,
			float64(i*17%90)/4, 40+float64(i*13%77)/10, 55+float64(i*11%99)/10)
		fmt.Fprintf(&lines, "%s,%q:%0*d}\n", line, "seq", max(1, 180-len(line)-8), i)
	}
	if err := os.WriteFile(payload, lines.Bytes(), 0o600); err != nil {
		return nil, err
	}
	const cmd = "go run ./cmd/bars -only kafka-broker"
	var rows []row
	at := map[string]float64{}
	for _, s := range sides {
		n, err := s.d.rss()
		if err != nil {
			return nil, err
		}
		at[s.name] = float64(n) / mb
	}
	rows = append(rows, row{"memory at rest, hub against a Kafka broker", "at most a tenth", fmt.Sprintf("%.0f MB, %.0f MB", at["hub"], at["broker"]), at["hub"] <= at["broker"]/10, cmd})
	java := func(class string, args ...string) (string, error) {
		out, err := exec.CommandContext(ctx, "java", append([]string{"-Dorg.slf4j.simpleLogger.defaultLogLevel=error", "-cp", jars, "org.apache.kafka.tools." + class}, args...)...).CombinedOutput()
		if err != nil {
			return "", fmt.Errorf("%s: %w: %s", class, err, tailOf(string(out)))
		}
		return strings.TrimSpace(string(out)), nil
	}
	for _, codec := range []string{"none", "zstd"} {
		topic := func(round int) string { return fmt.Sprintf("perf-%s-%d", codec, round) }
		rate := map[string][]float64{}
		for round := range 3 {
			for i := range sides {
				s := sides[(i+round)%2]
				cl, err := kgo.NewClient(kgo.SeedBrokers(s.addr))
				if err != nil {
					return nil, err
				}
				_, err = kadm.NewClient(cl).CreateTopic(ctx, 1, 1, nil, topic(round))
				cl.Close()
				if err != nil {
					return nil, fmt.Errorf("%s: %w", s.name, err)
				}
				out, err := java("ProducerPerformance", "--topic", topic(round), "--num-records", strconv.Itoa(records), "--throughput", "-1", "--payload-file", payload,
					"--producer-props", "bootstrap.servers="+s.addr, "acks=all", "linger.ms=20", "batch.size=131072", "buffer.memory=67108864", "compression.type="+codec)
				if err != nil {
					return nil, err
				}
				m := perfRate.FindAllStringSubmatch(out, -1)
				if len(m) == 0 {
					return nil, fmt.Errorf("ProducerPerformance printed no rate: %s", tailOf(out))
				}
				r, err := strconv.ParseFloat(m[len(m)-1][1], 64)
				if err != nil {
					return nil, err
				}
				rate[s.name+" produce"] = append(rate[s.name+" produce"], r)
				if out, err = java("ConsumerPerformance", "--bootstrap-server", s.addr, "--topic", topic(round), "--messages", strconv.Itoa(records), "--hide-header"); err != nil {
					return nil, err
				}
				// start, end, MB, MB/s, records, records/s, rebalance, fetch ms, fetch MB/s, fetch records/s
				f := strings.Split(out[strings.LastIndexByte(out, '\n')+1:], ",")
				if r, err = strconv.ParseFloat(strings.TrimSpace(f[len(f)-1]), 64); err != nil || len(f) != 10 {
					return nil, fmt.Errorf("ConsumerPerformance printed %q", tailOf(out))
				}
				rate[s.name+" fetch"] = append(rate[s.name+" fetch"], r)
			}
		}
		for round := range rounds {
			for i := range sides {
				s := sides[(i+round)%2]
				began := time.Now()
				// -c and not -e: to be told of the end takes a broker half a second, and the hub none.
				c := exec.CommandContext(ctx, "kcat", "-b", s.addr, "-C", "-t", topic(0), "-o", "beginning", "-c", strconv.Itoa(records), "-q", "-f", "%o\n")
				var n countLines
				c.Stdout = &n
				if err := c.Run(); err != nil || int(n) != records {
					return nil, fmt.Errorf("kcat from %s: %d of %d records: %v", s.name, n, records, err)
				}
				rate[s.name+" kcat"] = append(rate[s.name+" kcat"], time.Since(began).Seconds())
			}
		}
		hk, bk := median(rate["hub kcat"]), median(rate["broker kcat"])
		rows = append(rows,
			row{"kcat, " + codec + " batches of a Java producer, hub / broker", "at most 1.05 of its time", fmt.Sprintf("%.2f s / %.2f s = %.2f (%d records, median of %d)", hk, bk, hk/bk, records, rounds), hk <= 1.05*bk, cmd})
		for _, p := range []struct{ key, name string }{{"produce", "ProducerPerformance (acks=all; the hub syncs, the broker does not)"}, {"fetch", "ConsumerPerformance (fetch)"}} {
			hr, br := median(rate["hub "+p.key]), median(rate["broker "+p.key])
			rows = append(rows, row{p.name + ", " + codec + ", hub / broker", "at least 1", fmt.Sprintf("%.0f / %.0f records/s = %.2f (median of 3)", hr, br, hr/br), hr >= br, cmd})
		}
	}
	return rows, nil
}

// countLines counts what is written to it.
type countLines int

func (n *countLines) Write(p []byte) (int, error) {
	*n += countLines(bytes.Count(p, []byte{'\n'}))
	return len(p), nil
}
