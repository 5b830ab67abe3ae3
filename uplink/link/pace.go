package link

import (
	"context"
	"math"
	"sync"
	"time"
)

// A backlog fills whatever queue the link has, and live records wait in it. The pacer
// keeps that queue short by delay: it limits what bulk writes, over all connections of a
// session together, so that about pacerTarget of data waits at the bottleneck.
//
//   - delivered: what had been sent when the packet left whose round trip was measured last.
//     The rest is under way. Both are known without waiting, while a round trip tells what
//     the queue was a round trip ago; a law that acts on that swings.
//   - capacity: the rate at which delivered grows, over a round trip
//   - queue: what is under way over capacity, less the least round trip
//   - rate: capacity times 1 + (target - queue)/(least round trip)
//   - every ten seconds the queue is drained for a moment, so that the least round trip is one
//   - target: longer by the root of how far the capacity fell below its highest of late. Two that share
//     a link then come to equal shares; with one target the later one, whose least round trip has the
//     other's queue in it, would push the other out
//   - a queue that stays long although the rate was halved is not ours (another flow, or
//     jitter): pacing pauses for half a minute, and the connections' own control competes
//
// Start-up and whatever loss limits are left to the connections.
const (
	pacerTarget   = 40 * time.Millisecond
	pacerMinRate  = 4 << 10 // bytes per second
	pacerDrain    = 10 * time.Second
	pacerYield    = 30 * time.Second
	pacerIdle     = 10 * time.Second
	pacerChunk    = 16 << 10
	pacerTick     = 5 * time.Millisecond
	pacerMemory   = time.Minute // of the highest capacity
	pacerYielding = 2.5         // times the target at most, beside others
	pacerPacket   = 1228
	pacerPackets  = 8
	pacerMost     = 200 * time.Millisecond // for these packets
	pacerPoints   = 512                    // of a history: two and a half round trips at pacerTick or a 64th of a round trip
)

// pathSample is what the connections that carry the traffic say.
type pathSample struct {
	sent   int64         // bytes on the link since the session began, headers and repetitions included
	rtt    time.Duration // the last round trips, of the connections that heard something since the sample before; 0 = none
	least  time.Duration // since the connections began
	jitter time.Duration
}

type pacer struct {
	sample func() (pathSample, bool) // not called with mu held by anybody else
	limit  int64                     // bytes per second that an operator allows, 0 = none

	mu       sync.Mutex // guards the following
	capacity float64    // bytes per second on the link
	highest  float64    // of capacity, fading within pacerMemory
	rate     float64    // the same, 0 = start-up: not limited here
	next     time.Time  // when the next byte may go
	at       time.Time  // of the last sample
	busyAt   time.Time  // when somebody wrote or waited last
	heldAt   time.Time  // when somebody waited last
	written  int64      // since the weight was looked at
	weight   float64    // bytes on the link for a byte written
	weighed  point
	sent     history // on the link
	got      history // delivered
	rtt      time.Duration
	heard    time.Time        // when rtt was measured
	emptyAt  time.Time        // when the measured queue was next to nothing last
	queue    time.Duration    // as measured
	mean     time.Duration    // of queue, over a second or so
	base     [2]time.Duration // least round trip of this and the last period, 0 = none yet
	baseAt   time.Time
	drainTo  time.Time
	yieldTo  time.Time
	longTo   time.Time // since when the queue is long: zero = it is not
	longRate float64
	longest  time.Duration
}

// point is a moment of a count of bytes.
type point struct {
	at time.Time
	n  int64
}

// history is what a count was lately, oldest first.
type history []point

func (h *history) add(now time.Time, n int64) {
	if len(*h) == pacerPoints {
		*h = (*h)[:copy(*h, (*h)[pacerPoints/4:])]
	}
	*h = append(*h, point{now, n})
}

// when is the count at t, between the points around it.
func (h history) when(t time.Time) int64 {
	i := len(h) - 1
	for i > 0 && h[i].at.After(t) {
		i--
	}
	if i < 0 {
		return 0
	}
	if i == len(h)-1 || h[i].at.After(t) {
		return h[i].n
	}
	a, b := h[i], h[i+1]
	return a.n + int64(float64(b.n-a.n)*t.Sub(a.at).Seconds()/b.at.Sub(a.at).Seconds())
}

