package mqtt_test

import (
	"fmt"
	"runtime"
	"testing"
	"time"

	"tailrace/edge/mqtt"
	"tailrace/edge/mqtt/packet"
)

// parked waits until n connections have no goroutine.
func (w *world) parked(n int) {
	w.t.Helper()
	until(w.t, fmt.Sprint(n, " connections are parked"), func() bool { return w.s.Parked() == n })
}

// silentBetweenLooks waits until n are parked that have published: until nothing came between two looks.
func (w *world) silentBetweenLooks(n int) {
	w.t.Helper()
	until(w.t, fmt.Sprint(n, " connections are parked after looks"), func() bool {
		w.s.LookAround(time.Now())
		return w.s.Parked() >= n
	})
}

// TestParked: a connection that waits without a goroutine is as good as one with: it
// publishes, is delivered to, is taken over, misses its keep-alive, is cut, shut down.
func TestParked(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("connections are parked on Linux only")
	}
	b := newBackend()
	w := newWorld(t, b, nil)
	a, _ := w.login(5, opts{id: "a", keepAlive: 60})
	w.parked(1)
	for i := range uint16(3) { // bytes wake it, and it parks again
		a.send(subscribe(5, i+1, "t/#", 1))
		a.want(suback(5, i+1, 1))
		w.parked(1)
		a.send([]byte{0xC0, 0})
		a.want([]byte{0xD0, 0})
		w.parked(1)
	}
	p, _ := w.login(4, opts{id: "p"})
	w.parked(2)
	p.send(publish(4, 1, 1, "t/x", "one")) // who has published waits with a goroutine
	p.want(puback(1))
	a.want(publish(5, 1, 1, "t/x", "one"))
	a.send(puback(1))
	w.silentBetweenLooks(2)
	p.send(publish(4, 1, 2, "t/x", "two"))
	p.want(puback(2))
	a.want(publish(5, 1, 2, "t/x", "two"))
	a.send(puback(2))
	w.silentBetweenLooks(2)

	again, _ := w.login(5, opts{id: "a", keepAlive: 60}) // a takeover
	a.disconnected(packet.SessionTakenOver)
	w.parked(2)
	w.s.LookAround(time.Now().Add(89 * time.Second))
	w.parked(2)
	w.s.LookAround(time.Now().Add(110 * time.Second)) // 1.75 keep-alives are 105 s
	again.disconnected(packet.KeepAliveTimeout)
	w.parked(1)
	p.nc.Close() // a cut
	w.parked(0)

	short, _ := w.login(5, opts{id: "short", keepAlive: 20}) // looked at too seldom for that
	short.send([]byte{0xC0, 0})
	short.want([]byte{0xD0, 0})
	last, _ := w.login(5, opts{id: "last"})
	w.parked(1)
	if err := w.s.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	last.disconnected(packet.ServerShuttingDown)
}

// TestParkedPeerThatDoesNotRead: the end of its connection, found by a write, is found
// although nothing waits for its bytes.
func TestParkedPeerThatDoesNotRead(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("connections are parked on Linux only")
	}
	w := newWorld(t, newBackend(), func(c *mqtt.Config) { c.Limits.WriteTimeout = 200 * time.Millisecond })
	deaf, _ := w.login(5, opts{id: "deaf"})
	deaf.send(subscribe(5, 1, "t", 0))
	deaf.want(suback(5, 1, 0))
	w.parked(1)
	p, _ := w.login(5, opts{id: "p"})
	big := string(make([]byte, 60_000))
	for id := uint16(1); w.s.Stats().Connections > 1; id++ {
		p.send(publish(5, 1, id, "t", big))
		p.want(puback(id))
	}
}
