package mqtt

import (
	"sync"
	"time"

	"tailrace/edge/mqtt/topic"
)

// retainedSet holds the retained messages. What is here is durable; room for what
// is on its way to the disk is reserved, so the bounds hold.
type retainedSet struct {
	maxN, maxBytes int

	// Changes that became durable, in the order of the log. Their own lock, because the
	// committer must not wait for a subscriber that looks through the whole set: whoever
	// holds mu takes them over first (settle).
	todoMu sync.Mutex
	todo   []retain

	mu       sync.Mutex
	m        map[string]*message
	bytes    int
	pending  map[string]int // topic: messages on their way to the disk
	fresh    int            // of those, that took a place of their own
	resBytes int
}

// reserve makes room for one message; false when the set is full. A deletion needs
// none, and neither does the successor of a message that is here or on its way.
func (r *retainedSet) reserve(k *retain) bool {
	if k.m == nil {
		return true
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.settle()
	old := r.m[k.topic]
	size := r.bytes + r.resBytes + k.m.size()
	if old != nil {
		size -= old.size()
	}
	k.fresh = old == nil && r.pending[k.topic] == 0
	if k.fresh && len(r.m)+r.fresh >= r.maxN || size > r.maxBytes {
		return false
	}
	if k.fresh {
		r.fresh++
	}
	r.pending[k.topic]++
	r.resBytes += k.m.size()
	return true
}

// apply makes a change visible. It does not wait for readers of the set.
func (r *retainedSet) apply(k *retain) {
	r.todoMu.Lock()
	r.todo = append(r.todo, *k)
	r.todoMu.Unlock()
	if r.mu.TryLock() {
		r.settle()
		r.mu.Unlock()
	}
}

// forget gives the reservation back after a failed commit.
func (r *retainedSet) forget(k *retain) {
	k.failed = true
	r.apply(k)
}

// settle takes over what has become durable. Caller holds mu.
func (r *retainedSet) settle() {
	r.todoMu.Lock()
	defer r.todoMu.Unlock()
	for i := range r.todo {
		k := &r.todo[i]
		r.release(k)
		if !k.failed && (k.old == nil || r.m[k.topic] == k.old) {
			r.set(k.topic, k.m)
		}
	}
	clear(r.todo)
	r.todo = r.todo[:0]
}

func (r *retainedSet) release(k *retain) {
	if k.m == nil {
		return
	}
	if k.fresh {
		r.fresh--
	}
	if r.pending[k.topic]--; r.pending[k.topic] == 0 {
		delete(r.pending, k.topic)
	}
	r.resBytes -= k.m.size()
}

func (r *retainedSet) set(t string, m *message) {
	if old := r.m[t]; old != nil {
		r.bytes -= old.size()
		delete(r.m, t)
	}
	if m != nil {
		r.m[t] = m
		r.bytes += m.size()
	}
}

// match returns the messages whose topic matches filter, in no order.
func (r *retainedSet) match(filter string) []*message {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.settle()
	var out []*message
	if m := r.m[filter]; m != nil {
		out = append(out, m)
	}
	if !hasWildcard(filter) {
		return out
	}
	for t, m := range r.m {
		if topic.Match(filter, t) {
			out = append(out, m)
		}
	}
	return out
}

func hasWildcard(f string) bool {
	for i := range len(f) {
		if f[i] == '+' || f[i] == '#' {
			return true
		}
	}
	return false
}

// expired returns the deletion of every message whose time is over and that has no
// successor on its way.
func (r *retainedSet) expired(now time.Time) []retain {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.settle()
	var over []retain
	for t, m := range r.m {
		if m.expired(now) && r.pending[t] == 0 {
			over = append(over, retain{topic: t, old: m})
		}
	}
	return over
}

func (r *retainedSet) get(t string) *message {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.settle()
	return r.m[t]
}

// rewriteRetained sets the state of a topic to m, outside any publish, and then
// applies k. A successor may have been committed just before it; the state is then
// written again until disk and memory agree.
func (s *Server) rewriteRetained(topic string, m *message, k *retain) {
	b := s.cfg.Backend.Begin(&Client{})
	if m == nil {
		b.SetState(KindRetained, topic, nil)
	} else {
		b.SetState(KindRetained, topic, m.encode(nil))
	}
	s.wg.Add(1)
	b.Commit(func(err error) {
		if err != nil {
			s.stats.CommitErrors.Add(1)
			s.wg.Done()
			return
		}
		if k != nil {
			s.retained.apply(k)
		}
		go func() { // may wait for a lock, and Commit may block
			defer s.wg.Done()
			if now := s.retained.get(topic); now != m {
				s.rewriteRetained(topic, now, nil)
			}
		}()
	})
}

func (r *retainedSet) len() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.settle()
	return len(r.m)
}
