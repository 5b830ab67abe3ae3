package storage

import (
	"math"

	"tailrace/storage/record"
)

// encode turns an append into entries of the commit.
func (c *committer) encode(a *Append) {
	epoch := c.l.s.epochNumber()
	origin := c.l.s.cfg.OriginHeaders
	for i := range a.items {
		it := &a.items[i]
		p := it.p
		data := a.arena[it.off:it.end:it.end]
		if it.batch {
			c.flush(p, epoch)
			c.addBatch(it, data, epoch)
			continue
		}
		b := p.build
		if b == nil {
			b = c.begin(p)
		} else if b.bl.Count() > 0 && b.bl.Len()+len(data)+20 > c.l.cfg.MaxBatchBytes {
			c.flush(p, epoch)
			b = c.begin(p)
		}
		it.base = p.next.Load() + int64(b.bl.Count())
		if origin {
			putOffset(data, it.base)
		}
		b.min = min(b.min, it.ts)
		b.bl.AddEncoded(it.ts, data)
	}
	if len(a.ops) > 0 {
		c.addOps(a.ops)
	}
}

func putOffset(tail []byte, off int64) {
	v := tail[len(tail)-8:]
	_ = v[7]
	v[0], v[1], v[2], v[3] = byte(off>>56), byte(off>>48), byte(off>>40), byte(off>>32)
	v[4], v[5], v[6], v[7] = byte(off>>24), byte(off>>16), byte(off>>8), byte(off)
}

// begin starts a batch for a partition.
func (c *committer) begin(p *Partition) *batchBuild {
	b := &p.builder
	b.bl.Reset(c.buffer())
	b.min = math.MaxInt64
	p.build = b
	c.touch(p)
	return b
}

func (c *committer) touch(p *Partition) {
	if !p.touched {
		p.touched = true
		c.touched = append(c.touched, p)
	}
}

// flush ends the batch of a partition that is being built.
func (c *committer) flush(p *Partition, epoch int32) {
	b := p.build
	if b == nil {
		return
	}
	p.build = nil
	n, base := b.bl.Count(), p.next.Load()
	buf := b.bl.Finish(base, epoch)
	e := pendingEntry{p: p, buf: buf, count: n,
		ref: ref{base: base, next: base + int64(n), min: b.min, max: record.Batch(buf[envelopeBytes:]).MaxTimestamp()}}
	if c.l.cfg.Pack {
		e.buf, e.packed = c.pack(buf)
		e.saved = int64(len(buf) - len(e.buf))
	}
	c.entries = append(c.entries, e)
	p.next.Store(base + int64(n))
}

// pack makes an entry smaller if it can; it takes buf.
func (c *committer) pack(buf []byte) ([]byte, bool) {
	out, ok := record.Pack(c.buffer(), record.Batch(buf[envelopeBytes:]))
	if !ok {
		out, buf = buf, out
	}
	c.release(buf)
	return out, ok
}

// addBatch takes the entry as it lies in the append, which is ours until done is called.
func (c *committer) addBatch(it *appendItem, buf []byte, epoch int32) {
	p := it.p
	b := record.Batch(buf[envelopeBytes+int(it.origin):])
	base := p.next.Load()
	b.SetBaseOffset(base)
	b.SetLeaderEpoch(epoch)
	it.base = base
	lo, hi := batchTimes(b)
	c.touch(p)
	c.entries = append(c.entries, pendingEntry{p: p, buf: buf, lent: true, origin: int(it.origin), count: int(it.count),
		ref: ref{base: base, next: b.NextOffset(), min: lo, max: hi}})
	p.next.Store(b.NextOffset())
}

// addOps adds state operations, in entries of a bounded size.
func (c *committer) addOps(ops []byte) {
	for len(ops) > 0 {
		n := len(ops)
		if n > stateEntryBytes {
			_, _, _, _, rest, err := nextOp(ops)
			if err != nil {
				panic("internal error: state operation does not parse: " + err.Error())
			}
			n -= len(rest)
		}
		if len(c.ops) > 0 && len(c.ops)+n > stateEntryBytes {
			c.flushOps()
		}
		if len(c.ops) == 0 {
			c.ops = c.buffer()
		}
		c.ops, ops = append(c.ops, ops[:n]...), ops[n:]
	}
}

func (c *committer) flushOps() {
	if len(c.ops) == 0 {
		return
	}
	e := pendingEntry{buf: c.ops}
	if c.l.cfg.Pack {
		if out, ok := packOps(c.buffer(), c.ops[envelopeBytes:]); ok {
			e.saved, e.packed, e.buf, e.ops = int64(len(c.ops)-len(out)), true, out, c.ops
		} else {
			c.release(out)
		}
	}
	c.entries = append(c.entries, e)
	c.ops = nil
}

// buffer returns a buffer with room for an envelope in front.
func (c *committer) buffer() []byte {
	if n := len(c.free); n > 0 {
		b := c.free[n-1]
		c.free = c.free[:n-1]
		c.freeCap -= cap(b)
		return b[:envelopeBytes]
	}
	return make([]byte, envelopeBytes, 1024)
}

func (c *committer) release(b []byte) {
	const keep = 4 << 20
	if b != nil && c.freeCap+cap(b) <= keep {
		c.free = append(c.free, b)
		c.freeCap += cap(b)
	}
}
