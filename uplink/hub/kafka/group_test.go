package kafka_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"tailrace/uplink/hub/kafka"
)

func joinRequest(group, member string) *kmsg.JoinGroupRequest {
	req := kmsg.NewPtrJoinGroupRequest()
	req.Group, req.MemberID, req.ProtocolType = group, member, "consumer"
	req.SessionTimeoutMillis, req.RebalanceTimeoutMillis = 10_000, 10_000
	p := kmsg.NewJoinGroupRequestProtocol()
	p.Name, p.Metadata = "range", []byte("meta")
	req.Protocols = append(req.Protocols, p)
	return req
}

// enter joins as a client of the version does, the given-out id included.
func enter(r *raw, req *kmsg.JoinGroupRequest, version int16) *kmsg.JoinGroupResponse {
	r.t.Helper()
	resp := ask[*kmsg.JoinGroupResponse](r, req, version)
	if resp.ErrorCode == kerr.MemberIDRequired.Code {
		req.MemberID = resp.MemberID
		resp = ask[*kmsg.JoinGroupResponse](r, req, version)
	}
	if resp.ErrorCode != 0 {
		r.t.Fatalf("join v%d: %v", version, kerr.ErrorForCode(resp.ErrorCode))
	}
	return resp
}

func syncRequest(group, member string, generation int32, assignment string) *kmsg.SyncGroupRequest {
	req := kmsg.NewPtrSyncGroupRequest()
	req.Group, req.MemberID, req.Generation = group, member, generation
	if assignment != "" {
		a := kmsg.NewSyncGroupRequestGroupAssignment()
		a.MemberID, a.MemberAssignment = member, []byte(assignment)
		req.GroupAssignment = append(req.GroupAssignment, a)
	}
	return req
}

func TestEveryGroupVersionMakesOneRound(t *testing.T) {
	h := newHub(t)
	vs := kafka.Versions()
	for v := range vs[11][1] + 1 {
		r := h.raw()
		group := fmt.Sprint("g", v)
		j := enter(r, joinRequest(group, ""), v)
		if j.Generation != 1 || j.LeaderID != j.MemberID || len(j.Members) != 1 || *j.Protocol != "range" || string(j.Members[0].ProtocolMetadata) != "meta" {
			t.Fatalf("v%d: %+v", v, j)
		}
		s := ask[*kmsg.SyncGroupResponse](r, syncRequest(group, j.MemberID, 1, "mine"), min(v, vs[14][1]))
		if s.ErrorCode != 0 || string(s.MemberAssignment) != "mine" {
			t.Fatalf("v%d: %+v", v, s)
		}
		hb := kmsg.NewPtrHeartbeatRequest()
		hb.Group, hb.MemberID, hb.Generation = group, j.MemberID, 1
		if got := ask[*kmsg.HeartbeatResponse](r, hb, min(v, vs[12][1])); got.ErrorCode != 0 {
			t.Fatalf("v%d: heartbeat %v", v, kerr.ErrorForCode(got.ErrorCode))
		}
		hb.Generation = 7
		if got := ask[*kmsg.HeartbeatResponse](r, hb, min(v, vs[12][1])); got.ErrorCode != kerr.IllegalGeneration.Code {
			t.Fatalf("v%d: heartbeat of another generation: %v", v, kerr.ErrorForCode(got.ErrorCode))
		}
		lv := kmsg.NewPtrLeaveGroupRequest()
		lv.Group, lv.MemberID = group, j.MemberID
		m := kmsg.NewLeaveGroupRequestMember()
		m.MemberID = j.MemberID
		lv.Members = append(lv.Members, m)
		got := ask[*kmsg.LeaveGroupResponse](r, lv, min(v, vs[13][1]))
		if got.ErrorCode != 0 || len(got.Members) > 0 && got.Members[0].ErrorCode != 0 {
			t.Fatalf("v%d: leave %+v", v, got)
		}
		hb.Generation = 1
		if got := ask[*kmsg.HeartbeatResponse](r, hb, min(v, vs[12][1])); got.ErrorCode != kerr.UnknownMemberID.Code {
			t.Fatalf("v%d: heartbeat after leaving: %v", v, kerr.ErrorForCode(got.ErrorCode))
		}
	}
}

