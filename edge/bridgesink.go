package edge

import (
	"errors"

	"tailrace/edge/bridge"
	"tailrace/edge/mqtt"
	"tailrace/edge/mqtt/packet"
)

// bridgeSink takes one bridge's messages the same way as a device's. It is used by
// one goroutine at a time (the bridge's).
type bridgeSink struct {
	in     *ingest
	client string
	routes map[string]*route
	user   []packet.UserProperty // scratch
}

// maxBridgeRoutes bounds the cached routes of one bridge; one more empties the cache.
const maxBridgeRoutes = 16384

func newBridgeSink(in *ingest, client string) *bridgeSink {
	return &bridgeSink{in: in, client: client, routes: map[string]*route{}}
}

// Begin implements bridge.Sink.
func (s *bridgeSink) Begin() bridge.Burst { return bridgeBurst{s, s.in.begin(s.client, "")} }

type bridgeBurst struct {
	s *bridgeSink
	*burst
}

// Add implements bridge.Burst.
func (b bridgeBurst) Add(m *bridge.Message) error {
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
	var re *mqtt.ReasonError
	if errors.As(err, &re) && (re.Code == packet.ImplementationError || re.Code == packet.ServerShuttingDown || re.Code == packet.QuotaExceeded && !errors.Is(r.err, errTooManyTopics)) {
		return errors.Join(bridge.ErrLater, err)
	}
	return err
}
