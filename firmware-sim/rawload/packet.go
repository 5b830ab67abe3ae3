package rawload

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strconv"
)

// Only the packets a publisher needs. MQTT 3.1.1 and 5, chapters 2 and 3.
const (
	typeConnack    = 0x20
	typePuback     = 0x40
	typePubrec     = 0x50
	typePubcomp    = 0x70
	typePingresp   = 0xd0
	typeDisconnect = 0xe0
)

// maxInbound bounds a packet from the server; a publisher is sent nothing large.
const maxInbound = 4096

func appendVarint(b []byte, n int) []byte {
	for n >= 0x80 {
		b = append(b, byte(n)|0x80)
		n >>= 7
	}
	return append(b, byte(n))
}

func appendString(b []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint16(b, uint16(len(s))), s...)
}

// connectPacket: MQTT 3.1.1 and 5, 3.1.
func connectPacket(c *Config, clientID string) []byte {
	flags := byte(0)
	if c.CleanStart {
		flags |= 0x02
	}
	if c.Password != "" {
		flags |= 0x40
	}
	if c.Username != "" {
		flags |= 0x80
	}
	body := appendString(nil, "MQTT")
	body = append(body, c.Version, flags)
	body = binary.BigEndian.AppendUint16(body, c.KeepAlive)
	if c.Version == 5 {
		var props []byte
		if !c.CleanStart {
			props = binary.BigEndian.AppendUint32(append(props, 0x11), c.SessionExpiry)
		}
		body = append(appendVarint(body, len(props)), props...)
	}
	body = appendString(body, clientID)
	if c.Username != "" {
		body = appendString(body, c.Username)
	}
	if c.Password != "" {
		body = appendString(body, c.Password)
	}
	return append(appendVarint([]byte{0x10}, len(body)), body...)
}

// appendPubrel: MQTT 3.1.1 and 5, 3.6.
func appendPubrel(b []byte, pid uint16) []byte {
	return binary.BigEndian.AppendUint16(append(b, 0x62, 2), pid)
}

// errIncomplete: more bytes are needed.
var errIncomplete = errors.New("incomplete")

// next splits one packet off b. The body refers to b.
func next(b []byte) (typ byte, body, rest []byte, err error) {
	if len(b) < 2 {
		return 0, nil, b, errIncomplete
	}
	n, shift, i := 0, 0, 1
	for ; ; i++ {
		if i >= len(b) {
			return 0, nil, b, errIncomplete
		}
		n |= int(b[i]&0x7f) << shift
		if b[i] < 0x80 {
			break
		}
		if shift += 7; shift > 21 {
			return 0, nil, b, errors.New("server sent a remaining length of more than four bytes")
		}
	}
	i++
	if n > maxInbound-5 {
		return 0, nil, b, fmt.Errorf("server sent a packet of %d bytes to a publisher", n)
	}
	if len(b) < i+n {
		return 0, nil, b, errIncomplete
	}
	return b[0], b[i : i+n], b[i+n:], nil
}

// connack is what matters of a CONNACK.
type connack struct {
	present        bool
	code           byte
	receiveMaximum int // 65535 when absent
}

// readConnack reads byte by byte, so that nothing behind it is swallowed.
func readConnack(r io.Reader, version byte) (connack, error) {
	buf := make([]byte, 0, 64)
	for {
		buf = append(buf, 0)
		if _, err := io.ReadFull(r, buf[len(buf)-1:]); err != nil {
			return connack{}, fmt.Errorf("read CONNACK: %w", err)
		}
		typ, body, _, err := next(buf)
		if errors.Is(err, errIncomplete) {
			continue
		}
		if err != nil {
			return connack{}, err
		}
		if typ != typeConnack || len(body) < 2 {
			return connack{}, fmt.Errorf("server answered CONNECT with packet type %#x", typ)
		}
		ack := connack{present: body[0]&1 != 0, code: body[1], receiveMaximum: 65535}
		if version == 5 {
			if err := ack.properties(body[2:]); err != nil {
				return connack{}, err
			}
		}
		return ack, nil
	}
}

func (a *connack) properties(b []byte) error {
	_, props, _, err := next(append([]byte{0}, b...)) // a property list is framed like a packet body
	if err != nil {
		return fmt.Errorf("CONNACK properties: %w", err)
	}
	for len(props) > 0 {
		id := props[0]
		props = props[1:]
		n := 0
		switch id { // MQTT 5, 2.2.2.2
		case 0x24, 0x25, 0x28, 0x29, 0x2a:
			n = 1
		case 0x13, 0x21, 0x22:
			n = 2
		case 0x11, 0x27:
			n = 4
		case 0x12, 0x15, 0x16, 0x1a, 0x1c, 0x1f:
			n = stringLen(props)
		case 0x26:
			n = stringLen(props)
			if n <= len(props) {
				n += stringLen(props[n:])
			}
		default:
			return fmt.Errorf("CONNACK property %#x is unknown", id)
		}
		if n > len(props) {
			return errors.New("CONNACK properties are cut short")
		}
		if id == 0x21 {
			a.receiveMaximum = max(1, int(binary.BigEndian.Uint16(props)))
		}
		props = props[n:]
	}
	return nil
}

func stringLen(b []byte) int {
	if len(b) < 2 {
		return len(b) + 1 // cut short
	}
	return 2 + int(binary.BigEndian.Uint16(b))
}

// payloads makes the PUBLISH packets of one client.
type payloads struct {
	c        *Config
	template []byte // whole packet with filler; nil with Bodies
	topic    []byte // topic with its length
	front    string // payload up to the sequence
	digits   int    // of the sequences the template fits
	tsDigits int    // of their times
	at       struct{ pid, payload, seq, ts, v int }
}

