package mqtt

import (
	"cmp"
	"encoding/binary"
	"maps"
	"slices"
	"time"

	"tailrace/edge/mqtt/packet"
)

// Log is where publishes became durable, as far as they can be read again. With one
// (Config.Log), what waits for a durable session is a position in it, and deliveries
// go on after a restart where the session stood. Methods may be called from any goroutine.
type Log interface {
	// Ends calls f with the next offset of every partition; all below is durable.
	Ends(f func(part uint32, next int64))
	// Read calls f with messages of part from offset from on, in order, until f returns
	// false or enough was read for once, and returns where to go on. Records that
	// are not messages of MQTT clients are passed over. Where the log begins later, it
	// begins there. next == from means that there is nothing (more).
	Read(part uint32, from int64, f func(off int64, m *Stored) bool) (next int64, err error)
}

// Stored is a message as it was read again. It is valid only during the call.
type Stored struct {
	Topic, Client string
	QoS           byte
	Retain        bool
	Payload       []byte
	Props         PublishProps // without the expiry
	Expires       time.Time    // zero = never
}

// Position is where a message is in the Log.
type Position struct {
	Part   uint32
	Offset int64 // -1 = nowhere
}

var nowhere = Position{Offset: -1}

// Marker is implemented by the Burst of a Backend whose records can be read from
// Config.Log: it fills at with the position of the publish added last, before done runs.
type Marker interface {
	Mark(at *Position)
}

// How it works. A checkpoint, written every few seconds when something has moved,
// holds a position for each partition (the floor): everything below it was offered
// to every session that wants it. What a durable session still needs of what lies below is in its
// own record: for each partition the position from which it must read. A session that
// is up to date has no record. While a session is away, or its queue is full, an
// offer only leaves that position (behind); the message is in the log. When the
// client is there and has room, catchUp reads from the position, filters by the
// session's subscriptions, and fills the queue until it has reached the end of the
// partition; from then on offers are taken live again.
//
// Offers of several publishers may come out of order, so "reached the end" and
// "offered" do not follow from each other: catchUp remembers the range it has read, and
// offers from within it are passed over.
//
// QoS 2: which packet id a message has is durable before it is sent, that it was
// received before PUBREL. So a restart goes on with the same ids and sends none twice.
// QoS 1 is sent again from the last checkpoint after kill -9.
//
// State of KindCursor. "f": 1 | number | each: partition, offset. "s" + client id:
//
//	1 | number of partitions | each: partition, offset
//	  | number of QoS 2 deliveries in flight | each: packet id, released, partition, offset, retain, number of ids, ids
//	  | number of finished QoS 2 deliveries above | each: partition, offset
//
// numbers are uvarints.
const (
	cursorVersion = 1
	cursorFloor   = "f"
	cursorPrefix  = "s"
	maxFinished   = 4096 // QoS 2 deliveries remembered above the floor
	recentTaken   = 256
)

// cursor is the part of a session that lies in the log. Guarded by session.mu.
type cursor struct {
	behind   map[uint32]*span // partitions that must be read
	read     map[uint32]span  // what the last catching up of a partition has read
	recent   []Position       // ring of what was queued last
	at       int
	finished []Position // QoS 2, at or above the floor
	since    map[string]map[uint32]int64
	reading  bool // catchUp runs
	saving   bool // save runs
	wanted   bool // save has something to do
	saved    string
}

type span struct{ from, next int64 } // [from, next) was read

// logged reports whether o can be taken from the log again for ss.
func (ss *session) logged(o *outMsg) bool {
	return o.at.Offset >= 0 && ss.srv.cfg.Log != nil && ss.expiry.Load() > 0
}

// leave puts a message that ss cannot take now into its cursor; false means that it
// was taken before. Caller holds ss.mu.
func (ss *session) leave(at Position) {
	k := &ss.cursor
	if b := k.behind[at.Part]; b == nil {
		if k.behind == nil {
			k.behind = map[uint32]*span{}
		}
		k.behind[at.Part] = &span{at.Offset, at.Offset}
	} else if at.Offset < b.next {
		b.from, b.next = min(b.from, at.Offset), at.Offset
	}
}

// wasRead reports whether catchUp has met the message at at.
func (k *cursor) wasRead(at Position) bool {
	r, ok := k.read[at.Part]
	return ok && at.Offset >= r.from && at.Offset < r.next
}

func (k *cursor) note(at Position) {
	if len(k.recent) < recentTaken {
		k.recent = append(k.recent, at)
		return
	}
	k.recent[k.at] = at
	k.at = (k.at + 1) % recentTaken
}

