package hub

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"tailrace/storage/storehttp"
	"tailrace/uplink"
	"tailrace/uplink/hub/internal/saved"
	"tailrace/uplink/hub/relay"
	"tailrace/uplink/wire"
)

// clustered is the engine whose records are in a Kafka cluster: package relay with the
// hub's own types around it. The hub's own disk then holds nothing that counts.
type clustered struct {
	h      *Hub
	r      *relay.Relay
	losses lossTable
	stop   context.CancelFunc
	ready  atomic.Bool // every shard of the first share was served
	ledger sync.WaitGroup
	once   sync.Once
}

var _ engine = (*clustered)(nil)

// openCluster connects to the cluster, and returns when its topics are there.
func openCluster(h *Hub) (*clustered, error) {
	c := &clustered{h: h}
	cfg, err := h.cfg.relay()
	if err != nil {
		return nil, err
	}
	cfg.Logger, cfg.Now = h.cfg.Logger.With("subsystem", "relay"), h.cfg.Now
	cfg.MaxQueuedBytes = int64(h.cfg.Limits.QueuedBytes)
	cfg.LossRow = func(l relay.Loss) []byte { return rowOf(l).encode() }
	cfg.Acquired, cfg.Lost, cfg.Stored = c.acquired, c.lost, h.devices.offer
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if c.r, err = relay.Open(ctx, cfg); err != nil {
		return nil, fmt.Errorf("store.kafka: %w", err)
	}
	cl, err := c.r.Follow()
	if err != nil {
		c.r.Close()
		return nil, fmt.Errorf("store.kafka: %w", err)
	}
	follow, stop := context.WithCancel(context.Background())
	c.stop = stop
	c.ledger.Go(func() { c.follow(follow, cl) })
	return c, nil
}

func rowOf(l relay.Loss) LossRow {
	return LossRow{Node: l.Origin.Node, Epoch: l.Origin.Epoch.String(), Topic: l.Origin.Topic, Partition: l.Origin.Partition,
		From: l.Range.From, To: l.Range.To, Records: l.Range.Len(), Reason: l.Gap.Reason.String(), Detail: truncate(l.Gap.Detail, 500),
		LostAt: l.Gap.At, DeclaredAt: l.DeclaredAt, CentralTopic: l.CentralTopic, CentralPartition: l.CentralPartition}
}

// follow reads the loss ledger, which every hub writes to, for as long as the hub runs.
func (c *clustered) follow(ctx context.Context, cl *kgo.Client) {
	defer cl.Close()
	for ctx.Err() == nil {
		var rows []LossRow
		cl.PollFetches(ctx).EachRecord(func(r *kgo.Record) {
			var row LossRow
			if json.Unmarshal(r.Value, &row) == nil && row.Node != "" {
				rows = append(rows, row)
			}
		})
		c.losses.add(rows)
	}
}

// acquired takes over what the former hub knew of the nodes of a shard.
func (c *clustered) acquired(_ int, notes, entries map[string][]byte) {
	for at, value := range entries {
		node, key, _ := strings.Cut(at, "/")
		switch kind, _, _ := strings.Cut(key, "/"); kind + "/" {
		case fetchPrefix:
			if err := c.h.fetches.load(key, value); err != nil {
				c.h.log.Warn("a fetch does not decode", "node", node, "error", err)
			}
		case devicePrefix:
			c.h.devices.load(key, value)
		}
	}
	c.h.fetches.poke()
	t := &c.h.nodes
	t.mu.Lock()
	defer t.mu.Unlock()
	for id, note := range notes {
		var node savedNode
		if err := saved.Decode(note, &node); err != nil {
			c.h.log.Warn("the description of a node does not decode", "node", id, "error", err)
			continue
		}
		if n := t.get(id, c.h.cfg.Now()); n.sessions == 0 {
			n.saved = node
		}
	}
}

// lost sends the nodes of a shard away: another hub serves them, or this one after a takeover.
func (c *clustered) lost(shard int) {
	c.h.fetches.drop(func(node string) bool { return c.r.Shard(node) == shard })
	if !c.h.ready.Load() { // it has no nodes yet, or none any more
		return
	}
	for _, s := range c.h.links.Nodes() {
		if c.r.Shard(s.Node) == shard {
			_ = c.h.links.Disconnect(s.Node, wire.CodeUnavailable, "another hub serves this node now") // it may have gone by itself
		}
	}
}

func (c *clustered) Identity() (wire.ID, int32) { return c.r.Identity() }

func (c *clustered) serves(ctx context.Context, node string) error { return c.r.Serves(ctx, node) }

func (c *clustered) known(node string) ([]wire.EpochInfo, error) { return c.r.Epochs(node) }

func (c *clustered) allowed(topic string) bool { return c.r.Allowed(topic) }

func (c *clustered) reserved(topic string) bool { return reservedTopic(topic) || c.r.Reserved(topic) }