func newPayloads(c *Config, clientID, topic string) *payloads {
	p := &payloads{c: c, topic: appendString(nil, topic),
		front: fmt.Sprintf(`{"dev":"%s","boot":"%08x","seq":`, clientID, c.Boot)}
	if len(c.Bodies) == 0 {
		p.shape(1)
	}
	return p
}

// A template holds for all sequences and times of as many digits. Payloads hold no blanks: they stay the same bytes
// when something on the way compacts JSON.
const vWidth = 10

func digits(v uint64) (n int) {
	for n = 1; v >= 10; n++ {
		v /= 10
	}
	return n
}

// shape makes the template for sequences with as many digits as seq.
func (p *payloads) shape(seq uint64) {
	p.template = p.build(p.template[:0], seq, nil)
	p.digits, p.tsDigits = digits(seq), digits(p.ts(seq))
	p.locate()
}

// build appends one packet for sequence seq.
func (p *payloads) build(dst []byte, seq uint64, body []byte) []byte {
	size := len(p.front) + digits(seq) + len(`,"ts":`) + digits(p.ts(seq)) + 1
	filler := 0
	if body != nil {
		size += len(body) + 1
	} else {
		size += len(`"v":`) + vWidth + 1
		if filler = p.c.PayloadBytes - size; filler < len(fillerMember)+1 {
			filler = 0 // no room for the member: the payload is a few bytes off
		}
		size += filler
	}
	n := len(p.topic) + size
	if p.c.QoS > 0 {
		n += 2
	}
	if p.c.Version == 5 {
		n++
	}
	first := 0x30 | p.c.QoS<<1
	if p.c.Retain {
		first |= 1
	}
	dst = appendVarint(append(dst, first), n)
	dst = append(dst, p.topic...)
	if p.c.QoS > 0 {
		dst = binary.BigEndian.AppendUint16(dst, packetID(seq))
	}
	if p.c.Version == 5 {
		dst = append(dst, 0)
	}
	dst = append(dst, p.front...)
	dst = strconv.AppendUint(dst, seq, 10)
	dst = append(dst, `,"ts":`...)
	dst = strconv.AppendUint(dst, p.ts(seq), 10)
	dst = append(dst, ',')
	if body != nil {
		return append(append(dst, body...), '}')
	}
	dst = append(dst, `"v":`...)
	dst = strconv.AppendUint(dst, p.value(seq), 10)
	if filler > 0 {
		dst = append(dst, fillerMember...)
		for range filler - len(fillerMember) - 1 {
			dst = append(dst, 'x')
		}
		dst = append(dst, '"')
	}
	return append(dst, '}')
}

func (p *payloads) ts(seq uint64) uint64 { return uint64(p.c.Epoch.UnixMilli()) + seq - 1 }

func (p *payloads) value(seq uint64) uint64 {
	return 1_000_000_000 + mix(seq^p.c.Boot<<32)%9_000_000_000
}

const fillerMember = `,"p":"`

func (p *payloads) locate() {
	_, body, _, _ := splitPublish(p.template)
	at := len(p.template) - len(body) + len(p.topic)
	if p.c.QoS > 0 {
		p.at.pid = at
		at += 2
	}
	if p.c.Version == 5 {
		at++
	}
	p.at.payload = at
	p.at.seq = at + len(p.front)
	p.at.ts = p.at.seq + p.digits + len(`,"ts":`)
	p.at.v = p.at.ts + p.tsDigits + len(`,"v":`)
}

// splitPublish is next without the bound for packets of the server.
func splitPublish(b []byte) (typ byte, body, rest []byte, err error) {
	n, w := binary.Uvarint(b[1:])
	return b[0], b[1+w : 1+w+int(n)], b[1+w+int(n):], nil
}

// append adds the packet of seq and returns the position of its payload.
func (p *payloads) append(dst []byte, seq uint64, dup bool) ([]byte, int) {
	at := len(dst)
	var payload int
	if p.template != nil {
		if digits(seq) != p.digits || digits(p.ts(seq)) != p.tsDigits {
			p.shape(seq)
		}
		dst = append(dst, p.template...)
		pkt := dst[at:]
		if p.c.QoS > 0 {
			binary.BigEndian.PutUint16(pkt[p.at.pid:], packetID(seq))
		}
		putNumber(pkt[p.at.seq:p.at.seq+p.digits], seq)
		putNumber(pkt[p.at.ts:p.at.ts+p.tsDigits], p.ts(seq))
		putNumber(pkt[p.at.v:p.at.v+vWidth], p.value(seq))
		payload = at + p.at.payload
	} else {
		body := p.c.Bodies[(seq-1)%uint64(len(p.c.Bodies))]
		dst = p.build(dst, seq, body)
		_, rest, _, _ := splitPublish(dst[at:])
		payload = len(dst) - len(rest) + len(p.topic)
		if p.c.QoS > 0 {
			payload += 2
		}
		if p.c.Version == 5 {
			payload++
		}
	}
	if dup {
		dst[at] |= 0x08
	}
	return dst, payload
}

// packetID maps sequences to 1…65535; a window is smaller, so ids in flight differ.
func packetID(seq uint64) uint16 { return uint16((seq-1)%65535) + 1 }

// putNumber prints v over dst, which has exactly its width.
func putNumber(dst []byte, v uint64) {
	for i := len(dst) - 1; i >= 0; i-- {
		dst[i] = byte('0' + v%10)
		v /= 10
	}
}
