package mqtt_test

import (
	"slices"
	"testing"
	"time"

	"tailrace/edge/mqtt"
	"tailrace/edge/mqtt/packet"
)

// publishes are the payloads of the PUBLISH packets in what a client sends.
func publishes(v byte, b []byte) (all []string) {
	var p packet.Publish
	for {
		head, start, end, _, err := packet.Frame(b, 1<<28)
		if err != nil || end == 0 {
			return all
		}
		if packet.Type(head>>4) == packet.PUBLISH && packet.ReadPublish(head, b[start:end], packet.Version(v), &p) == nil {
			all = append(all, string(p.Payload))
		}
		b = b[end:]
	}
}

// FuzzPair lets two clients send arbitrary packets after a proper login, one as a
// publisher and one as a subscriber, cut into two writes each. Whatever they send:
// no panic, both connections end when the clients leave, the server still serves, and
// no more was stored than PUBLISH packets were sent, each with what one of them holds.
// What waits for the sessions lies in the log, as on a node.
func FuzzPair(f *testing.F) {
	seed := func(v byte, p, s [][]byte) {
		var a, b []byte
		for _, x := range p {
			a = append(a, x...)
		}
		for _, x := range s {
			b = append(b, x...)
		}
		f.Add(v, a, b, uint16(3))
	}
	for _, v := range []byte{4, 5} {
		seed(v, [][]byte{publish(v, 1, 1, "a/b", "x"), publish(v, 2, 2, "a/b", "y", fRetain), pubrel(2)},
			[][]byte{subscribe(v, 1, "a/#", 2), puback(1), pubrec(2), pubcomp(2), frame(0xA2, u16(2), props(v), str("a/#"))})
		seed(v, [][]byte{publish(v, 1, 1, "a/b", "x", fDup), {0xE0, 0}}, [][]byte{subscribe(v, 1, "$share/g/a/+", 1), subscribe(v, 2, "#", 0), {0xC0, 0}})
	}
	seed(5, [][]byte{aliased(1, "a", 1, "x"), aliased(2, "", 1, "y")}, [][]byte{subscribe(5, 1, "a", 0x2D, []byte{0x0B, 1}), {0x82, 6, 0, 1, 0, 0, 1, 'a'}})

	b := newBackend()
	s, l := servePipes(f, mqtt.Config{Backend: b, State: b, Log: b, Limits: mqtt.Limits{RefusedHold: 1, Retained: 100, Queued: 10}})
	dial := func(t *testing.T, v byte, id string) *device {
		d := l.dial(t, v)
		d.send(connect(v, opts{id: id, persistent: true}))
		d.next()
		return d
	}
	stored := 0 // of former inputs
	f.Fuzz(func(t *testing.T, v byte, pub, sub []byte, cut uint16) {
		v = 4 + v%2
		p, q := dial(t, v, "pub"), dial(t, v, "sub")
		done := make(chan struct{}, 2)
		drive := func(d *device, b []byte) {
			go func() { // net.Pipe is unbuffered: somebody must read
				buf := make([]byte, 4096)
				for {
					if _, err := d.nc.Read(buf); err != nil {
						return
					}
				}
			}()
			n := min(int(cut), len(b))
			d.nc.SetWriteDeadline(time.Now().Add(5 * time.Second))
			d.nc.Write(b[:n])
			d.nc.Write(b[n:])
			d.nc.Close()
			done <- struct{}{}
		}
		go drive(q, sub)
		go drive(p, pub)
		<-done
		<-done
		ok := dial(t, 5, "check")
		ok.silent()
		ok.nc.Close()
		until(t, "all have gone", func() bool { return s.Stats().Connections == 0 })
		if s.Stats().Panics > 0 {
			t.Fatal("panic in a connection")
		}
		sent := append(publishes(v, pub), publishes(v, sub)...)
		b.mu.Lock()
		fresh := b.records[stored:]
		stored = len(b.records)
		b.mu.Unlock()
		for _, r := range fresh {
			i := slices.Index(sent, r.payload)
			if i < 0 {
				t.Fatalf("%q was stored, and not sent or not so often", r.payload)
			}
			sent = slices.Delete(sent, i, i+1)
		}
	})
}
