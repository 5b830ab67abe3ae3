package kafka

import (
	"context"
	"math"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// DescribeGroups (key 15), v0 to v5. A group without members that has committed
// offsets is Empty, one that nobody knows is Dead, as in Kafka before v6 (which
// answers an error instead and is left out). Authorized operations are not told.
var describeGroupsAPI = api{key: 15, name: "DescribeGroups", min: 0, max: 5, handle: typed(describeGroups)}

func describeGroups(_ context.Context, c *conn, req *kmsg.DescribeGroupsRequest) (kmsg.Response, error) {
	resp := kmsg.NewPtrDescribeGroupsResponse()
	for _, id := range req.Groups {
		if !c.s.allowed(c, OpGroup, id) {
			sg := kmsg.NewDescribeGroupsResponseGroup()
			sg.Group, sg.AuthorizedOperations = id, math.MinInt32
			sg.ErrorCode = c.fault(15, kerr.GroupAuthorizationFailed)
			resp.Groups = append(resp.Groups, sg)
			continue
		}
		sg := c.s.groups.describe(id)
		if sg.State == groupDead && c.s.groups.known()[id] {
			sg.State = groupEmpty.String()
		}
		resp.Groups = append(resp.Groups, sg)
	}
	return resp, nil
}

const groupDead = "Dead" // nobody knows the group

// String is the name that Kafka's tools show.
func (st groupState) String() string {
	return [...]string{groupEmpty: "Empty", groupJoining: "PreparingRebalance", groupSyncing: "CompletingRebalance", groupStable: "Stable"}[st]
}

// describe tells of a group's members.
func (gs *groups) describe(id string) kmsg.DescribeGroupsResponseGroup {
	sg := kmsg.NewDescribeGroupsResponseGroup()
	sg.Group, sg.State, sg.AuthorizedOperations = id, groupDead, math.MinInt32
	gs.mu.Lock()
	defer gs.mu.Unlock()
	g := gs.all[id]
	if g == nil {
		return sg
	}
	sg.State, sg.ProtocolType = g.state.String(), g.protocolType
	if g.state == groupStable {
		sg.Protocol = g.protocol
	}
	for _, m := range g.members {
		sm := kmsg.NewDescribeGroupsResponseGroupMember()
		sm.MemberID, sm.ClientID, sm.ClientHost = m.id, m.clientID, m.clientHost
		if m.instance != "" {
			sm.InstanceID = kmsg.StringPtr(m.instance)
		}
		sm.ProtocolMetadata, sm.MemberAssignment = []byte{}, []byte{} // not nullable
		if g.state == groupStable {
			sm.MemberAssignment = append(sm.MemberAssignment, m.assignment...)
			sm.ProtocolMetadata = m.metadata(g.protocol)
		}
		sg.Members = append(sg.Members, sm)
	}
	return sg
}
