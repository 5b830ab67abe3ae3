package mqtt

import (
	"tailrace/edge/limit"
	"tailrace/edge/mqtt/packet"
)

// quota counts the sessions of one identity, or those that were opened from one address under
// an identity that anybody may have. Without it one account could fill the table with
// client ids and keep everybody else out.
type quota struct {
	key string
	n   int
}

// addSession enters a new session that c opens, unless there are too many. Caller holds s.mu.
func (s *Server) addSession(ss *session, c *conn) error {
	l := &s.cfg.Limits
	if len(s.sessions) >= l.Sessions {
		return &ReasonError{packet.QuotaExceeded, "too many sessions"}
	}
	key, most, what := ss.identity, l.SessionsPerIdentity, "too many sessions of this identity"
	if s.cfg.Shared(ss.identity) {
		key, most, what = "", l.MaxPerAddress, "too many sessions from this address"
		if a := c.admitted.addr; a.IsValid() {
			key = "\x00" + limit.Key(a).String()
		}
	}
	if q := s.quotas[key]; q != nil && key != "" && q.n >= most {
		return &ReasonError{packet.QuotaExceeded, what}
	}
	s.sessions[ss.id] = ss
	s.count(ss, key)
	return nil
}

// count is called with s.mu held, or before anything runs. A session that was read at start
// and is nobody's own counts nowhere: its address is not known any more.
func (s *Server) count(ss *session, key string) {
	if key == "" || key == ss.identity && s.cfg.Shared(key) {
		return
	}
	q := s.quotas[key]
	if q == nil {
		q = &quota{key: key}
		s.quotas[key] = q
	}
	q.n++
	ss.quota = q
}

// removeSession is called with s.mu held.
func (s *Server) removeSession(ss *session) {
	delete(s.sessions, ss.id)
	if q := ss.quota; q != nil {
		ss.quota = nil
		if q.n--; q.n == 0 {
			delete(s.quotas, q.key)
		}
	}
}
