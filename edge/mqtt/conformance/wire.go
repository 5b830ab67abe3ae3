package main

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// The wire cases of mosquitto (test/broker/data/*.json): byte sequences to send and
// to receive. They are compared leniently, since the expectations hold mosquitto's
// own limits and texts: type, packet id, topic, QoS and the class of each reason code
// (below 0x80 or not) must agree. Where the connection must end, DISCONNECT or a
// refusing CONNACK before the end is optional. The order of deliveries is compared, and that of
// all other packets, but not which comes first of a delivery and the answer to the publish
// that it is of: the standard orders neither (MQTT 5.0, 4.6; for QoS 2 4.3.3, figure 4.3).

type wireCase struct {
	file, group, name string
	version           byte
	connect           bool // begins behind a CONNECT of its own
	ends              bool // the server must close the connection
	msgs              []wireMsg
}

type wireMsg struct {
	Type    string `json:"type"` // send, recv, publish or external_publish (by a helper)
	Payload string `json:"payload"`
	Topic   string `json:"topic"`
	QoS     byte   `json:"qos"`
	data    []byte
}

func loadWire(dir string) ([]wireCase, error) {
	files, err := filepath.Glob(filepath.Join(dir, "test", "broker", "data", "*.json"))
	if err == nil && len(files) == 0 {
		err = fmt.Errorf("no test/broker/data/*.json in %s", dir)
	}
	if err != nil {
		return nil, err
	}
	var all []wireCase
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		type options struct {
			Version *byte `json:"ver"`
			Connect *bool `json:"connect"`
			Ends    *bool `json:"expect_disconnect"`
		}
		var groups []struct {
			options
			Group   string `json:"group"`
			Disable bool   `json:"disable"`
			Tests   []struct {
				options
				Name string    `json:"name"`
				Msgs []wireMsg `json:"msgs"`
			} `json:"tests"`
		}
		if err := json.Unmarshal(b, &groups); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		for _, g := range groups {
			if g.Disable {
				continue
			}
			for _, t := range g.Tests {
				c := wireCase{file: strings.TrimSuffix(filepath.Base(file), ".json"), group: g.Group, name: t.Name, version: 4, connect: true, ends: true, msgs: t.Msgs}
				for _, o := range []options{g.options, t.options} {
					if o.Version != nil {
						c.version = *o.Version
					}
					if o.Connect != nil {
						c.connect = *o.Connect
					}
					if o.Ends != nil {
						c.ends = *o.Ends
					}
				}
				for i := range c.msgs {
					m := &c.msgs[i]
					switch m.Type {
					case "publish", "external_publish":
					case "send", "recv":
						if m.data, err = parseBytes(m.Payload); err != nil {
							return nil, fmt.Errorf("%s: %s: %w", file, t.Name, err)
						}
					default: // not passed over: the case would seem to agree
						return nil, fmt.Errorf("%s: %s: step %q is not known", file, t.Name, m.Type)
					}
				}
				all = append(all, c)
			}
		}
	}
	return all, nil
}

// patience is how long an answer may take; a close that does not come costs this.
const patience = 2 * time.Second

func (c *wireCase) String() string { return c.file + ": " + c.group + ": " + c.name }

