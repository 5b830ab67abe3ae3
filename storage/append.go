package storage

import (
	"encoding/binary"
	"fmt"
	"math"
	"slices"

	"tailrace/storage/record"
)

const unknownTime = math.MinInt64

// Append is a set of records, batches and state changes of one storage class
// that become durable together, in one commit. It is filled by one goroutine,
// given to Submit or Commit, and may be Reset and used again once its done
// callback was called. What it is given is copied or encoded at once.
type Append struct {
	log   *classLog
	arena []byte
	items []appendItem
	ops   []byte
	nops  int
	err   error // of a Set or Fold that cannot be stored; Submit reports it
	now   bool  // does not wait for CommitInterval
	value int64 // bytes of values, and of whole batches
}

// appendItem is a record (the tail in the arena) or a whole batch, which is an entry of the
// log already: room for the envelope, origin, batch.
type appendItem struct {
	p        *Partition
	ts       int64
	base     int64 // set by the commit
	off, end int32
	origin   int32 // length of the origin before the batch
	count    int32
	batch    bool
}

// NewAppend returns an empty append for a storage class, "" the default. An
// unknown class gives one that Submit refuses.
func (s *Store) NewAppend(class string) *Append {
	l := s.log(class)
	if l == nil {
		return &Append{err: fmt.Errorf("%w: no storage class %q", ErrInvalid, class)}
	}
	return &Append{log: l}
}

// Len is the number of records and batches, Bytes what they and the state
// changes take, encoded.
func (a *Append) Len() int { return len(a.items) }

// Bytes is the size of what the append holds.
func (a *Append) Bytes() int { return len(a.arena) + len(a.ops) }

// Reset empties the append and keeps its memory, up to a bound.
func (a *Append) Reset() {
	const keep = 1 << 20
	if cap(a.arena) > keep {
		a.arena = nil
	}
	if cap(a.ops) > keep {
		a.ops = nil
	}
	clear(a.items)
	if cap(a.items) > 1<<14 {
		a.items = nil
	}
	a.arena, a.items, a.ops, a.nops, a.value = a.arena[:0], a.items[:0], a.ops[:0], 0, 0
	if a.log != nil {
		a.err = nil
	}
}

// Base returns, after success, the offset of the i-th record, or the base offset
// of the i-th batch, counting both in the order they were added.
func (a *Append) Base(i int) int64 { return a.items[i].base }

// Item returns partition, base offset and number of records of the i-th record
// or batch.
func (a *Append) Item(i int) (p *Partition, base int64, count int) {
	return a.items[i].p, a.items[i].base, int(a.items[i].count)
}

func (a *Append) check(p *Partition) error {
	switch {
	case a.log == nil:
		return a.err
	case p == nil:
		return fmt.Errorf("%w: no such partition", ErrUnknownTopic)
	case p.log != a.log:
		return fmt.Errorf("%w: topic %q is in class %q, the append in %q", ErrWrongClass, p.topic.name, p.log.cfg.Name, a.log.cfg.Name)
	}
	return nil
}

// Record adds one record; nil key and value are null. ts is in ms.
func (a *Append) Record(p *Partition, ts int64, key, value []byte, headers []record.Header) error {
	if err := a.check(p); err != nil {
		return err
	}
	size := len(key) + len(value)
	for i := range headers {
		size += len(headers[i].Key) + len(headers[i].Value) + 2
	}
	if size > MaxRecordBytes-1024 {
		return fmt.Errorf("%w: record of %d bytes, the limit is %d", ErrTooLarge, size, MaxRecordBytes)
	}
	off := len(a.arena)
	st := a.log.s
	if !st.cfg.OriginHeaders {
		a.arena = record.AppendTail(a.arena, key, value, headers)
	} else {
		a.arena = appendField(a.arena, key)
		a.arena = appendField(a.arena, value)
		a.arena = binary.AppendVarint(a.arena, int64(len(headers)+1))
		for i := range headers {
			a.arena = binary.AppendVarint(a.arena, int64(len(headers[i].Key)))
			a.arena = append(a.arena, headers[i].Key...)
			a.arena = appendField(a.arena, headers[i].Value)
		}
		a.arena = append(a.arena, st.originTail...)
	}
	a.record(p, ts, off, len(value))
	return nil
}

