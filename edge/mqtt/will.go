package mqtt

import (
	"time"

	"tailrace/edge/mqtt/packet"
)

// publishWill puts a will into the log like any publish, with whatever set adds to
// the same commit (the record without the will: it is published once), and delivers
// it when it is durable. It does not wait. A will that the backend refuses is
// counted and logged; there is nobody to tell.
func (s *Server) publishWill(c *Client, w *message, set func(Burst)) {
	now := s.cfg.Now()
	b := s.cfg.Backend.Begin(c)
	var props packet.MessageProps
	var route any
	p, err := w.publish(&props, &route, now)
	if err == nil {
		p.Will = true
		err = s.checkTopic(w.topic)
	}
	if err == nil {
		err = b.Add(p)
	}
	at := nowhere
	if err == nil && s.cfg.Log != nil {
		if mk, ok := b.(Marker); ok {
			mk.Mark(&at)
		}
	}
	if set != nil {
		set(b)
	}
	var keep *retain
	if err != nil {
		s.stats.WillsRefused.Add(1)
		s.log.Warn("will refused", "client", c.ID, "topic", w.topic, "error", err)
	} else {
		s.stats.Wills.Add(1)
		if w.retain {
			keep = s.keepRetained(b, w.topic, w)
		}
	}
	refused := err != nil
	var m *message
	if !refused {
		cp := *w
		m = &cp
		m.direct, m.shared, m.gen = s.subs.match(m.topic)
		w.gen = m.gen
	}
	s.wg.Add(1)
	s.willsBegun.Add(1)
	b.Commit(func(err error) {
		if keep != nil && err == nil {
			s.retained.apply(keep)
		} else if keep != nil {
			s.retained.forget(keep)
		}
		if err != nil {
			s.stats.CommitErrors.Add(1)
			s.log.Error("will not stored", "client", c.ID, "topic", w.topic, "error", err)
		}
		if err != nil || refused {
			s.willsEnded.Add(1)
			s.wg.Done()
			return
		}
		m.at = at
		go func() {
			defer s.wg.Done()
			defer s.willsEnded.Add(1)
			s.deliver(m)
		}()
	})
}

// willDue publishes a delayed will if the client has not come back.
func (s *Server) willDue(ss *session) {
	s.mu.Lock()
	w := ss.will
	if w == nil || ss.owner != nil || s.closing {
		s.mu.Unlock()
		return
	}
	ss.will, ss.willTimer = nil, nil
	rec := ss.encode(nil)
	if ss.expiry.Load() == 0 { // only kept for its will
		rec = nil
		s.removeSession(ss)
	}
	c := ss.client()
	s.wg.Add(1) // under mu and before closing: Shutdown waits
	defer s.wg.Done()
	s.mu.Unlock()
	s.publishWill(c, w, func(b Burst) { b.SetState(KindSession, ss.id, rec) })
}

// restoreWills arms the wills of clients that were connected, or whose will was
// delayed, when the server stopped: they have one and a half keep-alives to come
// back, the time after which they would have been missed.
func (s *Server) restoreWills() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, ss := range s.sessions {
		if ss.will != nil && ss.owner == nil && ss.willTimer == nil {
			wait := time.Duration(min(ss.willDelay, ss.expiry.Load())) * time.Second
			wait = max(wait, time.Duration(ss.keepAlive)*time.Second*3/2, s.cfg.Limits.LoginTimeout)
			ss.willTimer = time.AfterFunc(wait, func() { s.willDue(ss) })
		}
	}
}

// keepRetained stores or deletes a retained message with b. When there is no room,
// the topic keeps none: an older value would look like the newest.
func (s *Server) keepRetained(b Burst, topic string, m *message) *retain {
	k := &retain{topic: topic}
	if len(m.payload) > 0 {
		k.m = m
	}
	if !s.retained.reserve(k) {
		s.stats.RetainedRefused.Add(1)
		s.log.Warn("retained message not kept, set is full", "topic", topic, "retained", s.retained.len())
		k.m = nil
	}
	if k.m == nil {
		b.SetState(KindRetained, topic, nil)
	} else {
		b.SetState(KindRetained, topic, m.encode(nil))
	}
	return k
}
