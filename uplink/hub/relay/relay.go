package relay

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash/fnv"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"golang.org/x/sync/semaphore"

	"tailrace/storage/record"
	"tailrace/uplink"
	"tailrace/uplink/hub/internal/saved"
	"tailrace/uplink/wire"
)

// Relay is a hub's part in the cluster. Methods may be called concurrently.
type Relay struct {
	cfg    Config
	c      *cluster
	id     wire.ID
	budget *semaphore.Weighted
	shards []*shard
	ctx    context.Context
	cancel context.CancelFunc
	opened chan struct{} // closed when the client may be used
	joined atomic.Int64  // when the group said first which shards are this hub's, ms since 1970; 0 = not yet

	post poster

	topicMu sync.Mutex
	checked map[string]bool // guarded by topicMu: topics that are there and good

	stats counters
}

// shard is a shard as this hub sees it.
type shard struct {
	r *Relay
	n int32

	mu   sync.Mutex // guards what follows
	gen  *generation
	stop context.CancelFunc // not nil while the group says that the shard is this hub's
	done chan struct{}
}

// Open connects to the cluster, makes what it needs there, and joins the hubs.
func Open(ctx context.Context, cfg Config) (_ *Relay, err error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg = cfg.withDefaults()
	cfg.wire = new(wireStats)
	opts, err := cfg.options()
	if err != nil {
		return nil, err
	}
	r := &Relay{cfg: cfg, checked: map[string]bool{}, budget: semaphore.NewWeighted(cfg.MaxQueuedBytes), opened: make(chan struct{})}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	for n := range cfg.Shards {
		r.shards = append(r.shards, &shard{r: r, n: int32(n)})
	}
	opts = append(opts, kgo.ConsumerGroup(cfg.Name+"-hubs"), kgo.ConsumeTopics(cfg.ProgressTopic()), kgo.Balancers(kgo.CooperativeStickyBalancer()),
		kgo.SessionTimeout(sessionTimeout), kgo.HeartbeatInterval(time.Second), kgo.DisableAutoCommit(),
		kgo.OnPartitionsAssigned(r.assigned), kgo.OnPartitionsRevoked(r.revoked), kgo.OnPartitionsLost(r.revoked))
	// The topics first: without them the group has nothing to share.
	plain, _ := cfg.options()
	first, err := kgo.NewClient(plain...)
	if err != nil {
		return nil, err
	}
	defer first.Close()
	r.c = &cluster{cl: first}
	if err := r.checkCluster(ctx); err != nil {
		return nil, fmt.Errorf("kafka cluster: %w", err)
	}
	if err := r.ensureSystem(ctx); err != nil {
		return nil, fmt.Errorf("kafka cluster: %w", err)
	}
	if err := r.noMove(ctx); err != nil {
		return nil, fmt.Errorf("kafka cluster: %w", err)
	}
	r.id = storeID(r.c.cluster, cfg.Name)
	cl, err := kgo.NewClient(opts...)
	if err != nil {
		return nil, err
	}
	cl.PauseFetchTopics(r.cfg.ProgressTopic()) // the group is there to share shards; what they hold is read by takeovers
	r.c.cl = cl
	close(r.opened)
	return r, nil
}

// storeID names a fleet in a cluster.
func storeID(cluster, name string) (id wire.ID) {
	sum := sha256.Sum256([]byte("tailrace kafka store\x00" + cluster + "\x00" + name))
	copy(id[:], sum[:])
	return id
}

// Identity names the store.
func (r *Relay) Identity() (wire.ID, int32) { return r.id, 1 }

// Shard is a node's shard. It never changes.
func (r *Relay) Shard(node string) int {
	h := fnv.New32a()
	h.Write([]byte(node))
	return int(h.Sum32() % uint32(r.cfg.Shards))
}

func (r *Relay) assigned(_ context.Context, _ *kgo.Client, m map[string][]int32) {
	defer r.joined.CompareAndSwap(0, time.Now().UnixMilli())
	for _, n := range m[r.cfg.ProgressTopic()] {
		r.shards[n].begin()
	}
}

func (r *Relay) revoked(_ context.Context, _ *kgo.Client, m map[string][]int32) {
	for _, n := range m[r.cfg.ProgressTopic()] {
		r.shards[n].end()
	}
}

