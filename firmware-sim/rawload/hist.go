package rawload

import (
	"math/bits"
	"time"
)

// Hist counts durations in buckets of about 6 % width, from 1 µs to an hour.
// The zero value is empty. Not safe for concurrent use.
type Hist struct {
	n      uint64
	max    time.Duration
	counts [16 * 33]uint32
}

func bucket(us uint64) int {
	if us < 16 {
		return int(us)
	}
	e := bits.Len64(us) - 5 // us>>e is 16…31
	return min(16*e+int(us>>e), len(Hist{}.counts)-1)
}

// upper is the largest value of a bucket.
func upper(i int) uint64 {
	if i < 16 {
		return uint64(i)
	}
	e := i/16 - 1
	return (uint64(i%16+16)+1)<<e - 1
}

// Add counts n durations of d.
func (h *Hist) Add(d time.Duration, n uint32) {
	h.counts[bucket(uint64(max(0, d.Microseconds())))] += n
	h.n += uint64(n)
	h.max = max(h.max, d)
}

// Merge adds the counts of o.
func (h *Hist) Merge(o *Hist) {
	for i, c := range o.counts {
		h.counts[i] += c
	}
	h.n += o.n
	h.max = max(h.max, o.max)
}

// N is the number of durations counted.
func (h *Hist) N() uint64 { return h.n }

// Max is the largest.
func (h *Hist) Max() time.Duration { return h.max }

// Quantile returns an upper bound of the q-quantile, 0 < q ≤ 1; 0 when empty.
func (h *Hist) Quantile(q float64) time.Duration {
	want := uint64(q * float64(h.n))
	var sum uint64
	for i, c := range h.counts {
		if sum += uint64(c); c > 0 && sum >= want {
			return min(time.Duration(upper(i))*time.Microsecond, h.max)
		}
	}
	return h.max
}
