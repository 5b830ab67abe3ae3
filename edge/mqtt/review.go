package mqtt

import (
	"net/netip"

	"tailrace/edge/mqtt/packet"
	"tailrace/edge/mqtt/topic"
)

// WillAuthorizer may be implemented by a Backend: it is asked about the topic of a
// will after Authenticate. An error refuses the connection, 0x87 unless it is a *ReasonError.
type WillAuthorizer interface {
	AuthorizeWill(c *Client, topic string) error
}

// Reviewer may be implemented by a Backend. Still is asked after a login has become
// visible to Server.Review and before the CONNACK: a right that was taken away in
// between is seen by one of the two.
type Reviewer interface {
	Still(c *Client) error
}

// EndObserver may be implemented by a Backend: it hears how each connection that was
// logged in ended. code is what the client was told, Success when nothing. It must not block.
type EndObserver interface {
	Ended(c *Client, code packet.Code, err error)
}

// Gatekeeper may be implemented by a Backend: it is asked about every connection from an
// address that has nobody logged in, before a byte is read. It must not block.
type Gatekeeper interface {
	MayTry(addr netip.Addr) bool
}

func (s *Server) mayTry(addr netip.Addr) bool {
	g, ok := s.cfg.Backend.(Gatekeeper)
	return !ok || g.MayTry(addr)
}

// Review asks again about everybody: may about each connection that is logged in, read
// about each filter subscribed to, of sessions that are away, too (a filter without
// its $share prefix; also about the topics of deliveries that wait). An error of may
// closes the connection (0x87, or the code of a *ReasonError); an error of read ends
// the subscription and drops its deliveries. Both take effect before Review returns.
// Either may be nil.
func (s *Server) Review(may func(c *Client) error, read func(c *Client, filter string) error) (closed, ended int) {
	type known struct {
		ss *session
		c  *Client
	}
	var conns []*conn
	var sessions []known
	s.mu.Lock()
	for c := range s.conns {
		if may != nil && c.ss != nil && c.ss.owner == c {
			conns = append(conns, c)
		}
	}
	for _, ss := range s.sessions {
		if read != nil {
			sessions = append(sessions, known{ss, ss.client()})
		}
	}
	s.mu.Unlock()
	for _, c := range conns {
		if err := may(&c.Client); err != nil {
			re := asReason(err)
			if re == nil {
				re = &ReasonError{packet.NotAuthorized, err.Error()}
			}
			s.log.Info("connection closed", "client", c.ID, "identity", c.Identity, "remote", c.Remote, "reason", re.Reason)
			c.stop(cause{code: re.Code, err: re})
			closed++
		}
	}
	for _, k := range sessions {
		n := k.ss.revoke(k.c, read)
		if n == 0 {
			continue
		}
		ended += n
		s.log.Info("subscriptions ended: no longer allowed", "client", k.c.ID, "identity", k.c.Identity, "ended", n)
		s.mu.Lock()
		var rec []byte
		if s.sessions[k.ss.id] == k.ss && k.ss.expiry.Load() > 0 {
			rec = k.ss.encode(nil)
		}
		closing := s.closing
		s.mu.Unlock()
		if rec != nil && !closing {
			// A SUBSCRIBE under way may write an older record behind this one. The
			// backend reviews at its start, too.
			s.commitState(k.c, func(b Burst) { b.SetState(KindSession, k.ss.id, rec) })
		}
	}
	return closed, ended
}

// revoke ends the subscriptions that read refuses and drops what waits for them.
func (ss *session) revoke(c *Client, read func(*Client, string) error) int {
	ss.mu.Lock()
	var gone []string
	for f := range ss.subs {
		if _, plain, ok := topic.Shared(f); ok && read(c, plain) != nil {
			gone = append(gone, f)
			ss.unsubscribed(f)
		}
	}
	if len(gone) > 0 {
		kept := ss.queue[:0]
		for _, o := range ss.queue[ss.head:] {
			if o.group != nil || read(c, o.m.topic) == nil { // the group's is taken back below
				kept = append(kept, o)
			}
		}
		clear(ss.queue[len(kept):])
		ss.queue, ss.head = kept, 0
	}
	ss.mu.Unlock()
	for _, f := range gone {
		if g, plain, ok := topic.Shared(f); ok {
			ss.srv.subs.remove(ss, g, plain, false)
		}
	}
	return len(gone)
}

// mayStay asks the backend once more, now that Review sees c.
func (c *conn) mayStay() error {
	if r, ok := c.srv.cfg.Backend.(Reviewer); ok {
		return r.Still(&c.Client)
	}
	return nil
}

func (c *conn) mayHaveWill(topic string) error {
	if a, ok := c.srv.cfg.Backend.(WillAuthorizer); ok {
		return a.AuthorizeWill(&c.Client, topic)
	}
	return nil
}

// ended tells the backend. The session is nil when the login was refused.
func (c *conn) ended(why cause) {
	if o, ok := c.srv.cfg.Backend.(EndObserver); ok && c.ss != nil {
		o.Ended(&c.Client, why.code, why.err)
	}
}
