package scenario

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"time"

	"tailrace/firmware-sim/ledger"
	"tailrace/firmware-sim/rawload"
	"tailrace/storage/storagetest"
)

// outcome of a history.
type outcome struct {
	Node, Hub   ledger.Report // what the node's and the hub's store hold at the end
	Cuts        int           // power cuts
	Faults      int           // disk faults that surfaced
	Outages     int
	Reconnects  int64
	Resent      int64
	Simulated   time.Duration
	NodeRecords int64
	HubRecords  int64
}

// live lets the world run for a while with everything going wrong that the seed says,
// heals it, waits until the hub has what the node has, and compares with the ledger.
// It must run in a bubble.
func (w *world) live(storm time.Duration) (out outcome, err error) {
	defer func() {
		if e := w.end(); err == nil {
			err = e
		}
	}()
	w.wan.set(w.weather())
	if err := errors.Join(w.hub.on(), w.node.on()); err != nil {
		return out, err
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	wait, err := w.devices(ctx)
	if err != nil {
		return out, err
	}
	until := w.start.Add(storm)
	for time.Now().Before(until) && err == nil {
		time.Sleep(time.Duration(200+w.rng.IntN(3000)) * time.Millisecond)
		err = w.something(&out)
	}
	if err != nil {
		return out, err
	}
	w.heal()
	w.say("healed")
	time.Sleep(5 * time.Second) // devices come back and send once more
	stop()
	for _, r := range wait() {
		out.Reconnects += r.Reconnects
		out.Resent += r.Resent
		if r.SessionsLost != 0 || r.Failed != 0 {
			return out, fmt.Errorf("mqtt %d: the node forgot %d sessions, %d devices failed: %s", r.Version, r.SessionsLost, r.Failed, r.FirstError)
		}
	}
	if err := w.drained(10 * time.Minute); err != nil {
		return out, err
	}
	out.NodeRecords, out.HubRecords = w.node.records(), w.hub.records()
	for m, rep := range map[*machine]*ledger.Report{w.node: &out.Node, w.hub: &out.Hub} {
		obs := w.book.Observe(m.name)
		if err := observe(m.store(), obs); err != nil {
			return out, fmt.Errorf("%s: %w", m.name, err)
		}
		*rep = obs.Report()
		if !rep.OK() {
			return out, fmt.Errorf("the %s's store and the ledger differ: %v", m.name, *rep)
		}
	}
	if out.NodeRecords != out.HubRecords {
		return out, fmt.Errorf("the node holds %d records, the hub %d", out.NodeRecords, out.HubRecords)
	}
	out.Simulated = time.Since(w.start)
	for _, m := range []*machine{w.node, w.hub} {
		if err := w.secondReader(m); err != nil {
			return out, fmt.Errorf("%s, read by the format document: %w", m.name, err)
		}
	}
	return out, nil
}

// secondReader shuts the machine down in order and lets the reader that knows the log only
// from its format document show its records to the ledger.
func (w *world) secondReader(m *machine) error {
	l := m.off()
	o, err := storagetest.ReadStore(l.dir)
	if err != nil {
		return err
	}
	for class, log := range o.Logs {
		if len(log.Problems) > 0 || log.Cut > 0 {
			return fmt.Errorf("class %s: %d bytes behind the last commit after a shutdown in order, %v", class, log.Cut, log.Problems)
		}
	}
	obs := w.book.Observe(m.name + ", second reader")
	for i := range o.Topics[stream] {
		for _, r := range o.Partition(stream, i) {
			topic := ""
			for _, h := range r.Headers {
				if h.Key == "mqtt.topic" {
					topic = string(h.Value)
				}
			}
			obs.SeePayload(topic, r.Value, ledger.Position{Partition: int64(i), Offset: r.Offset})
		}
	}
	if rep := obs.Report(); !rep.OK() {
		return fmt.Errorf("the ledger differs: %v", rep)
	}
	return nil
}

// devices sends from some clients of both MQTT versions with QoS 1 on persistent sessions.
func (w *world) devices(ctx context.Context) (wait func() []rawload.Result, err error) {
	var wg sync.WaitGroup
	results := make([]rawload.Result, 2)
	for i, version := range []byte{4, 5} {
		l, err := rawload.New(rawload.Config{
			Dial: w.site.dial, Version: version, QoS: 1, Clients: 1 + w.rng.IntN(3), Window: 1 + w.rng.IntN(20),
			Rate: 20 + 60*w.rng.Float64(), ClientPrefix: fmt.Sprintf("v%d", version),
			Topic:     fmt.Sprintf("site/v%d/{client}/telemetry", version),
			Reconnect: true, BackOffMin: 50 * time.Millisecond, BackOffMax: 2 * time.Second, Drain: time.Minute,
			Ledger: w.book, Seed: w.rng.Uint64() | 1, Boot: w.seed<<8 | uint64(version), Epoch: time.Now(),
		})
		if err != nil {
			return nil, err
		}
		wg.Go(func() {
			r, err := l.Run(ctx)
			if err != nil {
				r.Failed++
				r.FirstError = err.Error()
			}
			results[i] = r
		})
	}
	return func() []rawload.Result { wg.Wait(); return results }, nil
}

// weather draws the state of the link.
func (w *world) weather() conditions {
	r := w.rng
	c := conditions{Rate: []float64{64e3, 256e3, 2e6, 20e6}[r.IntN(4)], Delay: time.Duration(5+r.IntN(300)) * time.Millisecond}
	if r.IntN(2) == 0 {
		c.Loss = [2]float64{0.2 * r.Float64(), 0.2 * r.Float64()}
	}
	if r.IntN(3) == 0 {
		c.Jitter = time.Duration(1+r.IntN(100)) * time.Millisecond
	}
	if r.IntN(8) == 0 {
		c.Corrupt = 0.02
	}
	switch r.IntN(8) {
	case 0:
		c.Down = [2]bool{true, true}
	case 1:
		c.Down = [2]bool{true, false}
	case 2:
		c.Down = [2]bool{false, true}
	}
	return c
}

// something goes wrong.
func (w *world) something(out *outcome) error {
	r := w.rng
	m := w.node
	if r.IntN(3) == 0 {
		m = w.hub
	}
	switch r.IntN(12) {
	case 10, 11:
		if n := w.site.cut(func() bool { return r.IntN(2) == 0 }); n > 0 {
			w.say("%d devices lose their connection", n)
		}
	case 0, 1, 2, 3:
		c := w.weather()
		if c.Down[0] || c.Down[1] {
			out.Outages++
		}
		w.say("link: %+v", c)
		w.wan.set(c)
	case 4, 5, 6:
		out.Cuts++
		if err := m.crash(r.Uint64(), int64(r.IntN(30)), r.IntN(2) == 0); err != nil {
			return err
		}
		if r.IntN(2) == 0 {
			time.Sleep(time.Duration(r.IntN(5000)) * time.Millisecond)
		}
		return m.on()
	case 7, 8:
		return w.fault(m, out)
	default: // both at once: a power cut at a site that has its own hub
		out.Cuts += 2
		if err := errors.Join(w.node.crash(r.Uint64(), 0, false), w.hub.crash(r.Uint64(), 0, false)); err != nil {
			return err
		}
		time.Sleep(time.Duration(r.IntN(2000)) * time.Millisecond)
		return errors.Join(w.node.on(), w.hub.on())
	}
	return nil
}

// fault makes a disk fail for a while.
func (w *world) fault(m *machine, out *outcome) error {
	r, fs := w.rng, m.disk()
	if fs == nil {
		return nil
	}
	f := storagetest.Fault{
		Call:    []storagetest.Call{storagetest.Sync, storagetest.Sync, storagetest.Sync, storagetest.SyncDir, storagetest.Write, storagetest.Create, storagetest.Change}[r.IntN(7)],
		N:       1 + r.IntN(10),
		Err:     []error{syscall.EIO, syscall.ENOSPC, syscall.EROFS}[r.IntN(3)],
		Forever: r.IntN(2) == 0,
		After:   r.IntN(3) == 0,
	}
	w.say("disk of the %s: call %v number %d fails with %v, forever=%v after=%v", m.name, f.Call, f.N, f.Err, f.Forever, f.After)
	fired := fs.Inject(f)
	time.Sleep(time.Duration(100+r.IntN(3000)) * time.Millisecond)
	if n := fired(); n > 0 {
		out.Faults++
		w.say("the fault surfaced %d times", n)
	}
	fs.Heal()
	return nil
}

// heal makes everything good again.
func (w *world) heal() {
	w.wan.set(conditions{Rate: 20e6, Delay: 20 * time.Millisecond})
	for _, m := range []*machine{w.node, w.hub} {
		if fs := m.disk(); fs != nil {
			fs.Heal()
		}
	}
}

// drained waits, in simulated time, until the hub holds as many records as the node.
func (w *world) drained(limit time.Duration) error {
	for start := time.Now(); ; time.Sleep(100 * time.Millisecond) {
		n, h := w.node.records(), w.hub.records()
		if n > 0 && n == h {
			return nil
		}
		if time.Since(start) > limit {
			return fmt.Errorf("%v after everything was healed the node holds %d records and the hub %d", limit, n, h)
		}
	}
}

// end switches everything off and lets the timers of the simulated network run out.
func (w *world) end() error {
	w.node.off()
	w.hub.off()
	w.ghosts.Wait()
	time.Sleep(3 * time.Minute)
	return nil
}
