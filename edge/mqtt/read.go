package mqtt

import (
	"io"

	"tailrace/edge/mqtt/packet"
)

// fill waits for bytes and appends them to c.rd. While nothing is buffered the
// connection waits without a buffer of its own: TCP by readiness, others with a
// small array.
func (c *conn) fill() error {
	if c.rd == nil {
		if c.raw != nil {
			if c.busy && c.ss != nil {
				gone, err := c.rest()
				if gone {
					return errParked
				}
				return err
			}
			ch, err := c.raw.read()
			c.rd, c.rpos = ch, 0
			return err
		}
		if c.probe == nil {
			c.probe = make([]byte, 64)
		}
		n, err := c.nc.Read(c.probe)
		if n > 0 {
			c.rd, c.rpos = getChunk(), 0
			c.rd.b = append(c.rd.b, c.probe[:n]...)
			return nil
		}
		return noBytes(err)
	}
	if err := c.makeRoom(); err != nil {
		return err
	}
	b := c.rd.b
	n, err := c.nc.Read(b[len(b):cap(b)])
	c.rd.b = b[:len(b)+n]
	if n > 0 {
		return nil
	}
	return noBytes(err)
}

func noBytes(err error) error {
	if err == nil {
		return io.ErrNoProgress
	}
	return err
}

// makeRoom moves the begun packet to the front and grows the buffer when it is
// full. It grows by doubling, up to what the packet needs: memory follows the bytes
// that have arrived, not the length that was claimed.
func (c *conn) makeRoom() error {
	b := c.rd.b
	if c.rpos > 0 {
		n := copy(b, b[c.rpos:])
		b = b[:n]
		c.rd.b, c.rpos = b, 0
	}
	if len(b) < cap(b) {
		return nil
	}
	_, _, _, need, err := packet.Frame(b, c.srv.cfg.Limits.MaxPacketBytes)
	if err != nil {
		return err
	}
	size := max(min(need, 2*cap(b)), len(b)+1)
	if c.srv.buffers.Add(int64(size-cap(b))) > int64(c.srv.cfg.Limits.BufferBytes) {
		c.srv.buffers.Add(-int64(size - cap(b)))
		c.srv.stats.BufferRefused.Add(1)
		return &ReasonError{packet.QuotaExceeded, "no memory for so large a packet now"}
	}
	c.extra += size - cap(b)
	nb := make([]byte, len(b), size)
	copy(nb, b)
	if c.extra == size-cap(b) { // the pooled one
		c.rd.b = b[:0]
		putChunk(c.rd)
	}
	c.rd = &chunk{nb}
	return nil
}

// releaseRead gives the read buffer back.
func (c *conn) releaseRead() {
	if c.extra > 0 {
		c.srv.buffers.Add(-int64(c.extra))
		c.extra = 0
	} else {
		putChunk(c.rd)
	}
	c.rd, c.rpos = nil, 0
}
