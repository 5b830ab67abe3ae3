package hub

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"tailrace/storage"
	"tailrace/storage/storehttp"
	"tailrace/uplink/hub/relay"
)

// clusterLog is a Kafka cluster as the API sees it: storehttp.Log. What it gives out knows
// the offsets of the moment it was asked for, and asks again while somebody follows.
type clusterLog struct{ r *relay.Relay }

// followEvery is how often a tail or an open page asks a cluster for what is new.
const followEvery = 250 * time.Millisecond

// clusterTopic is a topic for one request.
type clusterTopic struct {
	ctx    context.Context // of the request
	r      *relay.Relay
	name   string
	config map[string]string
	asked  sync.Once // for times and sizes

	mu     sync.Mutex // guards what follows
	first  []relay.Place
	stable []relay.Place
	at     time.Time // of stable
	lo, hi []relay.Place
	bytes  []int64
}

func (l clusterLog) Topics(ctx context.Context) ([]storehttp.Topic, error) {
	names, err := l.r.Names(ctx)
	if err != nil {
		return nil, err
	}
	list, err := l.topics(ctx, names, true)
	if err != nil {
		return nil, err
	}
	out := make([]storehttp.Topic, len(list))
	for i, t := range list {
		out[i] = t
	}
	return out, nil
}

func (l clusterLog) Topic(ctx context.Context, name string) (storehttp.Topic, error) {
	n, err := l.r.Partitions(ctx, name)
	if err != nil || n == 0 {
		return nil, err
	}
	list, err := l.topics(ctx, []string{name}, false)
	if err != nil {
		return nil, err
	}
	return list[0], nil
}

// topics looks at several at once: each question goes to each broker once.
func (l clusterLog) topics(ctx context.Context, names []string, whole bool) ([]*clusterTopic, error) {
	configs, err := l.r.Configs(ctx, names)
	if err != nil {
		return nil, err
	}
	first, err1 := l.r.Offsets(ctx, names, relay.AtStart)
	stable, err2 := l.r.Offsets(ctx, names, relay.AtStable)
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	list := make([]*clusterTopic, len(names))
	for i, n := range names {
		list[i] = &clusterTopic{ctx: ctx, r: l.r, name: n, config: configs[n], first: first[n], stable: stable[n], at: time.Now()}
	}
	if whole {
		if err := describe(ctx, l.r, list); err != nil {
			return nil, err
		}
		for _, t := range list {
			t.asked.Do(func() {})
		}
	}
	return list, nil
}

// describe asks for what only a description wants: times and sizes.
func describe(ctx context.Context, r *relay.Relay, list []*clusterTopic) error {
	names := make([]string, len(list))
	for i, t := range list {
		names[i] = t.name
	}
	lo, err1 := r.Offsets(ctx, names, 0) // the first record that has a time
	if err1 != nil {
		return err1
	}
	var g errgroup.Group
	g.SetLimit(16)
	for _, t := range list {
		t.mu.Lock()
		t.hi = slices.Repeat([]relay.Place{{Offset: -1, Time: -1}}, len(t.first))
		for i := range t.hi {
			first, stable, hi := t.first[i].Offset, t.stable[i].Offset, &t.hi[i]
			g.Go(func() (err error) {
				if first < stable {
					hi.Time, err = r.LastTime(ctx, t.name, int32(i), first, stable)
				}
				return err
			})
		}
		t.mu.Unlock()
	}
	if err := g.Wait(); err != nil {
		return err
	}
	bytes := r.Sizes(ctx, names)
	for _, t := range list {
		t.mu.Lock()
		t.lo, t.bytes = lo[t.name], bytes[t.name]
		t.mu.Unlock()
	}
	return nil
}

// whole asks for times and sizes once; without an answer they are absent.
func (t *clusterTopic) whole() {
	t.asked.Do(func() { _ = describe(t.ctx, t.r, []*clusterTopic{t}) }) // what is not known is not shown
}

// refresh asks for the end again when what is known is old.
func (t *clusterTopic) refresh() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if time.Since(t.at) < followEvery {
		return
	}
	t.at = time.Now()
	if m, err := t.r.Offsets(t.ctx, []string{t.name}, relay.AtStable); err == nil { // else what was known
		t.stable = m[t.name]
	}
}

// restart asks for the start again.
func (t *clusterTopic) restart() {
	if m, err := t.r.Offsets(t.ctx, []string{t.name}, relay.AtStart); err == nil {
		t.mu.Lock()
		t.first = m[t.name]
		t.mu.Unlock()
	}
}

func (t *clusterTopic) Name() string { return t.name }

// Config is what the API shows of it.
func (t *clusterTopic) Config() storage.TopicConfig {
	c := storage.TopicConfig{Partitions: len(t.first), Class: "kafka"}
	if ms, err := strconv.ParseInt(t.config["retention.ms"], 10, 64); err == nil && ms > 0 {
		c.RetentionAge = time.Duration(ms) * time.Millisecond
	}
	if n, err := strconv.ParseInt(t.config["retention.bytes"], 10, 64); err == nil && n > 0 {
		c.RetentionBytes = n
	}
	return c
}

func (t *clusterTopic) Compacted() bool {
	p := t.config["cleanup.policy"]
	return p == "compact" || p == "compact,delete" || p == "delete,compact"
}

