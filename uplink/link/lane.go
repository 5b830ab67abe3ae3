package link

import (
	"errors"
	"fmt"
	"time"

	"github.com/quic-go/quic-go"

	"tailrace/uplink"
	"tailrace/uplink/wire"
)

// runLane writes one lane's data stream on the main connection: what the Sender says
// is next is read, encoded and written, nothing is queued. Write blocks while the
// connection's windows are full, so that at most one frame a lane waits in memory.
func (s *session) runLane(lane wire.Lane) {
	var (
		st    *quic.SendStream
		fw    *wire.FrameWriter
		batch []byte
		out   []byte
		idle  = time.NewTimer(idleContext)
		paced = time.NewTimer(0)
	)
	defer idle.Stop()
	defer paced.Stop()
	window := s.c.cfg.BulkWindow
	if lane == wire.LaneLive {
		window = s.c.cfg.LiveWindow
	}
	if w := int(s.welcome.WindowBytes); w > 0 {
		window = min(window, w)
	}
	for {
		s.mu.Lock()
		j, ok, wait := s.sender.Next(lane, time.Now())
		s.mu.Unlock()
		if !ok {
			if wait > 0 {
				paced.Reset(wait)
			}
			select {
			case <-s.ctx.Done():
				return
			case <-s.wake[lane]:
			case <-paced.C:
			case <-idle.C:
				if fw != nil {
					if out = fw.Idle(out[:0]); len(out) > 0 {
						if _, err := st.Write(out); err != nil {
							s.fail(fmt.Errorf("%s stream: %w", lane, err))
							return
						}
					}
				}
				batch, out = nil, nil
			}
			continue
		}
		if s.ctx.Err() != nil {
			return
		}
		r := s.read(j, batch[:0])
		if r.Batches != nil {
			batch = r.Batches
		}
		s.mu.Lock()
		f, ok := s.sender.Done(j, r, 0, time.Now())
		if !ok {
			s.settle()
			continue
		}
		s.mu.Unlock()
		out = out[:0]
		if st == nil {
			var err error
			if st, err = s.conn.OpenUniStreamSync(s.ctx); err != nil {
				s.fail(fmt.Errorf("open %s stream: %w", lane, err))
				return
			}
			st.SetPriority(urgency(lane), true)
			fw = wire.NewFrameWriter(s.welcome.Codec, window)
			out = wire.AppendPreamble(out, lane)
		}
		out, err := fw.Append(out, f.Header, f.Batches)
		if err == nil {
			_, err = st.Write(out)
		}
		if err != nil {
			s.fail(fmt.Errorf("%s stream: %w", lane, err))
			return
		}
		idle.Reset(idleContext)
	}
}

// read carries out a Job. What is gone is explained to the Sender first, so that the
// gap it proposes has the Source's reason.
func (s *session) read(j uplink.Job, buf []byte) uplink.Read {
	src := s.c.cfg.Source
	b, _, err := src.Read(buf, j.Topic, j.Index, j.From, j.MaxBytes)
	switch {
	case err == nil:
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
