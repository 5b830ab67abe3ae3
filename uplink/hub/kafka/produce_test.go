package kafka_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"tailrace/storage"
	"tailrace/storage/record"
	"tailrace/uplink/hub/kafka"
)

func batchOf(values ...string) record.Batch {
	var bl record.Builder
	bl.Reset(nil)
	for i, v := range values {
		bl.Add(t0+int64(i), nil, []byte(v), nil)
	}
	return bl.Finish(0, 0)
}

func produceRequest(topic string, partition int32, records []byte) *kmsg.ProduceRequest {
	req := kmsg.NewPtrProduceRequest()
	req.Acks = -1
	rp := kmsg.NewProduceRequestTopicPartition()
	rp.Partition, rp.Records = partition, records
	rt := kmsg.NewProduceRequestTopic()
	rt.Topic, rt.Partitions = topic, []kmsg.ProduceRequestTopicPartition{rp}
	req.Topics = []kmsg.ProduceRequestTopic{rt}
	return req
}

func TestProducedBatchIsStoredAsItCame(t *testing.T) {
	h := newHub(t)
	p := h.topic("wind", 1).Partition(0)
	h.fill(p, 0, 7, 7, false)
	sent := record.Batch(record.Compress(nil, batchOf(strings.Repeat("a", 5000), "b", "c")))
	resp := ask[*kmsg.ProduceResponse](h.raw(), produceRequest("wind", 0, bytes.Clone(sent)), 9)
	got := resp.Topics[0].Partitions[0]
	if got.ErrorCode != 0 || got.BaseOffset != 7 || got.LogStartOffset != 0 || got.LogAppendTime != -1 {
		t.Fatalf("%+v", got)
	}
	if p.HighWatermark() != 10 {
		t.Fatal("answered before it was durable")
	}
	stored, _, err := p.Read(nil, 7, 1<<20)
	if err != nil || !bytes.Equal(stored[16:], sent[16:]) {
		t.Fatalf("stored bytes differ: %v", err)
	}
}

func TestProduceRefusesWhatMustNotBeStored(t *testing.T) {
	h := newHub(t, func(c *kafka.Config) {
		c.MaxBatchBytes = 10_000
		c.Authorize = func(_ kafka.Peer, op kafka.Operation, name string) bool {
			return name != "secret" || op != kafka.OpWrite
		}
	})
	p := h.topic("wind", 1).Partition(0)
	h.topic("secret", 1)
	flagged := func(bits int16) record.Batch {
		b := batchOf("x")
		binary.BigEndian.PutUint16(b[21:], uint16(bits))
		b.SetProducer(-1, -1, -1, bits&record.AttrTransactional != 0)
		return b
	}
	broken := batchOf("value")
	broken[len(broken)-2] ^= 1
	inner := batchOf("value", "other")
	inner[61+3] = 1 // offset delta of the first record
	inner.SetProducer(-1, -1, -1, false)
	old := batchOf("x")
	old[16] = 1
	var bl record.Builder
	bl.Reset(nil)
	bl.Add(time.Now().Add(2*time.Hour).UnixMilli(), nil, nil, nil)
	future := bl.Finish(0, 0)
	noEpoch := batchOf("x")
	noEpoch.SetProducer(5, -1, -1, false)
	bomb := record.Batch(record.Compress(nil, batchOf(strings.Repeat("z", 70<<20))))
	for _, c := range []struct {
		what    string
		topic   string
		records []byte
		want    *kerr.Error
	}{
		{"nothing", "wind", nil, kerr.CorruptMessage},
		{"garbage", "wind", []byte("garbage that is longer than a batch header, so it must be looked at closely"), kerr.CorruptMessage},
		{"half a batch", "wind", batchOf("x")[:65], kerr.CorruptMessage},
		{"a flipped bit", "wind", broken, kerr.CorruptMessage},
		{"records that disagree with the header", "wind", inner, kerr.CorruptMessage},
		{"message format v1", "wind", old, kerr.CorruptMessage},
		{"two batches", "wind", append(batchOf("x"), batchOf("y")...), kerr.InvalidRecord},
		{"too large", "wind", batchOf(strings.Repeat("x", 10_000)), kerr.MessageTooLarge},
		{"too large once decompressed", "wind", bomb, kerr.MessageTooLarge},
		{"transactional", "wind", flagged(record.AttrTransactional), kerr.InvalidTxnState},
		{"control", "wind", flagged(record.AttrControl), kerr.InvalidRecord},
		{"log append time", "wind", flagged(record.AttrLogAppendTime), kerr.InvalidTimestamp},
		{"far in the future", "wind", future, kerr.InvalidTimestamp},
		{"producer id without epoch", "wind", noEpoch, kerr.InvalidRecord},
		{"no such topic", "wave", batchOf("x"), kerr.UnknownTopicOrPartition},
		{"not allowed", "secret", batchOf("x"), kerr.TopicAuthorizationFailed},
	} {
		resp := ask[*kmsg.ProduceResponse](h.raw(), produceRequest(c.topic, 0, c.records), 8)
		if got := resp.Topics[0].Partitions[0]; got.ErrorCode != c.want.Code || got.BaseOffset != -1 {
			t.Errorf("%s: %v, base %d", c.what, kerr.ErrorForCode(got.ErrorCode), got.BaseOffset)
		}
	}
	r := h.raw()
	req := produceRequest("wind", 0, batchOf("x"))
	req.Acks = 2
	if got := ask[*kmsg.ProduceResponse](r, req, 8).Topics[0].Partitions[0]; got.ErrorCode != kerr.InvalidRequiredAcks.Code {
		t.Errorf("acks=2: %v", kerr.ErrorForCode(got.ErrorCode))
	}
	req = produceRequest("wind", 0, batchOf("x"))
	req.TransactionID = kmsg.StringPtr("tx")
	if got := ask[*kmsg.ProduceResponse](r, req, 8).Topics[0].Partitions[0]; got.ErrorCode != kerr.TransactionalIDAuthorizationFailed.Code {
		t.Errorf("transaction: %v", kerr.ErrorForCode(got.ErrorCode))
	}
	if p.HighWatermark() != 0 {
		t.Fatalf("%d records were stored", p.HighWatermark())
	}
}

