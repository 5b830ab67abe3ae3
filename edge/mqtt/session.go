package mqtt

import (
	"encoding/binary"
	"sync"
	"sync/atomic"
	"time"

	"tailrace/edge/mqtt/packet"
	"tailrace/edge/mqtt/topic"
)

// session is what a client id owns beyond one connection. Its record (existence,
// expiry, owner, subscriptions, will) is durable under KindSession, its window
// under KindWindow, what it waits for in the log under KindCursor.
type session struct {
	srv *Server
	id  string

	// Guarded by srv.mu.
	owner     *conn  // the connection that has the session, nil = none
	quota     *quota // where it is counted; nil = nowhere
	identity  string // who may have it
	username  string
	version   byte
	durable   bool      // outlives its connection (expiry was above 0)
	gone      time.Time // when the last owner left
	will      *message
	willDelay uint32 // seconds
	restored  bool   // read at start and not taken up since
	keepAlive uint16 // seconds; after a restart a client is missed so long
	willTimer *time.Timer

	expiry atomic.Uint32 // seconds after the connection; 0 = ends with it

	mu       sync.Mutex // leaf but for conn.out.mu
	conn     *conn      // deliveries go here; nil while away
	subs     map[string]subscription
	inflight []outMsg
	queue    []outMsg // [head:] waits
	head     int
	lastID   uint16
	cursor   cursor   // what waits in the log
	groups   []*group // of its shared subscriptions
}

// Session record, one version byte first:
//
//	1 | protocol version | gone (uvarint ms, 0 = connected, or not known) | expiry s | will delay s |
//	keep-alive s | identity | username | will (encoded message, empty = none) |
//	number of subscriptions | each: filter, options byte, identifier
//
// numbers are uvarints, texts have a uvarint length.
const sessionVersion = 1

// encode must be called with srv.mu held.
func (ss *session) encode(dst []byte) []byte {
	dst = append(dst, sessionVersion, ss.version)
	var ms int64
	if !ss.gone.IsZero() && (ss.srv.trusted || ss.undated()) { // else the next start would believe a wrong clock
		ms = ss.gone.UnixMilli()
	}
	dst = binary.AppendUvarint(dst, uint64(ms))
	dst = binary.AppendUvarint(dst, uint64(ss.expiry.Load()))
	dst = binary.AppendUvarint(dst, uint64(ss.willDelay))
	dst = binary.AppendUvarint(dst, uint64(ss.keepAlive))
	dst = appendBlob(dst, ss.identity)
	dst = appendBlob(dst, ss.username)
	var w []byte
	if ss.will != nil {
		w = ss.will.encode(nil)
	}
	dst = appendBlob(dst, w)
	ss.mu.Lock()
	defer ss.mu.Unlock()
	dst = binary.AppendUvarint(dst, uint64(len(ss.subs)))
	for f, s := range ss.subs {
		dst = append(appendBlob(dst, f), s.options())
		dst = binary.AppendUvarint(dst, uint64(s.id))
	}
	return dst
}

func decodeSession(id string, b []byte) (*session, error) {
	if len(b) < 2 || b[0] != sessionVersion {
		return nil, errState
	}
	ss := &session{id: id, version: b[1], restored: true}
	r := blobs{b: b[2:]}
	if ms := int64(r.num()); ms != 0 {
		ss.gone = time.UnixMilli(ms)
	}
	ss.expiry.Store(uint32(r.num()))
	ss.durable = ss.expiry.Load() > 0
	ss.willDelay = uint32(r.num())
	ss.keepAlive = uint16(r.num())
	ss.identity, ss.username = string(r.next()), string(r.next())
	if w := r.next(); len(w) > 0 {
		m, err := decodeMessage(w)
		if err != nil {
			return nil, err
		}
		ss.will = m
	}
	n := r.num()
	for i := uint64(0); i < n && !r.bad; i++ {
		f := string(r.next())
		if len(r.b) == 0 {
			return nil, errState
		}
		o := r.b[0]
		r.b = r.b[1:]
		id := uint32(r.num())
		_, plain, ok := topic.Shared(f)
		if r.bad || !ok || !topic.ValidFilter(plain) || o&3 == 3 {
			return nil, errState
		}
		if ss.subs == nil {
			ss.subs = map[string]subscription{}
		}
		ss.subs[f] = subscriptionOf(o, id)
	}
	if r.bad || len(r.b) != 0 {
		return nil, errState
	}
	return ss, nil
}

