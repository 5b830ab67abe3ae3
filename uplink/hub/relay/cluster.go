package relay

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"tailrace/storage/record"
)

// part names a partition in the cluster.
type part struct {
	topic string
	n     int32
}

// cluster is the shared client and what is known of leaders. Requests are routed here and
// not by the client: a client that retries stays on a leader that is dead.
type cluster struct {
	cl *kgo.Client

	mu      sync.Mutex
	topics  map[string]*topicMeta
	asked   time.Time // of the last metadata request
	cluster string
}

type topicMeta struct {
	id      [16]byte
	leaders []int32 // by partition, -1 = none
	err     error
}

// load asks for the metadata of topics, of all that are known when none is named.
func (c *cluster) load(ctx context.Context, topics ...string) error {
	c.mu.Lock()
	all := slices.Clone(topics)
	for t := range c.topics {
		if !slices.Contains(all, t) {
			all = append(all, t)
		}
	}
	c.mu.Unlock()
	req := kmsg.NewPtrMetadataRequest()
	req.AllowAutoTopicCreation = false
	req.Topics = []kmsg.MetadataRequestTopic{}
	for _, t := range all {
		rt := kmsg.NewMetadataRequestTopic()
		rt.Topic = kmsg.StringPtr(t)
		req.Topics = append(req.Topics, rt)
	}
	ctx, cancel := context.WithTimeout(ctx, produceTimeout)
	defer cancel()
	resp, err := req.RequestWith(ctx, c.cl)
	if err != nil {
		return err
	}
	c.note(resp)
	return nil
}

// note takes over what an answer says of leaders.
func (c *cluster) note(resp *kmsg.MetadataResponse) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.topics == nil {
		c.topics = map[string]*topicMeta{}
	}
	if resp.ClusterID != nil {
		c.cluster = *resp.ClusterID
	}
	for _, t := range resp.Topics {
		if t.Topic == nil {
			continue
		}
		m := &topicMeta{id: t.TopicID, err: kerr.ErrorForCode(t.ErrorCode)}
		for _, p := range t.Partitions {
			for len(m.leaders) <= int(p.Partition) {
				m.leaders = append(m.leaders, -1)
			}
			m.leaders[p.Partition] = p.Leader
		}
		c.topics[*t.Topic] = m
	}
}

// refresh is load for all, at most every 100 ms, whoever asks.
func (c *cluster) refresh(ctx context.Context) {
	c.mu.Lock()
	wait := 100*time.Millisecond - time.Since(c.asked)
	c.mu.Unlock()
	if wait > 0 && !pause(ctx, wait) {
		return
	}
	c.mu.Lock()
	due := time.Since(c.asked) >= 100*time.Millisecond
	if due {
		c.asked = time.Now()
	}
	c.mu.Unlock()
	if due {
		_ = c.load(ctx) // what asked for it fails again, and says why
	}
}

// pause waits, and says whether ctx still lasts.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

func (c *cluster) topic(name string) (topicMeta, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	m := c.topics[name]
	if m == nil {
		return topicMeta{}, false
	}
	return *m, true
}

func (c *cluster) leader(p part) (id [16]byte, leader int32) {
	m, ok := c.topic(p.topic)
	if !ok || int(p.n) >= len(m.leaders) {
		return id, -1
	}
	return m.id, m.leaders[p.n]
}

// partitions is how many a topic has, 0 when it is not known.
func (c *cluster) partitions(topic string) int {
	m, _ := c.topic(topic)
	return len(m.leaders)
}

// request sends a request to one broker once.
func request[T kmsg.Response](ctx context.Context, c *cluster, broker int32, req kmsg.Request) (out T, err error) {
	ctx, cancel := context.WithTimeout(ctx, produceTimeout)
	defer cancel()
	resp, err := c.cl.Broker(int(broker)).Request(ctx, req)
	if err != nil {
		return out, err
	}
	return resp.(T), nil
}

// bounds are the first offset of a partition and its last stable offset.
func (c *cluster) bounds(ctx context.Context, p part) (first, stable int64, err error) {
	one := func(at int64) (int64, error) {
		for ctx.Err() == nil {
			_, leader := c.leader(p)
			if leader < 0 {
				c.refresh(ctx)
				continue
			}
			req := kmsg.NewPtrListOffsetsRequest()
			req.IsolationLevel = 1
			rt := kmsg.NewListOffsetsRequestTopic()
			rp := kmsg.NewListOffsetsRequestTopicPartition()
			rt.Topic, rp.Partition, rp.Timestamp = p.topic, p.n, at
			rt.Partitions = append(rt.Partitions, rp)
			req.Topics = append(req.Topics, rt)
			resp, err := request[*kmsg.ListOffsetsResponse](ctx, c, leader, req)
			if err == nil && len(resp.Topics) == 1 && len(resp.Topics[0].Partitions) == 1 {
				a := resp.Topics[0].Partitions[0]
				if err = kerr.ErrorForCode(a.ErrorCode); err == nil {
					return a.Offset, nil
				}
				if !kerr.IsRetriable(err) {
					return 0, err
				}
			}
			c.refresh(ctx)
		}
		return 0, ctx.Err()
	}
	if first, err = one(-2); err == nil {
		stable, err = one(-1)
	}
	return first, stable, err
}

