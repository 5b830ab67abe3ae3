package relay

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// BackfillSuffix ends the name of a companion topic: see the hub's DESIGN.
const BackfillSuffix = ".backfill"

// clockTopic is the nodes' own; it needs no rule.
const clockTopic = "__tailrace_clock"

// isSystem says whether a topic is the relay's own.
func (r *Relay) isSystem(t string) bool {
	return t == r.cfg.ProgressTopic() || t == r.cfg.LossTopic() || t == r.cfg.DeadTopic()
}

// Reserved says whether no node may write to a topic of that name.
func (r *Relay) Reserved(t string) bool {
	return r.isSystem(t) || t == "__consumer_offsets" || t == "__transaction_state" || t == "__share_group_state" || t == "__cluster_metadata"
}

// timestamps are the configuration that no record is refused by for its time: a node's
// clock may be wrong, and a record refused takes its batch with it.
var timestamps = map[string]string{"message.timestamp.after.max.ms": strconv.FormatInt(math.MaxInt64, 10), "message.timestamp.before.max.ms": strconv.FormatInt(math.MaxInt64, 10),
	"compression.type": "producer", "message.timestamp.type": "CreateTime"}

// rule finds the rule for a topic. A companion is made like its topic.
func (r *Relay) rule(topic string) (TopicRule, bool) {
	if topic == clockTopic {
		return TopicRule{Match: topic}, true
	}
	for _, t := range r.cfg.Topics {
		if ok, _ := path.Match(t.Match, strings.TrimSuffix(topic, BackfillSuffix)); ok {
			return t, true
		}
	}
	return TopicRule{}, false
}

// Allowed says whether a topic exists or a rule makes it.
func (r *Relay) Allowed(topic string) bool {
	if m, ok := r.c.topic(topic); ok && len(m.leaders) > 0 {
		return true
	}
	_, ok := r.rule(topic)
	return ok
}

// EnsureTopic makes a topic by its rule when it does not exist, and checks that what is
// there can take a fleet's records.
func (r *Relay) EnsureTopic(ctx context.Context, name string) error {
	r.topicMu.Lock()
	defer r.topicMu.Unlock()
	if r.checked[name] {
		return nil
	}
	rule, ok := r.rule(name)
	if err := r.c.load(ctx, name); err != nil {
		return fmt.Errorf("topic %q: %w", name, err)
	}
	if m, _ := r.c.topic(name); errors.Is(m.err, kerr.UnknownTopicOrPartition) {
		if !ok {
			return &TopicError{name, "no rule under topics: in the hub's configuration allows it"}
		}
		n := rule.Partitions
		if n == 0 {
			n = r.cfg.Shards
		}
		if base, ok := strings.CutSuffix(name, BackfillSuffix); ok { // records of a partition go to the one of the same number
			n = max(n, r.c.partitions(base))
		}
		configs := map[string]string{"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1"}
		if rule.Retention > 0 {
			configs["retention.ms"] = strconv.FormatInt(rule.Retention.Milliseconds(), 10)
		}
		if rule.RetentionBytes > 0 {
			configs["retention.bytes"] = strconv.FormatInt(rule.RetentionBytes, 10)
		}
		if err := r.create(ctx, name, n, configs); err != nil {
			return err
		}
	} else if m.err != nil {
		return fmt.Errorf("topic %q: %w", name, m.err)
	}
	if err := r.check(ctx, name, true); err != nil {
		return err
	}
	if base, ok := strings.CutSuffix(name, BackfillSuffix); ok && r.c.partitions(name) < r.c.partitions(base) {
		return &TopicError{name, fmt.Sprintf("it has %d partitions, %s has %d: add partitions", r.c.partitions(name), base, r.c.partitions(base))}
	}
	r.checked[name] = true
	return nil
}

// create makes a topic and waits until its leaders are known. That another hub was faster is fine.
func (r *Relay) create(ctx context.Context, name string, partitions int, configs map[string]string) error {
	req := kmsg.NewPtrCreateTopicsRequest()
	rt := kmsg.NewCreateTopicsRequestTopic()
	rt.Topic, rt.NumPartitions, rt.ReplicationFactor = name, int32(partitions), int16(r.cfg.Replication)
	all := maps.Clone(timestamps)
	maps.Copy(all, configs)
	for k, v := range all {
		rc := kmsg.NewCreateTopicsRequestTopicConfig()
		rc.Name, rc.Value = k, kmsg.StringPtr(v)
		rt.Configs = append(rt.Configs, rc)
	}
	req.Topics = append(req.Topics, rt)
	resp, err := req.RequestWith(ctx, r.c.cl)
	if err == nil && len(resp.Topics) == 1 {
		if err = kerr.ErrorForCode(resp.Topics[0].ErrorCode); err != nil && resp.Topics[0].ErrorMessage != nil {
			err = fmt.Errorf("%w (%s)", err, *resp.Topics[0].ErrorMessage)
		}
	}
	if err != nil && !errors.Is(err, kerr.TopicAlreadyExists) {
		return fmt.Errorf("create topic %q: %w", name, err)
	}
	if err == nil {
		r.cfg.Logger.Info("topic created in the cluster", "topic", name, "partitions", partitions, "replication", r.cfg.Replication)
	}
	for {
		if err := r.c.load(ctx, name); err != nil {
			return err
		}
		m, _ := r.c.topic(name)
		ready := len(m.leaders) > 0
		for _, l := range m.leaders {
			ready = ready && l >= 0
		}
		if ready {
			return nil
		}
		if !pause(ctx, 50*time.Millisecond) {
			return ctx.Err()
		}
	}
}