func TestProduceToSeveralClassesAndPartitions(t *testing.T) {
	h := newHub(t)
	h.topic("wind", 2)
	if _, err := h.store.CreateTopic("press", storage.TopicConfig{Partitions: 1, Class: "other"}); err != nil {
		t.Fatal(err)
	}
	req := produceRequest("wind", 0, batchOf("a"))
	rp := req.Topics[0].Partitions[0]
	rp.Partition, rp.Records = 1, batchOf("b", "c")
	bad := rp
	bad.Partition = 7
	req.Topics[0].Partitions = append(req.Topics[0].Partitions, bad, rp)
	req.Topics = append(req.Topics, produceRequest("press", 0, batchOf("d")).Topics...)
	resp := ask[*kmsg.ProduceResponse](h.raw(), req, 9)
	if got := fmt.Sprint(codes(resp)); got != "[0 3 0 0]" {
		t.Fatal(got)
	}
	tp, _ := h.store.Topic("press")
	wind, _ := h.store.Topic("wind")
	if tp.Partition(0).HighWatermark() != 1 || wind.Partition(1).HighWatermark() != 2 {
		t.Fatal("not stored")
	}
}

func TestPipelinedProducesAreAnsweredInOrder(t *testing.T) {
	h := newHub(t)
	p := h.topic("wind", 1).Partition(0)
	r := h.raw()
	go func() { // more than may be in flight
		for i := range 200 {
			req := produceRequest("wind", 0, batchOf(fmt.Sprint("v", i)))
			req.SetVersion(9)
			r.nc.Write(frame(req, int32(i)))
		}
		meta := kmsg.NewPtrMetadataRequest()
		meta.SetVersion(9)
		r.nc.Write(frame(meta, 200))
	}()
	for i := range 200 {
		req := produceRequest("wind", 0, nil)
		req.SetVersion(9)
		got := r.receive(req, int32(i)).(*kmsg.ProduceResponse).Topics[0].Partitions[0]
		if got.ErrorCode != 0 || got.BaseOffset != int64(i) {
			t.Fatalf("answer %d: %+v", i, got)
		}
	}
	meta := kmsg.NewPtrMetadataRequest()
	meta.SetVersion(9)
	r.receive(meta, 200)
	if p.HighWatermark() != 200 {
		t.Fatal(p.HighWatermark())
	}
}

