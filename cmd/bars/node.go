package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"time"

	"tailrace/firmware-sim/rawload"
)

const mb = 1e6

func binarySize(context.Context, *env) ([]row, error) {
	st, err := os.Stat(bin("tailrace-edge"))
	if err != nil {
		return nil, fmt.Errorf("%w (make build)", err)
	}
	size := float64(st.Size()) / mb
	return []row{{"node binary, stripped", "under 20 MB", fmt.Sprintf("%.1f MB", size), size < 20, "make build && ls -l bin/tailrace-edge"}}, nil
}

// sampleRSS returns the highest resident memory seen during d, looked at ten times a second.
func (d *daemon) sampleRSS(ctx context.Context, dur time.Duration) (float64, error) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	var top int64
	for end := time.Now().Add(dur); time.Now().Before(end); {
		n, err := d.rss()
		if err != nil {
			return 0, err
		}
		top = max(top, n)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return float64(top) / mb, ctx.Err()
		}
	}
	return float64(top) / mb, nil
}

// memory measures a node that is connected to a hub: idle, then at 1,000 records/s
// from 50 devices.
func memory(ctx context.Context, e *env) ([]row, error) {
	h, quic, _, _, err := e.hub(ctx)
	if err != nil {
		return nil, err
	}
	defer h.stop()
	d, mqtt, _, err := e.edgeNode(ctx, quic)
	if err != nil {
		return nil, err
	}
	defer d.stop()
	dur := 30 * time.Second
	if e.short {
		dur = 5 * time.Second
	}
	idle, err := d.sampleRSS(ctx, 5*time.Second)
	if err != nil {
		return nil, err
	}
	lctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan rawload.Result, 1)
	go func() {
		r, _ := rawload.Run(lctx, rawload.Config{Dial: rawload.DialTCP(mqtt, nil), QoS: 1, Clients: 50, Window: 20,
			PayloadBytes: 180, Rate: 1000, Duration: dur + time.Second})
		done <- r
	}()
	busy, err := d.sampleRSS(ctx, dur)
	if err != nil {
		return nil, err
	}
	r := <-done
	if r.Acked < int64(900*dur.Seconds()) {
		return nil, fmt.Errorf("only %d records were acknowledged in %v", r.Acked, dur)
	}
	cmd := "go run ./cmd/bars -only memory"
	return []row{
		{"idle node, connected, RSS", "under 20 MB", fmt.Sprintf("%.1f MB", idle), idle < 20, cmd},
		{"node at 1,000 records/s, RSS", "under 40 MB", fmt.Sprintf("%.1f MB at most in %v (%d acked)", busy, dur, r.Acked), busy < 40, cmd},
	}, nil
}

// status is what we read of a node's or hub's answers.
func getJSON(url string, into any) error {
	resp, err := httpGet(url)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return json.NewDecoder(resp.Body).Decode(into)
}
