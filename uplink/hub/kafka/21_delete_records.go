package kafka

import (
	"context"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// DeleteRecords (key 21), v0 to v2. Moves the start of a partition, at most to
// the high watermark (offset -1); durable when answered. Space comes back as
// segments go.
var deleteRecordsAPI = api{key: 21, name: "DeleteRecords", min: 0, max: 2, handle: typed(deleteRecords)}

func deleteRecords(_ context.Context, c *conn, req *kmsg.DeleteRecordsRequest) (kmsg.Response, error) {
	resp := kmsg.NewPtrDeleteRecordsResponse()
	for _, rt := range req.Topics {
		st := kmsg.NewDeleteRecordsResponseTopic()
		st.Topic = rt.Topic
		t, terr := c.topic(rt.Topic, OpDelete, false)
		for _, rp := range rt.Partitions {
			sp := kmsg.NewDeleteRecordsResponseTopicPartition()
			sp.Partition, sp.LowWatermark = rp.Partition, -1
			e := terr
			if e == nil {
				if p := t.Partition(int(rp.Partition)); p == nil {
					e = kerr.UnknownTopicOrPartition
				} else {
					off := rp.Offset
					if off == -1 {
						off = p.HighWatermark()
					}
					if err := p.SetStart(off); err != nil {
						e = storageError(err)
					}
					sp.LowWatermark = p.Start()
				}
			}
			if e != nil {
				sp.ErrorCode, sp.LowWatermark = c.fault(21, e), -1
			} else {
				c.s.log.Info("kafka records deleted", "topic", rt.Topic, "partition", rp.Partition, "below", sp.LowWatermark,
					"client", c.peer.ClientID, "user", c.peer.User, "remote", c.peer.Remote)
			}
			st.Partitions = append(st.Partitions, sp)
		}
		resp.Topics = append(resp.Topics, st)
	}
	return resp, nil
}