// run returns nil when the server at addr behaves as c says.
func (c *wireCase) run(addr string) error {
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		return err
	}
	defer nc.Close()
	r := &packetReader{nc: nc}
	if c.connect {
		id := c.group + " " + c.name
		nc.Write(connectPacket(c.version, id[:min(len(id), 200)]))
		p, err := r.next()
		if err != nil || len(p) < 4 || p[0] != 0x20 || p[3] != 0 {
			return fmt.Errorf("no CONNACK: % x, %v", p, err)
		}
	}
	ended := false // told by DISCONNECT or CONNACK, or closed
	for i := range c.msgs {
		m := &c.msgs[i]
		switch m.Type {
		case "send":
			nc.SetWriteDeadline(time.Now().Add(patience))
			nc.Write(m.data) // an error shows when reading
		case "publish", "external_publish":
			if err := publishBy(addr, m); err != nil {
				return fmt.Errorf("helper: %w", err)
			}
		case "recv":
			want := m.data
			for len(want) > 0 {
				one, rest := splitPacket(want)
				want = rest
				optional := c.ends && (one[0] == 0xE0 || one[0] == 0x20 && refused(one, c.version))
				p, err := r.nextOf(one[0]>>4 == 3)
				if err != nil {
					if optional && isClosed(err) {
						ended = true
						continue
					}
					return fmt.Errorf("got %w, want % x", err, one)
				}
				if !same(p, one, c.version) {
					return fmt.Errorf("got % x, want % x", p, one)
				}
				ended = ended || optional
			}
		}
	}
	if !c.ends {
		nc.Write([]byte{0xC0, 0})
		if p, err := r.nextOf(false); err != nil || p[0] != 0xD0 {
			return fmt.Errorf("connection should live: got % x, %v", p, err)
		}
		return r.nothingLeft()
	}
	if err := r.nothingLeft(); err != nil {
		return err
	}
	p, err := r.next()
	if err == nil && !ended && (p[0] == 0xE0 || p[0] == 0x20 && refused(p, c.version)) {
		p, err = r.next()
	}
	if err == nil {
		return fmt.Errorf("connection should end: got % x", p)
	}
	if !isClosed(err) {
		return errors.New("connection should end: still open")
	}
	return nil
}

func isClosed(err error) bool {
	var ne net.Error
	return !errors.As(err, &ne) || !ne.Timeout()
}

func refused(p []byte, version byte) bool {
	return len(p) >= 4 && (version < 5 && p[3] != 0 || p[3] >= 0x80)
}

// same compares leniently.
func same(got, want []byte, v byte) bool {
	t := want[0] >> 4
	if got[0]>>4 != t {
		return false
	}
	g, w := body(got), body(want)
	if len(g) == 0 || len(w) == 0 {
		return len(g) == len(w) || t == 14
	}
	class := func(b byte) bool { return b >= 0x80 || v < 5 && t == 2 && b != 0 }
	switch t {
	case 2: // CONNACK
		return len(g) > 1 && len(w) > 1 && g[0] == w[0] && class(g[1]) == class(w[1])
	case 3: // PUBLISH
		if got[0]&6 != want[0]&6 || got[0]&1 != want[0]&1 {
			return false
		}
		gt, gp := publishParts(g, got[0], v)
		wt, wp := publishParts(w, want[0], v)
		return bytes.Equal(gt, wt) && bytes.Equal(gp, wp)
	case 4, 5, 6, 7: // acknowledgements
		code := func(b []byte) bool { return len(b) > 2 && class(b[2]) }
		return len(g) > 1 && len(w) > 1 && bytes.Equal(g[:2], w[:2]) && code(g) == code(w)
	case 9, 11: // SUBACK, UNSUBACK
		gc, wc := codes(g, v), codes(w, v)
		return bytes.Equal(g[:2], w[:2]) && slices.EqualFunc(gc, wc, func(a, b byte) bool { return class(a) == class(b) && (class(a) || a == b || t == 11) })
	case 14: // DISCONNECT
		return class(g[0]) == class(w[0])
	}
	return bytes.Equal(g, w)
}

func body(p []byte) []byte {
	_, n := binary.Uvarint(p[1:])
	return p[1+max(n, 0):]
}

func codes(b []byte, v byte) []byte {
	if b = b[2:]; v == 5 && len(b) > 0 {
		n, k := binary.Uvarint(b)
		if k <= 0 || int(n)+k > len(b) {
			return nil
		}
		b = b[k+int(n):]
	}
	return b
}

func publishParts(b []byte, head, v byte) (topicAndID, payload []byte) {
	n := 2 + int(b[0])<<8 + int(b[1])
	if head&6 != 0 {
		n += 2
	}
	if n > len(b) {
		return b, nil
	}
	topicAndID, payload = b[:n], b[n:]
	if v == 5 && len(payload) > 0 {
		k, m := binary.Uvarint(payload)
		if m > 0 && int(k)+m <= len(payload) {
			payload = payload[m+int(k):]
		}
	}
	return topicAndID, payload
}

