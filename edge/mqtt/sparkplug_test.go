package mqtt_test

import (
	"testing"

	"tailrace/edge/mqtt"
)

// Sparkplug 3.0, conformance of an aware server: BIRTHs are there as retained messages,
// over a restart, the newest of each; nothing else is; nobody can forge one.
func TestSparkplugBirthsAreKept(t *testing.T) {
	const cert = "$sparkplug/certificates/"
	b := newBackend()
	w := newWorld(t, b, nil)
	d, _ := w.login(4, opts{id: "node"})
	d.send(
		publish(4, 0, 0, "spBv1.0/G/NBIRTH/E", "birth 1"),
		publish(4, 0, 0, "spBv1.0/G/DBIRTH/E/D", "device"),
		publish(4, 0, 0, "spBv1.0/G/NDATA/E", "data"),
		publish(4, 0, 0, "spBv1.0/G/NBIRTH", "short"),
		publish(4, 1, 9, "spBv1.0/G/NBIRTH/E", "birth 2"))
	d.want(puback(9))
	w = w.kill(func(b *memBackend) func(*mqtt.Config) { return nil })
	host, _ := w.login(4, opts{id: "host"})
	host.send(subscribe(4, 1, cert+"#", 0))
	host.want(suback(4, 1, 0))
	got := map[string]bool{string(host.next()): true, string(host.next()): true}
	for _, p := range [][]byte{publish(4, 0, 0, cert+"spBv1.0/G/NBIRTH/E", "birth 2", fRetain), publish(4, 0, 0, cert+"spBv1.0/G/DBIRTH/E/D", "device", fRetain)} {
		if !got[string(p)] {
			t.Errorf("not there: %q", p)
		}
	}
	host.silent()
	d, _ = w.login(4, opts{id: "node"})
	d.send(publish(4, 1, 1, "spBv1.0/G/NBIRTH/E", "birth 3"))
	d.want(puback(1))
	host.want(publish(4, 0, 0, cert+"spBv1.0/G/NBIRTH/E", "birth 3"))
	forger, _ := w.login(5, opts{id: "forger"})
	forger.send(publish(5, 1, 1, cert+"spBv1.0/G/NBIRTH/E", "forged"))
	forger.want(frame(0x40, u16(1), []byte{0x87}))
}
