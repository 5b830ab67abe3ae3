//go:build linux

package kill

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"flag"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"tailrace/firmware-sim/ledger"
	"tailrace/firmware-sim/rawload"
	"tailrace/storage/storagetest"
)

var fills = flag.Int("fills", envInt("TAILRACE_FILLS", 20), "how often the disk is filled; 200 is the long form (TAILRACE_FILLS)")

const fullClasses = `
    - {name: main, when_full: drop-oldest, segment_size: 64KiB, commit_interval: 0s}
    - {name: audit, when_full: reject, max_size: 384KiB, priority: 1, segment_size: 64KiB, commit_interval: 0s}
`

// The node's data lies on a disk of 1 MiB. Again and again the hub stands still until the
// disk is full: one class gives up its oldest data, the other refuses. Then the hub goes on.
// At the end every acknowledged record was delivered once or is in the hub's ledger of
// losses, exactly; what was refused is nowhere; and the alarms came and went.
func TestDiskFilledAgainAndAgain(t *testing.T) {
	n := *fills
	if testing.Short() {
		n = min(n, 3)
	}
	dir := t.TempDir()
	s, err := newSite(dir)
	if err != nil {
		t.Fatal(err)
	}
	data := filepath.Join(dir, "node")
	if err := syscall.Mount("tmpfs", data, "tmpfs", 0, "size=1m"); err != nil {
		storagetest.CannotMount(t, "mounting a disk of 1 MiB: %v", err)
	}
	t.Cleanup(func() { syscall.Unmount(data, syscall.MNT_DETACH) })
	conf, err := os.ReadFile(filepath.Join(dir, "edge.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Replace(string(conf), "\n    - {name: main, when_full: reject, segment_size: 256KiB, commit_interval: 0s}\n", fullClasses, 1)
	text = strings.Replace(text, "default: {stream: telemetry}\n", "routes: [{topic: \"audit/#\", stream: audit}]\ntopics: [{match: audit, class: audit}]\ndefault: {stream: telemetry}\n", 1)
	if err := os.WriteFile(filepath.Join(dir, "edge.yaml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, p := range []*proc{s.node, s.hub} {
			_ = p.end(syscall.SIGKILL)
			if t.Failed() {
				t.Logf("---- the end of %s's log ----\n%s", p.name, lastLines(p.log.String(), 40))
			}
		}
	})
	for _, p := range []*proc{s.hub, s.node} {
		if err := p.start(); err != nil {
			t.Fatal(err)
		}
	}

	book := ledger.New()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var wg sync.WaitGroup
	results := make([]rawload.Result, 2)
	for i, topic := range []string{"main/{client}/telemetry", "audit/{client}/telemetry"} {
		l, err := rawload.New(rawload.Config{
			Dial: rawload.DialTCP(s.mqtt, nil), Version: 5, QoS: 1, Clients: 3, Window: 20, Rate: []float64{4000, 1500}[i], PayloadBytes: 200,
			ClientPrefix: []string{"m", "a"}[i], Topic: topic, Reconnect: true, BackOffMin: 10 * time.Millisecond, BackOffMax: 100 * time.Millisecond,
			Drain: 30 * time.Second, Ledger: book, Seed: uint64(i + 1),
		})
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			var err error
			if results[i], err = l.Run(ctx); err != nil {
				t.Errorf("load: %v", err)
			}
		})
	}

	var st nodeState
	await := func(what string, ok func(nodeState) bool) {
		t.Helper()
		deadline := time.Now().Add(90 * time.Second)
		for tick := time.NewTicker(20 * time.Millisecond); ; <-tick.C {
			if now, err := askNode(s); err == nil {
				if st = now; ok(st) {
					return
				}
			}
			if time.Now().After(deadline) {
				t.Fatalf("not within 90 s: %s; %+v", what, st)
			}
		}
	}
	await("the node takes both streams", func(st nodeState) bool { return st.class("main").Records > 100 && st.class("audit").Records > 100 })
	for i := range n {
		before := st
		if err := s.hub.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		await(fmt.Sprintf("filling %d: main gives up, audit refuses, main goes on", i+1), func(st nodeState) bool {
			return st.class("main").Evicted > before.class("main").Evicted && st.class("audit").Refused > before.class("audit").Refused &&
				st.class("main").Records > before.class("main").Records+500 && st.alarm("disk_full") && st.alarm("evicting")
		})
		if err := s.hub.cmd.Process.Signal(syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		full := st
		await(fmt.Sprintf("after filling %d: audit takes records again", i+1), func(st nodeState) bool {
			return st.class("audit").Records > full.class("audit").Records+100 && !st.alarm("disk_full")
		})
	}
	stop()
	wg.Wait()
	for _, r := range results {
		t.Logf("%d published, %d acked, %d refused, %d resent, %d reconnects", r.Published, r.Acked, r.Refused, r.Resent, r.Reconnects)
		if r.Failed != 0 || r.SessionsLost != 0 {
			t.Errorf("%d devices failed (%s), %d sessions lost", r.Failed, r.FirstError, r.SessionsLost)
		}
	}
	// Drop-oldest makes room, even when all it has left is its tail.
	if results[1].Refused == 0 || results[0].Refused > results[0].Acked/100 {
		t.Errorf("refused: %d of drop-oldest, %d of reject", results[0].Refused, results[1].Refused)
	}
	await("the hub has all that is left, or knows that it is gone", func(st nodeState) bool { return st.Uplink.Lag == 0 && len(st.Store.Losses) == 0 })
	for _, p := range []*proc{s.node, s.hub} {
		for _, r := range append(p.unasked(), p.log.crashes()...) {
			t.Errorf("%s: %s", p.name, r)
		}
	}
	judge(t, s, book, st)
}

