package kafka_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"tailrace/storage/record"
	"tailrace/uplink/hub/kafka"
)

// sample is a request of each key that the hub of TestEveryVersionIsAnswered
// answers without an error.
func sample(key, version int16, id [16]byte) kmsg.Request {
	str := kmsg.StringPtr
	switch key {
	case 0:
		req := kmsg.NewPtrProduceRequest()
		req.Acks = -1
		rp := kmsg.NewProduceRequestTopicPartition()
		var bl record.Builder
		bl.Reset(nil)
		bl.Add(t0, nil, []byte("v"), nil)
		rp.Records = bl.Finish(0, 0)
		rt := kmsg.NewProduceRequestTopic()
		rt.Topic, rt.Partitions = "wind", []kmsg.ProduceRequestTopicPartition{rp}
		req.Topics = []kmsg.ProduceRequestTopic{rt}
		return req
	case 1:
		return fetchRequest("wind", 0, 0)
	case 2:
		return listRequest("wind", 0, -1)
	case 3:
		req := kmsg.NewPtrMetadataRequest()
		rt := kmsg.NewMetadataRequestTopic()
		rt.Topic = str("wind")
		req.Topics = []kmsg.MetadataRequestTopic{rt}
		if version >= 12 {
			req.Topics[0].Topic, req.Topics[0].TopicID = nil, id
		}
		return req
	case 8:
		req := kmsg.NewPtrOffsetCommitRequest()
		req.Group, req.Generation = "g", -1
		rp := kmsg.NewOffsetCommitRequestTopicPartition()
		rp.Offset, rp.Metadata = 1, str("m")
		rt := kmsg.NewOffsetCommitRequestTopic()
		rt.Topic, rt.Partitions = "wind", []kmsg.OffsetCommitRequestTopicPartition{rp}
		req.Topics = []kmsg.OffsetCommitRequestTopic{rt}
		return req
	case 9:
		req := kmsg.NewPtrOffsetFetchRequest()
		req.Group = "g"
		rt := kmsg.NewOffsetFetchRequestTopic()
		rt.Topic, rt.Partitions = "wind", []int32{0}
		req.Topics = []kmsg.OffsetFetchRequestTopic{rt}
		return req
	case 10:
		req := kmsg.NewPtrFindCoordinatorRequest()
		req.CoordinatorKey = "g"
		return req
	case 15:
		req := kmsg.NewPtrDescribeGroupsRequest()
		req.Groups = []string{"g"}
		return req
	case 21:
		req := kmsg.NewPtrDeleteRecordsRequest()
		rp := kmsg.NewDeleteRecordsRequestTopicPartition()
		rp.Offset = int64(version) + 1
		rt := kmsg.NewDeleteRecordsRequestTopic()
		rt.Topic, rt.Partitions = "short", []kmsg.DeleteRecordsRequestTopicPartition{rp}
		req.Topics = []kmsg.DeleteRecordsRequestTopic{rt}
		return req
	case 23:
		req := kmsg.NewPtrOffsetForLeaderEpochRequest()
		rp := kmsg.NewOffsetForLeaderEpochRequestTopicPartition()
		rp.CurrentLeaderEpoch, rp.LeaderEpoch = 1, 1
		rt := kmsg.NewOffsetForLeaderEpochRequestTopic()
		rt.Topic, rt.Partitions = "wind", []kmsg.OffsetForLeaderEpochRequestTopicPartition{rp}
		req.Topics = []kmsg.OffsetForLeaderEpochRequestTopic{rt}
		return req
	case 37:
		req := kmsg.NewPtrCreatePartitionsRequest()
		rt := kmsg.NewCreatePartitionsRequestTopic()
		rt.Topic, rt.Count = "short", int32(version)+2
		req.Topics = []kmsg.CreatePartitionsRequestTopic{rt}
		return req
	case 42:
		req := kmsg.NewPtrDeleteGroupsRequest()
		req.Groups = []string{fmt.Sprintf("gone-%d", version)}
		return req
	case 44:
		req := kmsg.NewPtrIncrementalAlterConfigsRequest()
		rc := kmsg.NewIncrementalAlterConfigsRequestResourceConfig()
		rc.Name, rc.Value = "retention.ms", str(fmt.Sprint(7_200_000+int(version)))
		rr := kmsg.NewIncrementalAlterConfigsRequestResource()
		rr.ResourceType, rr.ResourceName, rr.Configs = kmsg.ConfigResourceTypeTopic, "short", []kmsg.IncrementalAlterConfigsRequestResourceConfig{rc}
		req.Resources = []kmsg.IncrementalAlterConfigsRequestResource{rr}
		return req
	case 19:
		req := kmsg.NewPtrCreateTopicsRequest()
		rt := kmsg.NewCreateTopicsRequestTopic()
		rt.Topic, rt.NumPartitions, rt.ReplicationFactor = fmt.Sprintf("new-%d", version), 2, 1
		rc := kmsg.NewCreateTopicsRequestTopicConfig()
		rc.Name, rc.Value = "retention.ms", str("3600000")
		rt.Configs = append(rt.Configs, rc)
		req.Topics = []kmsg.CreateTopicsRequestTopic{rt}
		return req
	case 20:
		req := kmsg.NewPtrDeleteTopicsRequest()
		name := fmt.Sprintf("old-%d", version)
		req.TopicNames = []string{name}
		if version >= 6 {
			rt := kmsg.NewDeleteTopicsRequestTopic()
			rt.Topic = &name
			req.TopicNames, req.Topics = nil, []kmsg.DeleteTopicsRequestTopic{rt}
		}
		return req
	case 32:
		req := kmsg.NewPtrDescribeConfigsRequest()
		rr := kmsg.NewDescribeConfigsRequestResource()
		rr.ResourceType, rr.ResourceName = kmsg.ConfigResourceTypeTopic, "wind"
		rb := kmsg.NewDescribeConfigsRequestResource()
		rb.ResourceType, rb.ResourceName = kmsg.ConfigResourceTypeBroker, "1"
		req.Resources = []kmsg.DescribeConfigsRequestResource{rr, rb}
		return req
	}
	return kmsg.RequestForKey(key)
}