func (s *shard) begin() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stop != nil || s.r.ctx.Err() != nil {
		return
	}
	ctx, cancel := context.WithCancel(s.r.ctx)
	s.stop, s.done = cancel, make(chan struct{})
	go s.run(ctx, s.done)
}

// end stops a shard, and returns when nothing of it is under way here.
func (s *shard) end() {
	s.mu.Lock()
	stop, done := s.stop, s.done
	s.stop = nil
	s.mu.Unlock()
	if stop != nil {
		stop()
		<-done
	}
}

// run serves a shard: takeover after takeover, as long as the group says that it is this hub's.
func (s *shard) run(ctx context.Context, done chan struct{}) {
	defer close(done)
	select {
	case <-s.r.opened:
	case <-ctx.Done():
		return
	}
	log := s.r.cfg.Logger.With("shard", s.n)
	wait := 50 * time.Millisecond
	for ctx.Err() == nil {
		g := newGeneration(s.r, s.n)
		began := time.Now()
		if err := g.takeOver(ctx); err != nil {
			if ctx.Err() == nil {
				log.Warn("takeover failed", "error", err)
			}
			g.end(err)
			wait = min(2*wait, 2*time.Second)
			pause(ctx, wait)
			continue
		}
		took := time.Since(began)
		s.r.stats.takeovers.Add(1)
		s.r.stats.takingOver.Add(int64(took))
		s.r.stats.lastTakeover.Store(int64(took))
		log.Info("shard taken over", "nodes", len(g.epochs), "took", took.Round(time.Millisecond).String(), "epoch", g.pr.epoch)
		s.r.cfg.Acquired(int(s.n), g.notes, g.entries)
		g.entries = nil
		s.mu.Lock()
		s.gen = g
		s.mu.Unlock()
		err := g.work(ctx)
		s.mu.Lock()
		s.gen = nil
		s.mu.Unlock()
		g.end(err)
		s.r.cfg.Lost(int(s.n))
		if ctx.Err() != nil {
			log.Info("shard given up")
			return
		}
		s.r.gaveUp(err)
		log.Warn("the shard's state is dropped and read again", "error", err)
		if wait = 50 * time.Millisecond; errors.Is(err, kerr.InvalidProducerEpoch) || errors.Is(err, kerr.ProducerFenced) {
			wait = time.Second // another hub has it: the group says so in a moment
		}
		pause(ctx, wait)
	}
}

// NotHereError refuses a node whose shard another hub serves.
type NotHereError struct {
	Node string
	Hub  string // host:port of the hub that does; empty = not known
}

func (e *NotHereError) Error() string {
	if e.Hub == "" {
		return fmt.Sprintf("node %s is not served by this hub now", e.Node)
	}
	return fmt.Sprintf("node %s is served by the hub at %s", e.Node, e.Hub)
}

// ErrNotYet refuses what comes while a shard is taken over.
var ErrNotYet = errors.New("the shard is being taken over")

// ComesAgain tells an error of the moment from a refusal of the records.
func ComesAgain(err error) bool {
	return errors.Is(err, ErrLost) || errors.Is(err, ErrNotYet) || errors.As(err, new(*NotHereError))
}

// at finds the generation of a node's shard.
func (r *Relay) at(node string) (*generation, error) {
	s := r.shards[r.Shard(node)]
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.gen != nil:
		return s.gen, nil
	case s.stop != nil:
		return nil, ErrNotYet
	}
	return nil, &NotHereError{Node: node}
}

// Serves returns nil when a node's shard is served here, and else why not; of another
// hub, which.
func (r *Relay) Serves(ctx context.Context, node string) error {
	_, err := r.at(node)
	var nh *NotHereError
	if errors.As(err, &nh) {
		nh.Hub, _ = r.Owner(ctx, r.Shard(node)) // unknown when the group cannot be asked
		return nh
	}
	return err
}

// Owner is the address of the hub that has a shard, as the consumer group says.
func (r *Relay) Owner(ctx context.Context, shard int) (string, error) {
	req := kmsg.NewPtrDescribeGroupsRequest()
	req.Groups = []string{r.cfg.Name + "-hubs"}
	resp, err := req.RequestWith(ctx, r.c.cl)
	if err != nil {
		return "", err
	}
	for _, g := range resp.Groups {
		if err := kerr.ErrorForCode(g.ErrorCode); err != nil {
			return "", err
		}
		for _, m := range g.Members {
			var a kmsg.ConsumerMemberAssignment
			if a.ReadFrom(m.MemberAssignment) != nil {
				continue
			}
			for _, t := range a.Topics {
				if t.Topic == r.cfg.ProgressTopic() && slices.Contains(t.Partitions, int32(shard)) {
					return strings.TrimPrefix(m.ClientID, clientPrefix), nil
				}
			}
		}
	}
	return "", nil
}

