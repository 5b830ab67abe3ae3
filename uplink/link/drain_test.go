package link_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	firmwaresim "tailrace/firmware-sim"
	"tailrace/uplink/link"
	"tailrace/uplink/link/linktest"
)

// site is a wind farm whose readings of 180 bytes are put into a source, 2,000 a second: 200
// turbines, ten readings a second each, in commits of 50 ms, with the headers that a node adds.
type site struct {
	devices []firmwaresim.Device
	sources []firmwaresim.Source
	n       int
	sample  firmwaresim.Sample
	batch   []linktest.Record
}

const (
	siteRate   = 2000
	siteCommit = 100 // records
)

func newSite(t *testing.T) *site {
	farm, err := firmwaresim.ReadingFarm("north", 200, 180)
	if err != nil {
		t.Fatal(err)
	}
	s := &site{devices: farm}
	for i, d := range farm {
		s.sources = append(s.sources, d.Source(rand.New(rand.NewPCG(uint64(i), 5)), 5))
	}
	return s
}

// commit puts the next 50 ms of readings.
func (s *site) commit(src *memSource) {
	s.batch = s.batch[:0]
	for range siteCommit {
		i := s.n % len(s.devices)
		d, elapsed := &s.devices[i], time.Duration(s.n/len(s.devices))*100*time.Millisecond
		s.sources[i].Next(elapsed, &s.sample)
		at := time.UnixMilli(1_793_534_400_000).Add(elapsed)
		s.n++
		s.batch = append(s.batch, linktest.Record{Key: []byte(d.ID), Value: d.Telemetry(&s.sample, at, uint64(i), uint64(s.n/len(s.devices))), Millis: at.UnixMilli(),
			Headers: [][2]string{{"mqtt.topic", d.Topic("telemetry")}, {"mqtt.client", d.ClientID()}, {"mqtt.qos", "1"}}})
	}
	src.mu.Lock()
	p := src.parts[0]
	p.batches = append(p.batches, memBatch{p.next, p.next + siteCommit, linktest.AppendRecords(nil, p.next, s.batch)})
	p.next += siteCommit
	src.mu.Unlock()
	src.signal()
}

// drainAfter is how long a site's link takes to catch up after an outage, from link-up, and the records a
// second between the first record and then. New records keep coming all the time.
func drainAfter(t *testing.T, seed uint64, outage time.Duration, loss float64, change func(*link.ClientConfig)) (took time.Duration, perSecond float64) {
	synctest.Test(t, func(t *testing.T) {
		p := lte
		w := newSeededWorld(t, p, seed)
		l := w.r.Link("10.0.1.1")
		p.Loss = loss
		l.SetUp(p)
		src, farm := newSource(1, "wind"), newSite(t)
		hub, stopHub := w.hub(nil)
		_, stopNode := w.node("node-1", "10.0.1.1", src, change)
		put := func(d time.Duration) {
			for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(siteCommit * time.Second / siteRate) {
				farm.commit(src)
			}
		}
		put(5 * time.Second)
		l.Down(true)
		put(outage + time.Duration(seed)*37*time.Millisecond)
		l.Down(false)
		up, had := time.Now(), w.sink.records("node-1", "wind")
		var first time.Time
		for next := time.Now(); ; time.Sleep(5 * time.Millisecond) {
			if !time.Now().Before(next) {
				farm.commit(src)
				next = next.Add(siteCommit * time.Second / siteRate)
			}
			n := w.sink.records("node-1", "wind")
			if first.IsZero() && n > had {
				first = time.Now()
			}
			if n >= src.parts[0].next-siteRate/5 {
				took = time.Since(up)
				perSecond = float64(n-had) / time.Since(first).Seconds()
				break
			}
			if time.Since(up) > 10*time.Minute {
				t.Fatalf("not drained: %d of %d", n, src.parts[0].next)
			}
		}
		n := hub.Nodes()[0]
		t.Logf("outage %v, %.0f %% loss, codec by default %v: drained %v after link-up (first record after %v), %.0f records/s, %.1f bytes a record, %d connections", outage, loss*100, change == nil,
			took, first.Sub(up), perSecond, float64(n.WireBytes)/float64(n.Records), n.Connections)
		w.until(time.Minute, "acks", func() bool { return src.ackedTo(0) == src.parts[0].next })
		stopNode()
		stopHub()
		w.sink.check(t)
		settle()
	})
	return took, perSecond
}

// The bars: 10 Mbit/s, 100 ms, 1 % loss.
func TestDrainAfterAnOutage(t *testing.T) {
	for _, c := range []struct {
		name   string
		outage time.Duration
		change func(*link.ClientConfig)
		took   time.Duration
		rate   float64
	}{
		{"60 s, transform", time.Minute, nil, 5 * time.Second, 50_000},
		{"60 s, zstd alone", time.Minute, func(c *link.ClientConfig) { c.NoTransform = true }, 0, 35_000},
		{"10 min, transform", 10 * time.Minute, nil, 40 * time.Second, 0},
	} {
		if testing.Short() && c.outage > time.Minute {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			worst, least := time.Duration(0), 1e18
			for seed := range *barSeeds {
				took, rate := drainAfter(t, uint64(seed+1), c.outage, 0.01, c.change)
				worst, least = max(worst, took), min(least, rate)
				if c.took > 0 && took > c.took || rate < c.rate {
					t.Errorf("seed %d: %v and %.0f records/s, the bar is %v and %.0f", seed+1, took, rate, c.took, c.rate)
				}
			}
			fmt.Printf("DRAIN %s | %.1f %.0f | %.2f s %.0f records/s | %d seeds\n", c.name, c.took.Seconds(), c.rate, worst.Seconds(), least, *barSeeds)
		})
	}
}