func fetchRequest(topic string, partition int32, offset int64) *kmsg.FetchRequest {
	req := kmsg.NewPtrFetchRequest()
	req.MinBytes, req.MaxBytes, req.MaxWaitMillis = 1, 1<<20, 0
	rp := kmsg.NewFetchRequestTopicPartition()
	rp.Partition, rp.FetchOffset, rp.PartitionMaxBytes, rp.CurrentLeaderEpoch = partition, offset, 1<<20, -1
	rt := kmsg.NewFetchRequestTopic()
	rt.Topic, rt.Partitions = topic, []kmsg.FetchRequestTopicPartition{rp}
	req.Topics = []kmsg.FetchRequestTopic{rt}
	return req
}

func listRequest(topic string, partition int32, ts int64) *kmsg.ListOffsetsRequest {
	req := kmsg.NewPtrListOffsetsRequest()
	rp := kmsg.NewListOffsetsRequestTopicPartition()
	rp.Partition, rp.Timestamp, rp.CurrentLeaderEpoch = partition, ts, -1
	rt := kmsg.NewListOffsetsRequestTopic()
	rt.Topic, rt.Partitions = topic, []kmsg.ListOffsetsRequestTopicPartition{rp}
	req.Topics = []kmsg.ListOffsetsRequestTopic{rt}
	return req
}

// Groups have their own test of every version (group_test.go).
var groupKeys = map[int16]bool{11: true, 12: true, 13: true, 14: true}

// So does the login (auth_test.go).
var loginKeys = map[int16]bool{17: true, 36: true}

