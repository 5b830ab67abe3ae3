package mqtt

import "time"

// Sweep runs one round of housekeeping.
func (s *Server) Sweep() { s.sweep() }

// Checkpoint does what Run does every few seconds.
func (s *Server) Checkpoint() { s.checkpoint(false) }

// LookAround does what Run does every few seconds; a keep-alive counts from now.
func (s *Server) LookAround(now time.Time) { s.lookAround(now) }

// Parked is how many connections wait without a goroutine.
func (s *Server) Parked() int { return int(s.parker.count.Load()) }
