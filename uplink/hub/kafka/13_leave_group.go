package kafka

import (
	"context"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// LeaveGroup (key 13), v0 to v4; from v3 several members leave by one request.
var leaveGroupAPI = api{key: 13, name: "LeaveGroup", min: 0, max: 4, handle: typed(leaveGroup)}

func leaveGroup(_ context.Context, c *conn, req *kmsg.LeaveGroupRequest) (kmsg.Response, error) {
	resp := kmsg.NewPtrLeaveGroupResponse()
	if !c.s.allowed(c, OpGroup, req.Group) {
		resp.ErrorCode = c.fault(13, kerr.GroupAuthorizationFailed)
		return resp, nil
	}
	if req.Version < 3 {
		if e := c.s.groups.leave(req.Group, req.MemberID, nil); e != nil {
			resp.ErrorCode = c.fault(13, e)
		}
		return resp, nil
	}
	for _, rm := range req.Members {
		sm := kmsg.NewLeaveGroupResponseMember()
		sm.MemberID, sm.InstanceID = rm.MemberID, rm.InstanceID
		if e := c.s.groups.leave(req.Group, rm.MemberID, rm.InstanceID); e != nil {
			sm.ErrorCode = c.fault(13, e)
		}
		resp.Members = append(resp.Members, sm)
	}
	return resp, nil
}
