package kafka_test

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"tailrace/storage/record"
	"tailrace/uplink/hub/kafka"
)

// TestIdleConnectionsCostLittle: 5,000 clients (short: 500) that have asked something, as
// every client does, and wait. What a connection takes is stated in DESIGN.md; the bound
// here is for both ends, which are in this process.
func TestIdleConnectionsCostLittle(t *testing.T) {
	n := 5000
	if testing.Short() {
		n = 500
	}
	const bound = 16 << 10
	h := newHub(t, func(c *kafka.Config) { c.MaxConns = n + 10 })
	h.fill(h.topic("wind", 1).Partition(0), 0, 100, 10, false)
	used := func() int64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapInuse + m.StackInuse)
	}
	before := used()
	meta := kmsg.NewPtrMetadataRequest()
	meta.SetVersion(9)
	requests := append(frame(kmsg.NewPtrApiVersionsRequest(), 1), frame(meta, 2)...)
	conns := make([]net.Conn, n)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			buf := make([]byte, 64<<10)
			for k := i; k < n; k += 8 {
				nc, err := net.Dial("tcp", h.addr)
				if err != nil {
					t.Error(err)
					return
				}
				conns[k] = nc
				nc.SetDeadline(time.Now().Add(time.Minute))
				if _, err := nc.Write(requests); err != nil {
					t.Error(err)
					return
				}
				for range 2 {
					if _, err := io.ReadFull(nc, buf[:4]); err != nil {
						t.Error(err)
						return
					}
					if _, err := io.ReadFull(nc, buf[:binary.BigEndian.Uint32(buf)]); err != nil {
						t.Error(err)
						return
					}
				}
			}
		})
	}
	wg.Wait()
	defer func() {
		for _, nc := range conns {
			if nc != nil {
				nc.Close()
			}
		}
	}()
	if t.Failed() {
		return
	}
	per := (used() - before) / int64(n)
	t.Logf("%d idle connections: %d bytes each, both ends", h.srv.Conns(), per)
	if per > bound || h.srv.Conns() != n {
		t.Errorf("%d connections take %d bytes each, the bound is %d", h.srv.Conns(), per, bound)
	}
	// The hub serves others meanwhile.
	cl := h.client(kgo.DefaultProduceTopic("wind"), consumeAll("wind"))
	if err := cl.ProduceSync(withTimeout(t), kgo.StringRecord("x")).FirstErr(); err != nil {
		t.Fatal(err)
	}
	poll(t, cl, 101)
}

// TestStalledConsumersChangeNothingForProducers: consumers that ask for everything and
// take nothing. What they hold is bounded by the response budget, producers are answered
// and other consumers served. (bars -only kafka-stalled has the rates.)
func TestStalledConsumersChangeNothingForProducers(t *testing.T) {
	const budget = 16 << 20
	h := newHub(t, func(c *kafka.Config) { c.ResponseBytes = budget; c.TransferTimeout = 5 * time.Minute })
	tp := h.topic("wind", 1)
	for i := range 20 { // 20 MiB
		value := make([]byte, 1<<20)
		for j := range value {
			value[j] = byte(i*j*31 + j>>8)
		}
		var bl record.Builder
		bl.Reset(nil)
		bl.Add(t0, []byte("k"), value, nil)
		a := h.store.NewAppend("")
		if err := a.Batch(tp.Partition(0), record.Batch(bl.Finish(0, 0)), nil); err != nil {
			t.Fatal(err)
		}
		h.commit(a)
	}
	req := fetchRequest("wind", 0, 0)
	req.MaxBytes = 50 << 20
	req.Topics[0].Partitions[0].PartitionMaxBytes = 50 << 20
	req.SetVersion(11)
	for range 50 {
		r := h.raw()
		r.nc.(*net.TCPConn).SetReadBuffer(4096)
		if _, err := r.nc.Write(frame(req, 1)); err != nil {
			t.Fatal(err)
		}
	}
	cl := h.client(kgo.DefaultProduceTopic("wind"), kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{"wind": {0: kgo.NewOffset().At(20)}}))
	for i := range 200 {
		if err := cl.ProduceSync(withTimeout(t), kgo.StringRecord(fmt.Sprint(i))).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	if got := poll(t, cl, 200); string(got[199].Value) != "199" {
		t.Fatalf("%q", got[199].Value)
	}
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	// Each may hold one batch (1 MiB) beyond the budget: a response is never empty for want of it.
	if m.HeapInuse > budget+60<<20+64<<20 {
		t.Errorf("%d MiB of heap", m.HeapInuse>>20)
	}
}
