package kafka

import (
	"cmp"
	"context"
	"slices"
	"strings"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// OffsetFetch (key 9), v1 to v7. Offset -1 is none. A null list of topics (v2)
// asks for all. RequireStable (v7) is always true here. The batched v8 is left
// out.
var offsetFetchAPI = api{key: 9, name: "OffsetFetch", min: 1, max: 7, handle: typed(offsetFetch)}

func offsetFetch(_ context.Context, c *conn, req *kmsg.OffsetFetchRequest) (kmsg.Response, error) {
	gs := c.s.groups
	resp := kmsg.NewPtrOffsetFetchResponse()
	if !c.s.allowed(c, OpGroup, req.Group) {
		resp.ErrorCode = c.fault(9, kerr.GroupAuthorizationFailed)
		for _, rt := range req.Topics { // v1 has the code in each partition only
			st := kmsg.NewOffsetFetchResponseTopic()
			st.Topic = rt.Topic
			for _, i := range rt.Partitions {
				st.Partitions = append(st.Partitions, offsetFetchPart(i, committed{}, false, resp.ErrorCode))
			}
			resp.Topics = append(resp.Topics, st)
		}
		return resp, nil
	}
	if req.Topics == nil {
		resp.Topics = c.allOffsets(req.Group)
		return resp, nil
	}
	for _, rt := range req.Topics {
		st := kmsg.NewOffsetFetchResponseTopic()
		st.Topic = rt.Topic
		t, _ := c.topic(rt.Topic, OpDescribe, false)
		for _, i := range rt.Partitions {
			var o committed
			ok := false
			if t != nil {
				if p := t.Partition(int(i)); p != nil {
					o, ok = gs.offset(req.Group, p.ID())
				}
			}
			st.Partitions = append(st.Partitions, offsetFetchPart(i, o, ok, 0))
		}
		resp.Topics = append(resp.Topics, st)
	}
	return resp, nil
}

func (c *conn) allOffsets(group string) []kmsg.OffsetFetchResponseTopic {
	byTopic := make(map[string]*kmsg.OffsetFetchResponseTopic)
	for p, o := range c.s.groups.offsets(group) {
		name := p.Topic().Name()
		if !c.s.allowed(c, OpDescribe, name) {
			continue
		}
		st := byTopic[name]
		if st == nil {
			t := kmsg.NewOffsetFetchResponseTopic()
			t.Topic = name
			st = &t
			byTopic[name] = st
		}
		st.Partitions = append(st.Partitions, offsetFetchPart(int32(p.Index()), o, true, 0))
	}
	out := []kmsg.OffsetFetchResponseTopic{}
	for _, st := range byTopic {
		slices.SortFunc(st.Partitions, func(a, b kmsg.OffsetFetchResponseTopicPartition) int { return cmp.Compare(a.Partition, b.Partition) })
		out = append(out, *st)
	}
	slices.SortFunc(out, func(a, b kmsg.OffsetFetchResponseTopic) int { return strings.Compare(a.Topic, b.Topic) })
	return out
}

func offsetFetchPart(index int32, o committed, ok bool, code int16) kmsg.OffsetFetchResponseTopicPartition {
	sp := kmsg.NewOffsetFetchResponseTopicPartition()
	sp.Partition, sp.ErrorCode = index, code
	sp.Offset, sp.LeaderEpoch, sp.Metadata = -1, -1, kmsg.StringPtr("")
	if ok {
		sp.Offset, sp.LeaderEpoch, sp.Metadata = o.offset, o.epoch, &o.metadata
	}
	return sp
}

func hasNul(s string) bool { return strings.IndexByte(s, 0) >= 0 }