// encodeCursor is what must be durable of ss; empty = nothing. Caller holds ss.mu.
func (ss *session) encodeCursor(floor map[uint32]int64) []byte {
	k := &ss.cursor
	pos := map[uint32]int64{}
	low := func(at Position) {
		if p, ok := pos[at.Part]; at.Offset >= 0 && (!ok || at.Offset < p) {
			pos[at.Part] = at.Offset
		}
	}
	for p, b := range k.behind {
		low(Position{p, b.next})
	}
	for i := range ss.queue[ss.head:] {
		low(ss.queue[ss.head+i].at)
	}
	flights := 0
	for i := range ss.inflight {
		o := &ss.inflight[i]
		if o.qos == 1 {
			low(o.at)
		} else if o.at.Offset >= 0 {
			flights++
		}
	}
	k.finished = slices.DeleteFunc(k.finished, func(at Position) bool {
		p, ok := pos[at.Part]
		return at.Offset < floor[at.Part] && !(ok && at.Offset >= p)
	})
	if len(k.finished) > maxFinished {
		k.finished = slices.Delete(k.finished, 0, len(k.finished)-maxFinished)
	}
	if len(pos) == 0 && flights == 0 && len(k.finished) == 0 {
		return nil
	}
	b := binary.AppendUvarint([]byte{cursorVersion}, uint64(len(pos)))
	for _, p := range slices.Sorted(maps.Keys(pos)) {
		b = appendPosition(b, Position{p, pos[p]})
	}
	b = binary.AppendUvarint(b, uint64(flights))
	for i := range ss.inflight {
		o := &ss.inflight[i]
		if o.qos != 2 || o.at.Offset < 0 {
			continue
		}
		b = binary.AppendUvarint(b, uint64(o.id))
		b = append(b, flag(o.released), flag(o.retain))
		b = appendPosition(b, o.at)
		b = binary.AppendUvarint(b, uint64(len(o.ids)))
		for _, id := range o.ids {
			b = binary.AppendUvarint(b, uint64(id))
		}
	}
	b = binary.AppendUvarint(b, uint64(len(k.finished)))
	for _, at := range k.finished {
		b = appendPosition(b, at)
	}
	return b
}

func flag(v bool) byte {
	if v {
		return 1
	}
	return 0
}

func appendPosition(b []byte, at Position) []byte {
	return binary.AppendUvarint(binary.AppendUvarint(b, uint64(at.Part)), uint64(at.Offset))
}

func (r *blobs) position() Position {
	return Position{uint32(r.num()), int64(r.num() &^ (1 << 63))}
}

func (r *blobs) one() byte {
	if len(r.b) == 0 {
		r.bad = true
		return 0
	}
	v := r.b[0]
	r.b = r.b[1:]
	return v
}

// decodeCursor fills an empty session. Messages in flight are read from the log; what
// is not there any more is not sent again.
func (ss *session) decodeCursor(b []byte) error {
	if len(b) == 0 || b[0] != cursorVersion {
		return errState
	}
	r := blobs{b: b[1:]}
	for n := r.num(); n > 0 && !r.bad; n-- {
		ss.leave(r.position())
	}
	for n := r.num(); n > 0 && !r.bad; n-- {
		o := outMsg{id: uint16(r.num()), qos: 2}
		o.released, o.retain = r.one() == 1, r.one() == 1
		o.at = r.position()
		for m := r.num(); m > 0 && !r.bad; m-- {
			o.ids = append(o.ids, uint32(r.num()))
		}
		if r.bad || o.id == 0 {
			return errState
		}
		ss.srv.cfg.Log.Read(o.at.Part, o.at.Offset, func(off int64, m *Stored) bool {
			if off == o.at.Offset {
				o.m = m.message(o.at)
			}
			return false
		})
		if o.m == nil && !o.released {
			continue
		}
		ss.inflight = append(ss.inflight, o)
		ss.lastID = max(ss.lastID, o.id)
	}
	for n := r.num(); n > 0 && !r.bad; n-- {
		ss.cursor.finished = append(ss.cursor.finished, r.position())
	}
	if r.bad || len(r.b) != 0 {
		return errState
	}
	return nil
}

// message copies m.
func (m *Stored) message(at Position) *message {
	c := &message{topic: m.Topic, qos: m.QoS, retain: m.Retain, from: m.Client, expires: m.Expires, at: at}
	c.setContent(m.Payload, &m.Props, time.Time{})
	return c
}

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

// find2 is the index of the delivery in flight of the message at at, or -1.
func (ss *session) find2(at Position) int {
	return slices.IndexFunc(ss.inflight, func(o outMsg) bool { return o.at == at })
}

// kick starts what a session with a client has to do besides sending. Caller holds ss.mu.
func (ss *session) kick() {
	k := &ss.cursor
	if ss.conn == nil {
		return
	}
	if len(k.behind) > 0 && !k.reading && len(ss.queue)-ss.head <= ss.srv.cfg.Limits.Queued/2 {
		k.reading = true
		ss.srv.wg.Add(1) // a connection is open, so Shutdown is not through
		go ss.catchUp()
	}
	if k.wanted && !k.saving {
		k.saving = true
		ss.srv.wg.Add(1)
		go ss.save()
	}
}

