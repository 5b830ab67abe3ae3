package mqtt

import (
	"runtime"
	"time"
)

// Sweep runs one round of housekeeping.
func (s *Server) Sweep() { s.sweep() }

// Checkpoint does what Run does every few seconds.
func (s *Server) Checkpoint() { s.checkpoint(false) }

// LookAround does what Run does every few seconds; a keep-alive counts from now.
func (s *Server) LookAround(now time.Time) { s.lookAround(now) }

// Begins is how many filters of a session have a position of their own.
func (s *Server) Begins(client string) int {
	s.mu.Lock()
	ss := s.sessions[client]
	s.mu.Unlock()
	ss.mu.Lock()
	defer ss.mu.Unlock()
	return len(ss.cursor.since)
}

// Parked is how many connections wait without a goroutine.
func (s *Server) Parked() int { return int(s.parker.count.Load()) }

// FlusherRoom is how many places a flusher's line has after turns in which it was never empty.
func FlusherRoom(turns int) int {
	var f flusher
	f.workers = runtime.GOMAXPROCS(0) // start none
	var turn [flushTurn]*outbox
	for range flushTurn + 1 {
		f.add(nil)
	}
	for range turns {
		f.take(turn[:])
		for range flushTurn {
			f.add(nil)
		}
	}
	return cap(f.queue)
}

// Admitted is how many connections are open, those included of which no WebSocket has come yet.
func (s *Server) Admitted() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.admitted
}

// LoggingIn is how many of them have not logged in and may still.
func (s *Server) LoggingIn() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.logins
}

// HoldTurns makes connections that nothing was said to wait with their end until release.
func (s *Server) HoldTurns() (release func()) {
	for range cap(s.turns) {
		s.turns <- struct{}{}
	}
	return func() {
		for range cap(s.turns) {
			<-s.turns
		}
	}
}

// Generation is that of the subscriptions.
func (s *Server) Generation() uint64 { return s.subs.gen.Load() }

// SendRetained does what follows a SUBACK, for a subscription made at generation since.
func (s *Server) SendRetained(client, filter string, since uint64) {
	s.mu.Lock()
	ss := s.sessions[client]
	s.mu.Unlock()
	s.sendRetained(ss, filter, subscription{qos: 1}, since)
}
