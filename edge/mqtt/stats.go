package mqtt

import "sync/atomic"

// counters are what the server counts; Stats has their meaning.
type counters struct {
	Accepted, AcceptErrors, ConnectionsRefused, Logins, LoginsRefused, Takeovers  atomic.Uint64
	Published, Refused, Duplicates, Ambiguous, ResendsStored, CommitErrors        atomic.Uint64
	Malformed, KeepAliveTimeouts, BufferRefused, Panics, Throttled, LoginsDropped atomic.Uint64
	Delivered, Dropped, Expired                                                   atomic.Uint64
	Wills, WillsRefused, RetainedRefused, SessionsExpired                         atomic.Uint64
}

// Stats is a snapshot. Fields without a remark count since the start.
type Stats struct {
	Connections   int // open now, logged in or not
	Sessions      int // known now, connected or away
	Subscriptions int // now
	Retained      int // messages now

	Accepted           uint64
	AcceptErrors       uint64 // out of file descriptors and the like; the listener goes on
	ConnectionsRefused uint64 // closed unread: a connection limit
	Logins             uint64
	LoginsRefused      uint64
	Takeovers          uint64 // two devices with one client id when it keeps rising

	Published     uint64 // given to the backend, wills not included
	Refused       uint64 // publishes refused: routing, size, rights, disk
	Duplicates    uint64 // re-sends that were durable already, answered and not stored again
	Ambiguous     uint64 // re-sends stored although they may have been: see lineup
	ResendsStored uint64 // all publishes with DUP that were stored: at most so many records are there twice
	CommitErrors  uint64 // bursts that did not become durable; nothing of them was acknowledged

	Malformed         uint64 // connections closed for what they sent
	Throttled         uint64 // times a client above its rate was not read for a while
	LoginsDropped     uint64 // logins under way that made room for those of other addresses
	KeepAliveTimeouts uint64
	BufferRefused     uint64 // connections closed for lack of packet memory
	Panics            uint64 // a bug of ours; the connection was closed, please report

	Delivered uint64 // PUBLISH packets written to subscribers
	Dropped   uint64 // deliveries dropped for one subscriber: too slow, away too long, packet too large
	Expired   uint64 // deliveries whose message expiry had passed

	Wills           uint64
	WillsRefused    uint64
	RetainedRefused uint64 // stored, but not retained: set is full
	SessionsExpired uint64
}

// Stats returns the counters as they are now.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	conns, sessions := len(s.conns), len(s.sessions)
	s.mu.Unlock()
	k := &s.stats
	return Stats{
		Connections: conns, Sessions: sessions, Subscriptions: int(s.subs.count.Load()), Retained: s.retained.len(),
		Accepted: k.Accepted.Load(), AcceptErrors: k.AcceptErrors.Load(), ConnectionsRefused: k.ConnectionsRefused.Load(),
		Logins: k.Logins.Load(), LoginsRefused: k.LoginsRefused.Load(), Takeovers: k.Takeovers.Load(),
		Published: k.Published.Load(), Refused: k.Refused.Load(), Duplicates: k.Duplicates.Load(), Ambiguous: k.Ambiguous.Load(), ResendsStored: k.ResendsStored.Load(), CommitErrors: k.CommitErrors.Load(),
		Malformed: k.Malformed.Load(), KeepAliveTimeouts: k.KeepAliveTimeouts.Load(), BufferRefused: k.BufferRefused.Load(), Panics: k.Panics.Load(), Throttled: k.Throttled.Load(), LoginsDropped: k.LoginsDropped.Load(),
		Delivered: k.Delivered.Load(), Dropped: k.Dropped.Load(), Expired: k.Expired.Load(),
		Wills: k.Wills.Load(), WillsRefused: k.WillsRefused.Load(), RetainedRefused: k.RetainedRefused.Load(), SessionsExpired: k.SessionsExpired.Load(),
	}
}
