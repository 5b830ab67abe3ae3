// Package sketch makes a coarse account of a run of records: per device, source and
// window of time the least, the greatest and the last value of every number in their
// payloads. It holds a bounded number of values and does no I/O.
package sketch

import (
	"cmp"
	"encoding/binary"
	"encoding/json"
	"maps"
	"slices"
	"time"

	"tailrace/devices/payload"
)

// Row is one device (and source) in one window, the value of a record of the topic
// <topic>.sketch, as JSON. It speaks of the records of one partition with offsets in
// [From, To), all of them and no others; a window may be told in several rows, which have no
// record in common.
type Row struct {
	Topic   string            `json:"topic"`
	Source  string            `json:"mqtt_topic,omitempty"`
	Window  int64             `json:"window_ms"` // its begin, ms since 1970
	Span    int64             `json:"span_ms"`
	From    int64             `json:"from"`
	To      int64             `json:"to"`
	Records int64             `json:"records"`
	FirstMS int64             `json:"first_ms"` // times of the records
	LastMS  int64             `json:"last_ms"`
	Unread  int64             `json:"unread,omitempty"`   // records without a readable number
	LeftOut int64             `json:"left_out,omitempty"` // values of signals beyond MaxSignals
	Signals map[string]Signal `json:"signals"`
	Device  []byte            `json:"-"` // the records' key, and this one's
}

// Signal is one number of a device's payloads.
type Signal struct {
	Min  float64 `json:"min"`
	Max  float64 `json:"max"`
	Last float64 `json:"last"` // of the latest record; of equal times the one stored later
	N    int64   `json:"n"`
}

// Limits of a Sketch.
const (
	MaxCells   = 8192 // rows and signals in all: then it is Full
	MaxSignals = 512  // of one row
)

// Sketch takes records in. Not safe for concurrent use.
type Sketch struct {
	span    int64
	rows    map[string]*row
	names   map[string]string // one copy of each
	cells   int
	scratch []byte
}

type row struct {
	Row
	number int // in the order of their first records
	values []value
	next   int // where the signal after the last one found is expected
}

type value struct {
	name string
	Signal
	at int64 // time of Last
}

// New makes one with windows of a length.
func New(window time.Duration) *Sketch {
	return &Sketch{span: window.Milliseconds(), rows: map[string]*row{}, names: map[string]string{}}
}

// Add takes a record in: in the order of the offsets. Nothing is kept of its slices.
func (s *Sketch) Add(device, source []byte, ms int64, body []byte) {
	window := ms - (ms%s.span+s.span)%s.span
	k := binary.BigEndian.AppendUint64(s.scratch[:0], uint64(window))
	k = binary.AppendUvarint(k, uint64(len(device)))
	k = append(append(k, device...), source...)
	s.scratch = k
	r := s.rows[string(k)]
	if r == nil {
		r = &row{Row: Row{Source: string(source), Window: window, Span: s.span, FirstMS: ms, LastMS: ms}, number: len(s.rows)}
		if device != nil {
			r.Device = append([]byte{}, device...)
		}
		s.rows[string(k)] = r
		s.cells++
	}
	r.Records++
	r.FirstMS, r.LastMS = min(r.FirstMS, ms), max(r.LastMS, ms)
	some := false
	r.next = 0
	err := payload.Numbers(body, func(path []byte, v float64) bool {
		some = true
		s.number(r, path, ms, v)
		return true
	})
	if err != nil || !some {
		r.Unread++
	}
}

func (s *Sketch) number(r *row, path []byte, ms int64, v float64) {
	// Devices repeat themselves: the next signal is where it was the last time.
	i := r.next
	if i >= len(r.values) || r.values[i].name != string(path) {
		i = slices.IndexFunc(r.values, func(x value) bool { return x.name == string(path) })
	}
	if i < 0 {
		if len(r.values) >= MaxSignals {
			r.LeftOut++
			return
		}
		name, ok := s.names[string(path)]
		if !ok {
			name = string(path)
			s.names[name] = name
		}
		r.next = len(r.values) + 1
		r.values = append(r.values, value{name, Signal{v, v, v, 1}, ms})
		s.cells++
		return
	}
	r.next = i + 1
	x := &r.values[i]
	x.Min, x.Max = min(x.Min, v), max(x.Max, v)
	x.N++
	if ms >= x.at {
		x.Last, x.at = v, ms
	}
}

// Full says that it is time to take the rows out.
func (s *Sketch) Full() bool { return s.cells >= MaxCells }

// Rows takes everything out: what the records with offsets [from, to) of a topic, which
// were Added since the last time, come to.
func (s *Sketch) Rows(topic string, from, to int64) []Row {
	out := make([]Row, 0, len(s.rows))
	for _, r := range slices.SortedFunc(maps.Values(s.rows), func(a, b *row) int {
		return cmp.Or(cmp.Compare(a.Window, b.Window), cmp.Compare(a.number, b.number))
	}) {
		r.Topic, r.From, r.To, r.Signals = topic, from, to, make(map[string]Signal, len(r.values))
		for i := range r.values {
			r.Signals[r.values[i].name] = r.values[i].Signal
		}
		out = append(out, r.Row)
	}
	s.Reset()
	return out
}

// Reset forgets everything.
func (s *Sketch) Reset() {
	clear(s.rows)
	clear(s.names)
	s.cells = 0
}

// Encode is the row as a record's value.
func (r *Row) Encode() ([]byte, error) { return json.Marshal(r) }
