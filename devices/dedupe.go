package devices

import (
	"errors"
	"fmt"
	"strconv"

	"tailrace/devices/payload"
)

// DedupeRule says where a device counts its messages, so that one that it sends again, by
// whatever connection or client, is stored once. Off without field and property.
//
// A boot is required: a device that begins to count anew after a restart would else lose
// what it sends then.
type DedupeRule struct {
	// Encoding of the payload, json or cbor, for Field and Boot.
	Encoding payload.Encoding `yaml:"encoding"`
	// Field is the path to the sequence number, a whole number of 0 or more.
	Field string `yaml:"field"`
	// Boot is the path to a whole number or a text that is another after each restart of the count.
	Boot string `yaml:"boot"`
	// Property and BootProperty name MQTT 5 user properties instead; the boot may be any text.
	Property     string `yaml:"property"`
	BootProperty string `yaml:"boot_property"`
}

// dedupeSource finds both; a nil field means the property.
type dedupeSource struct {
	seq, boot         *payload.TimeField
	seqProp, bootProp string
}

func compileDedupe(d DedupeRule) (*dedupeSource, error) {
	if d == (DedupeRule{}) {
		return nil, nil
	}
	if (d.Field == "") == (d.Property == "") {
		return nil, errors.New("dedupe: want field or property for the sequence number, one of them")
	}
	if (d.Boot == "") == (d.BootProperty == "") {
		return nil, errors.New("dedupe: want boot or boot_property, one of them: what is another after each restart of the count")
	}
	if (d.Field != "" || d.Boot != "") != (d.Encoding != "") {
		return nil, errors.New("dedupe: encoding goes with field and boot: json or cbor")
	}
	s := &dedupeSource{seqProp: d.Property, bootProp: d.BootProperty}
	for path, to := range map[string]**payload.TimeField{d.Field: &s.seq, d.Boot: &s.boot} {
		if path == "" {
			continue
		}
		f, err := payload.CompileWhole(d.Encoding, path)
		if err != nil {
			return nil, fmt.Errorf("dedupe: %w", err)
		}
		*to = &f
	}
	return s, nil
}

// Dedupes reports whether the route looks for sequence numbers.
func (r *Route) Dedupes() bool { return r.dedupe != nil }

// Sequence finds boot and sequence number of one message; false when it has none, and then
// it is not looked at further. property returns the value of a user property.
func (r *Route) Sequence(body []byte, property func(name string) (value []byte, ok bool)) (boot, seq uint64, ok bool) {
	d := r.dedupe
	if d == nil {
		return 0, 0, false
	}
	if d.seq != nil {
		n, err := d.seq.Time(body)
		if err != nil || n < 0 {
			return 0, 0, false
		}
		seq = uint64(n)
	} else {
		v, have := property(d.seqProp)
		n, err := strconv.ParseUint(string(v), 10, 64)
		if !have || err != nil {
			return 0, 0, false
		}
		seq = n
	}
	if d.boot != nil {
		boot, err := d.boot.Word(body)
		return boot, seq, err == nil
	}
	v, have := property(d.bootProp)
	if !have {
		return 0, 0, false
	}
	return payload.WordOf(v), seq, true
}