func TestAcksZeroHasNoAnswerAndItsRefusalHangsUp(t *testing.T) {
	h := newHub(t)
	p := h.topic("wind", 1).Partition(0)
	r := h.raw()
	req := produceRequest("wind", 0, batchOf("x"))
	req.Acks = 0
	req.SetVersion(9)
	r.send(req)
	ask[*kmsg.MetadataResponse](r, kmsg.NewPtrMetadataRequest(), 9) // the next answer is the next request's
	if p.HighWatermark() != 1 {
		t.Fatal("not stored")
	}
	req.Topics[0].Topic = "wave"
	r.send(req)
	r.closed("after a refused acks=0")
}

func TestOldProduceVersionsAreRefused(t *testing.T) {
	h := newHub(t)
	for v := int16(0); v < 3; v++ {
		r := h.raw()
		req := produceRequest("wind", 0, batchOf("x"))
		req.SetVersion(v)
		r.send(req)
		r.closed(fmt.Sprint("produce v", v))
	}
}

func sequenced(id int64, epoch int16, seq int32, values ...string) record.Batch {
	b := batchOf(values...)
	b.SetProducer(id, epoch, seq, false)
	return b
}

func TestRepeatedBatchIsStoredOnce(t *testing.T) {
	dir := t.TempDir()
	store := openStore(t, dir)
	h := serve(t, store)
	h.topic("wind", 2)
	id := ask[*kmsg.InitProducerIDResponse](h.raw(), kmsg.NewPtrInitProducerIDRequest(), 4).ProducerID
	send := func(partition int32, b record.Batch) (int64, int16) {
		got := ask[*kmsg.ProduceResponse](h.raw(), produceRequest("wind", partition, b), 8).Topics[0].Partitions[0]
		return got.BaseOffset, got.ErrorCode
	}
	expect := func(what string, partition int32, b record.Batch, base int64, e *kerr.Error) {
		t.Helper()
		code := int16(0)
		if e != nil {
			code = e.Code
		}
		if gotBase, gotCode := send(partition, b); gotBase != base || gotCode != code {
			t.Errorf("%s: base %d, %v; want %d, %v", what, gotBase, kerr.ErrorForCode(gotCode), base, kerr.ErrorForCode(code))
		}
	}
	for i := range int32(7) {
		expect("in order", 0, sequenced(id, 0, i*2, "a", "b"), int64(i)*2, nil)
	}
	expect("the last again", 0, sequenced(id, 0, 12, "a", "b"), 12, nil)
	expect("the fifth last again", 0, sequenced(id, 0, 4, "a", "b"), 4, nil)
	expect("the sixth last again", 0, sequenced(id, 0, 2, "a", "b"), -1, kerr.OutOfOrderSequenceNumber)
	expect("a gap", 0, sequenced(id, 0, 15, "a"), -1, kerr.OutOfOrderSequenceNumber)
	expect("a part of the last", 0, sequenced(id, 0, 13, "b"), -1, kerr.OutOfOrderSequenceNumber)
	expect("another partition has its own order", 1, sequenced(id, 0, 0, "a"), 0, nil)
	expect("another producer", 0, sequenced(id+1, 0, 0, "x"), 14, nil)
	expect("a new epoch begins at 0", 0, sequenced(id, 1, 3, "x"), -1, kerr.OutOfOrderSequenceNumber)
	expect("a new epoch", 0, sequenced(id, 1, 0, "x"), 15, nil)
	expect("an old epoch", 0, sequenced(id, 0, 14, "x"), -1, kerr.InvalidProducerEpoch)

	// The same after a restart.
	h.stop()
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	h = serve(t, openStore(t, dir))
	expect("after a restart, the last again", 0, sequenced(id, 1, 0, "x"), -1, kerr.DuplicateSequenceNumber)
	expect("after a restart, a gap", 0, sequenced(id, 1, 2, "x"), -1, kerr.OutOfOrderSequenceNumber)
	expect("after a restart, the next", 0, sequenced(id, 1, 1, "y"), 16, nil)
	if again := ask[*kmsg.InitProducerIDResponse](h.raw(), kmsg.NewPtrInitProducerIDRequest(), 4).ProducerID; again <= id {
		t.Errorf("producer id %d is given out again after %d", again, id)
	}
	if err := h.srv.Expire(context.Background()); err != nil {
		t.Fatal(err)
	}
	expect("in use, not expired", 0, sequenced(id, 1, 2, "z"), 17, nil)
}

