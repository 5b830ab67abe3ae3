package storage

import (
	"slices"
	"sync"
)

// stateMap is the durable state of one class, as of its last fsync. Values are
// replaced in place; readers get copies.
type stateMap struct {
	mu    sync.RWMutex
	folds map[StateKind]FoldFunc
	kinds [256]map[string]*stateValue
	bytes int64
	count int
	// head of a ring of all values by base, the oldest next: the first to be
	// written forward when the front of the log goes.
	head stateValue
}

// stateValue is what a key holds, and the log index from which on the log tells
// it: the entry of its last Set, or of the first Fold since.
type stateValue struct {
	kind       StateKind
	key        string
	value      []byte
	base       uint64
	prev, next *stateValue
}

func newStateMap(folds map[StateKind]FoldFunc) *stateMap {
	m := &stateMap{folds: folds}
	m.head.prev, m.head.next = &m.head, &m.head
	return m
}

// apply performs one operation that the entry of the given index holds. The
// caller has mu.
func (m *stateMap) apply(index uint64, kind StateKind, op byte, key, value []byte) {
	v := m.kinds[kind][string(key)]
	if op == opDelete {
		if v != nil {
			m.unlink(v)
			m.bytes -= int64(len(v.key) + len(v.value))
			m.count--
			delete(m.kinds[kind], v.key)
		}
		return
	}
	if v == nil {
		if m.kinds[kind] == nil {
			m.kinds[kind] = make(map[string]*stateValue)
		}
		v = &stateValue{kind: kind, key: string(key), base: index}
		m.kinds[kind][v.key] = v
		m.bytes += int64(len(v.key))
		m.count++
		m.link(v)
	} else if op == opSet {
		v.base = index
		m.unlink(v)
		m.link(v)
	}
	m.bytes -= int64(len(v.value))
	if f := m.folds[kind]; op == opFold && f != nil {
		v.value = append(v.value[:0], f(v.value, value)...) // a copy, whatever f returned
	} else {
		v.value = append(v.value[:0], value...)
	}
	m.bytes += int64(len(v.value))
}

// applyAll performs the operations of a state entry's payload.
func (m *stateMap) applyAll(index uint64, ops []byte) error {
	for len(ops) > 0 {
		kind, op, key, value, rest, err := nextOp(ops)
		if err != nil {
			return err
		}
		m.apply(index, kind, op, key, value)
		ops = rest
	}
	return nil
}

func (m *stateMap) link(v *stateValue) {
	v.prev, v.next = m.head.prev, &m.head
	v.prev.next, m.head.prev = v, v
}

func (m *stateMap) unlink(v *stateValue) {
	v.prev.next, v.next.prev = v.next, v.prev
}

// floor is the lowest base: no entry below it is needed to know the state. next
// is returned when there is no state.
func (m *stateMap) floor(next uint64) uint64 {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if v := m.head.next; v != &m.head {
		return v.base
	}
	return next
}

// forward returns operations that set everything whose base is at most index,
// whole (also what came from folds), up to about max bytes, and whether that is
// all of it.
func (m *stateMap) forward(dst []byte, index uint64, max int) (ops []byte, all bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	for v := m.head.next; v != &m.head && v.base <= index; v = v.next {
		if len(dst) >= max {
			return dst, false
		}
		dst = appendOp(dst, v.kind, opSet, v.key, v.value)
	}
	return dst, true
}

func (m *stateMap) get(kind StateKind, key string) ([]byte, bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	v := m.kinds[kind][key]
	if v == nil {
		return nil, false
	}
	return append(make([]byte, 0, len(v.value)), v.value...), true
}

// keys returns the keys of a kind in order.
func (m *stateMap) keys(kind StateKind) []string {
	m.mu.RLock()
	keys := make([]string, 0, len(m.kinds[kind]))
	for k := range m.kinds[kind] {
		keys = append(keys, k)
	}
	m.mu.RUnlock()
	slices.Sort(keys)
	return keys
}

// State returns a copy of what a key durably holds. The classes are asked in
// order.
func (s *Store) State(kind StateKind, key string) ([]byte, bool) {
	for _, l := range s.logs {
		if v, ok := l.state.get(kind, key); ok {
			return v, true
		}
	}
	return nil, false
}

// RangeState calls f with every key of a kind and a copy of its value, by class
// and then in order of the keys, until f returns false. A key that appears or
// changes meanwhile may be seen old, new, or (when new) not at all. A key that was
// written through two classes is visited for each.
func (s *Store) RangeState(kind StateKind, f func(key string, value []byte) bool) {
	for _, l := range s.logs {
		for _, k := range l.state.keys(kind) {
			if v, ok := l.state.get(kind, k); ok && !f(k, v) {
				return
			}
		}
	}
}
