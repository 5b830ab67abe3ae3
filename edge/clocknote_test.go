package edge

import (
	"testing"
	"time"
)

// A clock that is right says nothing, but what time has passed is noted every hour: after a
// year of that a board that wakes up in 1970 checks certificates against the year after.
func TestGoodClockNotesTheTimeThatHasPassed(t *testing.T) {
	b := newBoard(t)
	b.set()
	b.synced = true
	b.c.look()
	for range 5 {
		b.up += time.Hour
		b.c.look()
	}
	passed := b.wall()
	b.boot, b.up, b.shift, b.synced = "boot-2", 0, 0, false
	b.restart()
	if k := b.c.known(); k.Before(passed.Add(-time.Minute)) {
		t.Errorf("last known time %v, a clock that was right had shown %v", k, passed)
	}
	b.want()
}
