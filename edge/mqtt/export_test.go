package mqtt

// Sweep runs one round of housekeeping.
func (s *Server) Sweep() { s.sweep() }
