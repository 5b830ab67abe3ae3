package main

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"time"

	firmwaresim "tailrace/firmware-sim"
	"tailrace/firmware-sim/data"
	"tailrace/storage/record"
	"tailrace/uplink/wire"
)

// wireBytes measures what a record takes on the wire, as payload of the data streams:
// backlog in frames of 128 KiB of batches of 20, and live one record a frame, over the
// modelled turbines and every recorded set, beside zstd -19 --long of the same JSON lines.
func wireBytes(ctx context.Context, e *env) ([]row, error) {
	most := 20_000
	if e.short {
		most = 4000
	}
	names := []string{"model, 5 signals", "model, all signals"}
	for _, s := range data.Sets() {
		names = append(names, s.Name)
	}
	const cmd = "go run ./cmd/bars -only wire-bytes"
	var rows []row
	logs, worst := 0.0, 0.0
	for _, name := range names {
		recs, err := readings(name, most)
		if err != nil {
			return rows, err
		}
		n := float64(len(recs))
		payload := 0
		for _, r := range recs {
			payload += len(r.value)
		}
		bound, err := zstdLong(ctx, e.dir, recs)
		if err != nil {
			return rows, err
		}
		var own, plain [2]int // backlog, live
		for i, shape := range []struct{ batch, frame, window int }{{20, 128 << 10, 512 << 10}, {1, 1, 32 << 10}} {
			if own[i], err = encoded(recs, shape.batch, shape.frame, shape.window, wire.CodecTelemetry); err != nil {
				return rows, err
			}
			if plain[i], err = encoded(recs, shape.batch, shape.frame, shape.window, wire.CodecZstd); err != nil {
				return rows, err
			}
		}
		ratio := float64(own[0]) / float64(bound)
		logs += math.Log(ratio)
		worst = max(worst, float64(own[0])/float64(plain[0]), float64(own[1])/float64(plain[1]))
		backlog, live, target := 1e9, 1e9, "reported"
		switch name {
		case "model, 5 signals":
			backlog, live, target = 30, 60, "zstd stream: backlog at most 30, live 60 by either"
		case "model, all signals":
			backlog, live, target = 72, 130, "zstd stream: backlog at most 72, live 130 by either"
		}
		rows = append(rows, row{fmt.Sprintf("wire bytes per record, %s, %.0f records of %.0f bytes", name, n, float64(payload)/n), target,
			fmt.Sprintf("backlog %.1f (zstd stream %.1f, zstd -19 --long %.1f: x %.2f), live %.1f (zstd stream %.1f)", float64(own[0])/n, float64(plain[0])/n, float64(bound)/n, ratio, float64(own[1])/n, float64(plain[1])/n),
			float64(plain[0])/n <= backlog && float64(own[1])/n <= live, cmd})
	}
	mean := math.Exp(logs / float64(len(names)))
	return append(rows,
		row{"telemetry transform against zstd -19 --long, geometric mean", "at most 0.6", fmt.Sprintf("%.2f", mean), mean <= 0.6, cmd},
		row{"telemetry transform against the zstd stream, worst set", "no set worse", fmt.Sprintf("x %.2f", worst), worst <= 1.0, cmd}), nil
}

type reading struct {
	ts             int64
	device, client string
	topic          string
	value          []byte
}

// readings are full payloads as devices publish them, one of each device in turn.
func readings(name string, most int) ([]reading, error) {
	type source struct {
		d   firmwaresim.Device
		src firmwaresim.Source
		seq int
	}
	var sources []*source
	signals := math.MaxInt
	switch name {
	case "model, 5 signals", "model, all signals":
		if name == "model, 5 signals" {
			signals = 5
		}
		for i := range 6 {
			rng := rand.New(rand.NewPCG(uint64(i), 1))
			sources = append(sources, &source{d: firmwaresim.Device{Site: "north", ID: fmt.Sprintf("WTG%02d", i+1)}, src: firmwaresim.NewTurbine("north", i, rng, 7)})
		}
	default:
		devices, err := firmwaresim.Recorded(name, 0)
		if err != nil {
			return nil, err
		}
		for _, d := range devices {
			sources = append(sources, &source{d: d, src: d.Source(nil, 0)})
		}
	}
	var out []reading
	var s firmwaresim.Sample
	for step, more := 0, true; more && len(out) < most; step++ {
		more = false
		for _, x := range sources {
			elapsed := time.Duration(step) * time.Second
			if !x.src.Next(elapsed, &s) {
				continue
			}
			more = true
			x.seq++
			ts := time.UnixMilli(1_793_534_400_000).Add(elapsed)
			if !s.Time.IsZero() {
				ts = s.Time
			}
			kind := "turbine"
			if x.d.Kind == firmwaresim.Machine {
				kind = "machine"
			}
			b := fmt.Appendf(nil, `{"site":%q,"%s":%q,"ts":%d,"seq":%d,"signals":{`, x.d.Site, kind, x.d.ID, ts.UnixMilli(), x.seq)
			for i, v := range s.Values[:min(len(s.Values), signals)] {
				if i > 0 {
					b = append(b, ',')
				}
				b = fmt.Appendf(b, "%q:", v.Name)
				switch {
				case v.Quoted:
					b = strconv.AppendQuote(b, v.Text)
				case v.Text == "":
					b = append(b, "null"...)
				default:
					b = append(b, v.Text...)
				}
			}
			out = append(out, reading{ts.UnixMilli(), x.d.ID, x.d.ClientID(), x.d.Topic("telemetry"), append(b, "}}"...)})
		}
	}
	return out, nil
}

