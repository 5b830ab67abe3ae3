package main

import (
	"context"
	"os"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestThriftWithManySessions(t *testing.T) {
	run := func(t *testing.T) (set []int) {
		synctest.Test(t, func(t *testing.T) {
			var n atomic.Int64
			ctx, stop := context.WithCancel(context.Background())
			done := make(chan struct{})
			go func() {
				defer close(done)
				thrift(ctx, func() int { return int(n.Load()) }, collector{func(p int) int { set = append(set, p); return 0 }, func() { set = append(set, 0) }})
			}()
			for _, have := range []int64{1990, 2000, 5000, 5000, 5010, 1500, 999, 0, 2000, 2000} {
				n.Store(have)
				time.Sleep(20 * time.Second)
			}
			stop()
			<-done
		})
		return set
	}
	for _, v := range []string{"GOGC", "GOMEMLIMIT"} {
		t.Setenv(v, "") // back to what it was after the test
		os.Unsetenv(v)
	}
	if got := run(t); !slices.Equal(got, []int{50, 0, 0, 100, 50, 0}) {
		t.Errorf("GC percents, and 0 for memory given back: %v", got)
	}
	for _, v := range []string{"GOGC", "GOMEMLIMIT"} {
		t.Run(v, func(t *testing.T) {
			t.Setenv(v, "200")
			if got := run(t); got != nil {
				t.Errorf("with %s set by the user: %v", v, got)
			}
		})
	}
}
