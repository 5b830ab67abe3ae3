package edge

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"tailrace/devices"
	"tailrace/edge/auth"
	"tailrace/edge/mqtt"
	"tailrace/edge/mqtt/packet"
	"tailrace/storage"
)

// ingest is the way of a message into the log: route, encode, one commit for
// everything that one read of a connection brought. It is the mqtt.Backend.
//
// Per publish nothing is allocated once its route is known: the route, kept by the
// MQTT server per connection and topic, holds the encoded key and headers, and the
// record is encoded straight into the commit's arena.
type ingest struct {
	store     *storage.Store
	router    *devices.Router
	streams   *streams
	registry  *devices.Registry
	auth      *authenticator
	suspects  *quarantine
	sequences *sequences
	topics    int      // topics one connection may publish to; 0 = no limit
	review    func()   // ends the connections of who may not stay; set by the node
	classes   []string // in the order of the configuration; 0 is the default and keeps all state
	logger    *slog.Logger

	generation atomic.Uint64 // raised when cached routes may be wrong
	bursts     sync.Pool
	refused    [refusals]atomic.Uint64
}

// route is everything about a publish that depends on connection and topic only.
// It is immutable, but for device.
type route struct {
	devices.Route
	generation uint64
	part       *storage.Partition
	class      int
	err        error  // publishes are refused
	key        []byte // encoded key
	static     []byte // encoded headers "mqtt.topic" and "mqtt.client"
	device     atomic.Pointer[devices.Device]
}

// visitor is what the node knows of one connection; it is the client's Routes.
type visitor struct {
	credential
	// topics are hashes of the topics that were published to, used by the connection's goroutine only.
	topics map[uint64]struct{}
	over   bool // met the limit of topics
}

var topicSeed = maphash.MakeSeed()

// Authenticate implements mqtt.Backend.
func (in *ingest) Authenticate(c *mqtt.Client, username string, password []byte, cert *x509.Certificate) error {
	id, cr, err := in.auth.login(username, password, cert, addrOf(c.Remote))
	if err == nil {
		c.Identity = id
		if !c.Assigned && !in.auth.mayUse(id, c.ID) {
			err = refusal(packet.ClientIDNotValid, "client id does not belong to the identity")
		}
	}
	if err == nil {
		err = in.suspects.check(c)
	}
	if err != nil {
		in.refused[refusedLogin].Add(1)
		return err
	}
	c.Routes = &visitor{credential: cr}
	return nil
}

// MayTry implements mqtt.Gatekeeper.
func (in *ingest) MayTry(addr netip.Addr) bool { return in.auth.mayTry(addr) }

// AuthorizeSubscribe implements mqtt.SubscribeAuthorizer.
func (in *ingest) AuthorizeSubscribe(c *mqtt.Client, filter string, _ byte) error {
	if !in.auth.may(c.Identity, c.ID, auth.Subscribe, filter) {
		in.refused[refusedACL].Add(1)
		return errNotAllowed
	}
	return nil
}

// AuthorizeWill implements mqtt.WillAuthorizer.
func (in *ingest) AuthorizeWill(c *mqtt.Client, topic string) error {
	if !in.auth.may(c.Identity, c.ID, auth.Will, topic) {
		in.refused[refusedACL].Add(1)
		return refusal(packet.NotAuthorized, "the will's topic is not allowed")
	}
	return nil
}

// Still implements mqtt.Reviewer; it is asked in reviews, too.
func (in *ingest) Still(c *mqtt.Client) error {
	v, _ := c.Routes.(*visitor)
	if v == nil {
		return nil
	}
	if err := in.auth.still(c.Identity, v.credential); err != nil {
		return err
	}
	return in.suspects.check(c)
}

// Ended implements mqtt.EndObserver.
func (in *ingest) Ended(c *mqtt.Client, code packet.Code, err error) {
	if reason := offence(code, err); reason != "" {
		in.suspects.strike(c, reason)
	}
}

