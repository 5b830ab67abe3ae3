package kafka

import (
	"context"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// Heartbeat (key 12), v0 to v4. It begins the member's session anew and tells
// it to join again while a generation is being formed.
var heartbeatAPI = api{key: 12, name: "Heartbeat", min: 0, max: 4, handle: typed(heartbeat)}

func heartbeat(_ context.Context, c *conn, req *kmsg.HeartbeatRequest) (kmsg.Response, error) {
	resp := kmsg.NewPtrHeartbeatResponse()
	if !c.s.allowed(c, OpGroup, req.Group) {
		resp.ErrorCode = c.fault(12, kerr.GroupAuthorizationFailed)
	} else if e := c.s.groups.heartbeat(req); e != nil {
		resp.ErrorCode = c.fault(12, e)
	}
	return resp, nil
}
