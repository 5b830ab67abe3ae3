package hub

import (
	"cmp"
	"errors"
	"fmt"
	"path"
	"strings"
	"time"

	"tailrace/storage"
	"tailrace/uplink/wire"
)

// TopicRule says how a topic is made when its first record arrives. The first
// rule whose Match fits the name counts.
type TopicRule struct {
	Match              string        // glob of topic names, as in path.Match: "wind.*", "*"
	Partitions         int           // default 4
	Class              string        // storage class; empty = the first one
	Retention          time.Duration // by arrival at the hub; 0 = kept for ever
	RetentionBytes     int64         // per topic; 0 = no limit
	RetentionByRecords bool          // retention counts from the records' own time instead of their arrival
}

func (r TopicRule) config() storage.TopicConfig {
	return storage.TopicConfig{Partitions: r.Partitions, Class: r.Class, RetentionAge: r.Retention, RetentionBytes: r.RetentionBytes,
		RetentionByArrival: !r.RetentionByRecords}
}

// lossTopic is the loss ledger: a topic of JSON rows, one for each range of
// records that will never come. A row must be durable in one step with the
// progress of its origin, and a step is within one storage class, so a class
// other than the first has a ledger of its own, "__tailrace_loss.<class>".
const lossTopic = "__tailrace_loss"

func lossTopicFor(class, first string) string {
	if class == "" || class == first {
		return lossTopic
	}
	return lossTopic + "." + class
}

// reservedTopic says whether no node may write to a topic of that name.
func reservedTopic(name string) bool {
	return strings.HasPrefix(name, lossTopic) || name == "__consumer_offsets" || name == "__transaction_state"
}

// clockTopic is where nodes say by how much their times were wrong; it needs no rule.
const clockTopic = "__tailrace_clock"

// rule is the first that fits a name. A sketch for whose own name there is none goes by its topic's.
func (e *Embedded) rule(name string) (TopicRule, bool) {
	if name == clockTopic {
		return TopicRule{Match: clockTopic, Partitions: 1}, true
	}
	for _, r := range e.cfg.Topics {
		if ok, _ := path.Match(r.Match, name); ok { // patterns were checked by validate
			return r, true
		}
	}
	if base, ok := wire.SketchOf(name); ok {
		return e.rule(base)
	}
	return TopicRule{}, false
}

// classOf is the name of a topic's storage class, never empty.
func (e *Embedded) classOf(t *storage.Topic) string {
	return cmp.Or(t.Config().Class, e.cfg.Classes[0])
}

// EnsureTopic returns the topic, made by the first rule that fits its name when
// it does not exist yet. It is durable on return.
func (e *Embedded) EnsureTopic(name string) (*storage.Topic, error) {
	if t, ok := e.store.Topic(name); ok {
		return t, nil
	}
	if !validName(name) {
		return nil, &TopicError{name, "a name has 1 to 249 of the characters a-z A-Z 0-9 . _ -"}
	}
	r, ok := e.rule(name)
	if !ok {
		return nil, &TopicError{name, "no rule under topics: in the hub's configuration allows it"}
	}
	t, err := e.store.CreateTopic(name, r.config())
	if errors.Is(err, storage.ErrExists) {
		if t, ok := e.store.Topic(name); ok {
			return t, nil
		}
	}
	if err != nil {
		return nil, fmt.Errorf("create topic %q: %w", name, err)
	}
	e.cfg.Logger.Info("topic created", "topic", name, "partitions", r.Partitions, "rule", r.Match)
	return t, nil
}

// ensureLedger makes the ledger topics, one partition each, kept for ever.
func (e *Embedded) ensureLedger() error {
	for _, class := range e.cfg.Classes {
		name := lossTopicFor(class, e.cfg.Classes[0])
		if t, ok := e.store.Topic(name); ok {
			e.ledger[class] = t.Partition(0)
			continue
		}
		t, err := e.store.CreateTopic(name, storage.TopicConfig{Partitions: 1, Class: class})
		if err != nil {
			return fmt.Errorf("create topic %q: %w", name, err)
		}
		e.ledger[class] = t.Partition(0)
	}
	return nil
}
