package link_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	mrand "math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"runtime/pprof"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"tailrace/uplink/link"
	"tailrace/uplink/link/linktest"
	"tailrace/uplink/wire"
)

var (
	soakHours = flag.Int("soak.hours", 1, "length of a long history, in virtual hours")
	soakCount = flag.Int("soak.count", 5, "long histories to run")
	soakFirst = flag.Uint64("soak.first", 1, "seed of the first")
)

// Long histories of one node: up to ten records a second for hours, while its link is cut, loses up to
// 30 %, falls to 16 kbit/s, passes nothing one way, reorders, changes its packet size and the node's
// address, while hub and node are killed and the store fails. At the end everything is there once and in
// order, and neither end has grown.
func TestLongHistories(t *testing.T) {
	n := *soakCount
	if testing.Short() {
		n = min(n, 1)
	}
	for seed := *soakFirst; seed < *soakFirst+uint64(n); seed++ {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { longHistory(t, seed, time.Duration(*soakHours)*time.Hour) })
		})
	}
}

// soak is the state of a long history.
type soak struct {
	t     *testing.T
	w     *world
	rng   *mrand.Rand
	src   *memSource
	path  linktest.Path
	begin time.Time
	story []string

	stopHub, stopNode func()
}

func (s *soak) tell(format string, args ...any) {
	s.story = append(s.story, fmt.Sprintf("%v ", time.Since(s.begin).Round(time.Second))+fmt.Sprintf(format, args...))
}

func (s *soak) link() *linktest.Link { return s.w.r.Link("10.0.1.1") }

func (s *soak) hub() {
	_, s.stopHub = s.w.hub(func(c *link.ServerConfig) { c.Listener = s.w.r.Listen(tcpHub) })
}

func (s *soak) node() {
	_, s.stopNode = s.w.node("node-1", "10.0.1.1", s.src, func(c *link.ClientConfig) {
		c.Status = func() wire.Status { return wire.Status{Devices: 3} }
		if s.rng.IntN(2) == 0 {
			c.Fallback = []string{tcpHub}
			c.DialTCP = func(ctx context.Context, hub string) (net.Conn, error) { return s.w.r.DialTCP(ctx, "10.0.1.1", hub) }
		}
	})
}

// wait goes on for d, with records at a rate of up to ten a second.
func (s *soak) wait(d time.Duration) {
	rate := []float64{0.1, 1, 2, 10}[s.rng.IntN(4)]
	for end := time.Now().Add(d); ; {
		pause := time.Duration(s.rng.ExpFloat64() / rate * 1e9)
		if left := time.Until(end); pause >= left {
			time.Sleep(left)
			return
		}
		time.Sleep(pause)
		s.src.put(s.rng.IntN(2), 1, 60+s.rng.IntN(400))
		if s.rng.IntN(50) == 0 {
			s.src.trim()
		}
	}
}

func (s *soak) minutes(most int) time.Duration {
	return time.Second + time.Duration(s.rng.ExpFloat64()*float64(most)/3*float64(time.Minute))
}

