// Package bridge takes messages from an MQTT broker that exists already
// (Mosquitto, EMQX, …) into the node's log, with MQTT 5 and paho.golang.
//
// The broker keeps a session for us and hears an acknowledgement only after the
// message is durable here: what the broker had acknowledged to its own clients at
// QoS 1 reaches the log at least once, however often either side dies. A message
// that was durable and not yet acknowledged when the connection broke comes again,
// marked DUP. A Sink that is a Memory recognises it where the broker sends it again with its
// packet id and in its order, as the standard asks for; else it is stored again.
//
//	b, err := bridge.New(bridge.Config{Name: "plant", Brokers: []string{"mqtt://10.0.0.5:1883"}, ...})
//	err = b.Run(ctx)
//
// One Bridge is one session on one broker, or cluster (Brokers are tried in turn).
package bridge

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Sink is where messages become durable.
type Sink interface {
	// Begin returns an empty burst.
	Begin() Burst
}

// Memory may be implemented by a Sink that remembers, durably and with the messages
// themselves, what it has stored of a session.
type Memory interface {
	// Session is told at each connect, before the first message, whether the broker has
	// kept our session. If not, its packet ids mean nothing any more.
	Session(present bool)
	// Known gets the messages that a resumed session begins with and that are marked DUP, in
	// order, and returns how many of the first are certainly durable. They are
	// acknowledged and not stored again.
	Known(resent []Message) int
}

// Burst is a group of messages that become durable together.
type Burst interface {
	// Add encodes m now; m may be kept by nobody. An error refuses this message alone
	// and for good: the broker is told that it was taken, and it is counted. ErrLater
	// says that it may go another time: the burst is dropped, and all of it stays with
	// the broker.
	Add(m *Message) error
	// Commit hands the burst over and may block for back-pressure. done runs once: nil
	// when everything is durable. It must not block.
	Commit(done func(error))
}

// ErrLater is wrapped by errors of Burst.Add that will pass (a disk error, a full disk).
var ErrLater = errors.New("cannot be stored now")

// Message is one publish of the broker.
type Message struct {
	Topic         string
	Payload       []byte
	QoS           byte
	PacketID      uint16 // 0 at QoS 0
	Retain, Dup   bool
	ContentType   string
	ResponseTopic string
	Correlation   []byte
	User          []UserProperty
	Arrival       time.Time
}

// UserProperty of MQTT 5; keys may repeat.
type UserProperty struct{ Key, Value string }

// Subscription of the bridge. Filter may be a shared one, "$share/group/filter":
// then several nodes divide the messages among them.
type Subscription struct {
	Filter string
	QoS    byte // 0, 1 (wanted for durability) or 2
}

// Config of a bridge. Name, Brokers, ClientID, Subscriptions and Sink are required.
type Config struct {
	Name     string   // for logs and record headers
	Brokers  []string // mqtt://host:port or mqtts://host:port, tried in turn
	ClientID string   // names the session at the broker; must be the same after every restart, and nobody else's
	Username string
	// Password is asked for at every connect, so that a changed file is enough; nil = none.
	Password      func() ([]byte, error)
	TLS           *tls.Config // for mqtts; ServerName is set from the address when empty
	Subscriptions []Subscription
	Sink          Sink

	SessionExpiry  time.Duration // how long the broker keeps our session while we are away; default 7 days
	ReceiveMaximum int           // messages under way, not yet durable; default 1000
	MaxPacketBytes int           // larger ones are never sent by the broker, and end the connection if they are; default 1 MiB + 64 KiB
	KeepAlive      time.Duration // default 30 s
	DialTimeout    time.Duration // default 10 s
	WriteTimeout   time.Duration // default 20 s
	BackoffMin     time.Duration // default 500 ms
	BackoffMax     time.Duration // default 30 s

	Dial   func(ctx context.Context, network, address string) (net.Conn, error) // nil = net.Dialer
	Now    func() time.Time                                                     // nil = time.Now
	Rand   *rand.Rand                                                           // jitter; nil = seeded by the system
	Logger *slog.Logger                                                         // nil = discard
}

