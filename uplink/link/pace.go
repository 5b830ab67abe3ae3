package link

import (
	"context"
	"sync"
	"time"
)

// A backlog fills whatever queue the link has, and live records wait in it. The pacer
// keeps that queue short by delay: it limits what bulk writes, over all connections of a
// session together, so that the round trip stays about pacerTarget above its minimum.
//
//   - capacity: what was written in a window, over the window plus the growth of the queue
//   - rate: capacity times 1 + (target - queue)/5 round trips, a first-order loop
//   - every ten seconds the queue is drained for a moment, so that the minimum is one
//   - a queue that stays long although the rate was halved is not ours (another flow, or
//     jitter): pacing pauses for half a minute, and the connections' own control competes
//
// Start-up and whatever loss limits are left to the connections.
const (
	pacerTarget  = 40 * time.Millisecond
	pacerMinRate = 4 << 10 // bytes per second
	pacerDrain   = 10 * time.Second
	pacerYield   = 30 * time.Second
	pacerIdle    = 10 * time.Second
	pacerChunk   = 16 << 10
)

// pathSample is the round trip of the connections that carry the traffic.
type pathSample struct {
	smoothed, latest, least, jitter time.Duration // least: since the connections began
}

type pacer struct {
	sample func() (pathSample, bool) // not called with mu held by anybody else
	limit  int64                     // bytes per second that an operator allows, 0 = none

	mu       sync.Mutex // guards the following
	rate     float64    // bytes per second, 0 = start-up: not limited here
	next     time.Time  // when the next byte may go
	at       time.Time  // start of the window
	written  int64      // in the window
	limited  bool       // somebody waited in the window
	queue    time.Duration
	peak     time.Duration    // of queue since the stripes looked
	base     [2]time.Duration // least round trip of this and the last period
	baseAt   time.Time
	drainTo  time.Time
	yieldTo  time.Time
	longTo   time.Time // since when the queue is long: zero = it is not
	longRate float64
	longest  time.Duration
	limitedA time.Time // when somebody waited last
}

// take waits until n more bytes may be written.
func (p *pacer) take(ctx context.Context, n int) error {
	for {
		wait := p.reserve(time.Now(), n)
		if wait <= 0 {
			return ctx.Err()
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return ctx.Err()
		}
	}
}

// reserve takes n bytes, or says how long to wait.
func (p *pacer) reserve(now time.Time, n int) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.control(now)
	rate := p.allowed(now)
	if rate > 0 {
		if wait := p.next.Sub(now); wait > 0 {
			p.limited, p.limitedA = true, now
			return wait
		}
		if slack := now.Add(-5 * time.Millisecond); p.next.Before(slack) {
			p.next = slack
		}
		p.next = p.next.Add(time.Duration(float64(n) / rate * 1e9))
	}
	p.written += int64(n)
	return 0
}

// charge counts what went without asking: it delays bulk under an operator's limit.
func (p *pacer) charge(now time.Time, n int) {
	if p.limit == 0 {
		return
	}
	p.mu.Lock()
	if p.next.Before(now) {
		p.next = now
	}
	p.next = p.next.Add(time.Duration(float64(n) / float64(p.limit) * 1e9))
	p.mu.Unlock()
}

func (p *pacer) allowed(now time.Time) float64 {
	rate := p.rate
	if now.Before(p.yieldTo) {
		rate = 0
	}
	if rate > 0 && now.Before(p.drainTo) {
		rate *= 0.7
	}
	if l := float64(p.limit); l > 0 && (rate == 0 || rate > l) {
		rate = l
	}
	return rate
}

// chunk is how much to write at once, a few milliseconds' worth.
func (p *pacer) chunk() int {
	p.mu.Lock()
	rate := p.allowed(time.Now())
	p.mu.Unlock()
	if rate == 0 {
		return pacerChunk
	}
	return min(max(int(rate/100), 1200), pacerChunk)
}

