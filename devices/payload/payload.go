// Package payload reads single values out of device payloads: only what
// routing, keys, event time or a processing step needs. It never builds a
// document in memory; a wanted value is looked up by its path and the rest of
// the payload is skipped.
//
// Payloads come from devices and are hostile until proven otherwise: no input
// panics, recursion is bounded, and nothing is allocated for a value that was
// found.
//
// A Field is immutable after CompileTime and may be used by any number of
// goroutines.
package payload

import (
	"errors"
	"fmt"
	"hash/fnv"
	"strconv"
	"strings"

	"github.com/tidwall/gjson"
)

// Encoding is how a payload is written.
type Encoding string

const (
	JSON Encoding = "json"
	CBOR Encoding = "cbor" // RFC 8949
)

// Format is how an event time is written in a payload.
type Format string

const (
	UnixSeconds Format = "unix_s"  // seconds since 1970, integer or with a fraction
	UnixMillis  Format = "unix_ms" // milliseconds since 1970
	UnixMicros  Format = "unix_us"
	UnixNanos   Format = "unix_ns"
	RFC3339     Format = "rfc3339" // text, "2026-01-02T03:04:05.123456789Z"; without zone: UTC

	whole Format = "whole" // no time: see CompileWhole
)

// Errors of Time; callers branch on them to count reasons.
var (
	// ErrAbsent: the payload is well formed but has nothing at the path.
	ErrAbsent = errors.New("no value at the path")
	// ErrMalformed: the payload is not what the rule says (not JSON, not CBOR).
	ErrMalformed = errors.New("payload is malformed")
	// ErrRange: the value is not a time, or one that no int64 of nanoseconds can hold (years 1678 to 2262).
	ErrRange = errors.New("value is not a time of the configured format")
)

// TimeField finds the event time in a payload.
type TimeField struct {
	encoding Encoding
	format   Format
	path     string // JSON: gjson path
	steps    []step // CBOR: map keys (text, or an integer key) and array indexes
}

// CompileTime checks path and format. A path is a dotted list of object keys and
// array indexes ("data.0.ts"); "\." is a dot inside a key. In CBOR a step that is
// an integer also matches an integer map key (SenML labels: "0.-3").
func CompileTime(e Encoding, path string, f Format) (TimeField, error) {
	t := TimeField{encoding: e, format: f, path: path}
	switch f {
	case UnixSeconds, UnixMillis, UnixMicros, UnixNanos, RFC3339:
	default:
		return t, fmt.Errorf("time format %q: want one of %s, %s, %s, %s, %s", f, UnixSeconds, UnixMillis, UnixMicros, UnixNanos, RFC3339)
	}
	if path == "" {
		return t, errors.New("time path is empty: name the field, for example \"ts\"")
	}
	var err error
	if t.steps, err = splitPath(path); err != nil {
		return t, err
	}
	switch e {
	case JSON:
		// gjson knows modifiers, queries and wildcards; a time has one place, and
		// what a path costs must not depend on the payload.
		if i := strings.IndexAny(path, "@#*?|!{}[]"); i >= 0 {
			return t, fmt.Errorf("time path %q: %q is not allowed; use keys and array indexes separated by dots", path, path[i])
		}
	case CBOR:
	default:
		return t, fmt.Errorf("payload encoding %q: want %q or %q", e, JSON, CBOR)
	}
	return t, nil
}

// CompileWhole is CompileTime for a whole number, which Time returns as it stands: 7, "7", 7.0, not 7.5.
func CompileWhole(e Encoding, path string) (TimeField, error) {
	t, err := CompileTime(e, path, UnixNanos)
	t.format = whole
	return t, err
}

// Time returns the event time in ns since 1970. It does not allocate when the value is found.
func (t *TimeField) Time(payload []byte) (int64, error) {
	if t.encoding == CBOR {
		return t.cborTime(payload)
	}
	return t.jsonTime(payload)
}

// Word returns a value that is only compared: a whole number as it stands, text that is not just
// such a number by WordOf.
func (t *TimeField) Word(payload []byte) (uint64, error) {
	text := ""
	if t.encoding == CBOR {
		h, rest, err := t.cborItem(payload)
		if err != nil {
			return 0, err
		}
		if h.major == 3 && !h.indefinite {
			text = string(rest[:h.arg])
		}
	} else if r := t.jsonValue(payload); r.Type == gjson.String {
		text = r.Str
	}
	if text == "" {
		n, err := t.Time(payload)
		return uint64(n), err
	}
	var digits [20]byte
	if n, err := t.format.fromDecimal(text); err == nil && string(strconv.AppendInt(digits[:0], n, 10)) == text {
		return uint64(n), nil
	}
	return WordOf([]byte(text)), nil
}

// WordOf is the hash of a text (FNV-1a, 64 bits), as it is kept on disk.
func WordOf(text []byte) uint64 {
	h := fnv.New64a()
	h.Write(text)
	return h.Sum64()
}

func splitPath(path string) ([]step, error) {
	var steps []step
	var b strings.Builder
	for i := 0; i < len(path); i++ {
		switch c := path[i]; {
		case c == '\\' && i+1 < len(path):
			i++
			b.WriteByte(path[i])
		case c == '.':
			steps = append(steps, newStep(b.String()))
			b.Reset()
		default:
			b.WriteByte(c)
		}
	}
	steps = append(steps, newStep(b.String()))
	for _, s := range steps {
		if s.text == "" {
			return nil, fmt.Errorf("time path %q has an empty step", path)
		}
	}
	return steps, nil
}

// step is one element of a path, read as text key and, if it is one, as a number.
type step struct {
	text    string
	index   int64
	isIndex bool
}

func newStep(s string) step {
	n, err := strconv.ParseInt(s, 10, 64)
	return step{text: s, index: n, isIndex: err == nil}
}
