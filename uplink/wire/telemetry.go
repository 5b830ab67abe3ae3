package wire

import (
	"encoding/binary"
	"errors"
	"io"

	"tailrace/uplink/wire/columns"
)

// Of codec telemetry and zstd the better one is found by trial: at the start and every
// trialEvery frames some are encoded with both, and what gave fewer bytes is used for the
// rest. A trial takes 128 KiB and ten frames, or 256 frames; what went before the last
// power of two does not count, since a context begins with what is dear.
const (
	trialBytes = 128 << 10
	trialLeast = 10
	trialMost  = 256
	trialEvery = 8192
)

type trial struct {
	frame     int // since the trial began
	raw       int
	over      bool
	useZstd   bool
	zstd, own int
}

// stateOf is the bound of the state of codec telemetry for a zstd window.
func stateOf(window int) int { return min(max(8*window, columns.MinState), columns.MaxState) }

func (w *FrameWriter) appendTelemetry(dst, head, batches []byte) ([]byte, error) {
	t := &w.trial
	if t.frame == trialEvery {
		*t = trial{useZstd: t.useZstd}
	}
	t.frame++
	if t.frame == 1 { // the one that is not in use begins anew
		if !t.useZstd {
			w.enc = nil
		} else {
			w.cols = nil
		}
	}
	both := !t.over
	raw := len(head) + len(batches)
	t.raw += raw
	plain := false // zstd is better by far
	if t.frame&(t.frame-1) == 0 {
		plain = both && t.frame >= 16 && t.own > 3*t.zstd
		if !plain {
			t.zstd, t.own = 0, 0
		}
	}
	start, own := len(dst), -1
	if both || !t.useZstd {
		out, err := w.telemetry(dst, head, batches)
		switch {
		case err != nil: // more state than is allowed
			w.cols = nil
			if !t.useZstd {
				w.enc = nil
			}
		case t.useZstd:
			own = len(out) - start
		default:
			own, dst = len(out)-start, out
		}
	}
	var err error
	if both || t.useZstd || own < 0 {
		var reset bool
		if reset, err = w.zstd(head, batches); err != nil {
			return dst, err
		}
		if own >= 0 {
			t.zstd, t.own = t.zstd+len(w.out.b), t.own+own
		}
		if t.useZstd || own < 0 {
			dst = w.appendFrame(dst, CodecZstd, reset, raw)
		}
		if own < 0 && !t.useZstd && !both {
			w.enc = nil // the next zstd frame begins anew: what lies between is not in its context
		}
	}
	if both && (plain || t.frame >= trialMost || t.frame >= trialLeast && t.raw >= trialBytes) {
		t.over = true
		if better := t.zstd < t.own; better != t.useZstd {
			t.useZstd, w.enc, w.cols = better, nil, nil
		} else if t.useZstd {
			w.cols = nil
		} else {
			w.enc = nil
		}
	}
	return dst, nil
}

// telemetry appends a frame of codec telemetry.
func (w *FrameWriter) telemetry(dst, head, batches []byte) ([]byte, error) {
	if w.cols == nil {
		w.cols = columns.NewEncoder(stateOf(w.window))
	}
	body, first, err := w.cols.Append(w.packed[:0], batches)
	if err != nil {
		return dst, err
	}
	w.packed = body
	flags, state := byte(CodecTelemetry), []byte(nil)
	if first {
		flags |= flagReset
		state = binary.AppendUvarint(nil, uint64(w.cols.MaxState()))
	}
	raw := len(head) + len(batches)
	dst = binary.AppendUvarint(dst, uint64(2+uvarintLen(uint64(raw))+len(state)+len(head)+len(body)))
	dst = append(dst, frameData, flags)
	dst = binary.AppendUvarint(dst, uint64(raw))
	dst = append(dst, state...)
	dst = append(dst, head...)
	return append(dst, body...), nil
}

func (r *FrameReader) readTelemetry(buf []byte) (h FrameHeader, batches []byte, err error) {
	// Grow with what has arrived: a length alone makes nobody allocate.
	const step = 64 << 10
	b := r.packed[:0]
	for r.feed.left > 0 {
		n := min(r.feed.left, step)
		b = append(b, make([]byte, n)...)
		if _, err := io.ReadFull(&r.feed, b[len(b)-n:]); err != nil {
			if r.feed.err != nil {
				return h, nil, r.feed.err
			}
			return h, nil, bad("data frame: %v", err)
		}
	}
	if r.packed = b; cap(b) > 1<<20 {
		r.packed = nil
	}
	if r.flags&flagReset != 0 {
		state, n := binary.Uvarint(b)
		if n <= 0 || state > uint64(stateOf(r.maxWindow)) {
			return h, nil, bad("telemetry state of %d bytes, allowed are %d", state, stateOf(r.maxWindow))
		}
		b = b[n:]
		if r.cols != nil {
			r.cols.Close()
		}
		r.cols = columns.NewDecoder(int(state))
		r.cols.Reset()
	}
	h, rest, err := parseFrame(b)
	if err != nil {
		return h, nil, err
	}
	size := r.raw - (len(b) - len(rest))
	r.raw = 0
	if size < 0 {
		return h, nil, bad("telemetry frame of %d raw bytes", size)
	}
	batches, err = r.cols.Append(buf[:0], rest, size)
	if errors.Is(err, columns.ErrCorrupt) {
		err = bad("%v", err)
	}
	return h, batches, err
}