// encoded is the size of the frames that carry the records, read back to be sure.
func encoded(recs []reading, batch, frame, window int, codec wire.Codec) (int, error) {
	w := wire.NewFrameWriter(codec, window)
	out := wire.AppendPreamble(nil, wire.LaneBulk)
	var b, all []byte
	var bl record.Builder
	first := int64(0)
	for i := 0; i < len(recs); {
		at := i
		bl.Reset(b)
		for ; i < len(recs) && i < at+batch; i++ {
			r := &recs[i]
			bl.Add(r.ts, []byte(r.device), r.value, []record.Header{{Key: "mqtt.topic", Value: []byte(r.topic)}, {Key: "mqtt.client", Value: []byte(r.client)}, {Key: "mqtt.qos", Value: []byte("1")}})
		}
		b = bl.Finish(int64(at), 0)
		if len(b) < frame && i < len(recs) {
			continue
		}
		var err error
		if out, err = w.Append(out, wire.FrameHeader{Partition: 1, Base: first, Count: int64(i) - first}, b); err != nil {
			return 0, err
		}
		all = append(all, b...)
		b, first = b[:0], int64(i)
	}
	in := bytes.NewReader(out)
	if _, err := wire.ReadPreamble(in); err != nil {
		return 0, err
	}
	r := wire.NewFrameReader(in, wire.MaxFrameBytes, 1<<20)
	defer r.Close()
	for len(all) > 0 {
		if _, err := r.Next(); err != nil {
			return 0, err
		}
		_, got, err := r.Read(nil)
		if err != nil {
			return 0, err
		}
		if !bytes.HasPrefix(all, got) {
			return 0, fmt.Errorf("codec %d did not give the same bytes back", codec)
		}
		all = all[len(got):]
	}
	return len(out), nil
}

// zstdLong is the size of the JSON lines under zstd -19 --long.
func zstdLong(ctx context.Context, dir string, recs []reading) (int, error) {
	var lines []byte
	for _, r := range recs {
		lines = append(append(lines, r.value...), '\n')
	}
	name := filepath.Join(dir, "lines")
	if err := os.WriteFile(name, lines, 0o600); err != nil {
		return 0, err
	}
	defer os.Remove(name)
	out, err := exec.CommandContext(ctx, "zstd", "-19", "--long", "-q", "-c", name).Output()
	if err != nil {
		return 0, fmt.Errorf("zstd: %w", err)
	}
	return len(out), nil
}

// linkSimulated takes its figures from the tests of the link in virtual time.
func linkSimulated(ctx context.Context, e *env) ([]row, error) {
	const cmd = "go test -count=1 -v -run 'StripingFills|LiveRecordsDoNot|FirstRecordAfter|Satellite' ./uplink/link"
	out, err := exec.CommandContext(ctx, "go", "test", "-count=1", "-v", "-run", "StripingFills|LiveRecordsDoNot|FirstRecordAfter|Satellite", "./uplink/link").CombinedOutput()
	if err != nil && !bytes.Contains(out, []byte("--- ")) {
		return nil, fmt.Errorf("%w: %s", err, out)
	}
	var rows []row
	want := map[string]float64{"0.0": 93, "0.1": 92, "1.0": 90, "5.0": 80}
	for _, m := range regexp.MustCompile(`loss ([0-9.]+) %, 16 bulk connections allowed: ([0-9]+) % of the link with ([0-9]+)`).FindAllSubmatch(out, -1) {
		share, _ := strconv.ParseFloat(string(m[2]), 64)
		w := want[string(m[1])]
		rows = append(rows, row{fmt.Sprintf("goodput of a backlog, 10 Mbit/s, 100 ms, %s %% loss", m[1]), fmt.Sprintf("at least %.0f %%", w), fmt.Sprintf("%.0f %% over %s connections", share, m[3]), share >= w, cmd})
	}
	for _, m := range regexp.MustCompile(`queue (125 KB|4 MB): ([0-9.]+) % of the link, live over the one-way delay p50 (\S+) p99 (\S+)`).FindAllSubmatch(out, -1) {
		share, _ := strconv.ParseFloat(string(m[2]), 64)
		p99, _ := time.ParseDuration(string(m[4]))
		w, limit := 88.0, 150*time.Millisecond
		if string(m[1]) == "4 MB" {
			w, limit = 78, 250*time.Millisecond
		}
		rows = append(rows, row{fmt.Sprintf("live records while a backlog drains, queue %s", m[1]), fmt.Sprintf("p99 at most %v over one-way delay, goodput at least %.0f %%", limit, w),
			fmt.Sprintf("p99 %v, p50 %s, goodput %.1f %%", p99.Round(time.Millisecond), m[3], share), share >= w && p99 <= limit, cmd})
	}
	for _, m := range regexp.MustCompile(`loss ([0-9]+) %: ([0-9.]+) % of the link`).FindAllSubmatch(out, -1) {
		share, _ := strconv.ParseFloat(string(m[2]), 64)
		rows = append(rows, row{fmt.Sprintf("goodput of a backlog, satellite 2 Mbit/s, 600 ms, %s %% loss", m[1]), "at least 90 %", fmt.Sprintf("%.1f %%", share), share >= 90, cmd})
	}
	for _, m := range regexp.MustCompile(`outage (\S+): first record after (\S+)`).FindAllSubmatch(out, -1) {
		d, _ := time.ParseDuration(string(m[2]))
		rows = append(rows, row{fmt.Sprintf("first record after an outage of %s, 100 ms", m[1]), "at most 700 ms", d.Round(time.Millisecond).String(), d <= 700*time.Millisecond, cmd})
	}
	if len(rows) < 8 {
		return rows, fmt.Errorf("the tests gave %d figures: %s", len(rows), out)
	}
	return rows, nil
}
