package mqtt_test

import (
	"fmt"
	"testing"

	"tailrace/edge/mqtt"
	"tailrace/edge/mqtt/packet"
)

// One account that invents client ids fills its own share of the sessions only, also over a
// restart; a session that ends gives its place back.
func TestAFloodOfClientIDsFillsItsOwnShareOnly(t *testing.T) {
	b := newBackend()
	edit := func(c *mqtt.Config) {
		c.Limits.Sessions, c.Limits.SessionsPerIdentity, c.Limits.MaxPerAddress, c.Limits.ConnectBurst = 100, 5, 20, 1000
	}
	w := newWorld(t, b, edit)
	try := func(id, user string, want packet.Code) {
		t.Helper()
		d := w.dial(5)
		d.send(connect(5, opts{id: id, persistent: true, user: user}))
		if p := d.next(); packet.Code(p[3]) != want {
			t.Fatalf("%s of %q: CONNACK %x, want %x", id, user, p, want)
		}
		if want == packet.Success {
			d.send([]byte{0xE0, 0})
		}
		d.closed()
	}
	for i := range 5 {
		try(fmt.Sprint("m", i), "mallory", packet.Success)
	}
	try("m5", "mallory", packet.QuotaExceeded)
	try("m4", "mallory", packet.Success) // what is there stays in use
	try("a0", "alice", packet.Success)
	for i := range 20 { // nobody's own: by address
		try(fmt.Sprint("n", i), "", packet.Success)
	}
	try("n20", "", packet.QuotaExceeded)
	try("a1", "alice", packet.Success)

	w.stop()
	w = newWorld(t, b.restart(), edit)
	try("m5", "mallory", packet.QuotaExceeded)
	c, _ := w.login(5, opts{id: "m0", user: "mallory"}) // clean, and ends with the connection
	c.send([]byte{0xE0, 0})
	c.closed()
	try("m5", "mallory", packet.Success)
	try("m6", "mallory", packet.QuotaExceeded)
}
