package link

import (
	"crypto/tls"
	"log/slog"
)

// Dump describes the sessions of both ends.
func (c *Client) Dump() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := ""
	for s := range c.live {
		s.mu.Lock()
		out += s.id.String()[:8] + " " + s.sender.String() + "\n"
		s.mu.Unlock()
	}
	return out
}

func (s *Server) Dump() string {
	out := ""
	for _, hs := range s.sessions() {
		hs.mu.Lock()
		out += hs.node + hs.recv.String() + "\n"
		hs.mu.Unlock()
	}
	return out
}

// KillBulk closes one bulk connection of a node, as if its path had died.
func (s *Server) KillBulk(node string) bool {
	hs := s.session(node)
	if hs == nil {
		return false
	}
	hs.mu.Lock()
	defer hs.mu.Unlock()
	if len(hs.conns) == 0 {
		return false
	}
	hs.conns[0].close(77, "killed by a test")
	return true
}

// Reserved is what sessions took of ServerConfig.TotalBytes.
func (s *Server) Reserved() int64 { return s.reserved.Load() }

// ServingTickets is conf with tickets as a hub gives them.
func ServingTickets(conf *tls.Config) *tls.Config {
	return newTicketKeys(nil, slog.New(slog.DiscardHandler), nil).serve(conf)
}
