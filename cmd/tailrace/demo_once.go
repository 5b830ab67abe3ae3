package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	firmwaresim "tailrace/firmware-sim"
	"tailrace/firmware-sim/data"
)

// onceResult is the line that demo --once prints.
type onceResult struct {
	Published  int64   `json:"published"` // rows of the source that were sent
	Acked      int64   `json:"acked"`
	Delivered  int64   `json:"delivered"` // records the Kafka consumer got
	Lost       int64   `json:"lost"`
	Duplicate  int64   `json:"duplicate"`
	OutOfOrder int64   `json:"out_of_order"`
	Altered    int64   `json:"altered"`
	Seconds    float64 `json:"seconds"`

	LinkCuts       int   `json:"link_cuts"`
	Kills          int   `json:"kills"`
	InFlightAtKill int64 `json:"in_flight_at_kill"` // publishes that the killed node had not acknowledged
	Resent         int64 `json:"resent"`
}

const (
	// onceSeconds is about how long the devices send; the pace follows from it.
	onceSeconds = 8
	cutTime     = 1500 * time.Millisecond
	// onceStall ends a run in which nothing more arrives.
	onceStall = 60 * time.Second
)

func demoOnce(ctx context.Context, f demoFlags, out, errOut io.Writer) (err error) {
	dir, done, err := workDir(f.dir, f.keep)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, done()) }()
	set, err := data.Lookup(demoSet)
	if err != nil {
		return err
	}
	table, err := set.Open()
	if err != nil {
		return err
	}
	perDevice := (f.rows + len(table.Devices) - 1) / len(table.Devices)
	if f.rows == 0 {
		perDevice = table.DeviceRows(table.Devices[0])
	}
	s, err := newStack(dir, stackOptions{nodes: 2, edgeExec: f.edgeExec})
	if err != nil {
		return err
	}
	defer s.stop()
	if err := s.start(ctx); err != nil {
		return err
	}
	begin := time.Now()
	check := newSourceCheck(table, perDevice)
	res := onceResult{}
	run := &onceRun{s: s, total: int64(check.total)}
	fleets, err := s.fleets(firmwaresim.Config{
		Pace:     set.Interval.Seconds() * float64(perDevice) / onceSeconds,
		Lossless: true, NoRTC: 0, Drain: onceStall,
		BackOffMin: 20 * time.Millisecond, BackOffMax: 500 * time.Millisecond,
		OnIntent:  run.intent,
		OnOutcome: run.outcome,
	}, perDevice)
	if err != nil {
		return err
	}
	run.fleets = fleets

	prog := newProgress(errOut, false, "records delivered")
	prog.total = run.total
	g, gctx := errgroup.WithContext(ctx)
	for _, fl := range fleets {
		g.Go(func() error { return fl.Run(gctx) })
	}
	g.Go(func() error { return run.faults(gctx, &res) })
	g.Go(func() error { return consumeUntil(gctx, s.kafkaAddr(), stackTopic, check, prog) })
	err = g.Wait()
	prog.done()
	if err != nil && ctx.Err() != nil {
		return ctx.Err()
	}
	if err == nil {
		// With the nodes gone nothing more can arrive: what the topic holds now beyond
		// what was read would be a duplicate, so the consumer reads it to its end.
		for _, n := range s.nodes {
			n.proc.stop(stopGrace)
		}
		err = consumeToEnd(ctx, s.kafkaAddr(), stackTopic, check)
	}
	if err != nil { // the figures are printed all the same
		fmt.Fprintln(errOut, "tailrace demo:", err)
	}
	for _, fl := range fleets {
		res.Resent += fl.Stats().Resent
	}
	res.Published, res.Acked = run.published.Load(), run.acked.Load()
	res.Delivered = check.delivered
	res.Lost, res.Duplicate, res.OutOfOrder, res.Altered = check.lost(), check.duplicate, check.outOfOrder, check.altered
	res.Seconds = float64(time.Since(begin).Milliseconds()) / 1000
	line, _ := json.Marshal(res)
	fmt.Fprintln(out, string(line))
	if err != nil {
		return err
	}
	return res.verdict(run.total)
}

// verdict is nil only when the run shows what it is meant to show.
func (r *onceResult) verdict(total int64) error {
	switch {
	case r.Lost != 0 || r.Duplicate != 0 || r.OutOfOrder != 0 || r.Altered != 0:
		return errors.New("what the consumer got is not what the devices sent")
	case r.Published != total || r.Acked != total || r.Delivered != total:
		return fmt.Errorf("of %d rows %d were sent, %d acknowledged, %d delivered", total, r.Published, r.Acked, r.Delivered)
	case r.Kills != 1 || r.LinkCuts != 1:
		return errors.New("the run ended before link and node were disturbed: give it more rows")
	case r.InFlightAtKill == 0:
		return errors.New("no publish was unacknowledged when the node was killed: give it more rows")
	}
	return nil
}

// onceRun counts what devices did, outside the system, and disturbs it on the way.
type onceRun struct {
	s      *stack
	fleets []*firmwaresim.Fleet
	total  int64

	published, acked atomic.Int64
}

func telemetry(m firmwaresim.Message) bool {
	const suffix = "/telemetry"
	return len(m.Topic) > len(suffix) && m.Topic[len(m.Topic)-len(suffix):] == suffix
}

func (r *onceRun) intent(m firmwaresim.Message) {
	if telemetry(m) {
		r.published.Add(1)
	}
}

func (r *onceRun) outcome(m firmwaresim.Message, o firmwaresim.Outcome) {
	if telemetry(m) && o.Acked {
		r.acked.Add(1)
	}
}

// faults cuts the link after a quarter of the rows, and kills a node that has
// unacknowledged publishes after half of them, while the link is cut no more.
func (r *onceRun) faults(ctx context.Context, res *onceResult) error {
	if err := r.waitAcked(ctx, r.total/4); err != nil {
		return err
	}
	r.s.relay.cut.Store(true)
	res.LinkCuts++
	if err := pause(ctx, cutTime); err != nil {
		return err
	}
	r.s.relay.cut.Store(false)
	if err := r.waitAcked(ctx, r.total/2); err != nil {
		return err
	}
	n := r.s.nodes[0]
	// SIGSTOP first: what devices send from here on stays unacknowledged for certain,
	// so the kill hits a node in the middle of its work.
	if err := freeze(n.proc.cmd.Process); err != nil {
		return fmt.Errorf("stop %s: %w", n.id, err)
	}
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	limit := time.Now().Add(5 * time.Second)
	for {
		if res.InFlightAtKill = r.fleets[0].Stats().InFlight; res.InFlightAtKill > 0 || time.Now().After(limit) {
			break
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	n.proc.kill()
	res.Kills++
	ctx, cancel := context.WithTimeout(ctx, stackReadyTime)
	defer cancel()
	return r.s.startNode(ctx, n)
}

func (r *onceRun) waitAcked(ctx context.Context, n int64) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for r.acked.Load() < n {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
		if err := r.s.failed(); err != nil {
			return err
		}
	}
	return nil
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
