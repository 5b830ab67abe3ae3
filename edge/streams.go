package edge

import (
	"errors"
	"fmt"
	"path"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"tailrace/storage"
	"tailrace/uplink/wire"
)

// streams makes the store's topics as routes need them, with the settings that the
// configuration has for their names. The number of topics is bounded: names come
// from devices.
type streams struct {
	store   *storage.Store
	conf    StorageConfig
	rules   []TopicConfig
	classes map[string]int // class name -> index in the order of the configuration; "" = 0
	max     int
	changed func() // called after a topic was made

	generation atomic.Uint64

	mu      sync.Mutex // held while a topic is made; guards the fields below
	count   int        // topics in the store, when last counted
	counted time.Time
}

// errTooManyTopics: the route's stream would be one more than max_topics.
var errTooManyTopics = errors.New("too many streams")

func newStreams(store *storage.Store, c Config) *streams {
	s := &streams{store: store, conf: c.Storage, rules: c.Topics, max: c.Storage.MaxTopics, classes: map[string]int{"": 0}, changed: func() {}}
	for i, cc := range c.Storage.Classes {
		s.classes[cc.Name] = i
	}
	return s
}

// rule returns the settings for a stream; the zero value without one. A sketch lies where its
// stream lies, which is kept in order.
func (s *streams) rule(name string) TopicConfig {
	if base, ok := s.sketchOf(name); ok {
		r := s.rule(base)
		r.Mode, r.Sketch = "", nil
		return r
	}
	for _, r := range s.rules {
		if ok, _ := path.Match(r.Match, name); ok {
			return r
		}
	}
	return TopicConfig{}
}

// sketchOf is the stream that name is the sketch of.
func (s *streams) sketchOf(name string) (base string, ok bool) {
	if base, ok = wire.SketchOf(name); ok {
		ok = s.rule(base).Sketch != nil
	}
	return base, ok
}

// replication is how a stream goes to the hub. Our own streams go in order, before everything.
func (s *streams) replication(name string) (wire.Mode, int32) {
	if strings.HasPrefix(name, "__") {
		return wire.ModeInOrder, maxPriority
	}
	r := s.rule(name)
	m, _ := parseMode(r.Mode)
	return m, int32(r.Priority)
}

// maxPriority of a stream; the least is its negative.
const maxPriority = 100

func parseMode(s string) (wire.Mode, error) {
	switch s {
	case "", "in-order":
		return wire.ModeInOrder, nil
	case "live-first":
		return wire.ModeLiveFirst, nil
	case "on-demand":
		return wire.ModeOnDemand, nil
	}
	return 0, fmt.Errorf("%q: want in-order, live-first or on-demand", s)
}

// partition returns where a stream's records go, and the index of its class. A new
// topic is durable when it returns.
func (s *streams) partition(name string) (*storage.Partition, int, error) {
	t, ok := s.store.Topic(name)
	if !ok {
		var err error
		if t, err = s.create(name); err != nil {
			return nil, 0, err
		}
	}
	p := t.Partition(0)
	if p == nil {
		return nil, 0, fmt.Errorf("stream %q has no partition", name)
	}
	class, ok := s.classes[t.Config().Class]
	if !ok {
		return nil, 0, fmt.Errorf("stream %q was made in storage class %q, which the configuration no longer has", name, t.Config().Class)
	}
	return p, class, nil
}

func (s *streams) create(name string) (*storage.Topic, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t, ok := s.store.Topic(name); ok {
		return t, nil
	}
	// Topics can be deleted behind our back, so a full count is taken again, but not
	// for every publish of a device that goes on inventing names.
	if now := time.Now(); s.counted.IsZero() || s.count >= s.max && now.Sub(s.counted) > time.Second {
		s.count, s.counted = len(s.store.Topics()), now
	}
	if s.count >= s.max {
		return nil, fmt.Errorf("%w: stream %q would be one more than storage.max_topics (%d)", errTooManyTopics, name, s.max)
	}
	r := s.rule(name)
	t, err := s.store.CreateTopic(name, storage.TopicConfig{Partitions: 1, Class: r.Class, RetentionAge: r.Retention, RetentionBytes: s.conf.retentionBytes(r)})
	if errors.Is(err, storage.ErrExists) {
		if t, ok := s.store.Topic(name); ok {
			return t, nil
		}
	}
	if err != nil {
		return nil, fmt.Errorf("make stream %q: %w", name, err)
	}
	s.count++
	s.generation.Add(1)
	s.changed()
	return t, nil
}

// reconcile gives existing topics the retention that the configuration says now.
// The class of a topic cannot change; a different one is an error.
func (s *streams) reconcile() error {
	var errs []error
	for _, t := range s.store.Topics() {
		if strings.HasPrefix(t.Name(), "__") { // our own; rules are for streams of devices
			continue
		}
		r, c := s.rule(t.Name()), t.Config()
		if _, ok := s.classes[c.Class]; !ok {
			errs = append(errs, fmt.Errorf("stream %q lies in storage class %q, which the configuration does not have", t.Name(), c.Class))
			continue
		}
		if s.classes[r.Class] != s.classes[c.Class] {
			errs = append(errs, fmt.Errorf("stream %q lies in storage class %q and the configuration says %q: a stream cannot move", t.Name(), c.Class, r.Class))
			continue
		}
		if bytes := s.conf.retentionBytes(r); c.RetentionAge != r.Retention || c.RetentionBytes != bytes {
			c.RetentionAge, c.RetentionBytes = r.Retention, bytes
			if err := s.store.SetTopicConfig(t.Name(), c); err != nil {
				errs = append(errs, fmt.Errorf("settings of stream %q: %w", t.Name(), err))
			}
		}
	}
	return errors.Join(errs...)
}
