package firmwaresim_test

import (
	"context"
	"strings"
	"sync"
	"testing"

	firmwaresim "tailrace/firmware-sim"
	"tailrace/firmware-sim/internal/brokertest"
	"tailrace/firmware-sim/ledger"
)

// world is a fleet and a broker in one bubble of simulated time.
type world struct {
	t     *testing.T
	b     *brokertest.Broker
	book  *ledger.Book
	fleet *firmwaresim.Fleet
	stop  context.CancelFunc
	done  chan error
}

func start(t *testing.T, b *brokertest.Broker, c firmwaresim.Config) *world {
	t.Helper()
	w := &world{t: t, b: b, book: ledger.New(), done: make(chan error, 1)}
	if c.Dial == nil {
		c.Dial = b.Dial
	}
	c.Ledger = w.book
	var err error
	if w.fleet, err = firmwaresim.New(c); err != nil {
		t.Fatal(err)
	}
	var ctx context.Context
	ctx, w.stop = context.WithCancel(t.Context())
	go func() { w.done <- w.fleet.Run(ctx) }()
	return w
}

// end stops the fleet, waits for it, and compares broker and ledger.
func (w *world) end() (ledger.Report, firmwaresim.Stats) {
	w.t.Helper()
	w.stop()
	return w.wait()
}

func (w *world) wait() (ledger.Report, firmwaresim.Stats) {
	w.t.Helper()
	if err := <-w.done; err != nil {
		w.t.Fatal(err)
	}
	w.stop()
	w.b.Wait()
	o := w.book.Observe("broker")
	for i, p := range w.b.Log() {
		if !strings.HasPrefix(p.Topic, "nonsense/") {
			o.SeePayload(p.Topic, p.Payload, ledger.Position{Offset: int64(i)})
		} else {
			o.SeePayload(p.Topic, []byte(`"will":true`), ledger.Position{Offset: int64(i)}) // nobody numbers nonsense
		}
	}
	r, s := o.Report(), w.fleet.Stats()
	if s.Connected != 0 || s.InFlight != 0 {
		w.t.Errorf("after the end: %d connected, %d in flight", s.Connected, s.InFlight)
	}
	if uint64(s.Published) != r.Published || uint64(s.Acked) != r.Acked || uint64(s.Refused) != r.Refused {
		w.t.Errorf("stats %+v and ledger %v disagree", s, r)
	}
	return r, s
}

func (w *world) ok(r ledger.Report) {
	w.t.Helper()
	if !r.OK() {
		w.t.Fatalf("%v\nfaults: %v", r, r.Faults())
	}
	if v := w.b.Violations(); len(v) > 0 {
		w.t.Fatalf("a device broke the protocol: %q", v)
	}
}

// once drops re-sends (DUP) of what a client has already stored, as a server with
// durable sessions does.
func once() func(p brokertest.Publish) bool {
	var mu sync.Mutex
	seen := map[string]bool{}
	return func(p brokertest.Publish) bool {
		mu.Lock()
		defer mu.Unlock()
		k := p.Client + string(p.Payload)
		if p.Dup && seen[k] {
			return true
		}
		seen[k] = true
		return false
	}
}

func telemetry(log []brokertest.Publish, topic string) (out []brokertest.Publish) {
	for _, p := range log {
		if p.Topic == topic {
			out = append(out, p)
		}
	}
	return out
}