// saveSession puts the session's record into b when there is one to keep. Caller is
// the owner's reader.
func (c *conn) saveSession(b *burst) {
	if c.ss.expiry.Load() > 0 {
		c.srv.mu.Lock()
		rec := c.ss.encode(nil)
		c.srv.mu.Unlock()
		b.backend().SetState(KindSession, c.ID, rec)
	}
}

// expired reports whether the session is over. Caller holds srv.mu; owner is nil.
func (ss *session) expired(now time.Time) bool {
	gone := ss.gone
	if ss.undated() {
		gone = ss.srv.started
	}
	return !ss.durable || now.Sub(gone) >= time.Duration(ss.expiry.Load())*time.Second
}

// undated: gone is still what the record says, by a clock that may be another than now's.
// Caller holds srv.mu.
func (ss *session) undated() bool { return ss.restored && !ss.srv.dated }

// drop forgets subscriptions and deliveries.
func (ss *session) drop() {
	ss.mu.Lock()
	subs := ss.subs
	ss.subs = nil
	ss.mu.Unlock()
	for f := range subs { // a shared one takes back what it can give to others
		if g, plain, ok := topic.Shared(f); ok {
			ss.srv.subs.remove(ss, g, plain, true)
		}
	}
	ss.mu.Lock()
	ss.inflight, ss.queue, ss.head = nil, nil, 0
	k := &ss.cursor
	*k = cursor{reading: k.reading, saving: k.saving}
	ss.mu.Unlock()
}

// attach gives c the session of its client id: it ends a connection that has it,
// decides whether it is resumed, and makes the record durable before it returns, so
// that the CONNACK may promise the session (MQTT 5.0, 3.1.3-4, 3.2.2-2).
func (s *Server) attach(c *conn, cp *packet.Connect) (present bool, err error) {
	timeout := time.NewTimer(s.cfg.Limits.LoginTimeout)
	defer timeout.Stop()
	s.mu.Lock()
	var ss *session
	for {
		if s.closing {
			s.mu.Unlock()
			return false, &ReasonError{packet.ServerShuttingDown, "server shuts down"}
		}
		if ss = s.sessions[c.ID]; ss == nil {
			ss = &session{srv: s, id: c.ID, identity: c.Identity}
			if err := s.addSession(ss, c); err != nil {
				s.mu.Unlock()
				return false, err
			}
			break
		}
		// MQTT 5.0, 5.4.2: a session belongs to who opened it.
		if ss.identity != c.Identity {
			s.mu.Unlock()
			return false, &ReasonError{packet.NotAuthorized, "client id belongs to another identity"}
		}
		old := ss.owner
		if old == nil {
			break
		}
		s.mu.Unlock()
		s.stats.Takeovers.Add(1)
		old.stop(cause{code: packet.SessionTakenOver, takeover: true})
		select {
		case <-old.leaving(): // everything it had in flight is answered by the disk now
		case <-timeout.C:
			return false, &ReasonError{packet.ServerUnavailable, "former connection of this client id still waits for the disk"}
		}
		s.mu.Lock()
	}
	now := s.cfg.Now()
	ss.owner = c
	c.ss = ss
	if ss.willTimer != nil {
		ss.willTimer.Stop()
		ss.willTimer = nil
	}
	present = !cp.Clean && !ss.expired(now)
	oldWill := ss.will
	if ss.restored { // its connection ended with us, not with the client
		oldWill, ss.restored = nil, false
	}
	oldClient := ss.client()
	ss.will, ss.willDelay = nil, 0
	ss.username, ss.version, ss.gone = c.Username, c.Version, time.Time{}
	ss.expiry.Store(s.expiryOf(cp))
	ss.durable = ss.expiry.Load() > 0
	ss.keepAlive = uint16(c.keepAlive / time.Second)
	if cp.HasWill {
		w := &message{at: nowhere, topic: string(cp.Will.Topic), qos: cp.Will.QoS, retain: cp.Will.Retain, from: c.ID}
		w.setContent(cp.Will.Payload, &cp.Will.Props, now)
		if cp.Will.Props.HasExpiry {
			// Counted from the publication, not from CONNECT.
			c.willExpiry, w.expires = cp.Will.Props.Expiry, time.Time{}
		}
		ss.will, ss.willDelay = w, cp.Will.Delay
	}
	s.mu.Unlock()

	if !present {
		ss.drop()
	}
	if oldWill != nil && !present { // the old session has ended before the delay did
		s.publishWill(oldClient, oldWill, nil)
	}
	if err := s.saveAttached(c, present); err != nil {
		s.mu.Lock()
		if present {
			ss.gone = now // it is as before: not connected, and not over
		} else if s.sessions[c.ID] == ss {
			s.removeSession(ss) // it never began
		}
		s.release(c)
		s.mu.Unlock()
		c.ss = nil
		return false, err
	}
	if present {
		b, _ := s.cfg.State.Get(KindWindow, c.ID)
		w, ok := parseWindow(b)
		if !ok {
			s.log.Warn("window of a client not understood, re-sends will be stored again", "client", c.ID)
		}
		c.qos2 = w.openIDs()
		if e := w.sents(); len(e) > 0 {
			c.lineup = &lineup{stored: e, full: len(e) >= s.cfg.Limits.Window}
		}
	}
	return present, nil
}

