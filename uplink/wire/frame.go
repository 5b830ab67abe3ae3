package wire

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"

	"tailrace/uplink/wire/columns"
)

// A data stream, node to hub, one per lane and connection:
//
//	preamble: 'T' 'R' version=1 lane
//	frames:   length uvarint | type u8 | flags u8 | body
//
// length counts type, flags and body. Types: 1 data, 2 idle; unknown types are
// skipped. Flags: bits 0-2 codec, bit 3 context reset, bits 4-7 must be zero.
// The body of a data frame is
//
//	raw uvarint | content
//
// where content, raw bytes long after decoding, is
//
//	partition uvarint | epoch uvarint | base uvarint | count uvarint | batches
//
// partition is PartitionInfo.ID, epoch the index in Inventory.Epochs, [base,
// base+count) the offsets of the batches. With codec zstd the contents of a
// stream's frames are one zstd stream with a flush per frame; a context reset
// starts a new zstd frame. With codec telemetry content is
//
//	state uvarint, only with a context reset | partition | epoch | base | count | frame of package columns
//
// where state bounds what both ends keep, and raw is the size without it. An idle frame has no body and says that the context is
// gone: a hub may free its decoder, and the next data frame has a context reset.
const (
	frameVersion = 1
	frameData    = 1
	frameIdle    = 2

	flagCodec   = 0x07
	flagReset   = 0x08
	flagUnknown = 0xf0

	frameHeadMax = 4 * binary.MaxVarintLen64 // partition, epoch, base, count
)

// FrameHeader says what the batches of a data frame are.
type FrameHeader struct {
	Partition uint32
	Epoch     uint32 // index in the inventory's list
	Base      int64
	Count     int64 // offsets, not records
}

// AppendPreamble appends the start of a data stream.
func AppendPreamble(dst []byte, lane Lane) []byte {
	return append(dst, 'T', 'R', frameVersion, byte(lane))
}

// ReadPreamble reads the start of a data stream.
func ReadPreamble(r io.Reader) (Lane, error) {
	var b [4]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return 0, err
	}
	if b[0] != 'T' || b[1] != 'R' || b[2] != frameVersion || b[3] >= Lanes {
		return 0, bad("data stream begins with % x", b)
	}
	return Lane(b[3]), nil
}

// FrameWriter encodes the data frames of one stream. Not safe for concurrent use.
type FrameWriter struct {
	codec  Codec // agreed; with CodecTelemetry each frame is that or zstd
	window int
	cols   *columns.Encoder // nil while it has nothing to keep
	trial  trial
	packed []byte
	level  zstd.EncoderLevel
	enc    *zstd.Encoder // nil while no context is open
	out    sliceWriter
	head   [frameHeadMax]byte
}

type sliceWriter struct{ b []byte }

func (w *sliceWriter) Write(p []byte) (int, error) {
	w.b = append(w.b, p...)
	return len(p), nil
}

// NewFrameWriter encodes with codec; windowBytes is the zstd window, a power of two.
func NewFrameWriter(codec Codec, windowBytes int) *FrameWriter {
	return &FrameWriter{codec: codec, window: windowBytes, level: zstd.SpeedDefault}
}

// Append appends one data frame. batches are not kept.
func (w *FrameWriter) Append(dst []byte, h FrameHeader, batches []byte) ([]byte, error) {
	head := binary.AppendUvarint(w.head[:0], uint64(h.Partition))
	head = binary.AppendUvarint(head, uint64(h.Epoch))
	head = binary.AppendUvarint(head, uint64(h.Base))
	head = binary.AppendUvarint(head, uint64(h.Count))
	raw := len(head) + len(batches)
	if len(batches) == 0 || raw > MaxFrameBytes+frameHeadMax {
		return dst, fmt.Errorf("encode data frame: %d bytes of batches, allowed are 1 to %d", len(batches), MaxFrameBytes)
	}
	if w.codec == CodecTelemetry {
		return w.appendTelemetry(dst, head, batches)
	}
	flags := byte(w.codec)
	if w.codec == CodecNone {
		n := 2 + uvarintLen(uint64(raw)) + raw
		dst = binary.AppendUvarint(dst, uint64(n))
		dst = append(dst, frameData, flags)
		dst = binary.AppendUvarint(dst, uint64(raw))
		dst = append(dst, head...)
		return append(dst, batches...), nil
	}
	reset, err := w.zstd(head, batches)
	if err != nil {
		return dst, err
	}
	return w.appendFrame(dst, CodecZstd, reset, raw), nil
}

