package kafka_test

import (
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"tailrace/storage"
	"tailrace/storage/storagetest"
)

// An answer without error means fsynced: when the fsync fails there is none,
// and what was refused is neither there later nor taken for a repetition.
func TestProduceIsAcknowledgedOnlyAfterTheFsync(t *testing.T) {
	fs, err := storagetest.NewCrashFS(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer fs.Close()
	store, err := storage.Open(storage.Config{Dir: fs.Dir(), FS: fs, NodeID: "hub", RetentionInterval: -1, Classes: []storage.ClassConfig{{Name: "main"}}})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	h := serve(t, store)
	defer h.stop()
	p := h.topic("wind", 1).Partition(0)
	r := h.raw()
	send := func(req *kmsg.ProduceRequest) kmsg.ProduceResponseTopicPartition {
		return ask[*kmsg.ProduceResponse](r, req, 8).Topics[0].Partitions[0]
	}
	if got := send(produceRequest("wind", 0, sequenced(5, 0, 0, "first"))); got.ErrorCode != 0 {
		t.Fatalf("%+v", got)
	}
	fs.Inject(storagetest.Fault{Call: storagetest.Sync, Err: syscall.EIO, Forever: true})
	for _, req := range []*kmsg.ProduceRequest{
		produceRequest("wind", 0, batchOf("plain")),
		produceRequest("wind", 0, sequenced(5, 0, 1, "second")),
	} {
		for _, acks := range []int16{1, -1} {
			req.Acks = acks
			if got := send(req); got.ErrorCode != kerr.KafkaStorageError.Code || got.BaseOffset != -1 || got.ErrorMessage == nil {
				t.Errorf("acks=%d with a failing disk: %+v", acks, got)
			}
		}
	}
	if got := ask[*kmsg.OffsetCommitResponse](h.raw(), sample(8, 8, [16]byte{}), 8); codes(got)[0] == 0 {
		t.Error("an offset commit is answered with a failing disk")
	}
	if p.HighWatermark() != 1 {
		t.Errorf("high watermark %d", p.HighWatermark())
	}
	fs.Heal()
	got := send(produceRequest("wind", 0, sequenced(5, 0, 1, "second")))
	for deadline := time.Now().Add(30 * time.Second); got.ErrorCode == kerr.KafkaStorageError.Code && time.Now().Before(deadline); {
		got = send(produceRequest("wind", 0, sequenced(5, 0, 1, "second"))) // the store reopens in its own time
		runtime.Gosched()
	}
	if got.ErrorCode != 0 || got.BaseOffset != 1 {
		t.Errorf("after the disk is well again: %+v", got)
	}
	if got := send(produceRequest("wind", 0, sequenced(5, 0, 1, "second"))); got.ErrorCode != 0 || got.BaseOffset != 1 || p.HighWatermark() != 2 {
		t.Errorf("the same again: %+v, high watermark %d", got, p.HighWatermark())
	}
}
