package kafka_test

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"tailrace/storage/record"
	"tailrace/uplink/hub/kafka"
)

func part(r *kmsg.FetchResponse, t, p int) kmsg.FetchResponseTopicPartition {
	return r.Topics[t].Partitions[p]
}

// records counts the records of the partition's batches and returns the first
// and the next offset.
func records(t testing.TB, p kmsg.FetchResponseTopicPartition) (n int, first, next int64) {
	t.Helper()
	first = -1
	for rest := p.RecordBatches; len(rest) > 0; {
		b, after, err := record.Next(rest)
		if err != nil {
			t.Fatal(err)
		}
		if err := b.Validate(record.NewDecompressor(0)); err != nil {
			t.Fatal(err)
		}
		if first < 0 {
			first = b.BaseOffset()
		}
		n, next, rest = n+b.Count(), b.NextOffset(), after
	}
	return n, first, next
}

func TestFetchServesStoredBytes(t *testing.T) {
	h := newHub(t)
	p := h.topic("wind", 1).Partition(0)
	h.fill(p, 0, 1000, 100, true)
	stored, _, err := p.Read(nil, 0, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	got := part(ask[*kmsg.FetchResponse](h.raw(), fetchRequest("wind", 0, 0), 11), 0, 0)
	if string(got.RecordBatches) != string(stored) {
		t.Fatal("other bytes than stored")
	}
	b, _, _ := record.Next(got.RecordBatches)
	if b.LeaderEpoch() != h.store.Identity().Epoch.Number || b.LeaderEpoch() < 1 {
		t.Fatalf("leader epoch %d", b.LeaderEpoch())
	}
}

func TestFetchLimits(t *testing.T) {
	h := newHub(t)
	tp := h.topic("wind", 3)
	for i := range 2 {
		h.fill(tp.Partition(i), 0, 100, 10, false) // about 300 bytes a batch
	}
	r := h.raw()
	three := func(partition, total int32) *kmsg.FetchResponse {
		req := fetchRequest("wind", 0, 15)
		req.MaxBytes = total
		for i := range int32(2) {
			rp := req.Topics[0].Partitions[0]
			rp.Partition, rp.FetchOffset = i+1, 0
			req.Topics[0].Partitions = append(req.Topics[0].Partitions, rp)
		}
		for i := range req.Topics[0].Partitions {
			req.Topics[0].Partitions[i].PartitionMaxBytes = partition
		}
		return ask[*kmsg.FetchResponse](r, req, 11)
	}
	resp := three(1, 1<<20)
	if n, first, _ := records(t, part(resp, 0, 0)); n != 10 || first != 10 {
		t.Errorf("first partition, 1 byte: %d records from %d; want the whole batch that holds offset 15", n, first)
	}
	if n, _, _ := records(t, part(resp, 0, 1)); n != 0 {
		t.Errorf("second partition, 1 byte: %d records", n)
	}
	resp = three(1<<20, 1)
	if n, _, _ := records(t, part(resp, 0, 0)); n != 10 {
		t.Errorf("total 1 byte: %d records", n)
	}
	resp = three(1000, 1<<20)
	for i := range 2 {
		if n, _, _ := records(t, part(resp, 0, i)); n < 10 || n > 40 || len(part(resp, 0, i).RecordBatches) > 1000 {
			t.Errorf("partition %d with 1000 bytes: %d records", i, n)
		}
	}
	resp = three(1<<20, 1<<20)
	if n, first, next := records(t, part(resp, 0, 0)); n != 90 || first != 10 || next != 100 {
		t.Errorf("%d records, %d to %d", n, first, next)
	}
	if p := part(resp, 0, 2); p.ErrorCode != 0 || p.HighWatermark != 0 || len(p.RecordBatches) != 0 {
		t.Errorf("empty partition: %+v", p)
	}
}

func TestFetchReportsWhatIsWrong(t *testing.T) {
	h := newHub(t, func(c *kafka.Config) {
		c.Authorize = func(_ kafka.Peer, op kafka.Operation, name string) bool { return name != "secret" }
	})
	p := h.topic("wind", 1).Partition(0)
	h.topic("secret", 1)
	h.fill(p, 0, 100, 10, false)
	if err := p.SetStart(50); err != nil {
		t.Fatal(err)
	}
	r := h.raw()
	epoch := func(e int32) *kmsg.FetchRequest {
		req := fetchRequest("wind", 0, 60)
		req.Topics[0].Partitions[0].CurrentLeaderEpoch = e
		return req
	}
	for _, c := range []struct {
		what string
		req  *kmsg.FetchRequest
		want *kerr.Error
	}{
		{"below the start", fetchRequest("wind", 0, 49), kerr.OffsetOutOfRange},
		{"beyond the end", fetchRequest("wind", 0, 101), kerr.OffsetOutOfRange},
		{"negative", fetchRequest("wind", 0, -1), kerr.OffsetOutOfRange},
		{"no such topic", fetchRequest("wave", 0, 0), kerr.UnknownTopicOrPartition},
		{"no such partition", fetchRequest("wind", 1, 0), kerr.UnknownTopicOrPartition},
		{"negative partition", fetchRequest("wind", -1, 0), kerr.UnknownTopicOrPartition},
		{"not allowed", fetchRequest("secret", 0, 0), kerr.TopicAuthorizationFailed},
		{"older epoch", epoch(0), kerr.FencedLeaderEpoch},
		{"newer epoch", epoch(9), kerr.UnknownLeaderEpoch},
	} {
		c.req.MaxWaitMillis = 20_000 // an error does not wait
		start := time.Now()
		got := part(ask[*kmsg.FetchResponse](r, c.req, 12), 0, 0)
		if got.ErrorCode != c.want.Code || got.RecordBatches == nil || len(got.RecordBatches) > 0 {
			t.Errorf("%s: %v", c.what, kerr.ErrorForCode(got.ErrorCode))
		}
		if time.Since(start) > 10*time.Second {
			t.Errorf("%s: waited", c.what)
		}
	}
}

func TestFetchWaitsForRecords(t *testing.T) {
	h := newHub(t)
	tp := h.topic("wind", 2)
	h.fill(tp.Partition(0), 0, 10, 10, false)
	r := h.raw()
	req := fetchRequest("wind", 0, 10)
	other := req.Topics[0].Partitions[0]
	other.Partition, other.FetchOffset = 1, 0
	req.Topics[0].Partitions = append(req.Topics[0].Partitions, other)
	req.MaxWaitMillis = 25_000
	req.SetVersion(11)

	r.send(req)
	h.fill(tp.Partition(1), 0, 5, 5, false) // before or during the wait: both must wake it
	start := time.Now()
	resp := r.receive(req, r.id).(*kmsg.FetchResponse)
	if n, _, _ := records(t, part(resp, 0, 1)); n != 5 || time.Since(start) > 20*time.Second {
		t.Fatalf("%d records after %v", n, time.Since(start))
	}

	// MinBytes asks for more than the first append has.
	req = fetchRequest("wind", 0, 10)
	req.MinBytes, req.MaxWaitMillis = 600, 25_000
	req.SetVersion(11)
	r.send(req)
	for i := range 5 {
		h.fill(tp.Partition(0), 10+10*i, 10, 10, false)
	}
	start = time.Now()
	resp = r.receive(req, r.id).(*kmsg.FetchResponse)
	if got := len(part(resp, 0, 0).RecordBatches); got < 600 || time.Since(start) > 20*time.Second {
		t.Fatalf("%d bytes after %v", got, time.Since(start))
	}

	// MaxWait ends with what there is.
	req = fetchRequest("wind", 0, 50)
	req.MinBytes, req.MaxWaitMillis = 1<<20, 60
	start = time.Now()
	resp = ask[*kmsg.FetchResponse](r, req, 11)
	if n, _, _ := records(t, part(resp, 0, 0)); n != 10 || time.Since(start) < 60*time.Millisecond {
		t.Fatalf("%d records after %v", n, time.Since(start))
	}
}

func TestShutdownEndsWaitingFetches(t *testing.T) {
	h := newHub(t)
	h.topic("wind", 1)
	r := h.raw()
	req := fetchRequest("wind", 0, 0)
	req.MaxWaitMillis = 60_000
	req.SetVersion(11)
	r.send(req)
	h.stop() // fails after 20 s
	r.closed("after shutdown")
}

func TestSlowReaderHarmsOnlyItself(t *testing.T) {
	h := newHub(t, func(c *kafka.Config) {
		c.MaxFetchBytes, c.ResponseBytes = 4<<20, 8<<20
		c.TransferTimeout = 60 * time.Second
	})
	p := h.topic("wind", 1).Partition(0)
	h.fill(p, 0, 300_000, 1000, false)
	// Enough readers that take nothing to use up the budget for all.
	for range 6 {
		nc, err := net.Dial("tcp", h.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		nc.(*net.TCPConn).SetReadBuffer(4096)
		req := fetchRequest("wind", 0, 0)
		req.MaxBytes = 64 << 20
		req.Topics[0].Partitions[0].PartitionMaxBytes = 64 << 20
		req.SetVersion(11)
		for i := range int32(8) { // each would be 4 MiB
			nc.Write(frame(req, i))
		}
	}
	cl := h.client(kgo.ConsumeTopics("wind"), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	got := poll(t, cl, 300_000)
	if len(got) != 300_000 || got[299_999].Offset != 299_999 {
		t.Fatalf("%d records", len(got))
	}
}

func TestReaderThatTakesNothingIsCut(t *testing.T) {
	h := newHub(t, func(c *kafka.Config) { c.TransferTimeout = 100 * time.Millisecond })
	h.fill(h.topic("wind", 1).Partition(0), 0, 300_000, 1000, false)
	nc, err := net.Dial("tcp", h.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	nc.(*net.TCPConn).SetReadBuffer(4096)
	req := fetchRequest("wind", 0, 0)
	req.MaxBytes = 64 << 20
	req.Topics[0].Partitions[0].PartitionMaxBytes = 64 << 20
	req.SetVersion(11)
	for i := range int32(8) {
		if _, err := nc.Write(frame(req, i)); err != nil {
			break
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for h.srv.Conns() > 0 {
		select {
		case <-ctx.Done():
			t.Fatal("the connection is still there")
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func TestFranzGoConsumes(t *testing.T) {
	h := newHub(t)
	tp := h.topic("wind", 4)
	for i, p := range tp.Partitions() {
		h.fill(p, 0, 1000, 1+i*33, i%2 == 0)
	}
	cl := h.client(kgo.ConsumeTopics("wind"), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	next := map[int32]int64{}
	for _, r := range poll(t, cl, 4000) {
		if r.Offset != next[r.Partition] || string(r.Headers[0].Value) != "wind/7" || r.Timestamp.UnixMilli() != t0+r.Offset*1000 {
			t.Fatalf("partition %d: offset %d after %d", r.Partition, r.Offset, next[r.Partition])
		}
		next[r.Partition]++
	}
	at := h.client(kgo.ConsumeTopics("wind"), kgo.ConsumeResetOffset(kgo.NewOffset().AfterMilli(t0+900_000)))
	if got := poll(t, at, 400); len(got) != 400 || got[0].Offset < 900 {
		t.Fatalf("%d records from %d", len(got), got[0].Offset)
	}
}

// After a backlog the end is told at once, and once.
func TestEndOfABacklogIsToldAtOnce(t *testing.T) {
	h := newHub(t)
	p := h.topic("wind", 1).Partition(0)
	h.fill(p, 0, 5000, 500, false)
	r := h.raw()
	resp := ask[*kmsg.FetchResponse](r, fetchRequest("wind", 0, 0), 11)
	if n := len(resp.Topics[0].Partitions[0].RecordBatches); n < 64<<10 {
		t.Fatalf("the backlog has %d bytes", n)
	}
	end := fetchRequest("wind", 0, 5000)
	end.MaxWaitMillis = 50_000 // the test's connection ends earlier
	if resp := ask[*kmsg.FetchResponse](r, end, 11); len(resp.Topics[0].Partitions[0].RecordBatches) != 0 {
		t.Fatal("records beyond the end")
	}
	r.send(end) // now it waits
	h.fill(p, 5000, 1, 1, false)
	resp = r.receive(end, r.id).(*kmsg.FetchResponse)
	if len(resp.Topics[0].Partitions[0].RecordBatches) == 0 {
		t.Fatal("the end was told twice")
	}
}