// mayPublish is asked once per connection and topic, and again after a reload.
func (in *ingest) mayPublish(c *mqtt.Client, topic string, will bool) error {
	what := auth.Publish
	if will {
		what = auth.Will
	}
	if !in.auth.may(c.Identity, c.ID, what, topic) {
		return errNotAllowed
	}
	v, _ := c.Routes.(*visitor)
	if v == nil || in.topics <= 0 || will {
		return nil
	}
	h := maphash.String(topicSeed, topic)
	if _, known := v.topics[h]; known {
		return nil
	}
	if len(v.topics) >= in.topics {
		if !v.over {
			v.over = true // one strike per connection
			if in.suspects.strike(c, "more topics than allowed") {
				go in.review()
			}
		}
		return errTopicFlood
	}
	if v.topics == nil {
		v.topics = map[uint64]struct{}{}
	}
	v.topics[h] = struct{}{}
	return nil
}

var (
	errNotAllowed = errors.New("not allowed by the rules of access")
	errTopicFlood = errors.New("more topics than one client may publish to")
)

// Begin implements mqtt.Backend.
func (in *ingest) Begin(c *mqtt.Client) mqtt.Burst {
	user := c.Identity
	if user == auth.Anonymous || user == "" {
		user = c.Username
	}
	b := in.begin(c.ID, user)
	b.who = c
	return b
}

func (in *ingest) begin(client, user string) *burst {
	b, _ := in.bursts.Get().(*burst)
	if b == nil {
		b = &burst{in: in, appends: make([]*storage.Append, len(in.classes))}
		b.submitted = func(_ *storage.Append, err error) { b.finish(err) }
		b.joined = func(_ *storage.Append, err error) { b.join(err) }
	}
	b.client, b.user = client, user
	return b
}

// burst is one mqtt.Burst (and one of a bridge). It belongs to one goroutine until
// Commit, then to the committer.
type burst struct {
	in           *ingest
	who          *mqtt.Client // nil for a bridge, which is as trusted as the configuration
	client, user string
	appends      []*storage.Append // by class; nil until the class was needed once
	state        bool              // appends[0] has state changes
	scratch      []byte            // headers of one record
	counted      []counted         // sequence numbers of the records, for routes that dedupe
	latest       int               // class of the record added last
	plain        meta              // of a message without properties
	tallied      *route            // of the records that are not counted yet
	records      int               // how many they are,
	bytes        int               // and their payloads
	arrival      time.Time         // of the last of them
	marks        []mark            // records whose position is asked for

	done              func(error)
	submitted, joined func(*storage.Append, error) // bound once
	open              atomic.Int32
	mu                sync.Mutex // guards failed and some while several appends are under way
	failed            error
	some              bool // part of the burst is durable, in another class than what is under way
}

func (b *burst) class(i int) *storage.Append {
	if b.appends[i] == nil {
		b.appends[i] = b.in.store.NewAppend(b.in.classes[i])
	}
	return b.appends[i]
}

// Add implements mqtt.Burst.
func (b *burst) Add(p *mqtt.Publish) error {
	r, _ := (*p.Route).(*route)
	if r == nil || r.generation != b.in.generation.Load() {
		var keep bool
		if r, keep = b.in.admitted(b.who, b.user, p); keep {
			*p.Route = r
		}
	}
	if p.Props == nil {
		b.plain.qos, b.plain.retain = p.QoS, p.Retain
		return b.add(r, p.Payload, &b.plain, p.Arrival)
	}
	m := metaOf(p)
	return b.add(r, p.Payload, &m, p.Arrival)
}

// add encodes one message into the burst, or refuses it and leaves the burst as it was.
func (b *burst) add(r *route, payload []byte, m *meta, arrival time.Time) error {
	if r.err != nil {
		return b.in.refuse(r, r.err)
	}
	t, err := r.EventTime(payload, arrival)
	if err != nil {
		return b.in.refuse(r, err)
	}
	known := len(b.counted)
	if r.Dedupes() && b.duplicate(r, payload, m) {
		return mqtt.ErrStored
	}
	more, n := qosHeaders[m.qos], 1
	if !m.simple() || t.FromPayload {
		b.scratch, n = appendHeaders(b.scratch[:0], m, t.Nanos, t.FromPayload)
		more = b.scratch
	}
	if err := b.class(r.class).RecordParts(r.part, t.Millis, r.key, payload, staticHeaders+n, r.static, more); err != nil {
		b.counted = b.counted[:min(known, len(b.counted))] // the number is not that of a stored record
		return b.in.refuse(r, err)
	}
	b.latest = r.class
	if r != b.tallied {
		b.tally()
		b.tallied = r
	}
	b.records++
	b.bytes += len(payload)
	b.arrival = arrival
	return nil
}

