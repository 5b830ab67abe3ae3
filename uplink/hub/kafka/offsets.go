package kafka

import (
	"context"
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"

	"tailrace/storage"
)

// Committed offsets are durable state (StateKind KindGroup) of the store's
// default class, one key for each group and partition. The partition is named
// by its id, which is never used again: offsets of a deleted topic do not pass
// to a new one of its name.
//
//	key    "offset/" group 0x00 partition id (decimal)
//	value  offset (8), leader epoch (4), committed at, ms since 1970 (8), metadata; big endian
const offsetPrefix = "offset/"

const maxOffsetMetadata = 4096

type committed struct {
	offset   int64
	epoch    int32
	at       int64
	metadata string
}

func offsetKey(group string, p storage.PartitionID) string {
	return offsetPrefix + group + "\x00" + strconv.FormatUint(uint64(p), 10)
}

func parseOffsetKey(key string) (group string, p storage.PartitionID, ok bool) {
	rest, ok := strings.CutPrefix(key, offsetPrefix)
	group, num, cut := strings.Cut(rest, "\x00")
	id, err := strconv.ParseUint(num, 10, 32)
	return group, storage.PartitionID(id), ok && cut && err == nil
}

func (o committed) encode() []byte {
	b := binary.BigEndian.AppendUint64(make([]byte, 0, 20+len(o.metadata)), uint64(o.offset))
	b = binary.BigEndian.AppendUint32(b, uint32(o.epoch))
	b = binary.BigEndian.AppendUint64(b, uint64(o.at))
	return append(b, o.metadata...)
}

func decodeCommitted(b []byte) (committed, bool) {
	if len(b) < 20 {
		return committed{}, false
	}
	return committed{
		offset: int64(binary.BigEndian.Uint64(b)), epoch: int32(binary.BigEndian.Uint32(b[8:])),
		at: int64(binary.BigEndian.Uint64(b[12:])), metadata: string(b[20:]),
	}, true
}

// offset is what the group has committed for the partition.
func (gs *groups) offset(group string, p storage.PartitionID) (committed, bool) {
	v, ok := gs.s.store.State(storage.KindGroup, offsetKey(group, p))
	if !ok {
		return committed{}, false
	}
	return decodeCommitted(v)
}

// offsets are all that the group has committed, of partitions that exist. It
// looks through the offsets of every group: for tools.
func (gs *groups) offsets(group string) map[*storage.Partition]committed {
	out := make(map[*storage.Partition]committed)
	var ids []storage.PartitionID
	var vals []committed
	gs.s.store.RangeState(storage.KindGroup, func(key string, value []byte) bool {
		if g, id, ok := parseOffsetKey(key); ok && g == group {
			if o, ok := decodeCommitted(value); ok {
				ids, vals = append(ids, id), append(vals, o)
			}
		}
		return true
	})
	for i, id := range ids {
		if p, ok := gs.s.store.PartitionByID(id); ok {
			out[p] = vals[i]
		}
	}
	return out
}

// expire forgets offsets of partitions that are gone, and those of groups
// without members after OffsetRetention.
func (gs *groups) expire(ctx context.Context) error {
	limit := gs.s.cfg.Now().Add(-gs.s.cfg.OffsetRetention).UnixMilli()
	var keys []string
	gs.s.store.RangeState(storage.KindGroup, func(key string, value []byte) bool {
		if _, _, ok := parseOffsetKey(key); ok {
			keys = append(keys, key)
		}
		return true
	})
	a := gs.s.store.NewAppend("")
	n := 0
	for _, key := range keys {
		group, id, _ := parseOffsetKey(key)
		v, _ := gs.s.store.State(storage.KindGroup, key)
		o, ok := decodeCommitted(v)
		_, exists := gs.s.store.PartitionByID(id)
		if !ok || !exists || o.at < limit && !gs.active(group) {
			a.Set(storage.KindGroup, key, nil)
			n++
		}
	}
	if n == 0 {
		return nil
	}
	if err := gs.s.store.Commit(ctx, a); err != nil {
		return fmt.Errorf("forget %d offsets: %w", n, err)
	}
	return nil
}

// GroupOffset is what a consumer group has committed.
type GroupOffset struct {
	Group, Topic, Metadata string
	Partition              int
	Offset                 int64
}

// CommittedOffsets are those of every group in a store, for who moves them elsewhere.
func CommittedOffsets(store *storage.Store) (list []GroupOffset) {
	type one struct {
		group string
		id    storage.PartitionID
		c     committed
	}
	var all []one
	store.RangeState(storage.KindGroup, func(key string, value []byte) bool {
		if g, id, ok := parseOffsetKey(key); ok {
			if c, ok := decodeCommitted(value); ok {
				all = append(all, one{g, id, c})
			}
		}
		return true
	})
	for _, o := range all {
		if p, ok := store.PartitionByID(o.id); ok {
			list = append(list, GroupOffset{o.group, p.Topic().Name(), o.c.metadata, p.Index(), o.c.offset})
		}
	}
	return list
}
