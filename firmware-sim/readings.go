package firmwaresim

import (
	"fmt"
	"math"
	"math/rand/v2"
	"time"
)

// Two readings of a turbine by their size, for measurements that say "180-byte" and
// "430-byte readings": what a small controller publishes, four signals, and what a large
// one does, twenty. Unlike the plain model every sensor has noise of its own, of the size and
// at the resolution that such sensors have, so that nothing compresses better than it would on site.

// Reading180 is a turbine whose telemetry takes about 180 bytes: four signals.
func Reading180(site string, index int, rng *rand.Rand, seed uint64) Source {
	return &noisyTurbine{TurbineModel: NewTurbine(site, index, rng, seed), noise: rand.New(rand.NewPCG(rng.Uint64(), 180))}
}

// Reading430 is a turbine whose telemetry takes about 430 bytes: twenty signals.
func Reading430(site string, index int, rng *rand.Rand, seed uint64) Source {
	return &noisyTurbine{TurbineModel: NewTurbine(site, index, rng, seed), noise: rand.New(rand.NewPCG(rng.Uint64(), 430)), wide: true,
		blade: [3]float64{0.2 * rng.NormFloat64(), 0.2 * rng.NormFloat64(), 0.2 * rng.NormFloat64()}, grid: ou{tau: 20}, volts: ou{tau: 120}}
}

type noisyTurbine struct {
	*TurbineModel
	noise *rand.Rand
	wide  bool
	blade [3]float64 // offsets of the pitch encoders, degrees
	grid  ou         // frequency
	volts ou
	last  time.Duration
}

// Next implements Source.
func (n *noisyTurbine) Next(elapsed time.Duration, s *Sample) bool {
	t := n.TurbineModel
	t.advance(elapsed, t.step)
	dt := max((elapsed - n.last).Seconds(), 0.001)
	n.last = elapsed
	v := values{s}
	v.reset()
	num := func(name string, x, sigma float64, decimals int) {
		v.num(name, x+sigma*n.noise.NormFloat64(), decimals)
	}
	if !n.wide {
		num("wind_speed_ms", max(0, t.wind), 0.05, 2)
		num("power_kw", t.kw, 1.5, 1)
		num("rotor_rpm", t.rotorRPM, 0.01, 2)
		num("generator_c", t.genC, 0.05, 1)
		return true
	}
	load := clamp(t.kw/ratedKW, 0, 1)
	volts := 690 + 6*n.volts.step(n.noise, dt)
	num("wind_speed_ms", max(0, t.wind), 0.05, 2)
	num("wind_dir_deg", t.w.dir, 1.5, 1)
	num("power_kw", t.kw, 1.5, 1)
	num("reactive_kvar", 0.12*t.kw, 2, 1)
	num("rotor_rpm", t.rotorRPM, 0.01, 2)
	num("gen_rpm", t.rotorRPM*gearRatio, 0.5, 1)
	for i, name := range []string{"pitch_a", "pitch_b", "pitch_c"} {
		num(name, t.pitch+n.blade[i], 0.01, 2)
	}
	v.num("yaw", t.yaw, 1)
	num("grid_v", volts, 0.3, 1)
	num("stator_a", math.Abs(t.kw)*1000/(volts*math.Sqrt(3)), 1, 1)
	num("grid_hz", 50+0.02*n.grid.step(n.noise, dt), 0.001, 3)
	num("gearbox_c", t.gearC, 0.05, 1)
	num("gen_c", t.genC, 0.05, 1)
	num("bearing_c", t.bearingC, 0.05, 1)
	num("oil_bar", 3.5+0.4*load, 0.02, 2)
	num("vib_mms", 0.4+1.6*load, 0.15, 2)
	num("nacelle_c", t.w.ambient+8+6*load, 0.05, 1)
	num("ambient_c", t.w.ambient, 0.05, 1)
	return true
}

// Telemetry is the payload that a device publishes for a sample, as number seq since boot.
func (d *Device) Telemetry(s *Sample, at time.Time, boot, seq uint64) []byte {
	e := envelope{d: d, boot: boot, seq: seq, ts: at.UnixMilli(), up: -1}
	return e.telemetry(s)
}

// ReadingFarm is n turbines that share a wind; bytes is 180 or 430.
func ReadingFarm(site string, n, bytes int) ([]Device, error) {
	source := Reading180
	switch bytes {
	case 180:
	case 430:
		source = Reading430
	default:
		return nil, fmt.Errorf("readings of %d bytes: there are some of 180 and 430", bytes)
	}
	out := WindFarm(site, n)
	for i := range out {
		out[i].Source = func(rng *rand.Rand, seed uint64) Source { return source(site, i, rng, seed) }
	}
	return out, nil
}
