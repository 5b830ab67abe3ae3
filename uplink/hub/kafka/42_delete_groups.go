package kafka

import (
	"context"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"tailrace/storage"
)

// DeleteGroups (key 42), v0 to v2. Forgets the offsets of a group that has no
// members; durable when answered.
var deleteGroupsAPI = api{key: 42, name: "DeleteGroups", min: 0, max: 2, handle: typed(deleteGroups)}

func deleteGroups(ctx context.Context, c *conn, req *kmsg.DeleteGroupsRequest) (kmsg.Response, error) {
	resp := kmsg.NewPtrDeleteGroupsResponse()
	for _, id := range req.Groups {
		sg := kmsg.NewDeleteGroupsResponseGroup()
		sg.Group = id
		if e := c.deleteGroup(ctx, id); e != nil {
			sg.ErrorCode = c.fault(42, e)
		}
		resp.Groups = append(resp.Groups, sg)
	}
	return resp, nil
}

func (c *conn) deleteGroup(ctx context.Context, id string) *kerr.Error {
	gs := c.s.groups
	switch {
	case id == "" || len(id) > maxGroupID:
		return kerr.InvalidGroupID
	case c.s.cfg.ReadOnly || !c.s.allowed(c, OpGroup, id):
		return kerr.GroupAuthorizationFailed
	case gs.active(id):
		return kerr.NonEmptyGroup
	}
	a := c.s.store.NewAppend("")
	gs.s.store.RangeState(storage.KindGroup, func(key string, _ []byte) bool {
		if g, _, ok := parseOffsetKey(key); ok && g == id {
			a.Set(storage.KindGroup, key, nil)
		}
		return true
	})
	if a.Bytes() == 0 {
		return kerr.GroupIDNotFound
	}
	if err := c.s.store.Commit(ctx, a); err != nil {
		c.s.log.Error("kafka delete group", "group", id, "err", err)
		return kerr.CoordinatorNotAvailable
	}
	c.s.log.Info("kafka group deleted", "group", id, "client", c.peer.ClientID, "user", c.peer.User, "remote", c.peer.Remote)
	return nil
}