// event is one thing that happens to the link, the hub or the node.
func (s *soak) event() {
	l, rng := s.link(), s.rng
	switch rng.IntN(12) {
	case 0, 1:
		d := s.minutes(20)
		s.tell("link down %v", d)
		l.Down(true)
		s.wait(d)
		l.Down(false)
	case 2:
		s.path.Loss = float64(rng.IntN(31)) / 100
		s.tell("loss %.0f %%", s.path.Loss*100)
	case 3:
		s.path.Rate = []float64{16e3, 64e3, 1e6, 10e6}[rng.IntN(4)]
		s.path.Queue = max(int(s.path.Rate/8*0.5), 10_000)
		s.path.Delay = time.Duration(5+rng.IntN(300)) * time.Millisecond
		s.tell("%.0f kbit/s, %v", s.path.Rate/1000, s.path.Delay)
	case 4:
		up, d := rng.IntN(2) == 0, s.minutes(5)
		s.tell("nothing passes %s for %v", map[bool]string{true: "up", false: "down"}[up], d)
		l.Drop(up, func(int) bool { return true })
		s.wait(d)
		l.Drop(up, nil)
	case 5:
		s.path.Jitter = time.Duration(rng.IntN(200)) * time.Millisecond
		s.tell("jitter %v", s.path.Jitter)
	case 6:
		s.path.MTU = []int{1228, 1280, 1400, 1500}[rng.IntN(4)]
		s.tell("packets up to %d bytes", s.path.MTU)
	case 7:
		small, d := s.path, s.minutes(3)
		small.MTU = 1000 // a black hole for full packets
		s.tell("packets up to %d bytes for %v", small.MTU, d)
		l.Set(small)
		s.wait(d)
	case 8:
		s.tell("another address")
		l.Rebind()
	case 9:
		unheard := rng.IntN(2) == 0
		s.tell("hub killed, unheard %v", unheard)
		l.Down(unheard)
		s.stopHub()
		s.wait(time.Duration(rng.IntN(30)) * time.Second)
		s.hub()
		l.Down(false)
	case 10:
		s.tell("node killed")
		l.Down(true)
		s.stopNode()
		l.Down(false)
		s.node()
	case 11:
		s.tell("store fails")
		s.w.sink.fail(errors.New("no space"))
		s.wait(time.Duration(rng.IntN(20)) * time.Second)
		s.w.sink.fail(nil)
	}
	l.Set(s.path)
}

func longHistory(t *testing.T, seed uint64, length time.Duration) {
	s := &soak{t: t, rng: mrand.New(mrand.NewPCG(seed, 78)), begin: time.Now(), src: newSource(1, "wind", "sun"),
		path: linktest.Path{Rate: 10e6, Delay: 50 * time.Millisecond, Queue: 125_000}}
	s.w = newSeededWorld(t, s.path, seed)
	s.w.sink.noTimes = true
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("seed %d: %s", seed, strings.Join(s.story, "; "))
		}
	})
	s.hub()
	s.node()
	grown := int64(0)
	calm := func(what string) { // everything arrives over a good link
		l, good := s.link(), linktest.Path{Rate: 10e6, Delay: 50 * time.Millisecond, Queue: 125_000}
		l.Set(good)
		for p, topic := range []string{"wind", "sun"} {
			s.w.until(10*time.Minute, what+" of "+topic, func() bool { return s.src.ackedTo(p) == s.src.parts[p].next })
			if l := s.w.sink.stored[originKey{"node-1", wire.ID{1}, topic, 0}]; l != nil && l.records != s.src.parts[p].next {
				t.Errorf("%s: %d records stored of %d", topic, l.records, s.src.parts[p].next)
			}
		}
		s.src.trim()
		time.Sleep(3 * time.Minute) // what is over has ended
		l.Set(s.path)
	}
	var before int64
	for quarter := range 4 {
		for end := time.Now().Add(length / 4); time.Now().Before(end); {
			s.event()
			s.wait(s.minutes(6))
		}
		calm(fmt.Sprintf("everything of quarter %d", quarter+1))
		heap() // sync.Pool lets go at the second collection
		if h := heap(); quarter == 0 {
			before = h
		} else {
			grown = h - before
		}
	}
	if grown > 2<<20 {
		if f, err := os.Create(filepath.Join(t.ArtifactDir(), "heap")); err == nil { // kept with -artifacts
			pprof.Lookup("heap").WriteTo(f, 0)
			f.Close()
		}
		t.Errorf("the heap of both ends grew by %d bytes from the first quarter to the end", grown)
	}
	if len(s.w.sink.forks) > 0 {
		t.Errorf("%d forks of a log that never forked", len(s.w.sink.forks))
	}
	t.Logf("seed %d: %v, %d events, %d records, %d sessions, heap %+d KiB", seed, length, len(s.story), s.src.parts[0].next+s.src.parts[1].next, s.w.sink.sessions, grown>>10)
	s.stopNode()
	s.stopHub()
	s.w.sink.check(t)
	settle()
}
