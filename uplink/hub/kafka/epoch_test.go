package kafka_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// consumed polls until it has n records, and returns their values, offsets and epochs, and
// what the client says of lost data.
func consumed(t *testing.T, cl *kgo.Client, n int) (recs []*kgo.Record, lost []*kgo.ErrDataLoss) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	for len(recs) < n {
		fs := cl.PollFetches(ctx)
		if ctx.Err() != nil {
			t.Fatalf("%d records of %d within a minute, %d reports of lost data", len(recs), n, len(lost))
		}
		fs.EachError(func(topic string, p int32, err error) {
			var loss *kgo.ErrDataLoss
			if !errors.As(err, &loss) {
				t.Fatalf("%s/%d: %v", topic, p, err)
			}
			lost = append(lost, loss)
		})
		fs.EachRecord(func(r *kgo.Record) { recs = append(recs, r) })
	}
	return recs, lost
}

// The hub raises its leader epoch while consumers read: records that it had held are not
// there any more. A real consumer that had read only what is still there goes on without a
// loss and without a double; one that had read further learns where the log was cut and
// reads from there, and is told so.
func TestLeaderEpochIsRaisedUnderConsumers(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir)
	h := serve(t, s)
	p := h.topic("wind", 1).Partition(0)
	h.fill(p, 0, 100, 10, false)
	opts := func(at int64, epoch int32) []kgo.Opt {
		return []kgo.Opt{kgo.MetadataMinAge(20 * time.Millisecond), kgo.MetadataMaxAge(time.Second), kgo.FetchMaxWait(100 * time.Millisecond),
			kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{"wind": {0: kgo.NewOffset().At(at).WithEpoch(epoch)}})}
	}
	follower := h.client(opts(0, 1)...)
	recs, lost := consumed(t, follower, 100)
	if len(lost) > 0 || recs[99].LeaderEpoch != 1 {
		t.Fatalf("before: lost %v, epoch %d", lost, recs[99].LeaderEpoch)
	}

	// Twice: who slept through one epoch must find the first cut, not the last.
	h.must(s.RaiseEpoch(4))
	h.fill(p, 100, 50, 10, false)
	h.must(s.RaiseEpoch(7))
	h.fill(p, 150, 50, 10, false)

	recs, lost = consumed(t, follower, 100)
	for i, r := range recs {
		want := int32(4)
		if i >= 50 {
			want = 7
		}
		if r.Offset != int64(100+i) || string(r.Value) != fmt.Sprintf("v%d", 100+i) || r.LeaderEpoch != want {
			t.Fatalf("record %d is %q at %d of epoch %d, want epoch %d", i, r.Value, r.Offset, r.LeaderEpoch, want)
		}
	}
	if len(lost) > 0 || len(recs) != 100 {
		t.Errorf("%d records, lost %v", len(recs), lost)
	}

	// These had read records of the state that was lost: to 130 in epoch 1, to 180 in epoch 4.
	ends := func(when string) {
		for _, c := range []struct {
			at    int64
			epoch int32
			cut   int64
		}{{130, 1, 100}, {180, 4, 150}} {
			cl := h.client(opts(c.at, c.epoch)...)
			recs, lost := consumed(t, cl, int(200-c.cut))
			if recs[0].Offset != c.cut || recs[len(recs)-1].Offset != 199 || len(recs) != int(200-c.cut) {
				t.Errorf("%s, at %d of epoch %d: got [%d,%d], %d records, want from %d", when, c.at, c.epoch, recs[0].Offset, recs[len(recs)-1].Offset, len(recs), c.cut)
			}
			if len(lost) != 1 || lost[0].ConsumedTo != c.at || lost[0].ResetTo != c.cut {
				t.Errorf("%s, at %d of epoch %d: told of lost data %+v, want %d to %d", when, c.at, c.epoch, lost, c.at, c.cut)
			}
			cl.Close()
		}
		r := h.raw()
		for epoch, want := range map[int32]int64{1: 100, 2: 100, 3: 100, 4: 150, 6: 150, 7: 200} {
			req := sample(23, 4, p.Topic().ID()).(*kmsg.OffsetForLeaderEpochRequest)
			req.Topics[0].Partitions[0].CurrentLeaderEpoch, req.Topics[0].Partitions[0].LeaderEpoch = -1, epoch
			if got := ask[*kmsg.OffsetForLeaderEpochResponse](r, req, 4).Topics[0].Partitions[0]; got.ErrorCode != 0 || got.EndOffset != want {
				t.Errorf("%s, end of epoch %d: %+v, want %d", when, epoch, got, want)
			}
		}
	}
	ends("running")
	h.stop()
	h.must(s.Close())
	s = openStore(t, dir)
	tp, _ := s.Topic("wind")
	p = tp.Partition(0)
	h = serve(t, s)
	ends("after a restart")
}

func (h *hub) must(err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatal(err)
	}
}
