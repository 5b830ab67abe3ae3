package packet

import (
	"unicode/utf8"
)

// cursor reads a packet body. After the first short read every further read
// yields zero values and bad stays set, so decoders need one check at the end.
type cursor struct {
	b   []byte
	bad bool
}

func (c *cursor) u8() byte {
	if len(c.b) < 1 {
		c.bad, c.b = true, nil
		return 0
	}
	v := c.b[0]
	c.b = c.b[1:]
	return v
}

func (c *cursor) u16() uint16 {
	if len(c.b) < 2 {
		c.bad, c.b = true, nil
		return 0
	}
	v := uint16(c.b[0])<<8 | uint16(c.b[1])
	c.b = c.b[2:]
	return v
}

func (c *cursor) u32() uint32 {
	hi := uint32(c.u16())
	return hi<<16 | uint32(c.u16())
}

// varint is the variable byte integer of MQTT 5.0, 1.5.5.
func (c *cursor) varint() uint32 {
	var n uint32
	for i := range 4 {
		v := c.u8()
		n |= uint32(v&0x7f) << (7 * i)
		if v < 0x80 {
			if v == 0 && i > 0 {
				c.bad = true
			}
			return n
		}
	}
	c.bad, c.b = true, nil
	return 0
}

func (c *cursor) take(n int) []byte {
	if n < 0 || len(c.b) < n {
		c.bad, c.b = true, nil
		return nil
	}
	v := c.b[:n:n]
	c.b = c.b[n:]
	return v
}

func (c *cursor) bin() []byte { return c.take(int(c.u16())) }

// str is a UTF-8 string (MQTT 5.0, 1.5.4).
func (c *cursor) str() []byte {
	s := c.bin()
	if !c.bad && !ValidString(s) {
		c.bad, c.b = true, nil
		return nil
	}
	return s
}

// ValidString reports whether s may stand in an MQTT string: UTF-8 without
// surrogates and U+0000 (must, 1.5.4-1 and -2), without control characters and
// non-characters (may, 1.5.4: "a receiver may treat as malformed"; so does
// mosquitto). Below 65,536 bytes by construction.
func ValidString(s []byte) bool {
	for i := 0; i < len(s); i++ {
		if c := s[i]; c < 0x20 || c >= 0x7f {
			return validSlow(s[i:])
		}
	}
	return true
}

func validSlow(s []byte) bool {
	for len(s) > 0 {
		r, n := utf8.DecodeRune(s)
		if r == utf8.RuneError && n <= 1 {
			return false
		}
		if r < 0x20 || r >= 0x7f && r <= 0x9f || r >= 0xfdd0 && r <= 0xfdef || r&0xfffe == 0xfffe {
			return false
		}
		s = s[n:]
	}
	return true
}
