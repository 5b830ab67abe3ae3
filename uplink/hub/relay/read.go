package relay

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"tailrace/storage/record"
)

// What readers of the records want: see the hub's API. All of it goes through the one
// shared client, read_committed.

// Times of a query that stand for a place.
const (
	AtStart  int64 = -2 // the first offset that is kept
	AtStable int64 = -1 // one past the last that is committed
)

// Place is an offset and the time of its record, -1 where there is none.
type Place struct{ Offset, Time int64 }

// ErrOutOfRange says that an offset is not kept any more, or not there yet.
var ErrOutOfRange = errors.New("offset out of range")

// Names are the topics of the cluster that this hub may see.
func (r *Relay) Names(ctx context.Context) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, produceTimeout)
	defer cancel()
	req := kmsg.NewPtrMetadataRequest()
	req.Topics = nil // all
	resp, err := req.RequestWith(ctx, r.c.cl)
	if err != nil {
		return nil, err
	}
	r.c.note(resp)
	var names []string
	for _, t := range resp.Topics {
		if t.Topic != nil && t.ErrorCode == 0 {
			names = append(names, *t.Topic)
		}
	}
	slices.Sort(names)
	return names, nil
}

// Partitions asks how many partitions a topic has, 0 = there is none of the name.
func (r *Relay) Partitions(ctx context.Context, topic string) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, produceTimeout)
	defer cancel()
	req := kmsg.NewPtrMetadataRequest()
	rt := kmsg.NewMetadataRequestTopic()
	rt.Topic = kmsg.StringPtr(topic)
	req.Topics = append(req.Topics, rt)
	resp, err := req.RequestWith(ctx, r.c.cl)
	if err != nil {
		return 0, err
	}
	if len(resp.Topics) != 1 {
		return 0, fmt.Errorf("topic %q: the answer lacks it", topic)
	}
	t := &resp.Topics[0]
	switch err := kerr.ErrorForCode(t.ErrorCode); {
	case errors.Is(err, kerr.UnknownTopicOrPartition), errors.Is(err, kerr.InvalidTopicException):
		return 0, nil // not noted: anybody can ask for any name
	case err != nil && !kerr.IsRetriable(err):
		return 0, fmt.Errorf("topic %q: %w", topic, err)
	}
	r.c.note(resp)
	return len(t.Partitions), nil
}

// Configs are the configurations of topics; one that may not be seen is left out.
func (r *Relay) Configs(ctx context.Context, topics []string) (map[string]map[string]string, error) {
	ctx, cancel := context.WithTimeout(ctx, produceTimeout)
	defer cancel()
	req := kmsg.NewPtrDescribeConfigsRequest()
	for _, t := range topics {
		rr := kmsg.NewDescribeConfigsRequestResource()
		rr.ResourceType, rr.ResourceName = kmsg.ConfigResourceTypeTopic, t
		rr.ConfigNames = []string{"retention.ms", "retention.bytes", "cleanup.policy"}
		req.Resources = append(req.Resources, rr)
	}
	resp, err := req.RequestWith(ctx, r.c.cl)
	if err != nil {
		return nil, err
	}
	out := map[string]map[string]string{}
	for _, x := range resp.Resources {
		if x.ErrorCode != 0 {
			continue
		}
		m := map[string]string{}
		for _, c := range x.Configs {
			if c.Value != nil {
				m[c.Name] = *c.Value
			}
		}
		out[x.ResourceName] = m
	}
	return out, nil
}