func (c *clustered) companion(topic string) error {
	if name := companionOf(topic); !validName(name) {
		return &TopicError{topic, "it can have no companion topic: its name is too long"}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := c.r.EnsureTopic(ctx, topic); err != nil {
		return err
	}
	return c.r.EnsureTopic(ctx, companionOf(topic))
}

func (c *clustered) setOrder(k assignKey, o ordering) {
	order := map[ordering]relay.Order{orderStrict: relay.Strict, orderTwo: relay.Two, orderAny: relay.Any}[o]
	if err := c.r.SetOrder(k.node, k.topic, k.partition, order); err != nil {
		c.h.log.Debug("order not set", "node", k.node, "topic", k.topic, "error", err) // its shard has gone: its session ends
	}
}

func (c *clustered) resume(node string) { c.r.Resume(node) }

// raise does nothing: leader epochs are the cluster's.
func (c *clustered) raise(int32) error { return nil }

func (c *clustered) saveNote(ctx context.Context, node string, value []byte, wait bool) error {
	return c.r.PutNote(ctx, node, value, wait)
}

func (c *clustered) saveEntry(node, key string, value []byte, done func(error)) {
	c.r.PutEntry(node, key, value, func(err error) {
		if err != nil {
			c.h.log.Debug("entry not saved", "node", node, "key", key, "error", err) // its shard has gone: another hub has what was saved before
		}
		if done != nil {
			done(err)
		}
	})
}

// settled is about the start: later a shard is taken over while the others are served.
func (c *clustered) settled() error {
	waiting, all, ok := c.r.Waiting()
	switch {
	case !ok:
		return errors.New("the hubs have not shared the shards yet")
	case waiting > 0 && !c.ready.Load() || waiting > 0 && waiting == all:
		return fmt.Errorf("%d of %d shards are being taken over", waiting, all)
	}
	c.ready.Store(true)
	return nil
}

func (c *clustered) Adopt(ctx context.Context, node string, epochs []wire.EpochInfo) error {
	if !validName(node) {
		return fmt.Errorf("node id %q: it has 1 to 249 of the characters a-z A-Z 0-9 . _ -", node)
	}
	return c.r.Adopt(ctx, node, epochs)
}

func (c *clustered) Progress(_ context.Context, node string) ([]Progress, error) {
	list, err := c.r.Progress(node)
	if err != nil {
		return nil, err
	}
	out := make([]Progress, 0, len(list))
	for _, p := range list {
		out = append(out, Progress{Epoch: p.Epoch, Topic: p.Topic, Partition: p.Partition, Held: p.Held, Last: p.Last, MaxTime: p.MaxTime,
			Stored: p.Stored, Backfill: p.Backfill, Central: Assignment{Topic: p.Topic, Partition: p.CentralPartition}})
	}
	return out, nil
}

func (c *clustered) Append(ctx context.Context, o wire.Origin, batches []byte, done func(held uplink.RangeSet, err error)) {
	if !validName(o.Topic) {
		done(nil, &TopicError{o.Topic, "not a valid name"})
		return
	}
	c.r.Append(ctx, o, batches, func(held uplink.RangeSet, err error) { done(held, own(err)) })
}

func (c *clustered) Declare(ctx context.Context, o wire.Origin, gaps []wire.Gap) (uplink.RangeSet, error) {
	held, err := c.r.Declare(ctx, o, gaps)
	return held, own(err)
}

// own makes the hub's error of one of the relay's.
func own(err error) error {
	var topic *relay.TopicError
	var order *relay.OrderError
	switch {
	case errors.As(err, &topic):
		return &TopicError{topic.Topic, topic.Reason}
	case errors.As(err, &order):
		return &OrderError{order.Origin, order.Expected, order.Got}
	}
	return err
}

func (c *clustered) Losses(node, topic string, limit int) []LossRow {
	return c.losses.newest(node, topic, limit)
}

func (c *clustered) LossTotals() map[LossKey]LossTotal { return c.losses.sums() }

func (c *clustered) Stats() EngineStats {
	s := c.r.Stats()
	return EngineStats{Records: s.Records, BytesIn: s.Bytes, BatchesStored: s.Batches, BytesStored: s.BytesStored}
}

func (c *clustered) Close() {
	c.once.Do(func() {
		c.r.Close()
		c.stop()
		c.ledger.Wait()
	})
}

// elsewhere is the answer to a request about a node that another hub serves; nil when this
// one does.
func (h *Hub) elsewhere(ctx context.Context, node string) *storehttp.Error {
	err := h.central.serves(ctx, node)
	var other *relay.NotHereError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &other):
		return &storehttp.Error{Status: http.StatusMisdirectedRequest, Code: "served_elsewhere", Message: err.Error(), Hint: "ask that hub"}
	}
	return &storehttp.Error{Status: http.StatusServiceUnavailable, Code: "not_yet", Message: err.Error(), Hint: "try again in a second"}
}
