package mqtt_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"tailrace/edge/mqtt"
	"tailrace/edge/mqtt/packet"
)

func inLog(b *memBackend, queued int) func(*mqtt.Config) {
	return func(c *mqtt.Config) { c.Log, c.Limits.Queued, c.Limits.OutboundInFlight = b, queued, 4 }
}

// subscriber logs in, subscribes if asked to, and leaves.
func (w *world) enrol(id, filter string, qos byte) {
	w.t.Helper()
	sub, _ := w.login(4, opts{id: id, persistent: true})
	sub.send(subscribe(4, 1, filter, qos))
	sub.want(suback(4, 1, qos))
	sub.send([]byte{0xE0, 0})
	sub.closed()
}

func (w *world) publishAll(qos byte, from, to int) {
	w.t.Helper()
	d, _ := w.login(4, opts{id: "dev"})
	for i := from; i < to; i++ {
		d.send(publish(4, qos, uint16(i+1), "t", fmt.Sprint(i)))
		if qos == 2 {
			d.want(pubrec(uint16(i + 1)))
			d.send(pubrel(uint16(i + 1)))
			d.want(pubcomp(uint16(i + 1)))
		} else {
			d.want(puback(uint16(i + 1)))
		}
	}
	d.send([]byte{0xE0, 0})
	d.closed() // its deliveries are done then
}

// takes reads QoS 1 deliveries of what publishAll has published, and acknowledges them.
func (d *device) takes(from, to int) {
	d.t.Helper()
	for i := from; i < to; i++ {
		p, id, _, _ := parsed(d.next())
		if p != fmt.Sprint(i) {
			d.t.Fatalf("delivery %d is %q", i, p)
		}
		d.send(puback(id))
	}
}

// parsed is the payload and packet id of a delivery to topic "t".
func parsed(p []byte) (payload string, id uint16, qos byte, dup bool) {
	qos, dup = p[0]>>1&3, p[0]&8 != 0
	if qos == 0 {
		return string(p[5:]), 0, 0, false
	}
	return string(p[7:]), uint16(p[5])<<8 | uint16(p[6]), qos, dup
}

// kill takes the world down as kill -9 does and starts another on what was durable.
func (w *world) kill(edit func(*memBackend) func(*mqtt.Config)) *world {
	w.t.Helper()
	b := w.b.restart() // from here on nothing of the old server becomes durable
	w.stop()
	return newWorld(w.t, b, edit(b))
}

// More than a queue holds waits for a session that is away, over kill -9 and over a
// clean restart, and comes in the order of the log.
func TestWhatWaitsForASessionSurvivesTheServer(t *testing.T) {
	for _, killed := range []bool{true, false} {
		for _, checkpoints := range []int{0, 3} {
			t.Run(fmt.Sprintf("killed=%v/checkpoints=%d", killed, checkpoints), func(t *testing.T) {
				b := newBackend()
				w := newWorld(t, b, inLog(b, 5))
				w.enrol("sub", "t", 1)
				w.publishAll(1, 0, 40)
				for range checkpoints {
					w.s.Checkpoint()
				}
				if !killed {
					w.stop()
				}
				w = w.kill(func(b *memBackend) func(*mqtt.Config) { return inLog(b, 5) })
				w.publishAll(1, 40, 60)
				sub, present := w.login(4, opts{id: "sub", persistent: true})
				if !present {
					t.Fatal("session is gone")
				}
				sub.takes(0, 60)
				sub.silent()
				w.publishAll(1, 60, 70) // live again
				sub.takes(60, 70)
				sub.silent()
			})
		}
	}
}

// A slow subscriber that is connected falls back to the log, loses nothing and is not
// sent anything twice.
func TestSlowSubscriberReadsTheLog(t *testing.T) {
	b := newBackend()
	w := newWorld(t, b, inLog(b, 5))
	sub, _ := w.login(4, opts{id: "sub", persistent: true})
	sub.send(subscribe(4, 1, "t", 1))
	sub.want(suback(4, 1, 1))
	w.publishAll(1, 0, 100)
	sub.takes(0, 100)
	sub.silent()
	if n := w.s.Stats().Dropped; n != 0 {
		t.Errorf("%d dropped", n)
	}
}

// What was acknowledged before a checkpoint is not sent again, what was published
// before a subscription is not sent at all.
func TestCursorStandsWhereTheSessionStood(t *testing.T) {
	b := newBackend()
	w := newWorld(t, b, inLog(b, 5))
	w.publishAll(1, 0, 10)
	sub, _ := w.login(4, opts{id: "sub", persistent: true})
	sub.send(subscribe(4, 1, "t", 1))
	sub.want(suback(4, 1, 1))
	w.publishAll(1, 10, 30)
	sub.takes(10, 25)         // five stay unacknowledged
	sub.send([]byte{0xC0, 0}) // in order behind the acknowledgements
	for sub.next()[0] != 0xD0 {
	}
	w.s.Checkpoint()
	w.s.Checkpoint()
	w = w.kill(func(b *memBackend) func(*mqtt.Config) { return inLog(b, 5) })
	sub, _ = w.login(4, opts{id: "sub", persistent: true})
	sub.takes(25, 30)
	sub.silent()
}

