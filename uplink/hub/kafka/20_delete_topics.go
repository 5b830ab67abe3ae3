package kafka

import (
	"context"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"tailrace/storage"
)

// DeleteTopics (key 20), v1 to v6. Durable when answered. From v6 a topic is
// named or told by id.
var deleteTopicsAPI = api{key: 20, name: "DeleteTopics", min: 1, max: 6, handle: typed(deleteTopics)}

func deleteTopics(_ context.Context, c *conn, req *kmsg.DeleteTopicsRequest) (kmsg.Response, error) {
	resp := kmsg.NewPtrDeleteTopicsResponse()
	topics := req.Topics
	for _, name := range req.TopicNames {
		rt := kmsg.NewDeleteTopicsRequestTopic()
		rt.Topic = &name
		topics = append(topics, rt)
	}
	for _, rt := range topics {
		st := kmsg.NewDeleteTopicsResponseTopic()
		st.Topic, st.TopicID = rt.Topic, rt.TopicID
		if e := c.deleteTopic(rt, &st); e != nil {
			st.ErrorCode = c.fault(20, e)
		}
		resp.Topics = append(resp.Topics, st)
	}
	return resp, nil
}

func (c *conn) deleteTopic(rt kmsg.DeleteTopicsRequestTopic, st *kmsg.DeleteTopicsResponseTopic) *kerr.Error {
	var t *storage.Topic
	if rt.Topic != nil {
		if !c.s.allowed(c, OpDelete, *rt.Topic) {
			return kerr.TopicAuthorizationFailed
		}
		t, _ = c.s.store.Topic(*rt.Topic)
	} else if t = c.s.topicByID(rt.TopicID); t == nil || !c.s.allowed(c, OpDelete, t.Name()) {
		return kerr.UnknownTopicID
	}
	if t == nil {
		return kerr.UnknownTopicOrPartition
	}
	name := t.Name()
	st.Topic, st.TopicID = &name, t.ID()
	if err := c.s.store.DeleteTopic(name); err != nil {
		c.s.log.Error("kafka delete topic", "topic", name, "err", err)
		return storageError(err)
	}
	c.s.log.Info("kafka topic deleted", "topic", name, "client", c.peer.ClientID, "remote", c.peer.Remote)
	return nil
}
