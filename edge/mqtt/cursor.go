package mqtt

import (
	"cmp"
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
	cursorGroup   = "g"
	maxFinished   = 4096 // QoS 2 deliveries remembered above the floor
	recentTaken   = 256
)

// cursor is the part of a session, or of a shared subscription, that lies in the log.
// Guarded by session.mu or group.mu.
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

// leave notes a message that cannot be taken now.
func (k *cursor) leave(at Position) {
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
	for _, g := range ss.groups {
		if g.lag.Load() && ss.room() > 0 {
			g.wake()
		}
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

// unsubscribed ends a subscription, and with it what beginsHere remembers: a client that is behind
// could subscribe to one filter after the other. Caller holds ss.mu.
func (ss *session) unsubscribed(filter string) {
	delete(ss.subs, filter)
	delete(ss.cursor.since, filter)
}