// Sizes are the bytes of topics' partitions at their leaders. A cluster that does not let
// the hub see them (Describe on the cluster) gives none.
func (r *Relay) Sizes(ctx context.Context, topics []string) map[string][]int64 {
	ctx, cancel := context.WithTimeout(ctx, produceTimeout)
	defer cancel()
	req := kmsg.NewPtrDescribeLogDirsRequest()
	size := map[part]int64{}
	for _, t := range topics {
		n := r.c.partitions(t)
		if n == 0 {
			continue
		}
		rt := kmsg.NewDescribeLogDirsRequestTopic()
		rt.Topic = t
		for i := range n {
			rt.Partitions = append(rt.Partitions, int32(i))
		}
		req.Topics = append(req.Topics, rt)
	}
	if len(req.Topics) == 0 {
		return nil
	}
	for _, s := range r.c.cl.RequestSharded(ctx, req) {
		resp, ok := s.Resp.(*kmsg.DescribeLogDirsResponse)
		if s.Err != nil || !ok {
			continue
		}
		for _, d := range resp.Dirs {
			for _, t := range d.Topics {
				for _, p := range t.Partitions {
					at := part{t.Topic, p.Partition}
					size[at] = max(size[at], p.Size) // of replicas the one that has most
				}
			}
		}
	}
	out := map[string][]int64{}
	for _, t := range topics {
		for i := range r.c.partitions(t) {
			out[t] = append(out[t], size[part{t, int32(i)}])
		}
	}
	return out
}

// Offsets asks every partition of topics for a place: of the first record of a time or
// later, or one of those with a name. It asks each leader once.
func (r *Relay) Offsets(ctx context.Context, topics []string, at int64) (map[string][]Place, error) {
	ctx, cancel := context.WithTimeout(ctx, giveUp)
	defer cancel()
	out := map[string][]Place{}
	left := map[part]bool{}
	for _, t := range topics {
		n := r.c.partitions(t)
		out[t] = slices.Repeat([]Place{{-1, -1}}, n)
		for i := range n {
			left[part{t, int32(i)}] = true
		}
	}
	for len(left) > 0 {
		by := map[int32]map[string][]int32{}
		for p := range left {
			_, l := r.c.leader(p)
			if l < 0 {
				continue
			}
			if by[l] == nil {
				by[l] = map[string][]int32{}
			}
			by[l][p.topic] = append(by[l][p.topic], p.n)
		}
		var last error
		for _, leader := range slices.Sorted(maps.Keys(by)) {
			req := kmsg.NewPtrListOffsetsRequest()
			req.IsolationLevel = 1
			for t, ns := range by[leader] {
				rt := kmsg.NewListOffsetsRequestTopic()
				rt.Topic = t
				for _, n := range ns {
					rp := kmsg.NewListOffsetsRequestTopicPartition()
					rp.Partition, rp.Timestamp, rp.CurrentLeaderEpoch = n, at, -1
					rt.Partitions = append(rt.Partitions, rp)
				}
				req.Topics = append(req.Topics, rt)
			}
			resp, err := request[*kmsg.ListOffsetsResponse](ctx, r.c, leader, req)
			if err != nil {
				last = err
				continue
			}
			for _, t := range resp.Topics {
				for _, p := range t.Partitions {
					switch err := kerr.ErrorForCode(p.ErrorCode); {
					case err == nil:
						out[t.Topic][p.Partition] = Place{p.Offset, p.Timestamp}
						delete(left, part{t.Topic, p.Partition})
					case !kerr.IsRetriable(err):
						return nil, fmt.Errorf("offsets of %s/%d: %w", t.Topic, p.Partition, err)
					default:
						last = err
					}
				}
			}
		}
		if len(left) > 0 {
			r.c.refresh(ctx)
			if ctx.Err() != nil {
				return nil, fmt.Errorf("offsets: %w", cmp.Or(last, ctx.Err()))
			}
		}
	}
	return out, nil
}

