package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"tailrace/firmware-sim/rawload"
)

func httpGet(url string) (*http.Response, error) {
	resp, err := http.Get(url)
	if err == nil && resp.StatusCode != http.StatusOK {
		resp.Body.Close()
		err = errors.New(url + ": " + resp.Status)
	}
	return resp, err
}

// endToEnd measures from the publish at the device to the Kafka consumer at the
// centre, both disks synced on the way, at 200 and 5,000 records/s.
func endToEnd(ctx context.Context, e *env) ([]row, error) {
	var rows []row
	for _, rate := range []float64{200, 5000} {
		lat, fs, err := e.latencies(ctx, rate)
		if err != nil {
			return rows, err
		}
		limit := 3.0
		if rate > 200 {
			limit = 4
		}
		p50, p99 := lat[len(lat)/2], lat[len(lat)*99/100]
		p99limit := 2*fs.p99us/1000 + 3
		cmd := "go run ./cmd/bars -only end-to-end"
		rows = append(rows,
			row{fmt.Sprintf("publish to central consumer, %.0f/s, p50", rate), fmt.Sprintf("at most %.0f ms", limit), fmt.Sprintf("%.2f ms of %d", p50, len(lat)), p50 <= limit, cmd},
			row{fmt.Sprintf("publish to central consumer, %.0f/s, p99", rate), "at most 2 x fsync p99 + 3 ms", fmt.Sprintf("%.2f ms (limit %.2f)", p99, p99limit), p99 <= p99limit, cmd})
	}
	return rows, nil
}

func (e *env) latencies(ctx context.Context, rate float64) ([]float64, fsyncFigures, error) {
	var fs fsyncFigures
	h, quic, httpURL, kafka, err := e.hub(ctx)
	if err != nil {
		return nil, fs, err
	}
	defer h.stop()
	d, mqtt, _, err := e.edgeNode(ctx, quic)
	if err != nil {
		return nil, fs, err
	}
	defer d.stop()
	dir, err := e.sub("fsync")
	if err != nil {
		return nil, fs, err
	}
	if fs, err = fsyncLatency(dir+"/f", 2*time.Second); err != nil {
		return nil, fs, err
	}
	dur := 6 * time.Second
	lctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		_, err := rawload.Run(lctx, rawload.Config{Dial: rawload.DialTCP(mqtt, nil), QoS: 1, Clients: 10, Window: 20, PayloadBytes: 180,
			Rate: rate, Duration: dur})
		done <- err
	}()
	if err := h.waitFor(ctx, ready(httpURL+"/api/v1/topics/load")); err != nil {
		return nil, fs, err
	}
	cl, err := kgo.NewClient(kgo.SeedBrokers(kafka), kgo.ConsumeTopics("load"), kgo.ConsumeResetOffset(kgo.NewOffset().AtEnd()),
		kgo.FetchMaxWait(time.Second), kgo.FetchMinBytes(1))
	if err != nil {
		return nil, fs, err
	}
	defer cl.Close()
	var lat []float64
	for {
		pctx, pcancel := context.WithTimeout(ctx, 3*time.Second)
		f := cl.PollFetches(pctx)
		pcancel()
		now := time.Now()
		if f.NumRecords() == 0 {
			if ctx.Err() != nil {
				return nil, fs, ctx.Err()
			}
			break
		}
		f.EachRecord(func(r *kgo.Record) {
			// The timestamp is the arrival at the node, cut to a whole millisecond: the
			// figure is up to one millisecond too high, never too low.
			lat = append(lat, max(0, float64(now.Sub(r.Timestamp).Microseconds())/1000))
		})
	}
	if err := <-done; err != nil {
		return nil, fs, err
	}
	if len(lat) < int(rate*dur.Seconds()/3) {
		return nil, fs, fmt.Errorf("only %d records reached the consumer", len(lat))
	}
	slices.Sort(lat)
	return lat, fs, nil
}