// read gives fn every committed record of [from, to) and returns where it stopped: at to.
func (c *cluster) read(ctx context.Context, p part, from, to int64, fn func(*kgo.Record) error) error {
	dec := kgo.DefaultDecompressor()
	for from < to {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		id, leader := c.leader(p)
		if leader < 0 {
			c.refresh(ctx)
			continue
		}
		req := kmsg.NewPtrFetchRequest()
		req.MaxWaitMillis, req.MinBytes, req.MaxBytes, req.IsolationLevel, req.SessionEpoch = 500, 1, 8<<20, 1, -1
		rt := kmsg.NewFetchRequestTopic()
		rp := kmsg.NewFetchRequestTopicPartition()
		rt.Topic, rt.TopicID = p.topic, id
		rp.Partition, rp.FetchOffset, rp.PartitionMaxBytes, rp.CurrentLeaderEpoch = p.n, from, 8<<20, -1
		rt.Partitions = append(rt.Partitions, rp)
		req.Topics = append(req.Topics, rt)
		resp, err := request[*kmsg.FetchResponse](ctx, c, leader, req)
		if err == nil {
			err = kerr.ErrorForCode(resp.ErrorCode)
		}
		if err != nil || len(resp.Topics) != 1 || len(resp.Topics[0].Partitions) != 1 {
			c.refresh(ctx)
			continue
		}
		fp, next := kgo.ProcessFetchPartition(kgo.ProcessFetchPartitionOpts{Topic: p.topic, Partition: p.n, Offset: from, IsolationLevel: kgo.ReadCommitted()},
			&resp.Topics[0].Partitions[0], dec, nil)
		if fp.Err != nil {
			if !kerr.IsRetriable(fp.Err) {
				return fmt.Errorf("read %s/%d at offset %d: %w", p.topic, p.n, from, fp.Err)
			}
			c.refresh(ctx)
			continue
		}
		for _, r := range fp.Records {
			if r.Offset >= to {
				break
			}
			if err := fn(r); err != nil {
				return err
			}
		}
		if next <= from && !pause(ctx, 20*time.Millisecond) {
			return ctx.Err()
		}
		from = max(from, next)
	}
	return nil
}

// producer is a transactional producer: identity, and what it has sent in the transaction
// under way. One goroutine uses it.
type producer struct {
	c     *cluster
	txn   string
	id    int64
	epoch int16
	seq   map[part]int32
	added map[part]bool
	began bool
	lasts time.Duration // of a transaction; 0 = txnTimeout
	log   func(msg string, args ...any)
}

// errTakeover is wrapped by every error after which nothing of a generation may be used.
var errTakeover = errors.New("the shard's state is not known")

func takeover(what string, err error) error { return fmt.Errorf("%w: %s: %w", errTakeover, what, err) }

// transient says whether to ask the coordinator once more.
func transient(err error) bool {
	return errors.Is(err, kerr.ConcurrentTransactions) || errors.Is(err, kerr.CoordinatorLoadInProgress) || errors.Is(err, kerr.CoordinatorNotAvailable) ||
		errors.Is(err, kerr.NotCoordinator) || errors.Is(err, kerr.RequestTimedOut)
}

// fence begins a new life of the transactional id: every earlier producer of it is fenced,
// and what it had not committed is aborted when this returns.
func (p *producer) fence(ctx context.Context) error {
	for {
		req := kmsg.NewPtrInitProducerIDRequest()
		req.TransactionalID, req.TransactionTimeoutMillis = kmsg.StringPtr(p.txn), int32(cmp.Or(p.lasts, txnTimeout).Milliseconds())
		req.ProducerID, req.ProducerEpoch = -1, -1
		resp, err := req.RequestWith(ctx, p.c.cl)
		if err == nil {
			err = kerr.ErrorForCode(resp.ErrorCode)
		}
		if err == nil {
			p.id, p.epoch = resp.ProducerID, resp.ProducerEpoch
			p.reset()
			return nil
		}
		if !transient(err) {
			return fmt.Errorf("InitProducerID of %s: %w", p.txn, err)
		}
		if !pause(ctx, 20*time.Millisecond) {
			return ctx.Err()
		}
	}
}

