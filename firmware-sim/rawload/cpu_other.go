//go:build !unix

package rawload

import "time"

// cpuTime is not measured here; reports show 0.
func cpuTime() time.Duration { return 0 }
