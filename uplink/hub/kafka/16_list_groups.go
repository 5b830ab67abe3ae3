package kafka

import (
	"context"
	"slices"
	"strings"

	"github.com/twmb/franz-go/pkg/kmsg"

	"tailrace/storage"
)

// ListGroups (key 16), v0 to v4: groups with members, and those that have
// committed offsets only. Groups the client may not use are left out. v5 (types
// of groups) is left out: there is one.
var listGroupsAPI = api{key: 16, name: "ListGroups", min: 0, max: 4, handle: typed(listGroups)}

func listGroups(_ context.Context, c *conn, req *kmsg.ListGroupsRequest) (kmsg.Response, error) {
	resp := kmsg.NewPtrListGroupsResponse()
	all := make(map[string]kmsg.ListGroupsResponseGroup)
	add := func(id, typ string, state groupState) {
		sg := kmsg.NewListGroupsResponseGroup()
		sg.Group, sg.ProtocolType, sg.GroupState = id, typ, state.String()
		all[id] = sg
	}
	for id := range c.s.groups.known() {
		add(id, "", groupEmpty)
	}
	c.s.groups.mu.Lock()
	for id, g := range c.s.groups.all {
		add(id, g.protocolType, g.state)
	}
	c.s.groups.mu.Unlock()
	for id, sg := range all {
		if c.s.allowed(c, OpGroup, id) && (len(req.StatesFilter) == 0 ||
			slices.ContainsFunc(req.StatesFilter, func(s string) bool { return strings.EqualFold(s, sg.GroupState) })) {
			resp.Groups = append(resp.Groups, sg)
		}
	}
	slices.SortFunc(resp.Groups, func(a, b kmsg.ListGroupsResponseGroup) int { return strings.Compare(a.Group, b.Group) })
	return resp, nil
}

// known are the groups that have committed offsets. It looks through the
// offsets of every group: for tools.
func (gs *groups) known() map[string]bool {
	out := make(map[string]bool)
	gs.s.store.RangeState(storage.KindGroup, func(key string, _ []byte) bool {
		if g, _, ok := parseOffsetKey(key); ok {
			out[g] = true
		}
		return true
	})
	return out
}