// appendFrame appends a data frame with the content in w.out.
func (w *FrameWriter) appendFrame(dst []byte, codec Codec, reset bool, raw int) []byte {
	flags := byte(codec)
	if reset {
		flags |= flagReset
	}
	n := 2 + uvarintLen(uint64(raw)) + len(w.out.b)
	dst = binary.AppendUvarint(dst, uint64(n))
	dst = append(dst, frameData, flags)
	dst = binary.AppendUvarint(dst, uint64(raw))
	dst = append(dst, w.out.b...)
	if cap(w.out.b) > 1<<20 {
		w.out.b = nil
	}
	return dst
}

// zstd compresses a frame's content into w.out; reset says that a context begins.
func (w *FrameWriter) zstd(head, batches []byte) (reset bool, err error) {
	w.out.b = w.out.b[:0]
	if w.enc == nil {
		reset = true
		enc, err := zstd.NewWriter(&w.out, zstd.WithEncoderConcurrency(1), zstd.WithLowerEncoderMem(true),
			zstd.WithWindowSize(w.window), zstd.WithEncoderCRC(false), zstd.WithEncoderLevel(w.level))
		if err != nil {
			return false, fmt.Errorf("start zstd with a window of %d bytes: %w", w.window, err)
		}
		w.enc = enc
	}
	_, err = w.enc.Write(head)
	if err == nil {
		_, err = w.enc.Write(batches)
	}
	if err == nil {
		err = w.enc.Flush()
	}
	if err != nil {
		w.enc = nil // a broken context is never continued
		return false, fmt.Errorf("compress data frame: %w", err)
	}
	return reset, nil
}

// Idle gives the context up, both ends' memory with it, and appends the frame that
// says so. Nothing is appended when no context is open.
func (w *FrameWriter) Idle(dst []byte) []byte {
	if w.enc == nil && w.cols == nil {
		return dst
	}
	w.enc, w.out.b, w.cols, w.trial = nil, nil, nil, trial{}
	return append(dst, 2, frameIdle, 0)
}

func uvarintLen(v uint64) int {
	n := 1
	for v >= 0x80 {
		v >>= 7
		n++
	}
	return n
}

// FrameReader decodes the data frames of one stream. Not safe for concurrent use.
//
//	for {
//		raw, err := r.Next()          // how many bytes the next data frame takes
//		h, batches, err := r.Read(buf) // decode it into buf[:0], grown as needed
//	}
type FrameReader struct {
	br        *bufio.Reader
	maxFrame  int
	maxWindow int
	dec       *zstd.Decoder
	cols      *columns.Decoder // nil before the first telemetry frame
	packed    []byte
	inContext bool // a zstd context is open
	feed      feedReader
	flags     byte
	raw       int  // of the frame whose body is next; 0 = none
	noMore    bool // an error ended the stream
	WireBytes int64
}

// feedReader gives the decoder the bytes of one frame and not one more.
type feedReader struct {
	r    *bufio.Reader
	left int
	err  error // of the stream below, which is not the frame's fault
}

var errFrameEnd = errors.New("frame ends inside a compressed block")

func (f *feedReader) Read(p []byte) (int, error) {
	if f.left == 0 {
		return 0, errFrameEnd
	}
	n, err := f.r.Read(p[:min(len(p), f.left)])
	f.left -= n
	if err != nil {
		f.err = unexpected(err)
		err = f.err
	}
	return n, err
}

// NewFrameReader reads frames, after the preamble, with limits on what the peer may make it hold.
func NewFrameReader(r io.Reader, maxFrameBytes, maxWindowBytes int) *FrameReader {
	br := bufio.NewReaderSize(r, 512) // thousands of streams wait; what is large passes it by
	return &FrameReader{br: br, feed: feedReader{r: br}, maxFrame: min(maxFrameBytes, MaxFrameBytes) + frameHeadMax, maxWindow: maxWindowBytes}
}

// Next reads up to the next data frame and returns how many bytes its content has;
// io.EOF at a clean end. Read must follow.
func (r *FrameReader) Next() (int, error) {
	if r.noMore || r.raw != 0 {
		return 0, errors.New("internal error: frame reader used out of order")
	}
	n, err := r.next()
	if err != nil {
		r.fail()
	}
	return n, err
}

