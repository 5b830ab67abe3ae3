package mqtt

import (
	"encoding/binary"
	"errors"
	"time"

	"tailrace/edge/mqtt/packet"
)

// message is a publish kept in memory: for delivery, as a retained message, as a
// will. It is immutable once built and may be shared.
type message struct {
	topic   string
	payload []byte
	props   []byte // as of packet.MessageProps.Append
	qos     byte
	retain  bool
	expires time.Time // zero = never
	from    string    // client id, for no-local

	direct []target
	shared []*group
	gen    uint64 // of subIndex when it was asked
	at     Position
}

func newMessage(topic string, p *packet.Publish, now time.Time, from string) *message {
	m := &message{topic: topic, qos: p.QoS, retain: p.Retain, from: from, at: nowhere}
	m.setContent(p.Payload, &p.Props, now)
	return m
}

// setContent copies payload and properties into one allocation.
func (m *message) setContent(payload []byte, props *packet.MessageProps, now time.Time) {
	b := props.Append(make([]byte, 0, len(payload)+64))
	n := len(b)
	b = append(b, payload...)
	m.props, m.payload = b[:n:n], b[n:]
	if props.HasExpiry {
		m.expires = now.Add(time.Duration(props.Expiry) * time.Second)
	}
}

func (m *message) size() int { return len(m.topic) + len(m.props) + len(m.payload) + 128 }

func (m *message) expired(now time.Time) bool { return !m.expires.IsZero() && !now.Before(m.expires) }

// publish is m as the backend sees it.
func (m *message) publish(props *packet.MessageProps, route *any, now time.Time) (*Publish, error) {
	if err := packet.ParseMessageProps(m.props, props); err != nil {
		return nil, err
	}
	if !m.expires.IsZero() {
		props.HasExpiry = true
		props.Expiry = uint32(max(0, m.expires.Sub(now)/time.Second))
	}
	p := &Publish{Topic: []byte(m.topic), Name: m.topic, Route: route, Payload: m.payload, QoS: m.qos, Retain: m.retain, Arrival: now}
	if !props.Empty() {
		p.Props = props
	}
	return p, nil
}

// A message on disk (retained messages and wills):
//
//	1 byte version = 1, 1 byte flags (bits 0-1 QoS, 2 retain), 8 bytes expiry (ms
//	since 1970, 0 = never), then topic, from, props, payload, each with a uvarint length
const messageVersion = 1

var errState = errors.New("stored state not understood")

func (m *message) encode(dst []byte) []byte {
	f := m.qos
	if m.retain {
		f |= 4
	}
	dst = append(dst, messageVersion, f)
	var ms int64
	if !m.expires.IsZero() {
		ms = m.expires.UnixMilli()
	}
	dst = binary.BigEndian.AppendUint64(dst, uint64(ms))
	dst = appendBlob(dst, m.topic)
	dst = appendBlob(dst, m.from)
	dst = appendBlob(dst, m.props)
	return appendBlob(dst, m.payload)
}

func decodeMessage(b []byte) (*message, error) {
	if len(b) < 10 || b[0] != messageVersion || b[1]&3 == 3 {
		return nil, errState
	}
	m := &message{qos: b[1] & 3, retain: b[1]&4 != 0, at: nowhere}
	if ms := int64(binary.BigEndian.Uint64(b[2:])); ms != 0 {
		m.expires = time.UnixMilli(ms)
	}
	r := blobs{b: b[10:]}
	m.topic, m.from = string(r.next()), string(r.next())
	m.props = append([]byte(nil), r.next()...)
	m.payload = append([]byte(nil), r.next()...)
	if r.bad || len(r.b) != 0 {
		return nil, errState
	}
	return m, nil
}

func appendBlob[S string | []byte](dst []byte, s S) []byte {
	return append(binary.AppendUvarint(dst, uint64(len(s))), s...)
}

// blobs reads what appendBlob and AppendUvarint wrote; bad stays set after the first error.
type blobs struct {
	b   []byte
	bad bool
}

func (r *blobs) num() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.bad, r.b = true, nil
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *blobs) next() []byte {
	n := r.num()
	if n > uint64(len(r.b)) {
		r.bad, r.b = true, nil
		return nil
	}
	v := r.b[:n]
	r.b = r.b[n:]
	return v
}