// QoS 2 stays exactly once through random kills at any point of the exchange: the client
// below keeps the packet ids that it has received, as a client must.
func TestQoS2DeliveryIsExactlyOnceOverKills(t *testing.T) {
	rounds := 8
	if testing.Short() {
		rounds = 2
	}
	for seed := range uint64(rounds) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 1))
			b := newBackend()
			w := newWorld(t, b, inLog(b, 4))
			w.enrol("sub", "t", 2)
			got := map[string]int{}
			open := map[uint16]bool{} // received, not released
			published, total := 0, 30
			for life := 0; ; life++ {
				n := min(total-published, rnd.IntN(12))
				w.publishAll(2, published, published+n)
				published += n
				sub, present := w.login(4, opts{id: "sub", persistent: true})
				if !present {
					t.Fatal("session is gone")
				}
				last := published == total && life > 4
				for steps := rnd.IntN(25); last && (len(got) < total || len(open) > 0) || !last && steps > 0; steps-- {
					p, err := sub.tryNext(map[bool]time.Duration{true: 30 * time.Second, false: 30 * time.Millisecond}[last])
					if err != nil {
						break
					}
					switch packet.Type(p[0] >> 4) {
					case packet.PUBLISH:
						payload, id, qos, _ := parsed(p)
						if qos != 2 {
							t.Fatalf("qos %d", qos)
						}
						if !open[id] {
							open[id] = true
							got[payload]++
						}
						if last || steps > 4 { // else the connection dies with it
							sub.send(pubrec(id))
						}
					case packet.PUBREL:
						id := uint16(p[2])<<8 | uint16(p[3])
						delete(open, id)
						sub.send(pubcomp(id))
					}
					if rnd.IntN(10) == 0 {
						w.s.Checkpoint()
					}
				}
				if last {
					sub.send([]byte{0xC0, 0}) // a PUBREL may come again, a message may not
					for p := sub.next(); p[0] != 0xD0; p = sub.next() {
						if packet.Type(p[0]>>4) == packet.PUBLISH {
							t.Fatalf("%q came after everything", p)
						}
					}
					break
				}
				w = w.kill(func(b *memBackend) func(*mqtt.Config) { return inLog(b, 4) })
			}
			for i := range total {
				if n := got[fmt.Sprint(i)]; n != 1 {
					t.Errorf("message %d was delivered %d times", i, n)
				}
			}
		})
	}
}

// Neither PUBLISH nor PUBREL of a QoS 2 delivery leaves before what it stands for is durable.
func TestQoS2DeliveryWaitsForItsRecord(t *testing.T) {
	b := newBackend()
	w := newWorld(t, b, inLog(b, 5))
	sub, _ := w.login(4, opts{id: "sub", persistent: true})
	sub.send(subscribe(4, 1, "t", 2))
	sub.want(suback(4, 1, 2))
	d, _ := w.login(4, opts{id: "dev"})
	b.hold(true)
	d.send(publish(4, 2, 1, "t", "x"))
	b.waiting(1)
	b.pass(1)
	d.want(pubrec(1)) // the message is durable, and on its way to the subscriber
	b.waiting(1)      // its packet id
	sub.silent()
	b.pass(1)
	sub.want(publish(4, 2, 1, "t", "x"))
	sub.send(pubrec(1))
	b.waiting(1) // that it was received
	sub.silent()
	b.pass(1)
	sub.want(pubrel(1))
	sub.send(pubcomp(1))
	b.hold(false)
	sub.silent()
}

// A session that begins anew gets nothing of the former one's.
func TestCleanStartForgetsTheCursor(t *testing.T) {
	b := newBackend()
	w := newWorld(t, b, inLog(b, 5))
	w.enrol("sub", "t", 1)
	w.publishAll(1, 0, 10)
	w.s.Checkpoint()
	w.s.Checkpoint()
	c, _ := w.login(4, opts{id: "sub"})
	c.send([]byte{0xE0, 0})
	c.closed()
	w.enrol("sub", "t", 1)
	w = w.kill(func(b *memBackend) func(*mqtt.Config) { return inLog(b, 5) })
	sub, _ := w.login(4, opts{id: "sub", persistent: true})
	sub.silent()
}

// A client that is behind in the log and subscribes to one filter after the other is remembered
// for those that it has.
func TestFiltersThatAreGoneAreForgotten(t *testing.T) {
	b := newBackend()
	w := newWorld(t, b, inLog(b, 5))
	sub, _ := w.login(4, opts{id: "sub", persistent: true})
	sub.send(subscribe(4, 1, "t", 1))
	sub.want(suback(4, 1, 1))
	w.publishAll(1, 0, 40)
	for range 4 { // all that may be in flight, and none is acknowledged
		sub.next()
	}
	for i := range 50 {
		sub.send(subscribe(4, 2, fmt.Sprint("other/", i), 1))
		sub.want(suback(4, 2, 1))
		if n := w.s.Begins("sub"); n != 1 {
			t.Fatalf("%d filters of their own position, want that which is subscribed", n)
		}
		sub.send(frame(0xA2, u16(3), str(fmt.Sprint("other/", i))))
		sub.want([]byte{0xB0, 2, 0, 3})
	}
	if n := w.s.Begins("sub"); n != 0 {
		t.Errorf("%d filters remembered that are not subscribed", n)
	}
}
