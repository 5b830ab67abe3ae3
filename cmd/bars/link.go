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
	"strings"
	"time"

	firmwaresim "tailrace/firmware-sim"
	"tailrace/firmware-sim/data"
	"tailrace/storage/record"
	"tailrace/uplink/wire"
)

// wireBytes measures what a record takes on the wire, as payload of the data streams:
// backlog in frames of 128 KiB of batches of 20, and live one record a frame, over the
// modelled turbines and every recorded set, beside zstd -19 --long of the same JSON lines.
// IP and UDP headers, QUIC and acknowledgements come on top: about 8 % of a backlog, and
// liveHeaders for a live record that travels alone.
func wireBytes(ctx context.Context, e *env) ([]row, error) {
	most := 20_000
	if e.short {
		most = 4000
	}
	cmd := fmt.Sprintf("go run ./cmd/bars -only wire-bytes (%d readings a set)", most)
	var rows []row
	logs, worst := 0.0, 0.0
	all, err := readingSets()
	if err != nil {
		return nil, err
	}
	for _, set := range all {
		recs := readings(set, most)
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
		rows = append(rows, row{fmt.Sprintf("wire bytes per record, %s, %.0f records of %.0f bytes", set.name, n, float64(payload)/n),
			fmt.Sprintf("backlog at most %.0f, live at most %.0f", set.backlog, set.live),
			fmt.Sprintf("backlog %.1f (zstd stream %.1f, zstd -19 --long %.1f: x %.2f), live %.1f (zstd stream %.1f; a packet of its own: + %d of QUIC, UDP and IP)",
				float64(own[0])/n, float64(plain[0])/n, float64(bound)/n, ratio, float64(own[1])/n, float64(plain[1])/n, liveHeaders),
			float64(own[0])/n <= set.backlog && float64(own[1])/n <= set.live, cmd})
	}
	mean := math.Exp(logs / float64(len(all)))
	return append(rows,
		row{"telemetry transform against zstd -19 --long, geometric mean", "at most 0.6", fmt.Sprintf("%.2f", mean), mean <= 0.6, cmd},
		row{"telemetry transform against the zstd stream, worst set, backlog or live", "no set worse", fmt.Sprintf("x %.2f", worst), worst <= 1.0, cmd}), nil
}

// liveHeaders is what a packet with one record has besides: IPv4 and UDP 28, QUIC's short header,
// packet number and tag about 24, the stream frame's header about 4.
const liveHeaders = 56

// readingSet is where readings come from, and the bars of bytes a record.
type readingSet struct {
	name          string
	devices       []firmwaresim.Device
	backlog, live float64
}

// readingSets are the modelled turbines of two sizes and every recorded set. A set without
// a bar of its own has that of the size next above it.
func readingSets() ([]readingSet, error) {
	small, err := firmwaresim.ReadingFarm("north", 6, 180)
	if err != nil {
		return nil, err
	}
	wide, err := firmwaresim.ReadingFarm("north", 6, 430)
	if err != nil {
		return nil, err
	}
	out := []readingSet{
		{"modelled turbines, 180-byte readings", small, 30, 60},
		{"modelled turbines, 430-byte readings", wide, 72, 130},
		{"modelled turbines of the demo", firmwaresim.WindFarm("north", 6), 72, 130},
	}
	for _, s := range data.Sets() {
		devices, err := firmwaresim.Recorded(s.Name, 0)
		if err != nil {
			return nil, err
		}
		set := readingSet{"recorded " + s.Name, devices, 72, 130}
		var first firmwaresim.Sample
		if devices[0].Source(nil, 0).Next(0, &first); len(devices[0].Telemetry(&first, time.Now(), 1, 1)) <= 200 {
			set.backlog, set.live = 30, 60
		}
		out = append(out, set)
	}
	return out, nil
}

type reading struct {
	ts             int64
	device, client string
	topic          string
	value          []byte
}

