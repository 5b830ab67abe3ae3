package bundle

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"tailrace/uplink"
	"tailrace/uplink/link"
	"tailrace/uplink/ranges"
	"tailrace/uplink/wire"
)

// Identity is what a node proves itself with: the certificate of its uplink.
type Identity struct {
	Certs [][]byte // DER, its own first
	Key   crypto.PrivateKey
}

// Options say what to export and how.
type Options struct {
	Node     string
	Identity Identity
	Select   func(p wire.PartitionInfo) (from, to int64) // to <= from leaves the partition out
	Created  wire.Clock
	Software string
	Store    *wire.StoreRef
	Rand     io.Reader

	// Progress, when set, is told the offsets written and in all.
	Progress func(done, total int64)
}

// Write exports from src. It holds one block in memory. What the node no longer has
// of a selected range goes in as a gap, with the reason where it is known.
func Write(ctx context.Context, w io.Writer, src link.Source, o Options) (Totals, error) {
	if len(o.Identity.Certs) == 0 {
		return Totals{}, errors.New("bundle: no certificate: a bundle is signed with the node's key")
	}
	sign, err := signer(o.Identity.Key, o.Rand)
	if err != nil {
		return Totals{}, err
	}
	if _, err := x509.ParseCertificate(o.Identity.Certs[0]); err != nil {
		return Totals{}, fmt.Errorf("bundle: certificate: %w", err)
	}
	x := &export{ctx: ctx, w: writer{w: w, sign: sign}, src: src, o: o, inv: src.Inventory()}
	if _, err := io.WriteString(w, Magic); err != nil {
		return x.sum, err
	}
	if err := x.header(); err != nil {
		return x.sum, err
	}
	for _, p := range x.parts {
		if err := x.part(p); err != nil {
			return x.sum, err
		}
	}
	if err := x.flush(); err != nil {
		return x.sum, err
	}
	end, err := encMode.Marshal(x.sum)
	if err != nil {
		return x.sum, err
	}
	return x.sum, x.w.block(kindEnd, end)
}

type export struct {
	ctx   context.Context
	w     writer
	src   link.Source
	o     Options
	inv   wire.Inventory
	parts []Part
	gaps  []link.GapProposal
	sum   Totals

	done, total int64
	fw          *wire.FrameWriter // of the block being filled; nil = none
	raw         int
	block       []byte
	batch       []byte
}

func (x *export) info(id uint32) wire.PartitionInfo {
	for _, p := range x.inv.Partitions {
		if p.ID == id {
			return p
		}
	}
	return wire.PartitionInfo{} // never: parts are made from the inventory
}

func (x *export) header() error {
	for _, p := range x.inv.Partitions {
		from, to := x.o.Select(p)
		if from, to = max(from, 0), min(to, p.Next); from >= to {
			continue
		}
		part := Part{Partition: p.ID, From: from, To: to}
		for k, at := range uplink.EpochRanges(x.inv.Epochs, p.Topic, p.Partition) {
			before := min(from, at.To) - 1
			if before < at.From {
				continue
			}
			b, _, err := x.src.Read(x.batch[:0], p.Topic, p.Partition, before, 1)
			if err != nil || len(b) == 0 {
				continue // it is gone: nothing to compare
			}
			if one, _, err := wire.NextBatch(b); err == nil && one.Base <= before && one.Base >= at.From {
				part.Before = append(part.Before, Before{Epoch: uint32(k), Held: wire.Held{Offset: one.Base, CRC: one.CRC}})
			}
		}
		x.parts = append(x.parts, part)
		x.total += to - from
	}
	msg, err := wire.Append(nil, &x.inv)
	if err != nil {
		return err
	}
	_, n := binary.Uvarint(msg) // its length: a block has one
	h := Header{Node: x.o.Node, Created: x.o.Created, Software: x.o.Software, Message: msg[n:], Parts: x.parts, Certs: x.o.Identity.Certs, Store: x.o.Store}
	if _, err := io.ReadFull(x.o.Rand, h.ID[:]); err != nil {
		return fmt.Errorf("draw a bundle id: %w", err)
	}
	content, err := encMode.Marshal(h)
	if err != nil {
		return err
	}
	x.gaps = x.src.Gaps()
	return x.w.block(kindHeader, content)
}

func (x *export) part(part Part) error {
	p := x.info(part.Partition)
	for k, at := range uplink.EpochRanges(x.inv.Epochs, p.Topic, p.Partition) {
		if lo, hi := max(at.From, part.From), min(at.To, part.To); lo < hi {
			if err := x.run(p, k, lo, hi); err != nil {
				return err
			}
		}
	}
	return nil
}

