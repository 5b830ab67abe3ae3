package main

import (
	"context"
	"fmt"
	"time"

	"tailrace/firmware-sim/swarm"
)

// ingestFigures are of the middle of a drain: from a tenth of the records acknowledged to nine tenths.
type ingestFigures struct {
	rate       float64 // records acknowledged a second
	hub, nodes float64 // CPU seconds per million
	hubCores   float64
}

// drainBacklogs lets n nodes with backlogs of 180-byte readings drain them into a hub of its own: link.Client with
// the telemetry transform, QUIC over loopback and TLS, decoding, the hub's store with fsync before each ack. The nodes are one process.
func (e *env) drainBacklogs(ctx context.Context, n, each int) (f ingestFigures, err error) {
	hub, quic, _, _, err := e.hub(ctx)
	if err != nil {
		return f, err
	}
	defer hub.stop()
	sw, err := e.startSwarm(quic, n, "--backlog", fmt.Sprint(each), "--every", "100ms")
	if err != nil {
		return f, err
	}
	defer sw.stop()
	total := int64(n) * int64(each)
	var first, last swarm.Stats
	var cpu [4]time.Duration
	sample := func(at int, share int64, s *swarm.Stats) error {
		_, _, err := sw.until(ctx, 3*time.Minute, func(x swarm.Stats) bool { *s = x; return x.Acked >= total*share/10 })
		if err == nil {
			cpu[at], err = hub.cpu()
		}
		if err == nil {
			cpu[at+1], err = cpuOf(sw.cmd.Process.Pid)
		}
		return err
	}
	if err := sample(0, 1, &first); err != nil {
		return f, err
	}
	begin := time.Now()
	if err := sample(2, 9, &last); err != nil {
		return f, err
	}
	took, millions := time.Since(begin).Seconds(), float64(last.Acked-first.Acked)/1e6
	f.rate, f.hub, f.nodes = millions*1e6/took, (cpu[2]-cpu[0]).Seconds()/millions, (cpu[3]-cpu[1]).Seconds()/millions
	f.hubCores = (cpu[2] - cpu[0]).Seconds() / took
	return f, nil
}

// hubIngest is the hub's ingest from many nodes. The nodes compress on the same cores: what counts is what both
// ends reach together. What the hub alone took is said beside it.
func hubIngest(ctx context.Context, e *env) ([]row, error) {
	each := 150_000
	if e.short {
		each = 30_000
	}
	f, err := e.drainBacklogs(ctx, 50, each)
	if err != nil {
		return nil, err
	}
	return []row{{"hub ingest from 50 nodes over QUIC, fsync before each ack, 180-byte readings, both ends on the machine's cores", "at least 500 k records/s",
		fmt.Sprintf("%.0f k records/s (CPU-s per million: hub %.2f, on %.2f cores; nodes %.2f)", f.rate/1e3, f.hub, f.hubCores, f.nodes),
		f.rate >= 500e3, "go run ./cmd/bars -only hub-ingest"}}, nil
}
