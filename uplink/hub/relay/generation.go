package relay

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"tailrace/storage/record"
	"tailrace/uplink"
	"tailrace/uplink/hub/internal/saved"
	"tailrace/uplink/wire"
)

var (
	// ErrUnknownEpoch refuses records of an epoch that no Hello has introduced.
	ErrUnknownEpoch = errors.New("epoch is not known for this node")
	// ErrLost fails what was under way when its shard was taken over or given up.
	ErrLost = errors.New("the shard is not served here any more")
)

// generation is a shard between two takeovers: what it knows holds from the takeover that
// made it until the first doubt, and is then dropped as a whole.
type generation struct {
	r   *Relay
	n   int32
	log *slog.Logger
	pr  *producer
	dec *record.Decompressor

	wake chan struct{} // capacity 1

	mu       sync.Mutex // guards what follows
	streams  map[originKey]*stream
	byNode   map[string][]*stream
	epochs   map[string][]wire.EpochInfo
	notes    map[string][]byte
	entries  map[string][]byte // as they were at the takeover; dropped when told
	orders   map[partKey]Order
	queue    []*entry
	waiters  []waiter
	enqueued uint64 // entries queued since the generation began
	taken    uint64 // of them, ended one way or the other
	bytes    int    // of queue
	dead     error
}

func newGeneration(r *Relay, n int32) *generation {
	log := r.cfg.Logger.With("shard", n)
	return &generation{r: r, n: n, log: log, wake: make(chan struct{}, 1), dec: record.NewDecompressor(0),
		pr:      &producer{c: r.c, txn: fmt.Sprintf("%s-shard-%d", r.cfg.Name, n), log: log.Debug},
		streams: map[originKey]*stream{}, byNode: map[string][]*stream{}, epochs: map[string][]wire.EpochInfo{},
		notes: map[string][]byte{}, entries: map[string][]byte{}, orders: map[partKey]Order{}}
}

// takeOver fences the former owner, and then reads what it has committed. In this order:
// what is read before the fence may be followed by a commit of the former owner.
func (g *generation) takeOver(ctx context.Context) error {
	if err := g.pr.fence(ctx); err != nil {
		return err
	}
	p := part{g.r.cfg.ProgressTopic(), g.n}
	first, stable, err := g.r.c.bounds(ctx, p)
	if err != nil {
		return err
	}
	vals := map[originKey]value{}
	err = g.r.c.read(ctx, p, first, stable, func(rec *kgo.Record) error { return g.restore(vals, rec) })
	if err != nil {
		return err
	}
	for k, v := range vals {
		base, err := g.base(k)
		if err != nil {
			return fmt.Errorf("progress %s: %w", k, err)
		}
		st := g.newStream(k, base, v.Partition)
		st.val, st.held = v, v.Held
		st.reset()
	}
	return nil
}

// restore takes a record of the progress topic. What does not decode stops the takeover:
// to go on without a node's progress would store its records twice.
func (g *generation) restore(vals map[originKey]value, rec *kgo.Record) error {
	key := string(rec.Key)
	fail := func(err error) error {
		return fmt.Errorf("record %q at offset %d of %s/%d is damaged, or of a newer hub: %w", key, rec.Offset, rec.Topic, rec.Partition, err)
	}
	switch {
	case strings.HasPrefix(key, keyProgress):
		k, err := parseOriginKey(key[len(keyProgress):])
		if err != nil {
			return fail(err)
		}
		var v value
		if rec.Value == nil {
			delete(vals, k)
		} else if err := saved.Decode(rec.Value, &v); err != nil {
			return fail(err)
		} else {
			vals[k] = v
		}
	case strings.HasPrefix(key, keyEpochs):
		var list []wire.EpochInfo
		if err := saved.Decode(rec.Value, &list); err != nil {
			return fail(err)
		}
		g.epochs[key[len(keyEpochs):]] = list
	case strings.HasPrefix(key, keyNote):
		g.notes[key[len(keyNote):]] = slices.Clone(rec.Value)
	case strings.HasPrefix(key, keyEntry):
		if rec.Value == nil {
			delete(g.entries, key[len(keyEntry):])
		} else {
			g.entries[key[len(keyEntry):]] = slices.Clone(rec.Value)
		}
	default:
		return fail(errors.New("unknown kind"))
	}
	return nil
}

