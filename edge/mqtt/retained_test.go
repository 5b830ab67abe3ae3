package mqtt_test

import "testing"

// Between a SUBSCRIBE and the look through what is retained, somebody publishes: the subscriber
// has that message as a new one, and does not get it a second time as a retained one.
func TestWhatComesAfterTheSubscribeIsNotRetained(t *testing.T) {
	w := newWorld(t, newBackend(), nil)
	pub, _ := w.login(4, opts{id: "pub"})
	pub.send(publish(4, 1, 1, "t", "before", fRetain))
	pub.want(puback(1))
	const birth = "$sparkplug/certificates/spBv1.0/G/NBIRTH/E"
	sub, _ := w.login(4, opts{id: "sub"})
	sub.send(subscribe(4, 1, "#", 1))
	sub.want(suback(4, 1, 1))
	sub.want(publish(4, 1, 1, "t", "before", fRetain))
	sub.send(puback(1), subscribe(4, 2, birth, 1))
	sub.want(suback(4, 2, 1))
	sub.silent()
	since := w.s.Generation()
	ack := func(p []byte) {
		if id := p[4+int(p[3]):]; p[0]&6 != 0 { // behind head, length and topic
			sub.send(puback(uint16(id[0])<<8 | uint16(id[1])))
		}
	}

	for filter, send := range map[string]func(){
		"t": func() {
			pub.send(publish(4, 1, 2, "t", "new", fRetain))
			pub.want(puback(2))
		},
		"will": func() {
			d, _ := w.login(4, opts{id: "dev", will: &will{topic: "will", payload: "gone", qos: 1, retain: true}})
			d.nc.Close()
		},
		birth: func() {
			pub.send(publish(4, 1, 3, "spBv1.0/G/NBIRTH/E", "birth"))
			pub.want(puback(3))
		},
	} {
		send()
		n := 1
		if filter == birth { // and the message that it is a copy of
			n = 2
		}
		for range n {
			p := sub.next()
			if p[0]&1 != 0 {
				t.Errorf("%s: a new message as a retained one, %x", filter, p)
			}
			ack(p)
		}
		sub.silent()
		w.s.SendRetained("sub", filter, since)
		sub.silent()
		w.s.SendRetained("sub", filter, since+1) // one that comes later
		p := sub.next()
		if p[0]&1 == 0 {
			t.Errorf("%s: to a later subscription as a new one, %x", filter, p)
		}
		ack(p)
		sub.silent()
	}
}
