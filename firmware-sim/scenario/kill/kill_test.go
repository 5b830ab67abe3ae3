//go:build linux

package kill

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"tailrace/firmware-sim/ledger"
	"tailrace/firmware-sim/rawload"
)

var (
	kills = flag.Int("kills", envInt("TAILRACE_KILLS", 100), "how often a daemon is killed; 1000 is the long form, make crash (TAILRACE_KILLS)")
	seed  = flag.Uint64("kill-seed", uint64(envInt("TAILRACE_KILL_SEED", 0)), "seed of victims and moments; 0 draws one")
)

func envInt(name string, def int) int {
	if n, err := strconv.Atoi(os.Getenv(name)); err == nil {
		return n
	}
	return def
}

// Node, hub or both are killed with SIGKILL at random moments while devices of both MQTT
// versions send with QoS 1 and 2 on persistent sessions, re-sending with DUP what was not
// acknowledged. At the end a Kafka consumer has every acknowledged record once, in order
// per device and topic. In CI this is the one run of 100 kills for the whole product.
func TestKillNodeAndHubLosesAndDoublesNothing(t *testing.T) {
	n := *kills
	if testing.Short() {
		n = min(n, 5)
	}
	if *seed == 0 {
		*seed = rand.Uint64N(1 << 32)
	}
	dir := t.TempDir()
	s, err := newSite(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("kill -9 %d times, seed %d (run again: -kills %d -kill-seed %d)", n, *seed, n, *seed)
	s.endWith(t)
	book, err := ledger.Create(filepath.Join(dir, "ledger"))
	if err != nil {
		t.Fatal(err)
	}
	defer book.Close()
	book.Note(fmt.Sprintf("seed %d, %d kills", *seed, n))
	for _, p := range []*proc{s.hub, s.node} {
		if err := p.start(); err != nil {
			t.Fatal(err)
		}
	}

	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	loads, results := startLoads(t, ctx, s, book)
	victims := killAtRandom(t, s, loads, n, rand.New(rand.NewPCG(*seed, 1)))
	stop() // the devices wait for their last acknowledgements, then end
	for _, r := range results() {
		t.Logf("mqtt %d qos %d: %d published, %d acked, %d resent, %d reconnects, %d sessions lost", r.Version, r.QoS, r.Published, r.Acked, r.Resent, r.Reconnects, r.SessionsLost)
		if r.SessionsLost != 0 || r.Failed != 0 || r.Refused != 0 || r.Acked != r.Published {
			t.Errorf("mqtt %d qos %d: %d sessions forgotten by the node, %d devices failed (%s), %d publishes refused, %d of %d acknowledged",
				r.Version, r.QoS, r.SessionsLost, r.Failed, r.FirstError, r.Refused, r.Acked, r.Published)
		}
		if r.Acked == 0 || n >= 20 && r.Resent == 0 {
			t.Errorf("mqtt %d qos %d: %d acknowledged, %d resent: the kills did not meet the load", r.Version, r.QoS, r.Acked, r.Resent)
		}
	}
	t.Logf("killed: %v", victims)
	for _, p := range []*proc{s.node, s.hub} {
		for _, r := range append(p.unasked(), p.log.crashes()...) {
			t.Errorf("%s: %s", p.name, r)
		}
	}

	start := time.Now()
	rep := consume(t, s, book)
	t.Logf("consumer after %v: %v", time.Since(start).Round(time.Millisecond), rep)
	if !rep.OK() {
		t.Errorf("the consumer and the ledger differ: %v", rep.Faults())
	}
	if testing.Verbose() || t.Failed() {
		fmt.Printf("kill: kills=%d victims=%v published=%d acked=%d delivered=%d lost=%d duplicate=%d out_of_order=%d seed=%d\n",
			n, victims, rep.Published, rep.Acked, rep.Delivered, rep.Lost, rep.Duplicate, rep.OutOfOrder, *seed)
	}
}

// startLoads puts devices on the node: MQTT 3.1.1 and 5, QoS 1 and 2, persistent sessions, window 20.
func startLoads(t *testing.T, ctx context.Context, s *site, book *ledger.Book) ([]*rawload.Load, func() []rawload.Result) {
	t.Helper()
	var loads []*rawload.Load
	var wg sync.WaitGroup
	var mu sync.Mutex
	var out []rawload.Result
	for k := range 4 {
		version, qos := byte(4+k%2), byte(1+k/2)
		l, err := rawload.New(rawload.Config{
			Dial: rawload.DialTCP(s.mqtt, nil), Version: version, QoS: qos, Clients: 4, Window: 20, Rate: 750,
			ClientPrefix: fmt.Sprintf("v%dq%d", version, qos), Topic: fmt.Sprintf("site/v%dq%d/{client}/telemetry", version, qos),
			Reconnect: true, BackOffMin: 10 * time.Millisecond, BackOffMax: 100 * time.Millisecond,
			Drain: 30 * time.Second, Ledger: book, Seed: *seed + uint64(k),
		})
		if err != nil {
			t.Fatal(err)
		}
		loads = append(loads, l)
		wg.Go(func() {
			r, err := l.Run(ctx)
			if err != nil {
				t.Errorf("load: %v", err)
			}
			mu.Lock()
			out = append(out, r)
			mu.Unlock()
		})
	}
	return loads, func() []rawload.Result { wg.Wait(); return out }
}

// killAtRandom kills n times. Each time it waits until some more records have been
// acknowledged, so that every kill meets a system at work.
func killAtRandom(t *testing.T, s *site, loads []*rawload.Load, n int, r *rand.Rand) map[string]int {
	t.Helper()
	victims := map[string]int{}
	acked := func() (sum int64) {
		for _, l := range loads {
			sum += l.Progress().Acked
		}
		return sum
	}
	for i := range n {
		want, deadline := acked()+1+r.Int64N(600), time.Now().Add(60*time.Second)
		for tick := time.NewTicker(time.Millisecond); acked() < want; <-tick.C {
			if time.Now().After(deadline) {
				t.Fatalf("kill %d: no record was acknowledged for a minute", i+1)
			}
		}
		var list []*proc
		switch k := r.IntN(10); {
		case k < 5:
			list = []*proc{s.node}
		case k < 8:
			list = []*proc{s.hub}
		default:
			list = []*proc{s.node, s.hub}
		}
		name := list[0].name
		if len(list) == 2 {
			name = "both"
			if r.IntN(2) == 0 {
				list[0], list[1] = list[1], list[0]
			}
		}
		victims[name]++
		for _, p := range list {
			if err := p.end(syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}
		if r.IntN(3) == 0 { // dark for a while; the other side goes on
			<-time.After(time.Duration(r.IntN(400)) * time.Millisecond)
		}
		for _, p := range list {
			if err := p.start(); err != nil {
				t.Fatal(err)
			}
			for r.IntN(4) == 0 { // again, while it starts and recovers
				<-time.After(time.Duration(r.IntN(60)) * time.Millisecond)
				victims["starting "+p.name]++
				if err := errors.Join(p.end(syscall.SIGKILL), p.start()); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	return victims
}

// consume reads everything over the Kafka protocol. It begins when the hub's end offsets
// reach what the node holds: the drain limit is two minutes.
func consume(t *testing.T, s *site, book *ledger.Book) ledger.Report {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cl, err := kgo.NewClient(kgo.SeedBrokers(s.kafka), kgo.ConsumeTopics("telemetry"),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.MetadataMinAge(50*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	want, err := nodeRecords(ctx, s)
	if err != nil {
		t.Fatalf("ask the node what it holds: %v", err)
	}
	have, err := awaitEnd(ctx, cl, want)
	if err != nil {
		t.Errorf("the hub has %d records of %d after the drain limit: %v", have, want, err)
	}
	if have != want {
		t.Errorf("the node holds %d records, the hub %d", want, have)
	}
	obs := book.Observe("kafka")
	for got := int64(0); got < have; {
		fs := cl.PollFetches(ctx)
		if err := fs.Err0(); err != nil {
			t.Errorf("consume, %d of %d: %v", got, have, err)
			break
		}
		fs.EachError(func(topic string, p int32, err error) { t.Errorf("fetch %s/%d: %v", topic, p, err) })
		fs.EachRecord(func(r *kgo.Record) {
			got++
			topic := ""
			for _, h := range r.Headers {
				if h.Key == "mqtt.topic" {
					topic = string(h.Value)
				}
			}
			obs.SeePayload(topic, r.Value, ledger.Position{Partition: int64(r.Partition), Offset: r.Offset})
		})
	}
	return obs.Report()
}

// awaitEnd returns when the hub's end offsets sum up to want.
func awaitEnd(ctx context.Context, cl *kgo.Client, want int64) (sum int64, err error) {
	adm := kadm.NewClient(cl)
	for tick := time.NewTicker(100 * time.Millisecond); ; {
		ends, e := adm.ListEndOffsets(ctx, "telemetry")
		if e == nil {
			sum = 0
			ends.Each(func(o kadm.ListedOffset) {
				if o.Err == nil {
					sum += o.Offset
				}
			})
			if sum >= want {
				return sum, nil
			}
		}
		select {
		case <-ctx.Done():
			return sum, errors.Join(ctx.Err(), e)
		case <-tick.C:
		}
	}
}

// nodeRecords asks the node's own API how many records it made durable.
func nodeRecords(ctx context.Context, s *site) (int64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.nodeHTTP+"/api/v1/topics/telemetry", nil)
	if err != nil {
		return 0, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	var v struct {
		Partitions []struct {
			HighWatermark int64 `json:"high_watermark"`
		} `json:"partitions"`
	}
	if resp.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("%s answers %s", req.URL, resp.Status)
	}
	if err := json.NewDecoder(resp.Body).Decode(&v); err != nil {
		return 0, err
	}
	n := int64(0)
	for _, p := range v.Partitions {
		n += p.HighWatermark
	}
	return n, nil
}

// endWith ends the daemons with the test, and shows the end of their logs when it failed.
func (s *site) endWith(t *testing.T) {
	t.Cleanup(func() {
		for _, p := range []*proc{s.node, s.hub} {
			_ = p.end(syscall.SIGKILL)
			if t.Failed() {
				t.Logf("---- the end of %s's log ----\n%s", p.name, lastLines(p.log.String(), 60))
			}
		}
	})
}

func lastLines(s string, n int) string {
	l := strings.Split(s, "\n")
	return strings.Join(l[max(0, len(l)-n):], "\n")
}
