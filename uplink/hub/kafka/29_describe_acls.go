package kafka

import (
	"context"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// DescribeAcls (key 29), v1 to v3: always SECURITY_DISABLED, as a broker without an
// authorizer answers. Our rules are a file under the operator's version control and
// not ACLs; but tools ask (MirrorMaker 2), and take this answer for "there are none
// to copy", where a missing API is an error to them.
var describeACLsAPI = api{key: 29, name: "DescribeAcls", min: 1, max: 3, handle: typed(describeACLs)}

func describeACLs(_ context.Context, c *conn, _ *kmsg.DescribeACLsRequest) (kmsg.Response, error) {
	resp := kmsg.NewPtrDescribeACLsResponse()
	resp.ErrorCode = c.fault(29, kerr.SecurityDisabled)
	why := "the hub has no ACLs: rules are in its rules file"
	resp.ErrorMessage = &why
	return resp, nil
}
