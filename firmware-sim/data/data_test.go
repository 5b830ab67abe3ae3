package data_test

import (
	"strings"
	"testing"

	"tailrace/firmware-sim/data"
)

// The counts are those of SOURCES.md, taken from the sources and not from this code.
func TestSetsHaveTheRowsTheirSourceHas(t *testing.T) {
	want := map[string]struct{ rows, cols, devices int }{
		"res-marge": {3888, 12, 9}, "nrel-ge15": {131239, 4, 1}, "hill-of-towie": {49106, 45, 11},
		"machine-temperature": {22695, 2, 1}, "hydraulic-rig": {54000, 12, 1},
	}
	for _, s := range data.Sets() {
		tab, err := s.Open()
		if err != nil {
			t.Fatal(err)
		}
		w := want[s.Name]
		if tab.Len() != w.rows || len(tab.Columns) != w.cols || len(tab.Devices) != w.devices {
			t.Errorf("%s: %d rows, %d columns, %d devices; want %+v", s.Name, tab.Len(), len(tab.Columns), len(tab.Devices), w)
		}
		sum := 0
		for _, d := range tab.Devices {
			sum += tab.DeviceRows(d)
		}
		if sum != tab.Len() {
			t.Errorf("%s: rows of devices %d, of table %d", s.Name, sum, tab.Len())
		}
		for i := range tab.Len() {
			r := tab.Row(i)
			if strings.ContainsAny(r.String(), "\"\r") {
				t.Fatalf("%s row %d holds a quote or CR: %q", s.Name, i, r)
			}
			if _, err := r.Time(); err != nil {
				t.Fatalf("%s row %d: %v", s.Name, i, err)
			}
			n := 0
			r.Signals(func(string, []byte) { n++ })
			if n != len(tab.Signals) {
				t.Fatalf("%s row %d: %d signals", s.Name, i, n)
			}
		}
		if s.Citation == "" || s.About == "" {
			t.Errorf("%s has no citation or description", s.Name)
		}
	}
}

func TestKnownOdditiesAreStillInTheData(t *testing.T) {
	marge, _ := data.Lookup("res-marge")
	tab, err := marge.Open()
	if err != nil {
		t.Fatal(err)
	}
	if n := tab.DeviceRows("MRG_T05"); n != 432 {
		t.Fatalf("MRG_T05 has %d rows", n)
	}
	tab.DeviceRow("MRG_T05", 7).Signals(func(name string, v []byte) {
		if len(v) != 0 {
			t.Errorf("MRG_T05 %s = %q, recorded empty", name, v)
		}
	})
	temp, _ := data.Lookup("machine-temperature")
	tab, err = temp.Open()
	if err != nil {
		t.Fatal(err)
	}
	back := 0
	for i := 1; i < tab.Len(); i++ {
		a, _ := tab.Row(i - 1).Time()
		b, _ := tab.Row(i).Time()
		if b.Before(a) {
			back++
		}
	}
	if back != 1 {
		t.Errorf("clock goes back %d times, recorded once", back)
	}
	for _, line := range []string{"Zenodo 10.5281/zenodo.20204946", "DOI 10.24432/C5CW21", "Numenta Anomaly Benchmark"} {
		if !strings.Contains(data.Sources, line) {
			t.Errorf("SOURCES.md lost the citation %q", line)
		}
	}
	if !strings.Contains(data.Licenses, "BSD 3-Clause") || !strings.Contains(data.Licenses, "Permission is hereby granted") {
		t.Error("LICENSES.txt lost a licence")
	}
	if _, err := data.Lookup("nope"); err == nil || !strings.Contains(err.Error(), "res-marge") {
		t.Errorf("unknown set: %v", err)
	}
}