// base is the first offset of an epoch in a partition. Called with mu held, or before
// anything runs.
func (g *generation) base(k originKey) (int64, error) {
	for _, ep := range g.epochs[k.node] {
		if ep.ID == k.epoch {
			return ep.First(k.topic, k.partition), nil
		}
	}
	return 0, fmt.Errorf("%s: %w", k.origin(), ErrUnknownEpoch)
}

// newStream is called with mu held, or before anything runs.
func (g *generation) newStream(k originKey, base int64, at int32) *stream {
	st := &stream{key: k, base: base, at: at, val: value{LastOffset: -1, Partition: at}}
	g.streams[k] = st
	g.byNode[k.node] = append(g.byNode[k.node], st)
	return st
}

// stream finds or makes the state of an origin. The topic has been made sure of before.
// Called with mu held.
func (g *generation) stream(k originKey) (*stream, error) {
	if st := g.streams[k]; st != nil {
		return st, nil
	}
	base, err := g.base(k)
	if err != nil {
		return nil, err
	}
	for _, st := range g.byNode[k.node] { // a node's partition never changes its place
		if st.key.topic == k.topic && st.key.partition == k.partition {
			return g.newStream(k, base, st.at), nil
		}
	}
	// The partitions of this shard: n, n+shards, …
	mine := (g.r.c.partitions(k.topic)-int(g.n)-1)/g.r.cfg.Shards + 1
	if mine < 1 {
		return nil, &TopicError{k.topic, "it has too few partitions"}
	}
	h := fnv.New32a()
	fmt.Fprintf(h, "%s/%d", k.node, k.partition)
	return g.newStream(k, base, g.n+int32(h.Sum32()%uint32(mine))*int32(g.r.cfg.Shards)), nil
}

// push appends entries and their waiter. Called with mu held.
func (g *generation) push(add []*entry, w waiter) {
	for _, e := range add {
		g.bytes += e.bytes
	}
	g.queue = append(g.queue, add...)
	g.enqueued += uint64(len(add))
	w.after, w.at = g.enqueued, time.Now()
	g.waiters = append(g.waiters, w)
	select {
	case g.wake <- struct{}{}:
	default:
	}
}

// append queues what is new of a node's batches.
func (g *generation) append(o wire.Origin, list []record.Batch, companion bool, w waiter) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.dead != nil {
		return g.dead
	}
	k := keyOf(o)
	st, err := g.stream(k)
	if err != nil {
		return err
	}
	if len(list) > 0 && list[0].BaseOffset() < st.base {
		return fmt.Errorf("%s: offset %d lies before the epoch's first one, %d", o, list[0].BaseOffset(), st.base)
	}
	add, err := st.entries(g.orders[partKey{k.node, k.topic, k.partition}], list, o.Backfill, companion)
	if err != nil && err != errCompanion {
		st.halted = err
	}
	if err != nil {
		return err
	}
	w.st = st
	g.push(add, w)
	return nil
}

// declare queues ranges that will never come.
func (g *generation) declare(o wire.Origin, gaps []wire.Gap, w waiter) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.dead != nil {
		return g.dead
	}
	st, err := g.stream(keyOf(o))
	if err != nil {
		return err
	}
	pend := st.pend.Clone()
	var add []*entry
	for _, gap := range gaps {
		for _, r := range gap.Ranges {
			for _, m := range pend.Missing(max(r.From, st.base), r.To) {
				pend.Add(m.From, m.To)
				add = append(add, &entry{st: st, gap: g.loss(st, m, gap)})
			}
		}
	}
	if len(pend) > maxHeldRanges {
		return fmt.Errorf("%s: more than %d separate ranges", o, maxHeldRanges)
	}
	st.pend = pend
	w.st = st
	g.push(add, w)
	return nil
}

func (g *generation) loss(st *stream, r uplink.Range, gap wire.Gap) *Loss {
	return &Loss{Origin: st.key.origin(), Range: r, Gap: gap, CentralTopic: st.key.topic, CentralPartition: int(st.at), DeclaredAt: g.r.cfg.Now().UnixMilli()}
}