// control looks at the last window when it is over.
func (p *pacer) control(now time.Time) {
	if now.Sub(p.at) > pacerIdle { // a new backlog
		p.rate, p.base, p.at, p.written, p.limited, p.longTo = 0, [2]time.Duration{}, now, 0, false, time.Time{}
		p.baseAt, p.drainTo, p.queue = now, time.Time{}, 0
		return
	}
	elapsed := now.Sub(p.at)
	if elapsed < 50*time.Millisecond {
		return
	}
	s, ok := p.sample()
	if !ok {
		return
	}
	window := max(100*time.Millisecond, s.smoothed)
	if p.rate > 0 {
		window = max(window, min(time.Duration(20*1200/p.rate*1e9), time.Second))
	}
	if p.rate == 0 { // a start doubles every round trip
		window = 50 * time.Millisecond
	}
	p.observe(now, s)
	if elapsed < window {
		return
	}
	base := p.base[0]
	if b := p.base[1]; b > 0 && b < base {
		base = b
	}
	q := max(0, s.smoothed-base)
	if p.rate == 0 { // the average lags behind
		q = max(q, s.latest-base)
	}
	grew := q - p.queue
	capacity := float64(p.written) / max(elapsed+grew, elapsed*9/10).Seconds()
	limited, written := p.limited, p.written
	p.at, p.written, p.limited, p.queue, p.peak = now, 0, false, q, max(p.peak, q)
	if written == 0 {
		return
	}
	target := pacerTarget + min(2*max(0, s.jitter-5*time.Millisecond), 100*time.Millisecond)
	loop := 5 * max(s.smoothed, 20*time.Millisecond)
	adjust := 1 + (target-q).Seconds()/loop.Seconds()
	switch {
	case p.rate == 0:
		if q > target {
			p.rate = capacity * min(max(adjust, 0.5), 1)
			p.drainTo = time.Time{}
		}
	case now.Before(p.drainTo):
	case q < target/4:
		if limited {
			p.rate = max(p.rate, min(p.rate*1.25, capacity*1.6))
		}
	default:
		next := capacity * min(max(adjust, 0.5), 1.1)
		if limited && next > p.rate || q > target { // what the connections did not use is no reason to allow less
			p.rate = next
		}
	}
	if p.rate > 0 {
		p.rate = max(p.rate, pacerMinRate)
	}
	p.notOurs(now, q, target)
}

// observe keeps the least round trip of the last ten to twenty seconds.
func (p *pacer) observe(now time.Time, s pathSample) {
	if p.base[0] == 0 {
		p.base[0] = s.least
	}
	p.base[0] = min(p.base[0], s.latest)
	if now.Sub(p.baseAt) >= pacerDrain {
		p.base[1], p.base[0], p.baseAt = p.base[0], s.latest, now
		if p.rate > 0 {
			p.drainTo = now.Add(min(p.queue*10/3+s.smoothed/2, time.Second))
		}
	}
}

// notOurs pauses pacing when a long queue does not follow our rate.
func (p *pacer) notOurs(now time.Time, q, target time.Duration) {
	if p.rate == 0 || q < target*3/2 {
		p.longTo = time.Time{}
		return
	}
	if p.longTo.IsZero() || q < p.longest*3/4 { // it follows
		p.longTo, p.longRate, p.longest = now, p.rate, q
	}
	p.longest = max(p.longest, q)
	if now.Sub(p.longTo) > 10*time.Second && p.rate < p.longRate/2 {
		p.yieldTo, p.longTo, p.rate = now.Add(pacerYield), time.Time{}, p.longRate
	}
}

// holds says whether the pacer limited bulk in the last seconds, because of a queue.
func (p *pacer) holds(now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return now.Sub(p.limitedA) < 2*time.Second && p.queue > pacerTarget/2
}

// queued is the queue that the pacer saw last, and the longest since the call before.
func (p *pacer) queued() (last, peak time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	peak, p.peak = p.peak, p.queue
	return p.queue, peak
}