// catchUp reads from the log what ss has not seen, until it is up to date, away, or full.
func (ss *session) catchUp() {
	defer ss.srv.wg.Done()
	s := ss.srv
	type found struct {
		m   *message
		sub target
	}
	var msgs []found
	for {
		ss.mu.Lock()
		k := &ss.cursor
		room := s.cfg.Limits.Queued - (len(ss.queue) - ss.head)
		if ss.conn == nil || len(k.behind) == 0 || room <= s.cfg.Limits.Queued/4 {
			k.reading = false
			ss.kick()
			ss.mu.Unlock()
			return
		}
		p := slices.MinFunc(slices.Collect(maps.Keys(k.behind)), cmp.Compare)
		b := k.behind[p]
		from := b.next
		subs := maps.Clone(ss.subs)
		since := map[string]int64{}
		for f, m := range k.since {
			since[f] = m[p]
		}
		ss.mu.Unlock()

		msgs = msgs[:0]
		next, err := s.cfg.Log.Read(p, from, func(off int64, m *Stored) bool {
			if t, ok := matching(subs, since, off, m); ok && !(t.noLocal && m.Client == ss.id) {
				msgs = append(msgs, found{m.message(Position{p, off}), t})
			}
			return len(msgs) < room
		})
		if err != nil {
			s.log.Error("log cannot be read for a session", "client", ss.id, "partition", p, "from", from, "error", err)
		}
		ss.mu.Lock()
		if k.behind[p] != b || b.next != from { // dropped, or an earlier offer has come late
			ss.mu.Unlock()
			continue
		}
		for _, f := range msgs {
			o := outMsg{m: f.m, at: f.m.at, qos: min(f.m.qos, f.sub.qos), retain: f.m.retain && f.sub.retainAsPub, ids: f.sub.ids}
			if ss.find2(o.at) < 0 && !slices.Contains(k.recent, o.at) && !slices.Contains(k.finished, o.at) {
				k.note(o.at)
				ss.queue = append(ss.queue, o)
			}
		}
		b.next = next
		end := s.end(p)
		if err != nil || next == from && next < end { // the next ack or message tries again
			k.reading = false
			ss.mu.Unlock()
			return
		}
		if next >= end {
			if k.read == nil {
				k.read = map[uint32]span{}
			}
			k.read[p] = span{b.from, next}
			delete(k.behind, p)
			for _, m := range k.since {
				delete(m, p)
			}
		}
		ss.pump()
		ss.mu.Unlock()
	}
}

func (s *Server) end(part uint32) (end int64) {
	s.cfg.Log.Ends(func(p uint32, next int64) {
		if p == part {
			end = next
		}
	})
	return end
}

// save makes packet ids and receipts of QoS 2 deliveries durable, then sends what they
// stand for.
func (ss *session) save() {
	defer ss.srv.wg.Done()
	s := ss.srv
	for {
		ss.mu.Lock()
		k := &ss.cursor
		if !k.wanted || ss.conn == nil {
			k.saving = false
			ss.mu.Unlock()
			return
		}
		k.wanted = false
		var ids []uint16
		for i := range ss.inflight {
			if o := &ss.inflight[i]; o.unsaved {
				ids = append(ids, o.id)
			}
		}
		c := ss.conn
		ss.mu.Unlock()
		b := s.cfg.Backend.Begin(&c.Client)
		done := make(chan error, 1)
		s.cursorMu.Lock()
		ss.mu.Lock()
		rec := ss.encodeCursor(nil)
		ss.mu.Unlock()
		b.SetState(KindCursor, cursorPrefix+ss.id, rec)
		b.Commit(func(err error) { done <- err })
		s.cursorMu.Unlock()
		err := <-done

		ss.mu.Lock()
		if err != nil {
			k.saving, k.wanted = false, true
			ss.mu.Unlock()
			s.stats.CommitErrors.Add(1)
			c.stop(cause{code: packet.ImplementationError, err: err})
			return
		}
		k.saved = string(rec)
		for _, id := range ids {
			i := ss.find(id)
			if i < 0 {
				continue
			}
			o := &ss.inflight[i]
			o.unsaved = false
			if ss.conn == nil {
				continue
			}
			if o.released {
				ss.conn.ack(packet.PUBREL, o.id, packet.Success)
			} else if !ss.conn.deliver(o, false) {
				ss.remove(i)
				k.finished = append(k.finished, o.at)
			}
		}
		ss.pump()
		ss.mu.Unlock()
	}
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

// beginsHere: a new filter does not match what lies in the log already. Caller holds ss.mu.
func (ss *session) beginsHere(filter string) {
	k := &ss.cursor
	if len(k.behind) == 0 {
		delete(k.since, filter)
		return
	}
	if k.since == nil {
		k.since = map[string]map[uint32]int64{}
	}
	m := map[uint32]int64{}
	for p := range k.behind {
		m[p] = ss.srv.end(p)
	}
	k.since[filter] = m
}
