package kafka

import (
	"context"
	"slices"
	"strconv"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// DescribeConfigs (key 32), v1 to v4: topics, as far as our configuration has
// a Kafka name, and the one broker, which has a handful that user interfaces
// ask for. Synonyms and documentation are left out.
var describeConfigsAPI = api{key: 32, name: "DescribeConfigs", min: 1, max: 4, handle: typed(describeConfigs)}

func describeConfigs(_ context.Context, c *conn, req *kmsg.DescribeConfigsRequest) (kmsg.Response, error) {
	resp := kmsg.NewPtrDescribeConfigsResponse()
	for _, rr := range req.Resources {
		sr := kmsg.NewDescribeConfigsResponseResource()
		sr.ResourceType, sr.ResourceName = rr.ResourceType, rr.ResourceName
		entries, e := c.configsOf(rr)
		if e != nil {
			sr.ErrorCode = c.fault(32, e)
		}
		for _, kv := range entries {
			if rr.ConfigNames != nil && !slices.Contains(rr.ConfigNames, kv.name) {
				continue
			}
			sc := kmsg.NewDescribeConfigsResponseResourceConfig()
			sc.Name, sc.Value, sc.ConfigType, sc.Source, sc.ReadOnly = kv.name, &kv.value, kv.typ, kv.source(), true
			sr.Configs = append(sr.Configs, sc)
		}
		resp.Resources = append(resp.Resources, sr)
	}
	return resp, nil
}

func (c *conn) configsOf(rr kmsg.DescribeConfigsRequestResource) ([]configEntry, *kerr.Error) {
	switch rr.ResourceType {
	case kmsg.ConfigResourceTypeTopic:
		t, e := c.topic(rr.ResourceName, OpDescribe, false)
		if e != nil {
			return nil, e
		}
		return topicConfigs(t.Config(), c.s.cfg.MaxBatchBytes), nil
	case kmsg.ConfigResourceTypeBroker:
		if rr.ResourceName != "" && rr.ResourceName != strconv.Itoa(int(c.s.cfg.BrokerID)) {
			return nil, kerr.InvalidRequest
		}
		return []configEntry{
			{"auto.create.topics.enable", strconv.FormatBool(c.s.cfg.AutoCreate != nil), kmsg.ConfigTypeBoolean, true},
			{"broker.id", strconv.Itoa(int(c.s.cfg.BrokerID)), kmsg.ConfigTypeInt, true},
			{"default.replication.factor", "1", kmsg.ConfigTypeInt, true},
			{"message.max.bytes", strconv.Itoa(c.s.cfg.MaxBatchBytes), kmsg.ConfigTypeInt, true},
			{"num.partitions", strconv.Itoa(max(c.s.cfg.TopicDefaults.Partitions, 1)), kmsg.ConfigTypeInt, true},
		}, nil
	}
	return nil, kerr.InvalidRequest
}
