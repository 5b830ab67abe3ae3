package kafka

import (
	"context"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// SyncGroup (key 14), v0 to v5. Followers wait for the leader's assignment.
var syncGroupAPI = api{key: 14, name: "SyncGroup", min: 0, max: 5, handle: typed(syncGroup)}

func syncGroup(ctx context.Context, c *conn, req *kmsg.SyncGroupRequest) (kmsg.Response, error) {
	if !c.s.allowed(c, OpGroup, req.Group) {
		return syncError(kerr.GroupAuthorizationFailed), nil
	}
	ch, resp := c.s.groups.sync(req)
	if resp == nil {
		select {
		case resp = <-ch:
		case <-ctx.Done():
			return nil, errGone
		}
	}
	c.faultCode(14, resp.ErrorCode)
	return resp, nil
}
