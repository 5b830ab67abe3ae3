package relay

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"tailrace/storage/record"
	"tailrace/uplink"
	"tailrace/uplink/hub/relay/kafkatest"
	"tailrace/uplink/wire"
)

var shared struct {
	once sync.Once
	c    *kafkatest.Cluster
	err  error
}

func TestMain(m *testing.M) {
	code := m.Run()
	if shared.c != nil {
		shared.c.Close()
		os.RemoveAll(filepath.Dir(shared.c.Dir()))
	}
	os.Exit(code)
}

// brokers is a cluster of three that all tests share. A test that kills one starts it again.
func brokers(t *testing.T) *kafkatest.Cluster {
	t.Helper()
	if testing.Short() {
		t.Skip("a real cluster runs in the long form")
	}
	shared.once.Do(func() {
		dir, err := os.MkdirTemp("", "relay")
		if err != nil {
			shared.err = err
			return
		}
		shared.c, shared.err = kafkatest.Start(context.Background(), kafkatest.Options{Dir: filepath.Join(dir, "cluster"), Brokers: 3,
			Properties: []string{"message.timestamp.after.max.ms=3600000", "broker.session.timeout.ms=3000", "broker.heartbeat.interval.ms=500"}})
	})
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	return shared.c
}

func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 90*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// fleet is a set of names of its own on the cluster.
type fleet struct {
	t *testing.T
	c *kafkatest.Cluster
	Config
}

func newFleet(t *testing.T, shards int) *fleet {
	c := brokers(t)
	f := &fleet{t: t, c: c, Config: Config{Brokers: c.Addrs, Name: fmt.Sprintf("%s-%d", t.Name(), time.Now().UnixNano()), Shards: shards, Outage: time.Hour,
		Linger: 10 * time.Millisecond, LossRow: func(l Loss) []byte {
			b, err := json.Marshal(l)
			if err != nil {
				t.Error(err)
			}
			return b
		}}}
	f.Topics = []TopicRule{{Match: f.Name + ".*"}}
	if testing.Verbose() {
		f.Logger = slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	return f
}

func (f *fleet) open() *Relay {
	f.t.Helper()
	r, err := Open(within(f.t), f.Config)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(r.Close)
	return r
}

// all waits until the relay serves every shard.
func (f *fleet) all(r *Relay) *Relay {
	f.t.Helper()
	f.until("all shards are served", func() bool { return len(r.Served()) == f.Shards })
	return r
}

func (f *fleet) until(what string, ok func() bool) {
	f.t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	end := time.After(90 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-end:
			f.t.Fatalf("not within 90 s: %s", what)
		}
	}
}

var epochA = wire.ID{0xa1, 2, 3}

func (f *fleet) origin(node int) wire.Origin {
	return wire.Origin{Node: fmt.Sprint("node", node), Epoch: epochA, Topic: f.Name + ".wind"}
}

func epochsOf(o wire.Origin) []wire.EpochInfo { return []wire.EpochInfo{{ID: o.Epoch, Number: 1}} }

func (f *fleet) adopt(r *Relay, o wire.Origin) {
	f.t.Helper()
	if err := r.Adopt(within(f.t), o.Node, epochsOf(o)); err != nil {
		f.t.Fatal(err)
	}
}

const t0 = 1_790_000_000_000

func batch(o wire.Origin, from, to int64) []byte { return batchAt(o, from, to, t0) }

func batchAt(o wire.Origin, from, to, at int64) []byte {
	var bl record.Builder
	bl.Reset(nil)
	for off := from; off < to; off++ {
		bl.Add(at+off, []byte(o.Node), fmt.Append(nil, off), nil)
	}
	return bl.Finish(from, 1)
}

func appendTo(ctx context.Context, r *Relay, o wire.Origin, b []byte) (uplink.RangeSet, error) {
	type result struct {
		held uplink.RangeSet
		err  error
	}
	ch := make(chan result, 1)
	r.Append(ctx, o, b, func(held uplink.RangeSet, err error) { ch <- result{held, err} })
	x := <-ch
	return x.held, x.err
}

func (f *fleet) mustAppend(r *Relay, o wire.Origin, b []byte) uplink.RangeSet {
	f.t.Helper()
	held, err := appendTo(within(f.t), r, o, b)
	if err != nil {
		f.t.Fatal(err)
	}
	return held
}

func (f *fleet) client(opts ...kgo.Opt) *kgo.Client {
	f.t.Helper()
	cl, err := kgo.NewClient(append([]kgo.Opt{kgo.SeedBrokers(f.c.Addrs...)}, opts...)...)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(cl.Close)
	return cl
}

