package mqtt

// Sweep runs one round of housekeeping.
func (s *Server) Sweep() { s.sweep() }

// Checkpoint does what Run does every few seconds.
func (s *Server) Checkpoint() { s.checkpoint(false) }
