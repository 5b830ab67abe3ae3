package packet_test

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"runtime"
	"strings"
	"testing"

	"tailrace/edge/mqtt/packet"
)

func hx(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// valid are whole packets, one for every type and for every property in it.
var valid = []struct {
	name string
	v    packet.Version
	hex  string
}{
	{"connect 3.1", 3, "10 10 0006 4d5149736470 03 02 003c 0002 6162"},
	{"connect 3.1.1", 4, "10 0e 0004 4d515454 04 02 ffff 0002 6162"},
	{"connect 3.1.1, user, password, will", 4, "10 1e 0004 4d515454 04 ee 003c 0002 6162 0003 772f74 0002 6869 0001 75 0002 7077"},
	{"connect 5", 5, "10 0f 0004 4d515454 05 02 003c 00 0002 6162"},
	{"connect 5, all properties", 5, "10 5b 0004 4d515454 05 ee 003c 23 11 0000000a 21 000a 27 00001000 22 0005 19 01 17 00 26 0001 61 0001 62 15 0001 6d 16 0001 64 0002 6162 18 18 00000005 01 01 02 0000000a 03 0001 63 08 0001 72 09 0001 64 0003 772f74 0002 6869 0001 75 0002 7077"},
	{"publish qos 0", 4, "30 05 0001 74 7879"},
	{"publish qos 1", 4, "3d 07 0001 74 0102 7879"},
	{"publish 5 qos 2, all properties", 5, "34 2d 0001 74 0102 25 01 01 02 0000000a 23 0001 08 0001 72 09 0002 6163 26 0001 61 0001 62 03 0001 63 26 0001 61 0001 62 7879"},
	{"publish 5, alias only", 5, "32 08 0000 0102 03 23 0001"},
	{"puback", 4, "40 02 0102"},
	{"puback 5, reason", 5, "40 03 0102 10"},
	{"pubrec 5, properties", 5, "50 0f 0102 97 0b 1f 0001 78 26 0001 61 0001 62"},
	{"pubrel", 4, "62 02 0102"},
	{"pubrel 5", 5, "62 04 0102 92 00"},
	{"pubcomp", 5, "70 02 0102"},
	{"subscribe", 4, "82 0b 0001 0002 612b 01 0001 23 00"},
	{"subscribe 5", 5, "82 10 0001 09 0b 7f 26 0001 61 0001 62 0001 61 2d"},
	{"unsubscribe", 4, "a2 08 0001 0001 61 0001 62"},
	{"unsubscribe 5", 5, "a2 0d 0001 07 26 0001 61 0001 62 0001 61"},
	{"pingreq", 4, "c0 00"},
	{"disconnect", 4, "e0 00"},
	{"disconnect 5", 5, "e0 0b 04 09 11 0000000a 1f 0001 78"},
}

// decode reads one packet the way the server does.
func decode(b []byte, v packet.Version) (end int, err error) {
	head, start, end, _, err := packet.Frame(b, 1<<20)
	if err != nil || end == 0 {
		return end, err
	}
	body := b[start:end]
	switch packet.Type(head >> 4) {
	case packet.CONNECT:
		var c packet.Connect
		err = packet.ReadConnect(head, body, &c)
	case packet.PUBLISH:
		var p packet.Publish
		err = packet.ReadPublish(head, body, v, &p)
	case packet.PUBACK, packet.PUBREC, packet.PUBREL, packet.PUBCOMP:
		_, err = packet.ReadAck(head, body, v)
	case packet.SUBSCRIBE:
		var s packet.Subscribe
		err = packet.ReadSubscribe(head, body, v, &s, 100)
	case packet.UNSUBSCRIBE:
		var u packet.Unsubscribe
		err = packet.ReadUnsubscribe(head, body, v, &u, 100)
	case packet.PINGREQ:
		err = packet.ReadPing(head, body)
	case packet.DISCONNECT:
		_, err = packet.ReadDisconnect(head, body, v)
	default:
		err = &packet.Error{Code: packet.ProtocolError, What: "not from a client"}
	}
	return end, err
}

// A first byte that begins no packet is refused before the rest comes.
func TestTypeZeroIsRefusedAtOnce(t *testing.T) {
	for _, h := range []string{"00", "0a", "0a c0", "0a 05 01"} {
		var pe *packet.Error
		if _, err := decode(hx(t, h), 5); !errors.As(err, &pe) || pe.Code != packet.ProtocolError {
			t.Errorf("%s: %v", h, err)
		}
	}
}

// TestTruncation cuts every packet at every byte, twice: as a stream that goes on
// (more is needed) and as a packet whose length says it ends there. The second must
// be refused unless the standard lets the packet end there.
func TestTruncation(t *testing.T) {
	for _, c := range valid {
		t.Run(c.name, func(t *testing.T) {
			whole := hx(t, c.hex)
			if end, err := decode(whole, c.v); err != nil || end != len(whole) {
				t.Fatalf("whole packet: end %d of %d, %v", end, len(whole), err)
			}
			for n := range len(whole) {
				if end, err := decode(whole[:n:n], c.v); err != nil || end != 0 {
					t.Fatalf("stream cut at %d: end %d, %v", n, end, err)
				}
			}
			body := whole[2:]
			for n := range len(body) {
				cut := append([]byte{whole[0], byte(n)}, body[:n]...)
				_, err := decode(cut, c.v)
				if mayEnd(c.name, n, len(body)) {
					continue
				}
				var pe *packet.Error
				if !errors.As(err, &pe) || pe.Code < 0x80 {
					t.Errorf("body cut to %d of %d: %v", n, len(body), err)
				}
			}
		})
	}
}

// mayEnd lists the shorter packets that are packets, too: any payload, acks and
// DISCONNECT of version 5 without reason or properties, fewer filters.
func mayEnd(name string, n, whole int) bool {
	switch {
	case name == "publish qos 0":
		return n >= 3
	case name == "publish qos 1":
		return n >= 5
	case strings.HasPrefix(name, "publish 5 qos 2"):
		return n >= whole-2
	case strings.HasPrefix(name, "pub"):
		return n == 2 || n == 3
	case name == "disconnect 5":
		return n <= 1
	case name == "subscribe":
		return n == 7
	case name == "unsubscribe":
		return n == 5
	}
	return false
}

func TestRefusals(t *testing.T) {
	for _, c := range []struct {
		name string
		v    packet.Version
		hex  string
		code packet.Code
	}{
		{"subscribe of eight bytes", 5, "82 06 0001 00 0001 61", packet.Malformed},
		{"varint of five bytes in properties", 5, "30 09 0001 74 ffffffff01 00", packet.Malformed},
		{"properties longer than the packet", 5, "30 05 0001 74 05 00", packet.Malformed},
		{"unknown property", 5, "30 06 0001 74 02 7f 00", packet.Malformed},
		{"property of another packet", 5, "30 09 0001 74 05 11 00000001", packet.ProtocolError},
		{"reserved connect flag", 4, "10 0e 0004 4d515454 04 03 003c 0002 6162", packet.Malformed},
		{"will qos without will", 4, "10 0e 0004 4d515454 04 0a 003c 0002 6162", packet.Malformed},
		{"will qos 3", 4, "10 14 0004 4d515454 04 1e 003c 0002 6162 0001 74 0001 78", packet.Malformed},
		{"password without user, 3.1.1", 4, "10 11 0004 4d515454 04 42 003c 0002 6162 0001 70", packet.Malformed},
		{"protocol name", 4, "10 0e 0004 4d515455 04 02 003c 0002 6162", packet.Malformed},
		{"level 6", 4, "10 0e 0004 4d515454 06 02 003c 0002 6162", packet.UnsupportedVersion},
		{"bytes after connect", 4, "10 0f 0004 4d515454 04 02 003c 0002 6162 00", packet.Malformed},
		{"connect flags", 4, "11 0e 0004 4d515454 04 02 003c 0002 6162", packet.Malformed},
		{"receive maximum 0", 5, "10 12 0004 4d515454 05 02 003c 03 21 0000 0002 6162", packet.ProtocolError},
		{"auth data without method", 5, "10 13 0004 4d515454 05 02 003c 04 16 0001 64 0002 6162", packet.ProtocolError},
		{"dup at qos 0", 4, "38 05 0001 74 7879", packet.Malformed},
		{"surrogate in topic", 4, "30 06 0003 eda080 78", packet.Malformed},
		{"control character", 4, "30 04 0001 01 78", packet.Malformed},
		{"overlong UTF-8", 4, "30 05 0002 c080 78", packet.Malformed},
		{"topic alias 0", 5, "30 07 0001 74 03 23 0000", packet.TopicAliasInvalid},
		{"response topic with wildcard", 5, "30 08 0001 74 04 08 0001 23", packet.ProtocolError},
		{"payload format 2", 5, "30 06 0001 74 02 01 02", packet.ProtocolError},
		{"no topic, no alias", 5, "30 03 0000 00", packet.ProtocolError},
		{"subscribe flags", 4, "80 06 0001 0001 61 00", packet.Malformed},
		{"subscribe without filter", 4, "82 02 0001", packet.ProtocolError},
		{"subscribe reserved option", 4, "82 06 0001 0001 61 04", packet.Malformed},
		{"subscribe qos 3", 4, "82 06 0001 0001 61 03", packet.Malformed},
		{"subscribe retain handling 3", 5, "82 07 0001 00 0001 61 30", packet.ProtocolError},
		{"subscribe reserved bits", 5, "82 07 0001 00 0001 61 40", packet.Malformed},
		{"subscription id 0", 5, "82 09 0001 02 0b 00 0001 61 00", packet.ProtocolError},
		{"subscribe id 0", 4, "82 06 0000 0001 61 00", packet.ProtocolError},
		{"pubrel flags", 4, "60 02 0001", packet.Malformed},
		{"puback id 0", 4, "40 02 0000", packet.ProtocolError},
		{"puback with a reason, 3.1.1", 4, "40 03 0001 00", packet.Malformed},
		{"disconnect reason of a server", 5, "e0 01 8b", packet.ProtocolError},
		{"length not shortest", 4, "30 8500", packet.Malformed},
		{"length of five bytes", 4, "30 ffffffff01", packet.Malformed},
		{"too large", 4, "30 ffffff7f", packet.PacketTooLarge},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := decode(hx(t, c.hex), c.v)
			var pe *packet.Error
			if !errors.As(err, &pe) || pe.Code != c.code {
				t.Errorf("got %v, want %x", err, c.code)
			}
		})
	}
}

