package relay

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// MovedOffset is where a consumer group goes on.
type MovedOffset struct {
	Group     string `json:"group"`
	Topic     string `json:"topic"`
	Partition int    `json:"partition"`
	Old       int64  `json:"offset"`
	New       int64  `json:"cluster_offset"`
	Metadata  string `json:"-"`
}

// Translate finds, for each offset, that of the same record in the cluster, or of the first
// behind it that is there; each row goes to seen, too.
func (m *Mover) Translate(ctx context.Context, list []MovedOffset, seen func(MoveRow)) error {
	if m.mine && !m.done { // a commit is answered before its end is seen by readers; a fence waits for that
		if err := m.pr.fence(ctx); err != nil {
			return err
		}
	}
	by := map[string][]*MovedOffset{}
	for i := range list {
		o := &list[i]
		by[sourceKey(o.Topic, o.Partition)] = append(by[sourceKey(o.Topic, o.Partition)], o)
	}
	found := map[*MovedOffset]bool{}
	return m.r.rows(ctx, func(row MoveRow) error {
		if row.Kind != "copy" {
			return nil
		}
		for _, o := range by[sourceKey(row.Topic, row.Partition)] {
			for _, r := range row.Runs {
				if found[o] {
					break
				}
				if o.New = r.New + r.N; r.Old+r.N > o.Old { // else behind all that is there, so far
					o.New, found[o] = r.New+max(0, o.Old-r.Old), true
				}
			}
		}
		if seen != nil {
			seen(row)
		}
		return nil
	})
}

// Commit commits offsets for their groups. It may be done again.
func (m *Mover) Commit(ctx context.Context, list []MovedOffset) error {
	byGroup := map[string]map[string][]MovedOffset{}
	for _, o := range list {
		if byGroup[o.Group] == nil {
			byGroup[o.Group] = map[string][]MovedOffset{}
		}
		byGroup[o.Group][o.Topic] = append(byGroup[o.Group][o.Topic], o)
	}
	for _, group := range slices.Sorted(maps.Keys(byGroup)) {
		req := kmsg.NewPtrOffsetCommitRequest()
		req.Group, req.Generation = group, -1
		for _, topic := range slices.Sorted(maps.Keys(byGroup[group])) {
			rt := kmsg.NewOffsetCommitRequestTopic()
			rt.Topic = topic
			rt.TopicID, _ = m.r.c.leader(part{topic, 0})
			for _, o := range byGroup[group][topic] {
				rp := kmsg.NewOffsetCommitRequestTopicPartition()
				rp.Partition, rp.Offset, rp.LeaderEpoch, rp.Metadata = int32(o.Partition), o.New, -1, kmsg.StringPtr(o.Metadata)
				rt.Partitions = append(rt.Partitions, rp)
			}
			req.Topics = append(req.Topics, rt)
		}
		if err := m.commitGroup(ctx, group, req); err != nil {
			return err
		}
	}
	return nil
}

func (m *Mover) commitGroup(ctx context.Context, group string, req *kmsg.OffsetCommitRequest) error {
	for {
		resp, err := req.RequestWith(ctx, m.r.c.cl)
		if err == nil {
			for _, t := range resp.Topics {
				for _, p := range t.Partitions {
					err = cmp.Or(err, kerr.ErrorForCode(p.ErrorCode))
				}
			}
		}
		switch {
		case err == nil:
			return nil
		case errors.Is(err, kerr.UnknownMemberID):
			return fmt.Errorf("group %q has members on the cluster: stop its consumers first", group)
		case !kerr.IsRetriable(err) || !pause(ctx, 100*time.Millisecond):
			return fmt.Errorf("offsets of group %q: %w", group, err)
		}
	}
}
