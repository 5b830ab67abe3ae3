package relay

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"

	"tailrace/uplink/wire"
)

// job is what a hub process of these tests is given.
type job struct {
	Brokers []string
	Name    string
	Shards  int
	Nodes   int
	Via     map[string]string // another address for a broker's; nil = its own
}

// TestHubProcess is a hub process with its nodes: each goes on where the cluster's
// progress ends, and an acknowledgement is a line on standard output. It runs until it is killed.
func TestHubProcess(t *testing.T) {
	env := os.Getenv("TAILRACE_RELAY_JOB")
	if env == "" {
		return // the test below starts it
	}
	var j job
	if err := json.Unmarshal([]byte(env), &j); err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	cfg := Config{Brokers: j.Brokers, Name: j.Name, Shards: j.Shards, Outage: time.Hour, Linger: 10 * time.Millisecond,
		Topics: []TopicRule{{Match: "*"}}, LossRow: func(Loss) []byte { return []byte("{}") },
		Logger: slog.New(slog.NewTextHandler(os.Stderr, nil))}
	if j.Via != nil {
		cfg.dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, network, j.Via[addr])
		}
	}
	r, err := Open(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	var out sync.Mutex
	for i := range j.Nodes {
		go func() {
			o := wire.Origin{Node: fmt.Sprint("node", i), Epoch: epochA, Topic: j.Name + ".wind"}
			for {
				if err := send(ctx, r, o, func(n int64) {
					out.Lock()
					defer out.Unlock()
					fmt.Printf("ack %s %d\n", o.Node, n)
				}); err != nil && !errors.As(err, new(*NotHereError)) && !errors.Is(err, ErrNotYet) {
					fmt.Fprintln(os.Stderr, o.Node, err)
				}
				pause(ctx, 50*time.Millisecond)
			}
		}()
	}
	select {}
}

// send is a session of a node: from what is held on, batch after batch.
func send(ctx context.Context, r *Relay, o wire.Origin, acked func(int64)) error {
	known, err := r.Epochs(o.Node)
	if err != nil {
		return err
	}
	if len(known) == 0 {
		if err := r.Adopt(ctx, o.Node, []wire.EpochInfo{{ID: o.Epoch, Number: 1}}); err != nil {
			return err
		}
	}
	r.Resume(o.Node)
	ps, err := r.Progress(o.Node)
	if err != nil {
		return err
	}
	next := int64(0)
	for _, p := range ps {
		next = p.Held.End()
	}
	for {
		held, err := appendTo(ctx, r, o, batch(o, next, next+20))
		if err != nil {
			return err
		}
		next = held.End()
		acked(next)
	}
}

// process is a hub process.
type process struct {
	cmd  *exec.Cmd
	done chan struct{}
}

// acks are what hubs have acknowledged, by node.
type acks struct {
	mu sync.Mutex
	to map[string]int64
}

func (a *acks) get() map[string]int64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := map[string]int64{}
	for k, v := range a.to {
		out[k] = v
	}
	return out
}

