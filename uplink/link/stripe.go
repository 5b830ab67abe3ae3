package link

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/quic-go/quic-go"

	"tailrace/uplink/wire"
)

// quic-go's sender is Reno: one connection at 100 ms and 1 % random loss carries
// 1.75 Mbit/s, whatever the link. A backlog is therefore striped over further
// connections, as many as help:
//
//   - loss without a queue, and the connections rather than the pacer hold the backlog: one more
//   - a queue that the pacer cannot keep short: one less
//   - no backlog for a while: none
//
// Frames of a partition then overtake each other; the hub restores the order within
// the credit. A bulk connection that dies costs a resend, not the session.
const (
	stripeEvery = time.Second
	stripeIdle  = 10 * time.Second
)

// stripe is one bulk connection.
type stripe struct {
	conn    carrier
	number  int // 1..; the index on the wire is one less
	retire  chan struct{}
	retired bool
	ended   chan struct{} // closed when its worker has ended
	packets uint64        // received, at the last look
	heard   time.Time
}

// runStripes opens and closes bulk connections.
func (s *session) runStripes() {
	most := min(s.c.cfg.MaxBulk, int(s.welcome.MaxBulk))
	if most == 0 {
		return
	}
	var (
		open             []*stripe
		sent, lost       uint64
		busy             = time.Time{} // bulk had something to send
		tick             = time.NewTicker(stripeEvery)
		lastAdd, retryAt time.Time
	)
	defer tick.Stop()
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-tick.C:
		}
		now := time.Now()
		open = slices.DeleteFunc(open, func(x *stripe) bool {
			select {
			case <-x.ended:
				return true
			default:
				return false
			}
		})
		s.mu.Lock()
		pending := s.sender.Pending(wire.LaneBulk)
		s.mu.Unlock()
		if pending {
			busy = now
		}
		var sumSent, sumLost uint64
		main := s.conn.ConnectionStats()
		usable := 0
		queue, peak := s.pacer.queued()
		inflated := queue > max(2*pacerTarget, main.MinRTT/2)
		for _, q := range append([]quic.ConnectionStats{main}, s.look(open, now)...) {
			sumSent, sumLost = sumSent+q.PacketsSent, sumLost+q.PacketsLost
		}
		for _, x := range open {
			if !x.retired {
				usable++
			}
		}
		dSent, dLost := int64(sumSent-sent), int64(sumLost-lost)
		sent, lost = sumSent, sumLost
		switch {
		case now.Sub(busy) > stripeIdle:
			for _, x := range open {
				x.stop()
			}
		case inflated && usable > 0 && now.Sub(lastAdd) > 5*time.Second:
			open[len(open)-1].stop()
			lastAdd = now
		case pending && peak < pacerTarget*3/4 && !s.pacer.holds(now) && usable < most && now.After(retryAt) && dSent > 20 && dLost*1000 > dSent && now.Sub(lastAdd) >= max(stripeEvery, 4*main.SmoothedRTT):
			x, err := s.openStripe(freeNumber(open))
			if err != nil {
				s.log.Debug("no further bulk connection", "err", closeReason(err))
				retryAt = now.Add(30 * time.Second)
				continue
			}
			open = append(open, x)
			lastAdd = now
		}
	}
}

// look reads the connections' statistics, and closes one that carries data and hears nothing.
func (s *session) look(open []*stripe, now time.Time) []quic.ConnectionStats {
	out := make([]quic.ConnectionStats, 0, len(open))
	for _, x := range open {
		q := x.conn.ConnectionStats()
		s.mu.Lock()
		carries := s.sender.Carries(x.number)
		s.mu.Unlock()
		if q.PacketsReceived != x.packets || carries == 0 {
			x.packets, x.heard = q.PacketsReceived, now
		}
		if now.Sub(x.heard) >= max(5*time.Second, 6*q.SmoothedRTT) {
			x.conn.close(wire.CodeStall, "no progress")
		}
		out = append(out, q)
	}
	return out
}

func freeNumber(open []*stripe) int {
	for n := 1; ; n++ {
		if !slices.ContainsFunc(open, func(x *stripe) bool { return x.number == n }) {
			return n
		}
	}
}

func (x *stripe) stop() {
	if !x.retired {
		x.retired = true
		close(x.retire)
	}
}

// openStripe dials a bulk connection and puts it to work.
func (s *session) openStripe(number int) (*stripe, error) {
	ctx, cancel := context.WithTimeout(s.ctx, s.c.cfg.DialTimeout)
	defer cancel()
	conn, err := s.dialBulk(ctx)
	if err != nil {
		return nil, err
	}
	if err := s.joinBulk(ctx, conn, number); err != nil {
		conn.close(codeOf(err), clip(err.Error()))
		return nil, err
	}
	x := &stripe{conn: conn, number: number, retire: make(chan struct{}), ended: make(chan struct{}), heard: time.Now()}
	w := s.newWorker(conn, number, wire.LaneBulk, x.retire)
	s.wg.Go(func() {
		defer close(x.ended)
		ctx, cancel := context.WithCancel(s.ctx)
		stop := context.AfterFunc(conn.Context(), cancel)
		err := w.run(ctx)
		stop()
		cancel()
		conn.close(wire.CodeOK, "")
		s.mu.Lock()
		s.workers = slices.DeleteFunc(s.workers, func(y *worker) bool { return y == w })
		s.sender.Lost(number)
		s.settle()
		if err != nil && s.ctx.Err() == nil {
			s.log.Debug("bulk connection lost", "number", number, "err", closeReason(err))
		}
	})
	return x, nil
}

// joinBulk says Hello on a bulk connection.
func (s *session) joinBulk(ctx context.Context, conn carrier, number int) error {
	st, err := conn.openControl(ctx)
	if err != nil {
		return err
	}
	if dl, ok := ctx.Deadline(); ok {
		st.SetReadDeadline(dl)
	}
	h := &wire.Hello{Version: wire.Version, MinVersion: 1, Node: s.c.cfg.NodeID, Session: s.id, Boot: s.c.cfg.Boot, Role: wire.RoleBulk,
		Clock: s.c.clock(), Codecs: []wire.Codec{s.welcome.Codec}, Index: uint32(number - 1)}
	if _, err := sendMessages(st, nil, []wire.Message{h}); err != nil {
		return err
	}
	m, err := wire.NewReader(st).Read()
	if err != nil {
		return err
	}
	switch m := m.(type) {
	case *wire.Welcome:
		if m.Session == s.id {
			return nil
		}
	case *wire.Error:
		return &RemoteError{Code: m.Code, Message: m.Message}
	}
	return errors.Join(wire.ErrMalformed, fmt.Errorf("message type %d where Welcome is expected", m.Type()))
}
