package mqtt_test

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"tailrace/edge/mqtt"
	"tailrace/edge/mqtt/packet"
)

// Sockets that say nothing, from one address, must not keep another address out.
func TestSilentSocketsMakeRoomForOtherAddresses(t *testing.T) {
	w := newWorld(t, newBackend(), func(c *mqtt.Config) { c.Limits.MaxLogins = 4; c.Limits.LoginTimeout = time.Minute })
	var silent []net.Conn
	for range 4 {
		nc, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}).Dial("tcp", w.addr)
		if err != nil {
			t.Skip("no second loopback address: ", err)
		}
		defer nc.Close()
		silent = append(silent, nc)
	}
	for i := range 3 {
		w.login(4, opts{id: fmt.Sprint("good", i)})
	}
	// The oldest of them has gone, the others still have their time: one place was enough.
	silent[0].SetReadDeadline(time.Now().Add(30 * time.Second))
	if _, err := silent[0].Read(make([]byte, 1)); err == nil || errors.Is(err, net.ErrClosed) {
		t.Errorf("the oldest silent socket: %v", err)
	}
	if n := w.s.Stats().LoginsDropped; n != 1 {
		t.Errorf("%d made room, want 1", n)
	}
}

func TestConnectionsOfAnAddressAreRated(t *testing.T) {
	w := newWorld(t, newBackend(), func(c *mqtt.Config) { c.Limits.ConnectRate, c.Limits.ConnectBurst = 1, 3 })
	for i := range 3 {
		w.login(4, opts{id: fmt.Sprint("c", i)})
	}
	w.dial(4).closed()
	if n := w.s.Stats().ConnectionsRefused; n != 1 {
		t.Errorf("%d refused", n)
	}
}

// A client above its rate is slowed down, in simulated time, and loses nothing.
func TestAClientAboveItsRateIsSlowedDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBackend()
		s, l := servePipes(t, mqtt.Config{Backend: b, State: b, Limits: mqtt.Limits{PublishRate: 10}})
		d := l.dial(t, 4)
		d.send(connect(4, opts{id: "a"}))
		d.next()
		start := time.Now()
		for id := uint16(1); id <= 50; id++ {
			d.send(publish(4, 1, id, "t", "x"))
			d.want(puback(id))
		}
		if e := time.Since(start); e < 3500*time.Millisecond || e > 6*time.Second {
			t.Errorf("50 publishes at 10 a second took %v", e)
		}
		if s.Stats().Throttled == 0 || len(b.payloads()) != 50 {
			t.Errorf("throttled %d times, %d stored", s.Stats().Throttled, len(b.payloads()))
		}
		d.nc.Close()
		s.Shutdown(t.Context())
		b.close()
	})
}

func TestReviewClosesAndUnsubscribes(t *testing.T) {
	b := newBackend()
	w := newWorld(t, b, nil)
	stays, _ := w.login(5, opts{id: "stays", persistent: true})
	goes, _ := w.login(5, opts{id: "goes"})
	stays.send(subscribe(5, 1, "secret/#", 1), subscribe(5, 2, "open/#", 1), subscribe(5, 3, "$share/g/secret/x", 1))
	for range 3 {
		stays.next()
	}
	closed, ended := w.s.Review(func(c *mqtt.Client) error {
		if c.ID == "goes" {
			return errors.New("revoked")
		}
		return nil
	}, func(c *mqtt.Client, filter string) error {
		if filter[:4] != "open" {
			return errors.New("no")
		}
		return nil
	})
	if closed != 1 || ended != 2 {
		t.Fatalf("%d closed, %d ended", closed, ended)
	}
	goes.disconnected(packet.NotAuthorized)
	p, _ := w.login(5, opts{id: "p"})
	p.send(publish(5, 1, 1, "secret/x", "s"), publish(5, 1, 2, "open/x", "o"))
	p.want(puback(1), puback(2))
	if got := stays.next(); !bytes.HasSuffix(got, []byte("o")) {
		t.Errorf("delivered %q", got)
	}
	// And so after a restart.
	w.stop()
	b = b.restart()
	w = newWorld(t, b, nil)
	if n := w.s.Stats().Subscriptions; n != 1 {
		t.Errorf("%d subscriptions after a restart", n)
	}
}

// One peer takes nothing and one is held at the disk's door: the acks of a third come at once.
func TestOneStuckPeerDelaysNoAck(t *testing.T) {
	b := newBackend()
	w := newWorld(t, b, nil)
	deaf, _ := w.login(4, opts{id: "deaf"})
	deaf.nc.(*net.TCPConn).SetReadBuffer(4096)
	deaf.send(subscribe(4, 1, "t", 1))
	deaf.want(suback(4, 1, 1))
	half := w.dial(4) // in the middle of a packet for ever
	half.send(connect(4, opts{id: "half"}))
	half.next()
	half.send(publish(4, 1, 1, "t", string(make([]byte, 100_000)))[:50_000])
	good, _ := w.login(4, opts{id: "good"})
	big := string(make([]byte, 10_000))
	for id := uint16(1); id <= 500; id++ {
		good.send(publish(4, 1, id, "t", big))
		good.want(puback(id))
	}
}
