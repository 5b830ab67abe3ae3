//go:build race

package record_test

// raceEnabled: the race detector allocates by itself.
const raceEnabled = true
