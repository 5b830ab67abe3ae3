package main

import (
	"context"
	"os"
	"time"
)

// collector is what thrift asks of the runtime, see runtime/debug.
type collector struct {
	percent func(int) int // SetGCPercent
	release func()        // FreeOSMemory
}

const (
	manySessions = 2000
	thriftEvery  = 5 * time.Second
	calm         = 6 // rounds without more sessions
)

// thrift keeps memory low while thousands of nodes are connected: what their sessions hold lives
// long, and by default the heap may double before the next collection. When many have come, what
// their handshakes left is given back once. What the user has set with GOGC or GOMEMLIMIT stays.
func thrift(ctx context.Context, sessions func() int, c collector) {
	if os.Getenv("GOGC") != "" || os.Getenv("GOMEMLIMIT") != "" {
		return
	}
	tick := time.NewTicker(thriftEvery)
	defer tick.Stop()
	thrifty, released, most, quiet := false, 0, 0, 0
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		n := sessions()
		switch {
		case n >= manySessions && !thrifty:
			thrifty = true
			c.percent(50)
		case n < manySessions/2 && thrifty:
			thrifty, released = false, 0
			c.percent(100)
		}
		if quiet++; n > most+most/100 || n < most/2 {
			most, quiet = n, 0
		}
		if thrifty && quiet == calm && n > released+released/4 {
			released = n
			c.release()
		}
	}
}