func (t *clusterTopic) Parts() []storehttp.Partition {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := make([]storehttp.Partition, len(t.first))
	for i := range out {
		out[i] = clusterPart{t, i}
	}
	return out
}

type clusterPart struct {
	t *clusterTopic
	n int
}

// get reads one of the topic's lists.
func (p clusterPart) get(list *[]relay.Place) (relay.Place, bool) {
	p.t.mu.Lock()
	defer p.t.mu.Unlock()
	if p.n >= len(*list) {
		return relay.Place{Offset: -1, Time: -1}, false
	}
	x := (*list)[p.n]
	return x, x.Time >= 0
}

func (p clusterPart) Index() int { return p.n }

func (p clusterPart) Start() int64 {
	x, _ := p.get(&p.t.first)
	return max(0, x.Offset)
}

// HighWatermark is the last stable offset: what lies behind it nobody may see yet.
func (p clusterPart) HighWatermark() int64 {
	p.t.refresh()
	x, _ := p.get(&p.t.stable)
	return max(x.Offset, p.Start())
}

func (p clusterPart) Bytes() int64 {
	p.t.whole()
	p.t.mu.Lock()
	defer p.t.mu.Unlock()
	if p.n >= len(p.t.bytes) {
		return 0
	}
	return p.t.bytes[p.n]
}

func (p clusterPart) StartTime() (int64, bool) {
	p.t.whole()
	x, ok := p.get(&p.t.lo)
	return x.Time, ok
}

func (p clusterPart) LastTime() (int64, bool) {
	p.t.whole()
	x, ok := p.get(&p.t.hi)
	return x.Time, ok
}

func (p clusterPart) Read(dst []byte, from int64, maxBytes int) (out []byte, next int64, err error) {
	stable, _ := p.get(&p.t.stable)
	out, next, err = p.t.r.Fetch(p.t.ctx, dst, p.t.name, int32(p.n), from, stable.Offset, maxBytes)
	if errors.Is(err, relay.ErrOutOfRange) {
		p.t.restart()
		err = fmt.Errorf("%w: %w", storage.ErrOffsetOutOfRange, err)
	}
	return out, next, err
}

// Origin is not kept beside a batch in a cluster: every record says it in a header.
func (p clusterPart) Origin(int64) (o storage.Origin, ok bool) { return o, false }

func (p clusterPart) OffsetForTime(ts int64) (off, at int64, ok bool, err error) {
	m, err := p.t.r.Offsets(p.t.ctx, []string{p.t.name}, max(ts, 0))
	if err != nil {
		return 0, 0, false, err
	}
	if p.n >= len(m[p.t.name]) || m[p.t.name][p.n].Offset < 0 {
		return 0, 0, false, nil
	}
	x := m[p.t.name][p.n]
	return x.Offset, x.Time, true, nil
}

// Subscribe says "look again" now and then: a cluster does not call.
func (p clusterPart) Subscribe(ch chan<- struct{}) (cancel func()) {
	ctx, cancel := context.WithCancel(p.t.ctx)
	go func() {
		tick := time.NewTicker(followEvery)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			select {
			case ch <- struct{}{}:
			default:
			}
		}
	}()
	return cancel
}

func (p clusterPart) CompactStatus() (s storage.CompactStatus) { return s }

// Append is one transaction.
func (l clusterLog) Append(ctx context.Context, t storehttp.Topic, list []storehttp.Item) error {
	posts := make([]relay.Post, len(list))
	for i, it := range list {
		posts[i] = relay.Post{Partition: it.Partition, Timestamp: it.Timestamp, Key: it.Key, Value: it.Value, Headers: it.Headers}
	}
	err := l.r.Produce(ctx, t.Name(), posts)
	var refused *relay.RefusedError
	switch {
	case errors.As(err, &refused):
		return &storehttp.Error{Status: http.StatusRequestEntityTooLarge, Code: "refused", Message: "nothing was stored: " + err.Error(),
			Hint: "see the topic's max.message.bytes and message.timestamp.* in the cluster"}
	case errors.Is(err, relay.ErrUnknown):
		return &storehttp.Error{Status: http.StatusServiceUnavailable, Code: "outcome_unknown", Message: err.Error(),
			Hint: "look whether the records are there before sending them again"}
	case err != nil:
		return &storehttp.Error{Status: http.StatusServiceUnavailable, Code: "cluster", Message: "nothing was stored: " + err.Error(), Hint: "try again"}
	}
	for i := range list {
		list[i].Offset = posts[i].Offset
	}
	return nil
}

var _ storehttp.Partition = clusterPart{}

// create makes a topic by its rule.
func (c *clustered) create(ctx context.Context, topic string) (storehttp.Topic, error) {
	if !validName(topic) {
		return nil, &TopicError{topic, "a name has 1 to 249 of the characters a-z A-Z 0-9 . _ -"}
	}
	if err := c.r.EnsureTopic(ctx, topic); err != nil {
		return nil, own(err)
	}
	t, err := clusterLog{c.r}.Topic(ctx, topic)
	if err == nil && t == nil {
		err = fmt.Errorf("topic %q is not there", topic)
	}
	return t, err
}

func (c *clustered) log() storehttp.Log { return clusterLog{c.r} }
