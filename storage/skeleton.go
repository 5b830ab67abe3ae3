package storage

import (
	"context"
	"time"

	"tailrace/storage/record"
)

const unbuilt = "internal error: not built yet"

type Store struct{}

func Open(cfg Config) (*Store, error)                                             { panic(unbuilt) }
func (s *Store) Close() error                                                     { panic(unbuilt) }
func (s *Store) Identity() Identity                                               { panic(unbuilt) }
func (s *Store) Stats() Stats                                                     { panic(unbuilt) }
func (s *Store) Losses() []Loss                                                   { panic(unbuilt) }
func (s *Store) SettleLoss(ctx context.Context, l Loss) error                     { panic(unbuilt) }
func (s *Store) Retain() error                                                    { panic(unbuilt) }
func (s *Store) CreateTopic(name string, c TopicConfig) (*Topic, error)           { panic(unbuilt) }
func (s *Store) Topic(name string) (*Topic, bool)                                 { panic(unbuilt) }
func (s *Store) Topics() []*Topic                                                 { panic(unbuilt) }
func (s *Store) PartitionByID(id PartitionID) (*Partition, bool)                  { panic(unbuilt) }
func (s *Store) EnsurePartitions(name string, n int) error                        { panic(unbuilt) }
func (s *Store) SetTopicConfig(name string, c TopicConfig) error                  { panic(unbuilt) }
func (s *Store) DeleteTopic(name string) error                                    { panic(unbuilt) }
func (s *Store) NewAppend(class string) *Append                                   { panic(unbuilt) }
func (s *Store) Submit(a *Append, done func(a *Append, err error))                { panic(unbuilt) }
func (s *Store) Commit(ctx context.Context, a *Append) error                      { panic(unbuilt) }
func (s *Store) State(kind StateKind, key string) ([]byte, bool)                  { panic(unbuilt) }
func (s *Store) RangeState(kind StateKind, f func(key string, value []byte) bool) { panic(unbuilt) }
func (s *Store) Subscribe(ch chan<- struct{}) (cancel func())                     { panic(unbuilt) }

type Topic struct{}

func (t *Topic) Name() string               { panic(unbuilt) }
func (t *Topic) ID() [16]byte               { panic(unbuilt) }
func (t *Topic) Config() TopicConfig        { panic(unbuilt) }
func (t *Topic) Partitions() []*Partition   { panic(unbuilt) }
func (t *Topic) Partition(i int) *Partition { panic(unbuilt) }

type Partition struct{}

func (p *Partition) Topic() *Topic            { panic(unbuilt) }
func (p *Partition) Index() int               { panic(unbuilt) }
func (p *Partition) ID() PartitionID          { panic(unbuilt) }
func (p *Partition) Start() int64             { panic(unbuilt) }
func (p *Partition) HighWatermark() int64     { panic(unbuilt) }
func (p *Partition) Next() int64              { panic(unbuilt) }
func (p *Partition) StartTime() (int64, bool) { panic(unbuilt) }
func (p *Partition) LastTime() (int64, bool)  { panic(unbuilt) }
func (p *Partition) Bytes() int64             { panic(unbuilt) }
func (p *Partition) Read(dst []byte, from int64, maxBytes int) (out []byte, next int64, err error) {
	panic(unbuilt)
}
func (p *Partition) Origin(off int64) (Origin, bool) { panic(unbuilt) }
func (p *Partition) OffsetForTime(ts int64) (off, offTs int64, ok bool, err error) {
	panic(unbuilt)
}
func (p *Partition) MaxTimestampOffset() (off, ts int64, ok bool) { panic(unbuilt) }
func (p *Partition) Wait(ctx context.Context, off int64) error    { panic(unbuilt) }
func (p *Partition) Subscribe(ch chan<- struct{}) (cancel func()) { panic(unbuilt) }
func (p *Partition) SetStart(off int64) error                     { panic(unbuilt) }
func (p *Partition) Acked(off int64)                              { panic(unbuilt) }
func (p *Partition) ReadRange(from, to time.Time) *Cursor         { panic(unbuilt) }

type Cursor struct{}

func NewCursor(p *Partition, from int64) *Cursor                 { panic(unbuilt) }
func (c *Cursor) Next(ctx context.Context) (record.Batch, error) { panic(unbuilt) }
func (c *Cursor) Offset() int64                                  { panic(unbuilt) }

type Append struct{}

func (a *Append) Record(p *Partition, ts int64, key, value []byte, headers []record.Header) error {
	panic(unbuilt)
}
func (a *Append) RecordTail(p *Partition, ts int64, tail []byte) error { panic(unbuilt) }
func (a *Append) Batch(p *Partition, b record.Batch, o *Origin) error  { panic(unbuilt) }
func (a *Append) Set(kind StateKind, key string, value []byte)         { panic(unbuilt) }
func (a *Append) Fold(kind StateKind, key string, delta []byte)        { panic(unbuilt) }
func (a *Append) Len() int                                             { panic(unbuilt) }
func (a *Append) Bytes() int                                           { panic(unbuilt) }
func (a *Append) Reset()                                               { panic(unbuilt) }
func (a *Append) Base(i int) int64                                     { panic(unbuilt) }
