package firmwaresim

import (
	"context"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/eclipse/paho.golang/packets"
	"github.com/eclipse/paho.golang/paho"
	"github.com/eclipse/paho.golang/paho/session"
	"github.com/eclipse/paho.golang/paho/session/state"

	"tailrace/firmware-sim/ledger"
)

// link is the network side of one power cycle: connections one after the other,
// one session. Its goroutine (run) alone sends; paho's reader delivers acks.
type link struct {
	v         *device
	boot      uint64
	topic     string // telemetry
	statusTop string
	telemetry *ledger.Session
	status    *ledger.Session
	ring      *ring
	seq       uint64 // of telemetry; owned by the sampler
	clockMu   sync.Mutex

	wake     chan struct{} // capacity 1: an ack arrived, or finish was called
	session  *sessionState
	attempts int  // failed connects in a row
	resumed  bool // the server has a session of ours
	window   int
	newborn  bool   // no status was sent yet in this boot
	stateSeq uint64 // of status messages

	mu        sync.Mutex
	inflight  []*message // guarded by mu; in the order sent
	again     []*message // guarded by mu; to be sent before anything else
	sending   *message   // guarded by mu; handed to paho, no packet id yet
	finishing bool       // guarded by mu
	lastAck   time.Time  // guarded by mu
}

func (v *device) newLink(boot uint64) *link {
	l := &link{v: v, boot: boot, topic: v.d.Topic("telemetry"), statusTop: v.d.Topic("status"),
		ring: newRing(v.f.c.Ring), wake: make(chan struct{}, 1), newborn: true}
	l.telemetry = v.f.c.Ledger.Session(l.topic, boot)
	l.status = v.f.c.Ledger.Session(l.statusTop, boot)
	l.session = &sessionState{State: state.NewInMemory(), l: l}
	return l
}

// finish tells the link that no more readings come.
func (l *link) finish() {
	l.mu.Lock()
	l.finishing = true
	l.mu.Unlock()
	notify(l.wake)
}

// run keeps the device connected until it has finished or power ends.
func (l *link) run(power context.Context) {
	c := &l.v.f.c
	for power.Err() == nil {
		conn, client, err := l.connect(power)
		if err == nil {
			l.attempts = 0
			if l.serve(power, conn, client) {
				return
			}
		} else {
			l.v.f.n.connectFails.Add(1)
			c.Logger.Debug("connect failed", "client", l.v.d.ClientID(), "err", err)
		}
		limit := c.BackOffMax
		if l.attempts < 30 {
			limit = min(limit, c.BackOffMin<<l.attempts)
		}
		if limit <= 0 {
			limit = c.BackOffMax
		}
		l.attempts++
		t := time.NewTimer(1 + time.Duration(l.v.rng.Int64N(int64(limit)))) // full jitter
		select {
		case <-t.C:
		case <-power.Done():
			t.Stop()
		}
	}
}

func (l *link) connect(power context.Context) (*bufferedConn, *paho.Client, error) {
	f, d := l.v.f, l.v.d
	select {
	case f.dials <- struct{}{}:
		defer func() { <-f.dials }()
	case <-power.Done():
		return nil, nil, power.Err()
	}
	raw, err := f.c.Dial(power)
	if err != nil {
		return nil, nil, err
	}
	conn := &bufferedConn{Conn: raw}
	// paho waits for its own goroutines in ways a dead network could stretch; a
	// lost power ends the socket, and with it the wait.
	defer context.AfterFunc(power, func() { conn.powerCut() })()
	client := paho.NewClient(paho.ClientConfig{ClientID: d.ClientID(), Conn: conn, Session: l.session,
		OnPublishReceived: []func(paho.PublishReceived) (bool, error){func(paho.PublishReceived) (bool, error) { return true, nil }}})
	expiry, receive := f.c.SessionExpiry, uint16(20)
	will := envelope{d: d, boot: l.boot}
	cp := &paho.Connect{ClientID: d.ClientID(), KeepAlive: f.c.KeepAlive,
		// A device that just got power has no session state; the server's would be of its former life.
		CleanStart: !l.resumed,
		Properties: &paho.ConnectProperties{SessionExpiryInterval: &expiry,
			ReceiveMaximum: &receive}, // without it paho reserves 525 KB a client
		WillMessage: &paho.WillMessage{Topic: l.statusTop, Payload: will.will(), QoS: 1, Retain: true}}
	if f.c.Username != "" {
		cp.Username, cp.UsernameFlag = f.c.Username, true
		cp.Password, cp.PasswordFlag = []byte(f.c.Password), f.c.Password != ""
	}
	ack, err := client.Connect(power, cp)
	if err != nil {
		if ack != nil && ack.ReasonCode >= 0x80 {
			return nil, nil, fmt.Errorf("server refused the connection: reason %#x", ack.ReasonCode)
		}
		return nil, nil, err
	}
	f.n.connects.Add(1)
	l.resumed = true
	l.window = f.c.Window
	if ack.Properties != nil && ack.Properties.ReceiveMaximum != nil {
		// One below the server's maximum, so that paho's quota never has to wait.
		l.window = max(1, min(l.window, int(*ack.Properties.ReceiveMaximum)-1))
	}
	return conn, client, nil
}

