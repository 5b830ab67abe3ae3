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

	Declared   int64 // records given up and declared
	QoS2       int64 // records acknowledged with QoS 2
	Wills      int   // stored
	Retained   int   // topics compared at the end
	HubDisks   int   // disks of the hub lost or replaced by a backup
	Told       int   // of these: lost ones that had given records out, and the node could tell
	Copies     int   // copies of the node's card that ran
	Fenced     int   // histories in which the hub told of a copy
	ClockSteps int   // steps of the node's clock
	ClockRows  int   // corrections at the hub
}

func (o *outcome) add(x outcome) {
	o.Cuts, o.Faults, o.Outages = o.Cuts+x.Cuts, o.Faults+x.Faults, o.Outages+x.Outages
	o.Reconnects, o.Resent, o.Simulated = o.Reconnects+x.Reconnects, o.Resent+x.Resent, o.Simulated+x.Simulated
	o.NodeRecords, o.HubRecords = o.NodeRecords+x.NodeRecords, o.HubRecords+x.HubRecords
	o.Declared, o.QoS2, o.Wills, o.Retained = o.Declared+x.Declared, o.QoS2+x.QoS2, o.Wills+x.Wills, o.Retained+x.Retained
	o.HubDisks, o.Told, o.Copies, o.Fenced = o.HubDisks+x.HubDisks, o.Told+x.Told, o.Copies+x.Copies, o.Fenced+x.Fenced
	o.ClockSteps, o.ClockRows = o.ClockSteps+x.ClockSteps, o.ClockRows+x.ClockRows
}

// live lets the world run for a while with everything going wrong that the seed says,
// heals it, waits until the hub has or has declared what the node has, and compares with the
// ledger. It must run in a bubble.
func (w *world) live(storm time.Duration) (out outcome, err error) {
	defer func() {
		if e := w.end(); err == nil {
			err = e
		}
	}()
	w.plan = newPlan(w.seed, w.features)
	w.say("plan: %v", w.plan)
	w.tuneNode = w.plan.node
	steps := w.steps()
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
	wills, waitWills := w.willDevices(ctx)
	until := w.start.Add(storm)
	for time.Now().Before(until) && err == nil {
		time.Sleep(time.Duration(200+w.rng.IntN(3000)) * time.Millisecond)
		for len(steps) > 0 && err == nil && time.Since(w.start) >= steps[0].at {
			err = steps[0].do(&out)
			steps = steps[1:]
		}
		if err == nil {
			err = w.something(&out)
		}
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
		if r.QoS == 2 {
			out.QoS2 += r.Acked
		}
		if r.SessionsLost != 0 || r.Failed != 0 {
			return out, fmt.Errorf("mqtt %d qos %d: the node forgot %d sessions, %d devices failed: %s", r.Version, r.QoS, r.SessionsLost, r.Failed, r.FirstError)
		}
	}
	waitWills()
	// Twice, with a last power cut between: what only memory knew shows, and what is done twice.
	for i := range 2 {
		if i > 0 {
			w.say("a last power cut of both")
			if err := errors.Join(w.node.crash(w.rng.Uint64(), 0, false), w.hub.crash(w.rng.Uint64(), 0, false), w.node.on(), w.hub.on()); err != nil {
				return out, err
			}
		}
		if len(wills) > 0 {
			time.Sleep(time.Minute) // the wills of those that were missed at the power cut
		}
		if err := w.drained(10 * time.Minute); err != nil {
			return out, err
		}
	}
	if w.plan.clock != "" {
		time.Sleep(2 * time.Minute) // the corrections
		if err := w.drained(10 * time.Minute); err != nil {
			return out, err
		}
	}
	if err := w.judge(&out, wills); err != nil {
		return out, err
	}
	out.Simulated = time.Since(w.start)
	for _, m := range []*machine{w.node, w.hub} {
		if err := w.secondReader(m, out.Declared); err != nil {
			return out, fmt.Errorf("%s, read by the format document: %w", m.name, err)
		}
	}
	return out, nil
}

