package record

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

// DefaultMaxBytes is what a [Decompressor] yields at most for one batch unless
// told otherwise.
const DefaultMaxBytes = 64 << 20

// CompressMinBytes is the batch size from which [Compress] pays: a call costs
// about 14 µs however small the batch.
const CompressMinBytes = 2 << 10

// ErrTooLarge means that a batch would decompress to more than the cap.
var ErrTooLarge = errors.New("decompressed records exceed the limit")

// Decompressor undoes the four codecs of a batch. It keeps its buffers and
// decoders between batches, made on first use, so one per goroutine is the
// habit. Not safe for concurrent use.
type Decompressor struct {
	max     int
	buf     []byte
	headers []Header
	zstd    *zstd.Decoder
	gzip    *gzip.Reader
	lz4     *lz4.Reader
}

// NewDecompressor returns a decompressor that yields at most maxBytes a batch;
// 0 means [DefaultMaxBytes].
func NewDecompressor(maxBytes int) *Decompressor {
	if maxBytes <= 0 {
		maxBytes = DefaultMaxBytes
	}
	return &Decompressor{max: maxBytes}
}

// Close frees the decoders. It may be omitted: nothing runs in the background.
func (d *Decompressor) Close() {
	if d.zstd != nil {
		d.zstd.Close()
	}
	*d = Decompressor{max: d.max}
}

var decompressors = sync.Pool{New: func() any { return NewDecompressor(0) }}

// records returns the plain records; they are valid until the next call.
func (d *Decompressor) records(codec int, src []byte) ([]byte, error) {
	if cap(d.buf) > 4<<20 && cap(d.buf) > 8*len(src) {
		d.buf = nil // one giant must not stay for ever
	}
	out, err := d.Decompress(d.buf[:0], codec, src)
	if err != nil {
		return nil, err
	}
	d.buf = out[:0]
	return out, nil
}

// Decompress appends to dst what src holds. Errors are [ErrTooLarge] or wrap
// [ErrCorrupt].
func (d *Decompressor) Decompress(dst []byte, codec int, src []byte) ([]byte, error) {
	switch codec {
	case CodecNone:
		return append(dst, src...), nil
	case CodecGzip:
		return d.stream(dst, src, "gzip", func(r io.Reader) (io.Reader, error) {
			if d.gzip == nil {
				d.gzip = new(gzip.Reader)
			}
			return d.gzip, d.gzip.Reset(r)
		})
	case CodecSnappy:
		return d.snappy(dst, src)
	case CodecLZ4:
		return d.stream(dst, src, "lz4", func(r io.Reader) (io.Reader, error) {
			if d.lz4 == nil {
				d.lz4 = lz4.NewReader(r)
			}
			d.lz4.Reset(r)
			return d.lz4, nil
		})
	case CodecZstd:
		return d.zstandard(dst, src)
	}
	return dst, corrupt("codec %d", codec)
}

func (d *Decompressor) zstandard(dst, src []byte) ([]byte, error) {
	if d.zstd == nil {
		z, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxMemory(uint64(d.max)))
		if err != nil {
			return dst, fmt.Errorf("zstd: %w", err)
		}
		d.zstd = z
	}
	keep := len(dst)
	out, err := d.zstd.DecodeAll(src, dst)
	switch {
	case errors.Is(err, zstd.ErrDecoderSizeExceeded) || errors.Is(err, zstd.ErrWindowSizeExceeded) || len(out)-keep > d.max:
		return dst, fmt.Errorf("zstd: %w of %d bytes", ErrTooLarge, d.max)
	case err != nil:
		return dst, corrupt("zstd: %v", err)
	}
	return out, nil
}

