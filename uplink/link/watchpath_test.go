package link

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// The probes of a dial may end before its handshake does. Whoever watches both then waits for the handshake and takes no CPU:
// in a process that is short of it, nodes that did not wait kept every other one from the CPU.
func TestWatchingAPathAfterItsProbesEnded(t *testing.T) {
	dog := time.AfterFunc(time.Minute, func() { panic("virtual time stands still: somebody does not wait") })
	defer dog.Stop()
	synctest.Test(t, func(t *testing.T) {
		d := &dialer{c: &Client{linkUp: make(chan struct{}, 1)}}
		probes, cancel := context.WithCancel(t.Context())
		cancel()
		handshake, end := context.WithCancelCause(t.Context())
		begin := time.Now()
		time.AfterFunc(time.Minute, func() { end(nil) })
		d.watchPath(handshake, probes, make(chan pathUp), func(pathUp) error { return nil }, end)
		if took := time.Since(begin); took != time.Minute {
			t.Errorf("watched for %v", took)
		}
	})
}
