package hub

import (
	"fmt"
	"slices"
	"strings"

	"tailrace/storage"
	"tailrace/uplink"
	"tailrace/uplink/hub/relay"
	"tailrace/uplink/wire"
)

// A companion topic, <topic>.backfill, takes the records of a topic that come when later
// ones are stored already: the gap of a live-first topic. Offsets of a node only ascend
// in the topic, and in the companion.
//
// Records and companion share one progress: a range is stored in the one or the other,
// in one commit with the progress over both, so nothing is in both and nothing in none.
// That is why the companion lies in the storage class of its topic, has as many
// partitions, and takes a node's records in the partition of the same number.
const backfillSuffix = relay.BackfillSuffix

// companionOf is the companion of a topic.
func companionOf(topic string) string { return topic + backfillSuffix }

// Companion returns the companion of a topic, made like the topic itself when it does
// not exist yet. An error says why the topic can have none: its records then come in order.
func (e *Embedded) Companion(topic string) (*storage.Topic, error) {
	name := companionOf(topic)
	if !validName(name) || reservedTopic(topic) || strings.HasPrefix(topic, "__") {
		return nil, &TopicError{topic, "it can have no companion topic: its name is too long, or is the system's own"}
	}
	base, err := e.EnsureTopic(topic)
	if err != nil {
		return nil, err
	}
	t, ok := e.store.Topic(name)
	if !ok {
		if t, err = e.store.CreateTopic(name, base.Config()); err != nil {
			if t, ok = e.store.Topic(name); !ok {
				return nil, fmt.Errorf("create topic %q: %w", name, err)
			}
		} else {
			e.cfg.Logger.Info("companion topic created", "topic", name, "partitions", len(t.Partitions()))
		}
	}
	if want, have := e.classOf(base), e.classOf(t); want != have {
		return nil, &TopicError{name, fmt.Sprintf("it lies in storage class %q and topic %q in %q: one step must make both durable", have, topic, want)}
	}
	if n := len(base.Partitions()); len(t.Partitions()) < n {
		if err := e.store.EnsurePartitions(name, n); err != nil {
			return nil, err
		}
	}
	return t, nil
}

// companionPartition is where backfilled records of an assigned partition go.
func (e *Embedded) companionPartition(a Assignment) (*storage.Partition, error) {
	t, err := e.Companion(a.Topic)
	if err != nil {
		return nil, err
	}
	if c := e.classOf(t); c != a.Class {
		return nil, fmt.Errorf("topic %q was made in storage class %q, progress is in class %q", t.Name(), c, a.Class)
	}
	p := t.Partition(a.Partition)
	if p == nil {
		return nil, fmt.Errorf("topic %q has no partition %d", t.Name(), a.Partition)
	}
	return p, nil
}

// effectiveMode is how the hub asks for a node's topic, and why not as the node wishes.
// has says whether the node has a topic of a name.
func (s sink) effectiveMode(p wire.PartitionInfo, has func(topic string) bool) (wire.Mode, string) {
	if p.Mode != wire.ModeLiveFirst {
		return p.Mode, ""
	}
	if has(companionOf(p.Topic)) {
		return wire.ModeInOrder, "the node has a topic " + companionOf(p.Topic) + " of its own"
	}
	if err := s.h.central.companion(p.Topic); err != nil {
		return wire.ModeInOrder, err.Error()
	}
	return wire.ModeLiveFirst, ""
}

// order sets how ranges of a node's partition may come, and says in which mode: as the
// node wishes, or why not.
func (s sink) order(node string, p wire.PartitionInfo, has func(topic string) bool) (wire.Mode, string) {
	mode, why := s.effectiveMode(p, has)
	s.h.central.setOrder(assignKey{node, p.Topic, p.Partition}, orderOf(mode))
	return mode, why
}

// ordering is what a stream demands of the ranges that come.
type ordering int32

const (
	orderStrict ordering = iota // no hole in front of a record
	orderTwo                    // holes: they are filled by way of the companion
	orderAny                    // on-demand topics: ranges come as they are asked for
)

func orderOf(m wire.Mode) ordering {
	switch m {
	case wire.ModeLiveFirst:
		return orderTwo
	case wire.ModeOnDemand:
		return orderAny
	}
	return orderStrict
}

// setOrder says how the ranges of a node's partition may come.
func (e *Embedded) setOrder(k assignKey, o ordering) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.orders[k] == o {
		return
	}
	if o == orderStrict {
		delete(e.orders, k)
	} else {
		e.orders[k] = o
	}
	for _, st := range e.byNode[k.node] {
		if st.key.topic == k.topic && st.key.partition == k.partition {
			st.order.Store(int32(o))
		}
	}
}

// resume lets a node's streams go on after something was not stored: nothing of its
// former session is under way any more.
func (e *Embedded) resume(node string) {
	e.mu.Lock()
	list := slices.Clone(e.byNode[node])
	e.mu.Unlock()
	for _, st := range list {
		st.mu.Lock()
		st.halted = false
		st.mu.Unlock()
	}
}

// place says where a piece of a stream is stored, and refuses what would leave a hole or
// break the order within the companion. Called with mu held; pend, top and back are the
// stream's, with what this Append has added so far.
func (st *stream) place(pend uplink.RangeSet, top, back, from int64, asked bool) (backfill bool, err error) {
	order := ordering(st.order.Load())
	if order == orderAny {
		return false, nil
	}
	backfill = asked || from < top
	if order == orderTwo && st.halted {
		return backfill, fmt.Errorf("%s: what came before offset %d was not stored", st.key.origin(), from)
	}
	if backfill && from < back {
		return backfill, &OrderError{st.key.origin(), back, from}
	}
	if order == orderStrict && !pend.Covers(st.base, from) {
		return backfill, &OrderError{st.key.origin(), pend.Missing(st.base, from)[0].From, from}
	}
	return backfill, nil
}
