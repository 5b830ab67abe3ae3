package firmwaresim

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"tailrace/firmware-sim/data"
)

// Kind of a device decides its topics and the name of its id in payloads.
type Kind int

const (
	Turbine Kind = iota // site/<site>/turbine/<id>/…
	Machine             // factory/<site>/machine/<id>/…
)

// Encoding of payloads.
type Encoding int

const (
	JSON Encoding = iota
	CBOR
)

// Device describes one device.
type Device struct {
	Site, ID string // site: the farm, or the line of the factory
	Kind     Kind
	Encoding Encoding
	Interval time.Duration // simulated time between readings
	// Source makes the readings; it gets a source of chance of its own. nil: the
	// device sends nonsense.
	Source func(rng *rand.Rand, seed uint64) Source
	// NoRTC: no battery-backed clock. Config.NoRTC adds some by chance.
	NoRTC bool

	rows int // recorded rows; 0 = endless
}

// Source makes readings.
type Source interface {
	// Next fills s with the reading at simulated time elapsed since the start; it
	// reports false when there are no more.
	Next(elapsed time.Duration, s *Sample) bool
}

// Rewinder is a source that can start again (recorded ones).
type Rewinder interface{ Rewind() }

// Sample is one reading. It is reused.
type Sample struct {
	Time   time.Time // recorded time; zero for models
	Values []Value
}

// Value is one signal.
type Value struct {
	Name string
	// Text is a number in JSON form, or with Quoted any text; "" unquoted is no value (null).
	Text   string
	Quoted bool
}

// ClientID is the device's MQTT client id.
func (d *Device) ClientID() string { return d.Site + "-" + d.ID }

// Topic returns the device's topic with the last level ("telemetry", "status").
func (d *Device) Topic(last string) string {
	if d.Kind == Machine {
		return "factory/" + d.Site + "/machine/" + d.ID + "/" + last
	}
	return "site/" + d.Site + "/turbine/" + d.ID + "/" + last
}

func (d *Device) validate() error {
	for _, s := range []string{d.Site, d.ID} {
		if s == "" || len(s) > 64 || strings.ContainsFunc(s, func(r rune) bool {
			return r > '~' || r <= ' ' || strings.ContainsRune(`/+#"\$`, r)
		}) {
			return fmt.Errorf("device %q of %q: names are 1 to 64 printable ASCII characters without / + # $ \" \\ and blanks", d.ID, d.Site)
		}
	}
	if d.Interval <= 0 {
		return fmt.Errorf("device %s: interval %v: above 0", d.ClientID(), d.Interval)
	}
	return nil
}

// WindFarm is n modelled turbines T01… that sample once a second and share a wind.
func WindFarm(site string, n int) []Device {
	out := make([]Device, n)
	for i := range out {
		out[i] = Device{Site: site, ID: fmt.Sprintf("T%02d", i+1), Kind: Turbine, Interval: time.Second,
			Source: func(rng *rand.Rand, seed uint64) Source { return NewTurbine(site, i, rng, seed) }}
	}
	return out
}

// FactoryLine is n modelled machines: hydraulic rigs, and every third a spindle.
func FactoryLine(line string, n int) []Device {
	out := make([]Device, n)
	for i := range out {
		out[i] = Device{Site: line, ID: fmt.Sprintf("rig-%02d", i+1), Kind: Machine, Interval: time.Second,
			Source: func(rng *rand.Rand, _ uint64) Source { return NewRig(rng) }}
		if i%3 == 2 {
			out[i].ID = fmt.Sprintf("spindle-%02d", i+1)
			out[i].Source = func(rng *rand.Rand, _ uint64) Source { return NewSpindle(rng) }
		}
	}
	return out
}

// Recorded is the devices of a recorded set (package data), one for each device
// of the source. Each sends its rows in source order with the values as recorded:
// a missing value is null, and what is no number is text. rows > 0 stops after
// that many rows a device.
func Recorded(set string, rows int) ([]Device, error) {
	s, err := data.Lookup(set)
	if err != nil {
		return nil, err
	}
	t, err := s.Open()
	if err != nil {
		return nil, err
	}
	kind := Machine
	if s.Wind {
		kind = Turbine
	}
	var out []Device
	for _, name := range t.Devices {
		n := t.DeviceRows(name)
		if rows > 0 {
			n = min(n, rows)
		}
		out = append(out, Device{Site: s.Site, ID: name, Kind: kind, Interval: s.Interval, rows: n,
			Source: func(*rand.Rand, uint64) Source { return &recorded{t: t, device: name, rows: n} }})
	}
	return out, nil
}

// Nonsense is n devices that send random bytes, spoiled packets and unfinished
// connections. What they publish well-formed goes to topics below "nonsense/".
func Nonsense(n int) []Device {
	out := make([]Device, n)
	for i := range out {
		out[i] = Device{Site: "nonsense", ID: fmt.Sprintf("n%03d", i+1), Interval: time.Second}
	}
	return out
}

// recorded replays the rows of one device.
type recorded struct {
	t      *data.Table
	device string
	rows   int
	next   int
}

func (r *recorded) Rewind() { r.next = 0 }

func (r *recorded) Next(_ time.Duration, s *Sample) bool {
	if r.next >= r.rows {
		return false
	}
	row := r.t.DeviceRow(r.device, r.next)
	r.next++
	s.Time, _ = row.Time() // every row's time was parsed by a test of package data
	s.Values = s.Values[:0]
	row.Signals(func(name string, v []byte) {
		s.Values = append(s.Values, Value{Name: name, Text: string(v), Quoted: len(v) > 0 && !isNumber(v)})
	})
	return true
}

// isNumber: RFC 8259, 6, without exponents, which no source has.
func isNumber(v []byte) bool {
	if len(v) > 0 && v[0] == '-' {
		v = v[1:]
	}
	digits := func() (n int) {
		for len(v) > 0 && v[0] >= '0' && v[0] <= '9' {
			v, n = v[1:], n+1
		}
		return n
	}
	leadingZero := len(v) > 1 && v[0] == '0' && v[1] != '.'
	if leadingZero || digits() == 0 {
		return false
	}
	if len(v) > 0 && v[0] == '.' {
		v = v[1:]
		if digits() == 0 {
			return false
		}
	}
	return len(v) == 0
}