// Waiting is how many shards this hub has to serve, and of them how many it does not serve
// yet. ok is false before the group has said what they are: a hub that joins others gets
// its share when they have given it up.
func (r *Relay) Waiting() (waiting, all int, ok bool) {
	for _, s := range r.shards {
		s.mu.Lock()
		if s.stop != nil {
			all++
			if s.gen == nil {
				waiting++
			}
		}
		s.mu.Unlock()
	}
	at := r.joined.Load()
	return waiting, all, at > 0 && (all > 0 || time.Since(time.UnixMilli(at)) > sessionTimeout)
}

// Served are the shards that this hub serves now.
func (r *Relay) Served() (list []int) {
	for _, s := range r.shards {
		s.mu.Lock()
		if s.gen != nil {
			list = append(list, int(s.n))
		}
		s.mu.Unlock()
	}
	return list
}

func (r *Relay) release(n int64) {
	if n > 0 {
		r.budget.Release(n)
	}
}

// Append stores what is not held of whole batches of one origin in ascending order.
// batches belongs to the Relay until done is called: once, after the commit, or with the
// reason why not; of one origin in the order of the Appends.
func (r *Relay) Append(ctx context.Context, o wire.Origin, batches []byte, done func(held uplink.RangeSet, err error)) {
	if err := r.append(ctx, o, batches, done); err != nil {
		done(nil, err)
	}
}

func (r *Relay) append(ctx context.Context, o wire.Origin, batches []byte, done func(held uplink.RangeSet, err error)) error {
	list, err := record.Ascending(batches)
	if err != nil {
		return fmt.Errorf("%s: %w", o, err)
	}
	if err := r.ready(ctx, o); err != nil {
		return err
	}
	n := min(int64(len(batches)), r.cfg.MaxQueuedBytes)
	if err := r.budget.Acquire(ctx, n); err != nil {
		return fmt.Errorf("%s: waiting for the cluster: %w", o, err)
	}
	g, err := r.at(o.Node)
	if err == nil {
		companion := o.Topic + BackfillSuffix
		err = g.append(o, list, r.isChecked(companion), waiter{bytes: n, done: done})
		if errors.Is(err, errCompanion) {
			if err = r.EnsureTopic(ctx, companion); err == nil {
				err = g.append(o, list, true, waiter{bytes: n, done: done})
			}
		}
	}
	if err != nil {
		r.release(n)
	}
	return err
}

func (r *Relay) isChecked(topic string) bool {
	r.topicMu.Lock()
	defer r.topicMu.Unlock()
	return r.checked[topic]
}

// ready makes sure of an origin's topic.
func (r *Relay) ready(ctx context.Context, o wire.Origin) error {
	if r.Reserved(o.Topic) {
		return &TopicError{o.Topic, "the name is reserved for the hub"}
	}
	if o.Partition < 0 {
		return &TopicError{o.Topic, "a negative partition"}
	}
	return r.EnsureTopic(ctx, o.Topic)
}

// Declare records that ranges of an origin will never come.
func (r *Relay) Declare(ctx context.Context, o wire.Origin, gaps []wire.Gap) (uplink.RangeSet, error) {
	if err := r.ready(ctx, o); err != nil {
		return nil, err
	}
	g, err := r.at(o.Node)
	if err != nil {
		return nil, err
	}
	type result struct {
		held uplink.RangeSet
		err  error
	}
	ch := make(chan result, 1) // the one send never blocks
	if err := g.declare(o, gaps, waiter{done: func(held uplink.RangeSet, err error) { ch <- result{held, err} }}); err != nil {
		return nil, err
	}
	select {
	case x := <-ch:
		return x.held, x.err
	case <-ctx.Done():
		return nil, fmt.Errorf("%s: waiting for the cluster: %w", o, ctx.Err())
	}
}

