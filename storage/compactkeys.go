package storage

import (
	"hash/maphash"
	"math/bits"
)

// keyTable knows the newest offset of each key of a stretch, in bounded memory: keys
// are told by 128 bits of hash with seeds of the process's own, so that nobody can
// make two keys meet. Open addressing; it never grows beyond its limit.
type keyTable struct {
	seeds [2]maphash.Seed
	slots []keySlot
	used  int
	limit int // slots that may be in use
}

type keySlot struct {
	hash [2]uint64
	next int64 // offset + 1; 0: free
}

const keySlotBytes = 24

// newKeyTable makes a table for at most records keys, in at most maxBytes.
func newKeyTable(records, maxBytes int64) *keyTable {
	want := uint64(max(min(records*3/2, maxBytes/keySlotBytes), 16))
	n := 1 << (bits.Len64(want) - 1) // a power of two, at most want
	if uint64(n) < want && records*3/2 <= maxBytes/keySlotBytes && int64(2*n)*keySlotBytes <= maxBytes {
		n *= 2
	}
	return &keyTable{seeds: [2]maphash.Seed{maphash.MakeSeed(), maphash.MakeSeed()}, slots: make([]keySlot, n), limit: n * 3 / 4}
}

// room tells whether n more keys are certain to fit.
func (t *keyTable) room(n int) bool { return t.used+n <= t.limit }

// grow makes room for a batch that is larger than the table may be: one batch always fits.
func (t *keyTable) grow(n int) {
	old := t.slots
	t.slots = make([]keySlot, 1<<bits.Len64(uint64(t.used+n)*3/2))
	t.limit = len(t.slots) * 3 / 4
	for i := range old {
		if old[i].next != 0 {
			*t.slot(old[i].hash) = old[i]
		}
	}
}

func (t *keyTable) hash(key []byte) [2]uint64 {
	return [2]uint64{maphash.Bytes(t.seeds[0], key), maphash.Bytes(t.seeds[1], key)}
}

// slot is where a hash is, or belongs.
func (t *keyTable) slot(h [2]uint64) *keySlot {
	mask := uint64(len(t.slots) - 1)
	for i := h[0] & mask; ; i = (i + 1) & mask {
		if s := &t.slots[i]; s.next == 0 || s.hash == h {
			return s
		}
	}
}

// put notes an offset of a key; offsets rise.
func (t *keyTable) put(key []byte, off int64) {
	h := t.hash(key)
	s := t.slot(h)
	if s.next == 0 {
		t.used++
		s.hash = h
	}
	s.next = off + 1
}

// newest is the highest offset of a key, -1 when the stretch does not have it.
func (t *keyTable) newest(key []byte) int64 { return t.slot(t.hash(key)).next - 1 }
