package firmwaresim_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"

	firmwaresim "tailrace/firmware-sim"
	"tailrace/firmware-sim/data"
)

func rng(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 1)) }

// Every row of every set comes out in source order with the text of the source.
// The rows are read here from the CSV text, not through Row.Signals.
func TestRecordedRowsReplayExactly(t *testing.T) {
	for _, set := range data.Sets() {
		tab, err := set.Open()
		if err != nil {
			t.Fatal(err)
		}
		devices, err := firmwaresim.Recorded(set.Name, 0)
		if err != nil || len(devices) != len(tab.Devices) {
			t.Fatal(err, len(devices))
		}
		sources := map[string]firmwaresim.Source{}
		for _, d := range devices {
			sources[d.ID] = d.Source(nil, 0)
		}
		var s firmwaresim.Sample
		for i := range tab.Len() {
			line := strings.Split(tab.Row(i).String(), ",")
			device := set.Device
			var want []string
			var at string
			for k, col := range tab.Columns {
				switch col {
				case set.TimeColumn:
					at = line[k]
				case set.DeviceColumn:
					device = line[k]
				default:
					want = append(want, col+"="+line[k])
				}
			}
			if !sources[device].Next(0, &s) {
				t.Fatalf("%s: %s ended before row %d", set.Name, device, i)
			}
			if len(s.Values) != len(want) {
				t.Fatalf("%s row %d: %d values", set.Name, i, len(s.Values))
			}
			for k, v := range s.Values {
				if v.Name+"="+v.Text != want[k] {
					t.Fatalf("%s row %d: %s=%s, want %s", set.Name, i, v.Name, v.Text, want[k])
				}
				if _, err := strconv.ParseFloat(v.Text, 64); v.Text != "" && (err != nil) != v.Quoted {
					t.Fatalf("%s row %d: %s quoted=%v", set.Name, i, v.Text, v.Quoted)
				}
			}
			if set.TimeColumn != "t_s" && s.Time.Format("2006-01-02T15:04:05") != strings.TrimSuffix(at, "Z") {
				t.Fatalf("%s row %d: time %v, want %s", set.Name, i, s.Time, at)
			}
		}
		for id, src := range sources {
			if src.Next(0, &s) {
				t.Fatalf("%s: %s has more rows than the source", set.Name, id)
			}
		}
	}
}

func series(src firmwaresim.Source, n int, step time.Duration) []map[string]float64 {
	var s firmwaresim.Sample
	out := make([]map[string]float64, n)
	for i := range out {
		src.Next(time.Duration(i)*step, &s)
		out[i] = map[string]float64{}
		for _, v := range s.Values {
			if !v.Quoted {
				out[i][v.Name], _ = strconv.ParseFloat(v.Text, 64)
			}
		}
	}
	return out
}

func TestTurbinePhysicsIsPlausible(t *testing.T) {
	var wind, n, running, produced float64
	for seed := uint64(1); seed <= 3; seed++ {
		prev := map[string]float64(nil)
		for i, v := range series(firmwaresim.NewTurbine("w", 0, rng(seed), seed), 3*86400/10, 10*time.Second) {
			in := func(name string, lo, hi float64) {
				if x := v[name]; x < lo || x > hi || math.IsNaN(x) {
					t.Fatalf("seed %d step %d: %s = %v, plausible is %v to %v", seed, i, name, x, lo, hi)
				}
			}
			in("wind_speed_ms", 0, 60)
			in("wind_dir_deg", 0, 360)
			in("power_kw", -10, 2301)
			in("rotor_rpm", 0, 16.1)
			in("gen_rpm", 0, 1460)
			in("pitch_deg", -2, 88)
			in("yaw_deg", 0, 360)
			in("generator_c", -30, 120)
			in("gearbox_c", -30, 90)
			in("ambient_c", -20, 35)
			if math.Abs(v["gen_rpm"]-91*v["rotor_rpm"]) > 1 {
				t.Fatalf("step %d: generator %v and rotor %v do not turn together", i, v["gen_rpm"], v["rotor_rpm"])
			}
			if prev != nil { // temperatures have inertia, pitch drives a speed
				for name, most := range map[string]float64{"generator_c": 1.2, "gearbox_c": .6, "pitch_deg": 50.1} {
					if d := math.Abs(v[name] - prev[name]); d > most {
						t.Fatalf("step %d: %s jumps by %v in 10 s", i, name, d)
					}
				}
			}
			prev = v
			wind += v["wind_speed_ms"]
			n++
			if v["power_kw"] > 0 {
				running++
				produced += v["power_kw"]
			}
		}
	}
	if m := wind / n; m < 5 || m > 12 {
		t.Errorf("mean wind %v m/s", m)
	}
	if r := running / n; r < 0.5 || r > 0.999 {
		t.Errorf("producing %v of the time", r)
	}
	if cf := produced / n / 2300; cf < 0.1 || cf > 0.75 {
		t.Errorf("capacity factor %v", cf)
	}
	last := -1.0
	for ms := 0.0; ms < 25; ms += 0.1 {
		kw := firmwaresim.PowerCurve(ms)
		if kw < last || kw > 2300 {
			t.Fatalf("power curve falls at %v m/s", ms)
		}
		last = kw
	}
	if firmwaresim.PowerCurve(25) != 0 || firmwaresim.PowerCurve(3) != 0 || firmwaresim.PowerCurve(14) != 2300 {
		t.Error("cut-in, rated or cut-out")
	}
}

