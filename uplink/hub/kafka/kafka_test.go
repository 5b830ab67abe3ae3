package kafka_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"tailrace/storage"
	"tailrace/storage/record"
	"tailrace/uplink/hub/kafka"
)

const t0 int64 = 1_700_000_000_000 // ms; the first record's time

// hub is a store with a listener on it.
type hub struct {
	t     testing.TB
	store *storage.Store
	srv   *kafka.Server
	addr  string
	stop  func()
}

func openStore(t testing.TB, dir string) *storage.Store {
	t.Helper()
	s, err := storage.Open(storage.Config{Dir: dir, NodeID: "hub", RetentionInterval: -1,
		Classes: []storage.ClassConfig{{Name: "main", SegmentBytes: 4 << 20}, {Name: "other"}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func newHub(t testing.TB, mod ...func(*kafka.Config)) *hub {
	t.Helper()
	return serve(t, openStore(t, t.TempDir()), mod...)
}

func serve(t testing.TB, store *storage.Store, mod ...func(*kafka.Config)) *hub {
	t.Helper()
	cfg := kafka.Config{Store: store, RebalanceDelay: 20 * time.Millisecond}
	if os.Getenv("KAFKA_TEST_LOG") != "" {
		cfg.Logger = slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	for _, m := range mod {
		m(&cfg)
	}
	srv, err := kafka.NewServer(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ctx, ln) }()
	h := &hub{t: t, store: store, srv: srv, addr: ln.Addr().String()}
	stopped := false
	h.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Serve: %v", err)
			}
		case <-time.After(20 * time.Second):
			t.Error("Serve did not end")
		}
		if n := srv.Conns(); n != 0 {
			t.Errorf("%d connections left", n)
		}
	}
	t.Cleanup(h.stop)
	return h
}

func (h *hub) topic(name string, partitions int) *storage.Topic {
	h.t.Helper()
	tp, err := h.store.CreateTopic(name, storage.TopicConfig{Partitions: partitions})
	if err != nil {
		h.t.Fatal(err)
	}
	return tp
}

// fill appends n records in batches of per: key k<i>, value v<i>, one second
// apart from t0.
func (h *hub) fill(p *storage.Partition, from, n, per int, zip bool) {
	h.t.Helper()
	a := h.store.NewAppend(p.Topic().Config().Class)
	for i := from; i < from+n; i += per {
		var bl record.Builder
		bl.Reset(nil)
		for j := i; j < min(i+per, from+n); j++ {
			bl.Add(t0+int64(j)*1000, fmt.Appendf(nil, "k%d", j), fmt.Appendf(nil, "v%d", j), []record.Header{{Key: "mqtt.topic", Value: []byte("wind/7")}})
		}
		b := record.Batch(bl.Finish(0, 0))
		if zip {
			b = record.Compress(nil, b)
		}
		if err := a.Batch(p, b, nil); err != nil {
			h.t.Fatal(err)
		}
		if a.Bytes() > 4<<20 {
			h.commit(a)
			a.Reset()
		}
	}
	h.commit(a)
}

func (h *hub) commit(a *storage.Append) {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := h.store.Commit(ctx, a); err != nil {
		h.t.Fatal(err)
	}
}

func (h *hub) client(opts ...kgo.Opt) *kgo.Client {
	h.t.Helper()
	cl, err := kgo.NewClient(append([]kgo.Opt{kgo.SeedBrokers(h.addr), kgo.RetryTimeout(10 * time.Second)}, opts...)...)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(cl.Close)
	return cl
}

// await waits until ok, for as long as a client's whole program may take.
func await(t testing.TB, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), clientTime)
	defer cancel()
	if err := until(ctx, nil, ok); err != nil {
		t.Fatalf("waiting for %s: %v", what, err)
	}
}

// until looks every 100 ms at what no channel tells, until ok or something has ended.
func until(ctx context.Context, ended <-chan error, ok func() bool) error {
	for !ok() {
		select {
		case err := <-ended:
			return errors.Join(errEnded, err)
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
	return nil
}

var errEnded = errors.New("it ended")

// poll reads until n records have come.
func poll(t testing.TB, cl *kgo.Client, n int) []*kgo.Record {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	var out []*kgo.Record
	for len(out) < n {
		fs := cl.PollFetches(ctx)
		if errs := fs.Errors(); len(errs) > 0 {
			t.Fatalf("after %d of %d records: %v", len(out), n, errs[0])
		}
		out = append(out, fs.Records()...)
	}
	return out
}
