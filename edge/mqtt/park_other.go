//go:build !linux

package mqtt

import (
	"sync/atomic"
	"time"
)

// parker exists on Linux only; elsewhere idle connections keep their goroutines.
type parker struct{ count atomic.Int64 }

func (*parker) add(*conn, int) bool       { return false }
func (*parker) remove(*conn, int)         {}
func (*parker) overdue(time.Time) []*conn { return nil }
func (*parker) close()                    {}
