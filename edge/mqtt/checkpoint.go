package mqtt

import (
	"encoding/binary"
	"maps"
	"slices"
)

// grace is a moment and what was under way then: when all of that is distributed,
// everything below ends has been offered.
type grace struct {
	ends  map[uint32]int64
	conns map[*conn]uint64
	wills uint64
}

func (s *Server) ends() map[uint32]int64 {
	m := map[uint32]int64{}
	s.cfg.Log.Ends(func(p uint32, next int64) { m[p] = next })
	return m
}

func (s *Server) newGrace() *grace {
	g := &grace{ends: s.ends(), conns: map[*conn]uint64{}}
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		c.mu.Lock()
		if c.distributed < c.submitted {
			g.conns[c] = c.submitted
		}
		c.mu.Unlock()
	}
	g.wills = s.willsBegun.Load()
	return g
}

func (s *Server) over(g *grace) bool {
	for c, n := range g.conns {
		c.mu.Lock()
		ok := c.distributed >= n
		c.mu.Unlock()
		if !ok {
			return false
		}
	}
	return s.willsEnded.Load() >= g.wills
}

// checkpoint makes durable how far deliveries are, in one commit. final: nothing is
// under way any more. Only one runs at a time.
func (s *Server) checkpoint(final bool) {
	if s.cfg.Log == nil {
		return
	}
	s.checkpointMu.Lock()
	defer s.checkpointMu.Unlock()
	if final {
		s.floor = s.ends()
	} else {
		if s.grace != nil && s.over(s.grace) {
			s.floor, s.grace = s.grace.ends, nil
		}
		if s.grace == nil {
			s.grace = s.newGrace()
		}
	}
	if s.floor == nil {
		return
	}
	type change struct {
		ss  *session
		rec []byte
	}
	var changes []change
	s.cursorMu.Lock() // until the commit is on its way: records get into the log in the order in which they were made
	s.mu.Lock()
	for _, ss := range s.sessions {
		if !ss.durable {
			continue
		}
		ss.mu.Lock()
		if rec := ss.encodeCursor(s.floor); string(rec) != ss.cursor.saved {
			changes = append(changes, change{ss, rec})
		}
		ss.mu.Unlock()
	}
	s.mu.Unlock()
	if len(changes) == 0 && maps.Equal(s.floor, s.floorSaved) {
		s.cursorMu.Unlock()
		return
	}
	b := s.cfg.Backend.Begin(&Client{})
	floor := binary.AppendUvarint([]byte{cursorVersion}, uint64(len(s.floor)))
	for _, p := range slices.Sorted(maps.Keys(s.floor)) {
		floor = appendPosition(floor, Position{p, s.floor[p]})
	}
	b.SetState(KindCursor, cursorFloor, floor)
	for _, c := range changes {
		b.SetState(KindCursor, cursorPrefix+c.ss.id, c.rec)
	}
	done := make(chan error, 1)
	b.Commit(func(err error) { done <- err })
	s.cursorMu.Unlock()
	if err := <-done; err != nil {
		s.stats.CommitErrors.Add(1)
		s.log.Error("positions of sessions not stored, deliveries may come again after a restart", "error", err)
		return
	}
	s.floorSaved = maps.Clone(s.floor)
	for _, c := range changes {
		c.ss.mu.Lock()
		c.ss.cursor.saved = string(c.rec)
		c.ss.mu.Unlock()
	}
}

// loadCursors takes the sessions up where the log says: their own records, then
// everything at and above the floor is offered again.
func (s *Server) loadCursors() {
	if s.cfg.Log == nil {
		return
	}
	var floor map[uint32]int64
	records := map[*session][]byte{} // decoded after Load: that reads the log
	s.cfg.State.Load(KindCursor, func(key string, b []byte) bool {
		if key == cursorFloor {
			if len(b) == 0 || b[0] != cursorVersion {
				s.log.Error("position of the deliveries not understood")
				return true
			}
			floor = map[uint32]int64{}
			r := blobs{b: b[1:]}
			for n := r.num(); n > 0 && !r.bad; n-- {
				at := r.position()
				floor[at.Part] = at.Offset
			}
			return true
		}
		if ss := s.sessions[key[min(len(key), len(cursorPrefix)):]]; ss != nil {
			records[ss] = append([]byte(nil), b...)
		}
		return true
	})
	for ss, b := range records {
		ss.cursor.saved = string(b)
		if err := ss.decodeCursor(b); err != nil {
			s.log.Error("position of a session not understood", "client", ss.id, "error", err)
		}
	}
	s.floor, s.floorSaved = floor, maps.Clone(floor)
	if floor == nil { // the first start with positions: what is there was never offered
		s.floor = s.ends()
		return
	}
	if s.subs.count.Load() == 0 {
		s.floor = s.ends()
		return
	}
	for p, end := range s.ends() {
		for from := floor[p]; from < end; {
			next, err := s.cfg.Log.Read(p, from, func(off int64, m *Stored) bool {
				direct, _, _ := s.subs.match(m.Topic)
				msg := &message{topic: m.Topic, qos: m.QoS, from: m.Client, at: Position{p, off}}
				for i := range direct {
					if t := &direct[i]; !t.noLocal || t.ss.id != msg.from {
						if o := (outMsg{m: msg, qos: min(msg.qos, t.qos), at: msg.at}); o.qos > 0 && t.ss.logged(&o) && t.ss.find2(o.at) < 0 {
							t.ss.leave(o.at)
						}
					}
				}
				return true
			})
			if err != nil || next == from {
				if err != nil {
					s.log.Error("log cannot be read, deliveries may be missing", "partition", p, "error", err)
				}
				break
			}
			from = next
		}
	}
	s.floor = s.ends()
}

// forgetCursor removes the record of a session that ends, in the commit of its end.
func (s *Server) forgetCursor(b Burst, id string) {
	if s.cfg.Log == nil {
		return
	}
	if _, had := s.cfg.State.Get(KindCursor, cursorPrefix+id); had {
		b.SetState(KindCursor, cursorPrefix+id, nil)
	}
}
