package link

import (
	"time"

	"github.com/quic-go/quic-go"

	"tailrace/uplink/wire"
)

// watch is the session's clock: heartbeats, status, and the watchdog. Progress, not
// "connected", decides whether a link lives:
//
//   - The path: while anything is outstanding (data, or a heartbeat), a packet of the
//     hub must come within max(3 s, 4 round trips). After half of that a heartbeat asks for one.
//   - The hub: while data is outstanding, something must become durable within StallTimeout.
//
// Else the session is stalled and the Client dials beside it. After an outage a QUIC
// connection may stay silent for up to 60 s although the link is back; a fresh one does not.
func (s *session) watch() {
	cfg := &s.c.cfg
	beat := cfg.Heartbeat
	if w := time.Duration(s.welcome.HeartbeatMS) * time.Millisecond; w >= 100*time.Millisecond {
		beat = w
	}
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	var (
		started    = time.Now()
		heard      = started // last packet of the hub
		packets    uint64
		acks       int64
		acked      = started // last ack, or last time nothing was outstanding
		lastBeat   = started
		lastStatus = started
		forced     time.Time
		lastRetry  = started
		measure    = measureStart{at: started}
		asked      bool // a heartbeat is meant to end this silence
	)
	for {
		probe := false
		select {
		case <-s.ctx.Done():
			return
		case <-s.poke:
			probe = true
		case <-tick.C:
		}
		now := time.Now()
		q := s.conn.ConnectionStats()
		if q.PacketsReceived != packets {
			packets, heard, asked = q.PacketsReceived, now, false
		}
		s.mu.Lock()
		outstanding := s.sender.Outstanding()
		backlog := s.sender.Pending(wire.LaneBulk)
		s.mu.Unlock()
		if a := s.acks.Load(); a != acks || outstanding == 0 {
			acks, acked = a, now
		}
		s.measure(&measure, now, backlog, q)
		waiting := outstanding > 0 || s.answered.Load() != s.heartbeat.Load()
		if !waiting {
			heard = now
		}
		patience := max(3*time.Second, 4*q.SmoothedRTT)
		silent := now.Sub(heard)
		if probe && waiting && silent >= time.Second {
			forced = now.Add(patience) // the link is back, but this connection may sleep for a minute yet
		}
		stalled := waiting && (silent >= patience || now.Before(forced) && silent >= time.Second) || now.Sub(acked) >= cfg.StallTimeout
		if probe || now.Sub(lastBeat) >= beat || waiting && silent >= patience/2 && !asked {
			asked, lastBeat = true, now
			s.send(&wire.Heartbeat{Sequence: s.heartbeat.Add(1), Sent: now.UnixNano(), Clock: s.c.clock(), Pad: make([]byte, wire.HeartbeatPad)})
		}
		if stalled != s.isStalled.Load() {
			s.isStalled.Store(stalled)
			if stalled {
				s.log.Warn("no progress, dialling anew", "silent", silent, "outstanding_bytes", outstanding, "since_ack", now.Sub(acked))
				signal(s.stall)
			} else {
				signal(s.recovered)
			}
		}
		if now.Sub(lastRetry) >= 2*time.Second {
			lastRetry = now
			s.mu.Lock()
			s.sender.Retry()
			s.settle()
		}
		if now.Sub(started) > time.Minute && !stalled {
			s.useful.Store(true)
		}
		if now.Sub(lastStatus) >= cfg.StatusInterval {
			lastStatus = now
			s.proposeGaps()
			s.sourceChanged()
			if cfg.Status != nil {
				st := cfg.Status()
				st.Clock, st.Link = s.c.clock(), s.linkStatus()
				s.send(&st)
			}
		}
	}
}

type measureStart struct {
	at         time.Time
	progress   int64
	sent, lost uint64
}

// measure reports what a session carries once a backlog has waited for measureFor.
func (s *session) measure(m *measureStart, now time.Time, backlog bool, q quic.ConnectionStats) {
	took, progress := now.Sub(m.at), s.progress.Load()
	if backlog && took < measureFor {
		return
	}
	if backlog {
		r := measurement{rate: float64(progress-m.progress) / took.Seconds()}
		if n := q.PacketsSent - m.sent; n > 0 {
			r.loss = float64(q.PacketsLost-m.lost) / float64(n)
		}
		select {
		case s.measured <- r:
		default:
		}
	}
	*m = measureStart{now, progress, q.PacketsSent, q.PacketsLost}
}

func (s *session) linkStatus() wire.LinkStatus {
	q := s.conn.ConnectionStats()
	s.mu.Lock()
	out := s.sender.Outstanding()
	s.mu.Unlock()
	s.c.mu.Lock()
	re := s.c.state.Reconnects
	s.c.mu.Unlock()
	return wire.LinkStatus{RTTMicros: q.SmoothedRTT.Microseconds(), Reconnects: re, BytesSent: int64(q.BytesSent), BytesLost: int64(q.BytesLost), SendErrors: s.c.lost.Load(), InFlightBytes: out}
}
