package mqtt_test

import (
	"net"
	"testing"
	"time"

	"tailrace/edge/mqtt"
)

// connections waits until n are open.
func (w *world) connections(n int) {
	w.t.Helper()
	for end := time.Now().Add(30 * time.Second); w.s.Stats().Connections != n; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			w.t.Fatalf("%d connections, want %d", w.s.Stats().Connections, n)
		}
	}
}

// The end of sockets that never said anything waits for its turn; nobody who has logged in waits
// for them, and all end.
func TestSilentSocketsEndInTurn(t *testing.T) {
	w := newWorld(t, newBackend(), func(c *mqtt.Config) { c.Limits.LoginTimeout = time.Minute })
	good, _ := w.login(4, opts{id: "good"})
	release := w.s.HoldTurns()
	var silent []*device
	for range 20 {
		silent = append(silent, w.dial(4))
	}
	w.connections(21)
	for _, d := range silent {
		d.nc.(*net.TCPConn).SetLinger(0)
		d.nc.Close()
	}
	for i := range uint16(20) {
		good.send(publish(4, 1, i+1, "t", "x"))
		good.want(puback(i + 1))
		other, _ := w.login(4, opts{id: "other"})
		other.nc.Close()
		w.connections(21)
	}
	release()
	w.connections(1)
}
