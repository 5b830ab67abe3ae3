package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"tailrace/firmware-sim/floor"
	"tailrace/firmware-sim/rawload"
)

const payloadBytes = 120

// side is one server of a comparison.
type side struct {
	name  string
	start func(context.Context) (addr string, cpu func() time.Duration, stop func(), err error)

	rate, cpuPerM, p50, p99 []float64
	genCPU                  []float64
}

func (e *env) mosquitto(ctx context.Context) (string, func() time.Duration, func(), error) {
	dir, err := e.sub("mosquitto")
	if err != nil {
		return "", nil, nil, err
	}
	port, err := freePort()
	if err != nil {
		return "", nil, nil, err
	}
	conf := fmt.Sprintf("listener %d 127.0.0.1\nallow_anonymous true\npersistence false\nmax_inflight_messages 100\nmax_queued_messages 100000\n", port)
	if err := os.WriteFile(filepath.Join(dir, "m.conf"), []byte(conf), 0o644); err != nil {
		return "", nil, nil, err
	}
	d, err := start(dir, "mosquitto", "-c", "m.conf")
	if err != nil {
		return "", nil, nil, err
	}
	addr := fmt.Sprintf("127.0.0.1:%d", port)
	if err := d.waitFor(ctx, listening(addr)); err != nil {
		d.stop()
		return "", nil, nil, err
	}
	return addr, func() time.Duration { c, _ := d.cpu(); return c }, func() { d.stop() }, nil
}

func (e *env) edgeSide(ctx context.Context) (string, func() time.Duration, func(), error) {
	d, mqtt, _, err := e.edgeNode(ctx, "")
	if err != nil {
		return "", nil, nil, err
	}
	return mqtt, func() time.Duration { c, _ := d.cpu(); return c }, func() { d.stop() }, nil
}

// floorSide runs the bare publish path in a process of its own, this program again,
// so that its cost is counted as the others' is.
func (e *env) floorSide(ctx context.Context) (string, func() time.Duration, func(), error) {
	dir, err := e.sub("floor")
	if err != nil {
		return "", nil, nil, err
	}
	port, err := freePort()
	if err != nil {
		return "", nil, nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return "", nil, nil, err
	}
	addr := fmt.Sprintf("127.0.0.1:%d", port)
	d, err := start(dir, self, "floor-server", addr)
	if err != nil {
		return "", nil, nil, err
	}
	if err := d.waitFor(ctx, listening(addr)); err != nil {
		d.stop()
		return "", nil, nil, err
	}
	return addr, func() time.Duration { c, _ := d.cpu(); return c }, func() { d.stop() }, nil
}

func serveFloor(ctx context.Context, addr string) error {
	f, err := os.Create("floor.log")
	if err != nil {
		return err
	}
	defer f.Close()
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	return (&floor.Server{File: f}).Serve(ctx, ln)
}

// compare runs the sides in turns and fills their figures.
func compare(ctx context.Context, sides []*side, clients, window, rounds int, dur time.Duration) error {
	for range rounds {
		for _, s := range sides {
			addr, cpu, stop, err := s.start(ctx)
			if err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
			before := cpu()
			r, err := rawload.Run(ctx, rawload.Config{Dial: rawload.DialTCP(addr, nil), QoS: 1, Clients: clients, Window: window,
				PayloadBytes: payloadBytes, Duration: dur, CleanStart: true})
			used := cpu() - before
			stop()
			if err == nil && r.Failed > 0 {
				err = fmt.Errorf("%d clients failed: %s", r.Failed, r.FirstError)
			}
			if err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
			s.rate = append(s.rate, r.PerSecond)
			s.cpuPerM = append(s.cpuPerM, used.Seconds()*1e6/float64(max(r.Acked, 1)))
			s.genCPU = append(s.genCPU, r.CPUPerM)
			s.p50 = append(s.p50, float64(r.P50us))
			s.p99 = append(s.p99, float64(r.P99us))
			fmt.Fprintf(os.Stderr, "bars:   %dx%d %-10s %7.0f/s  p50 %d us  p99 %d us  server %.2f, generator %.2f CPU-s per million\n",
				clients, window, s.name, r.PerSecond, r.P50us, r.P99us, s.cpuPerM[len(s.cpuPerM)-1], r.CPUPerM)
		}
	}
	return nil
}

