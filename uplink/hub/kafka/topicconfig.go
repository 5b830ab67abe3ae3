package kafka

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"tailrace/storage"
)

// A topic's configuration by its Kafka names. A name belongs to one of four groups:
// what the hub does (retention, compaction), what it does anyway and therefore takes in
// one value only, what tunes files that it does not have and is kept and shown without
// effect, and everything else, which is refused rather than ignored.

// sameAlways is what the hub does anyway.
var sameAlways = map[string]string{"compression.type": "producer", "message.timestamp.type": "CreateTime", "min.insync.replicas": "1"}

// tuning has no effect: all topics of a storage class share one log, which syncs
// every commit. Tools set these (Kafka Streams segment.bytes), and expect to read
// them back.
var tuning = map[string]int64{ // the least value
	"segment.bytes": 14, "segment.index.bytes": 4, "segment.jitter.ms": 0, "index.interval.bytes": 0,
	"flush.messages": 1, "flush.ms": 0, "file.delete.delay.ms": 0,
}

const tuningLabel = "kafka." // before the name, in the topic's labels

// maxConfigTime is what a longer time means: for ever.
const maxConfigTime = int64(100 * 365 * 24 * time.Hour / time.Millisecond)

// setTopicConfig sets one configuration; without a value it is that of def.
func setTopicConfig(tc *storage.TopicConfig, def storage.TopicConfig, name string, value *string) error {
	switch name {
	case "retention.ms", "retention.bytes":
		if value == nil {
			if name == "retention.bytes" {
				tc.RetentionBytes = def.RetentionBytes
			} else {
				tc.RetentionAge = def.RetentionAge
			}
			return nil
		}
		n, err := strconv.ParseInt(*value, 10, 64)
		if err != nil || n < -1 || n == 0 {
			return fmt.Errorf("%s %q: a number from 1, or -1 for no limit", name, *value)
		}
		n = max(n, 0) // ours: 0 is no limit
		if name == "retention.bytes" {
			tc.RetentionBytes = n
		} else {
			tc.RetentionAge = configTime(n)
		}
		return nil
	}
	if v, ok := sameAlways[name]; ok {
		if value == nil || v == *value {
			return nil
		}
		return fmt.Errorf("%s: only %q", name, v)
	}
	if least, ok := tuning[name]; ok {
		return setTuning(tc, name, least, value)
	}
	return setCompaction(tc, def, name, value)
}

func configTime(ms int64) time.Duration {
	return time.Duration(min(ms, maxConfigTime)) * time.Millisecond
}

