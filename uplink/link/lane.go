package link

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"tailrace/uplink"
	"tailrace/uplink/wire"
)

// worker writes the data stream of one lane on one connection: what the Sender says is
// next is read, encoded and written, nothing is queued. Write blocks while the
// connection's windows are full, so that at most one frame a worker waits in memory.
type worker struct {
	s      *session
	conn   carrier
	number int // of the connection, 0 = main
	lane   wire.Lane
	wake   chan struct{}   // capacity 1: there may be work
	retire <-chan struct{} // closed: take no more work, leave when all of it is acked; nil = never

	st    io.Writer // nil before the first frame
	fw    *wire.FrameWriter
	batch []byte
	out   []byte

	seen carried // owned by samplePath
}

func (s *session) newWorker(conn carrier, number int, lane wire.Lane, retire <-chan struct{}) *worker {
	w := &worker{s: s, conn: conn, number: number, lane: lane, wake: make(chan struct{}, 1), retire: retire}
	s.mu.Lock()
	s.workers = append(s.workers, w)
	s.mu.Unlock()
	return w
}

// run works until ctx ends, the connection fails or the worker is retired.
func (w *worker) run(ctx context.Context) error {
	s := w.s
	idle, paced := time.NewTimer(idleContext), time.NewTimer(0)
	defer idle.Stop()
	defer paced.Stop()
	retire := w.retire
	for ctx.Err() == nil {
		var j uplink.Job
		var ok bool
		var wait time.Duration
		s.mu.Lock()
		if w.lane == wire.LaneLive && s.sender.Skips() {
			s.sender.SetRoundTrip(w.conn.ConnectionStats().MinRTT)
		}
		if retiring := w.retire != nil && retire == nil; !retiring {
			j, ok, wait = s.sender.Next(w.lane, w.number, time.Now())
		} else if s.sender.Carries(w.number) == 0 {
			s.mu.Unlock()
			return nil
		}
		if w.lane == wire.LaneLive {
			s.liveBehind.Store(s.sender.Behind(time.Now()))
		}
		if s.sender.Talks() {
			s.settle()
		} else {
			s.mu.Unlock()
		}
		if !ok {
			if wait > 0 {
				paced.Reset(wait)
			}
			select {
			case <-ctx.Done():
			case <-w.wake:
			case <-paced.C:
			case <-retire:
				retire = nil
			case <-idle.C:
				if err := w.idle(); err != nil {
					return err
				}
			}
			continue
		}
		if err := w.do(ctx, j); err != nil {
			return err
		}
		idle.Reset(idleContext)
	}
	return ctx.Err()
}

// idle gives buffers and compression context up, at both ends.
func (w *worker) idle() error {
	w.batch, w.out = nil, nil
	if w.fw == nil {
		return nil
	}
	if b := w.fw.Idle(nil); len(b) > 0 {
		if _, err := w.st.Write(b); err != nil {
			return fmt.Errorf("%s stream: %w", w.lane, err)
		}
	}
	return nil
}

// do carries a Job out and writes the frame that it gives.
func (w *worker) do(ctx context.Context, j uplink.Job) error {
	s := w.s
	r := s.read(j, w.batch[:0])
	if r.Batches != nil {
		w.batch = r.Batches
	}
	s.mu.Lock()
	f, ok := s.sender.Done(j, r, w.number, time.Now())
	if !ok {
		s.settle()
		return nil
	}
	if w.lane != wire.LaneLive && len(s.workers) > int(wire.Lanes) {
		s.settle() // the rest of this partition is for the next connection
	} else {
		s.mu.Unlock()
	}
	out := w.out[:0]
	if w.st == nil {
		st, err := w.conn.openData(ctx, w.lane)
		if err != nil {
			return fmt.Errorf("open %s stream: %w", w.lane, err)
		}
		w.st, w.fw = st, wire.NewFrameWriter(s.welcome.Codec, s.window(w.lane))
		out = wire.AppendPreamble(out, w.lane)
	}
	at := len(out)
	out, err := w.fw.Append(out, f.Header, f.Batches)
	if err == nil {
		s.sizeFrames(w.lane, len(f.Batches), len(out)-at)
		s.c.wire.of(j.Topic).add(f.Header.Count, int64(len(f.Batches)), int64(len(out)-at))
		err = w.write(ctx, out)
	}
	w.out = out
	if err != nil {
		return fmt.Errorf("%s stream: %w", w.lane, err)
	}
	if w.lane != wire.LaneLive {
		s.mu.Lock()
		s.sender.Wrote(f, time.Now())
		s.mu.Unlock()
	}
	return nil
}

