package columns

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
)

var errShape = corrupt("not a batch that can be split") // internal: such a batch travels as it is

func nextBatch(b []byte) (batch, rest []byte, err error) {
	if len(b) < headerBytes {
		return nil, nil, corrupt("batch of %d bytes", len(b))
	}
	n := int64(int32(binary.BigEndian.Uint32(b[posLength:]))) + posEpoch
	if n < headerBytes || n > int64(len(b)) {
		return nil, nil, corrupt("batch says it has %d bytes, %d are here", n, len(b))
	}
	return b[:n:n], b[n:], nil
}

// parse splits a batch into its header and records, which alias it.
func (e *Encoder) parse(b []byte) (h batchHead, err error) {
	e.recs = e.recs[:0]
	h.base = int64(binary.BigEndian.Uint64(b))
	h.time = int64(binary.BigEndian.Uint64(b[posTime:]))
	h.count = int(binary.BigEndian.Uint32(b[posCount:]))
	copy(h.fixed[0:], b[posEpoch:posCRC])      // leader epoch, magic
	copy(h.fixed[5:], b[posAttr:posDelta])     // attributes
	copy(h.fixed[7:], b[posProducer:posCount]) // producer id, epoch, sequence
	maxTime := int64(binary.BigEndian.Uint64(b[posMax:]))
	if b[posAttr+1]&7 != 0 || h.count < 1 || h.count > len(b) {
		return h, errShape
	}
	most := int64(-1 << 63)
	p := b[headerBytes:]
	for range h.count {
		n, ok := varint(&p)
		if !ok || n < 1 || n > int64(len(p)) {
			return h, errShape
		}
		q := p[:n]
		p = p[n:]
		var r rec
		q = q[1:] // attributes: always 0, or the rebuilt batch differs
		delta, ok1 := varint(&q)
		_, ok2 := varint(&q)
		key, ok3 := field(&q)
		value, ok4 := field(&q)
		if !(ok1 && ok2 && ok3 && ok4) || value == nil || len(q) == 0 {
			return h, errShape
		}
		r.time, r.value, r.head = h.time+delta, value, q
		if key != nil {
			r.key = append([]byte{1}, key...)
		} else {
			r.key = []byte{0}
		}
		most = max(most, r.time)
		e.recs = append(e.recs, r)
	}
	if len(p) != 0 {
		return h, errShape
	}
	if h.maxIs = most == maxTime; !h.maxIs {
		binary.BigEndian.PutUint64(h.fixed[21:], uint64(maxTime))
	}
	return h, nil
}

func varint(p *[]byte) (int64, bool) {
	v, n := binary.Varint(*p)
	if n <= 0 {
		return 0, false
	}
	*p = (*p)[n:]
	return v, true
}

// field reads a length and so many bytes; -1 gives nil.
func field(p *[]byte) ([]byte, bool) {
	n, ok := varint(p)
	if !ok || n < -1 || n > int64(len(*p)) {
		return nil, false
	}
	if n < 0 {
		return nil, true
	}
	b := (*p)[:n:n]
	*p = (*p)[n:]
	return b, true
}

// builder makes the bytes of a batch again.
type builder struct {
	dst   []byte
	start int
	h     *batchHead
	n     int
	most  int64
}

func beginBatch(dst []byte, h *batchHead) builder {
	start := len(dst)
	var z [headerBytes]byte
	return builder{dst: append(dst, z[:]...), start: start, h: h, most: -1 << 63}
}

func (w *builder) add(time int64, key, value, head []byte) {
	w.most = max(w.most, time)
	delta := time - w.h.time
	n := 1 + varintLen(delta) + varintLen(int64(w.n)) + varintLen(int64(len(value))) + len(value) + len(head)
	if key[0] == 0 {
		n++
	} else {
		n += varintLen(int64(len(key)-1)) + len(key) - 1
	}
	d := binary.AppendVarint(w.dst, int64(n))
	d = append(d, 0)
	d = binary.AppendVarint(d, delta)
	d = binary.AppendVarint(d, int64(w.n))
	if key[0] == 0 {
		d = binary.AppendVarint(d, -1)
	} else {
		d = binary.AppendVarint(d, int64(len(key)-1))
		d = append(d, key[1:]...)
	}
	d = binary.AppendVarint(d, int64(len(value)))
	d = append(d, value...)
	w.dst = append(d, head...)
	w.n++
}

func varintLen(v int64) int {
	n := 1
	for u := zigzag(v); u >= 0x80; u >>= 7 {
		n++
	}
	return n
}

func (w *builder) end() []byte {
	h, b := w.h, w.dst[w.start:]
	binary.BigEndian.PutUint64(b, uint64(h.base))
	binary.BigEndian.PutUint32(b[posLength:], uint32(len(b)-posEpoch))
	copy(b[posEpoch:], h.fixed[0:5])
	copy(b[posAttr:], h.fixed[5:7])
	binary.BigEndian.PutUint32(b[posDelta:], uint32(w.n-1))
	binary.BigEndian.PutUint64(b[posTime:], uint64(h.time))
	if h.maxIs {
		binary.BigEndian.PutUint64(b[posMax:], uint64(w.most))
	} else {
		copy(b[posMax:], h.fixed[21:])
	}
	copy(b[posProducer:], h.fixed[7:21])
	binary.BigEndian.PutUint32(b[posCount:], uint32(w.n))
	binary.BigEndian.PutUint32(b[posCRC:], crc32.Checksum(b[posAttr:], castagnoli))
	return w.dst
}

// batch codes one batch.
func (e *Encoder) batch(b []byte) error {
	s, c := e.s, &e.s.c
	c.bit(&s.more, 1)
	h, err := e.parse(b)
	if err == nil {
		w := beginBatch(e.scratch[:0], &h)
		for i := range e.recs {
			r := &e.recs[i]
			w.add(r.time, r.key, r.value, r.head)
		}
		e.scratch = w.end()
		if !bytes.Equal(e.scratch, b) {
			err = errShape
		}
	}
	if err != nil {
		c.bit(&s.batchRaw, 1)
		_, err = s.literal(b, s.batchCount)
		return err
	}
	c.bit(&s.batchRaw, 0)
	if err := s.head(&h); err != nil {
		return err
	}
	for i := range e.recs {
		r := &e.recs[i]
		e.tokens(r)
		t, cl, err := s.record(r)
		if err != nil {
			return err
		}
		for k := range r.tokens {
			if err := s.token(t, k, cl, r.time, &r.tokens[k]); err != nil {
				return err
			}
		}
		cl.t = r.time
	}
	return nil
}
