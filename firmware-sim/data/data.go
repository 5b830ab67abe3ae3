// Package data holds recorded measurements of real wind turbines and factory
// machines, embedded in the binary. SOURCES.md says where each set comes from
// and what was cut; LICENSES.txt holds the licences and travels with the data.
//
// A Set is opened into a Table, which keeps the text of the source: values are
// handed out as they were recorded ("919.5", "" for a missing one, "=" for a
// status character), never parsed and printed again. Tables are read-only and
// safe for concurrent use.
package data

import (
	"bytes"
	"compress/gzip"
	"embed"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"time"
)

//go:embed files/*.csv.gz
var files embed.FS

// Licenses and Sources are the texts that must stay with the data.
var (
	//go:embed LICENSES.txt
	Licenses string
	//go:embed SOURCES.md
	Sources string
)

// maxTableBytes bounds what one set may inflate to; the largest has 6.1 MB.
const maxTableBytes = 64 << 20

// Set describes one recorded set.
type Set struct {
	Name string // short name, also the site or line in topics: "res-marge"
	File string // under files/
	Site string // site of the farm or line of the factory, as in topics
	Wind bool   // wind turbines; otherwise factory machines

	TimeColumn   string        // column of the row's own time; "t_s" counts seconds from zero
	DeviceColumn string        // column that names the device; "" = one device
	Device       string        // its name when there is no column
	Interval     time.Duration // nominal distance of two rows of one device
	About        string        // one line for people
	Citation     string        // to keep when the set is shown

	once  sync.Once
	table *Table
	err   error
}

// Sets lists all sets, in a fixed order.
func Sets() []*Set { return sets }

// Lookup finds a set by name.
func Lookup(name string) (*Set, error) {
	names := make([]string, 0, len(sets))
	for _, s := range sets {
		if s.Name == name {
			return s, nil
		}
		names = append(names, s.Name)
	}
	return nil, fmt.Errorf("no recorded set %q (there are: %s)", name, strings.Join(names, ", "))
}

var sets = []*Set{
	{Name: "res-marge", File: "wind_res_marge_10min_2023-01.csv.gz", Site: "res-marge", Wind: true,
		TimeColumn: "time", DeviceColumn: "turbine", Interval: 10 * time.Minute,
		About:    "9 wind turbines, 3 days in January 2023, 10 min; MRG_T05 sends rows without values",
		Citation: "resgroup/wind-up, Renewable Energy Systems Limited, BSD-3-Clause"},
	{Name: "nrel-ge15", File: "wind_nrel_ge15_10min_2010-2012.csv.gz", Site: "nrel", Wind: true,
		TimeColumn: "time_local", Device: "GE15", Interval: 10 * time.Minute,
		About:    "one 1.5 MW research turbine, 2010 to 2012, 10 min; 79 gaps, the longest 101 days",
		Citation: "NREL OpenOA, Alliance for Sustainable Energy LLC, BSD-3-Clause"},
	{Name: "hill-of-towie", File: "wind_hilloftowie_status_10min_2024-07_T01-T11.csv.gz", Site: "hill-of-towie", Wind: true,
		TimeColumn: "time_utc", DeviceColumn: "turbine", Interval: 10 * time.Minute,
		About:    "11 turbines, controller status flags and counters, July 2024, 10 min; 42 columns",
		Citation: "Hill of Towie wind farm open dataset, A. Clerc and E. Lingkan, RES on behalf of TRIG, Zenodo 10.5281/zenodo.20204946, CC BY 4.0"},
	{Name: "machine-temperature", File: "factory_machine_temperature_5min.csv.gz", Site: "nab",
		TimeColumn: "time", Device: "machine-1", Interval: 5 * time.Minute,
		About:    "temperature of one large machine, 5 min; its clock goes back an hour once",
		Citation: "Numenta Anomaly Benchmark, Copyright 2014-2024 Numenta Inc., MIT"},
	{Name: "hydraulic-rig", File: "factory_hydraulic_rig_1hz_cycles0001-0900.csv.gz", Site: "zema",
		TimeColumn: "t_s", Device: "rig-1", Interval: time.Second,
		About:    "hydraulic test rig, 1 Hz, 900 load cycles, cooler at 3, 20 and 100 percent",
		Citation: "Helwig N., Bastuck M., Schneider T., Condition Monitoring of Hydraulic Systems, UCI Machine Learning Repository, 2018, DOI 10.24432/C5CW21, CC BY 4.0"},
}

// Table is one opened set.
type Table struct {
	Set     *Set
	Columns []string // all columns, as in the source
	Signals []string // columns that are neither time nor device
	Devices []string // in order of first appearance

	raw      []byte
	rows     []uint32 // start of each row in raw
	ends     []uint32
	timeCol  int
	devCol   int // -1: one device
	byDevice map[string][]int32
}

// Open inflates and indexes the set once; later calls return the same table.
func (s *Set) Open() (*Table, error) {
	s.once.Do(func() { s.table, s.err = s.open() })
	return s.table, s.err
}

