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
// connections, as many as help. What tells is the sum of their congestion windows
// beside what the link holds, capacity times (least round trip + the pacer's target):
//
//   - losses, no queue, and the windows do not fill the link with stripeRoom to spare: more, as
//     many as would fill it with fresh windows. While the capacity is not known, half as many again
//   - a queue that the pacer cannot keep short, or windows far beyond the link: one less
//   - no backlog for a while: none
//
// Frames of a partition then overtake each other; the hub restores the order within
// the credit. A bulk connection that dies costs a resend, not the session.
const (
	stripeEvery  = 250 * time.Millisecond
	stripeIdle   = 10 * time.Second
	stripeLosses = 10 * time.Second // how long a loss is remembered
	stripeRoom   = 1.4
	stripeExcess = 4.0
	freshWindow  = 32 * 1200 // of a new connection
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
		open     []*stripe
		dialling = map[int]bool{}
		dialled  = make(chan dialledStripe)
		lost     uint64
		lostAt   time.Time // packets were lost
		busy     time.Time // bulk had something to send
		changed  time.Time // a connection more or less
		retryAt  time.Time
		tick     = time.NewTicker(stripeEvery)
	)
	defer tick.Stop()
	for {
		select {
		case <-s.ctx.Done():
			return
		case d := <-dialled:
			delete(dialling, d.number)
			if d.err != nil {
				s.log.Debug("no further bulk connection", "err", closeReason(d.err))
				retryAt = time.Now().Add(30 * time.Second)
				continue
			}
			open = append(open, d.stripe)
			continue
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
		main := s.conn.ConnectionStats()
		windows, sumLost, usable := main.CongestionWindow, main.PacketsLost, 0
		for i, q := range s.look(open, now) {
			sumLost += q.PacketsLost
			if !open[i].retired {
				windows += q.CongestionWindow
				usable++
			}
		}
		if sumLost > lost {
			lostAt = now
		}
		lost = sumLost
		path := s.pacer.path(now)
		settled := now.Sub(changed) > max(stripeEvery, 3*main.SmoothedRTT)
		more := 0
		if pending && !path.full && settled && now.Sub(lostAt) < stripeLosses && now.After(retryAt) && len(dialling) == 0 {
			more = wanted(path.holds, float64(windows), usable)
		}
		switch {
		case now.Sub(busy) > stripeIdle:
			for _, x := range open {
				x.stop()
			}
		case usable > 0 && now.Sub(changed) > 5*time.Second &&
			(path.queue > max(2*pacerTarget, main.MinRTT/2) || path.full && path.holds > 0 && float64(windows) > stripeExcess*path.holds):
			open[slices.IndexFunc(open, func(x *stripe) bool { return !x.retired })].stop()
			changed = now
		default:
			for range min(more, most-usable) {
				changed = now
				n := freeNumber(open, dialling)
				dialling[n] = true
				s.wg.Go(func() {
					x, err := s.openStripe(n)
					select {
					case dialled <- dialledStripe{n, x, err}:
					case <-s.ctx.Done():
					}
				})
			}
		}
	}
}

type dialledStripe struct {
	number int
	stripe *stripe
	err    error
}

// wanted is how many connections more would fill a link that holds so many bytes, beside
// windows of so many bytes on usable stripes and the main connection.
func wanted(holds, windows float64, usable int) int {
	if holds == 0 { // not known: the start
		return (usable + 2) / 2
	}
	lacks := stripeRoom*holds - windows
	if lacks <= 0 {
		return 0
	}
	return min(1+int(lacks/freshWindow), usable+2)
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

func freeNumber(open []*stripe, dialling map[int]bool) int {
	for n := 1; ; n++ {
		if !dialling[n] && !slices.ContainsFunc(open, func(x *stripe) bool { return x.number == n }) {
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
	s.c.traffic.track(conn)
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
