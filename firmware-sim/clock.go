package firmwaresim

import "time"

// rtcEpoch is where a clock without battery starts.
var rtcEpoch = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

const (
	// A clock is set from the network some time after the first connection, and
	// then hourly; between that it drifts.
	syncAfter = 20 * time.Second
	syncEvery = time.Hour
)

// clock is a device's idea of time.
type clock struct {
	boot  time.Time // wall time at power-on
	ref   time.Time // wall time at which shown was right
	shown time.Time
	drift float64 // seconds per second
	known bool    // it was set, or runs on a battery
	sync  time.Time
}

// powerOn starts the clock of a boot. A battery-backed one keeps its error.
func (c *clock) powerOn(wall time.Time, battery bool) {
	c.boot = wall
	c.sync = time.Time{}
	if battery {
		if !c.known {
			c.ref, c.shown, c.known = wall, wall, true
		}
		return
	}
	c.ref, c.shown, c.known = wall, rtcEpoch, false
}

// connected: the network is there, the time will be asked for.
func (c *clock) connected(wall time.Time) {
	if c.sync.IsZero() {
		c.sync = wall.Add(syncAfter)
	}
}

// now reads the clock, after setting it if that is due.
func (c *clock) now(wall time.Time) time.Time {
	if !c.sync.IsZero() && !wall.Before(c.sync) {
		c.ref, c.shown, c.known = wall, wall, true
		c.sync = wall.Add(syncEvery)
	}
	gone := wall.Sub(c.ref)
	return c.shown.Add(gone + time.Duration(float64(gone)*c.drift))
}

func (c *clock) uptime(wall time.Time) time.Duration { return wall.Sub(c.boot) }
