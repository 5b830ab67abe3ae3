package kafka

import (
	"context"
	"errors"
	"fmt"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"tailrace/storage"
)

// CreateTopics (key 19), v2 to v7. Durable when answered. Replication factor
// -1 or 1; no explicit assignment. Which configurations are taken stands in
// topicconfig.go; others are refused rather than ignored.
var createTopicsAPI = api{key: 19, name: "CreateTopics", min: 2, max: 7, handle: typed(createTopics)}

const maxPartitions = 10000

func createTopics(_ context.Context, c *conn, req *kmsg.CreateTopicsRequest) (kmsg.Response, error) {
	resp := kmsg.NewPtrCreateTopicsResponse()
	for _, rt := range req.Topics {
		st := kmsg.NewCreateTopicsResponseTopic()
		st.Topic = rt.Topic
		st.NumPartitions, st.ReplicationFactor = -1, -1
		if t, e, why := c.createTopic(rt, req.ValidateOnly); e != nil {
			st.ErrorCode = c.fault(19, e)
			if why != "" {
				st.ErrorMessage = &why
			}
		} else if t != nil {
			st.TopicID, st.NumPartitions, st.ReplicationFactor = t.ID(), int32(len(t.Partitions())), 1
			for _, kv := range topicConfigs(t.Config(), c.s.cfg.MaxBatchBytes) {
				sc := kmsg.NewCreateTopicsResponseTopicConfig()
				sc.Name, sc.Value, sc.Source = kv.name, &kv.value, int8(kv.source())
				st.Configs = append(st.Configs, sc)
			}
		}
		resp.Topics = append(resp.Topics, st)
	}
	return resp, nil
}

func (c *conn) createTopic(rt kmsg.CreateTopicsRequestTopic, validateOnly bool) (*storage.Topic, *kerr.Error, string) {
	if !c.s.allowed(c, OpCreate, rt.Topic) {
		return nil, kerr.TopicAuthorizationFailed, ""
	}
	tc := c.s.cfg.TopicDefaults
	switch {
	case len(rt.ReplicaAssignment) > 0:
		return nil, kerr.InvalidReplicaAssignment, "there is one broker; ask for a number of partitions"
	case rt.ReplicationFactor != -1 && rt.ReplicationFactor != 1:
		return nil, kerr.InvalidReplicationFactor, "there is one broker: replication factor 1 or -1"
	case rt.NumPartitions == -1:
	case rt.NumPartitions < 1 || rt.NumPartitions > maxPartitions:
		return nil, kerr.InvalidPartitions, fmt.Sprintf("partitions: 1 to %d, or -1", maxPartitions)
	default:
		tc.Partitions = int(rt.NumPartitions)
	}
	for _, kv := range rt.Configs {
		if err := setTopicConfig(&tc, c.s.cfg.TopicDefaults, kv.Name, kv.Value); err != nil {
			return nil, kerr.InvalidConfig, err.Error()
		}
	}
	if _, ok := c.s.store.Topic(rt.Topic); ok {
		return nil, kerr.TopicAlreadyExists, ""
	}
	if validateOnly {
		return nil, nil, ""
	}
	t, err := c.s.store.CreateTopic(rt.Topic, tc)
	if err != nil {
		if !errors.Is(err, storage.ErrExists) && !errors.Is(err, storage.ErrInvalid) {
			c.s.log.Error("kafka create topic", "topic", rt.Topic, "err", err)
		}
		return nil, storageError(err), err.Error()
	}
	c.s.log.Info("kafka topic created", "topic", rt.Topic, "client", c.peer.ClientID, "remote", c.peer.Remote)
	return t, nil, ""
}
