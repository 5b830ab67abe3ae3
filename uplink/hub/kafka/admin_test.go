package kafka_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"tailrace/uplink/hub/kafka"
)

func withTimeout(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func TestAdminOfTopics(t *testing.T) {
	h := newHub(t, func(c *kafka.Config) { c.Reserved = func(name string) bool { return name == "ledger" } })
	tp := h.topic("wind", 1)
	h.fill(tp.Partition(0), 0, 100, 10, false)
	h.fill(h.topic("ledger", 1).Partition(0), 0, 10, 10, false)
	adm := kadm.NewClient(h.client())
	ctx := withTimeout(t)

	if r, err := adm.UpdatePartitions(ctx, 3, "wind"); err != nil || r.Error() != nil {
		t.Fatal(err, r.Error())
	}
	if n := len(tp.Partitions()); n != 3 {
		t.Fatalf("%d partitions", n)
	}
	r, err := adm.UpdatePartitions(ctx, 2, "wind")
	if err != nil || !errors.Is(r.Error(), kerr.InvalidPartitions) {
		t.Fatalf("fewer partitions: %v %v", err, r.Error())
	}

	var to kadm.Offsets
	to.AddOffset("wind", 0, 42, -1)
	d, err := adm.DeleteRecords(ctx, to)
	if err != nil || d.Error() != nil || tp.Partition(0).Start() != 42 {
		t.Fatalf("delete records: %v %v, start %d", err, d.Error(), tp.Partition(0).Start())
	}
	to.AddOffset("wind", 0, 4200, -1)
	if d, err := adm.DeleteRecords(ctx, to); err != nil || !errors.Is(d.Error(), kerr.OffsetOutOfRange) {
		t.Fatalf("delete records beyond the end: %v %v", err, d.Error())
	}

	set := func(name string, op kadm.IncrementalOp, value string) error {
		rs, err := adm.AlterTopicConfigs(ctx, []kadm.AlterConfig{{Op: op, Name: name, Value: &value}}, "wind")
		if err != nil {
			t.Fatal(err)
		}
		return rs[0].Err
	}
	if err := set("retention.ms", kadm.SetConfig, "3600000"); err != nil || tp.Config().RetentionAge != time.Hour {
		t.Fatalf("%v, retention %v", err, tp.Config().RetentionAge)
	}
	if err := set("retention.bytes", kadm.SetConfig, "1000000"); err != nil || tp.Config().RetentionBytes != 1_000_000 || tp.Config().RetentionAge != time.Hour {
		t.Fatalf("%v, %+v", err, tp.Config())
	}
	if err := set("retention.ms", kadm.DeleteConfig, ""); err != nil || tp.Config().RetentionAge != 0 || tp.Config().RetentionBytes != 1_000_000 {
		t.Fatalf("%v, %+v", err, tp.Config())
	}
	for _, bad := range [][2]string{{"retention.ms", "soon"}, {"cleanup.policy", "tidy"}, {"segment.bytes", "1"}, {"follower.replication.throttled.replicas", "*"}} {
		if err := set(bad[0], kadm.SetConfig, bad[1]); !errors.Is(err, kerr.InvalidConfig) {
			t.Errorf("%v: %v", bad, err)
		}
	}
	if len(tp.Partitions()) != 3 {
		t.Fatal("altering lost partitions")
	}

	// A reserved topic is read and nothing else.
	if n := len(poll(t, h.client(kgo.ConsumeTopics("ledger")), 10)); n != 10 {
		t.Fatal(n)
	}
	if err := h.client().ProduceSync(ctx, &kgo.Record{Topic: "ledger", Value: []byte("forged")}).FirstErr(); !errors.Is(err, kerr.TopicAuthorizationFailed) {
		t.Errorf("produce to a reserved topic: %v", err)
	}
	if rs, err := adm.DeleteTopics(ctx, "ledger"); err != nil || !errors.Is(rs["ledger"].Err, kerr.TopicAuthorizationFailed) {
		t.Errorf("delete a reserved topic: %v %v", err, rs)
	}
	if r, err := adm.UpdatePartitions(ctx, 3, "ledger"); err != nil || !errors.Is(r.Error(), kerr.TopicAuthorizationFailed) {
		t.Errorf("partitions of a reserved topic: %v %v", err, r.Error())
	}
}

func TestAdminOfGroups(t *testing.T) {
	h := newHub(t)
	tp := h.topic("wind", 1)
	h.fill(tp.Partition(0), 0, 100, 10, false)
	adm := kadm.NewClient(h.client())
	ctx := withTimeout(t)
	cl := h.client(kgo.ConsumeTopics("wind"), kgo.ConsumerGroup("readers"), kgo.ClientID("a-reader"), kgo.InstanceID("one"), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	poll(t, cl, 100)
	if err := cl.CommitUncommittedOffsets(ctx); err != nil {
		t.Fatal(err)
	}
	ds, err := adm.DescribeGroups(ctx, "readers", "nobody")
	if err != nil || ds.Error() != nil {
		t.Fatal(err, ds.Error())
	}
	g := ds["readers"]
	if g.State != "Stable" || len(g.Members) != 1 || g.Members[0].ClientID != "a-reader" || g.Members[0].ClientHost != "/127.0.0.1" ||
		g.Members[0].InstanceID == nil || len(g.AssignedPartitions()["wind"]) != 1 {
		t.Errorf("%+v", g)
	}
	if ds["nobody"].State != "Dead" {
		t.Errorf("%+v", ds["nobody"])
	}
	if rs, err := adm.DeleteGroups(ctx, "readers"); err != nil || !errors.Is(rs["readers"].Err, kerr.NonEmptyGroup) {
		t.Errorf("delete a group with members: %v %v", err, rs)
	}
	cl.LeaveGroup()
	if err := leaveStatic(h, "readers", "one"); err != nil {
		t.Fatal(err)
	}
	for _, state := range []string{"", "Empty", "Stable"} {
		var states []string
		if state != "" {
			states = []string{state}
		}
		ls, err := adm.ListGroups(ctx, states...)
		if err != nil || (len(ls) == 1) != (state != "Stable") {
			t.Errorf("list %q: %v %+v", state, err, ls)
		}
	}
	if rs, err := adm.DeleteGroups(ctx, "readers", "nobody"); err != nil || rs["readers"].Err != nil || !errors.Is(rs["nobody"].Err, kerr.GroupIDNotFound) {
		t.Errorf("delete: %v %v", err, rs)
	}
	if os, err := adm.FetchOffsets(ctx, "readers"); err != nil || len(os) != 0 {
		t.Errorf("offsets of a deleted group: %v %v", err, os)
	}
}

func leaveStatic(h *hub, group, instance string) error {
	r := h.raw()
	req := kmsg.NewPtrLeaveGroupRequest()
	m := kmsg.NewLeaveGroupRequestMember()
	m.InstanceID = &instance
	req.Group, req.Members = group, []kmsg.LeaveGroupRequestMember{m}
	return kerr.ErrorForCode(ask[*kmsg.LeaveGroupResponse](r, req, 4).ErrorCode)
}

func TestTransactionsAreRefusedWithAWord(t *testing.T) {
	h := newHub(t)
	h.topic("wind", 1)
	r := h.raw()
	req := kmsg.NewPtrFindCoordinatorRequest()
	req.CoordinatorKey, req.CoordinatorType = "my-app", 1
	resp := ask[*kmsg.FindCoordinatorResponse](r, req, 3)
	if resp.ErrorCode != kerr.InvalidRequest.Code || !strings.Contains(*resp.ErrorMessage, "use a cluster") {
		t.Errorf("%+v", resp)
	}
	init := kmsg.NewPtrInitProducerIDRequest()
	init.TransactionalID = kmsg.StringPtr("my-app")
	if got := ask[*kmsg.InitProducerIDResponse](r, init, 4); got.ErrorCode != kerr.TransactionalIDAuthorizationFailed.Code {
		t.Errorf("%+v", got)
	}
}

// The end of an earlier epoch is where later ones cut the log, also after several.
func TestEpochsAreRemembered(t *testing.T) {
	dir := t.TempDir()
	cut := func() { // the last bytes of the log are torn off
		segs, err := filepath.Glob(filepath.Join(dir, "*", "*", "0*"))
		if err != nil || len(segs) == 0 {
			segs, _ = filepath.Glob(filepath.Join(dir, "*", "0*"))
		}
		if len(segs) == 0 {
			t.Fatal("no segment found")
		}
		for _, f := range segs {
			if st, err := os.Stat(f); err == nil && st.Size() > 5000 && strings.Contains(f, "main") {
				if err := os.Truncate(f, st.Size()-2000); err != nil {
					t.Fatal(err)
				}
				return
			}
		}
		t.Fatalf("no segment to cut in %v", segs)
	}
	var ends []int64
	for life := range 3 {
		s := openStore(t, dir)
		h := serve(t, s)
		if life == 0 {
			h.topic("wind", 1)
		}
		tp, _ := s.Topic("wind")
		p := tp.Partition(0)
		ends = append(ends, p.HighWatermark()) // where this epoch begins
		r := h.raw()
		for asked := range int32(life + 1) {
			req := sample(23, 4, tp.ID()).(*kmsg.OffsetForLeaderEpochRequest)
			req.Topics[0].Partitions[0].CurrentLeaderEpoch, req.Topics[0].Partitions[0].LeaderEpoch = -1, asked+1
			got := ask[*kmsg.OffsetForLeaderEpochResponse](r, req, 4).Topics[0].Partitions[0]
			want := p.HighWatermark()
			if int(asked) < life {
				want = ends[asked+1]
			}
			if got.ErrorCode != 0 || got.EndOffset != want || got.LeaderEpoch != asked+1 {
				t.Errorf("life %d, end of epoch %d: %+v, want %d", life, asked+1, got, want)
			}
		}
		for range 20 { // commits of their own: the cut takes some of them
			h.fill(p, int(p.HighWatermark()), 10, 10, false)
		}
		h.stop()
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if life < 2 {
			cut()
		}
	}
	if ends[1] == 0 || ends[2] <= ends[1] {
		t.Fatalf("the cuts are not what the test needs: %v", ends)
	}
}
