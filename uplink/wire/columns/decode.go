package columns

import (
	"encoding/binary"
	"hash/crc32"

	"github.com/klauspost/compress/zstd"
)

// Decoder undoes an Encoder. Not safe for concurrent use.
type Decoder struct {
	s       *state
	max     int
	scratch []byte
	z       *zstd.Decoder
}

// NewDecoder keeps at most about twice maxState bytes: the Encoder's bound.
func NewDecoder(maxState int) *Decoder {
	return &Decoder{max: min(max(maxState, MinState), MaxState)}
}

// Reset forgets everything, for a first frame.
func (d *Decoder) Reset() { d.s = newState(d.max) }

// Close frees what the Decoder holds.
func (d *Decoder) Close() {
	if d.z != nil {
		d.z.Close()
	}
	d.s, d.z = nil, nil
}

// Append appends the batches of a frame to dst, size bytes. After an error the Decoder
// takes only a first frame.
func (d *Decoder) Append(dst, frame []byte, size int) ([]byte, error) {
	out, err := d.append(dst, frame, size)
	if err != nil {
		d.s = nil
	}
	return out, err
}

func (d *Decoder) append(dst, frame []byte, size int) ([]byte, error) {
	s := d.s
	if s == nil {
		return dst, corrupt("not a first frame")
	}
	if len(frame) < 5 {
		return dst, corrupt("frame of %d bytes", len(frame))
	}
	sum := binary.BigEndian.Uint32(frame)
	frame = frame[4:]
	n, k := binary.Uvarint(frame)
	if k <= 0 || n > uint64(len(frame)-k) {
		return dst, corrupt("literals of %d bytes", n)
	}
	lits := frame[k : k+int(n)]
	frame = frame[k+int(n):]
	var err error
	if s.lits, err = d.literals(lits, size); err != nil {
		return dst, err
	}
	s.c.startDecode(frame)
	start := len(dst)
	for s.c.bit(&s.more, 0) == 1 {
		if s.c.overrun() {
			return dst, corrupt("frame ends too early")
		}
		if dst, err = d.batch(dst, start+size); err != nil {
			return dst, err
		}
	}
	if len(dst)-start != size || len(s.lits) != 0 || crc32.Checksum(dst[start:], castagnoli) != sum {
		return dst, corrupt("%d bytes where %d are announced, or the checksum differs", len(dst)-start, size)
	}
	return dst, nil
}

func (d *Decoder) literals(b []byte, size int) ([]byte, error) {
	if len(b) == 0 {
		return nil, nil
	}
	kind, b := b[0], b[1:]
	if kind == 0 {
		return b, nil
	}
	n, k := binary.Uvarint(b)
	if kind != 1 || k <= 0 || n > uint64(2*size+1024) {
		return nil, corrupt("literals of kind %d", kind)
	}
	if d.z == nil {
		var err error
		if d.z, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxMemory(20<<20)); err != nil {
			return nil, err
		}
	}
	var h zstd.Header
	if err := h.Decode(b[k:]); err != nil || h.HasFCS && h.FrameContentSize > n {
		return nil, corrupt("literals")
	}
	out, err := d.z.DecodeAll(b[k:], nil)
	if err != nil || uint64(len(out)) != n {
		return nil, corrupt("literals: %v", err)
	}
	return out, nil
}

// batch decodes one batch; dst may grow to end.
func (d *Decoder) batch(dst []byte, end int) ([]byte, error) {
	s := d.s
	if s.c.bit(&s.batchRaw, 0) == 1 {
		b, err := s.literal(nil, s.batchCount)
		if err == nil && len(b) > end-len(dst) {
			err = corrupt("more than announced")
		}
		return append(dst, b...), err
	}
	var h batchHead
	if err := s.head(&h); err != nil {
		return dst, err
	}
	if h.count < 1 || h.count > end-len(dst) {
		return dst, corrupt("batch of %d records", h.count)
	}
	w := beginBatch(dst, &h)
	for range h.count {
		var r rec
		t, cl, err := s.record(&r)
		if err != nil {
			return dst, err
		}
		v := append(d.scratch[:0], t.parts[0]...)
		for i := range t.columns {
			var k token
			if err := s.token(t, i, cl, r.time, &k); err != nil {
				return dst, err
			}
			if k.text {
				v = append(v, k.raw...)
			} else {
				v = appendNumber(v, &k)
			}
			v = append(v, t.parts[i+1]...)
			if len(v) > end-len(dst) {
				return dst, corrupt("more than announced")
			}
		}
		cl.t = r.time
		d.scratch = v
		if len(r.key) == 0 {
			return dst, corrupt("record without a key")
		}
		w.add(r.time, r.key, v, r.head)
		if len(w.dst) > end || s.c.overrun() {
			return dst, corrupt("more than announced")
		}
	}
	return w.end(), nil
}