func TestEveryVersionIsAnswered(t *testing.T) {
	h := newHub(t)
	wind := h.topic("wind", 1)
	h.fill(wind.Partition(0), 0, 10, 5, false)
	short := h.topic("short", 1)
	h.fill(short.Partition(0), 0, 10, 5, false)
	first := h.raw()
	ask[kmsg.Response](first, sample(8, 8, wind.ID()), 8)
	for v := range int16(10) {
		h.topic(fmt.Sprintf("old-%d", v), 1)
		commit := sample(8, 8, wind.ID()).(*kmsg.OffsetCommitRequest)
		commit.Group = fmt.Sprintf("gone-%d", v)
		ask[kmsg.Response](first, commit, 8)
	}
	for key, vs := range kafka.Versions() {
		if groupKeys[key] || loginKeys[key] {
			continue
		}
		low := vs[0]
		if key == 0 {
			low = 3
		}
		r := h.raw()
		for v := low; v <= vs[1]; v++ {
			name := fmt.Sprintf("%s v%d", kmsg.NameForKey(key), v)
			resp := ask[kmsg.Response](r, sample(key, v, wind.ID()), v)
			if acls, ok := resp.(*kmsg.DescribeACLsResponse); ok {
				if acls.ErrorCode != kerr.SecurityDisabled.Code {
					t.Errorf("%s: %v", name, kerr.ErrorForCode(acls.ErrorCode))
				}
				continue
			}
			for _, code := range codes(resp) {
				if code != 0 {
					t.Errorf("%s: %v", name, kerr.ErrorForCode(code))
				}
			}
			if len(codes(resp)) == 0 {
				t.Errorf("%s: empty answer", name)
			}
			switch resp := resp.(type) {
			case *kmsg.FetchResponse:
				if p := resp.Topics[0].Partitions[0]; resp.SessionID != 0 || p.HighWatermark < 10 || p.LastStableOffset != p.HighWatermark || len(p.RecordBatches) == 0 || resp.Topics[0].Topic != "wind" {
					t.Errorf("%s: %+v", name, p)
				}
			case *kmsg.ListOffsetsResponse:
				if p := resp.Topics[0].Partitions[0]; p.Offset < 10 || v >= 4 && p.LeaderEpoch != 1 {
					t.Errorf("%s: %+v", name, p)
				}
			case *kmsg.MetadataResponse:
				tp := resp.Topics[0]
				if *tp.Topic != "wind" || len(tp.Partitions) != 1 || tp.Partitions[0].Leader != 1 || resp.Brokers[0].NodeID != 1 || v >= 10 && tp.TopicID != wind.ID() || v >= 1 && resp.ControllerID != 1 {
					t.Errorf("%s: %+v", name, resp)
				}
			case *kmsg.OffsetFetchResponse:
				if o := resp.Topics[0].Partitions[0].Offset; o != 1 && o != -1 {
					t.Errorf("%s: offset %d", name, o)
				}
			case *kmsg.CreateTopicsResponse:
				tp, ok := h.store.Topic(resp.Topics[0].Topic)
				if !ok || len(tp.Partitions()) != 2 || tp.Config().RetentionAge.Hours() != 1 {
					t.Errorf("%s: topic %v", name, ok)
				}
			case *kmsg.DeleteTopicsResponse:
				if _, ok := h.store.Topic(fmt.Sprintf("old-%d", v)); ok {
					t.Errorf("%s: topic is still there", name)
				}
			case *kmsg.DescribeGroupsResponse:
				if g := resp.Groups[0]; g.State != "Empty" || g.Group != "g" {
					t.Errorf("%s: %+v", name, g)
				}
			case *kmsg.ListGroupsResponse:
				if len(resp.Groups) == 0 {
					t.Errorf("%s: no group", name)
				}
			case *kmsg.DeleteRecordsResponse:
				if p := resp.Topics[0].Partitions[0]; p.LowWatermark != int64(v)+1 || short.Partition(0).Start() != int64(v)+1 {
					t.Errorf("%s: %+v, start %d", name, p, short.Partition(0).Start())
				}
			case *kmsg.OffsetForLeaderEpochResponse:
				if p := resp.Topics[0].Partitions[0]; p.EndOffset < 10 || p.LeaderEpoch != 1 {
					t.Errorf("%s: %+v", name, p)
				}
			case *kmsg.CreatePartitionsResponse:
				if n := len(short.Partitions()); n != int(v)+2 {
					t.Errorf("%s: %d partitions", name, n)
				}
			case *kmsg.IncrementalAlterConfigsResponse:
				if ms := short.Config().RetentionAge.Milliseconds(); ms != 7_200_000+int64(v) {
					t.Errorf("%s: retention %d ms", name, ms)
				}
			case *kmsg.InitProducerIDResponse:
				if resp.ProducerID < 1 {
					t.Errorf("%s: id %d", name, resp.ProducerID)
				}
			}
		}
		r.nc.Close()
	}
}