func setTuning(tc *storage.TopicConfig, name string, least int64, value *string) error {
	labels := maps.Clone(tc.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	if value == nil {
		delete(labels, tuningLabel+name)
	} else if n, err := strconv.ParseInt(*value, 10, 64); err != nil || n < least {
		return fmt.Errorf("%s %q: a number from %d", name, *value, least)
	} else {
		labels[tuningLabel+name] = *value
	}
	if len(labels) == 0 {
		labels = nil
	}
	tc.Labels = labels
	return nil
}

// setCompaction sets cleanup.policy and what belongs to it. The rules are kept while
// the policy is delete, so that the order of names does not matter.
func setCompaction(tc *storage.TopicConfig, def storage.TopicConfig, name string, value *string) error {
	c := compactionOf(*tc)
	fallback := compactionOf(def)
	ms := func(to *time.Duration, def time.Duration, least int64) error {
		if value == nil {
			*to = def
			return nil
		}
		n, err := strconv.ParseInt(*value, 10, 64)
		if err != nil || n < least {
			return fmt.Errorf("%s %q: a number from %d", name, *value, least)
		}
		*to = configTime(n)
		return nil
	}
	var err error
	switch name {
	case "cleanup.policy":
		policy := cleanupPolicy(def)
		if value != nil {
			policy = strings.Split(strings.ReplaceAll(*value, " ", ""), ",")
		}
		for _, s := range policy {
			if s != "compact" && s != "delete" {
				return fmt.Errorf("cleanup.policy %q: delete, compact, or compact,delete", strings.Join(policy, ","))
			}
		}
		c.On = slices.Contains(policy, "compact")
		c.Delete = c.On && slices.Contains(policy, "delete")
	case "delete.retention.ms":
		err = ms(&c.TombstoneAge, fallback.TombstoneAge, 0)
	case "min.compaction.lag.ms":
		err = ms(&c.MinLag, fallback.MinLag, 0)
	case "max.compaction.lag.ms":
		if err = ms(&c.MaxLag, fallback.MaxLag, 1); c.MaxLag >= configTime(maxConfigTime) {
			c.MaxLag = 0
		}
	case "segment.ms":
		err = ms(&c.Wait, fallback.Wait, 1)
	case "min.cleanable.dirty.ratio":
		c.DirtyRatio = fallback.DirtyRatio
		if value != nil {
			if c.DirtyRatio, err = strconv.ParseFloat(*value, 64); err != nil || !(c.DirtyRatio >= 0 && c.DirtyRatio <= 1) {
				return fmt.Errorf("%s %q: a number from 0 to 1", name, *value)
			}
		}
	default:
		return fmt.Errorf("configuration %q is not supported", name)
	}
	if err != nil {
		return err
	}
	if c.MaxLag > 0 && c.MaxLag < c.MinLag {
		return fmt.Errorf("max.compaction.lag.ms is less than min.compaction.lag.ms")
	}
	tc.Compaction = &c
	return nil
}

// knownConfig tells whether a topic can have the configuration.
func knownConfig(name string) bool {
	var tc storage.TopicConfig
	return setTopicConfig(&tc, tc, name, nil) == nil
}

// compactionOf is a copy of the rules that a topic has.
func compactionOf(tc storage.TopicConfig) storage.Compaction {
	if tc.Compaction != nil {
		return *tc.Compaction
	}
	c := storage.DefaultCompaction()
	c.On = false
	return c
}

func cleanupPolicy(tc storage.TopicConfig) []string {
	switch c := compactionOf(tc); {
	case c.On && c.Delete:
		return []string{"compact", "delete"}
	case c.On:
		return []string{"compact"}
	}
	return []string{"delete"}
}

// changedPolicy is cleanup.policy with entries appended or taken out.
func changedPolicy(tc storage.TopicConfig, op kmsg.IncrementalAlterConfigOp, value string) string {
	policy := cleanupPolicy(tc)
	for _, s := range strings.Split(strings.ReplaceAll(value, " ", ""), ",") {
		policy = slices.DeleteFunc(policy, func(have string) bool { return have == s })
		if op == kmsg.IncrementalAlterConfigOpAppend {
			policy = append(policy, s)
		}
	}
	return strings.Join(policy, ",")
}

type configEntry struct {
	name, value string
	typ         kmsg.ConfigType
	isDefault   bool
}

func (e configEntry) source() kmsg.ConfigSource {
	if e.isDefault {
		return kmsg.ConfigSourceDefaultConfig
	}
	return kmsg.ConfigSourceDynamicTopicConfig
}

// topicConfigs are a topic's configurations, by name.
func topicConfigs(tc storage.TopicConfig, maxBatch int) []configEntry {
	limit := func(n int64) string {
		if n <= 0 {
			return "-1"
		}
		return strconv.FormatInt(n, 10)
	}
	c, def := compactionOf(tc), storage.DefaultCompaction()
	ms := func(name string, v, def time.Duration) configEntry {
		return configEntry{name, strconv.FormatInt(v.Milliseconds(), 10), kmsg.ConfigTypeLong, v == def}
	}
	most := c.MaxLag
	if most == 0 {
		most = time.Duration(math.MaxInt64)
	}
	list := []configEntry{
		{"cleanup.policy", strings.Join(cleanupPolicy(tc), ","), kmsg.ConfigTypeList, !c.On},
		{"compression.type", "producer", kmsg.ConfigTypeString, true},
		ms("delete.retention.ms", c.TombstoneAge, def.TombstoneAge),
		ms("max.compaction.lag.ms", most, time.Duration(math.MaxInt64)),
		{"max.message.bytes", strconv.Itoa(maxBatch), kmsg.ConfigTypeInt, true},
		{"message.timestamp.type", "CreateTime", kmsg.ConfigTypeString, true},
		{"min.cleanable.dirty.ratio", strconv.FormatFloat(c.DirtyRatio, 'f', -1, 64), kmsg.ConfigTypeDouble, c.DirtyRatio == def.DirtyRatio},
		ms("min.compaction.lag.ms", c.MinLag, 0),
		{"min.insync.replicas", "1", kmsg.ConfigTypeInt, true},
		{"retention.bytes", limit(tc.RetentionBytes), kmsg.ConfigTypeLong, tc.RetentionBytes == 0},
		{"retention.ms", limit(tc.RetentionAge.Milliseconds()), kmsg.ConfigTypeLong, tc.RetentionAge == 0},
		ms("segment.ms", c.Wait, def.Wait),
	}
	for label, v := range tc.Labels {
		if name, ok := strings.CutPrefix(label, tuningLabel); ok {
			list = append(list, configEntry{name, v, kmsg.ConfigTypeLong, false})
		}
	}
	slices.SortFunc(list, func(a, b configEntry) int { return cmp.Compare(a.name, b.name) })
	return list
}
