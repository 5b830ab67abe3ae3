package kafka

import (
	"context"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"tailrace/storage"
)

// OffsetForLeaderEpoch (key 23), v2 to v4. A consumer that had read in an
// earlier epoch of the store asks where that epoch ended, and learns whether
// what it has read was cut off since.
var offsetForLeaderEpochAPI = api{key: 23, name: "OffsetForLeaderEpoch", min: 2, max: 4, handle: typed(offsetForLeaderEpoch)}

func offsetForLeaderEpoch(_ context.Context, c *conn, req *kmsg.OffsetForLeaderEpochRequest) (kmsg.Response, error) {
	resp := kmsg.NewPtrOffsetForLeaderEpochResponse()
	for _, rt := range req.Topics {
		st := kmsg.NewOffsetForLeaderEpochResponseTopic()
		st.Topic = rt.Topic
		t, terr := c.topic(rt.Topic, OpDescribe, false)
		for _, rp := range rt.Partitions {
			sp := kmsg.NewOffsetForLeaderEpochResponseTopicPartition()
			sp.Partition, sp.LeaderEpoch, sp.EndOffset = rp.Partition, -1, -1
			e := terr
			var p *storage.Partition
			if e == nil {
				if p = t.Partition(int(rp.Partition)); p == nil {
					e = kerr.UnknownTopicOrPartition
				} else {
					e = c.s.checkEpoch(rp.CurrentLeaderEpoch)
				}
			}
			if e != nil {
				sp.ErrorCode = c.fault(23, e)
			} else if rp.LeaderEpoch >= 0 && rp.LeaderEpoch <= c.s.leaderEpoch() {
				sp.LeaderEpoch, sp.EndOffset = rp.LeaderEpoch, c.s.epochEnd(p, rp.LeaderEpoch)
			}
			st.Partitions = append(st.Partitions, sp)
		}
		resp.Topics = append(resp.Topics, st)
	}
	return resp, nil
}

// leaderEpoch is the store's epoch now. It rises while the hub runs when records are
// found to have been lost (storage.RaiseEpoch).
func (s *Server) leaderEpoch() int32 { return max(s.store.EpochNumber(), 1) }

// epochEnd is the offset that follows the last record of an epoch which is still
// there: the least at which a later epoch began. A consumer may have slept through
// several, and several may have begun between two requests: the store remembers all.
func (s *Server) epochEnd(p *storage.Partition, epoch int32) int64 {
	end := p.HighWatermark()
	for _, e := range s.store.Epochs() {
		if e.Number > epoch {
			end = min(end, e.ForkAt[p.ID()]) // not there: the partition had no record when it began
		}
	}
	return end
}
