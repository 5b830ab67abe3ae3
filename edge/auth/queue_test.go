package auth_test

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"tailrace/edge/auth"
)

const hashTime = 50 * time.Millisecond

// guard is a queue whose hashes take hashTime of simulated time.
type guard struct {
	auth.Queue
	mu     sync.Mutex
	failed map[netip.Addr]bool
	atOnce atomic.Int32
	worst  atomic.Int32
	hashes atomic.Int32
}

func newGuard(slots int) *guard {
	g := &guard{failed: map[netip.Addr]bool{}}
	g.Queue = auth.Queue{Slots: slots, Waiting: 64, Patience: 5 * time.Second, Suspect: func(a netip.Addr) bool {
		g.mu.Lock()
		defer g.mu.Unlock()
		return g.failed[a]
	}}
	return g
}

func (g *guard) login(key string, from netip.Addr, right bool) (bool, error) {
	return g.Do(key, from, func() (bool, error) {
		g.hashes.Add(1)
		if n := g.atOnce.Add(1); n > g.worst.Load() {
			g.worst.Store(n)
		}
		defer g.atOnce.Add(-1)
		time.Sleep(hashTime)
		if !right {
			g.mu.Lock()
			g.failed[from] = true
			g.mu.Unlock()
		}
		return right, nil
	})
}

func address(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}) }

// Guessers from 20 addresses try without end; a device comes in within two seconds, each time, and
// what they cost is bounded.
func TestGuessersDoNotKeepOthersOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGuard(1)
		stop := make(chan struct{})
		var wg sync.WaitGroup
		for i := range 200 {
			wg.Go(func() {
				for n := 0; ; n++ {
					select {
					case <-stop:
						return
					default:
					}
					if _, err := g.login(fmt.Sprint(i, "-", n), address(i%20), false); err != nil {
						time.Sleep(500 * time.Millisecond)
					}
				}
			})
		}
		synctest.Wait()
		for n := range 20 {
			begin := time.Now()
			if ok, err := g.login(fmt.Sprint("good", n), address(1000+n), true); !ok || err != nil {
				t.Errorf("device %d: %v, %v", n, ok, err)
			}
			if d := time.Since(begin); n > 0 && d > 3*hashTime || d > 5*time.Second {
				t.Errorf("device %d waited %v", n, d)
			}
		}
		before := g.hashes.Load()
		time.Sleep(10 * time.Second)
		if share := float64(g.hashes.Load()-before) * hashTime.Seconds() / 10; share > 0.13 {
			t.Errorf("known guessers have %.2f of the slot", share)
		}
		if n := g.worst.Load(); n != 1 {
			t.Errorf("%d hashes at once", n)
		}
		close(stop)
		wg.Wait()
	})
}

func TestEqualCredentialsAreHashedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGuard(2)
		var wg sync.WaitGroup
		for i := range 500 { // more than may wait in the line
			wg.Go(func() {
				if ok, err := g.login("shared account", address(i), true); !ok || err != nil {
					t.Errorf("%v, %v", ok, err)
				}
			})
		}
		wg.Wait()
		if n := g.hashes.Load(); n != 1 {
			t.Errorf("%d hashes", n)
		}
		// One that may not even try does not decide for the others.
		refused := errors.New("too often")
		hold := make(chan struct{})
		for i := range 5 {
			wg.Go(func() {
				ok, err := g.Do("x", address(i), func() (bool, error) {
					if i == 0 {
						<-hold
						return false, refused
					}
					return true, nil
				})
				if i == 0 && err != refused || i > 0 && !ok {
					t.Errorf("login %d: %v, %v", i, ok, err)
				}
			})
			synctest.Wait()
		}
		close(hold)
		wg.Wait()
	})
}

func TestTheLineIsBoundedAndShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGuard(1)
		var wg sync.WaitGroup
		var busy atomic.Int32
		for i := range 300 { // one address fills the line
			wg.Go(func() {
				if _, err := g.login(fmt.Sprint("many", i), address(1), true); errors.Is(err, auth.ErrBusy) {
					busy.Add(1)
				}
			})
		}
		synctest.Wait()
		if n := busy.Load(); n != 300-64-1 {
			t.Errorf("%d refused at once", n)
		}
		for i := range 10 {
			wg.Go(func() {
				if ok, err := g.login(fmt.Sprint("one", i), address(2+i), true); !ok {
					t.Errorf("another address: %v", err)
				}
			})
		}
		wg.Wait()
	})
}
