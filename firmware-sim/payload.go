package firmwaresim

import (
	"encoding/binary"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// envelope is what stands around the signals of a payload.
type envelope struct {
	d    *Device
	boot uint64
	seq  uint64
	ts   int64 // ms
	drop uint64
	up   int64 // ms since boot; written while the clock is not known (-1: it is)
}

func (d *Device) idName() string {
	if d.Kind == Machine {
		return "machine"
	}
	return "turbine"
}

func (e *envelope) siteName() string {
	if e.d.Kind == Machine {
		return "line"
	}
	return "site"
}

// telemetry encodes a reading.
func (e *envelope) telemetry(s *Sample) []byte {
	if e.d.Encoding == CBOR {
		return e.telemetryCBOR(s)
	}
	b := make([]byte, 0, 160+24*len(s.Values))
	b = fmt.Appendf(b, `{"%s":"%s","%s":"%s","ts":%d,"boot":"%08x","seq":%d,"drop":%d,`,
		e.siteName(), e.d.Site, e.d.idName(), e.d.ID, e.ts, e.boot, e.seq, e.drop)
	if e.up >= 0 {
		b = fmt.Appendf(b, `"clk":"none","up":%d,`, e.up)
	}
	b = append(b, `"signals":{`...)
	for i, v := range s.Values {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(append(append(b, '"'), v.Name...), `":`...)
		switch {
		case v.Quoted:
			b = appendJSONString(b, v.Text)
		case v.Text == "":
			b = append(b, "null"...)
		default:
			b = append(b, v.Text...)
		}
	}
	return append(b, "}}"...)
}

// appendJSONString: RFC 8259, 7; the values are ASCII.
func appendJSONString(b []byte, s string) []byte {
	b = append(b, '"')
	for i := range len(s) {
		switch c := s[i]; {
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
		case c < ' ':
			b = fmt.Appendf(b, `\u%04x`, c)
		default:
			b = append(b, c)
		}
	}
	return append(b, '"')
}

// telemetryCBOR is the same map in CBOR (RFC 8949), numbers as integers where
// the text has no fraction, else as float64.
func (e *envelope) telemetryCBOR(s *Sample) []byte {
	n := 7
	if e.up >= 0 {
		n += 2
	}
	b := cborHead(make([]byte, 0, 160+24*len(s.Values)), 5, uint64(n))
	text := func(s string) { b = append(cborHead(b, 3, uint64(len(s))), s...) }
	integer := func(v int64) {
		if v < 0 {
			b = cborHead(b, 1, uint64(-1-v))
		} else {
			b = cborHead(b, 0, uint64(v))
		}
	}
	text(e.siteName())
	text(e.d.Site)
	text(e.d.idName())
	text(e.d.ID)
	text("ts")
	integer(e.ts)
	text("boot")
	text(fmt.Sprintf("%08x", e.boot))
	text("seq")
	integer(int64(e.seq))
	text("drop")
	integer(int64(e.drop))
	if e.up >= 0 {
		text("clk")
		text("none")
		text("up")
		integer(e.up)
	}
	text("signals")
	b = cborHead(b, 5, uint64(len(s.Values)))
	for _, v := range s.Values {
		text(v.Name)
		switch {
		case v.Quoted:
			text(v.Text)
		case v.Text == "":
			b = append(b, 0xf6)
		case !strings.Contains(v.Text, "."):
			i, err := strconv.ParseInt(v.Text, 10, 64)
			if err == nil {
				integer(i)
				break
			}
			fallthrough
		default:
			f, _ := strconv.ParseFloat(v.Text, 64)
			b = binary.BigEndian.AppendUint64(append(b, 0xfb), math.Float64bits(f))
		}
	}
	return b
}

func cborHead(b []byte, major byte, n uint64) []byte {
	major <<= 5
	switch {
	case n < 24:
		return append(b, major|byte(n))
	case n <= math.MaxUint8:
		return append(b, major|24, byte(n))
	case n <= math.MaxUint16:
		return binary.BigEndian.AppendUint16(append(b, major|25), uint16(n))
	case n <= math.MaxUint32:
		return binary.BigEndian.AppendUint32(append(b, major|26), uint32(n))
	default:
		return binary.BigEndian.AppendUint64(append(b, major|27), n)
	}
}

// status encodes a status message, always in JSON.
func (e *envelope) status(online bool, reason string) []byte {
	return fmt.Appendf(nil, `{"%s":"%s","%s":"%s","ts":%d,"boot":"%08x","seq":%d,"online":%t,"reason":"%s"}`,
		e.siteName(), e.d.Site, e.d.idName(), e.d.ID, e.ts, e.boot, e.seq, online, reason)
}

// will is what the server publishes when the device vanishes. It has no seq:
// the device does not know when, and whether, it is sent.
func (e *envelope) will() []byte {
	return fmt.Appendf(nil, `{"%s":"%s","%s":"%s","boot":"%08x","online":false,"will":true}`,
		e.siteName(), e.d.Site, e.d.idName(), e.d.ID, e.boot)
}
