package hub

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"

	"tailrace/storage"
	"tailrace/uplink/hub/internal/saved"
	"tailrace/uplink/wire"
)

// EmbeddedConfig configures the central store on one machine.
type EmbeddedConfig struct {
	Store   *storage.Store
	Classes []string    // the store's classes, the first is the default
	Topics  []TopicRule // how topics are made; none = every name, 4 partitions, first class

	MergeRecords   int   // small batches are merged up to so many records; default 1,000
	MergeBytes     int   // and so many bytes; default 256 KiB
	SubmitBytes    int   // of one origin in one append; default 4 MiB
	MaxQueuedBytes int64 // of all origins waiting for the disk; default 128 MiB

	Logger *slog.Logger
	Now    func() time.Time
}

func (c EmbeddedConfig) withDefaults() EmbeddedConfig {
	if len(c.Topics) == 0 {
		c.Topics = []TopicRule{{Match: "*"}}
	}
	c.Topics = slices.Clone(c.Topics)
	for i := range c.Topics {
		c.Topics[i].Partitions = cmp.Or(c.Topics[i].Partitions, 4)
	}
	c.MergeRecords = cmp.Or(c.MergeRecords, 1000)
	c.MergeBytes = cmp.Or(c.MergeBytes, 256<<10)
	c.SubmitBytes = cmp.Or(c.SubmitBytes, 4<<20)
	c.MaxQueuedBytes = cmp.Or(c.MaxQueuedBytes, 128<<20)
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	return c
}

// Embedded is the Central on storage.
//
// Exactly once: an origin's ranges are kept twice, held (durable) and pend
// (held and what was queued after it). An append is deduplicated against pend
// when it is queued. The queue of an origin goes to the store as one
// storage.Append, records and the progress that covers them, one at a time per
// origin, so that the progress written is exactly the held that the commit
// makes true. While it is on its way, the next appends gather and are merged.
// When it fails, everything queued fails with it and pend falls back to held.
// Appends of different origins share the store's commits.
//
// Lock order: stream.mu, then Embedded.mu. Neither is held while the store is called.
type Embedded struct {
	cfg     EmbeddedConfig
	store   *storage.Store
	budget  *semaphore.Weighted           // bytes queued by all origins
	ledger  map[string]*storage.Partition // by class; fixed after New
	appends map[string]*sync.Pool         // of *storage.Append, by class; fixed after New

	mu      sync.Mutex // guards what follows
	streams map[streamKey]*stream
	byNode  map[string][]*stream
	assigns map[assignKey]*assignment
	load    map[Assignment]int // node partitions assigned to a central partition
	epochs  map[string][]wire.EpochInfo
	ready   []*stream              // streams with a queue and nothing in flight; each at most once
	orders  map[assignKey]ordering // of those that are not strict
	closed  bool                   // nothing is submitted any more
	gone    bool                   // and every stream is quiet: the workers end
	wake    *sync.Cond             // on mu: ready or gone changed
	workers sync.WaitGroup

	losses lossTable
	stats  engineStats
}

type engineStats struct {
	records, batchesIn, batchesStored, bytesIn, bytesStored, duplicates, refused, failed, declared atomic.Int64
}

// assignment is shared by the epochs of a node's partition.
type assignment struct {
	Assignment
	durable atomic.Bool // its state entry is on disk
}

// NewEmbedded restores progress and assignments from the store and starts the
// goroutines that submit merged appends. Close ends them; the store stays the caller's.
func NewEmbedded(c EmbeddedConfig) (*Embedded, error) {
	if c.Store == nil || len(c.Classes) == 0 {
		return nil, errors.New("hub: EmbeddedConfig wants Store and Classes")
	}
	if err := movedTo(c.Store); err != nil {
		return nil, err
	}
	c = c.withDefaults()
	e := &Embedded{
		cfg: c, store: c.Store,
		budget: semaphore.NewWeighted(c.MaxQueuedBytes),
		ledger: map[string]*storage.Partition{}, appends: map[string]*sync.Pool{},

		streams: map[streamKey]*stream{},
		byNode:  map[string][]*stream{},
		assigns: map[assignKey]*assignment{},
		load:    map[Assignment]int{},
		epochs:  map[string][]wire.EpochInfo{},
		orders:  map[assignKey]ordering{},
	}
	e.wake = sync.NewCond(&e.mu)
	for _, class := range c.Classes {
		e.appends[class] = new(sync.Pool)
	}
	if err := e.ensureLedger(); err != nil {
		return nil, err
	}
	if err := e.restore(); err != nil {
		return nil, err
	}
	if err := e.losses.load(e.ledger); err != nil {
		return nil, err
	}
	if err := e.reconcile(context.Background()); err != nil {
		return nil, err
	}
	for range min(4, runtime.GOMAXPROCS(0)) {
		e.workers.Go(e.work)
	}
	return e, nil
}

