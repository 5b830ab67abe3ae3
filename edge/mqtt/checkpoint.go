package mqtt

import (
	"encoding/binary"
	"maps"
	"slices"
	"strings"
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
	all := s.subs.groups()
	read := maps.Clone(s.floor) // nothing below will be read again
	for _, g := range all {
		g.mu.Lock()
		for p, b := range g.cursor.behind {
			read[p] = min(read[p], b.next)
		}
		g.mu.Unlock()
	}
	s.cursorMu.Lock() // until the commit is on its way: records get into the log in the order in which they were made
	s.mu.Lock()
	for _, ss := range s.sessions {
		if !ss.durable {
			continue
		}
		ss.mu.Lock()
		if rec := ss.encodeCursor(read); string(rec) != ss.cursor.saved {
			changes = append(changes, change{ss, rec})
		}
		ss.mu.Unlock()
	}
	s.mu.Unlock()
	// After the sessions: what moves from one to its group meanwhile is in one of the two.
	groups := map[string]string{}
	for _, g := range all {
		g.mu.Lock()
		if rec := g.encode(); rec != nil {
			groups[g.key()] = string(rec)
		}
		g.mu.Unlock()
	}
	if len(changes) == 0 && maps.Equal(s.floor, s.floorSaved) && maps.Equal(groups, s.groupsSaved) {
		s.cursorMu.Unlock()
		return
	}
	b := s.cfg.Backend.Begin(&Client{})
	b.SetState(KindCursor, cursorFloor, encodeFloor(s.floor))
	for _, c := range changes {
		b.SetState(KindCursor, cursorPrefix+c.ss.id, c.rec)
	}
	for key, rec := range groups {
		if s.groupsSaved[key] != rec {
			b.SetState(KindCursor, key, []byte(rec))
		}
	}
	for key := range s.groupsSaved {
		if _, still := groups[key]; !still {
			b.SetState(KindCursor, key, nil)
		}
	}
	done := make(chan error, 1)
	b.Commit(func(err error) { done <- err })
	s.cursorMu.Unlock()
	if err := <-done; err != nil {
		s.stats.CommitErrors.Add(1)
		s.log.Error("positions of sessions not stored, deliveries may come again after a restart", "error", err)
		return
	}
	s.floorSaved, s.groupsSaved = maps.Clone(s.floor), groups
	for _, c := range changes {
		c.ss.mu.Lock()
		c.ss.cursor.saved = string(c.rec)
		c.ss.mu.Unlock()
	}
}

func encodeFloor(floor map[uint32]int64) []byte {
	b := binary.AppendUvarint([]byte{cursorVersion}, uint64(len(floor)))
	for _, p := range slices.Sorted(maps.Keys(floor)) {
		b = appendPosition(b, Position{p, floor[p]})
	}
	return b
}

// saveFloor makes the first floor durable before anybody can subscribe: without one the next
// start would not know that what came meanwhile has yet to be offered.
func (s *Server) saveFloor() {
	b := s.cfg.Backend.Begin(&Client{})
	b.SetState(KindCursor, cursorFloor, encodeFloor(s.floor))
	done := make(chan error, 1)
	b.Commit(func(err error) { done <- err })
	if err := <-done; err != nil {
		s.stats.CommitErrors.Add(1)
		s.log.Error("first position not stored, deliveries may be missing after a crash", "error", err)
		return
	}
	s.floorSaved = maps.Clone(s.floor)
}

// loadCursors takes the sessions up where the log says: their own records, then
// everything at and above the floor is offered again.
func (s *Server) loadCursors() {
	if s.cfg.Log == nil {
		return
	}
	var floor map[uint32]int64
	s.groupsSaved = map[string]string{}
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
		if key, is := strings.CutPrefix(key, cursorPrefix); is {
			if ss := s.sessions[key]; ss != nil {
				records[ss] = append([]byte(nil), b...)
			}
		} else {
			s.groupsSaved[key] = string(b)
		}
		return true
	})
	for ss, b := range records {
		ss.cursor.saved = string(b)
		if err := ss.decodeCursor(b); err != nil {
			s.log.Error("position of a session not understood", "client", ss.id, "error", err)
		}
	}
	taken := map[Position]struct{}{} // QoS 2: by a session, once and for all
	for _, ss := range s.sessions {
		for i := range ss.inflight {
			taken[ss.inflight[i].at] = struct{}{}
		}
		for _, at := range ss.cursor.finished {
			taken[at] = struct{}{}
		}
	}
	for _, g := range s.subs.groups() {
		g.except = taken
		if rec := s.groupsSaved[g.key()]; rec != "" {
			if err := g.decode([]byte(rec)); err != nil {
				s.log.Error("position of a shared subscription not understood", "group", g.name, "filter", g.filter, "error", err)
			}
		}
	}
	s.floor, s.floorSaved = floor, maps.Clone(floor)
	if floor == nil { // the first start with positions: what is there was never offered
		s.floor = s.ends()
		s.saveFloor()
		return
	}
	if s.subs.count.Load() == 0 {
		s.floor = s.ends()
		return
	}
	for p, end := range s.ends() {
		for from := floor[p]; from < end; {
			next, err := s.cfg.Log.Read(p, from, func(off int64, m *Stored) bool {
				direct, shared, _ := s.subs.match(m.Topic)
				if m.QoS > 0 {
					for _, g := range shared {
						g.cursor.leave(Position{p, off})
						g.lag.Store(true)
					}
				}
				msg := &message{topic: m.Topic, qos: m.QoS, from: m.Client, at: Position{p, off}}
				for i := range direct {
					if t := &direct[i]; !t.noLocal || t.ss.id != msg.from {
						if o := (outMsg{m: msg, qos: min(msg.qos, t.qos), at: msg.at}); o.qos > 0 && t.ss.logged(&o) && t.ss.find2(o.at) < 0 {
							t.ss.cursor.leave(o.at)
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