// serve uses one connection; true: everything is sent and acknowledged.
func (l *link) serve(power context.Context, conn *bufferedConn, client *paho.Client) bool {
	n, c := &l.v.f.n, &l.v.f.c
	n.connected.Add(1)
	defer n.connected.Add(-1)
	// hangUp ends the socket first, so that Disconnect says nothing and only waits for paho's goroutines.
	hangUp := func() {
		conn.powerCut()
		_ = client.Disconnect(&paho.Disconnect{})
	}
	l.clockMu.Lock()
	l.v.clock.connected(time.Now())
	l.clockMu.Unlock()
	l.mu.Lock()
	l.lastAck = time.Now()
	l.mu.Unlock()

	reason := "reconnect"
	if l.newborn {
		reason, l.newborn = "power-on", false
	}
	birth := l.statusMessage(true, reason)
	stall := time.NewTimer(c.AckTimeout)
	defer stall.Stop()
	farewell := false
	for {
		for l.mayTake() {
			m := l.takeAgain()
			if m == nil && birth != nil {
				m, birth = birth, nil
			}
			if m == nil {
				m = l.ring.take()
			}
			if m == nil {
				break
			}
			if !l.send(client, m) {
				hangUp()
				return false
			}
		}
		if l.idle() && birth == nil {
			if farewell {
				_ = client.Disconnect(&paho.Disconnect{})
				return true
			}
			farewell = true
			birth = l.statusMessage(false, "switched off")
			continue
		}
		select {
		case <-l.wake:
		case <-l.ring.some:
		case <-client.Done():
			return false
		case <-power.Done():
			hangUp()
			return false
		case <-stall.C:
			l.mu.Lock()
			left := c.AckTimeout
			if len(l.inflight) > 0 {
				left = time.Until(l.lastAck.Add(c.AckTimeout))
			}
			l.mu.Unlock()
			if left <= 0 {
				c.Logger.Debug("no ack in time", "client", l.v.d.ClientID())
				hangUp()
				return false
			}
			stall.Reset(left)
		}
	}
}

func (l *link) mayTake() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.inflight) < l.window
}

func (l *link) takeAgain() *message {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.again) == 0 {
		return nil
	}
	m := l.again[0]
	l.again = l.again[1:]
	return m
}

// idle: no more comes and all is answered.
func (l *link) idle() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.finishing && len(l.inflight) == 0 && len(l.again) == 0 && l.ring.len() == 0
}

func (l *link) statusMessage(online bool, reason string) *message {
	l.stateSeq++
	l.clockMu.Lock()
	ts := l.v.clock.now(time.Now()).UnixMilli()
	l.clockMu.Unlock()
	e := envelope{d: l.v.d, boot: l.boot, seq: l.stateSeq, ts: ts}
	return &message{account: l.status, topic: l.statusTop, seq: e.seq, payload: e.status(online, reason), retain: true}
}

// send publishes m without waiting for its ack; false: the connection is lost.
func (l *link) send(client *paho.Client, m *message) bool {
	f := l.v.f
	if m.told {
		m.account.Resent(m.seq, 1, true) // the server forgot the session
		f.n.resent.Add(1)
	} else {
		m.told = true
		m.account.Intent(m.seq, ledger.Hash(m.payload))
		f.n.published.Add(1)
		f.n.bytes.Add(int64(len(m.payload)))
		if f.c.OnIntent != nil {
			f.c.OnIntent(l.public(m))
		}
	}
	p := &paho.Publish{QoS: 1, Retain: m.retain, Topic: m.topic, Payload: m.payload}
	if l.v.d.Encoding == CBOR && m.account == l.telemetry && !m.retain {
		p.Properties = &paho.PublishProperties{ContentType: "application/cbor"}
	}
	l.mu.Lock()
	l.sending = m
	if len(l.inflight) == 0 {
		l.lastAck = time.Now()
	}
	l.mu.Unlock()
	_, err := client.PublishWithOptions(context.Background(), p, paho.PublishOptions{Method: paho.PublishMethod_AsyncSend})
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.sending == m { // paho did not take it into the session
		l.sending = nil
		l.again = append([]*message{m}, l.again...)
		return false
	}
	return err == nil
}