// tally counts the records of one route, the last of them that came in this burst.
func (b *burst) tally() {
	r := b.tallied
	if r == nil {
		return
	}
	r.Stats.Records.Add(uint64(b.records))
	if d := r.device.Load(); d != nil && !d.Seen(b.arrival.UnixMilli(), b.records, b.bytes) {
		d = b.in.registry.Device(r.Device, b.arrival) // forgotten meanwhile: known again
		d.Seen(b.arrival.UnixMilli(), b.records, b.bytes)
		r.device.Store(d)
	}
	b.tallied, b.records, b.bytes = nil, 0, 0
}

// mark asks for the position of one record.
type mark struct {
	at          *mqtt.Position
	class, item int
}

// Mark implements mqtt.Marker.
func (b *burst) Mark(at *mqtt.Position) {
	b.marks = append(b.marks, mark{at, b.latest, b.appends[b.latest].Len() - 1})
}

// Window implements mqtt.Burst.
func (b *burst) Window(clientID string, delta []byte) {
	b.class(0).Fold(storage.KindWindow, clientID, delta)
	b.state = true
}

// SetState implements mqtt.Burst.
func (b *burst) SetState(kind mqtt.StateKind, key string, value []byte) {
	b.class(0).Set(stateKind(kind), key, value)
	b.state = true
}

// Commit implements mqtt.Burst.
//
// A burst of one class is one append: all or nothing. State (the window that knows
// re-sends among it) is always in the first class. A burst with records in another
// class and state commits that class first and waits, then the first: a crash in
// between may store a re-send of never acknowledged records twice, but can never
// take a lost record for a stored one. Waiting here keeps the connection's order.
func (b *burst) Commit(done func(error)) {
	b.tally()
	b.commitCounted()
	b.done = done
	used, last := 0, 0
	for i := range b.appends {
		if b.has(i) {
			used, last = used+1, i
		}
	}
	switch {
	case used == 0:
		b.finish(nil)
	case used == 1:
		b.in.store.Submit(b.appends[last], b.submitted)
	case b.state:
		for i := 1; i <= last; i++ {
			if !b.has(i) {
				continue
			}
			if err := b.in.store.Commit(context.Background(), b.appends[i]); err != nil {
				b.finish(err)
				return
			}
			b.some = true
		}
		b.in.store.Submit(b.appends[0], b.submitted)
	default:
		b.open.Store(int32(used))
		for i := range b.appends {
			if b.has(i) {
				b.in.store.Submit(b.appends[i], b.joined)
			}
		}
	}
}

// has: the class takes part in this burst. State changes are not counted by Len.
func (b *burst) has(i int) bool {
	return b.appends[i] != nil && (b.appends[i].Len() > 0 || i == 0 && b.state)
}

// join ends one of several appends without state.
func (b *burst) join(err error) {
	b.mu.Lock()
	if b.failed == nil {
		b.failed = err
	}
	b.some = b.some || err == nil
	err = b.failed
	b.mu.Unlock()
	if b.open.Add(-1) == 0 {
		b.finish(err)
	}
}

// maxScratch: a burst that met a large record does not keep its memory.
const maxScratch = 64 << 10

// finish answers and returns the burst to the pool.
func (b *burst) finish(err error) {
	done, in, some := b.done, b.in, b.some
	for _, m := range b.marks {
		if err == nil {
			p, base, _ := b.appends[m.class].Item(m.item)
			*m.at = mqtt.Position{Part: uint32(p.ID()), Offset: base}
		}
	}
	clear(b.marks)
	b.marks = b.marks[:0]
	for _, a := range b.appends {
		if a != nil {
			a.Reset()
		}
	}
	if cap(b.scratch) > maxScratch {
		b.scratch = nil
	}
	b.who, b.client, b.user, b.state, b.done, b.failed, b.some = nil, "", "", false, nil, nil, false
	in.bursts.Put(b)
	if err != nil {
		if errors.Is(err, storage.ErrUnknownTopic) {
			in.generation.Add(1) // a topic was deleted: resolve routes anew
		}
		// Of several classes one may have what another has not.
		unknown := some || errors.Is(err, storage.ErrUncertain)
		err = in.failure(err)
		if unknown {
			err = fmt.Errorf("%w: %w", mqtt.ErrUnknownOutcome, err)
		}
	}
	done(err)
}

