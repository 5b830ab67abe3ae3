package mqtt_test

import (
	"bytes"
	"crypto/x509"
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"tailrace/edge/mqtt"
	"tailrace/edge/mqtt/packet"
)

func TestSessionPresentAfterRestart(t *testing.T) {
	eachVersion(t, func(t *testing.T, v byte) {
		b := newBackend()
		w := newWorld(t, b, nil)
		if _, present := w.login(v, opts{id: "dev", persistent: true}); present {
			t.Fatal("present at first")
		}
		w.stop()
		b = b.restart()
		w = newWorld(t, b, nil)
		if _, present := w.login(v, opts{id: "dev", persistent: true}); present != (v > 3) { // 3.1 has no such flag
			t.Fatalf("present %v after restart", present)
		}
	})
}

// TestConnackWaitsForTheSessionRecord: the promise is durable before it is made.
func TestConnackWaitsForTheSessionRecord(t *testing.T) {
	b := newBackend()
	w := newWorld(t, b, nil)
	b.hold(true)
	d := w.dial(5)
	d.send(connect(5, opts{id: "dev", persistent: true}))
	b.waiting(1)
	if p, err := d.tryNext(50 * time.Millisecond); err == nil {
		t.Fatalf("CONNACK %x before the session was durable", p)
	}
	b.hold(false)
	if p := d.next(); p[0] != 0x20 || p[3] != 0 {
		t.Fatalf("CONNACK %x", p)
	}
	b.failWith(errors.New("disk gone"))
	d = w.dial(5)
	d.send(connect(5, opts{id: "other", persistent: true}))
	if p := d.next(); p[3] != byte(packet.ServerUnavailable) {
		t.Fatalf("CONNACK %x", p)
	}
	d.closed()
	b.failWith(nil)
}

func TestTakeoverEndsTheOldConnectionAfterItsAcks(t *testing.T) {
	eachVersion(t, func(t *testing.T, v byte) {
		b := newBackend()
		w := newWorld(t, b, nil)
		d, _ := w.login(v, opts{id: "dev", persistent: true})
		b.hold(true)
		d.send(publish(v, 1, 1, "t", "a"))
		b.waiting(1)
		d2 := w.dial(v)
		d2.send(connect(v, opts{id: "dev", persistent: true}))
		if p, err := d2.tryNext(50 * time.Millisecond); err == nil {
			t.Fatalf("CONNACK %x while the old connection waits for the disk", p)
		}
		b.hold(false)
		if p := d2.next(); p[0] != 0x20 || p[3] != 0 {
			t.Fatalf("CONNACK %x", p)
		}
		d.want(puback(1))
		d.disconnected(packet.SessionTakenOver)
		d2.send(publish(v, 1, 1, "t", "a", fDup))
		d2.want(puback(1))
		if got := b.payloads(); !slices.Equal(got, []string{"a"}) {
			t.Errorf("durable %q", got)
		}
	})
}

func TestSessionBelongsToItsIdentity(t *testing.T) {
	b := newBackend()
	w := newWorld(t, b, nil)
	d, _ := w.login(5, opts{id: "dev", persistent: true, user: "alice"})
	thief := w.dial(5)
	thief.send(connect(5, opts{id: "dev", persistent: true, user: "mallory"}))
	if p := thief.next(); p[3] != byte(packet.NotAuthorized) {
		t.Fatalf("CONNACK %x", p)
	}
	thief.closed()
	d.silent() // and the owner has not noticed
}

func TestAuthenticate(t *testing.T) {
	b := newBackend()
	b.auth = func(c *mqtt.Client, user string, pw []byte, cert *x509.Certificate) error {
		if user == "u" && string(pw) == "p" {
			return nil
		}
		return &mqtt.ReasonError{Code: packet.BadUserOrPassword}
	}
	w := newWorld(t, b, nil)
	eachVersion(t, func(t *testing.T, v byte) {
		w.login(v, opts{id: "a", user: "u", pw: "p"})
		for _, o := range []opts{{id: "b"}, {id: "b", user: "u"}, {id: "b", user: "u", pw: "x"}} {
			d := w.dial(v)
			d.send(connect(v, o), publish(v, 0, 0, "t", "stolen"))
			want := byte(4)
			if v == 5 {
				want = 0x86
			}
			if p := d.next(); p[3] != want {
				t.Fatalf("CONNACK %x", p)
			}
			d.closed()
		}
	})
	if got := b.payloads(); len(got) != 0 {
		t.Fatalf("durable %q", got)
	}
}

