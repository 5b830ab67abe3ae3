package main

import (
	"fmt"
	"strings"
	"testing"

	"tailrace/firmware-sim/data"
)

// recordedRows returns a check over three rows a device, and the payload that row i
// of the first device must arrive as.
func recordedRows(t *testing.T) (*sourceCheck, func(i int) []byte) {
	t.Helper()
	set, err := data.Lookup(demoSet)
	if err != nil {
		t.Fatal(err)
	}
	table, err := set.Open()
	if err != nil {
		t.Fatal(err)
	}
	dev := table.Devices[0]
	return newSourceCheck(table, 3), func(i int) []byte {
		row := table.DeviceRow(dev, i)
		at, err := row.Time()
		if err != nil {
			t.Fatal(err)
		}
		var signals []string
		row.Signals(func(name string, v []byte) {
			s := string(v)
			if s == "" {
				s = "null"
			}
			signals = append(signals, fmt.Sprintf("%q:%s", name, s))
		})
		return fmt.Appendf(nil, `{"turbine":%q,"ts":%d,"seq":%d,"signals":{%s}}`, dev, at.UnixMilli(), i+1, strings.Join(signals, ","))
	}
}