// Fetch appends to dst whole batches of a partition from the one that holds an offset on,
// committed ones only and no markers; next is where to go on, behind from whenever from
// lies below stable. The first batch comes whole, whatever its size.
func (r *Relay) Fetch(ctx context.Context, dst []byte, topic string, n int32, from, stable int64, maxBytes int) (out []byte, next int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, giveUp)
	defer cancel()
	p := part{topic, n}
	began := len(dst)
	var last error
	for from < stable && len(dst) == began {
		if ctx.Err() != nil {
			return dst, from, fmt.Errorf("read %s/%d at offset %d: %w", topic, n, from, cmp.Or(last, ctx.Err()))
		}
		id, leader := r.c.leader(p)
		if leader < 0 {
			last = kerr.LeaderNotAvailable
			r.c.refresh(ctx)
			continue
		}
		req := kmsg.NewPtrFetchRequest()
		req.MaxWaitMillis, req.MinBytes, req.MaxBytes, req.IsolationLevel, req.SessionEpoch = 500, 1, int32(maxBytes), 1, -1
		rt := kmsg.NewFetchRequestTopic()
		rp := kmsg.NewFetchRequestTopicPartition()
		rt.Topic, rt.TopicID = topic, id
		rp.Partition, rp.FetchOffset, rp.PartitionMaxBytes, rp.CurrentLeaderEpoch = n, from, int32(maxBytes), -1
		rt.Partitions = append(rt.Partitions, rp)
		req.Topics = append(req.Topics, rt)
		resp, err := request[*kmsg.FetchResponse](ctx, r.c, leader, req)
		if err == nil {
			err = kerr.ErrorForCode(resp.ErrorCode)
		}
		if err == nil && (len(resp.Topics) != 1 || len(resp.Topics[0].Partitions) != 1) {
			err = errors.New("the answer lacks the partition")
		}
		if err == nil {
			err = kerr.ErrorForCode(resp.Topics[0].Partitions[0].ErrorCode)
		}
		switch {
		case errors.Is(err, kerr.OffsetOutOfRange):
			return dst, from, fmt.Errorf("%w: %d of %s/%d", ErrOutOfRange, from, topic, n)
		case err != nil && errors.As(err, new(*kerr.Error)) && !kerr.IsRetriable(err):
			return dst, from, fmt.Errorf("read %s/%d at offset %d: %w", topic, n, from, err)
		case err != nil:
			last = err
			r.c.refresh(ctx)
			continue
		}
		a := &resp.Topics[0].Partitions[0]
		was := from
		if dst, from, err = committedOf(dst, a.RecordBatches, a.AbortedTransactions, from); err != nil {
			return dst, from, fmt.Errorf("read %s/%d at offset %d: %w", topic, n, from, err)
		}
		if from == was && !pause(ctx, 20*time.Millisecond) {
			continue
		}
	}
	return dst, from, nil
}

// LastTime is the largest time of the last committed batches of a partition, -1 when there
// are none near its end, or the hub may see the topic but not read it. The brokers' own answer to the question counts the markers of
// transactions, which have the time of their commit.
func (r *Relay) LastTime(ctx context.Context, topic string, n int32, first, stable int64) (int64, error) {
	for back := int64(2); ; back *= 16 {
		from := max(first, stable-back)
		out, _, err := r.Fetch(ctx, nil, topic, n, from, stable, 16<<10)
		if errors.Is(err, kerr.TopicAuthorizationFailed) {
			return -1, nil
		}
		if err != nil {
			return -1, err
		}
		at := int64(-1)
		for len(out) > 0 {
			b, rest, err := record.Next(out)
			if err != nil {
				return -1, err
			}
			at, out = max(at, b.MaxTimestamp()), rest
		}
		if at >= 0 || from == first || back > 1<<16 {
			return at, nil
		}
	}
}

// committedOf appends the batches of a fetch that readers see; next is behind the last whole
// one, whether they see it or not.
func committedOf(dst, b []byte, aborted []kmsg.FetchResponseTopicPartitionAbortedTransaction, from int64) ([]byte, int64, error) {
	slices.SortFunc(aborted, func(a, b kmsg.FetchResponseTopicPartitionAbortedTransaction) int {
		return cmp.Compare(a.FirstOffset, b.FirstOffset)
	})
	open := map[int64]bool{} // producers whose transaction ends with an abort
	for len(b) > 0 {
		x, rest, err := record.Next(b)
		if errors.Is(err, record.ErrShort) {
			return dst, from, nil // the last one is cut off
		}
		if err != nil {
			return dst, from, err
		}
		b = rest
		for len(aborted) > 0 && aborted[0].FirstOffset <= x.LastOffset() {
			open[aborted[0].ProducerID] = true
			aborted = aborted[1:]
		}
		if from = max(from, x.NextOffset()); x.Attributes()&record.AttrControl != 0 {
			delete(open, x.ProducerID()) // commit or abort: it has ended
			continue
		}
		if x.Attributes()&record.AttrTransactional != 0 && open[x.ProducerID()] {
			continue
		}
		dst = append(dst, x...)
	}
	return dst, from, nil
}