// codes are the error codes of an answer.
func codes(resp kmsg.Response) (out []int16) {
	switch resp := resp.(type) {
	case *kmsg.ProduceResponse:
		for _, t := range resp.Topics {
			for _, p := range t.Partitions {
				out = append(out, p.ErrorCode)
			}
		}
	case *kmsg.FetchResponse:
		out = append(out, resp.ErrorCode)
		for _, t := range resp.Topics {
			for _, p := range t.Partitions {
				out = append(out, p.ErrorCode)
			}
		}
	case *kmsg.ListOffsetsResponse:
		for _, t := range resp.Topics {
			for _, p := range t.Partitions {
				out = append(out, p.ErrorCode)
			}
		}
	case *kmsg.MetadataResponse:
		for _, t := range resp.Topics {
			out = append(out, t.ErrorCode)
		}
	case *kmsg.OffsetCommitResponse:
		for _, t := range resp.Topics {
			for _, p := range t.Partitions {
				out = append(out, p.ErrorCode)
			}
		}
	case *kmsg.OffsetFetchResponse:
		out = append(out, resp.ErrorCode)
	case *kmsg.FindCoordinatorResponse:
		out = append(out, resp.ErrorCode)
	case *kmsg.ApiVersionsResponse:
		out = append(out, resp.ErrorCode)
	case *kmsg.InitProducerIDResponse:
		out = append(out, resp.ErrorCode)
	case *kmsg.CreateTopicsResponse:
		for _, t := range resp.Topics {
			out = append(out, t.ErrorCode)
		}
	case *kmsg.DeleteTopicsResponse:
		for _, t := range resp.Topics {
			out = append(out, t.ErrorCode)
		}
	case *kmsg.DescribeConfigsResponse:
		for _, r := range resp.Resources {
			out = append(out, r.ErrorCode)
		}
	case *kmsg.DescribeGroupsResponse:
		for _, g := range resp.Groups {
			out = append(out, g.ErrorCode)
		}
	case *kmsg.ListGroupsResponse:
		out = append(out, resp.ErrorCode)
	case *kmsg.DeleteGroupsResponse:
		for _, g := range resp.Groups {
			out = append(out, g.ErrorCode)
		}
	case *kmsg.DeleteRecordsResponse:
		for _, t := range resp.Topics {
			for _, p := range t.Partitions {
				out = append(out, p.ErrorCode)
			}
		}
	case *kmsg.OffsetForLeaderEpochResponse:
		for _, t := range resp.Topics {
			for _, p := range t.Partitions {
				out = append(out, p.ErrorCode)
			}
		}
	case *kmsg.CreatePartitionsResponse:
		for _, t := range resp.Topics {
			out = append(out, t.ErrorCode)
		}
	case *kmsg.IncrementalAlterConfigsResponse:
		for _, r := range resp.Resources {
			out = append(out, r.ErrorCode)
		}
	case *kmsg.DescribeClusterResponse:
		out = append(out, resp.ErrorCode)
	}
	return out
}

func TestFetchIsEncodedAsKmsgDoes(t *testing.T) {
	topics := []string{"wind", "a topic with a longer name"}
	parts := []kafka.FetchPart{
		{Partition: 0, HW: 1000, Start: 10, Records: bytes.Repeat([]byte{7}, 300), TopicIndex: 0},
		{Partition: 1, HW: 5, Start: 0, TopicIndex: 0},
		{Partition: 2, Code: kerr.OffsetOutOfRange.Code, HW: 1 << 40, Start: 5, TopicIndex: 1},
		{Partition: 200, HW: 7, Start: 7, Records: []byte("xyz"), TopicIndex: 1},
	}
	for v := int16(4); v <= 12; v++ {
		for _, committed := range []bool{false, true} {
			resp := kmsg.NewFetchResponse()
			resp.SetVersion(v)
			for i, name := range topics {
				rt := kmsg.NewFetchResponseTopic()
				rt.Topic = name
				for _, p := range parts {
					if p.TopicIndex != i {
						continue
					}
					rp := kmsg.NewFetchResponseTopicPartition()
					rp.Partition, rp.ErrorCode, rp.HighWatermark, rp.LastStableOffset, rp.LogStartOffset = p.Partition, p.Code, p.HW, p.HW, p.Start
					rp.RecordBatches = append([]byte{}, p.Records...)
					if committed {
						rp.AbortedTransactions = []kmsg.FetchResponseTopicPartitionAbortedTransaction{}
					}
					rt.Partitions = append(rt.Partitions, rp)
				}
				resp.Topics = append(resp.Topics, rt)
			}
			want := binary.BigEndian.AppendUint32(nil, 77)
			if resp.IsFlexible() {
				want = append(want, 0)
			}
			want = resp.AppendTo(want)
			want = append(binary.BigEndian.AppendUint32(nil, uint32(len(want))), want...)
			if got := kafka.EncodeFetch(v, 77, committed, topics, parts); !bytes.Equal(got, want) {
				t.Errorf("v%d committed=%v:\n%x\nwant\n%x", v, committed, got, want)
			}
		}
	}
}