// run writes [pos, to) of one epoch.
func (x *export) run(p wire.PartitionInfo, epoch int, pos, to int64) error {
	for pos < to {
		if err := x.ctx.Err(); err != nil {
			return err
		}
		batches, _, err := x.src.Read(x.batch[:0], p.Topic, p.Partition, pos, 1<<20)
		if errors.Is(err, link.ErrGone) {
			start, _ := x.src.Bounds(p.Topic, p.Partition)
			if start <= pos {
				return fmt.Errorf("read %s/%d at offset %d: %w", p.Topic, p.Partition, pos, err)
			}
			if err := x.gap(p, epoch, pos, min(start, to), wire.GapExpired); err != nil {
				return err
			}
			pos = min(start, to)
			continue
		}
		if err != nil {
			return fmt.Errorf("read %s/%d at offset %d: %w", p.Topic, p.Partition, pos, err)
		}
		x.batch = batches
		n, first, next := whole(batches, to)
		if first < 0 || first >= to { // nothing more before to
			return x.gap(p, epoch, pos, to, wire.GapMissing)
		}
		if first > pos {
			if err := x.gap(p, epoch, pos, first, wire.GapMissing); err != nil {
				return err
			}
		}
		if err := x.data(p.ID, epoch, first, next, batches[:n]); err != nil {
			return err
		}
		x.report(next - max(pos, first))
		pos = next
	}
	return nil
}

// whole is how many bytes of batches begin before to, without a hole between them, and
// the offsets they hold; first is -1 when there is none.
func whole(batches []byte, to int64) (n int, first, next int64) {
	first = -1
	for rest := batches; len(rest) > 0; {
		b, r, err := wire.NextBatch(rest)
		if err != nil || b.Base >= to || first >= 0 && b.Base != next {
			break
		}
		if first < 0 {
			first = b.Base
		}
		n, next, rest = n+len(b.Bytes), b.Next, r
	}
	return n, first, next
}

func (x *export) data(partition uint32, epoch int, base, next int64, batches []byte) error {
	if len(batches) > wire.MaxFrameBytes {
		return fmt.Errorf("the batch at offset %d has %d bytes, a frame carries %d", base, len(batches), wire.MaxFrameBytes)
	}
	if x.fw != nil && x.raw+len(batches) > blockRaw {
		if err := x.flush(); err != nil {
			return err
		}
	}
	if x.fw == nil {
		x.fw = wire.NewFrameWriter(wire.CodecTelemetry, windowBytes)
	}
	var err error
	x.block, err = x.fw.Append(x.block, wire.FrameHeader{Partition: partition, Epoch: uint32(epoch), Base: base, Count: next - base}, batches)
	if err != nil {
		return err
	}
	x.raw += len(batches)
	x.sum.Bytes += int64(len(batches))
	for rest := batches; len(rest) > 0; {
		b, r, err := wire.NextBatch(rest)
		if err != nil {
			return err
		}
		x.sum.Records += int64(b.Records)
		rest = r
	}
	return nil
}

// gap writes what will never come: with the node's own reason where it has one.
func (x *export) gap(p wire.PartitionInfo, epoch int, from, to int64, reason wire.GapReason) error {
	if err := x.flush(); err != nil { // in order: what follows it is behind it
		return err
	}
	left := ranges.Of(from, to)
	g := wire.GapReport{Partition: p.ID, Epoch: x.inv.Epochs[epoch].ID}
	for _, k := range x.gaps {
		if k.Topic != p.Topic || k.Partition != p.Partition || k.Epoch != g.Epoch {
			continue
		}
		known := k.Gap
		known.Ranges = nil
		for _, r := range k.Gap.Ranges {
			if lo, hi := max(r.From, from), min(r.To, to); lo < hi {
				known.Ranges.AddSet(left.Within(lo, hi))
			}
		}
		if len(known.Ranges) > 0 {
			left.RemoveSet(known.Ranges)
			g.Gaps = append(g.Gaps, known)
		}
	}
	if len(left) > 0 {
		g.Gaps = append(g.Gaps, wire.Gap{Ranges: left, Reason: reason})
	}
	msg, err := wire.Append(nil, &g)
	if err != nil {
		return err
	}
	_, n := binary.Uvarint(msg)
	x.sum.Lost += to - from
	x.report(to - from)
	return x.w.block(kindGaps, msg[n:])
}

// flush ends the data block.
func (x *export) flush() error {
	if x.fw == nil {
		return nil
	}
	x.fw.Idle(nil)
	err := x.w.block(kindData, x.block)
	x.fw, x.raw, x.block = nil, 0, x.block[:0]
	return err
}

func (x *export) report(n int64) {
	if x.done += n; x.o.Progress != nil {
		x.o.Progress(x.done, x.total)
	}
}
