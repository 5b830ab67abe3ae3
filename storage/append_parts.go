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
	b := append(a.arena, key...)
	b = binary.AppendVarint(b, int64(len(value)))
	b = append(b, value...)
	b = binary.AppendVarint(b, int64(n))
	b = append(b, static...)
	b = append(b, more...)
	a.arena = append(b, origin...)
	a.record(p, ts, off, len(value))
	return nil
}
