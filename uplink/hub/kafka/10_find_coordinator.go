package kafka

import (
	"context"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// FindCoordinator (key 10), v0 to v3. This broker coordinates every group. v0
// must be there: librdkafka before 2.11.1 takes its absence for a broker
// without groups or lz4. Transactions have no coordinator: error 42, which
// clients take as final and show with its message. The batched v4 is left out.
var findCoordinatorAPI = api{key: 10, name: "FindCoordinator", min: 0, max: 3, handle: typed(findCoordinator)}

func findCoordinator(_ context.Context, c *conn, req *kmsg.FindCoordinatorRequest) (kmsg.Response, error) {
	resp := kmsg.NewPtrFindCoordinatorResponse()
	resp.NodeID, resp.Port = -1, -1
	switch {
	case req.Version >= 1 && req.CoordinatorType != 0:
		resp.ErrorCode = c.fault(10, kerr.InvalidRequest)
		resp.ErrorMessage = kmsg.StringPtr(noTransactions)
	case !c.s.allowed(c, OpGroup, req.CoordinatorKey):
		resp.ErrorCode = c.fault(10, kerr.GroupAuthorizationFailed)
	default:
		resp.NodeID = c.s.cfg.BrokerID
		resp.Host, resp.Port = c.advertised()
	}
	return resp, nil
}