func TestWill(t *testing.T) {
	eachVersion(t, func(t *testing.T, v byte) {
		b := newBackend()
		w := newWorld(t, b, nil)
		sub, _ := w.login(v, opts{id: "sub"})
		sub.send(subscribe(v, 1, "dead/#", 1))
		sub.want(suback(v, 1, 1))

		d, _ := w.login(v, opts{id: "dev", will: &will{topic: "dead/dev", payload: "w1", qos: 1, retain: true}})
		d.nc.Close()
		sub.want(publish(v, 1, 1, "dead/dev", "w1"))
		sub.send(puback(1))
		if r := b.all(); len(r) != 1 || !r[0].will || !r[0].retain || r[0].client != "dev" {
			t.Fatalf("records %+v", r)
		}
		// A clean end publishes nothing, a malformed packet does.
		d, _ = w.login(v, opts{id: "dev", will: &will{topic: "dead/dev", payload: "w2"}})
		d.send([]byte{0xE0, 0})
		d.closed()
		d, _ = w.login(v, opts{id: "dev", will: &will{topic: "dead/dev", payload: "w3"}})
		d.send([]byte{0x36, 0})
		d.disconnected(packet.Malformed)
		sub.want(publish(v, 0, 0, "dead/dev", "w3"))
		// The retained will is still there.
		late, _ := w.login(v, opts{id: "late"})
		late.send(subscribe(v, 1, "dead/+", 0))
		late.want(suback(v, 1, 0), publish(v, 0, 0, "dead/dev", "w1", fRetain))
	})
}

func TestWillDelayIsCancelledByReturn(t *testing.T) {
	b := newBackend()
	w := newWorld(t, b, nil)
	wl := &will{topic: "dead/dev", payload: "w", delay: 1}
	d, _ := w.login(5, opts{id: "dev", persistent: true, will: wl})
	d.nc.Close()
	d, _ = w.login(5, opts{id: "dev", persistent: true})
	d.silent()
	d2, _ := w.login(5, opts{id: "dev2", persistent: true, will: wl})
	sub, _ := w.login(5, opts{id: "sub"})
	sub.send(subscribe(5, 1, "dead/#", 0))
	sub.want(suback(5, 1, 0))
	start := time.Now()
	d2.nc.Close()
	sub.want(publish(5, 0, 0, "dead/dev", "w"))
	if e := time.Since(start); e < 900*time.Millisecond {
		t.Errorf("will after %v", e)
	}
	if got := b.payloads(); !slices.Equal(got, []string{"w"}) {
		t.Errorf("durable %q", got)
	}
	// A session that begins anew ends the old one, and with it the delay.
	d, _ = w.login(5, opts{id: "dev", persistent: true, clean: true, will: &will{topic: "dead/dev", payload: "late", delay: 3600}})
	d.nc.Close()
	w.login(5, opts{id: "dev", persistent: true, clean: true})
	sub.want(publish(5, 0, 0, "dead/dev", "late"))
}

// TestWillSurvivesARestart: the device and the node die together.
func TestWillSurvivesARestart(t *testing.T) {
	b := newBackend()
	w := newWorld(t, b, nil)
	w.login(5, opts{id: "dev", keepAlive: 1, will: &will{topic: "dead/dev", payload: "w"}})
	w.login(5, opts{id: "back", keepAlive: 1, will: &will{topic: "dead/back", payload: "x"}})
	w.stop()
	b = b.restart()
	if got := b.payloads(); len(got) != 0 {
		t.Fatalf("durable %q", got)
	}
	w = newWorld(t, b, func(c *mqtt.Config) { c.Limits.LoginTimeout = 1500 * time.Millisecond })
	sub, _ := w.login(5, opts{id: "sub"})
	sub.send(subscribe(5, 1, "dead/#", 0))
	sub.want(suback(5, 1, 0))
	w.login(5, opts{id: "back"})
	sub.want(publish(5, 0, 0, "dead/dev", "w"))
	if got := b.payloads(); !slices.Equal(got, []string{"w"}) {
		t.Errorf("durable %q", got)
	}
	if _, ok := b.Get(mqtt.KindSession, "dev"); ok {
		t.Error("record of the will is still there")
	}
}

func TestSessionEndsAfterItsExpiry(t *testing.T) {
	now := time.Now()
	b := newBackend()
	w := newWorld(t, b, nil)
	d, _ := w.login(5, opts{id: "dev", persistent: true, expiry: 100})
	d.send([]byte{0xE0, 0})
	d.closed()
	w.stop()
	for _, c := range []struct {
		after   time.Duration
		present bool
	}{{99 * time.Second, true}, {300 * time.Second, false}} {
		b = b.restart()
		w = newWorld(t, b, func(cfg *mqtt.Config) { cfg.Now = func() time.Time { return now.Add(c.after) } })
		d, present := w.login(5, opts{id: "dev", persistent: true, expiry: 100})
		if present != c.present {
			t.Errorf("after %v present %v", c.after, present)
		}
		d.send([]byte{0xE0, 0})
		d.closed()
		w.stop()
		now = now.Add(c.after)
	}
}