// restore reads the durable state. Something that does not decode stops the
// hub: to go on without a node's progress would store its records twice.
func (e *Embedded) restore() error {
	var errs []error
	e.store.RangeState(storage.KindAssign, func(key string, value []byte) bool {
		k, err := parseAssignKey(key)
		a := &assignment{}
		if err == nil {
			err = saved.Decode(value, &a.Assignment)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("assignment %q: %w", key, err))
			return true
		}
		a.durable.Store(true)
		e.assigns[k] = a
		e.load[a.Assignment]++
		return true
	})
	e.store.RangeState(storage.KindRegistry, func(key string, value []byte) bool {
		node, ok := cutPrefix(key, epochsPrefix)
		if !ok {
			return true
		}
		var list []wire.EpochInfo
		if err := saved.Decode(value, &list); err != nil {
			errs = append(errs, fmt.Errorf("epochs of node %q: %w", node, err))
		}
		e.epochs[node] = list
		return true
	})
	e.store.RangeState(storage.KindProgress, func(key string, value []byte) bool {
		k, err := parseStreamKey(key)
		var v progressValue
		if err == nil {
			err = saved.Decode(value, &v)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("progress %q: %w", key, err))
			return true
		}
		a, ok := e.assigns[assignKey{k.node, k.topic, k.partition}]
		if !ok {
			errs = append(errs, fmt.Errorf("progress %q has no assignment", key))
			return true
		}
		base, err := e.base(k)
		if err != nil {
			errs = append(errs, fmt.Errorf("progress %q: %w", key, err))
			return true
		}
		st := e.newStream(k, a, base)
		st.prog, st.held, st.pend = v, v.Held, v.Held.Clone()
		st.top, st.back = v.LastOffset+1, v.BackNext
		return true
	})
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("the central store's state is damaged; restore it from a copy, or start a new store and let the nodes send again what they hold: %w", err)
	}
	return nil
}

func cutPrefix(s, prefix string) (string, bool) {
	if len(s) > len(prefix) && s[:len(prefix)] == prefix {
		return s[len(prefix):], true
	}
	return "", false
}

// epochsPrefix is followed by the node id in the key of a KindRegistry entry.
const epochsPrefix = "epochs/"

// Identity implements Central.
func (e *Embedded) Identity() (wire.ID, int32) {
	return wire.ID(e.store.Identity().StoreID), e.store.EpochNumber()
}

// Adopt implements Central.
func (e *Embedded) Adopt(ctx context.Context, node string, epochs []wire.EpochInfo) error {
	if !validName(node) {
		return fmt.Errorf("node id %q: it has 1 to 249 of the characters a-z A-Z 0-9 . _ -", node)
	}
	a := e.store.NewAppend("")
	a.Set(storage.KindRegistry, epochsPrefix+node, saved.Encode(epochs))
	if err := e.store.Commit(ctx, a); err != nil {
		return fmt.Errorf("store the epochs of node %s: %w", node, err)
	}
	e.mu.Lock()
	e.epochs[node] = slices.Clone(epochs)
	e.mu.Unlock()
	return nil
}

// Epochs returns the epochs adopted of a node, oldest first.
func (e *Embedded) Epochs(node string) []wire.EpochInfo {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.epochs[node])
}