// Adopt makes the epochs of a node known.
func (r *Relay) Adopt(ctx context.Context, node string, epochs []wire.EpochInfo) error {
	known, err := r.Epochs(node)
	if err != nil {
		return err
	}
	for _, k := range known { // progress of an epoch that nobody knows could not be read again
		if !slices.ContainsFunc(epochs, func(e wire.EpochInfo) bool { return e.ID == k.ID }) {
			return fmt.Errorf("node %s: epoch %s is missing among those to adopt", node, k.ID)
		}
	}
	return r.putKey(ctx, node, keyEpochs+node, saved.Encode(epochs), true)
}

// PutNote stores what describes a node. wait = until it is committed.
func (r *Relay) PutNote(ctx context.Context, node string, note []byte, wait bool) error {
	return r.putKey(ctx, node, keyNote+node, note, wait)
}

// PutEntry stores what is of a node beside its note, nil = forgets it. done hears when it is
// committed, or why not.
func (r *Relay) PutEntry(node, key string, val []byte, done func(error)) {
	g, err := r.at(node)
	if err == nil {
		err = g.put(keyEntry+node+"/"+key, val, done)
	}
	if err != nil {
		done(err)
	}
}

func (r *Relay) putKey(ctx context.Context, node, key string, val []byte, wait bool) error {
	g, err := r.at(node)
	if err != nil {
		return err
	}
	ch := make(chan error, 1) // the one send never blocks
	if err := g.put(key, val, func(err error) { ch <- err }); err != nil || !wait {
		return err
	}
	select {
	case err := <-ch:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Epochs are those adopted of a node, oldest first; an error when it is not served here.
func (r *Relay) Epochs(node string) ([]wire.EpochInfo, error) {
	g, err := r.at(node)
	if err != nil {
		return nil, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.epochs[node]), nil
}

// Progress is what is committed of one origin.
type Progress struct {
	Epoch            wire.ID
	Topic            string
	Partition        int
	Held             uplink.RangeSet
	Last             *wire.Held
	MaxTime          int64
	Stored           int64
	Backfill         int64
	CentralPartition int
}

// Progress is what is committed of a node; an error when it is not served here.
func (r *Relay) Progress(node string) ([]Progress, error) {
	g, err := r.at(node)
	if err != nil {
		return nil, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	var out []Progress
	for _, st := range g.byNode[node] {
		p := Progress{Epoch: st.key.epoch, Topic: st.key.topic, Partition: st.key.partition, Held: st.held, MaxTime: st.val.MaxTime,
			Stored: st.val.Stored, Backfill: st.val.Backfilled, CentralPartition: int(st.at)}
		if st.val.LastOffset >= 0 {
			p.Last = &wire.Held{Offset: st.val.LastOffset, CRC: st.val.LastCRC}
		}
		out = append(out, p)
	}
	return out, nil
}

// SetOrder says how the ranges of a node's partition may come.
func (r *Relay) SetOrder(node, topic string, partition int, o Order) error {
	g, err := r.at(node)
	if err != nil {
		return err
	}
	g.mu.Lock()
	g.orders[partKey{node, topic, partition}] = o
	g.mu.Unlock()
	return nil
}

// Resume lets a node's streams go on after something was not stored: nothing of its former
// session is under way any more.
func (r *Relay) Resume(node string) {
	g, err := r.at(node)
	if err != nil {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, st := range g.byNode[node] {
		st.halted = nil
	}
}

// Follow is a client that reads the loss ledger from its beginning. The caller closes it.
func (r *Relay) Follow() (*kgo.Client, error) {
	opts, err := r.cfg.options()
	if err != nil {
		return nil, err
	}
	return kgo.NewClient(append(opts, kgo.ConsumeTopics(r.cfg.LossTopic()), kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))...)
}

func (r *Relay) count(take []*entry) {
	r.stats.transactions.Add(1)
	for _, e := range take {
		if e.err != nil || e.batch == nil {
			continue
		}
		n := int64(e.batch.Count())
		for _, d := range e.dead {
			n -= int64(d.batch.Count())
			r.stats.dead.Add(int64(d.batch.Count()))
		}
		if r.cfg.Stored != nil && n > 0 {
			r.cfg.Stored(e.st.key.node, e.batch)
		}
		r.stats.records.Add(n)
		r.stats.bytes.Add(int64(len(e.batch)))
	}
}

// Close gives the shards up and leaves the group. What is under way fails.
func (r *Relay) Close() {
	r.cancel()
	for _, s := range r.shards {
		s.end()
	}
	r.c.cl.Close()
}
