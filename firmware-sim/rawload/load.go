package rawload

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Result is what a load did. Latency is from the write of a publish to the read
// of its acknowledgement (QoS 0: not measured).
type Result struct {
	Clients      int     `json:"clients"`
	Window       int     `json:"window"`
	QoS          byte    `json:"qos"`
	Version      byte    `json:"mqtt_version"`
	PayloadBytes int     `json:"payload_bytes"`
	Published    int64   `json:"published"` // distinct messages written at least once
	Acked        int64   `json:"acked"`
	Refused      int64   `json:"refused"`
	Unknown      int64   `json:"unknown"`
	Resent       int64   `json:"resent"`
	Reconnects   int64   `json:"reconnects"`
	SessionsLost int64   `json:"sessions_lost"` // reconnects at which the server had forgotten the session
	Seconds      float64 `json:"seconds"`
	PerSecond    float64 `json:"per_second"` // acked
	CPUSeconds   float64 `json:"cpu_seconds"`
	CPUPerM      float64 `json:"cpu_seconds_per_million"` // of this generator
	P50us        int64   `json:"p50_us"`
	P90us        int64   `json:"p90_us"`
	P99us        int64   `json:"p99_us"`
	P999us       int64   `json:"p999_us"`
	MaxUs        int64   `json:"max_us"`
	Failed       int64   `json:"failed_clients"`
	FirstError   string  `json:"first_error,omitempty"`
	Phases       []Phase `json:"phases,omitempty"` // see Load.SetPhase; one when it was not used
}

// Phase is the latency of what was acknowledged in one phase.
type Phase struct {
	Acked int64 `json:"acked"`
	P50us int64 `json:"p50_us"`
	P99us int64 `json:"p99_us"`
	MaxUs int64 `json:"max_us"`
}

// Progress is a snapshot of a running load.
type Progress struct {
	Connected, Published, Acked, Refused, Reconnects int64
}

// Load is one load. Use it once.
type Load struct {
	c       Config
	started chan struct{} // closed when all clients have connected once
	dials   chan struct{} // bounds simultaneous connects

	connected, published, acked, refused, resent, reconnects, lost atomic.Int64

	phase atomic.Int32 // index into Result.Phases
}

// New checks the configuration.
func New(c Config) (*Load, error) {
	c = c.withDefaults()
	if err := c.validate(); err != nil {
		return nil, err
	}
	return &Load{c: c, started: make(chan struct{}), dials: make(chan struct{}, 64)}, nil
}

// Run is New and Run in one.
func Run(ctx context.Context, c Config) (Result, error) {
	l, err := New(c)
	if err != nil {
		return Result{}, err
	}
	return l.Run(ctx)
}

// Progress may be called while Run runs.
func (l *Load) Progress() Progress {
	return Progress{l.connected.Load(), l.published.Load(), l.acked.Load(), l.refused.Load(), l.reconnects.Load()}
}

// Boot names the run in payloads and ledger.
func (l *Load) Boot() uint64 { return l.c.Boot }

// SetPhase says to which of Config.Phases the acknowledgements count from now on: the same
// clients are measured under changing conditions.
func (l *Load) SetPhase(i int) { l.phase.Store(int32(min(max(i, 0), l.c.Phases-1))) }

// Run connects all clients, then publishes until Count, Duration or ctx ends it,
// then waits up to Drain for the last acknowledgements. The clock of Result
// starts when all clients are connected. An error means that no load was put on:
// a client that fails later is counted in Failed.
func (l *Load) Run(ctx context.Context) (Result, error) {
	send, stopSending := context.WithCancel(ctx)
	defer stopSending()
	// hard ends Drain after send; ctx itself only stops the sending.
	hard, abort := context.WithCancel(context.WithoutCancel(ctx))
	defer abort()
	context.AfterFunc(send, func() { time.AfterFunc(l.c.Drain, abort) })

	clients := make([]*client, l.c.Clients)
	var ready, all sync.WaitGroup
	for i := range clients {
		id := fmt.Sprintf("%s-%05d", l.c.ClientPrefix, i)
		topic := strings.ReplaceAll(l.c.Topic, "{client}", id)
		c := &client{l: l, c: &l.c, id: id, next: 1, head: 1, index: i,
			rng:  rand.New(rand.NewPCG(l.c.Seed, uint64(i))),
			make: newPayloads(&l.c, id, topic), session: l.c.Ledger.Session(topic, l.c.Boot)}
		c.size = len(c.make.template) - c.make.at.payload
		c.sentAt = make([]int64, l.c.Window)
		c.hists = make([]Hist, l.c.Phases)
		c.early, c.received = make([]bool, l.c.Window), make([]bool, l.c.Window)
		clients[i] = c
		ready.Add(1)
		all.Go(func() { c.err = c.run(send, hard, ready.Done) })
	}
	ready.Wait()
	begin, cpu := time.Now(), cpuTime()
	if l.c.Duration > 0 {
		t := time.AfterFunc(l.c.Duration, stopSending)
		defer t.Stop()
	}
	close(l.started)
	all.Wait()

	r := Result{Clients: l.c.Clients, Window: l.c.Window, QoS: l.c.QoS, Version: l.c.Version, PayloadBytes: clients[0].size,
		Published: l.published.Load(), Acked: l.acked.Load(), Refused: l.refused.Load(), Resent: l.resent.Load(),
		Reconnects: l.reconnects.Load(), SessionsLost: l.lost.Load(), Seconds: time.Since(begin).Seconds()}
	r.Unknown = r.Published - r.Acked - r.Refused
	r.CPUSeconds = (cpuTime() - cpu).Seconds()
	if r.Acked > 0 && r.Seconds > 0 {
		r.PerSecond = float64(r.Acked) / r.Seconds
		r.CPUPerM = r.CPUSeconds * 1e6 / float64(r.Acked)
	}
	var first error
	for _, c := range clients {
		if c.err != nil {
			r.Failed++
			if first == nil {
				first = fmt.Errorf("client %s: %w", c.id, c.err)
				r.FirstError = first.Error()
			}
		}
	}
	var h Hist
	for i := range l.c.Phases {
		var p Hist
		for _, c := range clients {
			p.Merge(&c.hists[i])
		}
		h.Merge(&p)
		r.Phases = append(r.Phases, Phase{int64(p.N()), p.Quantile(.5).Microseconds(), p.Quantile(.99).Microseconds(), p.Max().Microseconds()})
	}
	r.P50us, r.P90us, r.P99us = h.Quantile(.5).Microseconds(), h.Quantile(.9).Microseconds(), h.Quantile(.99).Microseconds()
	r.P999us, r.MaxUs = h.Quantile(.999).Microseconds(), h.Max().Microseconds()
	if err := l.c.Ledger.Flush(); err != nil {
		return r, err
	}
	if r.Published == 0 && first != nil {
		return r, first
	}
	return r, nil
}

// ErrRefused: the server refused the CONNECT; trying again is pointless.
var ErrRefused = errors.New("server refused the connection")
