package firmwaresim

import (
	"context"
	"math"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"tailrace/firmware-sim/ledger"
)

// device is one running device. It lives one power cycle after the other; each
// begins with nothing but what flash would hold (its names, its clock).
type device struct {
	f       *Fleet
	d       *Device
	rng     *rand.Rand
	flash   *rand.Rand // differs between runs with one seed
	src     Source
	clock   clock
	battery bool

	// Position in simulated time and work done; survive power cycles, since the
	// plant goes on without the device. Owned by run.
	begin time.Time     // wall time of sample 0
	step  time.Duration // wall time between samples; 0 at MaxPace
	index int64         // of the next sample
	taken int           // samples so far
	spare Sample
}

func (f *Fleet) newDevice(d *Device) *device {
	rng := rngOf(f.c.Seed, "firmware", d.Site, d.ID)
	v := &device{f: f, d: d, rng: rng, src: d.Source(rngOf(f.c.Seed, "source", d.Site, d.ID), f.c.Seed)}
	v.flash = rngOf(f.c.Run, "boot", d.Site, d.ID)
	v.battery = !d.NoRTC && rng.Float64() >= f.c.NoRTC
	if f.c.DriftPPM > 0 {
		v.clock.drift = f.c.DriftPPM * 1e-6 * rng.NormFloat64()
	}
	if !math.IsInf(f.c.Pace, 1) {
		v.step = max(1, time.Duration(float64(d.Interval)/f.c.Pace))
		// Devices do not sample in step with each other.
		v.begin = time.Now().Add(time.Duration(rng.Float64() * float64(min(v.step, time.Minute))))
	}
	return v
}

// run lives until the work is done, or ctx ends and what is held was sent or hard ends.
func (v *device) run(ctx, hard context.Context) error {
	for {
		again := v.live(ctx, hard)
		if !again || ctx.Err() != nil {
			return nil
		}
		off := time.Second + time.Duration(v.rng.Int64N(int64(9*time.Second)))
		select {
		case <-time.After(off):
		case <-ctx.Done():
			return nil
		}
	}
}

// live is one power cycle; true: power was lost and there is more to do.
func (v *device) live(ctx, hard context.Context) bool {
	v.f.n.boots.Add(1)
	v.clock.powerOn(time.Now(), v.battery)
	power, cut := context.WithCancel(hard)
	defer cut()
	var lost atomic.Bool
	if v.f.c.BrownOuts > 0 {
		after := time.Duration(v.rng.ExpFloat64() * float64(v.f.c.BrownOuts))
		t := time.AfterFunc(after, func() { lost.Store(true); cut() })
		defer t.Stop()
	}
	l := v.newLink(uint64(v.rng.Uint32()^v.flash.Uint32()) | 1)
	linked := make(chan struct{})
	go func() {
		defer close(linked)
		l.run(power)
	}()
	over := v.sample(ctx, power, l)
	l.finish()
	<-linked
	l.forget()
	if lost.Load() {
		v.f.n.brownOuts.Add(1)
		return !over
	}
	if over && hard.Err() == nil {
		v.f.n.done.Add(1)
	}
	return false
}

// sample fills the ring until there are no more readings (true), or ctx or the
// power ends.
func (v *device) sample(ctx, power context.Context, l *link) (over bool) {
	c := &v.f.c
	if v.step > 0 { // what passed while the device was off was not measured
		v.index = max(v.index, int64((time.Since(v.begin)+v.step-1)/v.step))
	}
	for {
		if c.Limit > 0 && v.taken >= c.Limit || v.d.rows > 0 && !c.Loop && v.taken >= v.d.rows {
			return true // known before the next reading would be due
		}
		if v.step > 0 {
			if wait := time.Until(v.begin.Add(time.Duration(v.index) * v.step)); wait > 0 {
				t := time.NewTimer(wait)
				select {
				case <-t.C:
				case <-ctx.Done():
					t.Stop()
					return false
				case <-power.Done():
					t.Stop()
					return false
				}
			}
		}
		if c.Lossless && !l.ring.waitRoom(ctx, power) {
			return false
		}
		if ctx.Err() != nil || power.Err() != nil {
			return false
		}
		elapsed := time.Duration(v.index) * v.d.Interval
		v.index++
		if !v.src.Next(elapsed, &v.spare) {
			again, ok := v.src.(Rewinder)
			if !c.Loop || !ok {
				return true
			}
			again.Rewind()
			if !v.src.Next(elapsed, &v.spare) {
				return true // an empty source
			}
		}
		v.taken++
		v.f.n.samples.Add(1)
		now := time.Now()
		e := envelope{d: v.d, boot: l.boot, up: -1}
		switch {
		case c.Stamp == StampSimulated:
			e.ts = c.Start.Add(elapsed).UnixMilli()
		case c.Stamp == StampAuto && !v.spare.Time.IsZero():
			e.ts = v.spare.Time.UnixMilli()
		default:
			l.clockMu.Lock()
			e.ts = v.clock.now(now).UnixMilli()
			if !v.clock.known {
				e.up = v.clock.uptime(now).Milliseconds()
			}
			l.clockMu.Unlock()
		}
		l.seq++
		e.seq = l.seq
		v.f.n.dropped.Add(int64(l.ring.makeRoom()))
		e.drop = l.ring.drops()
		l.ring.push(&message{account: l.telemetry, topic: l.topic, seq: e.seq, payload: e.telemetry(&v.spare)})
	}
}

// message is one numbered publish on its way.
type message struct {
	account *ledger.Session
	topic   string
	seq     uint64
	payload []byte
	retain  bool

	told bool   // an intent was noted: it may have reached the wire
	pid  uint16 // while in flight
}

// ring is the RAM of a device: readings that wait for the network.
type ring struct {
	size int
	some chan struct{} // capacity 1: something was pushed
	room chan struct{} // capacity 1: something was taken

	mu      sync.Mutex
	items   []*message // guarded by mu; oldest first; at most size
	dropped uint64     // guarded by mu
}

func newRing(size int) *ring {
	return &ring{size: size, some: make(chan struct{}, 1), room: make(chan struct{}, 1)}
}

func notify(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// waitRoom waits until an item fits; false when a context ends first.
func (r *ring) waitRoom(a, b context.Context) bool {
	for {
		r.mu.Lock()
		full := len(r.items) >= r.size
		r.mu.Unlock()
		if !full {
			return true
		}
		select {
		case <-r.room:
		case <-a.Done():
			return false
		case <-b.Done():
			return false
		}
	}
}

// makeRoom drops the oldest items until one more fits.
func (r *ring) makeRoom() (dropped int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for len(r.items) >= r.size {
		r.shift()
		r.dropped++
		dropped++
	}
	return dropped
}

func (r *ring) drops() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.dropped
}

func (r *ring) push(m *message) {
	r.mu.Lock()
	r.items = append(r.items, m)
	r.mu.Unlock()
	notify(r.some)
}

func (r *ring) take() *message {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.items) == 0 {
		return nil
	}
	m := r.shift()
	notify(r.room)
	return m
}

// shift removes the oldest; the caller holds mu.
func (r *ring) shift() *message {
	m := r.items[0]
	r.items[0] = nil
	if r.items = r.items[1:]; len(r.items) == 0 {
		r.items = nil // gives the backing array back: an idle device holds nothing
	}
	return m
}

func (r *ring) len() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.items)
}
