package storage

import (
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"

	"github.com/fxamacker/cbor/v2"
)

const maxPartitions = 10_000 // of one topic

// Topic is a named set of partitions, all in one storage class.
type Topic struct {
	s    *Store
	name string
	id   [16]byte

	mu    sync.RWMutex // guards what follows
	cfg   TopicConfig
	parts []*Partition
}

// topicState is the value of a topic's state entry, CBOR with integer keys.
type topicState struct {
	ID         [16]byte      `cbor:"1,keyasint"`
	Partitions []PartitionID `cbor:"2,keyasint"`
	Config     TopicConfig   `cbor:"3,keyasint"`
}

var cborMode = func() cbor.EncMode {
	m, err := cbor.CoreDetEncOptions().EncMode()
	if err != nil {
		panic("internal error: " + err.Error())
	}
	return m
}()

func mustCBOR(v any) []byte {
	b, err := cborMode.Marshal(v)
	if err != nil {
		panic("internal error: " + err.Error())
	}
	return b
}

// Name is the topic's name.
func (t *Topic) Name() string { return t.name }

// ID is random and tells a topic from a later one of the same name.
func (t *Topic) ID() [16]byte { return t.id }

// Config is the configuration as it is now, with the number of partitions.
func (t *Topic) Config() TopicConfig {
	t.mu.RLock()
	defer t.mu.RUnlock()
	c := t.cfg
	c.Labels = maps.Clone(c.Labels)
	return c
}

// Compacted tells whether the topic is compacted by key.
func (t *Topic) Compacted() bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.cfg.compacted() != nil
}

// Partitions are all partitions by index.
func (t *Topic) Partitions() []*Partition {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return slices.Clone(t.parts)
}

// Partition is the one of index i, nil when there is none.
func (t *Topic) Partition(i int) *Partition {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if i < 0 || i >= len(t.parts) {
		return nil
	}
	return t.parts[i]
}

// Topic finds a topic by name.
func (s *Store) Topic(name string) (*Topic, bool) {
	s.topicsMu.RLock()
	defer s.topicsMu.RUnlock()
	t, ok := s.topics[name]
	return t, ok
}

// Topics are all topics, by name.
func (s *Store) Topics() []*Topic {
	s.topicsMu.RLock()
	defer s.topicsMu.RUnlock()
	ts := make([]*Topic, 0, len(s.topics))
	for _, name := range slices.Sorted(maps.Keys(s.topics)) {
		ts = append(ts, s.topics[name])
	}
	return ts
}

// PartitionByID finds a partition.
func (s *Store) PartitionByID(id PartitionID) (*Partition, bool) {
	s.topicsMu.RLock()
	defer s.topicsMu.RUnlock()
	p, ok := s.partitions[id]
	return p, ok
}

// ValidTopicName tells whether a topic can have this name: 1 to 249 of
// A-Z a-z 0-9 . _ -, but not "." or ".." (Kafka's rule).
func ValidTopicName(s string) bool {
	if s == "" || len(s) > 249 || s == "." || s == ".." {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '.' || c == '_' || c == '-') {
			return false
		}
	}
	return true
}

func (s *Store) checkTopicConfig(name string, c *TopicConfig) error {
	if c.Partitions == 0 {
		c.Partitions = 1
	}
	if c.Class == "" {
		c.Class = s.cfg.Classes[0].Name
	}
	switch {
	case !ValidTopicName(name):
		return fmt.Errorf("%w: topic name %q: 1 to 249 of A-Z a-z 0-9 . _ -", ErrInvalid, name)
	case c.Partitions < 1 || c.Partitions > maxPartitions:
		return fmt.Errorf("%w: topic %q with %d partitions: 1 to %d", ErrInvalid, name, c.Partitions, maxPartitions)
	case s.log(c.Class) == nil:
		return fmt.Errorf("%w: topic %q in storage class %q, which is not configured", ErrInvalid, name, c.Class)
	case c.RetentionAge < 0 || c.RetentionBytes < 0:
		return fmt.Errorf("%w: topic %q with negative retention", ErrInvalid, name)
	}
	if err := c.Compaction.check(); err != nil {
		return fmt.Errorf("topic %q: %w", name, err)
	}
	c.Labels = maps.Clone(c.Labels)
	return nil
}

// CreateTopic creates a topic and returns when that is durable. ErrExists when
// there is one of the name, which is returned then.
func (s *Store) CreateTopic(name string, c TopicConfig) (*Topic, error) {
	if err := s.checkTopicConfig(name, &c); err != nil {
		return nil, err
	}
	s.adminMu.Lock()
	defer s.adminMu.Unlock()
	if t, ok := s.Topic(name); ok {
		return t, fmt.Errorf("%w: %q", ErrExists, name)
	}
	t := &Topic{s: s, name: name, cfg: c}
	if _, err := io.ReadFull(s.cfg.Rand, t.id[:]); err != nil {
		return nil, fmt.Errorf("storage: random id: %w", err)
	}
	return t, s.changeTopic(t, c)
}