func (r *FrameReader) next() (int, error) {
	for {
		length, err := binary.ReadUvarint(r.br)
		if err != nil {
			return 0, err
		}
		// Incompressible data grows a little: 3 bytes a block and the frame's header.
		if length < 2 || length > uint64(r.maxFrame)+uint64(r.maxFrame)/64+1024 {
			return 0, bad("data frame of %d bytes", length)
		}
		r.WireBytes += int64(length) + int64(uvarintLen(length))
		var tf [2]byte
		if _, err := io.ReadFull(r.br, tf[:]); err != nil {
			return 0, unexpected(err)
		}
		left := int(length) - 2
		switch {
		case tf[0] == frameIdle:
			if left != 0 {
				return 0, bad("idle frame with a body of %d bytes", left)
			}
			r.release()
			continue
		case tf[0] != frameData:
			if _, err := r.br.Discard(left); err != nil {
				return 0, unexpected(err)
			}
			continue
		}
		r.flags = tf[1]
		if r.flags&flagUnknown != 0 || r.flags&flagCodec > byte(CodecTelemetry) {
			return 0, bad("data frame with flags %02x", r.flags)
		}
		raw, err := binary.ReadUvarint(r.br)
		if err != nil {
			return 0, unexpected(err)
		}
		left -= uvarintLen(raw)
		if left < 0 || raw < 4+batchHeaderBytes || raw > uint64(r.maxFrame) {
			return 0, bad("data frame with %d raw bytes in %d", raw, length)
		}
		codec := Codec(r.flags & flagCodec)
		if codec == CodecNone && (uint64(left) != raw || r.flags&flagReset != 0) {
			return 0, bad("plain data frame with %d raw bytes in %d", raw, length)
		}
		if codec == CodecZstd && r.flags&flagReset == 0 && !r.inContext {
			return 0, bad("compressed data frame without a context")
		}
		if codec == CodecTelemetry && r.flags&flagReset == 0 && r.cols == nil {
			return 0, bad("telemetry frame without a context")
		}
		r.raw, r.feed.left = int(raw), left
		return r.raw, nil
	}
}

// Read decodes the frame that Next announced into buf[:0], growing it when it is
// too small. batches alias the returned storage.
func (r *FrameReader) Read(buf []byte) (h FrameHeader, batches []byte, err error) {
	if r.noMore || r.raw == 0 {
		return h, nil, errors.New("internal error: frame reader used out of order")
	}
	h, batches, err = r.read(buf)
	if err != nil {
		r.fail()
	}
	return h, batches, err
}

func (r *FrameReader) read(buf []byte) (h FrameHeader, batches []byte, err error) {
	if Codec(r.flags&flagCodec) == CodecTelemetry {
		return r.readTelemetry(buf)
	}
	var src io.Reader = &r.feed
	if Codec(r.flags&flagCodec) == CodecZstd {
		if r.flags&flagReset != 0 {
			if err := r.reset(); err != nil {
				return h, nil, err
			}
		}
		src = r.dec
	}
	// Grow with what has arrived: a length alone makes nobody allocate.
	const step = 64 << 10
	b := buf[:0]
	for len(b) < r.raw {
		have := len(b)
		want := min(r.raw-have, max(step, have))
		if cap(b) < r.raw {
			if cap(b)-have < want {
				grown := make([]byte, have, have+want)
				copy(grown, b)
				b = grown
			}
		} else {
			want = r.raw - have
		}
		b = b[:have+want]
		if _, err := io.ReadFull(src, b[have:]); err != nil {
			if r.feed.err != nil {
				return h, nil, r.feed.err // the stream was cut
			}
			return h, nil, bad("data frame: %v", err)
		}
	}
	if r.feed.left != 0 {
		return h, nil, bad("data frame with %d bytes too many", r.feed.left)
	}
	r.raw = 0
	return parseFrame(b)
}

// parseFrame splits a frame's content into header and batches.
func parseFrame(b []byte) (h FrameHeader, batches []byte, err error) {
	var v [4]uint64
	for i := range v {
		n := 0
		if v[i], n = binary.Uvarint(b); n <= 0 {
			return h, nil, bad("data frame header")
		}
		b = b[n:]
	}
	if v[0] > 1<<32-1 || v[1] >= MaxEpochs || v[2] > 1<<62 || v[3] == 0 || v[3] > 1<<40 {
		return h, nil, bad("data frame header: partition %d epoch %d base %d count %d", v[0], v[1], v[2], v[3])
	}
	return FrameHeader{Partition: uint32(v[0]), Epoch: uint32(v[1]), Base: int64(v[2]), Count: int64(v[3])}, b, nil
}

func (r *FrameReader) reset() error {
	if r.dec == nil {
		dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxWindow(uint64(max(r.maxWindow, zstd.MinWindowSize))))
		if err != nil {
			return fmt.Errorf("start zstd decoder: %w", err)
		}
		r.dec = dec
	}
	r.inContext = true
	if err := r.dec.Reset(&r.feed); err != nil {
		return bad("zstd: %v", err)
	}
	return nil
}

func (r *FrameReader) release() {
	if r.dec != nil {
		r.dec.Close()
		r.dec = nil
	}
	r.inContext = false
	if r.cols != nil {
		r.cols.Close()
	}
	r.cols, r.packed = nil, nil
}

func (r *FrameReader) fail() {
	r.release()
	r.noMore, r.raw = true, 0
}

// Close frees the decoder.
func (r *FrameReader) Close() { r.fail() }

func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
