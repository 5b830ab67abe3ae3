package hub_test

import (
	"testing"

	"tailrace/uplink/wire"
)

// Rows of a sketch that come again, as they were or cut otherwise, before and after a power cut, are there once
// and in order; so is their stream. A row says which records it tells of, so one that a consumer reads twice is known, too.
func TestSketchRowsThatComeAgainDoNoHarm(t *testing.T) {
	w := newWorld(t)
	o, of := origin("n1", "temp"+wire.SketchSuffix), origin("n1", "temp")
	w.adopt("n1", root(epochA))
	w.mustAppend(of, batch(of, 0, 50))
	first, rest := batch(o, 0, 10), batch(o, 10, 30)
	w.mustAppend(o, first)
	again := func(what string, b []byte, to int64) {
		if held := w.mustAppend(o, b); !held.Covers(0, to) && !held.Covers(10, to) {
			t.Errorf("%s: acknowledged with %s", what, held)
		}
	}
	again("the same rows", first, 10)
	w.mustAppend(o, rest)
	again("both", append(append([]byte{}, first...), rest...), 30)
	w.crash(1)
	again("after a power cut", append(append([]byte{}, first...), rest...), 30)
	w.mustAppend(of, batch(of, 50, 60))
	w.audit()
	for origin, n := range map[wire.Origin]int64{o: 30, of: 60} {
		got := int64(0)
		for _, set := range w.positions(origin) {
			got += set.Count()
		}
		if p := w.progress(origin); got != n || !p.Held.Covers(0, n) || p.Held.Count() != n {
			t.Errorf("%s: %d records stored, %s held, want %d", origin, got, p.Held, n)
		}
	}
}