// saveAttached makes the record of a session that begins durable, when it has to be.
func (s *Server) saveAttached(c *conn, present bool) error {
	ss := c.ss
	_, hadRecord := s.cfg.State.Get(KindSession, c.ID)
	_, hadWindow := s.cfg.State.Get(KindWindow, c.ID)
	keep := ss.expiry.Load() > 0 || ss.will != nil
	if !keep && !hadRecord && !hadWindow {
		return nil
	}
	b := s.cfg.Backend.Begin(&c.Client)
	if !present {
		if hadWindow {
			b.SetState(KindWindow, c.ID, nil)
		}
		s.forgetCursor(b, c.ID)
	}
	if keep {
		s.mu.Lock()
		rec := ss.encode(nil)
		s.mu.Unlock()
		b.SetState(KindSession, c.ID, rec)
	} else if hadRecord {
		b.SetState(KindSession, c.ID, nil)
	}
	done := make(chan error, 1)
	b.Commit(func(err error) { done <- err })
	if err := <-done; err != nil {
		s.stats.CommitErrors.Add(1)
		if re := asReason(err); re != nil && re.Code != packet.ImplementationError {
			return re
		}
		// The disk fails: the client should try again later, not give up.
		return &ReasonError{packet.ServerUnavailable, "session cannot be stored: " + err.Error()}
	}
	return nil
}

// expiryOf is the session expiry in seconds that c gets. A 3.x session without
// Clean Session has no end of its own (MQTT 3.1.1, 3.1.2.4) and gets the longest.
func (s *Server) expiryOf(cp *packet.Connect) uint32 {
	most := uint32(s.cfg.Limits.MaxSessionExpiry / time.Second)
	if cp.Version == packet.V5 {
		return min(cp.Expiry, most)
	}
	if cp.Clean {
		return 0
	}
	return most
}

// release takes the session from c; the session goes when nothing is left of it.
// Caller holds s.mu.
func (s *Server) release(c *conn) {
	ss := c.ss
	if ss == nil || ss.owner != c {
		return
	}
	ss.owner = nil
	if ss.expiry.Load() == 0 && s.sessions[ss.id] == ss {
		s.removeSession(ss)
	}
}

