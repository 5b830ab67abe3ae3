package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"tailrace/firmware-sim/swarm"
	"tailrace/storage"
	"tailrace/uplink"
	"tailrace/uplink/hub"
	"tailrace/uplink/wire"
)

// curve is CPU microseconds a record by something that grows.
type curve struct {
	name string
	x, y []float64
}

// spread is the dearest over the cheapest.
func (c curve) spread() float64 { return slices.Max(c.y) / slices.Min(c.y) }

const (
	costFrame   = 50 // records of a frame, as of swarm.Readings
	costWindow  = 256
	costSegment = 8 << 20 // as a hub has it by default
)

// costFrames are readings of ten minutes: what is stored compressed must not repeat itself.
var costFrames = sync.OnceValues(func() ([][]byte, error) { return swarm.Readings(1) })

// costs is what a record costs the hub's store as the work grows: decoding of frames apart, everything from
// the frame to the ack after fsync. The frames are ready before; CPU is that of this process.
func costs(ctx context.Context, e *env) ([]row, error) {
	records, sizes := 1_000_000, []int64{1 << 20, 10 << 20, 100 << 20, 1 << 30}
	if e.short {
		records, sizes = 200_000, sizes[:3]
	}
	topics := curve{name: "topics"}
	nodes := curve{name: "nodes, one topic"}
	for _, n := range []int{1, 10, 100, 1000} {
		y, err := e.costOf(ctx, records, n, func(i int) (string, string) { return "n", fmt.Sprintf("t%d", i) })
		if err != nil {
			return nil, err
		}
		topics.x, topics.y = append(topics.x, float64(n)), append(topics.y, y)
	}
	for _, n := range []int{1, 10, 100, 1000, 10_000} {
		y, err := e.costOf(ctx, max(records, 2*n*costFrame), n, func(i int) (string, string) { return fmt.Sprintf("n%d", i), "t" })
		if err != nil {
			return nil, err
		}
		nodes.x, nodes.y = append(nodes.x, float64(n)), append(nodes.y, y)
	}
	kept, err := e.costOfSize(ctx, records, sizes)
	if err != nil {
		return nil, err
	}
	file, err := filepath.Abs(filepath.Join("bin", "costs.svg"))
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(file, plotCosts("CPU of the hub's store, microseconds a record", []curve{topics, nodes, kept}), 0o644); err != nil {
		return nil, err
	}
	var rows []row
	for _, c := range []curve{topics, nodes, kept} {
		text := ""
		for i := range c.x {
			text += fmt.Sprintf(" %g: %.2f", c.x[i], c.y[i])
		}
		rows = append(rows, row{"CPU a record at the hub's store by " + c.name, "flat: the dearest at most 1.5x the cheapest",
			fmt.Sprintf("%.2fx; us by number:%s (plot: %s)", c.spread(), text, file), c.spread() <= 1.5, "go run ./cmd/bars -only costs"})
	}
	return rows, nil
}

// store is a hub's store alone, with one origin after the other to append to.
type store struct {
	st      *storage.Store
	eng     *hub.Embedded
	origins []wire.Origin
	next    []int64
	sent    int
	dir     string
}

func (e *env) costStore(ctx context.Context, n int, name func(int) (node, topic string)) (s *store, err error) {
	s = &store{next: make([]int64, n)}
	if s.dir, err = e.sub("costs"); err != nil {
		return nil, err
	}
	if s.st, err = storage.Open(storage.Config{Dir: s.dir, Classes: []storage.ClassConfig{{Name: "data", SegmentBytes: costSegment}}}); err != nil {
		return nil, err
	}
	if s.eng, err = hub.NewEmbedded(hub.EmbeddedConfig{Store: s.st, Classes: []string{"data"}}); err != nil {
		return nil, errors.Join(err, s.st.Close())
	}
	epoch := wire.ID{1}
	adopted := map[string]bool{}
	for i := range n {
		node, topic := name(i)
		if !adopted[node] {
			adopted[node] = true
			if err := s.eng.Adopt(ctx, node, []wire.EpochInfo{{ID: epoch, Number: 1}}); err != nil {
				return nil, errors.Join(err, s.close())
			}
		}
		s.origins = append(s.origins, wire.Origin{Node: node, Epoch: epoch, Topic: topic})
	}
	return s, s.append(ctx, n) // topics, assignments: made once, not for each record
}

// append sends frames to the origins in turn and waits until all are durable.
func (s *store) append(ctx context.Context, frames int) error {
	readings, err := costFrames()
	if err != nil {
		return err
	}
	free, failed := make(chan []byte, costWindow), make(chan error, 1) // as the link, which keeps its buffers
	for range costWindow {
		free <- nil
	}
	for range frames {
		var f []byte
		select {
		case f = <-free:
		case err := <-failed:
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
		k := s.sent % len(s.origins)
		f = append(f[:0], readings[s.sent/len(s.origins)%len(readings)]...)
		s.sent++
		binary.BigEndian.PutUint64(f, uint64(s.next[k])) // no checksum covers the base offset
		s.next[k] += costFrame
		s.eng.Append(ctx, s.origins[k], f, func(_ uplink.RangeSet, err error) {
			if err != nil {
				select {
				case failed <- err:
				default:
				}
			}
			free <- f
		})
	}
	for range costWindow {
		<-free
	}
	select {
	case err := <-failed:
		return err
	default:
		return ctx.Err()
	}
}

func (s *store) close() error {
	s.eng.Close()
	return errors.Join(s.st.Close(), os.RemoveAll(s.dir))
}

// cost is CPU microseconds a record of frames more.
func (s *store) cost(ctx context.Context, frames int) (float64, error) {
	before, err := ownCPU()
	if err != nil {
		return 0, err
	}
	if err := s.append(ctx, frames); err != nil {
		return 0, err
	}
	after, err := ownCPU()
	return float64((after - before).Microseconds()) / float64(frames*costFrame), err
}

func ownCPU() (time.Duration, error) {
	var u syscall.Rusage
	err := syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()), err
}

func (e *env) costOf(ctx context.Context, records, n int, name func(int) (node, topic string)) (float64, error) {
	s, err := e.costStore(ctx, n, name)
	if err != nil {
		return 0, err
	}
	y, err := s.cost(ctx, records/costFrame)
	return y, errors.Join(err, s.close())
}

// costOfSize measures at each size that is kept, payload before compression.
func (e *env) costOfSize(ctx context.Context, records int, sizes []int64) (curve, error) {
	c := curve{name: "MB kept"}
	s, err := e.costStore(ctx, 20, func(i int) (string, string) { return fmt.Sprintf("n%d", i), fmt.Sprintf("t%d", i) })
	if err != nil {
		return c, err
	}
	readings, err := costFrames()
	if err != nil {
		return c, errors.Join(err, s.close())
	}
	frame := int64(0) // bytes of one, mean
	for _, f := range readings {
		frame += int64(len(f))
	}
	frame /= int64(len(readings))
	held := int64(0)
	for _, size := range sizes {
		frames := int((size - held) / frame)
		if err = s.append(ctx, frames); err != nil {
			break
		}
		var y float64
		if y, err = s.cost(ctx, records/2/costFrame); err != nil {
			break
		}
		held = size + int64(records/2/costFrame)*frame
		c.x, c.y = append(c.x, float64(size>>20)), append(c.y, y)
	}
	return c, errors.Join(err, s.close())
}
