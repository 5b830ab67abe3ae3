package scenario

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
	"unsafe"

	"tailrace/devices"
	"tailrace/edge"
	"tailrace/firmware-sim/rawload"
	"tailrace/storage"
)

// aux is the stream of the wills.
const aux = "aux"

var withFeatures = flag.String("with", "", "let every history have these, comma separated: "+strings.Join(featureNames, ", "))

var featureNames = []string{"evict", "qos2", "retain", "wills", "hub-lost", "hub-backup", "card-wrong", "card-clone", "clock-1970", "clock-jumps"}

// plan is what one history has besides cuts, crashes and disk faults; a seed chooses.
type plan struct {
	evict  bool    // the node has room for little and gives up the oldest
	qos    [2]byte // of the devices, by MQTT version
	retain bool    // a device publishes retained messages; a subscriber comes at the end
	wills  int     // devices with a will

	hub   string // "", "lost" (a new disk) or "backup" (an older state of it comes back)
	card  string // "", "wrong" (an older image runs in the node's place) or "clone" (beside it)
	clock string // "", "1970" (boots there, is set at some time) or "jumps"

	early, late time.Duration // when the backup or image is made, when it is used
	set         time.Duration // when the clock is set or jumps
}

// newPlan draws one. It has a source of its own, so that a feature does not change the
// rest of a seed's history.
func newPlan(seed uint64, features string) plan {
	r := rand.New(rand.NewPCG(seed, 9))
	one := func(of int) bool { return r.IntN(of) == 0 }
	p := plan{evict: one(4), qos: [2]byte{1 + byte(r.IntN(2)), 1 + byte(r.IntN(2))}, retain: one(3),
		early: time.Duration(3000+r.IntN(9000)) * time.Millisecond, late: time.Duration(15000+r.IntN(12000)) * time.Millisecond,
		set: time.Duration(2000+r.IntN(26000)) * time.Millisecond}
	if one(3) {
		p.wills = 1 + r.IntN(4)
	}
	// A disk of the hub and a card of the node that both go back need a person to tell
	// which log is the right one.
	switch r.IntN(10) {
	case 0:
		p.hub = "lost"
	case 1:
		p.hub = "backup"
	case 2, 3:
		p.card = "wrong"
	case 4, 5:
		p.card = "clone"
	}
	switch r.IntN(6) {
	case 0:
		p.clock = "1970"
	case 1:
		p.clock = "jumps"
	}
	for f := range strings.SplitSeq(features, ",") {
		switch name, what, _ := strings.Cut(f, "-"); name {
		case "evict":
			p.evict = true
		case "qos2":
			p.qos = [2]byte{2, 2}
		case "retain":
			p.retain = true
		case "wills":
			p.wills = 4
		case "hub":
			p.hub, p.card = what, ""
		case "card":
			p.card, p.hub = what, ""
		case "clock":
			p.clock = what
		}
	}
	return p
}

func (p plan) String() string {
	return fmt.Sprintf("evict=%v qos=%v retain=%v wills=%d hub=%q card=%q clock=%q", p.evict, p.qos, p.retain, p.wills, p.hub, p.card, p.clock)
}

// node sets the node's configuration.
func (p plan) node(c *edge.Config) {
	key := "{topic}"
	c.Routes = []devices.Rule{{Name: aux, Topic: aux + "/#", Stream: aux, Key: &key}}
	if p.evict {
		m := &c.Storage.Classes[0]
		m.WhenFull, m.MaxSize = "drop-oldest", 6*m.SegmentSize
	}
}

// wallClock is a clock that can be set. The zero value is right and kept.
type wallClock struct {
	mu     sync.Mutex
	wrong  time.Duration // guarded by mu, as all below
	unkept bool
	lied   bool       // it was wrong while somebody seemed to keep it: nobody can correct that
	steps  []wallStep // since the beginning
}

type wallStep struct {
	at    time.Time
	wrong time.Duration
}

func (c *wallClock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return setWall(time.Now(), c.wrong)
}