func TestSecondMemberMakesTheFirstJoinAgain(t *testing.T) {
	h := newHub(t)
	a, b := h.raw(), h.raw()
	first := enter(a, joinRequest("g", ""), 5)
	ask[*kmsg.SyncGroupResponse](a, syncRequest("g", first.MemberID, 1, "all"), 3)

	req := joinRequest("g", "")
	id := ask[*kmsg.JoinGroupResponse](b, req, 5)
	if id.ErrorCode != kerr.MemberIDRequired.Code || id.MemberID == "" {
		t.Fatalf("%+v", id)
	}
	req.MemberID = id.MemberID
	req.SetVersion(5)
	b.send(req)
	hb := kmsg.NewPtrHeartbeatRequest()
	hb.Group, hb.MemberID, hb.Generation = "g", first.MemberID, 1
	deadline := time.Now().Add(10 * time.Second)
	for ask[*kmsg.HeartbeatResponse](a, hb, 3).ErrorCode != kerr.RebalanceInProgress.Code {
		if time.Now().After(deadline) {
			t.Fatal("the first member is not told")
		}
	}
	again := enter(a, joinRequest("g", first.MemberID), 5)
	second := b.receive(req, b.id).(*kmsg.JoinGroupResponse)
	if again.Generation != 2 || second.Generation != 2 || again.LeaderID != first.MemberID || second.LeaderID != first.MemberID || len(again.Members) != 2 || len(second.Members) != 0 {
		t.Fatalf("%+v\n%+v", again, second)
	}
	// The follower waits for the leader's assignment.
	fs := syncRequest("g", second.MemberID, 2, "")
	fs.SetVersion(3)
	b.send(fs)
	ls := syncRequest("g", first.MemberID, 2, "one")
	as := kmsg.NewSyncGroupRequestGroupAssignment()
	as.MemberID, as.MemberAssignment = second.MemberID, []byte("two")
	ls.GroupAssignment = append(ls.GroupAssignment, as)
	if got := ask[*kmsg.SyncGroupResponse](a, ls, 3); string(got.MemberAssignment) != "one" {
		t.Fatalf("%+v", got)
	}
	if got := b.receive(fs, b.id).(*kmsg.SyncGroupResponse); string(got.MemberAssignment) != "two" {
		t.Fatalf("%+v", got)
	}
}

func TestSilentMemberExpires(t *testing.T) {
	h := newHub(t)
	r := h.raw()
	req := joinRequest("g", "")
	req.SessionTimeoutMillis, req.RebalanceTimeoutMillis = 1000, 1000
	j := enter(r, req, 5)
	ask[*kmsg.SyncGroupResponse](r, syncRequest("g", j.MemberID, 1, "x"), 3)
	// Another waits to join; it gets in when the silent one is out.
	start := time.Now()
	j2 := enter(h.raw(), joinRequest("g", ""), 5)
	if j2.LeaderID != j2.MemberID || len(j2.Members) != 1 || time.Since(start) > 8*time.Second {
		t.Fatalf("%+v after %v", j2, time.Since(start))
	}
}

func TestStaticMemberIsFencedByItsSuccessor(t *testing.T) {
	h := newHub(t)
	a, b := h.raw(), h.raw()
	req := joinRequest("g", "")
	req.InstanceID = kmsg.StringPtr("pump")
	first := enter(a, req, 5)
	ask[*kmsg.SyncGroupResponse](a, syncRequest("g", first.MemberID, 1, "x"), 3)
	req = joinRequest("g", "")
	req.InstanceID = kmsg.StringPtr("pump")
	second := enter(b, req, 5)
	if second.MemberID == first.MemberID || len(second.Members) != 1 {
		t.Fatalf("%+v", second)
	}
	hb := kmsg.NewPtrHeartbeatRequest()
	hb.Group, hb.MemberID, hb.InstanceID, hb.Generation = "g", first.MemberID, kmsg.StringPtr("pump"), 1
	if got := ask[*kmsg.HeartbeatResponse](a, hb, 3); got.ErrorCode != kerr.FencedInstanceID.Code {
		t.Fatalf("%v", kerr.ErrorForCode(got.ErrorCode))
	}
}