func TestSequencesWrap(t *testing.T) {
	h := newHub(t)
	h.topic("wind", 1)
	r := h.raw()
	for i, seq := range []int32{2147483646, 0, 1} {
		values := []string{"a", "b"}[:2-min(i, 1)]
		got := ask[*kmsg.ProduceResponse](r, produceRequest("wind", 0, sequenced(9, 0, seq, values...)), 8).Topics[0].Partitions[0]
		if got.ErrorCode != 0 {
			t.Fatalf("sequence %d: %v", seq, kerr.ErrorForCode(got.ErrorCode))
		}
	}
}

func TestConcurrentRepetitionsAreStoredOnce(t *testing.T) {
	h := newHub(t)
	p := h.topic("wind", 1).Partition(0)
	const senders, batches = 4, 100
	done := make(chan error, senders)
	for range senders { // each sends everything, as after a lost answer
		r := h.raw()
		go func() {
			for i := range int32(batches) {
				req := produceRequest("wind", 0, sequenced(77, 0, i, fmt.Sprint("v", i)))
				req.SetVersion(8)
				r.nc.Write(frame(req, i))
			}
			for i := range int32(batches) {
				req := produceRequest("wind", 0, nil)
				req.SetVersion(8)
				got := r.receive(req, i).(*kmsg.ProduceResponse).Topics[0].Partitions[0]
				if got.ErrorCode == 0 && got.BaseOffset != int64(i) {
					done <- fmt.Errorf("batch %d at offset %d", i, got.BaseOffset)
					return
				}
			}
			done <- nil
		}()
	}
	for range senders {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	if p.HighWatermark() != batches {
		t.Fatalf("%d records, want %d", p.HighWatermark(), batches)
	}
}

func TestFranzGoProducesIdempotently(t *testing.T) {
	h := newHub(t)
	p := h.topic("wind", 1).Partition(0)
	cl := h.client(kgo.DefaultProduceTopic("wind"), kgo.ProducerBatchCompression(kgo.ZstdCompression()))
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	var failed error
	for i := range 20_000 {
		cl.Produce(ctx, &kgo.Record{Value: fmt.Appendf(nil, "value %d", i)}, func(_ *kgo.Record, err error) {
			if err != nil {
				failed = err
			}
		})
	}
	if err := cl.Flush(ctx); err != nil || failed != nil {
		t.Fatal(err, failed)
	}
	if p.HighWatermark() != 20_000 {
		t.Fatal(p.HighWatermark())
	}
	rd := h.client(kgo.ConsumeTopics("wind"), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	for i, r := range poll(t, rd, 20_000) {
		if string(r.Value) != fmt.Sprint("value ", i) {
			t.Fatalf("record %d: %s", i, r.Value)
		}
	}
}

func TestTransactionsAreRefusedClearly(t *testing.T) {
	h := newHub(t)
	req := kmsg.NewPtrInitProducerIDRequest()
	req.TransactionalID = kmsg.StringPtr("tx")
	if got := ask[*kmsg.InitProducerIDResponse](h.raw(), req, 4); got.ErrorCode != kerr.TransactionalIDAuthorizationFailed.Code {
		t.Errorf("%v", kerr.ErrorForCode(got.ErrorCode))
	}
	fc := kmsg.NewPtrFindCoordinatorRequest()
	fc.CoordinatorKey, fc.CoordinatorType = "tx", 1
	if got := ask[*kmsg.FindCoordinatorResponse](h.raw(), fc, 3); got.ErrorCode != kerr.InvalidRequest.Code {
		t.Errorf("%v", kerr.ErrorForCode(got.ErrorCode))
	}
}
