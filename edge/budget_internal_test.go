package edge

import (
	"testing"
	"time"

	"tailrace/uplink"
	"tailrace/uplink/link"
	"tailrace/uplink/wire"
)

// A clock in 1970, or one that jumps, begins no period; the true month does, once.
func TestABudgetPeriodBeginsByAKnownClockOnly(t *testing.T) {
	at := func(s string) time.Time {
		v, err := time.ParseInLocation("2006-01-02 15:04", s, time.Local)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	var u usage
	step := func(s string, known bool, add, want int64, wantPeriod string) {
		t.Helper()
		u.Used += add
		now := at(s)
		u.begin(period(now, 15), now, known)
		if u.Used != want || u.Period != wantPeriod {
			t.Fatalf("%s known=%v: %d used in period %q, want %d in %q", s, known, u.Used, u.Period, want, wantPeriod)
		}
	}
	step("1970-01-01 00:01", false, 100, 100, "")
	step("2026-11-14 12:00", true, 10, 110, "2026-10") // what was used before the clock was known counts
	step("1970-01-01 00:01", false, 10, 120, "2026-10")
	step("2026-11-14 23:59", true, 0, 120, "2026-10")
	step("2026-11-15 00:00", true, 0, 0, "2026-11")
	step("2099-01-01 00:00", false, 5, 5, "2026-11")
	step("2026-10-20 00:00", true, 5, 10, "2026-10") // it was wrong before: nothing is forgiven
	step("2026-11-20 00:00", true, 5, 0, "2026-11")
	if end := periodEnd(at("2026-11-20 00:00"), 15); !end.Equal(at("2026-12-15 00:00")) {
		t.Errorf("the period ends %v", end)
	}
	if end := periodEnd(at("2026-12-20 00:00"), 1); !end.Equal(at("2027-01-01 00:00")) {
		t.Errorf("the period ends %v", end)
	}
}

func TestScheduleWindows(t *testing.T) {
	night := WindowConfig{Days: []string{"fri"}, From: "22:00", To: "06:00"}
	day := WindowConfig{From: "08:00", To: "09:30"}
	always := WindowConfig{Days: []string{"sun"}, From: "00:00", To: "00:00"}
	for _, c := range []struct {
		w    WindowConfig
		at   string
		open bool
	}{
		{night, "2026-11-27 21:59", false}, {night, "2026-11-27 22:00", true}, {night, "2026-11-28 05:59", true}, {night, "2026-11-28 06:00", false},
		{night, "2026-11-28 22:30", false}, {night, "2026-11-27 03:00", false},
		{day, "2026-11-24 08:00", true}, {day, "2026-11-24 09:30", false},
		{always, "2026-11-29 13:00", true}, {always, "2026-11-30 13:00", false},
	} {
		at, err := time.ParseInLocation("2006-01-02 15:04", c.at, time.Local)
		if err != nil {
			t.Fatal(err)
		}
		if c.w.open(at) != c.open {
			t.Errorf("%+v at %s: open %v", c.w, c.at, !c.open)
		}
	}
}

func TestWhatABudgetKeepsBack(t *testing.T) {
	full := &usage{Used: 100}
	now := time.Now()
	for _, c := range []struct {
		conf  LinkConfig
		known bool
		floor [wire.Lanes]int32
	}{
		{LinkConfig{Monthly: 101}, true, [3]int32{uplink.NoFloor, uplink.NoFloor, uplink.NoFloor}},
		{LinkConfig{Monthly: 100}, true, [3]int32{1, 1, 1}},
		{LinkConfig{Monthly: 100, WhenOut: "pause-bulk"}, true, [3]int32{uplink.NoFloor, 1, 1}},
		{LinkConfig{Monthly: 100, WhenOut: "warn"}, true, [3]int32{uplink.NoFloor, uplink.NoFloor, uplink.NoFloor}},
		{LinkConfig{Schedule: []WindowConfig{{Days: []string{"none"}, From: "00:00", To: "00:00"}}}, true, [3]int32{1, 1, 1}},
		{LinkConfig{Schedule: []WindowConfig{{Days: []string{"none"}, From: "00:00", To: "00:00"}}, Outside: "pause-bulk"}, true, [3]int32{uplink.NoFloor, 1, 1}},
		{LinkConfig{Schedule: []WindowConfig{{Days: []string{"none"}, From: "00:00", To: "00:00"}}}, false, [3]int32{uplink.NoFloor, uplink.NoFloor, uplink.NoFloor}},
	} {
		p := link.Open(0)
		why := c.conf.held(full, now, c.known, &p)
		if p.Floor != c.floor || (why == "") != (c.floor[wire.LaneBulk] != 1) {
			t.Errorf("%+v: floor %v, %q", c.conf, p.Floor, why)
		}
	}
}
