package storage

import (
	"context"
	"io"
	"math"
	"time"

	"tailrace/storage/record"
)

const cursorBytes = 256 << 10

// Cursor reads the batches of a partition one after the other.
type Cursor struct {
	p        *Partition
	off      int64
	end      int64 // io.EOF here; math.MaxInt64: wait for more
	from, to int64 // only batches that may hold times in [from, to)
	all      bool
	buf      []byte
	rest     []byte
	size     int
}

// NewCursor returns a cursor that begins with the batch that contains from, and
// at the end of the partition waits for more.
func NewCursor(p *Partition, from int64) *Cursor {
	return &Cursor{p: p, off: from, end: math.MaxInt64, all: true, size: cursorBytes}
}

// NewCursorTo is NewCursor, with io.EOF at the batch that begins at or behind to.
func NewCursorTo(p *Partition, from, to int64) *Cursor {
	c := NewCursor(p, from)
	c.end = to
	return c
}

// ReadRange returns a cursor over the batches that may hold records with
// timestamps in [from, to), wherever they lie in what is durable now; then
// io.EOF. A batch may hold others, too: look at each record.
func (p *Partition) ReadRange(from, to time.Time) *Cursor {
	return &Cursor{p: p, off: p.Start(), end: p.hw.Load(), from: from.UnixMilli(), to: to.UnixMilli(), size: cursorBytes}
}

// Offset is where the next batch begins, or is looked for.
func (c *Cursor) Offset() int64 { return c.off }

// Next returns the next batch, valid until the following call. At the end it
// waits until ctx ends, or returns io.EOF when the cursor has an end.
// ErrOffsetOutOfRange when retention has overtaken it: SeekTo the partition's Start.
func (c *Cursor) Next(ctx context.Context) (record.Batch, error) {
	for {
		if len(c.rest) > 0 {
			b, rest, err := record.Next(c.rest)
			if err != nil {
				return nil, err
			}
			if b.BaseOffset() >= c.end {
				return nil, io.EOF
			}
			c.rest = rest
			c.off = b.NextOffset()
			return b, nil
		}
		if c.off >= c.end {
			return nil, io.EOF
		}
		if err := c.fill(ctx); err != nil {
			return nil, err
		}
	}
}

// SeekTo makes the cursor go on with the batch that contains off.
func (c *Cursor) SeekTo(off int64) { c.off, c.rest = off, nil }

func (c *Cursor) fill(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	size := c.size
	if !c.all {
		off, n, err := c.p.skipTo(c.off, c.end, c.from, c.to)
		if err != nil {
			return err
		}
		if c.off, size = off, min(size, n); off >= c.end {
			return nil
		}
	}
	buf, next, err := c.p.Read(c.buf[:0], c.off, size)
	if err != nil {
		return err
	}
	c.buf, c.rest = buf, buf
	if len(buf) == 0 {
		if next > c.off {
			c.off = next
			return nil
		}
		if c.end != math.MaxInt64 && c.p.HighWatermark() >= c.end {
			c.off = c.end // nothing readable is left before it
			return nil
		}
		return c.p.Wait(ctx, c.off)
	}
	return nil
}

// skipTo returns the first offset at or behind from that a batch with a time in
// [lo, hi) has, and how many bytes of such batches follow each other.
func (p *Partition) skipTo(from, limit, lo, hi int64) (off int64, bytes int, err error) {
	var few [64]ref
	for from < limit {
		if next, ok := p.skipSpans(from, lo, hi); ok {
			from = next
			continue
		}
		_, refs, err := p.locate(few[:0], from, limit, math.MaxInt, true)
		if err != nil {
			return from, 0, err
		}
		if len(refs) == 0 {
			return limit, 0, nil
		}
		i := 0
		for i < len(refs) && (refs[i].max < lo || refs[i].min >= hi) {
			i++
		}
		if i == len(refs) {
			from = refs[i-1].next
			continue
		}
		from = max(from, refs[i].base)
		for ; i < len(refs) && refs[i].max >= lo && refs[i].min < hi; i++ {
			bytes += int(refs[i].size)
		}
		return from, bytes, nil
	}
	return limit, 0, nil
}

// skipSpans returns the end of the span that holds from when no batch in it can
// have a time in [lo, hi).
func (p *Partition) skipSpans(from, lo, hi int64) (int64, bool) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	for i := range p.spans {
		if s := &p.spans[i]; s.next > from {
			return s.next, s.max < lo || s.min >= hi
		}
	}
	return 0, false
}