// readings are payloads as devices publish them, one of each device in turn, up to most.
func readings(set readingSet, most int) (out []reading) {
	var sources []firmwaresim.Source
	for i, d := range set.devices {
		sources = append(sources, d.Source(rand.New(rand.NewPCG(uint64(i), 1)), 7))
	}
	var s firmwaresim.Sample
	for step, more := 0, true; more && len(out) < most; step++ {
		more = false
		for i, src := range sources {
			elapsed := time.Duration(step) * time.Second
			if len(out) == most || !src.Next(elapsed, &s) {
				continue
			}
			more = true
			d, ts := &set.devices[i], time.UnixMilli(1_793_534_400_000).Add(elapsed)
			if !s.Time.IsZero() {
				ts = s.Time
			}
			out = append(out, reading{ts.UnixMilli(), d.ID, d.ClientID(), d.Topic("telemetry"), d.Telemetry(&s, ts, 0x5eed0000+uint64(i), uint64(step+1))})
		}
	}
	return out
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

// linkSimulated takes its figures from the tests of the link in virtual time. Ten seeds each, the
// worst counts: neither the scheduler nor QUIC's own random numbers are seeded.
func linkSimulated(ctx context.Context, e *env) ([]row, error) {
	seeds := "10"
	if e.short {
		seeds = "2"
	}
	const tests = "TestDrainBars|TestDrainAfter|TestFirstRecordAfter|TestHubRestartIsNoticed|TestIdleDay|TestFallsBackToTCP"
	cmd := fmt.Sprintf("go test -count=1 -v -run '%s' ./uplink/link -bars.seeds %s", tests, seeds)
	raw, err := exec.CommandContext(ctx, "go", "test", "-count=1", "-v", "-timeout=0", "-run", tests, "./uplink/link", "-bars.seeds", seeds).CombinedOutput()
	out := string(raw)
	if err != nil && !strings.Contains(out, "--- ") {
		return nil, fmt.Errorf("%w: %s", err, tailOf(out))
	}
	var rows []row
	all := func(pattern string) [][]string { return regexp.MustCompile(pattern).FindAllStringSubmatch(out, -1) }
	num := func(s string) float64 { f, _ := strconv.ParseFloat(s, 64); return f }
	for _, m := range all(`BAR (.+?) \| ([0-9.]+) (\d+) \| min ([0-9.]+) median ([0-9.]+) \| worst live p99 (\d+) ms \| (.+)`) {
		share, limit := num(m[2])*100, num(m[3])
		target := fmt.Sprintf("at least %.0f %%", share)
		if limit > 0 {
			target += fmt.Sprintf(", live p99 at most %.0f ms over one-way delay", limit)
		}
		rows = append(rows, row{"goodput of a backlog, " + m[1], target, fmt.Sprintf("%s %% worst, %s %% median, live p99 %s ms worst; %s", m[4], m[5], m[6], m[7]),
			num(m[4]) >= share && (limit == 0 || num(m[6]) <= limit), cmd})
	}
	for _, m := range all(`DRAIN (.+?) \| ([0-9.]+) (\d+) \| ([0-9.]+) s (\d+) records/s \| (.+)`) {
		target := ""
		if num(m[2]) > 0 {
			target = fmt.Sprintf("under %.0f s ", num(m[2]))
		}
		if num(m[3]) > 0 {
			target += fmt.Sprintf("at least %s records/s", m[3])
		}
		rows = append(rows, row{"drain after an outage of " + m[1] + ", 2,000 readings/s of 180 bytes, 10 Mbit/s, 100 ms, 1 % loss", strings.TrimSpace(target),
			fmt.Sprintf("%s s from link-up, %s records/s, worst of %s", m[4], m[5], m[6]), (num(m[2]) == 0 || num(m[4]) <= num(m[2])) && num(m[5]) >= num(m[3]), cmd})
	}
	for _, m := range all(`(silent|link-up event,) outage (\S+): first record after (\S+)`) {
		d, _ := time.ParseDuration(m[3])
		rows = append(rows, row{"first record, " + strings.TrimSuffix(m[1], ",") + ", outage of " + m[2] + ", 100 ms", "at most 0.5 s and two round trips", d.Round(time.Millisecond).String(), d <= 700*time.Millisecond, cmd})
	}
	for _, m := range all(`BAR hub restart noticed, (.+?): worst of 8 (\S+), at most (\S+)`) {
		d, _ := time.ParseDuration(m[2])
		limit, _ := time.ParseDuration(m[3])
		rows = append(rows, row{"hub restart noticed, " + m[1], "within " + m[3], m[2] + ", worst of 8", d <= limit+10*time.Millisecond, cmd})
	}
	for _, m := range all(`an idle day: ([0-9.]+) MB up, ([0-9.]+) MB down`) {
		mb := num(m[1]) + num(m[2])
		rows = append(rows, row{"staying connected and idle for a day, IP and UDP headers included", "under 1 MB", fmt.Sprintf("%.2f MB", mb), mb < 1, cmd})
	}
	for _, m := range all(`TCP took over after (\S+)`) {
		d, _ := time.ParseDuration(m[1])
		rows = append(rows, row{"TCP takes over from a QUIC path that died one way", "under 10 s", m[1], d < 10*time.Second, cmd})
	}
	if len(rows) < 20 {
		return rows, fmt.Errorf("the tests gave %d figures: %s", len(rows), tailOf(out))
	}
	return rows, nil
}
