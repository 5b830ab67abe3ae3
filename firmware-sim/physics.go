package firmwaresim

import (
	"math"
	"math/rand/v2"
	"strconv"
	"time"
)

// ou is an Ornstein-Uhlenbeck process around 0 with stationary standard
// deviation 1 and time constant tau; step is exact for any dt.
type ou struct {
	tau float64 // seconds
	x   float64
}

func (p *ou) step(rng *rand.Rand, dt float64) float64 {
	a := math.Exp(-dt / p.tau)
	p.x = a*p.x + math.Sqrt(1-a*a)*rng.NormFloat64()
	return p.x
}

// lag moves x towards target with time constant tau.
func lag(x *float64, target, tau, dt float64) {
	*x += (target - *x) * (1 - math.Exp(-dt/tau))
}

func clamp(x, lo, hi float64) float64 { return min(max(x, lo), hi) }

// stepper advances a model on a grid of whole seconds, so that a model's path
// depends on the seed alone and not on when it is asked. After a long pause (or at
// long intervals) steps grow, so that one call makes at most maxSteps.
type stepper struct {
	at time.Duration
}

const maxSteps = 900

func (s *stepper) advance(to time.Duration, step func(dt float64)) {
	to = to.Truncate(time.Second)
	if to <= s.at {
		return
	}
	dt := time.Second
	if n := (to - s.at) / time.Second; n > maxSteps {
		dt = (n/maxSteps + 1) * time.Second
	}
	for s.at < to {
		d := min(dt, to-s.at)
		step(d.Seconds())
		s.at += d
	}
}

// values builds a sample.
type values struct{ s *Sample }

func (v values) reset() { v.s.Time, v.s.Values = time.Time{}, v.s.Values[:0] }

func (v values) num(name string, x float64, decimals int) {
	if x == 0 {
		x = 0 // no "-0"
	}
	v.s.Values = append(v.s.Values, Value{Name: name, Text: strconv.FormatFloat(x, 'f', decimals, 64)})
}

func (v values) text(name, x string) {
	v.s.Values = append(v.s.Values, Value{Name: name, Text: x, Quoted: true})
}