// changeTopic makes t durable with configuration c, new partitions included, and
// then visible. The caller has adminMu.
func (s *Store) changeTopic(t *Topic, c TopicConfig) error {
	l := s.log(c.Class)
	st := topicState{ID: t.id, Config: c}
	parts := slices.Clone(t.parts)
	for _, p := range parts {
		st.Partitions = append(st.Partitions, p.id)
	}
	next := s.nextPartition
	for len(parts) < c.Partitions {
		p := s.newPartition(t, len(parts), next, l)
		parts = append(parts, p)
		st.Partitions = append(st.Partitions, p.id)
		next++
	}
	a := &Append{log: l}
	a.op(kindTopic, opSet, t.name, mustCBOR(st))
	a.op(kindNext, opSet, nextKey, binary.BigEndian.AppendUint32(nil, uint32(next)))
	if err := s.commitWait(a); err != nil {
		return fmt.Errorf("topic %q: %w", t.name, err)
	}
	s.nextPartition = next
	t.mu.Lock()
	t.cfg, t.parts = c, parts
	t.mu.Unlock()
	s.topicsMu.Lock()
	s.topics[t.name] = t
	for _, p := range parts {
		s.partitions[p.id] = p
	}
	s.topicsMu.Unlock()
	return nil
}

const nextKey = "partition"

func (s *Store) newPartition(t *Topic, index int, id PartitionID, l *classLog) *Partition {
	return &Partition{topic: t, index: index, id: id, log: l}
}

// EnsurePartitions gives a topic at least n partitions, durably.
func (s *Store) EnsurePartitions(name string, n int) error {
	return s.alterTopic(name, func(c *TopicConfig) { c.Partitions = max(c.Partitions, n) })
}

// SetTopicConfig changes a topic's retention and labels, durably. Partitions may
// grow; 0 leaves them, and "" the class, which cannot change.
func (s *Store) SetTopicConfig(name string, c TopicConfig) error {
	var bad error
	err := s.alterTopic(name, func(old *TopicConfig) {
		if c.Class != "" && c.Class != old.Class {
			bad = fmt.Errorf("%w: topic %q is in storage class %q and cannot move to %q", ErrInvalid, name, old.Class, c.Class)
		}
		if c.Partitions != 0 && c.Partitions < old.Partitions {
			bad = fmt.Errorf("%w: topic %q has %d partitions and cannot shrink to %d", ErrInvalid, name, old.Partitions, c.Partitions)
		}
		if bad != nil {
			return
		}
		c.Class, c.Partitions = old.Class, max(c.Partitions, old.Partitions)
		*old = c
	})
	if bad != nil {
		return bad
	}
	return err
}

func (s *Store) alterTopic(name string, f func(*TopicConfig)) error {
	s.adminMu.Lock()
	defer s.adminMu.Unlock()
	t, ok := s.Topic(name)
	if !ok {
		return fmt.Errorf("%w: %q", ErrUnknownTopic, name)
	}
	old := t.Config()
	c := t.Config()
	f(&c)
	if err := s.checkTopicConfig(name, &c); err != nil {
		return err
	}
	if sameConfig(old, c) {
		return nil
	}
	return s.changeTopic(t, c)
}

func sameConfig(a, b TopicConfig) bool {
	return a.Partitions == b.Partitions && a.Class == b.Class && a.RetentionAge == b.RetentionAge &&
		a.RetentionBytes == b.RetentionBytes && a.RetentionByArrival == b.RetentionByArrival && maps.Equal(a.Labels, b.Labels) &&
		(a.Compaction == b.Compaction || a.Compaction != nil && b.Compaction != nil && *a.Compaction == *b.Compaction)
}

// DeleteTopic deletes a topic, durably. Its space comes back as segments go.
func (s *Store) DeleteTopic(name string) error {
	s.adminMu.Lock()
	defer s.adminMu.Unlock()
	t, ok := s.Topic(name)
	if !ok {
		return fmt.Errorf("%w: %q", ErrUnknownTopic, name)
	}
	a := &Append{log: s.log(t.Config().Class)}
	a.op(kindTopic, opDelete, name, nil)
	parts := t.Partitions()
	for _, p := range parts {
		p.deleted.Store(true) // from now on no append is taken
		a.op(kindStart, opDelete, string(p.startKey()), nil)
		a.op(kindClean, opDelete, string(p.startKey()), nil)
		for _, row := range lossRowsOf(p.log.state) {
			if row.Partition == p.id {
				a.op(kindLoss, opDelete, lossKey(row.Partition, row.Reason, row.From), nil)
			}
		}
	}
	if err := s.commitWait(a); err != nil {
		for _, p := range parts {
			p.deleted.Store(false)
		}
		return fmt.Errorf("delete topic %q: %w", name, err)
	}
	s.topicsMu.Lock()
	delete(s.topics, name)
	for _, p := range parts {
		delete(s.partitions, p.id)
	}
	s.topicsMu.Unlock()
	for _, p := range parts {
		p.applyStart(p.hw.Load())
		p.subs.notify()
	}
	return nil
}

func (p *Partition) startKey() []byte { return binary.BigEndian.AppendUint32(nil, uint32(p.id)) }

func startValue(off int64) []byte { return binary.BigEndian.AppendUint64(nil, uint64(off)) }
