package mqtt_test

import (
	"bytes"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"tailrace/edge/mqtt"
	"tailrace/edge/mqtt/packet"
)

func TestDeliveryOnlyAfterDurable(t *testing.T) {
	eachVersion(t, func(t *testing.T, v byte) {
		b := newBackend()
		w := newWorld(t, b, nil)
		sub, _ := w.login(v, opts{id: "sub"})
		sub.send(subscribe(v, 1, "a/+", 1))
		sub.want(suback(v, 1, 1))
		d, _ := w.login(v, opts{id: "dev"})
		b.hold(true)
		d.send(publish(v, 1, 1, "a/b", "x"), publish(v, 2, 2, "a/b", "y"), publish(v, 0, 0, "a/b", "z"), publish(v, 1, 3, "other", "n"))
		b.waiting(1)
		sub.silent()
		b.hold(false)
		sub.want(publish(v, 1, 1, "a/b", "x"), publish(v, 1, 2, "a/b", "y"), publish(v, 0, 0, "a/b", "z"))
		sub.send(puback(1), puback(2))
		sub.silent()
		sub.send(frame(0xA2, u16(9), props(v), str("a/+"), str("never")))
		if v == 5 {
			sub.want(frame(0xB0, u16(9), []byte{0, 0, 0x11}))
		} else {
			sub.want(frame(0xB0, u16(9)))
		}
		d.send(publish(v, 1, 4, "a/b", "gone"))
		d.want(puback(1), pubrec(2), puback(3), puback(4))
		sub.silent()
	})
}

func TestQoS2Delivery(t *testing.T) {
	b := newBackend()
	w := newWorld(t, b, nil)
	sub, _ := w.login(5, opts{id: "sub", persistent: true})
	sub.send(subscribe(5, 1, "t", 2))
	sub.want(suback(5, 1, 2))
	d, _ := w.login(5, opts{id: "dev"})
	d.send(publish(5, 2, 1, "t", "x"), publish(5, 2, 2, "t", "y"))
	sub.want(publish(5, 2, 1, "t", "x"), publish(5, 2, 2, "t", "y"))
	sub.send(pubrec(1))
	sub.want(pubrel(1))
	sub.nc.Close()
	sub, _ = w.login(5, opts{id: "sub", persistent: true})
	sub.want(pubrel(1), publish(5, 2, 2, "t", "y", fDup))
	sub.send(pubcomp(1), pubrec(2))
	sub.want(pubrel(2))
	sub.send(pubcomp(2))
	sub.silent()
}

func TestQueueWhileAwayIsBounded(t *testing.T) {
	b := newBackend()
	w := newWorld(t, b, func(c *mqtt.Config) { c.Limits.Queued = 3 })
	sub, _ := w.login(4, opts{id: "sub", persistent: true})
	sub.send(subscribe(4, 1, "t", 1))
	sub.want(suback(4, 1, 1))
	sub.send([]byte{0xE0, 0})
	sub.closed()
	d, _ := w.login(4, opts{id: "dev"})
	for i := uint16(1); i <= 5; i++ {
		d.send(publish(4, 1, i, "t", fmt.Sprint(i)))
		d.want(puback(i))
	}
	d.send([]byte{0xE0, 0})
	d.closed() // its deliveries are done then
	sub, _ = w.login(4, opts{id: "sub", persistent: true})
	sub.want(publish(4, 1, 1, "t", "1"), publish(4, 1, 2, "t", "2"), publish(4, 1, 3, "t", "3"))
	if n := w.s.Stats().Dropped; n != 2 {
		t.Errorf("dropped %d", n)
	}
}

func TestRetained(t *testing.T) {
	eachVersion(t, func(t *testing.T, v byte) {
		b := newBackend()
		w := newWorld(t, b, func(c *mqtt.Config) { c.Limits.Retained = 2 })
		d, _ := w.login(v, opts{id: "dev"})
		d.send(publish(v, 1, 1, "r/a", "A", fRetain), publish(v, 1, 2, "r/b", "B", fRetain), publish(v, 1, 3, "r/c", "C", fRetain),
			publish(v, 1, 4, "r/a", "", fRetain), publish(v, 1, 5, "r/b", "B2", fRetain))
		d.want(puback(1), puback(2), puback(3), puback(4), puback(5))
		check := func() {
			t.Helper()
			sub, _ := w.login(v, opts{id: "sub"})
			sub.send(subscribe(v, 1, "r/#", 0))
			sub.want(suback(v, 1, 0), publish(v, 0, 0, "r/b", "B2", fRetain))
			sub.silent()
		}
		check()
		if n := w.s.Stats().RetainedRefused; n != 1 {
			t.Errorf("refused %d", n)
		}
		w.stop()
		b = b.restart()
		w = newWorld(t, b, nil)
		check()
		if got := b.payloads(); !slices.Equal(got, []string{"A", "B", "C", "", "B2"}) {
			t.Errorf("durable %q", got)
		}
	})
}

