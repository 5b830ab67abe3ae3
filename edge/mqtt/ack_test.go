package mqtt_test

import (
	"fmt"
	"slices"
	"testing"

	"tailrace/edge/mqtt"
	"tailrace/edge/mqtt/packet"
)

var versions = []byte{3, 4, 5}

func eachVersion(t *testing.T, f func(t *testing.T, v byte)) {
	for _, v := range versions {
		t.Run(fmt.Sprintf("v=%d", v), func(t *testing.T) { f(t, v) })
	}
}

// TestAckWaitsForDone holds the disk back: nothing may be acknowledged.
func TestAckWaitsForDone(t *testing.T) {
	eachVersion(t, func(t *testing.T, v byte) {
		b := newBackend()
		w := newWorld(t, b, nil)
		d, _ := w.login(v, opts{id: "a", persistent: true})
		b.hold(true)
		d.send(publish(v, 1, 1, "t", "one"), publish(v, 2, 2, "t", "two"), publish(v, 0, 0, "t", "zero"))
		b.waiting(1)
		d.silent()
		if got := b.payloads(); len(got) != 0 {
			t.Fatalf("durable: %q", got)
		}
		b.hold(false)
		d.want(puback(1), pubrec(2))
		b.hold(true)
		d.send(pubrel(2))
		d.silent()
		b.hold(false)
		d.want(pubcomp(2))
		if got := b.payloads(); !slices.Equal(got, []string{"one", "two", "zero"}) {
			t.Fatalf("durable: %q", got)
		}
	})
}

// TestManyInFlightAcksInOrder has several bursts at the disk at once.
func TestManyInFlightAcksInOrder(t *testing.T) {
	eachVersion(t, func(t *testing.T, v byte) {
		b := newBackend()
		w := newWorld(t, b, nil)
		d, _ := w.login(v, opts{id: "a"})
		b.hold(true)
		var want [][]byte
		var payloads []string
		for i := uint16(1); i <= 40; i++ {
			payloads = append(payloads, fmt.Sprint(i))
			d.send(publish(v, 1+byte(i%2), i, "t", fmt.Sprint(i)))
			if i%2 == 0 {
				want = append(want, puback(i))
			} else {
				want = append(want, pubrec(i))
			}
			if i%10 == 0 && i < 40 {
				b.waiting(int(i / 10)) // so that they really are separate bursts
			}
		}
		b.hold(false)
		d.want(want...)
		if got := b.payloads(); !slices.Equal(got, payloads) {
			t.Fatalf("durable: %q", got)
		}
	})
}

// TestAcksKeepTheirOrderWhenCommitsDoNot: a backend with several logs finishes bursts
// in any order.
func TestAcksKeepTheirOrderWhenCommitsDoNot(t *testing.T) {
	b := newBackend()
	w := newWorld(t, b, nil)
	d, _ := w.login(4, opts{id: "a"})
	b.hold(true)
	b.mu.Lock()
	b.last = true
	b.mu.Unlock()
	for i := uint16(1); i <= 3; i++ {
		d.send(publish(4, 1, i, "t", fmt.Sprint(i)))
		b.waiting(int(i))
	}
	b.pass(2) // 3 and 2 are durable, 1 is not
	d.silent()
	b.hold(false)
	d.want(puback(1), puback(2), puback(3))
	if got := b.payloads(); !slices.Equal(got, []string{"3", "2", "1"}) {
		t.Fatalf("durable: %q", got)
	}
}

func TestRefusedPublish(t *testing.T) {
	b := newBackend()
	b.add = func(p *mqtt.Publish) error {
		if string(p.Payload) == "bad" {
			return &mqtt.ReasonError{Code: packet.QuotaExceeded, Reason: "full"}
		}
		return nil
	}
	w := newWorld(t, b, func(c *mqtt.Config) { c.Limits.RefusedHold = 1 })
	d, _ := w.login(5, opts{id: "a"})
	d.send(publish(5, 1, 1, "t", "good"), publish(5, 1, 2, "t", "bad"), publish(5, 2, 3, "t", "bad"), publish(5, 1, 4, "t", "good"), publish(5, 1, 5, "$SYS/x", "good"))
	d.want(puback(1), []byte{0x40, 3, 0, 2, 0x97}, []byte{0x50, 3, 0, 3, 0x97}, puback(4), []byte{0x40, 3, 0, 5, 0x87})
	// 3.1.1 cannot refuse: what went before is acknowledged, then the end, nothing behind it is stored.
	d, _ = w.login(4, opts{id: "b"})
	d.send(publish(4, 1, 1, "t", "x1"), publish(4, 1, 2, "t", "bad"), publish(4, 1, 3, "t", "x2"))
	if got := d.closed(); len(got) != 1 || got[0][3] != 1 {
		t.Fatalf("got %x", got)
	}
	if got := b.payloads(); !slices.Equal(got, []string{"good", "good", "x1"}) {
		t.Fatalf("durable: %q", got)
	}
}

func TestFailedCommitIsNeverAcknowledged(t *testing.T) {
	eachVersion(t, func(t *testing.T, v byte) {
		b := newBackend()
		w := newWorld(t, b, func(c *mqtt.Config) { c.Limits.RefusedHold = 1 })
		d, _ := w.login(v, opts{id: "a"})
		b.failWith(&mqtt.ReasonError{Code: packet.QuotaExceeded, Reason: "disk full"})
		d.send(publish(v, 1, 1, "t", "x"), publish(v, 1, 2, "t", "y"))
		if v == 5 {
			d.want([]byte{0x40, 3, 0, 1, 0x97}, []byte{0x40, 3, 0, 2, 0x97})
			b.failWith(nil)
			d.send(publish(v, 1, 1, "t", "z"))
			d.want(puback(1))
		} else {
			d.disconnected(0)
		}
	})
}

func TestFailedCommitOfQoS2ClosesTheConnection(t *testing.T) {
	b := newBackend()
	w := newWorld(t, b, nil)
	d, _ := w.login(5, opts{id: "a"})
	b.failWith(fmt.Errorf("disk gone"))
	d.send(publish(5, 2, 1, "t", "x"))
	d.disconnected(packet.ImplementationError)
}
