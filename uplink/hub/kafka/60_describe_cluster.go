package kafka

import (
	"context"
	"math"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// DescribeCluster (key 60), v0 to v1. One broker, which is the controller too
// for clients that ask brokers; controllers as such (endpoint type 2) are not
// reachable.
var describeClusterAPI = api{key: 60, name: "DescribeCluster", min: 0, max: 1, handle: typed(describeCluster)}

func describeCluster(_ context.Context, c *conn, req *kmsg.DescribeClusterRequest) (kmsg.Response, error) {
	resp := kmsg.NewPtrDescribeClusterResponse()
	resp.ClusterID = c.s.clusterID
	resp.ClusterAuthorizedOperations = math.MinInt32
	resp.EndpointType = 1
	if req.Version >= 1 && req.EndpointType != 1 {
		resp.ErrorCode = c.fault(60, kerr.MismatchedEndpointType)
		resp.EndpointType = req.EndpointType
		return resp, nil
	}
	resp.ControllerID = c.s.cfg.BrokerID
	b := kmsg.NewDescribeClusterResponseBroker()
	b.NodeID = c.s.cfg.BrokerID
	b.Host, b.Port = c.advertised()
	resp.Brokers = append(resp.Brokers, b)
	return resp, nil
}
