package edge

import (
	"encoding/binary"
	"sync"

	"tailrace/edge/dedupe"
	"tailrace/edge/mqtt"
	"tailrace/storage"
)

// Folds are those that a node opens its store with; a tool that repairs a log needs them, too.
func Folds() map[storage.StateKind]storage.FoldFunc {
	return map[storage.StateKind]storage.FoldFunc{storage.KindWindow: mqtt.FoldWindow, storage.KindSequence: dedupe.Fold}
}

// sequences bounds the devices whose sequence numbers are kept. What is durable is in the store's
// state; here is only which keys there are, in the order in which they were first seen.
type sequences struct {
	max int

	mu    sync.Mutex // guards the fields below
	known map[string]struct{}
	order []string // [head:] are known, oldest first
	head  int
}

func newSequences(limit int, store *storage.Store) *sequences {
	s := &sequences{max: limit, known: map[string]struct{}{}}
	store.RangeState(storage.KindSequence, func(key string, _ []byte) bool {
		s.note(key)
		return true
	})
	return s
}

// note remembers a key and returns one that has to go to make room.
func (s *sequences) note(key string) (evict string, full bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.known[key]; ok {
		return "", false
	}
	if len(s.known) >= s.max {
		evict, full = s.order[s.head], true
		s.order[s.head] = ""
		s.head++
		delete(s.known, evict)
	}
	if s.head > 1024 && s.head*2 > len(s.order) {
		s.order = append(s.order[:0], s.order[s.head:]...)
		s.head = 0
	}
	s.known[key] = struct{}{}
	s.order = append(s.order, key)
	return evict, full
}

// counted is a sequence number that this burst stores: the burst is all or nothing, so one
// that it has twice is a duplicate, too.
type counted struct {
	key       string
	boot, seq uint64
}

// duplicate reports whether the record is durable already by its sequence number, else it
// notes the number in the same commit. A record on its way in another burst is not durable
// and is stored again: what is not certain is not dropped.
func (b *burst) duplicate(r *route, payload []byte, m *meta) bool {
	boot, seq, ok := r.Sequence(payload, m.property)
	if !ok {
		r.Stats.NoSequence.Add(1)
		return false
	}
	device := r.Route.Device
	if device == "" {
		device = b.client
	}
	c := counted{r.Stream + "\x00" + device, boot, seq}
	for i := range b.counted {
		if b.counted[i] == c {
			r.Stats.Duplicates.Add(1)
			return true
		}
	}
	state, _ := b.in.store.State(storage.KindSequence, c.key)
	switch dedupe.Look(state, boot, seq) {
	case dedupe.Known:
		r.Stats.Duplicates.Add(1)
		return true
	case dedupe.TooOld:
		r.Stats.NoSequence.Add(1)
	}
	b.counted = append(b.counted, c)
	return false
}

// commitCounted puts the numbers into the append of the state.
func (b *burst) commitCounted() {
	for i := range b.counted {
		c := &b.counted[i]
		if evict, full := b.in.sequences.note(c.key); full {
			b.class(0).Set(storage.KindSequence, evict, nil)
		}
		var delta [dedupe.DeltaBytes]byte
		binary.BigEndian.PutUint64(delta[:], c.boot)
		binary.BigEndian.PutUint64(delta[8:], c.seq)
		b.class(0).Fold(storage.KindSequence, c.key, delta[:])
		b.state = true
	}
	clear(b.counted)
	b.counted = b.counted[:0]
}

// property is the first user property of a name.
func (m *meta) property(name string) ([]byte, bool) {
	for i := range m.user {
		if string(m.user[i].Key) == name {
			return m.user[i].Value, true
		}
	}
	return nil, false
}
