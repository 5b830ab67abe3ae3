package kafka

import (
	"context"
	"fmt"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// IncrementalAlterConfigs (key 44), v0 to v1. Topics only: what CreateTopics
// takes may be set, or deleted, which is the hub's default; cleanup.policy, the one
// list with a choice, may be appended to and subtracted from. Durable when answered. The older AlterConfigs (33) is left out, since it resets what
// is not named.
var incrementalAlterConfigsAPI = api{key: 44, name: "IncrementalAlterConfigs", min: 0, max: 1, handle: typed(incrementalAlterConfigs)}

func incrementalAlterConfigs(_ context.Context, c *conn, req *kmsg.IncrementalAlterConfigsRequest) (kmsg.Response, error) {
	resp := kmsg.NewPtrIncrementalAlterConfigsResponse()
	for _, rr := range req.Resources {
		sr := kmsg.NewIncrementalAlterConfigsResponseResource()
		sr.ResourceType, sr.ResourceName = rr.ResourceType, rr.ResourceName
		if e, why := c.alterConfigs(rr, req.ValidateOnly); e != nil {
			sr.ErrorCode = c.fault(44, e)
			if why != "" {
				sr.ErrorMessage = &why
			}
		}
		resp.Resources = append(resp.Resources, sr)
	}
	return resp, nil
}

func (c *conn) alterConfigs(rr kmsg.IncrementalAlterConfigsRequestResource, validateOnly bool) (*kerr.Error, string) {
	if rr.ResourceType != kmsg.ConfigResourceTypeTopic {
		return kerr.InvalidRequest, "only topics have configurations that a client may change"
	}
	t, e := c.topic(rr.ResourceName, OpAlter, false)
	if e != nil {
		return e, ""
	}
	tc := t.Config()
	for _, kv := range rr.Configs {
		value := kv.Value
		switch kv.Op {
		case kmsg.IncrementalAlterConfigOpSet:
			if value == nil {
				return kerr.InvalidConfig, kv.Name + ": no value"
			}
		case kmsg.IncrementalAlterConfigOpDelete:
			if value = nil; !knownConfig(kv.Name) {
				continue // it is not set; MirrorMaker 2 deletes whatever a broker has
			}
		default:
			if kv.Name != "cleanup.policy" || value == nil {
				return kerr.InvalidConfig, fmt.Sprintf("%s: set or delete it", kv.Name)
			}
			policy := changedPolicy(tc, kv.Op, *value)
			value = &policy
		}
		if err := setTopicConfig(&tc, c.s.cfg.TopicDefaults, kv.Name, value); err != nil {
			return kerr.InvalidConfig, err.Error()
		}
	}
	if validateOnly {
		return nil, ""
	}
	if err := c.s.store.SetTopicConfig(rr.ResourceName, tc); err != nil {
		c.s.log.Error("kafka alter topic", "topic", rr.ResourceName, "err", err)
		return storageError(err), err.Error()
	}
	c.s.log.Info("kafka topic altered", "topic", rr.ResourceName, "retention", tc.RetentionAge, "retention_bytes", tc.RetentionBytes, "cleanup_policy", cleanupPolicy(tc),
		"client", c.peer.ClientID, "user", c.peer.User, "remote", c.peer.Remote)
	return nil, ""
}