func def[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

func (c Config) withDefaults() Config {
	def(&c.SessionExpiry, 7*24*time.Hour)
	def(&c.ReceiveMaximum, 1000)
	def(&c.MaxPacketBytes, 1<<20+64<<10)
	def(&c.KeepAlive, 30*time.Second)
	def(&c.DialTimeout, 10*time.Second)
	def(&c.WriteTimeout, 20*time.Second)
	def(&c.BackoffMin, 500*time.Millisecond)
	def(&c.BackoffMax, 30*time.Second)
	if c.Dial == nil {
		c.Dial = (&net.Dialer{}).DialContext
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Rand == nil {
		c.Rand = rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

func (c Config) validate() error {
	var errs []error
	bad := func(ok bool, format string, a ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, a...))
		}
	}
	bad(c.Name != "", "name is required")
	bad(c.Sink != nil, "sink is required")
	bad(c.ClientID != "" && len(c.ClientID) <= 256, "client_id: 1 to 256 bytes; the broker keeps our session under it")
	bad(len(c.Brokers) > 0, "brokers: at least one is required, for example mqtt://127.0.0.1:1883")
	for _, b := range c.Brokers {
		if _, err := parseBroker(b); err != nil {
			errs = append(errs, err)
		}
	}
	bad(len(c.Subscriptions) > 0, "subscriptions: at least one is required")
	for _, s := range c.Subscriptions {
		bad(s.Filter != "" && len(s.Filter) < 65536 && s.QoS <= 2, "subscription %q at QoS %d: want a topic filter and QoS 0, 1 or 2", s.Filter, s.QoS)
	}
	bad(c.SessionExpiry >= time.Second && c.SessionExpiry <= 100*365*24*time.Hour, "session_expiry %v: want at least 1s", c.SessionExpiry)
	bad(c.ReceiveMaximum >= 1 && c.ReceiveMaximum <= 65535, "receive_maximum %d: want 1 to 65535", c.ReceiveMaximum)
	bad(c.MaxPacketBytes >= 1024 && c.MaxPacketBytes <= 256<<20, "max packet %d bytes: want 1 KiB to 256 MiB", c.MaxPacketBytes)
	bad(c.KeepAlive >= time.Second && c.KeepAlive <= 65535*time.Second, "keep_alive %v: want 1s to 65535s", c.KeepAlive)
	bad(c.BackoffMin > 0 && c.BackoffMax >= c.BackoffMin, "back-off %v to %v: want 0 < min <= max", c.BackoffMin, c.BackoffMax)
	return errors.Join(errs...)
}

// broker is one parsed address.
type broker struct {
	address string
	host    string
	tls     bool
}

func parseBroker(s string) (broker, error) {
	u, err := url.Parse(s)
	if err != nil || u.Host == "" || u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" {
		return broker{}, fmt.Errorf("broker %q: want mqtt://host:port or mqtts://host:port (user and password have fields of their own)", s)
	}
	b := broker{host: u.Hostname()}
	port := u.Port()
	switch u.Scheme {
	case "mqtt", "tcp":
		def(&port, "1883")
	case "mqtts", "ssl", "tls":
		def(&port, "8883")
		b.tls = true
	default:
		return broker{}, fmt.Errorf("broker %q: scheme %q; want mqtt or mqtts", s, u.Scheme)
	}
	b.address = net.JoinHostPort(b.host, port)
	return b, nil
}

// Stats of a bridge since New.
type Stats struct {
	Name       string
	Connected  bool
	Broker     string    // in use, or last tried
	Since      time.Time // of the present state
	Received   uint64    // messages from the broker
	Redelivery uint64    // of those, marked DUP
	Duplicates uint64    // of those, durable already and not stored again
	Waiting    int64     // received and not yet durable or refused: our own lag
	LastAt     time.Time // of the newest message; zero = none yet
	Bytes      uint64    // of payloads received
	State      string    // "connecting", "connected" or "waiting" (for the next try)
	NextTry    time.Time // while waiting
	Stored     uint64    // durable
	Refused    uint64    // could not be stored for good (no route, too large), acknowledged and dropped
	Failed     uint64    // could not be stored now; the broker sends them again
	Reconnects uint64
	LostState  uint64 // times the broker had forgotten our session
	LastError  string
}