func (f *fleet) hub(j job, a *acks) *process {
	f.t.Helper()
	b, err := json.Marshal(j)
	if err != nil {
		f.t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestHubProcess$")
	cmd.Env = append(os.Environ(), "TAILRACE_RELAY_JOB="+string(b))
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if testing.Verbose() {
		cmd.Stderr = os.Stderr
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		f.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		f.t.Fatal(err)
	}
	p := &process{cmd, make(chan struct{})}
	go func() {
		defer close(p.done)
		for s := bufio.NewScanner(out); s.Scan(); {
			var node string
			var n int64
			if k, _ := fmt.Sscanf(s.Text(), "ack %s %d", &node, &n); k == 2 {
				a.mu.Lock()
				a.to[node] = max(a.to[node], n)
				a.mu.Unlock()
			}
		}
		cmd.Wait()
	}()
	f.t.Cleanup(p.kill)
	return p
}

func (p *process) kill() {
	p.cmd.Process.Kill()
	<-p.done
}

// TestExactlyOnceThroughKills: two hubs, and three brokers of which the leader of a
// partition is killed; a hub is killed, and one is stopped until its shards belong to the
// other, and then goes on. Every acknowledged record is there once, in order.
func TestExactlyOnceThroughKills(t *testing.T) {
	f := newFleet(t, 4)
	j := job{Brokers: f.c.Addrs, Name: f.Name, Shards: 4, Nodes: 8}
	a := &acks{to: map[string]int64{}}
	on := func(what string) { // every node goes on
		t.Helper()
		began := a.get()
		f.until(what+": every node goes on", func() bool {
			now := a.get()
			for i := range j.Nodes {
				if node := fmt.Sprint("node", i); now[node] < began[node]+200 {
					return false
				}
			}
			return true
		})
	}
	one, two := f.hub(j, a), f.hub(j, a)
	on("at first")
	leader := f.leaderOf(f.Name+".wind", 0)
	f.c.Kill(leader)
	on("without a broker")
	one.kill()
	on("without a hub")
	one = f.hub(j, a)
	if err := f.c.Restart(within(t), leader); err != nil {
		t.Fatal(err)
	}
	f.until("the new hub has a share", func() bool {
		g, err := kadm.NewClient(f.client()).DescribeGroups(within(t), f.Name+"-hubs")
		if err != nil || len(g[f.Name+"-hubs"].Members) != 2 {
			return false
		}
		for _, m := range g[f.Name+"-hubs"].Members {
			if c, ok := m.Assigned.AsConsumer(); !ok || len(c.Topics) == 0 {
				return false
			}
		}
		return true
	})
	on("with all of them")
	two.cmd.Process.Signal(syscall.SIGSTOP)
	on("with a hub stopped")
	two.cmd.Process.Signal(syscall.SIGCONT)
	on("with the stopped one back")
	one.kill()
	two.kill()
	for i, w := range f.audit(f.Name+".wind", a.get()) {
		if i < 10 {
			t.Error(w)
		}
	}
}

// TestAuditSeesLostProgress is the control: a hub that forgets to write progress stores
// records twice after a takeover, and the audit says so.
func TestAuditSeesLostProgress(t *testing.T) {
	f := newFleet(t, 1)
	f.forget = true
	r := f.all(f.open())
	o := f.origin(1)
	f.adopt(r, o)
	f.mustAppend(r, o, batch(o, 0, 50))
	r.Close()
	r = f.all(f.open())
	if known, _ := r.Epochs(o.Node); len(known) == 0 { // forgotten, too
		f.adopt(r, o)
	}
	f.mustAppend(r, o, batch(o, 0, 60))
	if len(f.audit(o.Topic, nil)) == 0 {
		t.Error("the audit does not see that 50 records are there twice")
	}
}

func (f *fleet) leaderOf(topic string, n int32) int {
	f.t.Helper()
	m, err := kadm.NewClient(f.client()).Metadata(within(f.t), topic)
	if err != nil {
		f.t.Fatal(err)
	}
	return int(m.Topics[topic].Partitions[n].Leader) - 1
}

// TestRefusedBatchIsDeadLettered: the cluster refuses one batch for its time; the others in
// the same merged batch and behind it are stored.
func TestRefusedBatchIsDeadLettered(t *testing.T) {
	f := newFleet(t, 1)
	f.Linger = 300 * time.Millisecond // all in one transaction
	r := f.all(f.open())
	o, other := f.origin(1), f.origin(2)
	f.adopt(r, o)
	f.adopt(r, other)
	f.mustAppend(r, o, batch(o, 0, 1)) // makes the topic
	one := "3600000"
	if rs, err := kadm.NewClient(f.client()).AlterTopicConfigs(within(t), []kadm.AlterConfig{{Name: "message.timestamp.after.max.ms", Value: &one}}, o.Topic); err != nil || rs[0].Err != nil {
		t.Fatal(err, rs)
	}
	future := time.Now().Add(48 * time.Hour).UnixMilli()
	type result struct {
		held int64
		err  error
	}
	ch := make(chan result, 8)
	send := func(o wire.Origin, b []byte) {
		r.Append(within(t), o, b, func(held uplinkRanges, err error) { ch <- result{held.End(), err} })
	}
	send(o, batch(o, 1, 10))
	send(other, batch(other, 0, 10))
	send(o, batchAt(o, 10, 20, future))
	send(other, batch(other, 10, 30))
	send(o, batch(o, 20, 30))
	for range 5 {
		if x := <-ch; x.err != nil {
			t.Errorf("an append fails: %v", x.err)
		}
	}
	got := map[string][]string{}
	for _, rec := range f.read(o.Topic) {
		got[string(rec.Key)] = append(got[string(rec.Key)], string(rec.Value))
	}
	var want []string
	for i := range 30 {
		if i < 10 || i >= 20 {
			want = append(want, fmt.Sprint(i))
		}
	}
	if fmt.Sprint(got[o.Node]) != fmt.Sprint(want) || len(got[other.Node]) != 30 {
		t.Errorf("stored %v and %d of the other node", got[o.Node], len(got[other.Node]))
	}
	dead := f.read(f.DeadTopic())
	if len(dead) != 1 || string(dead[0].Value) != string(batchAt(o, 10, 20, future)) || string(dead[0].Key) != o.Node {
		t.Errorf("%d dead letters", len(dead))
	}
	rows := f.read(f.LossTopic())
	if len(rows) != 1 || !strings.Contains(string(rows[0].Value), "INVALID_TIMESTAMP") {
		t.Errorf("%d rows in the ledger", len(rows))
	}
	if ps, _ := r.Progress(o.Node); ps[0].Stored != 20 || ps[0].Held.Count() != 30 {
		t.Errorf("progress %+v", ps)
	}
}

// TestLargeBatchIsCut: a node's limit is higher than the cluster's; the batch is stored, and
// only a record that is too large itself is refused.
func TestLargeBatchIsCut(t *testing.T) {
	f := newFleet(t, 1)
	r := f.all(f.open())
	o := f.origin(1)
	f.adopt(r, o)
	f.mustAppend(r, o, noise(o, 0, []int{400_000, 400_000, 400_000, 1_500_000, 400_000}))
	if n := len(f.read(o.Topic)); n != 4 {
		t.Errorf("%d records are stored, want 4", n)
	}
	if n := len(f.read(f.DeadTopic())); n != 1 {
		t.Errorf("%d dead letters, want 1", n)
	}
	if ps, _ := r.Progress(o.Node); ps[0].Stored != 4 || ps[0].Held.Count() != 5 {
		t.Errorf("progress %+v", ps)
	}
}

// TestRetentionBelowTheOutageIsRefused: records of a node that was away would be deleted
// as they arrive.
func TestRetentionBelowTheOutageIsRefused(t *testing.T) {
	f := newFleet(t, 1)
	r := f.all(f.open())
	o := f.origin(1)
	f.adopt(r, o)
	short := "60000"
	if rs, err := kadm.NewClient(f.client()).CreateTopics(within(t), 1, 3, map[string]*string{"retention.ms": &short}, o.Topic); err != nil || rs[o.Topic].Err != nil {
		t.Fatal(err, rs)
	}
	var te *TopicError
	if _, err := appendTo(within(t), r, o, batch(o, 0, 1)); !errors.As(err, &te) || !strings.Contains(err.Error(), "longest_outage") {
		t.Errorf("a topic that keeps records for a minute: %v", err)
	}
	f.Shards = 2
	if r, err := Open(within(t), f.Config); err == nil || !strings.Contains(err.Error(), "fixed") {
		t.Errorf("another number of shards: %v", err)
		r.Close()
	}
}