func TestGroupRefusals(t *testing.T) {
	h := newHub(t, func(c *kafka.Config) { c.MaxGroups, c.MaxGroupMembers = 2, 1 })
	r := h.raw()
	enter(r, joinRequest("g", ""), 5)
	short := joinRequest("x", "")
	short.SessionTimeoutMillis = 10
	empty := joinRequest("x", "")
	empty.Protocols = nil
	other := joinRequest("g", "")
	other.Protocols[0].Name = "sticky"
	for _, c := range []struct {
		what string
		req  *kmsg.JoinGroupRequest
		want *kerr.Error
	}{
		{"no group id", joinRequest("", ""), kerr.InvalidGroupID},
		{"nul in the id", joinRequest("a\x00b", ""), kerr.InvalidGroupID},
		{"session too short", short, kerr.InvalidSessionTimeout},
		{"no protocol", empty, kerr.InconsistentGroupProtocol},
		{"a protocol the others do not speak", other, kerr.InconsistentGroupProtocol},
		{"unknown member", joinRequest("g", "someone"), kerr.UnknownMemberID},
		{"too many members", joinRequest("g", ""), kerr.GroupMaxSizeReached},
	} {
		if got := ask[*kmsg.JoinGroupResponse](h.raw(), c.req, 5); got.ErrorCode != c.want.Code {
			t.Errorf("%s: %v", c.what, kerr.ErrorForCode(got.ErrorCode))
		}
	}
	enter(h.raw(), joinRequest("g2", ""), 5)
	if got := ask[*kmsg.JoinGroupResponse](h.raw(), joinRequest("g3", ""), 5); got.ErrorCode != kerr.CoordinatorNotAvailable.Code {
		t.Errorf("too many groups: %v", kerr.ErrorForCode(got.ErrorCode))
	}
}

func TestOffsetsSurviveARestart(t *testing.T) {
	dir := t.TempDir()
	store := openStore(t, dir)
	h := serve(t, store)
	h.topic("wind", 2)
	commit := sample(8, 8, [16]byte{}).(*kmsg.OffsetCommitRequest)
	commit.Topics[0].Partitions[0].Offset = 1234
	for _, c := range codes(ask[*kmsg.OffsetCommitResponse](h.raw(), commit, 8)) {
		if c != 0 {
			t.Fatal(kerr.ErrorForCode(c))
		}
	}
	h.stop()
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	store = openStore(t, dir)
	h = serve(t, store)
	fetch := kmsg.NewPtrOffsetFetchRequest()
	fetch.Group = "g" // Topics nil: all
	got := ask[*kmsg.OffsetFetchResponse](h.raw(), fetch, 7)
	if len(got.Topics) != 1 || len(got.Topics[0].Partitions) != 1 || got.Topics[0].Partitions[0].Offset != 1234 || *got.Topics[0].Partitions[0].Metadata != "m" {
		t.Fatalf("%+v", got)
	}
	if err := h.srv.Expire(context.Background()); err != nil {
		t.Fatal(err)
	}
	if got := ask[*kmsg.OffsetFetchResponse](h.raw(), fetch, 7); len(got.Topics) != 1 {
		t.Fatal("a fresh offset has expired")
	}
	// A new topic of the same name has no offsets.
	if err := store.DeleteTopic("wind"); err != nil {
		t.Fatal(err)
	}
	h.topic("wind", 2)
	if got := ask[*kmsg.OffsetFetchResponse](h.raw(), sample(9, 7, [16]byte{}), 7).Topics[0].Partitions[0]; got.Offset != -1 {
		t.Fatalf("offset %d of the deleted topic", got.Offset)
	}
}