// splitPacket takes the first packet off b. Uvarint reads the Remaining Length: same encoding.
func splitPacket(b []byte) (one, rest []byte) {
	if len(b) < 2 {
		return b, nil
	}
	n, k := binary.Uvarint(b[1:])
	if end := 1 + k + int(n); k > 0 && end <= len(b) {
		return b[:end], b[end:]
	}
	return b, nil
}

type packetReader struct {
	nc    net.Conn
	early [2][][]byte // read while the other kind was waited for: others, deliveries
}

// nextOf is the next PUBLISH, or the next packet that is none.
func (r *packetReader) nextOf(publish bool) ([]byte, error) {
	kind := func(is bool) int {
		if is {
			return 1
		}
		return 0
	}
	if q := &r.early[kind(publish)]; len(*q) > 0 {
		p := (*q)[0]
		*q = (*q)[1:]
		return p, nil
	}
	for {
		p, err := r.next()
		is := err == nil && p[0]>>4 == 3
		if err != nil || is == publish || p[0]>>4 == 14 {
			return p, err
		}
		r.early[kind(is)] = append(r.early[kind(is)], p)
	}
}

func (r *packetReader) nothingLeft() error {
	for _, q := range r.early {
		if len(q) > 0 {
			return fmt.Errorf("got % x, want nothing", q[0])
		}
	}
	return nil
}

func (r *packetReader) next() ([]byte, error) {
	r.nc.SetReadDeadline(time.Now().Add(patience))
	p := make([]byte, 2, 64)
	if _, err := io.ReadFull(r.nc, p); err != nil {
		return nil, err
	}
	for p[len(p)-1] >= 0x80 && len(p) < 5 {
		p = append(p, 0)
		if _, err := io.ReadFull(r.nc, p[len(p)-1:]); err != nil {
			return nil, err
		}
	}
	n, _ := binary.Uvarint(p[1:])
	if n > 1<<20 {
		return nil, fmt.Errorf("packet of %d bytes", n)
	}
	h := len(p)
	p = append(p, make([]byte, n)...)
	_, err := io.ReadFull(r.nc, p[h:])
	return p, err
}

func appendString(b []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint16(b, uint16(len(s))), s...)
}

func packet(head byte, body []byte) []byte {
	return append(binary.AppendUvarint([]byte{head}, uint64(len(body))), body...)
}

func connectPacket(version byte, id string) []byte {
	b := appendString(nil, "MQTT")
	if version == 3 {
		b = appendString(nil, "MQIsdp")
	}
	b = append(b, version, 2, 0, 60)
	if version == 5 {
		b = append(b, 0)
	}
	return packet(0x10, appendString(b, id))
}

// publishBy sends one message from a client of its own and waits until it is acknowledged.
func publishBy(addr string, m *wireMsg) error {
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		return err
	}
	defer nc.Close()
	r := &packetReader{nc: nc}
	step := func(send []byte, want byte) error {
		nc.Write(send)
		if p, err := r.next(); err != nil || p[0] != want {
			return fmt.Errorf("got % x, %v; want type %x", p, err, want)
		}
		return nil
	}
	if err := step(connectPacket(4, "helper"), 0x20); err != nil {
		return err
	}
	b := appendString(nil, m.Topic)
	if m.QoS > 0 {
		b = append(b, 0, 1)
	}
	b = packet(0x30|m.QoS<<1, append(b, m.Payload...))
	switch m.QoS {
	case 0:
		err = step(append(b, 0xC0, 0), 0xD0)
	case 1:
		err = step(b, 0x40)
	default:
		if err = step(b, 0x50); err == nil {
			err = step([]byte{0x62, 2, 0, 1}, 0x70)
		}
	}
	nc.Write([]byte{0xE0, 0})
	return err
}
