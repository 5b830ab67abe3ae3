package firmwaresim

import (
	"math"
	"math/rand/v2"
	"time"
)

// The modelled turbine: 2.3 MW, pitch controlled, variable speed.
const (
	ratedKW      = 2300.0
	cutInMS      = 3.5
	ratedMS      = 12.5
	cutOutMS     = 25.0
	minRotorRPM  = 6.0
	maxRotorRPM  = 16.0
	gearRatio    = 91.0
	finePitchDeg = -1.5
	featherDeg   = 88.0
	meanWindMS   = 8.5
	idleUseKW    = -8.0
	turbulence   = 0.12 // of the mean wind
	faultEvery   = 40 * 3600.0
)

// weather is the wind of a whole farm. Every turbine of a site computes the same
// path from the same seed.
type weather struct {
	rng         *rand.Rand
	slow, fast  ou // wind speed: synoptic and hourly
	veer        ou
	temp        ou
	seconds     float64
	speed, dir  float64
	ambient     float64
	baseDir     float64
	baseAmbient float64
}

func newWeather(site string, seed uint64) *weather {
	rng := rngOf(seed, "weather", site)
	w := &weather{rng: rng, slow: ou{tau: 12 * 3600}, fast: ou{tau: 1800}, veer: ou{tau: 6 * 3600}, temp: ou{tau: 24 * 3600},
		baseDir: 360 * rng.Float64(), baseAmbient: 4 + 10*rng.Float64()}
	for _, p := range []*ou{&w.slow, &w.fast, &w.veer, &w.temp} {
		p.x = rng.NormFloat64()
	}
	return w
}

func (w *weather) step(dt float64) {
	w.seconds += dt
	// A log-normal mean keeps the speed positive and its distribution close to the Weibull of real sites.
	w.speed = meanWindMS * math.Exp(0.38*w.slow.step(w.rng, dt)+0.12*w.fast.step(w.rng, dt)-0.08)
	w.dir = math.Mod(w.baseDir+35*w.veer.step(w.rng, dt)+720, 360)
	w.ambient = w.baseAmbient + 3.5*math.Sin(2*math.Pi*w.seconds/86400) + 2*w.temp.step(w.rng, dt)
}

// TurbineModel is the physics of one turbine.
type TurbineModel struct {
	stepper
	w      *weather
	rng    *rand.Rand
	gust   ou
	wake   float64 // share of the farm's wind that reaches it
	sensor float64 // error of its vane, degrees

	wind, rotorWind, mean float64 // m/s: now, as the rotor averages it, over a minute
	rotorRPM, pitch, kw   float64
	yaw                   float64
	gearC, genC, bearingC float64
	running               bool
	alarm                 int
	faultLeft             float64 // seconds
}

var alarmCodes = []int{1005, 2120, 3130, 4011, 7105, 8000, 13902}

// NewTurbine is turbine number index of a site. The wind depends on site and seed
// only, the rest on rng.
func NewTurbine(site string, index int, rng *rand.Rand, seed uint64) *TurbineModel {
	t := &TurbineModel{w: newWeather(site, seed), rng: rng, gust: ou{tau: 8}, wake: 0.90 + 0.1*rng.Float64(), sensor: 3 * rng.NormFloat64()}
	t.w.step(1)
	t.mean = t.w.speed * t.wake
	t.wind, t.rotorWind, t.yaw, t.pitch = t.mean, t.mean, t.w.dir, featherDeg
	t.running = t.mean > cutInMS && t.mean < cutOutMS
	t.gearC, t.genC, t.bearingC = t.w.ambient+30, t.w.ambient+25, t.w.ambient+18
	return t
}

// PowerCurve is the power in kW at a steady wind.
func PowerCurve(ms float64) float64 {
	if ms < cutInMS || ms >= cutOutMS {
		return 0
	}
	cube := func(x float64) float64 { return x * x * x }
	return ratedKW * clamp((cube(ms)-cube(cutInMS))/(cube(ratedMS)-cube(cutInMS)), 0, 1)
}

func (t *TurbineModel) step(dt float64) {
	t.w.step(dt)
	local := t.w.speed * t.wake
	t.wind = max(0, local*(1+turbulence*t.gust.step(t.rng, dt)))
	lag(&t.rotorWind, t.wind, 5, dt)
	lag(&t.mean, t.wind, 60, dt)

	if t.faultLeft > 0 {
		if t.faultLeft -= dt; t.faultLeft <= 0 {
			t.alarm = 0
		}
	} else if t.rng.Float64() < dt/faultEvery {
		t.alarm = alarmCodes[t.rng.IntN(len(alarmCodes))]
		t.faultLeft = 600 + 3000*t.rng.Float64()
	}
	switch { // start and stop with hysteresis
	case t.alarm != 0:
		t.running = false
	case t.running:
		t.running = t.mean > cutInMS-0.7 && t.mean < cutOutMS
	default:
		t.running = t.mean > cutInMS && t.mean < cutOutMS-3
	}

	wantPitch, wantRPM, wantKW := featherDeg, 0.0, idleUseKW
	if t.running {
		wantPitch = finePitchDeg + clamp((t.rotorWind-ratedMS)*1.9, 0, 24)
		wantRPM = minRotorRPM + (maxRotorRPM-minRotorRPM)*clamp((t.rotorWind-cutInMS)/(ratedMS-1.5-cutInMS), 0, 1)
		wantKW = min(PowerCurve(min(t.rotorWind, cutOutMS-0.01)), ratedKW) * clamp(t.rotorRPM/minRotorRPM, 0, 1)
	}
	t.pitch += clamp(wantPitch-t.pitch, -5*dt, 5*dt) // the drives do 5 degrees a second
	lag(&t.rotorRPM, wantRPM, 12, dt)
	lag(&t.kw, wantKW, 4, dt)

	if d := math.Mod(t.w.dir+t.sensor-t.yaw+540, 360) - 180; math.Abs(d) > 8 { // dead band of the yaw drive
		t.yaw = math.Mod(t.yaw+clamp(d, -0.5*dt, 0.5*dt)+360, 360)
	}
	load := clamp(t.kw/ratedKW, 0, 1)
	lag(&t.genC, t.w.ambient+25+70*load, 1200, dt)
	lag(&t.gearC, t.w.ambient+30+35*load, 2400, dt)
	lag(&t.bearingC, t.w.ambient+18+25*t.rotorRPM/maxRotorRPM, 900, dt)
}

// Next implements Source.
func (t *TurbineModel) Next(elapsed time.Duration, s *Sample) bool {
	t.advance(elapsed, t.step)
	state := "run"
	switch {
	case t.alarm != 0:
		state = "fault"
	case !t.running:
		state = "idle"
	}
	v := values{s}
	v.reset()
	v.num("wind_speed_ms", t.wind, 2)
	v.num("wind_dir_deg", t.w.dir, 1)
	v.num("power_kw", t.kw, 1)
	v.num("rotor_rpm", t.rotorRPM, 2)
	v.num("gen_rpm", t.rotorRPM*gearRatio, 1)
	v.num("pitch_deg", t.pitch, 2)
	v.num("yaw_deg", t.yaw, 1)
	v.num("gearbox_c", t.gearC, 1)
	v.num("generator_c", t.genC, 1)
	v.num("bearing_c", t.bearingC, 1)
	v.num("ambient_c", t.w.ambient, 1)
	v.num("alarm", float64(t.alarm), 0)
	v.text("state", state)
	return true
}
