package kafka

import (
	"context"
	"fmt"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// CreatePartitions (key 37), v0 to v3. Durable when answered. Partitions are
// added only; there is no explicit assignment. Where nodes send to does not
// change: an assignment of a node is for ever.
var createPartitionsAPI = api{key: 37, name: "CreatePartitions", min: 0, max: 3, handle: typed(createPartitions)}

func createPartitions(_ context.Context, c *conn, req *kmsg.CreatePartitionsRequest) (kmsg.Response, error) {
	resp := kmsg.NewPtrCreatePartitionsResponse()
	for _, rt := range req.Topics {
		st := kmsg.NewCreatePartitionsResponseTopic()
		st.Topic = rt.Topic
		if e, why := c.createPartitions(rt, req.ValidateOnly); e != nil {
			st.ErrorCode = c.fault(37, e)
			if why != "" {
				st.ErrorMessage = &why
			}
		}
		resp.Topics = append(resp.Topics, st)
	}
	return resp, nil
}

func (c *conn) createPartitions(rt kmsg.CreatePartitionsRequestTopic, validateOnly bool) (*kerr.Error, string) {
	t, e := c.topic(rt.Topic, OpAlter, false)
	if e != nil {
		return e, ""
	}
	switch n := len(t.Partitions()); {
	case len(rt.Assignment) > 0:
		return kerr.InvalidReplicaAssignment, "there is one broker; ask for a number of partitions"
	case int(rt.Count) <= n || rt.Count > maxPartitions:
		return kerr.InvalidPartitions, fmt.Sprintf("topic has %d partitions; more than that, at most %d", n, maxPartitions)
	case validateOnly:
		return nil, ""
	}
	if err := c.s.store.EnsurePartitions(rt.Topic, int(rt.Count)); err != nil {
		c.s.log.Error("kafka create partitions", "topic", rt.Topic, "err", err)
		return storageError(err), err.Error()
	}
	c.s.log.Info("kafka partitions created", "topic", rt.Topic, "partitions", rt.Count, "client", c.peer.ClientID, "user", c.peer.User, "remote", c.peer.Remote)
	return nil, ""
}