func (p *producer) reset() {
	p.seq, p.added, p.began = map[part]int32{}, map[part]bool{}, false
}

// add makes partitions part of the transaction. It returns the topics that cannot be.
func (p *producer) add(ctx context.Context, parts []part) (parked map[string]error, err error) {
	parked = map[string]error{}
	began := time.Now()
	var unknown time.Time
	for {
		byTopic := map[string][]int32{}
		for _, x := range parts {
			if !p.added[x] && parked[x.topic] == nil && !slices.Contains(byTopic[x.topic], x.n) {
				byTopic[x.topic] = append(byTopic[x.topic], x.n)
			}
		}
		if len(byTopic) == 0 {
			return parked, nil
		}
		req := kmsg.NewPtrAddPartitionsToTxnRequest()
		req.TransactionalID, req.ProducerID, req.ProducerEpoch = p.txn, p.id, p.epoch
		for t, ns := range byTopic {
			rt := kmsg.NewAddPartitionsToTxnRequestTopic()
			rt.Topic, rt.Partitions = t, ns
			req.Topics = append(req.Topics, rt)
		}
		resp, err := req.RequestWith(ctx, p.c.cl)
		if err != nil {
			if time.Since(began) > giveUp || ctx.Err() != nil {
				return nil, takeover("AddPartitionsToTxn", err)
			}
			p.c.refresh(ctx)
			continue
		}
		again := false
		for _, t := range resp.Topics {
			for _, a := range t.Partitions {
				err := kerr.ErrorForCode(a.ErrorCode)
				switch {
				case err == nil:
					p.added[part{t.Topic, a.Partition}], p.began = true, true
				case errors.Is(err, kerr.OperationNotAttempted): // because of another one
					again = true
				case errors.Is(err, kerr.UnknownTopicOrPartition) || errors.Is(err, kerr.UnknownTopicID):
					if unknown.IsZero() {
						unknown = time.Now()
					}
					if again = true; time.Since(unknown) > parkAfter {
						parked[t.Topic] = err
					}
				case errors.Is(err, kerr.TopicAuthorizationFailed) || errors.Is(err, kerr.InvalidTopicException):
					parked[t.Topic], again = err, true
				case transient(err):
					again = true
				default:
					return nil, takeover("AddPartitionsToTxn", err)
				}
			}
		}
		if !again {
			return parked, nil
		}
		if time.Since(began) > giveUp || !pause(ctx, 10*time.Millisecond) {
			return nil, takeover("AddPartitionsToTxn", context.DeadlineExceeded)
		}
	}
}

// parkAfter is how long a topic may be unknown to the cluster before its records are refused.
const parkAfter = 3 * time.Second

// out is one batch on its way into a partition.
type out struct {
	to    part
	batch record.Batch // owned
	at    int64        // where it is, once written
	err   error        // why it was refused, or parked
	park  bool         // the topic is gone, or forbidden: it says nothing of the batch
}