func TestOldOffsetsExpire(t *testing.T) {
	var now time.Time = time.Now()
	var mu sync.Mutex
	h := newHub(t, func(c *kafka.Config) {
		c.Now = func() time.Time { mu.Lock(); defer mu.Unlock(); return now }
	})
	h.topic("wind", 1)
	ask[*kmsg.OffsetCommitResponse](h.raw(), sample(8, 8, [16]byte{}), 8)
	mu.Lock()
	now = now.Add(8 * 24 * time.Hour)
	mu.Unlock()
	if err := h.srv.Expire(context.Background()); err != nil {
		t.Fatal(err)
	}
	if got := ask[*kmsg.OffsetFetchResponse](h.raw(), sample(9, 7, [16]byte{}), 7).Topics[0].Partitions[0]; got.Offset != -1 {
		t.Fatalf("offset %d", got.Offset)
	}
}

// Every record goes to exactly one member, through a second member's arrival
// and the first one's leaving; what is committed is not read again.
func TestFranzGoGroupSharesThePartitions(t *testing.T) {
	h := newHub(t)
	tp := h.topic("wind", 6)
	for _, p := range tp.Partitions() {
		h.fill(p, 0, 500, 50, true)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 40*time.Second)
	defer cancel()
	var mu sync.Mutex
	seen := map[string]int{}
	total := 0
	grown := make(chan struct{}, 1) // total has
	start := func() (*kgo.Client, chan struct{}) {
		cl := h.client(kgo.ConsumerGroup("g"), kgo.ConsumeTopics("wind"), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
			kgo.Balancers(kgo.CooperativeStickyBalancer()), kgo.DisableAutoCommit(), kgo.HeartbeatInterval(50*time.Millisecond), kgo.BlockRebalanceOnPoll())
		done := make(chan struct{})
		go func() {
			defer close(done)
			for {
				fs := cl.PollRecords(ctx, 200)
				if fs.IsClientClosed() || ctx.Err() != nil {
					return
				}
				mu.Lock()
				fs.EachRecord(func(r *kgo.Record) {
					seen[fmt.Sprint(r.Partition, "/", r.Offset)]++
				})
				mu.Unlock()
				if err := cl.CommitUncommittedOffsets(ctx); err != nil && ctx.Err() == nil {
					t.Errorf("commit: %v", err)
				}
				mu.Lock()
				total += fs.NumRecords() // committed: the client may be closed
				mu.Unlock()
				select {
				case grown <- struct{}{}:
				default:
				}
				cl.AllowRebalance()
			}
		}()
		return cl, done
	}
	until := func(n int) {
		for {
			mu.Lock()
			have := total
			mu.Unlock()
			if have >= n || ctx.Err() != nil {
				return
			}
			select {
			case <-grown:
			case <-ctx.Done():
			}
		}
	}
	a, aDone := start()
	until(500)
	b, bDone := start()
	until(3000)
	for _, p := range tp.Partitions() {
		h.fill(p, 500, 100, 50, true)
	}
	until(3600)
	a.CloseAllowingRebalance()
	<-aDone
	for _, p := range tp.Partitions() {
		h.fill(p, 600, 100, 50, true)
	}
	until(4200)
	b.CloseAllowingRebalance()
	<-bDone
	if ctx.Err() != nil || total != 4200 || len(seen) != 4200 {
		t.Fatalf("%d records, %d different; %v", total, len(seen), ctx.Err())
	}
	adm := kadm.NewClient(h.client())
	offs, err := adm.FetchOffsets(ctx, "g")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	offs.Each(func(o kadm.OffsetResponse) {
		if o.At != 700 {
			t.Errorf("partition %d committed %d", o.Partition, o.At)
		}
		n++
	})
	if n != 6 {
		t.Errorf("%d partitions committed", n)
	}
}
