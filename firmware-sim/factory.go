package firmwaresim

import (
	"math"
	"math/rand/v2"
	"time"
)

// RigModel is a hydraulic test rig: a load cycle of 60 s, over and over, under
// conditions that change every few dozen cycles (cooler, valve, pump leak,
// accumulator), with temperatures that follow slowly.
type RigModel struct {
	stepper
	rng   *rand.Rand
	vib   ou
	cycle int
	sec   float64 // within the cycle
	left  int     // cycles until the conditions change

	cooler, valve, leak, accu int
	pressure, flow, motorW    float64
	oilC                      [4]float64
	vibration                 float64
}

const cycleSeconds = 60.0

var (
	coolers = []int{3, 20, 100}
	valves  = []int{73, 80, 90, 100}
	accus   = []int{90, 100, 115, 130}
	// coolerC is where the oil settles, for the cooler's three stages.
	coolerC = map[int]float64{3: 57, 20: 47, 100: 37}
)

// NewRig returns a rig in steady state under conditions drawn from rng.
func NewRig(rng *rand.Rand) *RigModel {
	r := &RigModel{rng: rng, vib: ou{tau: 20}, pressure: 150}
	r.change()
	for i := range r.oilC {
		r.oilC[i] = r.target(i)
	}
	return r
}

func (r *RigModel) change() {
	r.cooler, r.valve = coolers[r.rng.IntN(3)], valves[r.rng.IntN(4)]
	r.leak, r.accu = r.rng.IntN(3), accus[r.rng.IntN(4)]
	r.left = 20 + r.rng.IntN(60)
}

// target of sensor i: they sit before and behind pump, valve and cooler.
func (r *RigModel) target(i int) float64 {
	return coolerC[r.cooler] + []float64{0, 5.2, 2.8, -5.5}[i] + 0.6*float64(r.leak)
}

// profile is the load over a cycle, 0…1: ramps, a hold, pulses.
func profile(s float64) float64 {
	switch {
	case s < 8:
		return s / 8
	case s < 20:
		return 1
	case s < 24:
		return 1 - 0.7*(s-20)/4
	case s < 48:
		if math.Mod(s, 6) < 3 {
			return 0.75
		}
		return 0.3
	default:
		return max(0, 0.3*(60-s)/12)
	}
}

func (r *RigModel) step(dt float64) {
	if r.sec += dt; r.sec >= cycleSeconds {
		n := int(r.sec / cycleSeconds)
		r.sec -= float64(n) * cycleSeconds
		r.cycle += n
		if r.left -= n; r.left <= 0 {
			r.change()
		}
	}
	load := profile(r.sec)
	// A sticking valve follows late; a weak accumulator lets the pressure sag.
	lag(&r.pressure, 140+50*load-0.12*float64(130-r.accu)*load, 0.4+0.03*float64(100-r.valve), dt)
	lag(&r.flow, max(0, 8.5*load-0.9*float64(r.leak)*load), 0.8, dt)
	lag(&r.motorW, 2180+480*load+30*float64(r.leak), 0.5, dt)
	for i := range r.oilC {
		lag(&r.oilC[i], r.target(i)+1.5*load, 900, dt)
	}
	r.vibration = max(0, 0.52+0.08*float64(r.leak)+0.06*load+0.03*r.vib.step(r.rng, dt))
}

// Next implements Source.
func (r *RigModel) Next(elapsed time.Duration, s *Sample) bool {
	r.advance(elapsed, r.step)
	v := values{s}
	v.reset()
	v.num("cycle", float64(r.cycle), 0)
	v.num("pressure_bar", r.pressure, 2)
	v.num("flow_lpm", r.flow, 3)
	v.num("motor_w", r.motorW, 1)
	v.num("ts1_c", r.oilC[0], 3)
	v.num("ts2_c", r.oilC[1], 3)
	v.num("ts3_c", r.oilC[2], 3)
	v.num("ts4_c", r.oilC[3], 3)
	v.num("vibration_mms", r.vibration, 3)
	v.num("cooler_pct", float64(r.cooler), 0)
	v.num("valve_pct", float64(r.valve), 0)
	v.num("pump_leak", float64(r.leak), 0)
	v.num("accu_bar", float64(r.accu), 0)
	return true
}

// SpindleModel is a machine tool's spindle: jobs of a few minutes at a set speed,
// pauses, heat, and now and then a jam that trips it.
type SpindleModel struct {
	stepper
	rng                        *rand.Rand
	noise                      ou
	rpm, amps, windingC, housC float64
	want                       float64
	left                       float64 // seconds of the present job or pause
	parts                      int
	jam                        bool
}

// NewSpindle returns a spindle at rest.
func NewSpindle(rng *rand.Rand) *SpindleModel {
	return &SpindleModel{rng: rng, noise: ou{tau: 3}, windingC: 24, housC: 23, left: 30 * rng.Float64()}
}

func (m *SpindleModel) step(dt float64) {
	if m.left -= dt; m.left <= 0 {
		switch {
		case m.want > 0: // job over
			if !m.jam {
				m.parts++
			}
			m.want, m.jam, m.left = 0, false, 15+45*m.rng.Float64()
		default:
			m.want, m.left = 1500*float64(2+m.rng.IntN(6)), 60+240*m.rng.Float64()
		}
	}
	if m.want > 0 && !m.jam && m.rng.Float64() < dt/7200 {
		m.jam, m.left = true, 5 // stalls, then trips
	}
	target, amps := m.want, 1.2
	if m.want > 0 {
		amps = 4 + 8*m.rpm/10500
	}
	if m.jam {
		target, amps = 0, 31
	}
	lag(&m.rpm, target, 1.5, dt)
	lag(&m.amps, max(0, amps*(1+0.05*m.noise.step(m.rng, dt))), 0.3, dt)
	lag(&m.windingC, 24+0.55*m.amps*m.amps, 400, dt)
	lag(&m.housC, 23+0.3*(m.windingC-24), 1500, dt)
}

// Next implements Source.
func (m *SpindleModel) Next(elapsed time.Duration, s *Sample) bool {
	m.advance(elapsed, m.step)
	state := "idle"
	switch {
	case m.jam:
		state = "jam"
	case m.want > 0:
		state = "cut"
	}
	v := values{s}
	v.reset()
	v.num("speed_rpm", m.rpm, 0)
	v.num("current_a", m.amps, 2)
	v.num("winding_c", m.windingC, 1)
	v.num("housing_c", m.housC, 1)
	v.num("parts", float64(m.parts), 0)
	v.text("state", state)
	return true
}
