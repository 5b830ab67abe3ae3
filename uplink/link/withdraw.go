package link

// Withdraw takes back what Want asked of a topic of a connected node. What is on its way
// is not stored any more unless somebody asks for it again.
func (s *Server) Withdraw(node, topic string) error {
	hs := s.session(node)
	if hs == nil {
		return ErrNotConnected
	}
	hs.mu.Lock()
	hs.recv.Withdraw(topic)
	hs.mu.Unlock()
	hs.kick()
	return nil
}