func TestFactoryPhysicsIsPlausible(t *testing.T) {
	coolers := map[float64]bool{}
	var prev map[string]float64
	for i, v := range series(firmwaresim.NewRig(rng(1)), 2*86400, time.Second) {
		coolers[v["cooler_pct"]] = true
		if v["ts1_c"] < 30 || v["ts1_c"] > 70 || v["pressure_bar"] < 130 || v["pressure_bar"] > 195 || v["flow_lpm"] < 0 {
			t.Fatalf("second %d: %v", i, v)
		}
		if v["cycle"] != float64(i/60) {
			t.Fatalf("second %d: cycle %v", i, v["cycle"])
		}
		if prev != nil && math.Abs(v["ts1_c"]-prev["ts1_c"]) > 0.1 {
			t.Fatalf("second %d: oil jumps from %v to %v", i, prev["ts1_c"], v["ts1_c"])
		}
		prev = v
	}
	if len(coolers) != 3 {
		t.Errorf("cooler stages seen: %v", coolers)
	}
	parts, jams := 0.0, 0
	for i, v := range series(firmwaresim.NewSpindle(rng(2)), 2*86400, time.Second) {
		if v["parts"] < parts || v["winding_c"] < 20 || v["winding_c"] > 160 || v["current_a"] < 0 || v["speed_rpm"] < 0 || v["speed_rpm"] > 11000 {
			t.Fatalf("second %d: %v", i, v)
		}
		if v["current_a"] > 20 {
			jams++
		}
		parts = v["parts"]
	}
	if parts < 400 || jams == 0 {
		t.Errorf("%v parts, %d jam seconds in two days", parts, jams)
	}
}

func TestModelsAreDeterministicBySeed(t *testing.T) {
	print := func(seed uint64, step time.Duration, n int) string {
		b, _ := json.Marshal([]any{
			series(firmwaresim.NewTurbine("a", 1, rng(seed), seed), n, step), series(firmwaresim.NewRig(rng(seed)), n, step), series(firmwaresim.NewSpindle(rng(seed)), n, step)})
		return string(b)
	}
	first := print(5, time.Second, 500)
	if again := print(5, time.Second, 500); again != first {
		t.Error("same seed, different series")
	}
	if print(5, time.Second, 500) == print(6, time.Second, 500) {
		t.Error("another seed, same series")
	}
	// Turbines of a farm see the same wind direction at the same time, whatever their own chance.
	a := series(firmwaresim.NewTurbine("f", 0, rng(1), 9), 600, time.Second)
	b := series(firmwaresim.NewTurbine("f", 1, rng(2), 9), 300, 2*time.Second)
	for i := range b {
		if a[2*i]["wind_dir_deg"] != b[i]["wind_dir_deg"] {
			t.Fatalf("second %d: wind from %v and %v", 2*i, a[2*i]["wind_dir_deg"], b[i]["wind_dir_deg"])
		}
	}
	// Asking more often changes nothing.
	c := series(firmwaresim.NewTurbine("f", 0, rng(1), 9), 1500, 400*time.Millisecond)
	for i := range 600 {
		if i%2 == 0 && fmt.Sprint(a[i]) != fmt.Sprint(c[i*5/2]) {
			t.Fatalf("second %d: %v and %v", i, a[i], c[i*5/2])
		}
	}
}

func TestBodiesAreMembersOfAnObject(t *testing.T) {
	for _, set := range []string{"model", "res-marge", "hill-of-towie"} {
		bodies, err := firmwaresim.Bodies(set, 30, rng(1))
		if err != nil || len(bodies) != 30 {
			t.Fatal(set, err, len(bodies))
		}
		for _, b := range bodies {
			if !json.Valid(append(append([]byte{'{'}, b...), '}')) || !bytes.HasPrefix(b, []byte(`"signals":{`)) {
				t.Fatalf("%s: %s", set, b)
			}
		}
	}
}

// decode reads a payload of either encoding into text forms.
func decode(t *testing.T, p []byte) (m map[string]any) {
	t.Helper()
	if p[0] == '{' {
		d := json.NewDecoder(bytes.NewReader(p))
		d.UseNumber()
		if err := d.Decode(&m); err != nil {
			t.Fatalf("%v: %s", err, p)
		}
		return m
	}
	if err := cbor.Unmarshal(p, &m); err != nil {
		t.Fatalf("%v: %x", err, p)
	}
	return m
}