func TestPublishEncodeDecode(t *testing.T) {
	for _, v := range []packet.Version{4, 5} {
		for _, n := range []int{0, 1, 120, 127, 128, 16383, 16384} {
			m := packet.MessageProps{HasFormat: true, Format: 1, ContentType: []byte("c"), Response: []byte("r"), Correlation: []byte{0},
				User: []packet.UserProperty{{Key: []byte("k"), Value: []byte("v")}}}
			o := packet.Out{QoS: 1, Retain: true, Dup: true, ID: 7, Topic: "a/b", Props: m.Append(nil), HasExpiry: true, Expiry: 9, Alias: 3, Payload: make([]byte, n)}
			b := packet.AppendPublish(nil, v, &o)
			if len(b) != o.Size(v) {
				t.Fatalf("Size %d, encoded %d", o.Size(v), len(b))
			}
			head, start, end, _, err := packet.Frame(b, 1<<20)
			if err != nil || end != len(b) {
				t.Fatal(end, err)
			}
			var p packet.Publish
			if err := packet.ReadPublish(head, b[start:end], v, &p); err != nil {
				t.Fatal(err)
			}
			if p.ID != 7 || !p.Dup || !p.Retain || string(p.Topic) != "a/b" || len(p.Payload) != n {
				t.Fatalf("%+v", p)
			}
			if v == 5 && (p.Alias != 3 || p.Props.Expiry != 9 || !bytes.Equal(p.Props.Append(nil), o.Props)) {
				t.Fatalf("%+v", p)
			}
		}
	}
}