// judge compares both stores with what devices and test know.
func (w *world) judge(out *outcome, wills []*willDevice) error {
	out.NodeRecords, out.HubRecords = w.node.records(), w.hub.records()
	node, central := w.node.store(), w.hub.store()
	declared, err := account(node, central, stream)
	if err != nil {
		return err
	}
	auxDeclared, err := account(node, central, aux)
	if err != nil {
		return err
	}
	out.Declared = declared
	if !w.plan.evict && (declared > 0 || auxDeclared > 0) {
		return fmt.Errorf("%d records were declared lost by a node with room for all", declared+auxDeclared)
	}
	for m, rep := range map[*machine]*ledger.Report{w.node: &out.Node, w.hub: &out.Hub} {
		obs := w.book.Observe(m.name)
		if err := observe(m.store(), obs); err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
		*rep = obs.Report()
		switch {
		case m == w.hub:
			*rep, err = only(*rep, declared)
		case w.plan.evict: // it keeps what there is room for
			rep.Lost = 0
		}
		if err == nil && !rep.OK() {
			err = fmt.Errorf("the %s's store and the ledger differ: %v", m.name, *rep)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
	}
	if err := w.judgeGiven(central); err != nil {
		return err
	}
	if out.Wills, err = w.judgeWills(wills, auxDeclared > 0); err != nil {
		return err
	}
	if err := w.judgeRetained(); err != nil {
		return err
	}
	out.Retained = w.plan.retained()
	return w.judgeClock(out, time.Now())
}

// secondReader shuts the machine down in order and lets the reader that knows the log only
// from its format document show its records to the ledger.
func (w *world) secondReader(m *machine, declared int64) error {
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
	rep := obs.Report()
	if m == w.hub {
		if rep, err = only(rep, declared); err != nil {
			return err
		}
	} else if w.plan.evict {
		rep.Lost = 0
	}
	if !rep.OK() {
		return fmt.Errorf("the ledger differs: %v", rep)
	}
	return nil
}

// devices sends from some clients of both MQTT versions on persistent sessions, with QoS 1 or
// 2, and retained messages when the plan says so.
func (w *world) devices(ctx context.Context) (wait func() []rawload.Result, err error) {
	var wg sync.WaitGroup
	var results []rawload.Result
	start := func(c rawload.Config) error {
		c.Dial, c.Window, c.Ledger = w.site.dial, 1+w.rng.IntN(20), w.book
		c.Reconnect, c.BackOffMin, c.BackOffMax, c.Drain = true, 50*time.Millisecond, 2*time.Second, time.Minute
		c.Seed, c.Boot, c.Epoch = w.rng.Uint64()|1, w.seed&0xffffff<<8|uint64(len(results)+1), time.Now()
		l, err := rawload.New(c)
		if err != nil {
			return err
		}
		i := len(results)
		results = append(results, rawload.Result{})
		wg.Go(func() {
			r, err := l.Run(ctx)
			if err != nil {
				r.Failed++
				r.FirstError = err.Error()
			}
			results[i] = r
		})
		return nil
	}
	for i, qos := range w.plan.qos {
		version := byte(4 + i)
		c := rawload.Config{Version: version, QoS: qos, Clients: 1 + w.rng.IntN(3), Rate: 20 + 60*w.rng.Float64(), PayloadBytes: 120,
			ClientPrefix: fmt.Sprintf("v%d", version), Topic: fmt.Sprintf("site/v%d/{client}/telemetry", version)}
		if w.plan.evict {
			c.PayloadBytes = 1000
		}
		err = errors.Join(err, start(c))
	}
	if n := w.plan.retained(); n > 0 {
		err = errors.Join(err, start(rawload.Config{Version: byte(4 + w.rng.IntN(2)), QoS: 1, Retain: true, Clients: n, Rate: 3,
			ClientPrefix: "r", Topic: fmt.Sprintf(retainedTopic, "{client}")}))
	}
	return func() []rawload.Result { wg.Wait(); return results }, err
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
		if m == w.node {
			from := time.Now()
			defer w.trouble(from)
		}
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
		from := time.Now()
		defer w.trouble(from)
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
	if m == w.node {
		from := time.Now()
		defer w.trouble(from)
	}
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
	w.clock.set(0, true)
	for _, m := range []*machine{w.node, w.hub} {
		if fs := m.disk(); fs != nil {
			fs.Heal()
		}
	}
}

// drained waits, in simulated time, until the hub has or has declared all that the node has.
func (w *world) drained(limit time.Duration) error {
	behind := func() string {
		s := w.node.store()
		if s == nil {
			return "the node does not run"
		}
		for _, t := range s.Topics() {
			n, h := t.Partition(0).HighWatermark(), w.completeTo(t.Name())
			if n != h {
				return fmt.Sprintf("the node holds %d records of %s and the hub is complete to %d", n, t.Name(), h)
			}
		}
		return ""
	}
	for start := time.Now(); ; time.Sleep(100 * time.Millisecond) {
		why := behind()
		if why == "" && w.node.records() > 0 {
			return nil
		}
		if time.Since(start) > limit {
			return fmt.Errorf("%v after everything was healed %s (hub: %s %s, the node's link: %+v)", limit, why, w.info().State, w.info().Fenced, w.node.linkState())
		}
	}
}

// linkState is what the node says of its way to the hub.
func (m *machine) linkState() any {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.life == nil {
		return "off"
	}
	m.life.mu.Lock()
	defer m.life.mu.Unlock()
	if m.life.edge == nil {
		return "not running"
	}
	return m.life.edge.Status().Uplink
}

// end switches everything off and lets the timers of the simulated network run out.
func (w *world) end() error {
	w.node.off()
	w.hub.off()
	w.ghosts.Wait()
	time.Sleep(3 * time.Minute)
	return nil
}