// judge compares what a Kafka consumer gets and what is declared lost with the ledger of
// the devices, offset by offset of the node's log.
func judge(t *testing.T, s *site, book *ledger.Book, st nodeState) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	var ledgerOf struct {
		Losses []struct {
			Topic    string
			From, To int64
			Reason   string
		}
	}
	if err := getJSON("http://"+s.hubHTTP+"/api/v1/losses?limit=10000", &ledgerOf); err != nil {
		t.Fatal(err)
	}
	type fate struct{ seen, declared int }
	fates := map[string][]fate{}
	stored, declared := int64(0), int64(0)
	for _, tp := range st.Topics {
		fates[tp.Topic] = make([]fate, tp.Durable)
		stored += tp.Durable
	}
	for _, l := range ledgerOf.Losses {
		for off := l.From; off < l.To; off++ {
			fates[l.Topic][off].declared++
			declared++
		}
		if l.Topic != "telemetry" || l.Reason != "evicted" {
			t.Errorf("declared: %+v", l)
		}
	}
	cl, err := kgo.NewClient(kgo.SeedBrokers(s.kafka), kgo.ConsumeTopics("telemetry", "audit"), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	obs := book.Observe("kafka")
	part := map[string]int64{"telemetry": 0, "audit": 1 << 20}
	for got := int64(0); got < stored-declared; {
		fs := cl.PollFetches(ctx)
		if err := fs.Err0(); err != nil {
			t.Errorf("consume, %d of %d: %v", got, stored-declared, err)
			break
		}
		fs.EachError(func(topic string, p int32, err error) { t.Errorf("fetch %s/%d: %v", topic, p, err) })
		fs.EachRecord(func(r *kgo.Record) {
			got++
			topic := ""
			for _, h := range r.Headers {
				switch {
				case h.Key == "mqtt.topic":
					topic = string(h.Value)
				case h.Key == "tr" && len(h.Value) >= 8:
					fates[r.Topic][binary.BigEndian.Uint64(h.Value[len(h.Value)-8:])].seen++
				}
			}
			obs.SeePayload(topic, r.Value, ledger.Position{Partition: part[r.Topic] + int64(r.Partition), Offset: r.Offset})
		})
	}
	bad := 0
	for topic, list := range fates {
		for off, f := range list {
			if f.seen+f.declared != 1 {
				if bad++; bad < 5 {
					t.Errorf("%s offset %d: delivered %d times, declared lost %d times", topic, off, f.seen, f.declared)
				}
			}
		}
	}
	rep := obs.Report()
	t.Logf("%d acknowledged = %d delivered + %d declared; %d refused; %v", rep.Acked, rep.Delivered, declared, rep.Refused, rep)
	if int64(rep.Acked) != int64(rep.Delivered)+declared || int64(rep.Lost) != declared || bad > 0 || declared == 0 {
		t.Errorf("%d acknowledged, %d delivered, %d declared, %d missing; %d offsets of another fate", rep.Acked, rep.Delivered, declared, rep.Lost, bad)
	}
	if rep.Duplicate+rep.OutOfOrder+rep.Invented+rep.Altered+rep.RefusedSeen+rep.Moved != 0 {
		t.Errorf("the consumer and the ledger differ: %v", rep.Faults())
	}
}

// nodeState is what the test reads of a node's status.
type nodeState struct {
	Alarms []struct{ Kind, Class string }
	Store  struct {
		Classes []classState
		Losses  []struct{ Topic string }
	}
	Uplink struct {
		Lag int64 `json:"lag_records"`
	}
	Topics []struct {
		Topic   string
		Durable int64
	}
}

type classState struct {
	Class                     string
	Records, Refused, Evicted uint64
}

func (st nodeState) class(name string) classState {
	for _, c := range st.Store.Classes {
		if c.Class == name {
			return c
		}
	}
	return classState{}
}

func (st nodeState) alarm(kind string) bool {
	for _, a := range st.Alarms {
		if a.Kind == kind {
			return true
		}
	}
	return false
}

func askNode(s *site) (st nodeState, err error) {
	err = getJSON("http://"+s.nodeHTTP+"/api/v1/status", &st)
	return st, err
}

func getJSON(url string, v any) error {
	c := http.Client{Timeout: 10 * time.Second}
	resp, err := c.Get(url)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %s", url, resp.Status)
	}
	return json.NewDecoder(resp.Body).Decode(v)
}