func ingest(ctx context.Context, e *env) ([]row, error) {
	var rows []row
	for _, clients := range []int{50, 500} {
		mosq := &side{name: "mosquitto", start: e.mosquitto}
		edge := &side{name: "tailrace", start: e.edgeSide}
		bare := &side{name: "floor", start: e.floorSide}
		rounds, dur := 3, 4*time.Second
		if e.short {
			rounds, dur = 1, 2*time.Second
		}
		if err := compare(ctx, []*side{mosq, edge, bare}, clients, 20, rounds, dur); err != nil {
			return rows, err
		}
		cmd := "go run ./cmd/bars -only ingest"
		name := fmt.Sprintf("durable ingest %dx20, 120 B, QoS 1", clients)
		m, t, f := median(mosq.rate), median(edge.rate), median(bare.rate)
		rows = append(rows,
			row{name + " against mosquitto in memory", "more than 1x", fmt.Sprintf("%.2fx (%.0f against %.0f msgs/s)", t/m, t, m), t > m, cmd},
			row{name + " against mosquitto in memory (MQTT issue)", "at least 3x", fmt.Sprintf("%.2fx", t/m), t >= 3*m, cmd},
			row{name + " against the bare floor (MQTT issue)", "at least 0.65", fmt.Sprintf("%.2f (floor %.0f msgs/s)", t/f, f), t >= 0.65*f, cmd},
			row{name + ", CPU-s per million (MQTT issue)", "at most 2", fmt.Sprintf("%.2f (mosquitto %.2f, floor %.2f, generator %.2f)",
				median(edge.cpuPerM), median(mosq.cpuPerM), median(bare.cpuPerM), median(edge.genCPU)), median(edge.cpuPerM) <= 2, cmd})
	}
	return rows, nil
}

// ackLatency compares one client with one publish in flight with a bare append+fdatasync.
func ackLatency(ctx context.Context, e *env) ([]row, error) {
	edge := &side{name: "tailrace", start: e.edgeSide}
	bare := &side{name: "floor", start: e.floorSide}
	if err := compare(ctx, []*side{edge, bare}, 1, 1, 3, 3*time.Second); err != nil {
		return nil, err
	}
	dir, err := e.sub("fsync")
	if err != nil {
		return nil, err
	}
	fs, err := fsyncLatency(filepath.Join(dir, "f"), 2*time.Second)
	if err != nil {
		return nil, err
	}
	over := (median(edge.p50) - fs.p50us) / 1000
	steady, err := e.steadyLatency(ctx)
	return append([]row{{"ack latency 1x1, p50 over one fsync", "at most 0.2 ms", fmt.Sprintf("%.3f ms (ack %.0f us, fsync %.0f us, floor server %.0f us)",
		over, median(edge.p50), fs.p50us, median(bare.p50)), over <= 0.2, "go run ./cmd/bars -only latency"}}, steady...), err
}

// steadyLatency is publish to PUBACK at a rate far below the limit, in three runs, each
// beside one of the floor server: what that needs is the disk's and the machine's.
func (e *env) steadyLatency(ctx context.Context) ([]row, error) {
	const rate = 5000
	dur := 10 * time.Second
	if e.short {
		dur = 3 * time.Second
	}
	var p50, p99, floor99 []float64
	for i := range 6 {
		start := e.edgeSide
		if i%2 == 1 {
			start = e.floorSide
		}
		addr, _, stop, err := start(ctx)
		if err != nil {
			return nil, err
		}
		r, err := rawload.Run(ctx, rawload.Config{Dial: rawload.DialTCP(addr, nil), QoS: 1, Clients: 50, Window: 20, PayloadBytes: payloadBytes,
			Rate: rate, Duration: dur, CleanStart: true})
		stop()
		if err == nil && (r.Failed > 0 || r.PerSecond < 0.95*rate) {
			err = fmt.Errorf("%.0f acknowledged a second, %d clients failed: %s", r.PerSecond, r.Failed, r.FirstError)
		}
		if err != nil {
			return nil, err
		}
		if i%2 == 1 {
			floor99 = append(floor99, float64(r.P99us)/1000)
			continue
		}
		p50, p99 = append(p50, float64(r.P50us)/1000), append(p99, float64(r.P99us)/1000)
	}
	return []row{{"ack latency at 5,000 msg/s from 50 clients, p99", "under 20 ms", fmt.Sprintf("%.1f ms (p50 %.2f; floor server's p99 %.1f; medians of %d runs)", median(p99), median(p50), median(floor99), len(p99)),
		median(p99) < 20, "go run ./cmd/bars -only latency"}}, nil
}
