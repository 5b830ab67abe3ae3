package link

import (
	"context"
	"slices"
	"time"

	"github.com/quic-go/quic-go"

	"tailrace/uplink/wire"
)

// watch is the session's clock: heartbeats, status, and the watchdog. Progress, not
// "connected", decides whether a link lives:
//
//   - The path: while anything is outstanding (data, or a heartbeat), the hub must show within
//     max(3 s, 4 round trips) that something arrived there: an answer, an ack, a round trip
//     measured anew. Packets of the hub alone show nothing: it repeats what it said long before
//     a path died one way. After half of that time a heartbeat asks.
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
		heard      = started // last sign that something arrived at the hub
		sign       lifeSign
		acks       int64
		acked      = started // last ack, or last time nothing was outstanding
		lastBeat   = started
		lastStatus = started
		forced     time.Time
		lastRetry  = started
		told       wire.Status // the last one
		toldAcks   int64
		toldAt     time.Time
		quiet      bool // a heartbeat without an answer was sent, and nothing shows yet that it arrived
		quiets     int  // since the last one with an answer
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
		s.mu.Lock()
		outstanding := s.sender.Outstanding()
		backlog := s.sender.Pending(wire.LaneBulk)
		if n := s.sender.Overdue(now, max(time.Second, 3*q.SmoothedRTT)); n > 0 {
			s.settle()
			s.log.Debug("overdue slices go by another connection", "slices", n)
		} else {
			s.mu.Unlock()
		}
		l := lifeSign{acks: s.acks.Load(), answered: s.answered.Load(), latest: q.LatestRTT, smoothed: q.SmoothedRTT, spread: q.MeanDeviation}
		if outstanding == 0 { // nothing that the hub could repeat: what comes answers us
			l.packets = q.PacketsReceived
		}
		if l != sign {
			sign, heard, asked, quiet = l, now, false, false
		}
		if a := s.acks.Load(); a != acks || outstanding == 0 {
			acks, acked = a, now
		}
		s.measure(&measure, now, backlog, q)
		waiting := outstanding > 0 || quiet || s.answered.Load() != s.heartbeat.Load()
		if !waiting {
			heard = now
		}
		patience := max(3*time.Second, 4*q.SmoothedRTT)
		silent := now.Sub(heard)
		if probe && waiting && silent >= time.Second {
			forced = now.Add(patience) // the link is back, but this connection may sleep for a minute yet
		}
		stalled := waiting && (silent >= patience || now.Before(forced) && silent >= time.Second) || now.Sub(acked) >= cfg.StallTimeout
		switch due := now.Sub(lastBeat) >= beat; {
		case due && !probe && !waiting && quiets < quietBeats && q.SmoothedRTT > 0: // the transport tells what arrived
			quiet, lastBeat = true, now
			quiets++
			s.send(&wire.Heartbeat{Quiet: true, Pad: make([]byte, wire.QuietPad)})
		case probe || due || waiting && silent >= patience/2 && !asked:
			asked, lastBeat, quiets = true, now, 0
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
				if outstanding > 0 || acks != toldAcks || news(&st, &told) || now.Sub(toldAt) >= quietBeats*cfg.StatusInterval {
					told, toldAcks, toldAt = st, acks, now
					s.send(&st)
				}
			}
		}
	}
}

// quietBeats is how many heartbeats of an idle session go without an answer, and for how
// many intervals an idle node's status is not repeated.
const quietBeats = 40

// news says whether a status tells more than counters of an idle node that move by themselves.
func news(st, told *wire.Status) bool {
	return st.Devices != told.Devices || st.Records != told.Records || st.Refused != told.Refused || st.Dropped != told.Dropped ||
		st.ConfigSeen != told.ConfigSeen || st.Clock.Trusted != told.Clock.Trusted || len(st.Backlog) != len(told.Backlog) || !slices.Equal(st.Notes, told.Notes)
}

// lifeSign changes when something that this end sent is known to have arrived.
type lifeSign struct {
	acks                     int64
	answered, packets        uint64
	latest, smoothed, spread time.Duration
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

// patient bounds how long the first answer of a hub is waited for: while nothing comes, timeout. On a link of
// a few kilobytes a second the handshake repeats itself before anybody has measured a round trip (quic-go
// begins with 100 ms), and the answer stands behind all that in a queue of half a minute: to give up would put the next
// handshake behind it. So while packets come, up to six times as long. A hub that does not answer sends none.
func patient(ctx context.Context, conn carrier, st controlStream, timeout time.Duration) (stop func()) {
	st.SetReadDeadline(time.Now().Add(timeout))
	ctx, cancel := context.WithCancel(ctx)
	over := make(chan struct{})
	go func() {
		defer close(over)
		t := time.NewTicker(timeout / 4)
		defer t.Stop()
		end, seen := time.Now().Add(6*timeout), conn.ConnectionStats().PacketsReceived
		for {
			select {
			case <-ctx.Done():
				st.SetReadDeadline(time.Unix(1, 0)) // nobody reads any more, or must not
				return
			case now := <-t.C:
				n := conn.ConnectionStats().PacketsReceived
				if n == seen || now.After(end) {
					continue
				}
				seen = n
				st.SetReadDeadline(now.Add(timeout))
			}
		}
	}()
	return func() {
		cancel()
		<-over
		st.SetReadDeadline(time.Time{})
	}
}
