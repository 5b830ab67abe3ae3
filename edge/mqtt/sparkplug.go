package mqtt

import (
	"strings"
	"time"

	"tailrace/edge/mqtt/packet"
)

// A Sparkplug-aware server (Sparkplug 3.0, 10.1.4) keeps the latest NBIRTH of every edge
// node and DBIRTH of every device as a retained message under this prefix, so that a
// host that comes later knows the metrics without asking for a rebirth. The timestamp
// of NDEATH is not replaced (the specification lets a server choose): a record in the
// log is what the device had sent.
const certificates = "$sparkplug/certificates/"

// certificate is where the BIRTH that is published to topic is kept, "" when it is none:
// spBv1.0/GROUP/NBIRTH/NODE and spBv1.0/GROUP/DBIRTH/NODE/DEVICE.
func certificate(topic string) string {
	rest, ok := strings.CutPrefix(topic, "spBv1.0/")
	if !ok {
		return ""
	}
	l := strings.Split(rest, "/")
	if len(l) == 3 && l[1] == "NBIRTH" || len(l) == 4 && l[1] == "DBIRTH" {
		return certificates + topic
	}
	return ""
}

// keepBirth retains a copy of p with the burst that stores it.
func (c *conn) keepBirth(b *burst, p *packet.Publish, e *topicEntry, now time.Time) {
	if len(p.Payload) == 0 {
		return // would delete it
	}
	m := newMessage(e.birth, p, now, c.ID)
	m.retain = true
	kept := *m
	b.keep = append(b.keep, *c.srv.keepRetained(b.backend(), e.birth, &kept))
	m.retain = false // live subscribers get it as what it is: new
	if c.srv.subs.count.Load() > 0 {
		m.direct, m.shared, m.gen = c.srv.subs.match(e.birth)
		kept.gen = m.gen
		if len(m.direct) > 0 || len(m.shared) > 0 {
			b.msgs = append(b.msgs, m)
		}
	}
}