// rate is the growth a second over the last d, or over what there is if that is more than half of it.
func (h history) rate(d time.Duration) (float64, bool) {
	if len(h) < 2 {
		return 0, false
	}
	last := h[len(h)-1]
	from := last.at.Add(-d)
	if h[0].at.After(from) {
		from = h[0].at
	}
	took := last.at.Sub(from)
	if took < d/2 {
		return 0, false
	}
	return float64(last.n-h.when(from)) / took.Seconds(), true
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
	p.busyAt = now
	if rate := p.allowed(now); rate > 0 {
		if wait := p.next.Sub(now); wait > 0 {
			p.heldAt = now
			return min(wait, 50*time.Millisecond) // by then the rate may be another
		}
		if slack := now.Add(-pacerTick); p.next.Before(slack) {
			p.next = slack
		}
		p.next = p.next.Add(time.Duration(float64(n) / rate * 1e9))
	}
	p.written += int64(n)
	return 0
}

// charge counts what went without asking: it delays bulk under an operator's limit.
func (p *pacer) charge(now time.Time, n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.limit == 0 {
		return
	}
	if p.next.Before(now) {
		p.next = now
	}
	p.next = p.next.Add(time.Duration(float64(n) / float64(p.limit) * 1e9))
}

// allowed is how many bytes a second may be written.
func (p *pacer) allowed(now time.Time) float64 {
	rate := p.rate / max(p.weight, 1)
	if now.Before(p.yieldTo) {
		rate = 0
	}
	if l := float64(p.limit); l > 0 && (rate == 0 || rate > l) {
		rate = l
	}
	return rate
}

// packetData is what a packet of 1200 bytes carries of a stream: quic-go sends what is left over of a
// write in a packet of its own, so that a write of 1200 bytes takes two.
const packetData = 1150

// chunk is how much to write at once, a few milliseconds' worth.
func (p *pacer) chunk() int {
	p.mu.Lock()
	rate := p.allowed(time.Now())
	p.mu.Unlock()
	if rate == 0 {
		return pacerChunk
	}
	return min(max(int(rate/100/packetData), 1)*packetData, pacerChunk)
}

// control looks at the path.
func (p *pacer) control(now time.Time) {
	if now.Sub(p.busyAt) > pacerIdle { // a new backlog
		p.capacity, p.highest, p.rate, p.base, p.longTo = 0, 0, 0, [2]time.Duration{}, time.Time{}
		p.sent, p.got, p.queue, p.mean, p.weight = nil, nil, 0, 0, 1.08
		p.baseAt, p.drainTo = now, time.Time{}
		p.written, p.weighed = 0, point{}
	} else if now.Sub(p.busyAt) > 100*time.Millisecond+p.rtt/4 { // a pause says nothing of the capacity
		p.got = nil
	}
	since := now.Sub(p.at)
	if since < max(pacerTick, p.rtt/64) {
		return
	}
	s, ok := p.sample()
	if !ok {
		return
	}
	p.at = now
	p.sent.add(now, s.sent)
	p.weigh(now, s.sent)
	if s.rtt > 0 {
		p.rtt, p.heard = s.rtt, now
		p.observe(now, s)
		p.got.add(now, p.sent.when(now.Add(-s.rtt)))
	}
	base := p.least()
	if base == 0 || len(p.got) == 0 {
		return
	}
	if p.queue = max(0, p.rtt-base); p.queue < pacerTarget/4 {
		p.emptyAt = now
	}
	p.mean += time.Duration(float64(p.queue-p.mean) * min(1, since.Seconds()))
	target := max(pacerTarget, base/6) + min(2*max(0, s.jitter-5*time.Millisecond), 100*time.Millisecond)
	p.measure(now, base)
	p.highest = max(p.highest*(1-min(1, since.Seconds()/pacerMemory.Seconds())), p.capacity)
	if p.capacity > 0 { // a few packets on a slow link, whatever they take
		target = max(target, min(time.Duration(pacerPackets*pacerPacket/p.capacity*1e9), pacerMost))
		target = time.Duration(float64(target) * min(math.Sqrt(p.highest/p.capacity), pacerYielding))
	}
	if p.rate == 0 && p.queue <= target/2 || p.capacity == 0 {
		return
	}
	// Acknowledgements come in steps: until the next one, what is delivered is taken to grow as before.
	step := min(now.Sub(p.heard), 25*time.Millisecond+time.Duration(4*pacerPacket/p.capacity*1e9))
	under := s.sent - p.sent.when(p.heard.Add(step-p.rtt))
	queue := float64(under)/p.capacity - base.Seconds()
	aim := target.Seconds()
	if now.Before(p.drainTo) {
		// A little below nothing, since capacity is an estimate: else the least round trip would creep up.
		// Beside others it has some of their queue in it, and of ours that they hold for the way: deeper.
		aim = -0.02*base.Seconds() - 0.004
		if p.highest > 1.3*p.capacity {
			aim = -0.3 * base.Seconds()
		}
		if queue <= aim*0.8 {
			p.drainTo = now
		}
	}
	loop := max(base, 4*pacerTick).Seconds()
	p.rate = max(p.capacity*min(max(1+(aim-queue)/loop, 0.3), 1.5), pacerMinRate)
	p.notOurs(now, target)
}

