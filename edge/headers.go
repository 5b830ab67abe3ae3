package edge

import (
	"encoding/binary"
	"strconv"

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
	headerUser        = "mqtt.user."   // and the property's name
	headerFormat      = "mqtt.format"  // "1" when the publisher says that the payload is UTF-8 text
	headerExpires     = "mqtt.expires" // ms since 1970, decimal: after that nobody wants it
	headerEventNanos  = "event.time.ns"
)

// A record is handed to the store in parts (storage.Append.RecordParts): key and the
// first two headers depend on connection and topic only and are encoded once, into a
// route; per publish there are the value and the headers that appendHeaders makes.
// Layout: Kafka protocol guide, "Record".

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
	text        bool
	expires     int64 // ms since 1970; 0 = never
}

// simple: the QoS is all there is.
func (m *meta) simple() bool {
	return !m.retain && m.contentType == nil && m.response == nil && m.correlation == nil && len(m.user) == 0 && !m.text && m.expires == 0
}

func metaOf(p *mqtt.Publish) meta {
	m := meta{qos: p.QoS, retain: p.Retain}
	if p.Props != nil {
		m.contentType, m.response, m.correlation = p.Props.ContentType, p.Props.Response, p.Props.Correlation
		m.user = p.Props.User
		m.text = p.Props.HasFormat && p.Props.Format == 1
		if p.Props.HasExpiry {
			m.expires = p.Arrival.UnixMilli() + int64(p.Props.Expiry)*1000
		}
	}
	return m
}

// staticHeaders is how many headers a route holds encoded: topic and client.
const staticHeaders = 2

// appendHeaders encodes what follows a route's headers, and returns how many there
// are. nanos is the event time, written when fromPayload.
func appendHeaders(dst []byte, m *meta, nanos int64, fromPayload bool) ([]byte, int) {
	dst = append(dst, qosHeaders[m.qos]...)
	n := 1 + len(m.user)
	if m.retain {
		dst = append(dst, retainHeader...)
		n++
	}
	if m.contentType != nil {
		dst = appendHeader(dst, headerContentType, m.contentType)
		n++
	}
	if m.response != nil {
		dst = appendHeader(dst, headerResponse, m.response)
		n++
	}
	if m.correlation != nil {
		dst = appendHeader(dst, headerCorrelation, m.correlation)
		n++
	}
	if m.text {
		dst = appendHeader(dst, headerFormat, []byte("1"))
		n++
	}
	if m.expires != 0 {
		var ms [20]byte
		dst = appendHeader(dst, headerExpires, strconv.AppendInt(ms[:0], m.expires, 10))
		n++
	}
	for i := range m.user {
		u := &m.user[i]
		dst = appendVar(dst, len(headerUser)+len(u.Key))
		dst = append(append(dst, headerUser...), u.Key...)
		dst = append(appendVar(dst, len(u.Value)), u.Value...)
	}
	if fromPayload {
		dst = append(dst, eventHeader...)
		dst = binary.BigEndian.AppendUint64(dst, uint64(nanos))
		n++
	}
	return dst, n
}

// eventHeader is the event time's header up to its 8 bytes of value.
var eventHeader = appendVar(append(appendVar(nil, len(headerEventNanos)), headerEventNanos...), 8)
