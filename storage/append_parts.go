package storage

import (
	"encoding/binary"
	"fmt"
)

// RecordParts adds a record from parts that the caller encoded before, so that what
// is the same for many records is encoded once: key is a whole key field (varint
// length and bytes, or null), static and more are together n whole headers. The
// value is never null. It is the ingest path of a node: one copy, nothing is
// decoded again, and the caller answers for the encoding; parts of unknown origin
// go through RecordTail, which checks.
func (a *Append) RecordParts(p *Partition, ts int64, key, value []byte, n int, static, more []byte) error {
	if err := a.check(p); err != nil {
		return err
	}
	if size := len(key) + len(value) + len(static) + len(more); size > MaxRecordBytes-1024 {
		return fmt.Errorf("%w: record of %d bytes, the limit is %d", ErrTooLarge, size, MaxRecordBytes)
	}
	var origin []byte
	if s := a.log.s; s.cfg.OriginHeaders {
		origin, n = s.originTail, n+1
	}
	off := len(a.arena)
	a.arena = append(a.arena, key...)
	a.arena = binary.AppendVarint(a.arena, int64(len(value)))
	a.arena = append(a.arena, value...)
	a.arena = binary.AppendVarint(a.arena, int64(n))
	a.arena = append(a.arena, static...)
	a.arena = append(a.arena, more...)
	a.arena = append(a.arena, origin...)
	a.items = append(a.items, appendItem{p: p, ts: ts, off: off, end: len(a.arena), count: 1})
	return nil
}