// setWall is t as a clock gives it that was set by so much: its wall time is another, its
// monotonic time goes on. In a bubble times have no monotonic part, and package time has no
// way to make one, so this knows its layout.
func setWall(t time.Time, by time.Duration) time.Time {
	const monotonic, from1885 = 1 << 63, 2_682_288_000 // seconds from 1885 to 1970
	want := t.Add(by)
	f := (*struct {
		wall uint64
		ext  int64
		loc  *time.Location
	})(unsafe.Pointer(&t))
	f.wall = monotonic | uint64(want.Unix()+from1885)<<30 | uint64(want.Nanosecond())
	f.ext = int64(want.Add(-by).Sub(time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC))) + 1
	if t.UnixNano() != want.UnixNano() {
		panic(fmt.Sprintf("the layout of time.Time is another: %v, want %v", t, want))
	}
	return t
}

func (c *wallClock) synced() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !c.unkept
}

func (c *wallClock) set(wrong time.Duration, kept bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wrong, c.unkept = wrong, !kept
	c.lied = c.lied || wrong != 0 && kept
	c.steps = append(c.steps, wallStep{time.Now(), wrong})
}

// wrongBy is by how much a time was wrong that this clock gave in the simulation's span.
func (c *wallClock) wrongBy(stamp, start, end time.Time) (time.Duration, time.Time, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	steps := append([]wallStep{{at: start}}, c.steps...)
	for i, s := range steps {
		until := end
		if i+1 < len(steps) {
			until = steps[i+1].at
		}
		// Timestamps have milliseconds.
		if at := stamp.Add(-s.wrong); !at.Before(s.at.Add(-2*time.Millisecond)) && at.Before(until.Add(2*time.Millisecond)) {
			return s.wrong, at, true
		}
	}
	return 0, time.Time{}, false
}

// interval of the simulation.
type interval struct{ from, to time.Time }

// trouble notes that the node was not well from then until now, and a little longer.
func (w *world) trouble(from time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.troubles = append(w.troubles, interval{from, time.Now().Add(time.Second)})
}

// calm says that the node was well around a moment.
func (w *world) calm(at time.Time) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, t := range w.troubles {
		if at.Add(4*time.Second).After(t.from) && at.Add(-time.Second).Before(t.to) {
			return false
		}
	}
	return true
}

// step is something that the plan does at a time.
type step struct {
	at time.Duration
	do func(*outcome) error
}

// steps of the plan, in order.
func (w *world) steps() []step {
	p, backup := w.plan, filepath.Join(w.dir, "image")
	var out []step
	image := func(m *machine) func(*outcome) error {
		return func(*outcome) error {
			w.say("an image of the %s's disk", m.name)
			_, err := m.disk().Image(w.rng.Uint64(), backup)
			return err
		}
	}
	years := func() time.Duration {
		return time.Duration(1+w.rng.IntN(5*365))*24*time.Hour + time.Duration(w.rng.IntN(1e6))*time.Millisecond
	}
	switch p.clock {
	case "1970":
		w.clock.set(-30*365*24*time.Hour, false)
		if w.rng.IntN(2) == 0 {
			out = append(out, step{p.set, func(o *outcome) error { return w.setClock(o, 0, true) }})
		}
	case "jumps":
		out = append(out, step{p.set / 3, func(o *outcome) error {
			by := years()
			if w.rng.IntN(2) == 0 {
				by = -by
			}
			return w.setClock(o, by, w.rng.IntN(4) == 0)
		}}, step{p.set, func(o *outcome) error { return w.setClock(o, -years(), false) }})
	}
	switch p.hub {
	case "lost":
		out = append(out, step{p.late, func(o *outcome) error { return w.replaceHub(o, "") }})
	case "backup":
		out = append(out, step{p.early, image(w.hub)}, step{p.late, func(o *outcome) error { return w.replaceHub(o, backup) }})
	}
	if p.card != "" {
		had := int64(0)
		out = append(out, step{p.early, func(o *outcome) error {
			err := image(w.node)(o)
			had = w.node.records()
			return err
		}}, step{p.late, func(o *outcome) error { return w.copyRuns(o, backup, had) }})
	}
	slices.SortStableFunc(out, func(a, b step) int { return cmp.Compare(a.at, b.at) })
	return out
}