// record notes the record that begins at off of the arena.
func (a *Append) record(p *Partition, ts int64, off, value int) {
	a.value += int64(value)
	a.items = append(a.items, appendItem{p: p, ts: ts, off: int32(off), end: int32(len(a.arena)), count: 1})
}

func appendField(dst, b []byte) []byte {
	if b == nil {
		return append(dst, 1)
	}
	dst = binary.AppendVarint(dst, int64(len(b)))
	return append(dst, b...)
}

// RecordTail adds a record whose part after the offset delta was made by
// record.AppendTail; anything else is refused.
func (a *Append) RecordTail(p *Partition, ts int64, tail []byte) error {
	if err := a.check(p); err != nil {
		return err
	}
	if len(tail) > MaxRecordBytes-1024 {
		return fmt.Errorf("%w: record of %d bytes, the limit is %d", ErrTooLarge, len(tail), MaxRecordBytes)
	}
	if err := record.CheckTail(tail); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	off := len(a.arena)
	st := a.log.s
	if !st.cfg.OriginHeaders {
		a.arena = append(a.arena, tail...)
	} else {
		at := skipField(tail, skipField(tail, 0))
		n, w := binary.Varint(tail[at:])
		a.arena = append(a.arena, tail[:at]...)
		a.arena = binary.AppendVarint(a.arena, n+1)
		a.arena = append(a.arena, tail[at+w:]...)
		a.arena = append(a.arena, st.originTail...)
	}
	from := skipField(tail, 0)
	a.record(p, ts, off, skipField(tail, from)-from)
	return nil
}

// skipField returns the position after the length-prefixed field at pos of a
// checked tail.
func skipField(b []byte, pos int) int {
	n, w := binary.Varint(b[pos:])
	return pos + w + int(max(n, 0))
}

// Batch adds a whole batch, which is verified and copied; its base offset and
// leader epoch are set by the commit. o, which may be nil, is kept beside it.
func (a *Append) Batch(p *Partition, b record.Batch, o *Origin) error {
	if err := a.check(p); err != nil {
		return err
	}
	if len(b) > MaxRecordBytes {
		return fmt.Errorf("%w: batch of %d bytes, the limit is %d", ErrTooLarge, len(b), MaxRecordBytes)
	}
	if err := b.Verify(); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if o != nil && (len(o.Node) > 255 || len(o.Topic) > 512 || o.From < 0 || o.To < o.From || o.Partition < 0 || o.Partition > math.MaxInt32) {
		return fmt.Errorf("%w: origin %+v", ErrInvalid, *o)
	}
	off, originLen := len(a.arena), 0
	a.arena = slices.Grow(a.arena, envelopeBytes+len(b)+maxOrigin(o))[:off+envelopeBytes]
	if o != nil {
		a.arena = appendOrigin(a.arena, o)
		originLen = len(a.arena) - off - envelopeBytes
	}
	a.value += int64(len(b))
	a.arena = append(a.arena, b...)
	a.items = append(a.items, appendItem{p: p, off: int32(off), end: int32(len(a.arena)), batch: true, origin: int32(originLen), count: int32(b.Count())})
	return nil
}

// Set makes key hold value once the append is durable; nil deletes the key, an
// empty value does not. Kinds below 16 are the store's own.
func (a *Append) Set(kind StateKind, key string, value []byte) {
	op := byte(opSet)
	if value == nil {
		op = opDelete
	}
	a.state(kind, op, key, value)
}

// Fold combines delta with what key holds, by Config.Folds (without a fold for
// the kind, delta replaces it).
func (a *Append) Fold(kind StateKind, key string, delta []byte) {
	a.state(kind, opFold, key, delta)
}

func (a *Append) state(kind StateKind, op byte, key string, value []byte) {
	switch {
	case a.err != nil:
	case kind < KindSession:
		a.err = fmt.Errorf("%w: state kind %d is the store's own", ErrInvalid, kind)
	case len(key)+len(value) > MaxStateBytes:
		a.err = fmt.Errorf("%w: state %s/%.64q of %d bytes, the limit is %d", ErrTooLarge, kind, key, len(value), MaxStateBytes)
	default:
		a.op(kind, op, key, value)
	}
}

func (a *Append) op(kind StateKind, op byte, key string, value []byte) {
	a.ops = appendOp(a.ops, kind, op, key, value)
	a.nops++
}
