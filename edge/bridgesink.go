package edge

import (
	"errors"
	"sync/atomic"

	"tailrace/edge/bridge"
	"tailrace/edge/mqtt"
	"tailrace/edge/mqtt/packet"
	"tailrace/storage"
)

// bridgeSink takes one bridge's messages the same way as a device's. It is used by
// one goroutine at a time (the bridge's).
type bridgeSink struct {
	in     *ingest
	client string
	routes map[string]*route
	user   []packet.UserProperty // scratch
	keep   int                   // messages that the broker may have in flight
	forget atomic.Bool           // the window is of a session that is no more
}

// The window of a bridge lies beside those of devices, under a key that no client id can be.
func (s *bridgeSink) windowKey() string { return "\x00bridge\x00" + s.client }

// Session implements bridge.Memory.
func (s *bridgeSink) Session(present bool) {
	if !present {
		s.forget.Store(true)
	}
}

// Known implements bridge.Memory.
func (s *bridgeSink) Known(resent []bridge.Message) int {
	window, _ := s.in.store.State(storage.KindWindow, s.windowKey())
	settled := make([]mqtt.Settled, len(resent))
	for i := range resent {
		settled[i] = settledOf(&resent[i])
	}
	return mqtt.Resends(window, s.keep, settled)
}

func settledOf(m *bridge.Message) mqtt.Settled {
	return mqtt.Settled{ID: m.PacketID, Hash: mqtt.HashOf(m.Topic, m.QoS, m.Retain, m.Payload)}
}

// maxBridgeRoutes bounds the cached routes of one bridge; one more empties the cache.
const maxBridgeRoutes = 16384

func newBridgeSink(in *ingest, client string, receiveMaximum int) *bridgeSink {
	def(&receiveMaximum, 1000) // the bridge's own default
	return &bridgeSink{in: in, client: client, routes: map[string]*route{}, keep: receiveMaximum}
}

// Begin implements bridge.Sink.
func (s *bridgeSink) Begin() bridge.Burst { return &bridgeBurst{s: s, burst: s.in.begin(s.client, "")} }

type bridgeBurst struct {
	s *bridgeSink
	*burst
	delta   []byte // of the window
	forgets bool   // delta begins a new one
}

// Commit implements bridge.Burst.
func (b *bridgeBurst) Commit(done func(error)) {
	if len(b.delta) > 0 {
		b.burst.Window(b.s.windowKey(), b.delta)
	}
	forgets := b.forgets
	b.burst.Commit(func(err error) {
		if err != nil && forgets {
			b.s.forget.Store(true)
		}
		done(err)
	})
}

// Add implements bridge.Burst.
func (b *bridgeBurst) Add(m *bridge.Message) error {
	err := b.add(m)
	if m.QoS > 0 && !errors.Is(err, bridge.ErrLater) { // what is refused for good is settled, too
		if b.s.forget.CompareAndSwap(true, false) {
			b.forgets = true
			b.delta = mqtt.AppendForget(b.delta, b.s.keep)
		}
		b.delta = mqtt.AppendSettled(b.delta, b.s.keep, settledOf(m))
	}
	return err
}

func (b *bridgeBurst) add(m *bridge.Message) error {
	s := b.s
	r := s.routes[m.Topic]
	if r == nil || r.generation != s.in.generation.Load() {
		var keep bool
		if r, keep = s.in.resolve(m.Topic, s.client, "", m.Arrival); keep {
			if len(s.routes) >= maxBridgeRoutes {
				clear(s.routes)
			}
			s.routes[m.Topic] = r
		}
	}
	s.user = s.user[:0]
	for _, u := range m.User {
		s.user = append(s.user, packet.UserProperty{Key: []byte(u.Key), Value: []byte(u.Value)})
	}
	me := meta{qos: m.QoS, retain: m.Retain, user: s.user}
	if m.ContentType != "" {
		me.contentType = []byte(m.ContentType)
	}
	if m.ResponseTopic != "" {
		me.response = []byte(m.ResponseTopic)
	}
	if m.Correlation != nil {
		me.correlation = m.Correlation
	}
	err := b.burst.add(r, m.Payload, &me, m.Arrival)
	if err == mqtt.ErrStored { // by its sequence number: answered like one that was stored
		return nil
	}
	var re *mqtt.ReasonError
	if errors.As(err, &re) && (re.Code == packet.ImplementationError || re.Code == packet.ServerShuttingDown || re.Code == packet.QuotaExceeded && !errors.Is(r.err, errTooManyTopics)) {
		return errors.Join(bridge.ErrLater, err)
	}
	return err
}
