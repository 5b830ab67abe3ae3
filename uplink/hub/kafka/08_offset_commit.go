package kafka

import (
	"context"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"tailrace/storage"
)

// OffsetCommit (key 8), v2 to v8. Durable when answered. A client outside any
// generation (generation -1) may commit for a group that has no members.
// Retention times of the request (v2 to v4) are not used.
var offsetCommitAPI = api{key: 8, name: "OffsetCommit", min: 2, max: 8, handle: typed(offsetCommit)}

func offsetCommit(ctx context.Context, c *conn, req *kmsg.OffsetCommitRequest) (kmsg.Response, error) {
	gs := c.s.groups
	resp := kmsg.NewPtrOffsetCommitResponse()
	whole := gs.mayCommit(c, req)
	a := c.s.store.NewAppend("")
	now := c.s.cfg.Now().UnixMilli()
	for _, rt := range req.Topics {
		st := kmsg.NewOffsetCommitResponseTopic()
		st.Topic = rt.Topic
		t, terr := c.topic(rt.Topic, OpRead, false)
		for _, rp := range rt.Partitions {
			sp := kmsg.NewOffsetCommitResponseTopicPartition()
			sp.Partition = rp.Partition
			e := whole
			if e == nil {
				e = terr
			}
			var p *storage.Partition
			if e == nil {
				if p = t.Partition(int(rp.Partition)); p == nil {
					e = kerr.UnknownTopicOrPartition
				} else if len(deref(rp.Metadata)) > maxOffsetMetadata {
					e = kerr.OffsetMetadataTooLarge
				}
			}
			if e == nil {
				o := committed{offset: rp.Offset, epoch: rp.LeaderEpoch, at: now, metadata: deref(rp.Metadata)}
				a.Set(storage.KindGroup, offsetKey(req.Group, p.ID()), o.encode())
			} else {
				sp.ErrorCode = c.fault(8, e)
			}
			st.Partitions = append(st.Partitions, sp)
		}
		resp.Topics = append(resp.Topics, st)
	}
	if a.Bytes() == 0 { // Len does not count state
		return resp, nil
	}
	if err := c.s.store.Commit(ctx, a); err != nil {
		if ctx.Err() != nil {
			return nil, errGone
		}
		c.s.log.Error("kafka offset commit", "group", req.Group, "err", err)
		for i := range resp.Topics {
			for j := range resp.Topics[i].Partitions {
				if sp := &resp.Topics[i].Partitions[j]; sp.ErrorCode == 0 {
					sp.ErrorCode = c.fault(8, kerr.CoordinatorNotAvailable)
				}
			}
		}
	}
	return resp, nil
}

// mayCommit tells why the sender may not commit for the group.
func (gs *groups) mayCommit(c *conn, req *kmsg.OffsetCommitRequest) *kerr.Error {
	if req.Group == "" || len(req.Group) > maxGroupID || hasNul(req.Group) {
		return kerr.InvalidGroupID
	}
	if !gs.s.allowed(c, OpGroup, req.Group) {
		return kerr.GroupAuthorizationFailed
	}
	gs.mu.Lock()
	defer gs.mu.Unlock()
	g := gs.all[req.Group]
	if req.Generation < 0 {
		if g != nil && len(g.members) > 0 {
			return kerr.UnknownMemberID
		}
		return nil
	}
	if g == nil {
		return kerr.IllegalGeneration
	}
	g, m, e := gs.find(req.Group, req.MemberID, req.InstanceID, req.Generation)
	if e != nil {
		return e
	}
	m.touch(g)
	if g.state == groupSyncing {
		return kerr.RebalanceInProgress
	}
	return nil
}