// Bridge is one session on one broker.
type Bridge struct {
	cfg     Config
	brokers []broker

	received, redelivery, stored, refused, failed, reconnects, lostState atomic.Uint64
	duplicates, bytes                                                    atomic.Uint64
	waiting, lastAt                                                      atomic.Int64 // lastAt in Unix ns; 0 = none
	established                                                          atomic.Bool  // the broker has had a session of ours since New

	mu        sync.Mutex // guards the fields below
	connected bool
	current   string
	since     time.Time
	nextTry   time.Time // zero = a try is under way
	lastErr   string
}

// New checks the configuration; it starts nothing.
func New(c Config) (*Bridge, error) {
	c = c.withDefaults()
	if err := c.validate(); err != nil {
		return nil, fmt.Errorf("bridge %s: %w", c.Name, err)
	}
	b := &Bridge{cfg: c, since: c.Now()}
	for _, s := range c.Brokers {
		br, err := parseBroker(s)
		if err != nil {
			return nil, err
		}
		b.brokers = append(b.brokers, br)
	}
	b.cfg.Logger = c.Logger.With("bridge", c.Name)
	return b, nil
}

// Run stays connected until ctx ends, and returns ctx's error. It may run once.
func (b *Bridge) Run(ctx context.Context) error {
	wait := b.cfg.BackoffMin
	for i := 0; ; i++ {
		began := b.cfg.Now()
		up, err := b.session(ctx, b.brokers[i%len(b.brokers)])
		b.note(false, "", err)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		// A session that held for a while starts the back-off anew; one that ends at
		// once (refused by storage, taken over by a twin) does not.
		if up && b.cfg.Now().Sub(began) > b.cfg.BackoffMax {
			wait = b.cfg.BackoffMin
		}
		delay := wait/2 + time.Duration(b.cfg.Rand.Int64N(int64(wait/2)+1))
		b.cfg.Logger.Warn("broker connection ended", "err", err, "retry_in", delay)
		wait = min(wait*2, b.cfg.BackoffMax)
		b.setNextTry(b.cfg.Now().Add(delay))
		t := time.NewTimer(delay)
		select {
		case <-ctx.Done():
			t.Stop()
			return ctx.Err()
		case <-t.C:
		}
		b.setNextTry(time.Time{})
		b.reconnects.Add(1)
	}
}

// note records the connection's state for Stats.
func (b *Bridge) note(connected bool, broker string, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if connected != b.connected {
		b.connected, b.since = connected, b.cfg.Now()
	}
	if broker != "" {
		b.current = broker
	}
	if err != nil {
		b.lastErr = err.Error()
	}
}

func (b *Bridge) setNextTry(t time.Time) {
	b.mu.Lock()
	b.nextTry = t
	b.mu.Unlock()
}

// Stats may be called at any time.
func (b *Bridge) Stats() Stats {
	b.mu.Lock()
	defer b.mu.Unlock()
	state := "connecting"
	if b.connected {
		state = "connected"
	} else if !b.nextTry.IsZero() {
		state = "waiting"
	}
	var last time.Time
	if ns := b.lastAt.Load(); ns != 0 {
		last = time.Unix(0, ns)
	}
	return Stats{
		State: state, NextTry: b.nextTry, LastAt: last, Waiting: max(0, b.waiting.Load()), Bytes: b.bytes.Load(), Duplicates: b.duplicates.Load(),
		Name: b.cfg.Name, Connected: b.connected, Broker: b.current, Since: b.since, LastError: b.lastErr,
		Received: b.received.Load(), Redelivery: b.redelivery.Load(), Stored: b.stored.Load(), Refused: b.refused.Load(),
		Failed: b.failed.Load(), Reconnects: b.reconnects.Load(), LostState: b.lostState.Load(),
	}
}