// detach ends c's hold of its session after everything in flight is answered: the
// will, the record, the end of the session. At shutdown nothing is written: the
// will and the session are taken up by the next start (MQTT 5.0, 3.1.2.5).
func (s *Server) detach(c *conn, why cause) {
	ss := c.ss
	if ss == nil {
		return
	}
	ss.mu.Lock()
	ss.conn = nil
	ss.mu.Unlock()
	ss.away()

	now := s.cfg.Now()
	s.mu.Lock()
	if s.closing {
		s.release(c)
		s.mu.Unlock()
		return
	}
	if why.clean {
		ss.will = nil
	}
	ss.gone = now
	ends := ss.expiry.Load() == 0
	will, client := ss.will, ss.client()
	if will != nil && c.willExpiry > 0 {
		w := *will
		w.expires = now.Add(time.Duration(c.willExpiry) * time.Second)
		will = &w
	}
	delay := time.Duration(min(ss.willDelay, ss.expiry.Load())) * time.Second
	if will != nil && !ends && delay > 0 {
		ss.will = will
		ss.willTimer = time.AfterFunc(delay, func() { s.willDue(ss) })
		will = nil
	} else {
		ss.will = nil
	}
	_, window := s.cfg.State.Get(KindWindow, ss.id)
	var rec []byte
	if !ends {
		rec = ss.encode(nil)
	}
	s.mu.Unlock()

	if ends {
		ss.drop()
	}
	set := func(b Burst) {
		b.SetState(KindSession, ss.id, rec) // nil deletes
		if ends && window {
			b.SetState(KindWindow, ss.id, nil)
		}
		if ends {
			s.forgetCursor(b, ss.id)
		}
	}
	if will != nil {
		s.publishWill(client, will, set)
	} else if _, had := s.cfg.State.Get(KindSession, ss.id); had || rec != nil || window {
		s.commitState(client, set)
	}
	s.mu.Lock()
	s.release(c)
	s.mu.Unlock()
}

// client is how the backend knows a session without a connection. Caller holds srv.mu.
func (ss *session) client() *Client {
	return &Client{ID: ss.id, Version: ss.version, Username: ss.username, Identity: ss.identity}
}

// commitState writes state nobody waits for; a failure is logged.
func (s *Server) commitState(c *Client, set func(Burst)) {
	b := s.cfg.Backend.Begin(c)
	set(b)
	b.Commit(func(err error) {
		if err != nil {
			s.stats.CommitErrors.Add(1)
			s.log.Error("session state not stored", "client", c.ID, "error", err)
		}
	})
}

// sweep ends sessions and retained messages whose time is over.
func (s *Server) sweep() {
	s.checkpoint(false)
	now := s.cfg.Now()
	for _, k := range s.retained.expired(now) {
		s.rewriteRetained(k.topic, nil, &k)
	}
	var over []*session
	wills := map[*session]*message{}
	trusted := s.cfg.ClockTrusted() // may wait
	s.mu.Lock()
	s.trust(trusted, now)
	for _, ss := range s.sessions {
		if ss.owner == nil && ss.expired(now) && (ss.durable || ss.will == nil) { // else willDue ends it
			over = append(over, ss)
			if ss.will != nil {
				wills[ss] = ss.will
			}
			if ss.willTimer != nil {
				ss.willTimer.Stop()
			}
			ss.will = nil
			s.removeSession(ss)
		}
	}
	s.mu.Unlock()
	for _, ss := range over {
		ss.drop()
		s.stats.SessionsExpired.Add(1)
		set := func(b Burst) {
			b.SetState(KindSession, ss.id, nil)
			b.SetState(KindWindow, ss.id, nil)
			s.forgetCursor(b, ss.id)
		}
		if w := wills[ss]; w != nil {
			s.publishWill(ss.client(), w, set)
		} else {
			s.commitState(ss.client(), set)
		}
	}
}