func TestRetainedMessageExpires(t *testing.T) {
	var ahead atomic.Int64
	b := newBackend()
	w := newWorld(t, b, func(c *mqtt.Config) {
		c.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	})
	d, _ := w.login(5, opts{id: "dev"})
	ttl := append([]byte{2}, u32(100)...)
	d.send(frame(0x33, str("r"), u16(1), props(5, ttl), []byte("x")))
	d.want(puback(1))
	ahead.Store(int64(40 * time.Second))
	sub, _ := w.login(5, opts{id: "sub"})
	sub.send(subscribe(5, 1, "r", 0))
	sub.want(suback(5, 1, 0))
	if p := sub.next(); !bytes.Contains(p, append([]byte{2}, u32(60)...)) {
		t.Errorf("remaining expiry: %x", p)
	}
	ahead.Store(int64(101 * time.Second))
	sub.send(subscribe(5, 2, "r", 0))
	sub.want(suback(5, 2, 0))
	sub.silent()
	w.s.Sweep()
	sub.silent() // the deletion is durable before anything behind it
	d.send(publish(5, 1, 2, "t", "y"))
	d.want(puback(2))
	if _, ok := b.Get(mqtt.KindRetained, "r"); ok || w.s.Stats().Retained != 0 {
		t.Error("expired message is still there")
	}
}

func TestSubscriptionOptions(t *testing.T) {
	b := newBackend()
	b.sub = func(c *mqtt.Client, f string) error {
		if f == "secret/#" {
			return &mqtt.ReasonError{Code: packet.NotAuthorized}
		}
		return nil
	}
	w := newWorld(t, b, nil)
	d, _ := w.login(5, opts{id: "dev"})
	d.send(publish(5, 1, 1, "t", "kept", fRetain))
	d.want(puback(1))
	const noLocal, asPublished, onlyNew, never = 4, 8, 0x10, 0x20

	s, _ := w.login(5, opts{id: "s"})
	s.send(subscribe(5, 1, "t", noLocal|never))
	s.want(suback(5, 1, 0))
	s.send(publish(5, 1, 1, "t", "own"))
	s.want(puback(1))
	s.silent()
	s.send(subscribe(5, 2, "t", asPublished|onlyNew, []byte{0x0B, 77})) // not new: nothing retained
	s.want(suback(5, 2, 0))
	s.silent()
	d.send(publish(5, 1, 2, "t", "x", fRetain))
	d.want(puback(2))
	s.want(frame(0x31, str("t"), props(5, []byte{0x0B, 77}), []byte("x")))
	// Two overlapping subscriptions: one copy, highest QoS, both ids.
	s.send(subscribe(5, 3, "#", 1|never, []byte{0x0B, 78}))
	s.want(suback(5, 3, 1))
	d.send(publish(5, 1, 3, "t", "y"))
	d.want(puback(3))
	if p := s.next(); p[0] != 0x32 || !bytes.Contains(p, []byte{0x0B, 77}) || !bytes.Contains(p, []byte{0x0B, 78}) {
		t.Fatalf("got %x", p)
	}
	s.send(puback(1))
	s.silent()
	// Filters that are not, and rights.
	s.send(frame(0x82, u16(4), props(5), str(strings.Repeat("a/", 128)), []byte{0}, str("secret/#"), []byte{0}, str("ok"), []byte{2}))
	s.want(suback(5, 4, 0x8F, 0x87, 2))
	s.send(subscribe(5, 5, "$share/g/x", noLocal))
	s.disconnected(packet.ProtocolError)
}

