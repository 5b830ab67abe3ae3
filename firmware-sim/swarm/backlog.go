package swarm

import (
	"encoding/binary"
	mrand "math/rand/v2"
	"sync"
	"time"

	firmwaresim "tailrace/firmware-sim"
	"tailrace/storage/record"
	"tailrace/uplink"
	"tailrace/uplink/link"
	"tailrace/uplink/wire"
)

// log is what a node of the swarm has.
type log interface {
	link.Source
	add()                                           // a record more
	counts() (made, acked int64, waiting time.Time) // since when the oldest waits
}

const (
	perBatch    = 50
	someBatches = 1000 // every backlog is made of them, again and again: the bytes are in memory once
)

// Readings are batches of 180-byte readings of 50 turbines, with the headers that a node adds. Each has the base offset 0.
func Readings(seed uint64) ([][]byte, error) {
	farm, err := firmwaresim.ReadingFarm("swarm", perBatch, 180)
	if err != nil {
		return nil, err
	}
	sources := make([]firmwaresim.Source, len(farm))
	for i := range farm {
		sources[i] = farm[i].Source(mrand.New(mrand.NewPCG(seed, uint64(i))), seed)
	}
	begin := time.Now().Add(-someBatches * time.Second)
	out := make([][]byte, someBatches)
	var b record.Builder
	var sample firmwaresim.Sample
	for n := range out {
		b.Reset(nil)
		elapsed := time.Duration(n) * time.Second
		at := begin.Add(elapsed)
		for i := range farm {
			d := &farm[i]
			sources[i].Next(elapsed, &sample)
			b.Add(at.UnixMilli(), []byte(d.ID), d.Telemetry(&sample, at, uint64(i), uint64(n)),
				[]record.Header{{Key: "mqtt.topic", Value: []byte(d.Topic("telemetry"))}, {Key: "mqtt.client", Value: []byte(d.ClientID())}, {Key: "mqtt.qos", Value: []byte("1")}})
		}
		out[n] = b.Finish(0, 1)
	}
	return out, nil
}

// backlog is a log that was full from the start.
type backlog struct {
	*memLog // for its name and epoch
	of      [][]byte
	total   int64
	begin   time.Time

	mu   sync.Mutex // guards held
	held uplink.RangeSet
}

func (l *backlog) add() {}

func (l *backlog) acked() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.held) == 0 || l.held[0].From > 0 {
		return 0
	}
	return l.held[0].To
}

func (l *backlog) counts() (made, acked int64, waiting time.Time) {
	acked = l.acked()
	if acked < l.total {
		waiting = l.begin
	}
	return l.total, acked, waiting
}

func (l *backlog) Inventory() wire.Inventory {
	inv := l.memLog.Inventory()
	inv.Partitions[0].Start, inv.Partitions[0].Next = 0, l.total
	return inv
}

func (l *backlog) Bounds(string, int) (start, next int64) { return 0, l.total }

func (l *backlog) Read(dst []byte, _ string, _ int, from int64, maxBytes int) ([]byte, int64, error) {
	for had := len(dst); from < l.total; {
		n := from / perBatch
		b := l.of[n%int64(len(l.of))]
		if len(dst) > had && len(dst)-had+len(b) > maxBytes {
			break
		}
		at := len(dst)
		dst = append(dst, b...)
		binary.BigEndian.PutUint64(dst[at:], uint64(n*perBatch)) // no checksum covers the base offset
		from = (n + 1) * perBatch
	}
	return dst, from, nil
}

func (l *backlog) Acked(_ string, _ int, _ wire.ID, held uplink.RangeSet) {
	l.mu.Lock()
	l.held.AddSet(held)
	l.mu.Unlock()
}