func (w *world) setClock(o *outcome, wrong time.Duration, kept bool) error {
	w.say("the node's clock is now %v wrong, kept=%v", wrong, kept)
	o.ClockSteps++
	w.clock.set(wrong, kept)
	return nil
}

// replaceHub gives the hub another disk: an empty one, or an older state of its own.
func (w *world) replaceHub(o *outcome, from string) error {
	// Of a backup only a node can tell that has not restarted since it heard the hub's
	// acknowledgements, see TestHubThatLostRecordsIsFilledAgain. And of a lost disk none whose
	// own disk has taken nothing since it was welcomed.
	s, n := w.hub.store(), w.node.store()
	switch {
	case s == nil || n == nil || from != "":
	case !notedBy(n, s.Identity().StoreID):
		w.say("the node's disk has not taken the note of the hub's store: nobody can tell that it is gone")
	default:
		g, err := givenOut(s)
		if err != nil {
			return err
		}
		w.before = g
		if g.records > 0 {
			o.Told++
		}
	}
	if err := w.hub.crash(w.rng.Uint64(), 0, false); err != nil {
		return err
	}
	o.Cuts++
	o.HubDisks++
	w.say("the hub's disk is replaced by %q", from)
	err := os.RemoveAll(w.hub.dir())
	if from != "" {
		err = errors.Join(err, os.Rename(from, w.hub.dir()))
	}
	return errors.Join(err, w.hub.on())
}

// copyRuns starts a copy of the node's card, in its place or beside it, with devices of its
// own. What those send must never reach the hub's store. A hub that knows nothing newer than
// the copy could not tell the two apart, so then nothing is done.
func (w *world) copyRuns(o *outcome, from string, had int64) error {
	if w.completeTo(stream) <= had {
		w.say("no copy is started: the hub is complete to %d only, the copy has %d", w.completeTo(stream), had)
		return nil
	}
	in, err := storage.Inspect(from, nil)
	if err != nil {
		return err
	}
	if len(in.Problems) > 0 { // see TestCopiesOfALogAreNeverMerged: it goes on, and the node's own card is the older one
		w.say("no copy is started: at its torn end it would begin an epoch of its own, as a node that lost its last commits: %v", in.Problems)
		return nil
	}
	o.Copies++
	dead := time.Now()
	if w.plan.card == "wrong" {
		o.Cuts++
		if err := w.node.crash(w.rng.Uint64(), 0, false); err != nil {
			return err
		}
	}
	m := &machine{w: w, name: "copy", run: w.runNodeAt(&w.bench)}
	if err := errors.Join(os.Rename(from, m.dir()), m.on()); err != nil {
		return err
	}
	w.say("a copy of the node's card runs (%s)", w.plan.card)
	stop, err := w.benchDevices()
	if err != nil {
		return err
	}
	for range 4 + w.rng.IntN(8) {
		time.Sleep(time.Second)
		if i := w.info(); i.Fenced != "" || i.OtherCopy != "" {
			o.Fenced = 1
		}
	}
	stop()
	m.off()
	w.say("the copy is switched off")
	if w.plan.card == "wrong" {
		defer w.trouble(dead)
		return w.node.on()
	}
	return nil
}

// benchDevices sends to the copy.
func (w *world) benchDevices() (stop func(), err error) {
	ctx, cancel := context.WithCancel(context.Background())
	l, err := rawload.New(rawload.Config{Dial: w.bench.dial, Version: 5, QoS: 1, Clients: 2, Rate: 40, ClientPrefix: "other", Topic: "site/other/{client}/telemetry",
		Reconnect: true, BackOffMax: time.Second, Drain: time.Second, Seed: w.rng.Uint64() | 1, Epoch: time.Now()})
	if err != nil {
		cancel()
		return nil, err
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = l.Run(ctx) // what becomes of it is nobody's business but the copy's
	}()
	return func() { cancel(); <-done }, nil
}