// admitted makes the route of one topic of a client that may publish to it.
func (in *ingest) admitted(c *mqtt.Client, user string, p *mqtt.Publish) (r *route, keep bool) {
	// Read before the rules are: a reload in between makes this route outdated.
	generation := in.generation.Load()
	if err := in.mayPublish(c, p.Name, p.Will); err != nil {
		return &route{generation: generation, err: err}, true
	}
	r, keep = in.resolve(p.Name, c.ID, user, p.Arrival)
	r.generation = generation
	return r, keep
}

// resolve makes the route of one topic. keep: it may be cached; a refusal for a
// reason that can pass is not.
func (in *ingest) resolve(topic, client, user string, now time.Time) (r *route, keep bool) {
	r = &route{generation: in.generation.Load()}
	var err error
	if r.Route, err = in.router.Route(devices.Message{Topic: topic, Client: client, User: user}); err != nil {
		r.err = err
		return r, true
	}
	if base, ok := in.streams.sketchOf(r.Stream); ok {
		r.err = fmt.Errorf("%w: %q is what this node itself says of stream %q", devices.ErrStream, r.Stream, base)
		return r, true
	}
	if r.part, r.class, err = in.streams.partition(r.Stream); err != nil {
		r.err = err
		return r, false
	}
	r.key = appendField(nil, r.Key)
	r.static = appendHeaderString(nil, headerTopic, topic)
	r.static = appendHeaderString(r.static, headerClient, client)
	if r.Route.Device != "" {
		r.device.Store(in.registry.Device(r.Route.Device, now))
	}
	return r, true
}

// Reasons why messages and logins are refused, for counters.
const (
	refusedUnmatched = iota // no rule, default is reject
	refusedRule             // a rule says reject, or its stream name is illegal
	refusedTime             // no readable event time and the rule says reject
	refusedTopics           // max_topics
	refusedSize
	refusedFull
	refusedDisk
	refusedLogin
	refusedACL    // the rules of access do not allow it
	refusedDevice // more topics than one client may publish to
	refusals
)

var refusalNames = [refusals]string{"unmatched", "rule", "time", "max_topics", "too_large", "disk_full", "disk_error", "login", "acl", "client_topics"}

// refuse counts one refused publish and gives it its MQTT reason.
func (in *ingest) refuse(r *route, err error) error {
	if r.Stats != nil {
		r.Stats.Rejected.Add(1)
	}
	return in.failure(err)
}

// failure classifies an error: what is counted and what the device hears.
func (in *ingest) failure(err error) error {
	kind, code := refusedDisk, packet.ImplementationError
	switch {
	case errors.Is(err, devices.ErrUnmatched):
		kind, code = refusedUnmatched, packet.TopicNameInvalid
	case errors.Is(err, devices.ErrRejected), errors.Is(err, devices.ErrStream):
		kind, code = refusedRule, packet.TopicNameInvalid
	case errors.Is(err, devices.ErrNoTime):
		kind, code = refusedTime, packet.PayloadFormatInvalid
	case errors.Is(err, errNotAllowed):
		kind, code = refusedACL, packet.NotAuthorized
	case errors.Is(err, errTopicFlood):
		kind, code = refusedDevice, packet.QuotaExceeded
	case errors.Is(err, errTooManyTopics):
		kind, code = refusedTopics, packet.QuotaExceeded
	case errors.Is(err, storage.ErrTooLarge):
		kind, code = refusedSize, packet.PacketTooLarge
	case errors.Is(err, storage.ErrFull):
		kind, code = refusedFull, packet.QuotaExceeded
	case errors.Is(err, storage.ErrClosed):
		code = packet.ServerShuttingDown
	}
	in.refused[kind].Add(1)
	return &mqtt.ReasonError{Code: code, Reason: err.Error()}
}

// state lets the MQTT server read its durable state.
type state struct{ store *storage.Store }

func stateKind(k mqtt.StateKind) storage.StateKind {
	switch k {
	case mqtt.KindSession:
		return storage.KindSession
	case mqtt.KindRetained:
		return storage.KindRetained
	case mqtt.KindCursor:
		return storage.KindCursor
	}
	return storage.KindWindow
}

func (s state) Load(k mqtt.StateKind, f func(key string, value []byte) bool) {
	s.store.RangeState(stateKind(k), f)
}

func (s state) Get(k mqtt.StateKind, key string) ([]byte, bool) {
	return s.store.State(stateKind(k), key)
}