func TestReadPublishDoesNotAllocate(t *testing.T) {
	var p packet.Publish
	b := hx(t, "34 2d 0001 74 0102 25 01 01 02 0000000a 23 0001 08 0001 72 09 0002 6163 26 0001 61 0001 62 03 0001 63 26 0001 61 0001 62 7879")
	packet.ReadPublish(b[0], b[2:], 5, &p)
	if n := testing.AllocsPerRun(100, func() { packet.ReadPublish(b[0], b[2:], 5, &p) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// FuzzDecode feeds whole streams to every decoder: never panics, consumes within the
// input, what Frame accepts is what was there, and no packet has more than twice the input
// limit allocated.
func FuzzDecode(f *testing.F) {
	for _, c := range valid {
		f.Add(hx(f, c.hex), byte(c.v))
	}
	f.Add(hx(f, "82 06 0001 00 0001 61"), byte(5))
	f.Fuzz(func(t *testing.T, b []byte, v byte) {
		for len(b) > 0 {
			before := allocated()
			end, err := decode(b, packet.Version(3+v%3))
			if n := allocated() - before; n > 2*max(uint64(len(b)), inputLimit) {
				t.Fatalf("%d bytes allocated for %d", n, len(b))
			}
			if err != nil || end == 0 {
				return
			}
			if end > len(b) {
				t.Fatalf("end %d of %d", end, len(b))
			}
			b = b[end:]
		}
	})
}

// inputLimit is the least that a packet may be as large as: before login.
const inputLimit = 64 << 10

func allocated() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.TotalAlloc
}

// Packets that hold as many things as fit, each as small as it can be.
func TestDecodingAllocatesLittle(t *testing.T) {
	for _, size := range []int{inputLimit, 1 << 20} {
		fill := func(unit string) []byte { return bytes.Repeat(hx(t, unit), size/len(hx(t, unit))-8) }
		whole := func(head byte, body ...[]byte) []byte {
			b := bytes.Join(body, nil)
			return append(binary.AppendUvarint([]byte{head}, uint64(len(b))), b...)
		}
		section := func(ps []byte) []byte { return append(binary.AppendUvarint(nil, uint64(len(ps))), ps...) }
		user := section(fill("26 0000 0000"))
		connect := hx(t, "0004 4d515454 05 06 003c")
		for name, p := range map[string][]byte{
			"connect":     whole(0x10, connect, user, hx(t, "0001 61 00 0001 77 0000")),
			"will":        whole(0x10, connect, hx(t, "00 0001 61"), user, hx(t, "0001 77 0000")),
			"publish":     whole(0x32, hx(t, "0001 74 0001"), user),
			"puback":      whole(0x40, hx(t, "0001 00"), user),
			"subscribe":   whole(0x82, hx(t, "0001"), user, hx(t, "0001 61 00")),
			"filters":     whole(0x82, hx(t, "0001 00"), fill("0001 61 00")),
			"unsubscribe": whole(0xA2, hx(t, "0001 00"), fill("0001 61")),
			"disconnect":  whole(0xE0, hx(t, "00"), user),
		} {
			var before uint64
			least := uint64(1 << 62) // of some, since others allocate, too
			for range 3 {
				before = allocated()
				decode(p, 5)
				least = min(least, allocated()-before)
			}
			if len(p) > size || least > 2*uint64(size) {
				t.Errorf("%s: %d bytes allocated for %d, of at most %d", name, least, len(p), size)
			}
		}
	}
}

// FuzzMessageProps: what parses encodes to something that parses to the same.
func FuzzMessageProps(f *testing.F) {
	f.Add([]byte{1, 1, 3, 0, 1, 'c', 0x26, 0, 1, 'a', 0, 1, 'b'})
	f.Fuzz(func(t *testing.T, b []byte) {
		var m, n packet.MessageProps
		if packet.ParseMessageProps(b, &m) != nil {
			return
		}
		e := m.Append(nil)
		if err := packet.ParseMessageProps(e, &n); err != nil {
			t.Fatalf("%x: %v", e, err)
		}
		if !bytes.Equal(e, n.Append(nil)) {
			t.Fatalf("%x is not stable", e)
		}
	})
}
