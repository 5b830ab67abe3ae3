package kafka

import (
	"context"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// JoinGroup (key 11), v0 to v7. The answer waits until the generation is
// complete. From v4 a new member is given its id first (KIP-394). A static
// member (v5) that comes back under a new id takes its place with a rebalance,
// where Kafka would sometimes do without. v8 and v9 (reason, skip assignment)
// are left out.
var joinGroupAPI = api{key: 11, name: "JoinGroup", min: 0, max: 7, handle: typed(joinGroup)}

func joinGroup(ctx context.Context, c *conn, req *kmsg.JoinGroupRequest) (kmsg.Response, error) {
	if !c.s.allowed(c, OpGroup, req.Group) {
		return c.joinReply(joinError(kerr.GroupAuthorizationFailed, req.MemberID)), nil
	}
	ch, resp := c.s.groups.join(c, req)
	if resp != nil {
		return c.joinReply(resp), nil
	}
	select {
	case resp = <-ch:
		return c.joinReply(resp), nil
	case <-ctx.Done():
		return nil, errGone
	}
}

func (c *conn) joinReply(resp *kmsg.JoinGroupResponse) kmsg.Response {
	c.faultCode(11, resp.ErrorCode)
	return resp
}

// faultCode counts an error code that an answer carries.
func (c *conn) faultCode(key, code int16) {
	if e, ok := kerr.ErrorForCode(code).(*kerr.Error); ok {
		c.fault(key, e)
	}
}
