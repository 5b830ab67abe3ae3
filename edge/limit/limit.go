// Package limit holds token buckets by address: how often somebody may do something
// before a node knows who it is. An IPv4 address is one, of IPv6 a /64 network. All
// methods may be used concurrently.
package limit

import (
	"net/netip"
	"sync"
	"time"
)

// Buckets gives every address Burst tokens, refilled at Rate per second. At most Max
// addresses are remembered; beyond it those that are full again are forgotten first,
// then any. Zero Rate: no limit.
type Buckets struct {
	Rate, Burst float64
	Max         int

	mu sync.Mutex
	m  map[netip.Addr]bucket
}

type bucket struct {
	tokens float64
	at     time.Time
}

// Key is the address that counts: IPv6 hosts choose among 2^64 of their own.
func Key(a netip.Addr) netip.Addr {
	a = a.Unmap()
	if a.Is6() {
		if p, err := a.WithZone("").Prefix(64); err == nil {
			return p.Addr()
		}
	}
	return a
}

// Take takes one token; false when there is none.
func (b *Buckets) Take(a netip.Addr, now time.Time) bool { return b.take(a, now, true) }

// Has reports whether there is a token, and takes none.
func (b *Buckets) Has(a netip.Addr, now time.Time) bool { return b.take(a, now, false) }

// Full reports whether nothing was taken lately.
func (b *Buckets) Full(a netip.Addr, now time.Time) bool {
	if b.Rate <= 0 {
		return true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	x, ok := b.m[Key(a)]
	return !ok || b.refill(x, now).tokens >= b.Burst
}

func (b *Buckets) take(a netip.Addr, now time.Time, spend bool) bool {
	if b.Rate <= 0 {
		return true
	}
	a = Key(a)
	b.mu.Lock()
	defer b.mu.Unlock()
	x, ok := b.m[a]
	if !ok {
		x = bucket{b.Burst, now}
	}
	x = b.refill(x, now)
	had := x.tokens >= 1
	if !spend {
		return had
	}
	if had {
		x.tokens--
	}
	if b.m == nil {
		b.m = map[netip.Addr]bucket{}
	}
	if !ok && len(b.m) >= b.Max {
		b.forget(now)
	}
	b.m[a] = x
	return had
}

func (b *Buckets) refill(x bucket, now time.Time) bucket {
	if d := now.Sub(x.at); d > 0 { // a clock that was turned back refills nothing
		x.tokens = min(b.Burst, x.tokens+d.Seconds()*b.Rate)
	}
	x.at = now
	return x
}

// forget makes room for about a quarter.
func (b *Buckets) forget(now time.Time) {
	for a, x := range b.m {
		if b.refill(x, now).tokens >= b.Burst {
			delete(b.m, a)
		}
	}
	for a := range b.m { // in no order: an attacker cannot choose whom
		if len(b.m) < b.Max*3/4 {
			return
		}
		delete(b.m, a)
	}
}
