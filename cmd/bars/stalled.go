package main

import (
	"context"
	"fmt"
	"net"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// kafkaStalled measures what consumers that ask for everything and take nothing cost a
// producer: the same records with and without fifty of them, in turns.
func kafkaStalled(ctx context.Context, e *env) ([]row, error) {
	h, _, _, addr, err := e.hub(ctx)
	if err != nil {
		return nil, err
	}
	defer h.stop()
	cl, err := kgo.NewClient(kgo.SeedBrokers(addr), kgo.DefaultProduceTopic("readings"), kgo.ProducerLinger(5*time.Millisecond), kgo.MaxBufferedRecords(50_000))
	if err != nil {
		return nil, err
	}
	defer cl.Close()
	if _, err := kadm.NewClient(cl).CreateTopic(ctx, 1, 1, nil, "readings"); err != nil {
		return nil, err
	}
	records, rounds, stalled := 300_000, 7, 50
	if e.short {
		records, rounds = 200_000, 5
	}
	value := make([]byte, 180)
	for i := range value {
		value[i] = byte(i * 37)
	}
	produce := func() (float64, error) {
		began := time.Now()
		var first error
		for range records {
			cl.Produce(ctx, &kgo.Record{Value: value}, func(_ *kgo.Record, err error) {
				if err != nil && first == nil {
					first = err // promises are called one after the other
				}
			})
		}
		if err := cl.Flush(ctx); err != nil {
			return 0, err
		}
		return float64(records) / time.Since(began).Seconds(), first
	}
	if _, err := produce(); err != nil { // something to ask for
		return nil, err
	}
	fetch := kmsg.NewPtrFetchRequest()
	fetch.SetVersion(11)
	fetch.MaxBytes, fetch.MaxWaitMillis = 50<<20, 500
	ft, fp := kmsg.NewFetchRequestTopic(), kmsg.NewFetchRequestTopicPartition()
	ft.Topic, fp.PartitionMaxBytes = "readings", 50<<20
	ft.Partitions = append(ft.Partitions, fp)
	fetch.Topics = append(fetch.Topics, ft)
	request := kmsg.NewRequestFormatter().AppendRequest(nil, fetch, 1)
	rate := map[bool][]float64{}
	for round := range 2 * rounds {
		with := round%2 == 1
		var conns []net.Conn
		for range stalled {
			if !with {
				break
			}
			c, err := net.Dial("tcp", addr)
			if err != nil {
				return nil, err
			}
			conns = append(conns, c)
			c.(*net.TCPConn).SetReadBuffer(4096)
			if _, err := c.Write(request); err != nil {
				return nil, err
			}
		}
		if with { // what they asked for was read and stands before them
			if err := pause(ctx, 3*time.Second); err != nil {
				return nil, err
			}
		}
		r, err := produce()
		for _, c := range conns {
			c.Close()
		}
		if err != nil {
			return nil, err
		}
		rate[with] = append(rate[with], r)
	}
	free, beside := median(rate[false]), median(rate[true])
	return []row{{fmt.Sprintf("produce beside %d consumers that take nothing, against without", stalled), "at least 0.9",
		fmt.Sprintf("%.0f / %.0f records/s = %.2f (median of %d in turns)", beside, free, beside/free, rounds), beside >= 0.9*free, "go run ./cmd/bars -only kafka-stalled"}}, nil
}