// What is no filter at all ends the connection and changes nothing (3.1.1, 4.8.0-1; 5.0, 4.13.1).
func TestBadFilterEndsTheConnection(t *testing.T) {
	eachVersion(t, func(t *testing.T, v byte) {
		w := newWorld(t, newBackend(), nil)
		for _, f := range []string{"a/#/b", "ab/+e", "#a", "a+"} {
			s, _ := w.login(v, opts{id: "sub", persistent: true})
			s.send(frame(0x82, u16(4), props(v), str("good"), []byte{0}, str(f), []byte{0}))
			s.disconnected(packet.Malformed)
			s, _ = w.login(v, opts{id: "sub", persistent: true})
			s.send(frame(0xA2, u16(4), props(v), str("good"), str(f)))
			s.disconnected(packet.Malformed)
		}
		if n := w.s.Stats().Subscriptions; n != 0 {
			t.Errorf("%d subscriptions of packets that were refused", n)
		}
	})
}

func TestSharedSubscriptionGoesToOneMember(t *testing.T) {
	b := newBackend()
	w := newWorld(t, b, nil)
	var members []*device
	for _, id := range []string{"m1", "m2"} {
		m, _ := w.login(5, opts{id: id})
		m.send(subscribe(5, 1, "$share/g/t/+", 0))
		m.want(suback(5, 1, 0))
		members = append(members, m)
	}
	d, _ := w.login(5, opts{id: "dev"})
	for i := range 6 {
		d.send(publish(5, 1, 1, "t/x", fmt.Sprint(i)))
		d.want(puback(1))
	}
	d.send([]byte{0xE0, 0})
	d.closed()
	n := 0
	for _, m := range members {
		m.send([]byte{0xC0, 0})
		k := 0
		for p := m.next(); p[0] != 0xD0; p = m.next() {
			k++
		}
		if k != 3 {
			t.Errorf("member got %d", k)
		}
		n += k
	}
	if n != 6 {
		t.Errorf("delivered %d", n)
	}
}

func TestPropertiesReachRecordAndSubscriber(t *testing.T) {
	b := newBackend()
	w := newWorld(t, b, nil)
	sub, _ := w.login(5, opts{id: "sub", maxPacket: 100})
	sub.send(subscribe(5, 1, "t", 0))
	sub.want(suback(5, 1, 0))
	old, _ := w.login(4, opts{id: "old"})
	old.send(subscribe(4, 1, "t", 0))
	old.want(suback(4, 1, 0))
	d, _ := w.login(5, opts{id: "dev"})
	user := append(append([]byte{0x26}, str("k")...), str("v")...)
	typ := append([]byte{3}, str("text/plain")...)
	corr := append([]byte{9}, str("id1")...)
	d.send(frame(0x32, str("t"), u16(1), props(5, user, []byte{1, 1}, typ, user, corr), []byte("x")))
	d.want(puback(1))
	sub.want(frame(0x30, str("t"), props(5, []byte{1, 1}, typ, corr, user, user), []byte("x")))
	old.want(publish(4, 0, 0, "t", "x"))
	if r := b.all(); r[0].user != "k=v;k=v;" {
		t.Errorf("record %+v", r[0])
	}
	// Larger than the subscriber's Maximum Packet Size: dropped for it alone.
	big := string(make([]byte, 200))
	d.send(publish(5, 1, 2, "t", big))
	d.want(puback(2))
	old.want(publish(4, 0, 0, "t", big))
	sub.silent()
}

func aliased(id uint16, topic string, alias uint16, payload string) []byte {
	return frame(0x32, str(topic), u16(id), props(5, append([]byte{0x23}, u16(alias)...)), []byte(payload))
}

func TestTopicAliasIsResolvedBeforeRouting(t *testing.T) {
	b := newBackend()
	var seen []string
	b.add = func(p *mqtt.Publish) error { seen = append(seen, string(p.Topic)); return nil }
	w := newWorld(t, b, func(c *mqtt.Config) { c.Limits.TopicAliases = 3 })
	d, _ := w.login(5, opts{id: "dev"})
	d.send(aliased(1, "a", 1, "x"), aliased(2, "", 1, "y"), aliased(3, "b", 1, "z"), aliased(4, "", 1, "w"), aliased(5, "c", 3, "v"), aliased(6, "", 3, "u"))
	d.want(puback(1), puback(2), puback(3), puback(4), puback(5), puback(6))
	if !slices.Equal(seen, []string{"a", "a", "b", "b", "c", "c"}) {
		t.Fatalf("topics %q", seen)
	}
	d.send(aliased(1, "", 2, "x"))
	d.disconnected(packet.ProtocolError)
	for _, p := range [][]byte{aliased(1, "a", 4, "x"), aliased(1, "", 4, "x"), aliased(1, "a", 0, "x")} {
		d, _ = w.login(5, opts{id: "dev"})
		d.send(p)
		d.disconnected(packet.TopicAliasInvalid)
	}
	// A new connection knows no aliases of the old one: 3.3.2-8.
	d, _ = w.login(5, opts{id: "dev"})
	d.send(aliased(1, "", 1, "x"))
	d.disconnected(packet.ProtocolError)
}