func TestAdvertisedVersionsSuitLibrdkafka(t *testing.T) {
	// Each of these, missed, makes some librdkafka read nothing, without an
	// error.
	vs := kafka.Versions()
	if vs[0][0] != 0 || vs[0][1] < 7 || vs[1][0] != 4 || vs[10][0] != 0 {
		t.Fatal(vs)
	}
	if vs[0][1] >= 13 || vs[1][1] >= 13 {
		t.Fatal("Produce and Fetch from v13 on know topics by id only, which is not served")
	}
}

func TestApiVersionsBeyondOursIsAnsweredAsV0(t *testing.T) {
	h := newHub(t)
	r := h.raw()
	req := kmsg.NewPtrApiVersionsRequest()
	req.ClientSoftwareName = "x"
	b := frame(req, 9)
	binary.BigEndian.PutUint16(b[6:], 99)
	r.nc.Write(b)
	v0 := kmsg.NewPtrApiVersionsRequest()
	resp := r.receive(v0, 9).(*kmsg.ApiVersionsResponse)
	if resp.ErrorCode != kerr.UnsupportedVersion.Code || len(resp.ApiKeys) != len(kafka.Versions()) {
		t.Fatalf("%+v", resp)
	}
	r.id = 9
	if again := ask[*kmsg.ApiVersionsResponse](r, req, 3); again.ErrorCode != 0 {
		t.Fatal("the connection is of no use afterwards")
	}
}

func TestEmptyFetchIsNotNull(t *testing.T) {
	h := newHub(t)
	h.topic("wind", 1)
	r := h.raw()
	for v := int16(4); v <= 12; v++ {
		resp := ask[*kmsg.FetchResponse](r, fetchRequest("wind", 0, 0), v)
		if p := resp.Topics[0].Partitions[0]; p.RecordBatches == nil || len(p.RecordBatches) != 0 || p.ErrorCode != 0 {
			t.Fatalf("v%d: %+v", v, p)
		}
	}
}

func TestListOffsetsKnowsItsSpecialTimes(t *testing.T) {
	h := newHub(t)
	p := h.topic("wind", 1).Partition(0)
	h.fill(p, 0, 100, 10, false)
	if err := p.SetStart(30); err != nil {
		t.Fatal(err)
	}
	r := h.raw()
	for _, c := range []struct {
		ts, off, offTs int64
	}{{-1, 100, -1}, {-2, 30, -1}, {-3, 99, t0 + 99_000}, {t0 + 50_000, 50, t0 + 50_000}, {t0 + 50_001, 51, t0 + 51_000}, {0, 30, t0 + 30_000}, {t0 + 99_001, -1, -1}} {
		got := ask[*kmsg.ListOffsetsResponse](r, listRequest("wind", 0, c.ts), 7).Topics[0].Partitions[0]
		if got.ErrorCode != 0 || got.Offset != c.off || got.Timestamp != c.offTs {
			t.Errorf("time %d: offset %d time %d error %d, want %d %d", c.ts, got.Offset, got.Timestamp, got.ErrorCode, c.off, c.offTs)
		}
	}
	old := listRequest("wind", 0, -1)
	old.Topics[0].Partitions[0].CurrentLeaderEpoch = 0
	if got := ask[*kmsg.ListOffsetsResponse](r, old, 7).Topics[0].Partitions[0]; got.ErrorCode != kerr.FencedLeaderEpoch.Code {
		t.Errorf("an older epoch: %+v", got)
	}
}
