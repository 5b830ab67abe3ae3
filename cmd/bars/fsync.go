package main

import (
	"os"
	"slices"
	"syscall"
	"time"
)

type fsyncFigures struct{ p50us, p99us float64 }

// fsyncLatency appends 200 bytes and syncs, again and again: the physical floor of
// one durable acknowledgement on this disk.
func fsyncLatency(path string, d time.Duration) (fsyncFigures, error) {
	f, err := os.Create(path)
	if err != nil {
		return fsyncFigures{}, err
	}
	defer f.Close()
	buf := make([]byte, 200)
	var v []float64
	for end := time.Now().Add(d); time.Now().Before(end); {
		start := time.Now()
		if _, err := f.Write(buf); err != nil {
			return fsyncFigures{}, err
		}
		if err := syscall.Fdatasync(int(f.Fd())); err != nil {
			return fsyncFigures{}, err
		}
		v = append(v, float64(time.Since(start).Microseconds()))
	}
	slices.Sort(v)
	return fsyncFigures{v[len(v)/2], v[len(v)*99/100]}, nil
}