func (d *Decompressor) stream(dst, src []byte, name string, open func(io.Reader) (io.Reader, error)) ([]byte, error) {
	keep := len(dst)
	r, err := open(bytes.NewReader(src))
	if err != nil {
		return dst, corrupt("%s: %v", name, err)
	}
	for {
		if len(dst) == cap(dst) {
			dst = append(dst, 0)[:len(dst)]
		}
		free := dst[len(dst):cap(dst)]
		if over := d.max + 1 - (len(dst) - keep); len(free) > over {
			free = free[:over]
		}
		n, err := r.Read(free)
		dst = dst[:len(dst)+n]
		switch {
		case len(dst)-keep > d.max:
			return dst[:keep], fmt.Errorf("%s: %w of %d bytes", name, ErrTooLarge, d.max)
		case err == io.EOF:
			return dst, nil
		case err != nil:
			return dst[:keep], corrupt("%s: %v", name, err)
		}
	}
}

// xerial is the framing of snappy-java, which the Java client and librdkafka
// write: magic, version, compatible version, then length-prefixed blocks.
// Others write one raw block.
var xerial = []byte{0x82, 'S', 'N', 'A', 'P', 'P', 'Y', 0}

func (d *Decompressor) snappy(dst, src []byte) ([]byte, error) {
	keep := len(dst)
	if !bytes.HasPrefix(src, xerial) {
		return d.snappyBlock(dst, src, keep)
	}
	if len(src) < 16 {
		return dst, corrupt("snappy: header of %d bytes", len(src))
	}
	var err error
	for src = src[16:]; len(src) > 0; {
		if len(src) < 4 {
			return dst[:keep], corrupt("snappy: %d bytes of a block length", len(src))
		}
		n := int64(binary.BigEndian.Uint32(src))
		if src = src[4:]; n > int64(len(src)) {
			return dst[:keep], corrupt("snappy: block of %d bytes, %d left", n, len(src))
		}
		if dst, err = d.snappyBlock(dst, src[:n], keep); err != nil {
			return dst[:keep], err
		}
		src = src[n:]
	}
	return dst, nil
}

func (d *Decompressor) snappyBlock(dst, src []byte, keep int) ([]byte, error) {
	n, err := s2.DecodedLen(src)
	if err != nil {
		return dst, corrupt("snappy: %v", err)
	}
	at := len(dst)
	if n > d.max-(at-keep) {
		return dst, fmt.Errorf("snappy: %w of %d bytes", ErrTooLarge, d.max)
	}
	// A byte of snappy makes 64 at most (a 3-byte copy of 64): the length is
	// checked before it is believed.
	if int64(n) > 64*int64(len(src)) {
		return dst, corrupt("snappy: %d bytes cannot hold %d", len(src), n)
	}
	dst = append(dst, make([]byte, n)...)
	if _, err := s2.Decode(dst[at:], src); err != nil {
		return dst[:at], corrupt("snappy: %v", err)
	}
	return dst, nil
}

// encoder is shared: EncodeAll is safe for concurrent use. The window bounds
// its memory; batches are at most a few of it.
var encoder = sync.OnceValue(func() *zstd.Encoder {
	e, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithWindowSize(1<<20),
		zstd.WithLowerEncoderMem(true), zstd.WithEncoderCRC(false)) // the batch has a CRC
	if err != nil {
		panic("internal error: zstd options: " + err.Error())
	}
	return e
})

// Compress appends to dst the batch b with its records compressed by zstd, or
// b as it is when it is compressed already, smaller than [CompressMinBytes],
// or would not shrink. It is for merged batches before they are stored; b must
// have passed [Batch.Verify]. Safe for concurrent use.
func Compress(dst []byte, b Batch) []byte {
	if b.Codec() != CodecNone || len(b) < CompressMinBytes {
		return append(dst, b...)
	}
	at := len(dst)
	dst = append(dst, b[:HeaderBytes]...)
	dst = encoder().EncodeAll(b[HeaderBytes:], dst)
	h := dst[at:]
	if len(h) >= len(b) {
		return append(dst[:at], b...)
	}
	binary.BigEndian.PutUint32(h[posLength:], uint32(len(h)-posEpoch))
	binary.BigEndian.PutUint16(h[posAttributes:], uint16(b.Attributes())|CodecZstd)
	binary.BigEndian.PutUint32(h[posCRC:], crc32.Checksum(h[posAttributes:], castagnoli))
	return dst
}