// Progress implements Central.
func (e *Embedded) Progress(ctx context.Context, node string) ([]Progress, error) {
	e.mu.Lock()
	list := slices.Clone(e.byNode[node])
	e.mu.Unlock()
	out := make([]Progress, 0, len(list))
	for _, st := range list {
		out = append(out, st.progress())
	}
	return out, nil
}

// stream finds or makes the state of an origin. A topic that does not exist is
// made, which waits for the disk.
func (e *Embedded) stream(o wire.Origin) (*stream, error) {
	k := keyOf(o)
	e.mu.Lock()
	st := e.streams[k]
	e.mu.Unlock()
	if st != nil {
		return st, nil
	}
	if !validName(o.Node) || !validName(o.Topic) || o.Partition < 0 {
		return nil, &TopicError{o.Topic, "not a valid name, or a negative partition"}
	}
	if reservedTopic(o.Topic) {
		return nil, &TopicError{o.Topic, "the name is reserved for the hub"}
	}
	e.mu.Lock()
	_, err := e.base(k)
	e.mu.Unlock()
	if err != nil { // before a topic is made for it
		return nil, err
	}
	t, err := e.EnsureTopic(o.Topic)
	if err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if st := e.streams[k]; st != nil {
		return st, nil
	}
	base, err := e.base(k)
	if err != nil {
		return nil, err
	}
	ak := assignKey{o.Node, o.Topic, o.Partition}
	a := e.assigns[ak]
	if a == nil {
		a = &assignment{Assignment: e.choose(t)}
		e.assigns[ak] = a
		e.load[a.Assignment]++
	}
	return e.newStream(k, a, base), nil
}

// choose picks the central partition with the fewest node partitions, the
// lowest of equals. Called with mu held (or before anything runs).
func (e *Embedded) choose(t *storage.Topic) Assignment {
	class := e.classOf(t)
	best := Assignment{t.Name(), 0, class}
	for i, p := range t.Partitions() {
		a := Assignment{t.Name(), p.Index(), class}
		if i == 0 || e.load[a] < e.load[best] {
			best = a
		}
	}
	return best
}

// newStream registers a stream. Called with mu held (or before anything runs).
func (e *Embedded) newStream(k streamKey, a *assignment, base int64) *stream {
	st := &stream{e: e, key: k, name: k.String(), assign: a, base: base, prog: progressValue{LastOffset: -1}}
	st.room = sync.NewCond(&st.mu)
	st.order.Store(int32(e.orders[assignKey{k.node, k.topic, k.partition}]))
	e.streams[k] = st
	e.byNode[k.node] = append(e.byNode[k.node], st)
	return st
}

// base is the first offset of an epoch in a partition. Called with mu held (or
// before anything runs).
func (e *Embedded) base(k streamKey) (int64, error) {
	for _, ep := range e.epochs[k.node] {
		if ep.ID == k.epoch {
			return ep.First(k.topic, k.partition), nil
		}
	}
	return 0, fmt.Errorf("%s: %w", k.origin(), ErrUnknownEpoch)
}

// Close waits for what was submitted and refuses everything after. Idempotent.
func (e *Embedded) Close() {
	e.mu.Lock()
	e.closed = true
	list := make([]*stream, 0, len(e.streams))
	for _, st := range e.streams {
		list = append(list, st)
	}
	e.mu.Unlock()
	for _, st := range list {
		st.quiet()
	}
	e.mu.Lock()
	e.gone = true
	e.wake.Broadcast()
	e.mu.Unlock()
	e.workers.Wait()
}

// EngineStats are totals since New.
type EngineStats struct {
	Records, BatchesIn, BatchesStored, BytesIn, BytesStored int64
	Duplicates                                              int64 // records that were held already
	Refused                                                 int64 // appends refused: order, epoch, damage
	Failed                                                  int64 // appends that the disk refused
	Declared                                                int64 // offsets declared lost
}

// Stats returns totals since New.
func (e *Embedded) Stats() EngineStats {
	s := &e.stats
	return EngineStats{s.records.Load(), s.batchesIn.Load(), s.batchesStored.Load(), s.bytesIn.Load(), s.bytesStored.Load(),
		s.duplicates.Load(), s.refused.Load(), s.failed.Load(), s.declared.Load()}
}

var _ Central = (*Embedded)(nil)
