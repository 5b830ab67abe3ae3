package link

import (
	"log/slog"
	"net"
	"testing"
)

// One address that is known to receive takes an eighth of its places for handshakes whose first message is not all
// there, and leaves those of the others free.
func TestUnheardHandshakesOfOneAddressAreBounded(t *testing.T) {
	d := newDoor(512, 64, slog.New(slog.DiscardHandler))
	from := func(host byte) net.Addr { return &net.UDPAddr{IP: net.IPv4(10, 0, 0, host), Port: 7000} }
	var held []*attempt
	for range 100 {
		if a, err := d.begin(from(1), true); err == nil {
			held = append(held, a)
		}
	}
	if len(held) != 8 || d.all.unheard != 8 {
		t.Fatalf("%d taken, %+v wait", len(held), d.all)
	}
	for host := range byte(50) {
		a, err := d.begin(from(2+host), true)
		if err != nil {
			t.Fatalf("another address: %v", err)
		}
		a.end(nil)
	}
	for _, a := range held { // the rest came
		a.look()
	}
	for range 100 {
		if a, err := d.begin(from(1), true); err == nil {
			a.look()
			held = append(held, a)
		}
	}
	if len(held) != 64 {
		t.Errorf("%d taken of one address, heard", len(held))
	}
	for _, a := range held {
		a.end(nil)
		a.end(nil) // a second time does nothing
	}
	if d.all != (places{}) || d.unproven != (places{}) || len(d.of) != 0 {
		t.Errorf("all are over: %+v, %+v, %d addresses", d.all, d.unproven, len(d.of))
	}
}