// weigh compares what was written with what went over the link for it.
func (p *pacer) weigh(now time.Time, sent int64) {
	switch took := now.Sub(p.weighed.at); {
	case p.weighed.at.IsZero() || took > 2*time.Second:
		p.weighed, p.written = point{now, sent}, 0
	case took > 200*time.Millisecond && p.written > 16<<10:
		w := float64(sent-p.weighed.n) / float64(p.written)
		p.weight += (min(max(w, 1), 2) - p.weight) / 4
		p.weighed, p.written = point{now, sent}, 0
	}
}

// measure follows the capacity. What was not used is no reason to think less of the link:
// it falls only where a queue stood all the time.
func (p *pacer) measure(now time.Time, base time.Duration) {
	over := max(base, 100*time.Millisecond)
	if p.rate == 0 {
		over = max(base/2, 20*time.Millisecond)
	}
	c, ok := p.got.rate(over)
	if !ok {
		return
	}
	switch {
	case p.rate == 0:
		p.capacity = c
	case c > p.capacity || now.Sub(p.emptyAt) > over:
		p.capacity += (c - p.capacity) * min(1, now.Sub(p.got[len(p.got)-2].at).Seconds()/over.Seconds()*2)
	}
}

func (p *pacer) least() time.Duration {
	switch {
	case p.base[0] == 0:
		return p.base[1]
	case p.base[1] == 0:
		return p.base[0]
	}
	return min(p.base[0], p.base[1])
}

// observe keeps the least round trip of the last ten to twenty seconds.
func (p *pacer) observe(now time.Time, s pathSample) {
	switch {
	case p.base == [2]time.Duration{}:
		p.base[0] = min(s.least, s.rtt)
	case p.base[0] == 0:
		if s.rtt < p.base[1]-time.Millisecond {
			p.baseAt = now
		}
		p.base[0] = s.rtt
	default:
		if s.rtt < p.least()-time.Millisecond { // others see it too: the next drain is at the same time
			p.baseAt = now
		}
		p.base[0] = min(p.base[0], s.rtt)
	}
	if now.Sub(p.baseAt) >= pacerDrain {
		p.base[1], p.base[0], p.baseAt = p.base[0], 0, now
		if p.rate > 0 {
			p.drainTo = now.Add(time.Second + s.rtt)
		}
	}
}

// notOurs pauses pacing when a long queue does not follow our rate.
func (p *pacer) notOurs(now time.Time, target time.Duration) {
	q := p.queue
	if p.rate == 0 || q < target*3/2 {
		p.longTo = time.Time{}
		return
	}
	if p.longTo.IsZero() || q < p.longest*3/4 { // it follows
		p.longTo, p.longRate, p.longest = now, p.capacity, q
	}
	p.longest = max(p.longest, q)
	if now.Sub(p.longTo) > 10*time.Second && p.capacity < p.longRate/2 {
		p.yieldTo, p.longTo, p.capacity = now.Add(pacerYield), time.Time{}, p.longRate
	}
}

// pathState is what the stripes are told.
type pathState struct {
	queue time.Duration // the mean of the last second or so
	full  bool          // a queue stands, or an operator's limit holds bulk: more connections carry no more
	holds float64       // bytes under way that fill the link, 0 = not known
}

func (p *pacer) path(now time.Time) pathState {
	p.mu.Lock()
	defer p.mu.Unlock()
	limited := p.limit > 0 && now.Sub(p.heldAt) < 2*time.Second && (p.rate == 0 || p.rate > float64(p.limit))
	s := pathState{queue: p.mean, full: limited || p.mean > pacerTarget/2}
	if p.rate > 0 {
		s.holds = p.capacity * (p.least() + pacerTarget).Seconds()
	}
	return s
}

// frame is how many bytes on the link a frame should take at most, a tenth of a second's worth:
// connections take turns by frames, and one that loses a packet holds its frame back.
func (p *pacer) frame() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.rate == 0 {
		return 32 << 10
	}
	return min(max(int(p.capacity/10), 8<<10), 64<<10)
}