// read is everything in a topic that is committed, by partition, read by a client that
// knows nothing of the relay.
func (f *fleet) read(topic string) []*kgo.Record {
	f.t.Helper()
	ctx := within(f.t)
	// The end that a read_committed reader can reach, markers included: they are written
	// after a commit has been answered.
	adm := kadm.NewClient(f.client())
	var ends kadm.ListedOffsets
	f.until("no transaction is open in "+topic, func() bool {
		stable, err := adm.ListCommittedOffsets(ctx, topic)
		last, err2 := adm.ListEndOffsets(ctx, topic)
		if err = errors.Join(err, err2, stable.Error(), last.Error()); err != nil {
			return false
		}
		ends = stable
		same := true
		last.Each(func(o kadm.ListedOffset) {
			s, _ := stable.Lookup(o.Topic, o.Partition)
			same = same && s.Offset == o.Offset
		})
		return same
	})
	left := map[int32]int64{}
	ends.Each(func(o kadm.ListedOffset) {
		if o.Offset > 0 {
			left[o.Partition] = o.Offset
		}
	})
	cl := f.client(kgo.ConsumeTopics(topic), kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.KeepControlRecords())
	var out []*kgo.Record
	for len(left) > 0 {
		fs := cl.PollFetches(ctx)
		if err := ctx.Err(); err != nil {
			f.t.Fatalf("%s: %v, still to read: %v", topic, err, left)
		}
		fs.EachRecord(func(r *kgo.Record) {
			if r.Offset >= left[r.Partition]-1 {
				delete(left, r.Partition)
			}
			if !r.Attrs.IsControl() {
				out = append(out, r)
			}
		})
	}
	return out
}

// audit checks that each node's records are there exactly once, in order, in one
// partition, from 0 to what was acknowledged at least. It returns what is wrong.
func (f *fleet) audit(topic string, acked map[string]int64) (wrong []string) {
	f.t.Helper()
	next, place := map[string]int64{}, map[string]int32{}
	for _, r := range f.read(topic) {
		node := string(r.Key)
		if p, ok := place[node]; ok && p != r.Partition {
			wrong = append(wrong, fmt.Sprintf("%s is in partitions %d and %d", node, p, r.Partition))
		}
		place[node] = r.Partition
		if want := fmt.Sprint(next[node]); string(r.Value) != want {
			wrong = append(wrong, fmt.Sprintf("%s at offset %d: record %s where %s belongs", node, r.Offset, r.Value, want))
		}
		var at int64
		fmt.Sscan(string(r.Value), &at)
		next[node] = at + 1
	}
	for node, n := range acked {
		if next[node] < n {
			wrong = append(wrong, fmt.Sprintf("%s: %d records, %d were acknowledged", node, next[node], n))
		}
	}
	return wrong
}

func TestRecordsAndProgressAreCommittedTogether(t *testing.T) {
	f := newFleet(t, 2)
	r := f.all(f.open())
	o := f.origin(1)
	if _, err := appendTo(within(t), r, o, batch(o, 0, 10)); err == nil {
		t.Fatal("records of an epoch that nobody has introduced are taken")
	}
	f.adopt(r, o)
	if held := f.mustAppend(r, o, batch(o, 0, 10)); held.String() != (uplink.RangeSet{{From: 0, To: 10}}).String() {
		t.Errorf("held %s after [0,10)", held)
	}
	f.mustAppend(r, o, batch(o, 5, 20)) // the first half is held
	f.mustAppend(r, o, batch(o, 20, 520))
	f.mustAppend(r, o, batch(o, 0, 10))
	if _, err := appendTo(within(t), r, o, batch(o, 600, 610)); err == nil {
		t.Error("a hole in front of records is taken")
	}
	r.Resume(o.Node)
	if err := r.PutNote(within(t), o.Node, []byte("a note"), true); err != nil {
		t.Fatal(err)
	}
	held, err := r.Declare(within(t), o, []wire.Gap{{Ranges: uplink.RangeSet{{From: 500, To: 600}}, Reason: wire.GapEvicted}})
	if err != nil || held.Count() != 600 {
		t.Errorf("held %s after a declaration: %v", held, err)
	}
	for _, w := range f.audit(o.Topic, map[string]int64{o.Node: 520}) {
		t.Error(w)
	}
	if rows := f.read(f.LossTopic()); len(rows) != 1 {
		t.Errorf("%d rows in the ledger", len(rows))
	}
	// Another hub finds the same.
	r.Close()
	var notes sync.Map
	f.Acquired = func(_ int, m, _ map[string][]byte) {
		for k, v := range m {
			notes.Store(k, string(v))
		}
	}
	r = f.all(f.open())
	ps, err := r.Progress(o.Node)
	if err != nil || len(ps) != 1 {
		t.Fatal(ps, err)
	}
	if p := ps[0]; p.Held.Count() != 600 || p.Stored != 520 || p.Last == nil || p.Last.Offset != 20 || p.Last.CRC != record.Batch(batch(o, 20, 520)).CRC() {
		t.Errorf("progress after a takeover: %+v", p)
	}
	if n, _ := notes.Load(o.Node); n != "a note" {
		t.Errorf("note after a takeover: %v", n)
	}
	f.mustAppend(r, o, batch(o, 500, 700)[:])
	if ps, _ = r.Progress(o.Node); ps[0].Stored != 620 {
		t.Errorf("stored %d, want 620", ps[0].Stored)
	}
}

type uplinkRanges = uplink.RangeSet

// noise is a batch of records of given sizes that do not shrink.
func noise(o wire.Origin, from int64, sizes []int) []byte {
	var bl record.Builder
	bl.Reset(nil)
	rnd := rand.NewChaCha8([32]byte{1})
	for _, n := range sizes {
		v := make([]byte, n)
		rnd.Read(v)
		bl.Add(t0, []byte(o.Node), v, nil)
	}
	return bl.Finish(from, 1)
}
