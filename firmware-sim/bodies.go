package firmwaresim

import (
	"math/rand/v2"
	"time"
)

// Bodies renders up to n readings of a recorded set, or of modelled turbines when
// set is "model", as JSON members for rawload.Config.Bodies: what stands between
// the sequence number and the closing brace of a payload.
func Bodies(set string, n int, rng *rand.Rand) ([][]byte, error) {
	var s Sample
	var out [][]byte
	add := func() {
		// The envelope's own members are cut off: the generator writes its own.
		e := envelope{d: &Device{}, up: -1}
		full := e.telemetry(&s)
		const member = `"signals":`
		for i := range full {
			if full[i] == '"' && len(full)-i > len(member) && string(full[i:i+len(member)]) == member {
				out = append(out, full[i:len(full)-1])
				return
			}
		}
	}
	if set == "model" {
		t := NewTurbine("load", 0, rng, rng.Uint64())
		for i := range n {
			t.Next(time.Duration(i)*time.Second, &s)
			add()
		}
		return out, nil
	}
	devices, err := Recorded(set, 0)
	if err != nil {
		return nil, err
	}
	var sources []Source
	for i := range devices {
		sources = append(sources, devices[i].Source(nil, 0))
	}
	for more := true; more; { // one row of each device in turn, as a site sends them
		more = false
		for _, src := range sources {
			if len(out) < n && src.Next(0, &s) {
				add()
				more = true
			}
		}
	}
	return out, nil
}