// sizeFrames makes frames as large as what they come to on the link allows, after one of
// raw bytes came to sent. What compresses well goes in large frames.
func (s *session) sizeFrames(lane wire.Lane, raw, sent int) {
	if lane == wire.LaneLive || raw < minFrame {
		return
	}
	size := int64(s.pacer.frame()) * int64(raw) / int64(max(sent, 1))
	s.mu.Lock()
	s.frame += (min(max(int(size), minFrame), s.mostFrame) - s.frame) / 4
	s.sender.SetFrame(s.frame)
	s.mu.Unlock()
}

const minFrame = 16 << 10

// write writes a frame, paced unless it is live.
func (w *worker) write(ctx context.Context, b []byte) error {
	p := &w.s.pacer
	if w.lane == wire.LaneLive {
		p.charge(time.Now(), len(b))
		_, err := w.st.Write(b)
		return err
	}
	for len(b) > 0 {
		if err := w.giveWay(ctx); err != nil {
			return err
		}
		n := min(len(b), p.chunk())
		if err := p.take(ctx, n); err != nil {
			return err
		}
		if _, err := w.st.Write(b[:n]); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// giveWay waits while records that should be live are behind.
func (w *worker) giveWay(ctx context.Context) error {
	for w.s.liveBehind.Load() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(liveBehindTick):
		}
	}
	return nil
}

const liveBehindTick = 20 * time.Millisecond

// ipHeaders is what IPv4 and UDP add to a packet.
const ipHeaders = 28

// carried is what a connection had done when samplePath looked last.
type carried struct{ sent, received int64 }

// samplePath is the path as the connections with traffic see it.
func (s *session) samplePath() (p pathSample, ok bool) {
	s.mu.Lock()
	workers := s.sampled[:0]
	for _, w := range s.workers {
		if w.lane == wire.LaneBulk {
			workers = append(workers, w)
		}
	}
	s.sampled = workers
	s.mu.Unlock()
	fresh := 0
	for _, w := range workers {
		q := w.conn.ConnectionStats()
		now := carried{int64(q.BytesSent + ipHeaders*q.PacketsSent), int64(q.PacketsReceived)}
		if w.seen == (carried{}) { // what it sent before is no part of a backlog's traffic
			w.seen = now
		}
		s.onLink += now.sent - w.seen.sent
		if unmeasured := q.MeanDeviation == 0 && q.LatestRTT == 100*time.Millisecond; unmeasured { // what quic-go begins with
			continue
		}
		if now.received != w.seen.received && q.LatestRTT > 0 {
			fresh++
			p.rtt += q.LatestRTT
			p.jitter += q.MeanDeviation
		}
		w.seen = now
		if q.MinRTT > 0 && (p.least == 0 || q.MinRTT < p.least) {
			p.least = q.MinRTT
		}
		ok = ok || q.SmoothedRTT > 0
	}
	if fresh > 0 {
		p.rtt, p.jitter = p.rtt/time.Duration(fresh), p.jitter/time.Duration(fresh)
	}
	p.sent = s.onLink
	clear(workers) // a stripe that has ended is to be freed, its buffers and contexts with it
	return p, ok
}

// window is the zstd window of a lane.
func (s *session) window(lane wire.Lane) int {
	n := s.c.cfg.BulkWindow
	if lane == wire.LaneLive {
		n = s.c.cfg.LiveWindow
	}
	if w := int(s.welcome.WindowBytes); w > 0 {
		n = min(n, w)
	}
	return n
}

// read carries out a Job. What is gone or damaged is explained to the Sender first, so that the
// gap it proposes has the Source's reason.
func (s *session) read(j uplink.Job, buf []byte) uplink.Read {
	src := s.c.cfg.Source
	b, _, err := src.Read(buf, j.Topic, j.Index, j.From, j.MaxBytes)
	switch {
	case err == nil:
		if x, _, err := wire.NextBatch(b); err == nil && x.Base > j.From && !j.Check {
			s.proposeGaps() // a hole
		}
		return uplink.Read{Batches: b}
	case errors.Is(err, ErrGone):
		start, next := src.Bounds(j.Topic, j.Index)
		s.proposeGaps()
		s.mu.Lock()
		s.sender.Advance(j.Topic, j.Index, start, next)
		s.mu.Unlock()
		return uplink.Read{Gone: true}
	}
	s.log.Warn("read for the uplink", "topic", j.Topic, "partition", j.Index, "offset", j.From, "err", err)
	return uplink.Read{Failed: true}
}