// kafkaReplay reads a backlog by the Kafka protocol with kcat.
func kafkaReplay(ctx context.Context, e *env) ([]row, error) {
	h, quic, httpURL, kafka, err := e.hub(ctx)
	if err != nil {
		return nil, err
	}
	defer h.stop()
	d, mqtt, _, err := e.edgeNode(ctx, quic)
	if err != nil {
		return nil, err
	}
	defer d.stop()
	perClient := int64(40_000)
	if e.short {
		perClient = 4_000
	}
	r, err := rawload.Run(ctx, rawload.Config{Dial: rawload.DialTCP(mqtt, nil), QoS: 1, Clients: 50, Window: 50, PayloadBytes: 180, Count: perClient})
	if err != nil {
		return nil, err
	}
	drained := time.Now()
	if err := h.waitFor(ctx, func() error {
		var t struct {
			Records int64 `json:"records"`
		}
		if err := getJSON(httpURL+"/api/v1/topics/load", &t); err != nil {
			return err
		}
		if t.Records < r.Acked {
			return fmt.Errorf("%d of %d", t.Records, r.Acked)
		}
		return nil
	}); err != nil {
		return nil, err
	}
	ingest := float64(r.Acked) / (r.Seconds + time.Since(drained).Seconds())
	var rates []float64
	for range 3 {
		start := time.Now()
		out, err := exec.CommandContext(ctx, "sh", "-c", fmt.Sprintf("kcat -b %s -C -t load -o beginning -e -q -f '%%o\\n' | wc -l", kafka)).Output()
		if err != nil {
			return nil, err
		}
		var n int64
		if _, err := fmt.Sscan(string(out), &n); err != nil || n != r.Acked {
			return nil, fmt.Errorf("kcat read %s of %d records", strings.TrimSpace(string(out)), r.Acked)
		}
		rates = append(rates, float64(n)/time.Since(start).Seconds())
	}
	return []row{
		{"central replay by Kafka protocol (kcat, 180 B)", "at least 1,000,000 records/s", fmt.Sprintf("%.0f records/s (%d records)", median(rates), r.Acked), median(rates) >= 1e6, "go run ./cmd/bars -only replay"},
		{"device to hub, all fsynced, one node (no target yet)", "-", fmt.Sprintf("%.0f records/s", ingest), true, "go run ./cmd/bars -only replay"},
	}, nil
}

// onceLine is what tailrace demo --once prints.
type onceLine struct {
	Published  int64   `json:"published"`
	Acked      int64   `json:"acked"`
	Delivered  int64   `json:"delivered"`
	Lost       int64   `json:"lost"`
	Duplicate  int64   `json:"duplicate"`
	OutOfOrder int64   `json:"out_of_order"`
	Altered    int64   `json:"altered"`
	Seconds    float64 `json:"seconds"`
}

func runOnce(ctx context.Context, args ...string) (onceLine, string, error) {
	var l onceLine
	out, err := exec.CommandContext(ctx, bin("tailrace"), append([]string{"demo", "--once"}, args...)...).Output()
	line := strings.TrimSpace(string(out))
	if err != nil {
		var ee *exec.ExitError
		if errors.As(err, &ee) {
			err = fmt.Errorf("%w: %s %s", err, line, tailOf(string(ee.Stderr)))
		}
		return l, line, err
	}
	return l, line, json.Unmarshal(out, &l)
}

func demoOnce(ctx context.Context, _ *env) ([]row, error) {
	l, line, err := runOnce(ctx)
	if err != nil {
		return nil, err
	}
	ok := l.Lost == 0 && l.Duplicate == 0 && l.OutOfOrder == 0 && l.Altered == 0 && l.Delivered == l.Published && l.Published > 0
	return []row{{"demo with recorded wind data: consumer equals source", "nothing lost, doubled, altered, out of order", line, ok, "bin/tailrace demo --once"}}, nil
}
