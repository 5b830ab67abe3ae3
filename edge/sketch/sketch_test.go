package sketch_test

import (
	"fmt"
	"reflect"
	"testing"
	"time"

	"tailrace/edge/sketch"
)

func TestRowsAreWhatTheRecordsComeTo(t *testing.T) {
	s := sketch.New(time.Minute)
	for _, r := range []struct {
		device, source string
		ms             int64
		body           string
	}{
		{"a", "x", 60_000, `{"p":3,"q":{"r":-1}}`},
		{"a", "x", 61_000, `{"p":1}`},
		{"a", "x", 60_500, `{"p":9}`}, // late: not the last
		{"a", "y", 61_000, "7"},       // another topic of the same device
		{"b", "x", 61_000, "open"},
		{"a", "x", 120_000, `{"p":2}`}, // the next window
		{"a", "x", -1, `{"p":5}`},      // before 1970
		{"a", "x", 61_000, `{"p":2}`},  // the same time, stored later
	} {
		s.Add([]byte(r.device), []byte(r.source), r.ms, []byte(r.body))
	}
	row := func(device, source string, window, n, first, last, unread int64, signals map[string]sketch.Signal) sketch.Row {
		return sketch.Row{Topic: "t", Source: source, Window: window, Span: 60_000, From: 10, To: 18, Records: n, FirstMS: first, LastMS: last, Unread: unread, Signals: signals, Device: []byte(device)}
	}
	want := []sketch.Row{
		row("a", "x", -60_000, 1, -1, -1, 0, map[string]sketch.Signal{"p": {Min: 5, Max: 5, Last: 5, N: 1}}),
		row("a", "x", 60_000, 4, 60_000, 61_000, 0, map[string]sketch.Signal{"p": {Min: 1, Max: 9, Last: 2, N: 4}, "q.r": {Min: -1, Max: -1, Last: -1, N: 1}}),
		row("a", "y", 60_000, 1, 61_000, 61_000, 0, map[string]sketch.Signal{"value": {Min: 7, Max: 7, Last: 7, N: 1}}),
		row("b", "x", 60_000, 1, 61_000, 61_000, 1, map[string]sketch.Signal{}),
		row("a", "x", 120_000, 1, 120_000, 120_000, 0, map[string]sketch.Signal{"p": {Min: 2, Max: 2, Last: 2, N: 1}}),
	}
	got := s.Rows("t", 10, 18)
	if !reflect.DeepEqual(got, want) {
		t.Errorf("have %+v\nwant %+v", got, want)
	}
	if more := s.Rows("t", 18, 18); len(more) != 0 {
		t.Errorf("taken out and still there: %+v", more)
	}
}

// A device that invents names does not take the node's memory, and nothing disappears
// without being counted.
func TestASketchIsBounded(t *testing.T) {
	s := sketch.New(time.Minute)
	for i := range 2 * sketch.MaxSignals {
		s.Add([]byte("a"), nil, 0, fmt.Appendf(nil, `{"s%d":1}`, i))
	}
	if s.Full() {
		t.Error("one device fills it")
	}
	devices := 1
	for ; !s.Full(); devices++ {
		s.Add(fmt.Appendf(nil, "d%d", devices), nil, 0, []byte(`{"a":1,"b":2,"c":3}`))
	}
	if devices > sketch.MaxCells/4+1 {
		t.Errorf("%d devices of three signals and not full", devices)
	}
	rows := s.Rows("t", 0, 1)
	if r := rows[0]; len(rows) != devices || len(r.Signals) != sketch.MaxSignals || r.LeftOut != sketch.MaxSignals || r.Records != 2*sketch.MaxSignals {
		t.Errorf("%d rows of %d devices; %d signals, %d left out of %d", len(rows), devices, len(r.Signals), r.LeftOut, r.Records)
	}
	if s.Full() {
		t.Error("full after everything was taken out")
	}
}