// TestBootIn1970EndsNoSession: a node without a battery has to learn the time first.
func TestBootIn1970EndsNoSession(t *testing.T) {
	b := newBackend()
	w := newWorld(t, b, nil)
	d, _ := w.login(5, opts{id: "dev", persistent: true, expiry: 100})
	d.send([]byte{0xE0, 0})
	d.closed()
	w.stop()
	b = b.restart()
	since1970 := time.Since(time.Unix(0, 0))
	w = newWorld(t, b, func(c *mqtt.Config) { c.Now = func() time.Time { return time.Now().Add(-since1970) } })
	w.s.Sweep()
	d, present := w.login(5, opts{id: "dev", persistent: true, expiry: 100})
	if !present {
		t.Error("session ended by a clock in 1970")
	}
	d.send([]byte{0xE0, 0}) // and what is written now says 1970
	d.closed()
	w.stop()
	b = b.restart()
	w = newWorld(t, b, nil)
	w.s.Sweep()
	if _, present = w.login(5, opts{id: "dev", persistent: true, expiry: 100}); !present {
		t.Error("session ended by a record of 1970")
	}
}

func TestDisconnectMayShortenTheSession(t *testing.T) {
	b := newBackend()
	w := newWorld(t, b, nil)
	d, _ := w.login(5, opts{id: "dev", persistent: true})
	d.send(publish(5, 1, 1, "t", "a"))
	d.want(puback(1))
	d.send(frame(0xE0, []byte{0}, props(5, append([]byte{0x11}, u32(0)...))))
	d.closed()
	if _, present := w.login(5, opts{id: "dev", persistent: true}); present {
		t.Error("session still there")
	}
	if w, ok := b.Get(mqtt.KindWindow, "dev"); ok && !bytes.Equal(w, []byte{1, 0, 0}) {
		t.Errorf("window still there: %x", w)
	}
}

// A node that boots years ahead has no right to end a session before somebody vouches for its
// clock; the clock is set back later, and the sessions have the age that they have.
func TestBootYearsAheadEndsNoSession(t *testing.T) {
	const expiry, ahead = 3600, 10 * 365 * 24 * time.Hour
	leave := func(w *world, id string, present bool) {
		t.Helper()
		d, was := w.login(5, opts{id: id, persistent: true, expiry: expiry})
		if was != present {
			t.Errorf("%s: present %v", id, was)
		}
		d.send([]byte{0xE0, 0})
		d.closed()
	}
	var step atomic.Int64 // of the clock
	var trusted atomic.Bool
	clock := func(c *mqtt.Config) {
		c.Now = func() time.Time { return time.Now().Add(time.Duration(step.Load())) }
		c.ClockTrusted = trusted.Load
	}
	b := newBackend()
	trusted.Store(true)
	w := newWorld(t, b, clock)
	leave(w, "early", false)
	step.Store(int64(expiry * time.Second / 2))
	leave(w, "late", false)
	w.stop()

	b = b.restart()
	trusted.Store(false)
	step.Store(int64(ahead))
	w = newWorld(t, b, clock)
	w.s.Sweep()
	if n := w.s.Stats().Sessions; n != 2 {
		t.Fatalf("%d sessions at a boot years ahead", n)
	}
	step.Store(-int64(ahead / 3))
	leave(w, "wrong", false) // what is written of it does not say a time
	step.Store(int64(ahead))
	w.stop()

	b = b.restart()
	w = newWorld(t, b, clock)
	w.s.Sweep()
	trusted.Store(true)
	step.Store(int64(expiry * time.Second)) // 61 minutes after one has left, 31 after the other
	step.Add(int64(time.Minute))
	w.s.Sweep()
	if n := w.s.Stats().Sessions; n != 2 {
		t.Errorf("%d sessions of a trusted clock", n)
	}
	leave(w, "early", false)
	leave(w, "late", true)
	leave(w, "wrong", true)
	w.stop()

	// Without trust they end as well, counted from the start.
	b = b.restart()
	trusted.Store(false)
	w = newWorld(t, b, clock)
	step.Add(int64(expiry * time.Second))
	w.s.Sweep()
	if n := w.s.Stats().Sessions; n != 0 {
		t.Errorf("%d sessions for ever", n)
	}
}
