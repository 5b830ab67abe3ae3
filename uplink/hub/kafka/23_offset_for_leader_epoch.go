package kafka

import (
	"context"
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"tailrace/storage"
)

// OffsetForLeaderEpoch (key 23), v2 to v4. A consumer that had read in an
// earlier epoch of the store asks where that epoch ended, and learns whether
// what it has read was cut off since.
var offsetForLeaderEpochAPI = api{key: 23, name: "OffsetForLeaderEpoch", min: 2, max: 4, handle: typed(offsetForLeaderEpoch)}

func offsetForLeaderEpoch(_ context.Context, c *conn, req *kmsg.OffsetForLeaderEpochRequest) (kmsg.Response, error) {
	resp := kmsg.NewPtrOffsetForLeaderEpochResponse()
	for _, rt := range req.Topics {
		st := kmsg.NewOffsetForLeaderEpochResponseTopic()
		st.Topic = rt.Topic
		t, terr := c.topic(rt.Topic, OpDescribe, false)
		for _, rp := range rt.Partitions {
			sp := kmsg.NewOffsetForLeaderEpochResponseTopicPartition()
			sp.Partition, sp.LeaderEpoch, sp.EndOffset = rp.Partition, -1, -1
			e := terr
			var p *storage.Partition
			if e == nil {
				if p = t.Partition(int(rp.Partition)); p == nil {
					e = kerr.UnknownTopicOrPartition
				} else {
					e = c.s.checkEpoch(rp.CurrentLeaderEpoch)
				}
			}
			if e != nil {
				sp.ErrorCode = c.fault(23, e)
			} else if rp.LeaderEpoch >= 0 && rp.LeaderEpoch <= c.s.leaderEpoch() {
				sp.LeaderEpoch, sp.EndOffset = rp.LeaderEpoch, c.s.epochEnd(p, rp.LeaderEpoch)
			}
			st.Partitions = append(st.Partitions, sp)
		}
		resp.Topics = append(resp.Topics, st)
	}
	return resp, nil
}

// The store tells where its current epoch began. What earlier ones told is kept
// here (StateKind KindGroup of the default class), since a consumer may have
// slept through several.
//
//	key    "epoch/" number (decimal)
//	value  for each partition that had records: id (4), first offset of the epoch (8); big endian
const epochPrefix = "epoch/"

// forks is where an epoch began, by partition; none is 0.
type forks map[storage.PartitionID]int64

// leaderEpoch is the store's epoch now. It rises while the hub runs when records are
// found to have been lost (storage.RaiseEpoch).
func (s *Server) leaderEpoch() int32 {
	epoch := max(s.store.EpochNumber(), 1)
	s.epochMu.RLock()
	known := s.epoch
	s.epochMu.RUnlock()
	if epoch != known {
		if err := s.loadEpochs(); err != nil {
			s.log.Error("the begin of the new epoch is not kept", "epoch", epoch, "error", err)
		}
	}
	return epoch
}

// loadEpochs reads what is known of every epoch and keeps what the store says of
// this one.
func (s *Server) loadEpochs() error {
	s.epochMu.Lock()
	defer s.epochMu.Unlock()
	now := s.store.Identity().Epoch
	s.epoch = max(now.Number, 1)
	s.epochs = make(map[int32]forks)
	s.store.RangeState(storage.KindGroup, func(key string, v []byte) bool {
		num, ok := strings.CutPrefix(key, epochPrefix)
		n, err := strconv.ParseInt(num, 10, 32)
		if !ok || err != nil {
			return true
		}
		f := make(forks)
		for ; len(v) >= 12; v = v[12:] {
			f[storage.PartitionID(binary.BigEndian.Uint32(v))] = int64(binary.BigEndian.Uint64(v[4:]))
		}
		s.epochs[int32(n)] = f
		return true
	})
	if _, ok := s.epochs[s.epoch]; ok || len(now.ForkAt) == 0 {
		s.epochs[s.epoch] = now.ForkAt
		return nil
	}
	s.epochs[s.epoch] = now.ForkAt
	var v []byte
	for id, off := range now.ForkAt {
		v = binary.BigEndian.AppendUint32(v, uint32(id))
		v = binary.BigEndian.AppendUint64(v, uint64(off))
	}
	a := s.store.NewAppend("")
	a.Set(storage.KindGroup, epochPrefix+strconv.Itoa(int(s.epoch)), v)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := s.store.Commit(ctx, a); err != nil {
		return fmt.Errorf("kafka: keep epoch %d: %w", s.epoch, err)
	}
	return nil
}

// epochEnd is the offset that follows the last record of an epoch which is still
// there: the least at which a later epoch began.
func (s *Server) epochEnd(p *storage.Partition, epoch int32) int64 {
	end := p.HighWatermark()
	s.epochMu.RLock()
	defer s.epochMu.RUnlock()
	for n, f := range s.epochs {
		if n > epoch {
			end = min(end, f[p.ID()])
		}
	}
	return end
}
