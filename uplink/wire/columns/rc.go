package columns

import "math/bits"

// An adaptive binary range coder: LZMA's, with 16-bit probabilities that learn fast at
// first. Encoder and decoder share the models' code through coder.

type bit struct {
	p uint16 // that the bit is 0
	n uint8  // how often it was seen, up to the slowest rate
}

const slowest = 48

var (
	rates [slowest + 1]uint32
	fresh = bit{p: 1 << 15}
)

func init() {
	for i := range rates {
		rates[i] = uint32(65536 / (float64(i) + 1.6))
	}
}

func (m *bit) update(b int) {
	p, r := uint32(m.p), rates[m.n]
	if b == 0 {
		p += (65535 - p) * r >> 16
	} else {
		p -= p * r >> 16
	}
	m.p = uint16(min(max(p, 24), 65535-24))
	if m.n < slowest {
		m.n++
	}
}

// coder encodes, or decodes when dec is set: the same calls in the same order on both
// sides keep the models alike.
type coder struct {
	dec  bool
	rng  uint32
	low  uint64 // encoder
	code uint32 // decoder
	buf  []byte // written, or left to read
	held byte
	run  int // pending 0xff bytes behind held; decoder: zeros read behind the end
}

func (c *coder) startEncode(buf []byte) {
	*c = coder{rng: 1<<32 - 1, buf: buf}
}

func (c *coder) startDecode(b []byte) {
	*c = coder{dec: true, rng: 1<<32 - 1, buf: b}
	for range 4 {
		c.code = c.code<<8 | uint32(c.next())
	}
}

// next is the next byte; zeros at the end of the encoded bytes were cut off.
func (c *coder) next() byte {
	if len(c.buf) == 0 {
		c.run++
		return 0
	}
	b := c.buf[0]
	c.buf = c.buf[1:]
	return b
}

// overrun says that far more was read than was written.
func (c *coder) overrun() bool { return c.run > 64 }

func (c *coder) shiftLow() {
	if c.low < 0xff000000 || c.low >= 1<<32 {
		carry := byte(c.low >> 32)
		c.buf = append(c.buf, c.held+carry)
		for ; c.run > 0; c.run-- {
			c.buf = append(c.buf, 0xff+carry)
		}
		c.held, c.run = byte(c.low>>24), 0
	} else {
		c.run++
	}
	c.low = c.low & 0x00ffffff << 8
}

// finish ends encoding and returns the bytes.
func (c *coder) finish() []byte {
	// The shortest number within the range: the zeros behind it need not be written.
	for _, keep := range []uint{24, 16, 8} {
		mask := uint64(1)<<keep - 1
		if v := (c.low + mask) &^ mask; v < c.low+uint64(c.rng) {
			c.low = v
			break
		}
	}
	for range 5 {
		c.shiftLow()
	}
	b := c.buf[1:] // the first byte was held before there was one
	for len(b) > 0 && b[len(b)-1] == 0 {
		b = b[:len(b)-1]
	}
	return b
}

// bit codes b (ignored when decoding) under m.
func (c *coder) bit(m *bit, b int) int {
	bound := c.rng >> 16 * uint32(m.p)
	if c.dec {
		if b = 0; c.code >= bound {
			b = 1
		}
	}
	if b == 0 {
		c.rng = bound
	} else {
		if c.dec {
			c.code -= bound
		} else {
			c.low += uint64(bound)
		}
		c.rng -= bound
	}
	m.update(b)
	c.normalize()
	return b
}

func (c *coder) normalize() {
	for c.rng < 1<<24 {
		c.rng <<= 8
		if c.dec {
			c.code = c.code<<8 | uint32(c.next())
		} else {
			c.shiftLow()
		}
	}
}

// plain codes the low n bits of v as they are.
func (c *coder) plain(v uint64, n int) uint64 {
	var out uint64
	for i := n - 1; i >= 0; i-- {
		c.rng >>= 1
		b := v >> i & 1
		if c.dec {
			if b = 0; c.code >= c.rng {
				b = 1
				c.code -= c.rng
			}
		} else if b == 1 {
			c.low += uint64(c.rng)
		}
		out = out<<1 | b
		c.normalize()
	}
	return out
}

// number models an unsigned number: its length in bits, then what follows the first bit.
type number struct {
	length [65]bit
	top    [16][4]bit
	last   [16]bit
}

func newNumber() *number {
	n := new(number)
	for i := range n.length {
		n.length[i] = fresh
	}
	for i := range n.top {
		n.top[i] = [4]bit{fresh, fresh, fresh, fresh}
		n.last[i] = fresh
	}
	return n
}

func (c *coder) number(m *number, v uint64) uint64 {
	k := c.length(&m.length, bits.Len64(v))
	return c.mantissa(m, k, v)
}

// length codes a length of 0 to 64, unary.
func (c *coder) length(m *[65]bit, k int) int {
	for i := range 64 {
		b := 0
		if k > i {
			b = 1
		}
		if c.bit(&m[i], b) == 0 {
			return i
		}
	}
	return 64
}

func (c *coder) mantissa(m *number, k int, v uint64) uint64 {
	if k <= 1 {
		return uint64(k)
	}
	at, out, left := min(k, 15), uint64(1), k-1
	first := c.bit(&m.top[at][0], int(v>>(left-1)&1))
	out, left = out<<1|uint64(first), left-1
	if left > 0 {
		out = out<<1 | uint64(c.bit(&m.top[at][1+first], int(v>>(left-1)&1)))
		left--
	}
	if left > 1 {
		out = out<<(left-1) | c.plain(v>>1, left-1)
		left = 1
	}
	if left == 1 {
		out = out<<1 | uint64(c.bit(&m.last[at], int(v&1)))
	}
	return out
}