// check refuses a topic whose configuration would lose records.
func (r *Relay) check(ctx context.Context, name string, data bool) error {
	if n := r.c.partitions(name); n < r.cfg.Shards {
		return &TopicError{name, fmt.Sprintf("it has %d partitions, %d shards need one each at least: add partitions", n, r.cfg.Shards)}
	}
	got, err := r.configs(ctx, name)
	for tries := 0; errors.Is(err, kerr.UnknownTopicOrPartition) && tries < 50 && pause(ctx, 100*time.Millisecond); tries++ {
		got, err = r.configs(ctx, name) // made just now: not every broker knows it yet
	}
	if err != nil {
		return fmt.Errorf("configuration of topic %q: %w", name, err)
	}
	if !data {
		if p := got["cleanup.policy"]; name == r.cfg.ProgressTopic() && p != "compact" {
			return &TopicError{name, fmt.Sprintf("cleanup.policy is %q: it must be compact, or progress is lost", p)}
		}
		return nil
	}
	if p := got["cleanup.policy"]; p != "delete" && p != "" {
		return &TopicError{name, fmt.Sprintf("cleanup.policy is %q: records of one key would be thrown away", p)}
	}
	if ms, err := strconv.ParseInt(got["retention.ms"], 10, 64); err == nil && ms >= 0 && ms < r.cfg.Outage.Milliseconds() {
		return &TopicError{name, fmt.Sprintf("retention.ms is %d, below longest_outage (%d ms): records of a node that was away would be deleted as they arrive", ms, r.cfg.Outage.Milliseconds())}
	}
	if c := got["compression.type"]; c != "producer" && c != "" {
		return &TopicError{name, fmt.Sprintf("compression.type is %q: set it to producer, the cluster would compress everything anew", c)}
	}
	if after, err := strconv.ParseInt(got["message.timestamp.after.max.ms"], 10, 64); err == nil && after != math.MaxInt64 {
		r.cfg.Logger.Warn("the cluster refuses records of this topic by their time; such batches become dead letters", "topic", name,
			"message.timestamp.after.max.ms", after, "hint", "set it to 9223372036854775807")
	}
	return nil
}

func (r *Relay) configs(ctx context.Context, name string) (map[string]string, error) {
	req := kmsg.NewPtrDescribeConfigsRequest()
	rr := kmsg.NewDescribeConfigsRequestResource()
	rr.ResourceType, rr.ResourceName = kmsg.ConfigResourceTypeTopic, name
	req.Resources = append(req.Resources, rr)
	resp, err := req.RequestWith(ctx, r.c.cl)
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	for _, x := range resp.Resources {
		if err := kerr.ErrorForCode(x.ErrorCode); err != nil {
			return nil, err
		}
		for _, c := range x.Configs {
			if c.Value != nil {
				out[c.Name] = *c.Value
			}
		}
	}
	return out, nil
}

// ensureSystem makes and checks the relay's own topics: a partition for each shard.
func (r *Relay) ensureSystem(ctx context.Context) error {
	for name, configs := range map[string]map[string]string{
		r.cfg.ProgressTopic(): {"cleanup.policy": "compact", "min.cleanable.dirty.ratio": "0.1", "segment.bytes": strconv.Itoa(64 << 20)},
		r.cfg.LossTopic():     {"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1"},
		r.cfg.DeadTopic():     {"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1", "max.message.bytes": strconv.Itoa(16 << 20)},
	} {
		if err := r.c.load(ctx, name); err != nil {
			return err
		}
		if m, _ := r.c.topic(name); errors.Is(m.err, kerr.UnknownTopicOrPartition) {
			if err := r.create(ctx, name, r.cfg.Shards, configs); err != nil {
				return err
			}
		} else if m.err != nil {
			return fmt.Errorf("topic %q: %w", name, m.err)
		}
		if n := r.c.partitions(name); n != r.cfg.Shards {
			return fmt.Errorf("topic %q has %d partitions, the configuration names %d shards: the number of shards is fixed with the first start", name, n, r.cfg.Shards)
		}
		if err := r.check(ctx, name, false); err != nil {
			return err
		}
	}
	return nil
}

// checkCluster refuses a cluster whose transactions are not safe (KIP-890).
func (r *Relay) checkCluster(ctx context.Context) error {
	req := kmsg.NewPtrApiVersionsRequest()
	req.ClientSoftwareName, req.ClientSoftwareVersion = "tailrace", "1"
	resp, err := req.RequestWith(ctx, r.c.cl)
	if err != nil {
		return err
	}
	if err := kerr.ErrorForCode(resp.ErrorCode); err != nil {
		return err
	}
	for _, f := range resp.FinalizedFeatures {
		if f.Name == "transaction.version" && f.MaxVersionLevel >= 2 {
			return nil
		}
	}
	return errors.New("the cluster's transaction.version is below 2: Kafka 4.0 or newer is needed, with the feature raised (kafka-features.sh upgrade --feature transaction.version=2)")
}
