package kafka

import (
	"context"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"tailrace/storage"
)

// ListOffsets (key 2), v1 to v7. Timestamp -1 is the end (the high watermark,
// which is the last stable offset too: there are no transactions), -2 the
// start, -3 (v7) the offset of the largest timestamp; any other the first
// offset whose timestamp is at or after it, exact to the record, -1 when there
// is none. v0 (several offsets per partition) has been dropped by Kafka 4.0.
var listOffsetsAPI = api{key: 2, name: "ListOffsets", min: 1, max: 7, handle: typed(listOffsets)}

func listOffsets(_ context.Context, c *conn, req *kmsg.ListOffsetsRequest) (kmsg.Response, error) {
	resp := kmsg.NewPtrListOffsetsResponse()
	for _, rt := range req.Topics {
		st := kmsg.NewListOffsetsResponseTopic()
		st.Topic = rt.Topic
		t, terr := c.topic(rt.Topic, OpDescribe, false)
		for _, rp := range rt.Partitions {
			sp := kmsg.NewListOffsetsResponseTopicPartition()
			sp.Partition = rp.Partition
			e := terr
			if e == nil {
				e = c.listOffset(t, rp, &sp)
			}
			if e != nil {
				sp.ErrorCode = c.fault(2, e)
				sp.Offset, sp.Timestamp, sp.LeaderEpoch = -1, -1, -1
			}
			st.Partitions = append(st.Partitions, sp)
		}
		resp.Topics = append(resp.Topics, st)
	}
	return resp, nil
}

func (c *conn) listOffset(t *storage.Topic, rp kmsg.ListOffsetsRequestTopicPartition, sp *kmsg.ListOffsetsResponseTopicPartition) *kerr.Error {
	p := t.Partition(int(rp.Partition))
	if p == nil {
		return kerr.UnknownTopicOrPartition
	}
	if e := c.s.checkEpoch(rp.CurrentLeaderEpoch); e != nil {
		return e
	}
	sp.LeaderEpoch = c.s.leaderEpoch()
	sp.Timestamp, sp.Offset = -1, -1
	switch rp.Timestamp {
	case -1:
		sp.Offset = p.HighWatermark()
	case -2:
		sp.Offset = p.Start()
	case -3:
		if off, ts, ok := p.MaxTimestampOffset(); ok {
			sp.Offset, sp.Timestamp = off, ts
		}
	default:
		if rp.Timestamp < 0 {
			return kerr.InvalidRequest // -4, -5: tiered storage
		}
		off, ts, ok, err := p.OffsetForTime(rp.Timestamp)
		if err != nil {
			c.s.log.Error("kafka offset for time", "topic", t.Name(), "partition", rp.Partition, "ms", rp.Timestamp, "err", err)
			return storageError(err)
		}
		if ok {
			sp.Offset, sp.Timestamp = off, ts
		}
	}
	return nil
}

// checkEpoch fences a client whose metadata is of another life of the store
// (KIP-320). -1 is a client that does not say.
func (s *Server) checkEpoch(current int32) *kerr.Error {
	switch epoch := s.leaderEpoch(); {
	case current < 0 || current == epoch:
		return nil
	case current < epoch:
		return kerr.FencedLeaderEpoch
	}
	return kerr.UnknownLeaderEpoch
}
