package edge

import (
	"encoding/binary"

	"tailrace/edge/mqtt"
	"tailrace/edge/mqtt/packet"
)

// Names of the record headers that a node writes. They are the public face of a
// record: consumers read them.
const (
	headerTopic       = "mqtt.topic"
	headerClient      = "mqtt.client"
	headerQoS         = "mqtt.qos"    // one ASCII digit
	headerRetain      = "mqtt.retain" // "1", only when set
	headerContentType = "mqtt.content-type"
	headerResponse    = "mqtt.response-topic"
	headerCorrelation = "mqtt.correlation"
	headerUser        = "mqtt.user." // and the property's name
	headerEventNanos  = "event.time.ns"
)

// The part of a record that a node encodes (record.AppendTail's layout, Kafka
// protocol guide "Record"):
//
//	keyLen key valueLen value headerCount headers
//
// Key and the first two headers depend on connection and topic only and are
// encoded once, into a route; per publish there are value, QoS and event time.

// appendVar appends a zigzag varint.
func appendVar(dst []byte, n int) []byte { return binary.AppendVarint(dst, int64(n)) }

func appendField(dst, b []byte) []byte {
	if b == nil {
		return append(dst, 1) // null
	}
	return append(appendVar(dst, len(b)), b...)
}

func appendHeader(dst []byte, key string, value []byte) []byte {
	dst = append(appendVar(dst, len(key)), key...)
	return append(appendVar(dst, len(value)), value...)
}

func appendHeaderString(dst []byte, key, value string) []byte {
	dst = append(appendVar(dst, len(key)), key...)
	return append(appendVar(dst, len(value)), value...)
}

// qosHeaders holds the encoded header for each QoS.
var qosHeaders = func() (h [3][]byte) {
	for q := range h {
		h[q] = appendHeader(nil, headerQoS, []byte{'0' + byte(q)})
	}
	return h
}()

var retainHeader = appendHeader(nil, headerRetain, []byte("1"))

// meta is what varies between the messages of one route, besides the payload.
type meta struct {
	qos         byte
	retain      bool
	contentType []byte // nil = absent
	response    []byte
	correlation []byte
	user        []packet.UserProperty
}

func metaOf(p *mqtt.Publish) meta {
	m := meta{qos: p.QoS, retain: p.Retain}
	if p.Props != nil {
		m.contentType, m.response, m.correlation = p.Props.ContentType, p.Props.Response, p.Props.Correlation
		m.user = p.Props.User
	}
	return m
}

// appendTail encodes one record. key and static are a route's; nanos is the event
// time, written when fromPayload.
func appendTail(dst, key, payload, static []byte, m *meta, nanos int64, fromPayload bool) []byte {
	dst = append(dst, key...)
	dst = append(appendVar(dst, len(payload)), payload...)
	n := 3 + len(m.user) // topic, client, qos
	for _, b := range [...]bool{m.retain, m.contentType != nil, m.response != nil, m.correlation != nil, fromPayload} {
		if b {
			n++
		}
	}
	dst = appendVar(dst, n)
	dst = append(dst, static...)
	dst = append(dst, qosHeaders[m.qos]...)
	if m.retain {
		dst = append(dst, retainHeader...)
	}
	if m.contentType != nil {
		dst = appendHeader(dst, headerContentType, m.contentType)
	}
	if m.response != nil {
		dst = appendHeader(dst, headerResponse, m.response)
	}
	if m.correlation != nil {
		dst = appendHeader(dst, headerCorrelation, m.correlation)
	}
	for i := range m.user {
		u := &m.user[i]
		dst = appendVar(dst, len(headerUser)+len(u.Key))
		dst = append(append(dst, headerUser...), u.Key...)
		dst = append(appendVar(dst, len(u.Value)), u.Value...)
	}
	if fromPayload {
		dst = append(appendVar(dst, len(headerEventNanos)), headerEventNanos...)
		dst = appendVar(dst, 8)
		dst = binary.BigEndian.AppendUint64(dst, uint64(nanos))
	}
	return dst
}
