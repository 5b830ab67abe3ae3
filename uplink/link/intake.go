package link

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"sync"
	"time"

	"tailrace/uplink"
	"tailrace/uplink/wire"
)

// Frames between 32 and 256 KiB are decoded into pooled buffers by power of two, so
// that held memory is at most twice what credit counts. Smaller ones are cheap to
// make, larger ones rare.
const (
	minPooled = 15
	maxPooled = 18
)

var framePools [maxPooled - minPooled + 1]sync.Pool

func getFrame(n int) []byte {
	c := bits.Len(uint(n - 1))
	if c <= minPooled-1 || c > maxPooled {
		return make([]byte, 0, n)
	}
	if b, ok := framePools[c-minPooled].Get().(*[]byte); ok {
		return (*b)[:0]
	}
	return make([]byte, 0, 1<<c)
}

func putFrame(b []byte) {
	c := bits.Len(uint(cap(b) - 1))
	if cap(b) == 1<<c && c >= minPooled && c <= maxPooled {
		framePools[c-minPooled].Put(&b)
	}
}

// readStreams reads every data stream of a connection until one fails.
func (hs *hubSession) readStreams(conn carrier) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	defer hs.closeConn(conn) // unblocks the streams
	for {
		st, err := conn.acceptData(hs.ctx)
		if err != nil {
			return closeReason(err)
		}
		wg.Go(func() {
			if err := hs.readStream(st); err != nil {
				if errors.Is(err, wire.ErrMalformed) {
					hs.end(err) // the node is broken, not the link
				}
				conn.close(codeOf(err), clip(err.Error()))
			}
		})
	}
}

// closeConn closes with the session's reason, when the session has ended.
func (hs *hubSession) closeConn(c carrier) {
	var err error
	if hs.ctx.Err() != nil {
		err = closeReason(context.Cause(hs.ctx))
	}
	c.close(codeOf(err), closeText(err))
}

func (hs *hubSession) readStream(st io.Reader) error {
	lane, err := wire.ReadPreamble(st)
	if err != nil {
		return err
	}
	fr := wire.NewFrameReader(st, hs.s.cfg.FrameBytes, hs.s.cfg.WindowBytes)
	defer fr.Close()
	var seen int64
	for {
		raw, err := fr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%s stream: %w", lane, err)
		}
		hs.mu.Lock()
		err = hs.recv.Admit(lane, raw)
		hs.mu.Unlock()
		if err != nil {
			return err
		}
		buf := getFrame(raw)
		h, batches, err := fr.Read(buf)
		if err == nil {
			err = wire.VerifyFrame(h, batches)
		}
		if err != nil {
			return fmt.Errorf("%s stream: %w", lane, err)
		}
		hs.lastHeard.Store(time.Now().UnixNano())
		hs.raw.Add(int64(len(batches)))
		wireBytes := fr.WireBytes - seen
		hs.wireBytes.Add(wireBytes)
		seen = fr.WireBytes
		hs.mu.Lock()
		meter := hs.meter(h.Partition)
		hs.mu.Unlock()
		if meter != nil {
			meter.add(h.Count, int64(len(batches)), wireBytes)
		}
		if err := hs.take(lane, h, batches, buf); err != nil {
			return err
		}
	}
}

// flow tells when a lane's limit is what bounds its rate: half of it in two round trips.
type flow struct {
	since time.Time
	bytes int64
}

func (f *flow) add(n, limit int64, rtt time.Duration, now time.Time) bool {
	if now.Sub(f.since) > 2*rtt {
		f.since, f.bytes = now, 0
	}
	f.bytes += n
	return f.bytes > limit/2
}

// take gives a frame to the Receiver and what it delivers to the appender.
//
// The limit of a lane doubles, up to ServerConfig.Credit and while the hub's budget lasts,
// when half of it is outstanding here (frames that wait for their turn or for the
// store), or when half of it came within two round trips, so that it bounds the rate. It
// ends up at two to four times what a round trip carries: one on the link, one in the
// hands of the node's connections, the rest for order. It does not guard the link's
// queue, the node's pacer does. What is granted and not under way costs no memory.
func (hs *hubSession) take(lane wire.Lane, h wire.FrameHeader, batches, buf []byte) error {
	rtt := max(hs.conn.ConnectionStats().SmoothedRTT, 2*time.Millisecond)
	hs.mu.Lock()
	var used bool
	var err error
	hs.deliver, used, err = hs.recv.Frame(hs.deliver, lane, h, batches, buf)
	grew := false
	limit, out := hs.recv.Limit(lane)
	busy := hs.flow[lane].add(int64(len(batches)), limit, rtt, time.Now())
	if top := hs.s.cfg.Credit[lane]; (busy || out > limit/2) && limit < top {
		n := min(limit, top-limit)
		if grew = hs.s.reserve(n); grew {
			hs.grown += n
			hs.recv.Grow(lane, n)
			hs.flow[lane] = flow{} // what came under the smaller limit says nothing of this one
		}
	}
	hs.startAppend()
	hs.mu.Unlock()
	if !used {
		putFrame(buf)
	}
	if grew {
		hs.kick()
	}
	return err
}

// startAppend starts the appender when there is work and none at it. Called with mu held.
func (hs *hubSession) startAppend() {
	if len(hs.deliver) > 0 && !hs.appending && hs.ctx.Err() == nil {
		hs.appending = true
		hs.wg.Add(1)
		go hs.appendAll()
	}
}

// appendAll passes deliveries to the Sink one after the other: the order in which the
// Receiver gave them is the order in which they are stored.
func (hs *hubSession) appendAll() {
	defer hs.wg.Done()
	for {
		hs.mu.Lock()
		todo := hs.deliver
		if len(todo) == 0 || hs.ctx.Err() != nil {
			hs.appending = false
			hs.mu.Unlock()
			return
		}
		hs.deliver, hs.spare = hs.spare[:0], nil
		hs.mu.Unlock()
		for i := range todo {
			if hs.ctx.Err() != nil {
				break
			}
			hs.append(todo[i])
		}
		clear(todo)
		hs.mu.Lock()
		hs.spare = todo[:0]
		hs.mu.Unlock()
	}
}

func (hs *hubSession) append(d uplink.Deliver) {
	hs.mu.Lock()
	hs.pending++
	hs.mu.Unlock()
	hs.s.cfg.Sink.Append(hs.ctx, d.Origin, d.Batches, func(held uplink.RangeSet, err error) {
		if err != nil {
			hs.end(&RefuseError{Code: wire.CodeUnavailable, Message: fmt.Sprintf("store %s %s: %v", d.Origin, d.Range, err), RetryAfter: time.Second})
		} else {
			hs.records.Add(int64(d.Records))
		}
		if buf, ok := d.Buf.([]byte); ok {
			putFrame(buf)
		}
		hs.mu.Lock()
		if err == nil {
			hs.recv.Durable(&d, held)
		}
		if hs.pending--; hs.pending == 0 && hs.closed {
			close(hs.idle)
		}
		hs.mu.Unlock()
		if err == nil {
			hs.kick()
		}
	})
}
