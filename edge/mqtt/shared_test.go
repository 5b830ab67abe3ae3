package mqtt_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"tailrace/edge/mqtt"
	"tailrace/edge/mqtt/packet"
)

// member is a subscriber that answers as the standard asks for and keeps what a client must keep
// over connections: the QoS 2 packet ids received and not released.
type member struct {
	*device
	got  map[string]int // shared by all members
	open map[uint16]bool
	all  []string
}

// step handles one packet; mute does not answer a message. False: nothing came.
func (m *member) step(wait time.Duration, mute bool) bool {
	m.t.Helper()
	p, err := m.tryNext(wait)
	if err != nil {
		return false
	}
	switch packet.Type(p[0] >> 4) {
	case packet.PUBLISH:
		payload, id, qos, _ := parsed(p)
		if !m.open[id] {
			m.open[id] = qos == 2
			m.got[payload]++
			m.all = append(m.all, payload)
		}
		switch {
		case mute:
		case qos == 1:
			m.send(puback(id))
		case qos == 2:
			m.send(pubrec(id))
		}
	case packet.PUBREL:
		id := uint16(p[2])<<8 | uint16(p[3])
		delete(m.open, id)
		m.send(pubcomp(id))
	default:
		m.t.Fatalf("got %x", p)
	}
	return true
}

// rest answers what comes until nothing has come for the time of a PINGREQ.
func (m *member) rest() {
	m.t.Helper()
	m.send([]byte{0xC0, 0})
	for {
		p := m.next()
		if p[0] == 0xD0 {
			return
		}
		m.in = append(append([]byte(nil), p...), m.in...)
		m.step(time.Second, false)
	}
}

func (w *world) member(id string, got map[string]int, open map[uint16]bool) *member {
	w.t.Helper()
	d, present := w.login(4, opts{id: id, persistent: true})
	if !present {
		w.t.Fatal("session is gone")
	}
	return &member{device: d, got: got, open: open}
}

// More than memory holds waits for a shared subscription while all its members are away, over
// kill -9 and a clean restart, and is divided among those who come back.
func TestSharedSubscriptionWaitsInTheLog(t *testing.T) {
	for _, killed := range []bool{true, false} {
		t.Run(fmt.Sprintf("killed=%v", killed), func(t *testing.T) {
			b := newBackend()
			w := newWorld(t, b, inLog(b, 5))
			w.enrol("a", "$share/g/t", 1)
			w.enrol("b", "$share/g/t", 1)
			w.publishAll(1, 0, 60)
			w.s.Checkpoint()
			w.s.Checkpoint()
			if !killed {
				w.stop()
			}
			w = w.kill(func(b *memBackend) func(*mqtt.Config) { return inLog(b, 5) })
			w.publishAll(1, 60, 80)
			got := map[string]int{}
			x := w.member("a", got, map[uint16]bool{})
			for len(got) < 30 {
				if !x.step(30*time.Second, false) {
					t.Fatalf("%d came", len(got))
				}
			}
			y := w.member("b", got, map[uint16]bool{})
			for end := time.Now().Add(30 * time.Second); len(got) < 80 && time.Now().Before(end); {
				x.step(time.Millisecond, false)
				y.step(time.Millisecond, false)
			}
			x.rest()
			y.rest()
			for i := range 80 {
				if n := got[fmt.Sprint(i)]; n != 1 {
					t.Errorf("message %d came %d times", i, n)
				}
			}
			if n := w.s.Stats().Dropped; n != 0 {
				t.Errorf("%d dropped", n)
			}
		})
	}
}

// What a member was handed goes to another one when its session ends before it acknowledged:
// QoS 1 does, what was sent at QoS 2 does not (MQTT 5.0, 4.8.2-5).
func TestWhatAMemberLeavesBehindGoesToAnother(t *testing.T) {
	for qos := byte(1); qos <= 2; qos++ {
		t.Run(fmt.Sprint("qos", qos), func(t *testing.T) {
			b := newBackend()
			w := newWorld(t, b, inLog(b, 5))
			x, _ := w.login(4, opts{id: "x"}) // its session ends with its connection
			x.send(subscribe(4, 1, "$share/g/t", qos))
			x.want(suback(4, 1, qos))
			w.publishAll(qos, 0, 10) // four fit the window
			for i := range 4 {
				if p, _, _, _ := parsed(x.next()); p != fmt.Sprint(i) {
					t.Fatalf("x got %q, want %d", p, i)
				}
			}
			w.enrol("y", "$share/g/t", qos)
			got := map[string]int{}
			y := w.member("y", got, map[uint16]bool{})
			want := 6
			for range 2 {
				for end := time.Now().Add(30 * time.Second); len(got) < want && time.Now().Before(end); {
					y.step(time.Second, false)
				}
				y.rest()
				if len(got) != want {
					t.Fatalf("y got %q, want %d", y.all, want)
				}
				x.nc.Close()
				for end := time.Now().Add(30 * time.Second); w.s.Stats().Sessions > 1 && time.Now().Before(end); {
					y.rest()
				}
				if qos == 1 {
					want = 10
				}
			}
			for p, n := range got {
				if n != 1 {
					t.Errorf("%s came %d times", p, n)
				}
			}
		})
	}
}

// Random kills: no message of a shared subscription is lost; at QoS 2 none comes twice, to
// whomever.
func TestSharedSubscriptionsOverKills(t *testing.T) {
	rounds := 6
	if testing.Short() {
		rounds = 1
	}
	for seed := range uint64(rounds) {
		for qos := byte(1); qos <= 2; qos++ {
			t.Run(fmt.Sprintf("qos%d/%d", qos, seed), func(t *testing.T) { sharedOverKills(t, seed, qos) })
		}
	}
}

func sharedOverKills(t *testing.T, seed uint64, qos byte) {
	rnd := rand.New(rand.NewPCG(seed, uint64(qos)))
	b := newBackend()
	w := newWorld(t, b, inLog(b, 4))
	names := []string{"a", "b", "c"}
	got, open := map[string]int{}, map[string]map[uint16]bool{}
	for _, m := range names {
		w.enrol(m, "$share/g/t", qos)
		open[m] = map[uint16]bool{}
	}
	const total = 40
	published := 0
	for life := 0; ; life++ {
		n := min(total-published, rnd.IntN(15))
		w.publishAll(qos, published, published+n)
		published += n
		last := published == total && life > 4
		var there []*member
		for _, m := range names {
			if last || rnd.IntN(3) > 0 {
				there = append(there, w.member(m, got, open[m]))
			}
		}
		if last {
			done := func() bool {
				for _, m := range names {
					if len(open[m]) > 0 && qos == 2 {
						return false
					}
				}
				return len(got) == total
			}
			for end := time.Now().Add(30 * time.Second); !done() && time.Now().Before(end); {
				for _, m := range there {
					m.step(time.Millisecond, false)
				}
			}
			for _, m := range there {
				m.rest()
			}
			break
		}
		for range rnd.IntN(30) {
			for _, m := range there {
				m.step(3*time.Millisecond, rnd.IntN(4) == 0)
			}
			if rnd.IntN(2) == 0 {
				w.s.Checkpoint()
			}
		}
		w = w.kill(func(b *memBackend) func(*mqtt.Config) { return inLog(b, 4) })
	}
	for i := range total {
		if n := got[fmt.Sprint(i)]; n == 0 || qos == 2 && n != 1 {
			t.Errorf("message %d was delivered %d times", i, n)
		}
	}
}