// refusal says whether an error is the batch's own.
func refusal(err error) bool {
	for _, e := range []error{kerr.InvalidTimestamp, kerr.MessageTooLarge, kerr.RecordListTooLarge, kerr.InvalidRecord, kerr.CorruptMessage, kerr.UnsupportedForMessageFormat} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// produce writes one batch to each of some partitions, all different, and returns when
// each is written or refused. An error means a takeover.
func (p *producer) produce(ctx context.Context, outs []*out) error {
	left := slices.Clone(outs)
	for _, o := range left {
		if !p.added[o.to] {
			return takeover("produce", fmt.Errorf("%v was not added to the transaction", o.to))
		}
		o.err, o.park = nil, false
		o.batch.SetBaseOffset(0)
		o.batch.SetProducer(p.id, p.epoch, p.seq[o.to], true)
		if o.batch.Attributes()&record.AttrTransactional == 0 { // the broker takes it all the same, outside of the transaction
			return takeover("produce", errors.New("internal error: a batch is not transactional"))
		}
	}
	began := time.Now()
	corrupt := map[*out]int{}
	unknown := map[*out]time.Time{}
	for len(left) > 0 {
		if time.Since(began) > giveUp || ctx.Err() != nil {
			return takeover("produce", fmt.Errorf("%d batches not written after %s", len(left), giveUp))
		}
		byLeader := map[int32][]*out{}
		for _, o := range left {
			_, l := p.c.leader(o.to)
			byLeader[l] = append(byLeader[l], o)
		}
		type answer struct {
			o   *out
			err error
		}
		answers := make(chan answer, len(left))
		for l, list := range byLeader {
			if l < 0 {
				for _, o := range list {
					err := error(kerr.LeaderNotAvailable)
					if m, ok := p.c.topic(o.to.topic); ok && m.err != nil {
						err = m.err
					}
					answers <- answer{o, err}
				}
				continue
			}
			go func() {
				got, err := p.send(ctx, l, list)
				for _, o := range list {
					e := err
					if err == nil {
						if g, ok := got[o.to]; !ok {
							e = errors.New("the answer lacks it")
						} else {
							e, o.at = g.err, g.at
						}
					}
					answers <- answer{o, e}
				}
			}()
		}
		var again []*out
		var fatal error
		for range left {
			a := <-answers
			o, err := a.o, a.err
			var ke *kerr.Error
			switch {
			case err == nil, errors.Is(err, kerr.DuplicateSequenceNumber):
				p.seq[o.to] += int32(o.batch.Count())
			case !errors.As(err, &ke): // the connection
				again = append(again, o)
			case errors.Is(err, kerr.CorruptMessage) && corrupt[o] < 3 && o.batch.Verify() == nil:
				corrupt[o]++
				again = append(again, o)
			case refusal(err):
				o.err = err
			case errors.Is(err, kerr.TopicAuthorizationFailed), errors.Is(err, kerr.InvalidTopicException):
				o.err, o.park = err, true
			case errors.Is(err, kerr.UnknownTopicID), errors.Is(err, kerr.UnknownTopicOrPartition), errors.Is(err, kerr.InconsistentTopicID):
				if unknown[o].IsZero() {
					unknown[o] = time.Now()
				}
				if time.Since(unknown[o]) > parkAfter {
					o.err, o.park = err, true
				} else {
					again = append(again, o)
				}
			case errors.Is(err, kerr.ConcurrentTransactions), ke.Retriable && !errors.Is(err, kerr.OutOfOrderSequenceNumber):
				again = append(again, o)
			default:
				fatal = takeover("produce to "+fmt.Sprint(o.to), err)
			}
			if err != nil {
				p.log("a batch was not written", "to", fmt.Sprint(o.to), "error", err, "again", slices.Contains(again, o))
			}
		}
		if fatal != nil {
			return fatal
		}
		if left = again; len(left) > 0 {
			p.c.refresh(ctx)
		}
	}
	return nil
}

// written is a broker's answer for a batch.
type written struct {
	at  int64
	err error
}

// send is one Produce request: one batch for each partition.
func (p *producer) send(ctx context.Context, leader int32, list []*out) (map[part]written, error) {
	req := kmsg.NewPtrProduceRequest()
	req.TransactionID, req.Acks, req.TimeoutMillis = kmsg.StringPtr(p.txn), -1, int32((produceTimeout - time.Second).Milliseconds())
	ids := map[[16]byte]string{}
	at := map[string]int{}
	for _, o := range list {
		i, ok := at[o.to.topic]
		if !ok {
			rt := kmsg.NewProduceRequestTopic()
			rt.Topic = o.to.topic
			rt.TopicID, _ = p.c.leader(o.to)
			ids[rt.TopicID] = rt.Topic
			req.Topics = append(req.Topics, rt)
			i = len(req.Topics) - 1
			at[o.to.topic] = i
		}
		rp := kmsg.NewProduceRequestTopicPartition()
		rp.Partition, rp.Records = o.to.n, o.batch
		req.Topics[i].Partitions = append(req.Topics[i].Partitions, rp)
	}
	resp, err := request[*kmsg.ProduceResponse](ctx, p.c, leader, req)
	if err != nil {
		return nil, err
	}
	got := map[part]written{}
	for _, t := range resp.Topics {
		name := t.Topic
		if name == "" {
			name = ids[t.TopicID]
		}
		for _, a := range t.Partitions {
			got[part{name, a.Partition}] = written{a.BaseOffset, kerr.ErrorForCode(a.ErrorCode)}
		}
	}
	return got, nil
}

// commit ends the transaction. Whatever is not a plain yes means a takeover, which finds
// out what became of it.
func (p *producer) commit(ctx context.Context) error {
	began := time.Now()
	for {
		req := kmsg.NewPtrEndTxnRequest()
		req.TransactionalID, req.ProducerID, req.ProducerEpoch, req.Commit = p.txn, p.id, p.epoch, true
		resp, err := req.RequestWith(ctx, p.c.cl)
		if err == nil {
			if err = kerr.ErrorForCode(resp.ErrorCode); err == nil {
				if resp.ProducerID >= 0 { // the next transaction has another epoch
					p.id, p.epoch = resp.ProducerID, resp.ProducerEpoch
				}
				p.reset()
				return nil
			}
			if !transient(err) {
				return takeover("EndTxn", err)
			}
		}
		if time.Since(began) > giveUp || !pause(ctx, 10*time.Millisecond) {
			return takeover("EndTxn", err)
		}
	}
}
