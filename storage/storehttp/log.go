package storehttp

import (
	"context"

	"tailrace/storage"
	"tailrace/storage/record"
)

// Log is where the records are that the API serves: a storage.Store (OfStore), or another
// place of the same shape. A Topic or Partition that it gives out is for the request that
// asked for it.
type Log interface {
	Topics(ctx context.Context) ([]Topic, error)
	// Topic finds one; nil without an error when there is none.
	Topic(ctx context.Context, name string) (Topic, error)
	// Append stores records of one topic, all of them or none, and sets their offsets. They
	// are durable when it returns nil.
	Append(ctx context.Context, t Topic, list []Item) error
}

// Topic is a topic as readers see it; see storage.Topic.
type Topic interface {
	Name() string
	Config() storage.TopicConfig
	Compacted() bool
	Parts() []Partition
}

// Partition is a partition as readers see it; *storage.Partition is one.
type Partition interface {
	Index() int
	Start() int64
	HighWatermark() int64
	Bytes() int64
	StartTime() (int64, bool)
	LastTime() (int64, bool)
	// Read is as in storage.Partition. Below the high watermark next lies behind from,
	// also when there is nothing to be read.
	Read(dst []byte, from int64, maxBytes int) (out []byte, next int64, err error)
	Origin(off int64) (storage.Origin, bool)
	OffsetForTime(ts int64) (off, at int64, ok bool, err error)
	Subscribe(ch chan<- struct{}) (cancel func())
	CompactStatus() storage.CompactStatus
}

var _ Partition = (*storage.Partition)(nil)

// Item is a record to be stored.
type Item struct {
	Partition int
	Timestamp int64
	Key       []byte
	Value     []byte
	Headers   []record.Header

	Offset int64 // set by Append
}

// OfStore is a store as the API sees it.
func OfStore(s *storage.Store) Log { return storeLog{s} }

// OfTopic is a store's topic as the API sees it.
func OfTopic(t *storage.Topic) Topic { return storeTopic{t} }

type storeLog struct{ s *storage.Store }

type storeTopic struct{ *storage.Topic }

func (t storeTopic) Parts() []Partition {
	parts := t.Partitions()
	out := make([]Partition, len(parts))
	for i, p := range parts {
		out[i] = p
	}
	return out
}

func (l storeLog) Topics(context.Context) ([]Topic, error) {
	ts := l.s.Topics()
	out := make([]Topic, len(ts))
	for i, t := range ts {
		out[i] = storeTopic{t}
	}
	return out, nil
}

func (l storeLog) Topic(_ context.Context, name string) (Topic, error) {
	if t, ok := l.s.Topic(name); ok {
		return storeTopic{t}, nil
	}
	return nil, nil
}

// Append is one commit.
func (l storeLog) Append(ctx context.Context, t Topic, list []Item) error {
	parts := t.(storeTopic).Partitions() // this log gives out no other
	a := l.s.NewAppend(t.Config().Class)
	for i := range list {
		it := &list[i]
		if err := a.Record(parts[it.Partition], it.Timestamp, it.Key, it.Value, it.Headers); err != nil {
			return err
		}
	}
	if err := l.s.Commit(ctx, a); err != nil {
		return err
	}
	for i := range list {
		list[i].Offset = a.Base(i)
	}
	return nil
}