// put queues a key of the progress topic that stands for itself.
func (g *generation) put(key string, val []byte, done func(error)) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.dead != nil {
		return g.dead
	}
	g.push([]*entry{{key: key, value: val, bytes: len(key) + len(val)}}, waiter{done: func(_ uplink.RangeSet, err error) { done(err) }})
	return nil
}

// work commits what is queued, one transaction after the other, until something is in
// doubt or ctx ends.
func (g *generation) work(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return ErrLost
		case <-g.wake:
		}
		for {
			g.mu.Lock()
			n, bytes := len(g.queue), g.bytes
			idle := n == 0 && len(g.waiters) > 0
			g.mu.Unlock()
			if idle { // every Append was held already
				g.complete(nil)
				continue
			}
			if n == 0 {
				break
			}
			if bytes < g.r.cfg.TxnBytes && !pause(ctx, g.r.cfg.Linger) {
				return ErrLost
			}
			if err := g.transaction(ctx, g.take()); err != nil {
				return err
			}
		}
	}
}

// take takes the front of the queue, as much as one transaction holds.
func (g *generation) take() []*entry {
	g.mu.Lock()
	defer g.mu.Unlock()
	n, bytes := 0, 0
	for n < len(g.queue) && n < 1<<16 && (n == 0 || bytes < g.r.cfg.TxnBytes) {
		bytes += g.queue[n].bytes
		n++
	}
	take := g.queue[:n:n]
	g.queue = g.queue[n:]
	if len(g.queue) == 0 {
		g.queue = nil
	}
	g.bytes -= bytes
	return take
}

// complete makes the outcome of a transaction known, to the callers and to the state.
// Entries without an error are committed.
func (g *generation) complete(take []*entry) {
	type call struct {
		w    waiter
		held uplink.RangeSet
		err  error
	}
	var calls []call
	g.mu.Lock()
	failed := map[*stream]error{}
	for _, e := range take {
		switch {
		case e.st == nil:
			g.apply(e)
		case e.err != nil && !e.purged:
			failed[e.st] = e.err
		}
	}
	for _, e := range take {
		if e.st != nil && e.st.next.Held != nil {
			e.st.val, e.st.held = e.st.next, e.st.next.Held
			e.st.next = value{}
		}
	}
	g.taken += uint64(len(take))
	// What waits behind something that was not stored is not stored either.
	for st, err := range failed {
		st.halted = err
		st.reset()
	}
	if len(failed) > 0 {
		for _, e := range g.queue {
			if e.st != nil && e.err == nil && failed[e.st] != nil {
				e.err, e.purged = failed[e.st], true
			}
		}
	}
	rest := g.waiters[:0:0]
	for _, w := range g.waiters {
		switch {
		case w.st != nil && failed[w.st] != nil:
			calls = append(calls, call{w, nil, failed[w.st]})
		case w.after <= g.taken:
			c := call{w: w}
			if w.st != nil {
				c.held = w.st.held
			}
			calls = append(calls, c)
		default:
			rest = append(rest, w)
		}
	}
	g.waiters = rest
	g.mu.Unlock()
	for _, c := range calls {
		g.r.release(c.w.bytes)
		c.w.done(c.held, c.err)
	}
}

// apply takes over a key that is committed. Called with mu held.
func (g *generation) apply(e *entry) {
	switch {
	case strings.HasPrefix(e.key, keyEpochs):
		var list []wire.EpochInfo
		if saved.Decode(e.value, &list) == nil { // encoded here
			g.epochs[e.key[len(keyEpochs):]] = list
		}
	case strings.HasPrefix(e.key, keyNote):
		g.notes[e.key[len(keyNote):]] = e.value
	}
}

// end fails everything that is under way.
func (g *generation) end(err error) {
	g.mu.Lock()
	g.dead = fmt.Errorf("%w: %w", ErrLost, err)
	calls := g.waiters
	g.waiters, g.queue = nil, nil
	g.mu.Unlock()
	for _, w := range calls {
		g.r.release(w.bytes)
		w.done(nil, g.dead)
	}
	g.dec.Close()
}