func (l *link) public(m *message) Message {
	return Message{Client: l.v.d.ClientID(), Topic: m.topic, Boot: l.boot, Seq: m.seq, Payload: m.payload}
}

// forget accounts for what the device still held when it lost its memory.
func (l *link) forget() {
	l.mu.Lock()
	held := append(l.inflight, l.again...)
	n := int64(len(l.inflight))
	l.inflight, l.again = nil, nil
	l.mu.Unlock()
	f := l.v.f
	f.n.inFlight.Add(-n)
	for m := l.ring.take(); m != nil; m = l.ring.take() {
		held = append(held, m)
	}
	for _, m := range held {
		if !m.told {
			f.n.unsent.Add(1)
			continue
		}
		f.n.forgotten.Add(1)
		m.account.Unknown(m.seq, 1)
		if f.c.OnOutcome != nil {
			f.c.OnOutcome(l.public(m), Outcome{})
		}
	}
}

// sessionState is paho's session with two taps: it learns the packet id of what
// is sent, and sees acknowledgements. paho's own way to wait for an ack would cost
// a goroutine a message and does not keep the order of sending.
type sessionState struct {
	*state.State
	l *link
}

// AddToSession runs on the link's goroutine, before the packet is written.
func (s *sessionState) AddToSession(ctx context.Context, p session.Packet, resp chan<- packets.ControlPacket) error {
	err := s.State.AddToSession(ctx, p, resp)
	if pub, ok := p.(*packets.Publish); ok && err == nil {
		l := s.l
		l.mu.Lock()
		l.sending.pid = pub.PacketID
		l.inflight = append(l.inflight, l.sending)
		l.sending = nil
		l.mu.Unlock()
		l.v.f.n.inFlight.Add(1)
	}
	return err
}

// ConAckReceived is where paho sends the unacknowledged again with DUP, or drops
// them when the server has no session; then the device sends them as new.
func (s *sessionState) ConAckReceived(w io.Writer, cp *packets.Connect, ca *packets.Connack) error {
	l := s.l
	l.mu.Lock()
	n := len(l.inflight)
	for _, m := range l.inflight {
		if ca.SessionPresent {
			m.account.Resent(m.seq, 1, false)
			l.v.f.n.resent.Add(1)
		}
	}
	if !ca.SessionPresent {
		l.again = append(l.inflight, l.again...)
		l.inflight = nil
		l.v.f.n.inFlight.Add(-int64(n))
		if !cp.CleanStart {
			l.v.f.n.sessionsLost.Add(1)
		}
	}
	l.mu.Unlock()
	return s.State.ConAckReceived(w, cp, ca)
}

// PacketReceived runs on paho's reader.
func (s *sessionState) PacketReceived(p *packets.ControlPacket, pubs chan<- *packets.Publish) error {
	ack, ok := p.Content.(*packets.Puback)
	var m *message
	if ok {
		m = s.l.acked(ack.PacketID)
	}
	// The window opens only after paho has given the packet id free.
	err := s.State.PacketReceived(p, pubs)
	if m != nil {
		s.l.settle(m, ack.ReasonCode)
		notify(s.l.wake)
	}
	return err
}

func (l *link) acked(pid uint16) *message {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, m := range l.inflight {
		if m.pid == pid {
			return m
		}
	}
	return nil // an ack for nothing: a broken server; nothing to settle
}

// settle notes the outcome and takes the message out of flight.
func (l *link) settle(m *message, code byte) {
	f := l.v.f
	out := Outcome{Acked: code < 0x80, Reason: code}
	if out.Acked {
		out.Reason = 0
		m.account.Ack(m.seq, 1)
		f.n.acked.Add(1)
	} else {
		m.account.Refused(m.seq, 1)
		f.n.refused.Add(1)
		f.n.lastRefusal.Store(int64(code))
	}
	if f.c.OnOutcome != nil {
		f.c.OnOutcome(l.public(m), out)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, k := range l.inflight {
		if k == m {
			l.inflight = append(l.inflight[:i], l.inflight[i+1:]...)
			f.n.inFlight.Add(-1)
			break
		}
	}
	l.lastAck = time.Now()
}