func (s *Set) open() (*Table, error) {
	f, err := files.Open("files/" + s.File)
	if err != nil {
		return nil, fmt.Errorf("recorded set %s: %w", s.Name, err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		return nil, fmt.Errorf("recorded set %s: %w", s.Name, err)
	}
	raw, err := io.ReadAll(io.LimitReader(z, maxTableBytes))
	if err != nil {
		return nil, fmt.Errorf("recorded set %s: %w", s.Name, err)
	}
	t := &Table{Set: s, raw: raw, timeCol: -1, devCol: -1, byDevice: map[string][]int32{}}
	head, rest, _ := bytes.Cut(raw, []byte("\n"))
	t.Columns = strings.Split(string(head), ",")
	for i, c := range t.Columns {
		switch c {
		case s.TimeColumn:
			t.timeCol = i
		case s.DeviceColumn:
			t.devCol = i
		default:
			t.Signals = append(t.Signals, c)
		}
	}
	if t.timeCol < 0 || (s.DeviceColumn != "" && t.devCol < 0) {
		return nil, fmt.Errorf("recorded set %s: column %q or %q is missing", s.Name, s.TimeColumn, s.DeviceColumn)
	}
	for at := len(head) + 1; len(rest) > 0; {
		line, next, _ := bytes.Cut(rest, []byte("\n"))
		if len(line) > 0 {
			// The sets hold no quoted field (a test holds that), so a comma always separates.
			if bytes.Count(line, []byte(",")) != len(t.Columns)-1 {
				return nil, fmt.Errorf("recorded set %s: row %d has another number of columns", s.Name, len(t.rows)+1)
			}
			dev := s.Device
			if t.devCol >= 0 {
				dev = string(field(line, t.devCol))
			}
			if _, ok := t.byDevice[dev]; !ok {
				t.Devices = append(t.Devices, dev)
			}
			t.byDevice[dev] = append(t.byDevice[dev], int32(len(t.rows)))
			t.rows = append(t.rows, uint32(at))
			t.ends = append(t.ends, uint32(at+len(line)))
		}
		at += len(line) + 1
		rest = next
	}
	return t, nil
}

func field(line []byte, i int) []byte {
	for ; i > 0; i-- {
		line = line[bytes.IndexByte(line, ',')+1:]
	}
	if j := bytes.IndexByte(line, ','); j >= 0 {
		line = line[:j]
	}
	return line
}

// Len is the number of rows of all devices.
func (t *Table) Len() int { return len(t.rows) }

// Row returns row i of the whole table, in source order.
func (t *Table) Row(i int) Row { return Row{t, t.raw[t.rows[i]:t.ends[i]]} }

// DeviceRows is the number of rows of one device.
func (t *Table) DeviceRows(device string) int { return len(t.byDevice[device]) }

// DeviceRow returns the i-th row of one device, in source order.
func (t *Table) DeviceRow(device string, i int) Row { return t.Row(int(t.byDevice[device][i])) }

// Row is one recorded row. It refers to the table's memory.
type Row struct {
	t    *Table
	line []byte
}

// String is the row as it stands in the source.
func (r Row) String() string { return string(r.line) }

// Device names the device of the row.
func (r Row) Device() string {
	if r.t.devCol < 0 {
		return r.t.Set.Device
	}
	return string(field(r.line, r.t.devCol))
}

// TimeText is the time as recorded.
func (r Row) TimeText() string { return string(field(r.line, r.t.timeCol)) }

// epochOfSeconds is where sets begin that only count seconds: the publication
// of the rig's paper would be a guess, so a round, recognisable day is used.
var epochOfSeconds = time.Date(2018, 1, 1, 0, 0, 0, 0, time.UTC)

// Time is the row's own time. Local times of the sources carry no zone and are
// read as UTC; a count of seconds starts at 2018-01-01.
func (r Row) Time() (time.Time, error) {
	text := r.TimeText()
	if r.t.Set.TimeColumn == "t_s" {
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return time.Time{}, fmt.Errorf("recorded set %s: time %q: %w", r.t.Set.Name, text, err)
		}
		return epochOfSeconds.Add(time.Duration(n) * time.Second), nil
	}
	ts, err := time.Parse("2006-01-02T15:04:05", strings.TrimSuffix(text, "Z"))
	if err != nil {
		return time.Time{}, fmt.Errorf("recorded set %s: %w", r.t.Set.Name, err)
	}
	return ts, nil
}

// Signals calls f for each signal of the row in source order, with the text as
// recorded; value is valid during the call.
func (r Row) Signals(f func(name string, value []byte)) {
	rest := r.line
	for i, k := 0, 0; i < len(r.t.Columns); i++ {
		v := rest
		if j := bytes.IndexByte(rest, ','); j >= 0 {
			v, rest = rest[:j], rest[j+1:]
		}
		if i == r.t.timeCol || i == r.t.devCol {
			continue
		}
		f(r.t.Signals[k], v)
		k++
	}
}