func TestOutboundAliases(t *testing.T) {
	b := newBackend()
	w := newWorld(t, b, nil)
	sub := w.dial(5)
	sub.send(frame(0x10, str("MQTT"), []byte{5, 2}, u16(0), props(5, []byte{0x22, 0, 1}), str("sub")))
	if p := sub.next(); p[0] != 0x20 || p[3] != 0 {
		t.Fatalf("CONNACK %x", p)
	}
	sub.send(subscribe(5, 1, "t/#", 0))
	sub.want(suback(5, 1, 0))
	d, _ := w.login(4, opts{id: "dev"})
	d.send(publish(4, 0, 0, "t/a", "1"), publish(4, 0, 0, "t/b", "2"), publish(4, 0, 0, "t/a", "3"))
	alias := props(5, []byte{0x23, 0, 1})
	sub.want(frame(0x30, str("t/a"), alias, []byte("1")), publish(5, 0, 0, "t/b", "2"), frame(0x30, str(""), alias, []byte("3")))
}

// TestSlowSubscriberDelaysNobody: one subscriber never reads; the publisher's acks
// and the other subscriber's messages come all the same, memory stays bounded.
func TestSlowSubscriberDelaysNobody(t *testing.T) {
	b := newBackend()
	w := newWorld(t, b, func(c *mqtt.Config) { c.Limits.OutboundBytes = 64 << 10 })
	slow, _ := w.login(4, opts{id: "slow"})
	slow.nc.(*net.TCPConn).SetReadBuffer(4096)
	slow.send(subscribe(4, 1, "t", 0))
	slow.want(suback(4, 1, 0))
	good, _ := w.login(4, opts{id: "good"})
	good.send(subscribe(4, 1, "t", 0))
	good.want(suback(4, 1, 0))
	d, _ := w.login(4, opts{id: "dev"})
	payload := string(make([]byte, 32<<10))
	for i := uint16(1); i <= 400; i++ { // 13 MB: more than any socket buffer
		d.send(publish(4, 1, i, "t", payload))
		d.want(puback(i))
		if p := good.next(); len(p) < 32<<10 {
			t.Fatalf("got %x", p)
		}
	}
	if n := w.s.Stats().Dropped; n == 0 {
		t.Error("nothing dropped for the slow one")
	}
}

// TestPeerThatDoesNotReadItsAcks stalls nobody but itself.
func TestPeerThatDoesNotReadItsAcks(t *testing.T) {
	b := newBackend()
	w := newWorld(t, b, func(c *mqtt.Config) { c.Limits.OutboundBytes = 4096; c.Limits.WriteTimeout = 1e9 })
	mute, _ := w.login(4, opts{id: "mute"})
	mute.nc.(*net.TCPConn).SetReadBuffer(2048)
	mute.nc.SetDeadline(time.Time{}) // login has set one, and the server alone shall end this
	go func() {
		var p []byte
		for range 2000 {
			p = append(p, publish(4, 1, 1, "t", "x")...)
		}
		for {
			if _, err := mute.nc.Write(p); err != nil {
				return // the write timeout has ended it
			}
		}
	}()
	d, _ := w.login(4, opts{id: "dev"})
	for w.s.Stats().Connections > 1 {
		d.send(publish(4, 1, 1, "t", "y"))
		d.want(puback(1))
	}
}

// TestServerStopsReadingWhoDoesNotRead: answers that are not taken stop the reader;
// they do not pile up.
func TestServerStopsReadingWhoDoesNotRead(t *testing.T) {
	w := newWorld(t, newBackend(), func(c *mqtt.Config) { c.Limits.OutboundBytes = 4096; c.Limits.WriteTimeout = 5e9 })
	d, _ := w.login(4, opts{id: "mute"})
	pings := bytes.Repeat([]byte{0xC0, 0}, 16<<10)
	const most = 64 << 20 // far above all socket buffers
	for sent := 0; ; sent += len(pings) {
		if sent > most {
			t.Fatalf("server read %d bytes of a client that takes no answers", sent)
		}
		d.nc.SetWriteDeadline(time.Now().Add(500 * time.Millisecond))
		if _, err := d.nc.Write(pings); err != nil {
			return
		}
	}
}
