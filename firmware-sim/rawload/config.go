// Package rawload is a cheap MQTT load generator: hand-built 3.1.1 or 5 packets,
// one goroutine a client, the whole window refilled with one write. It costs well
// under a CPU-second per million messages, so on a machine shared with the server
// it measures the server. It is also the sender of the kill tests: a persistent
// session, everything unacknowledged sent again with DUP after a reconnect, and
// a ledger of intents and acknowledgements.
//
// Payloads are functions of (client, sequence), so a re-send needs no copy and is
// the same bytes.
package rawload

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"tailrace/firmware-sim/ledger"
)

// Config describes a load. The zero value of a field means its default.
type Config struct {
	// Dial opens a connection to the server. Required; see DialTCP.
	Dial func(ctx context.Context) (net.Conn, error)

	Version byte // MQTT: 4 = 3.1.1 (default), 5
	QoS     byte // 0, 1 or 2 (2: PUBREC counts as the acknowledgement, from there on the message is the server's)
	Retain  bool // publish retained messages
	Clients int  // connections; default 1, at most 100,000
	Window  int  // publishes in flight a client; default 20, at most 60,000

	// ClientPrefix makes client ids: prefix-00000, …; default "load".
	ClientPrefix string
	// Topic is what each client publishes to; "{client}" is replaced by its id.
	// It must contain it, so that each client has a stream of its own. Default "load/{client}/telemetry".
	Topic string
	// PayloadBytes is the size of the generated payload; default 120, at least MinPayloadBytes.
	PayloadBytes int
	// Bodies, when not empty, replace the filler: JSON members (`"power_kw":919.5,…`) used in turn.
	Bodies [][]byte

	Count    int64         // publishes a client; 0 = no limit
	Duration time.Duration // 0 = until Count or ctx; one of the three ends the load
	Rate     float64       // publishes per second of all clients; 0 = as fast as the server acknowledges
	Drain    time.Duration // how long to wait for the last acks; default 10 s

	Username, Password string
	KeepAlive          uint16 // seconds announced; 0 = off. Only for loads that send at least that often.

	Phases int // latencies are kept apart for so many phases, see Load.SetPhase; default 1

	// CleanStart drops the session at each connect; what was unacknowledged is then forgotten.
	CleanStart bool
	// SessionExpiry in seconds for MQTT 5; default one day.
	SessionExpiry uint32
	// Reconnect keeps trying (also the first time); without it a lost connection ends the client.
	Reconnect              bool
	BackOffMin, BackOffMax time.Duration // default 50 ms and 2 s, with full jitter

	Ledger *ledger.Book // optional
	Boot   uint64       // names this run in payloads and ledger; 0 = drawn from Seed
	Seed   uint64       // of jitter and boot; 0 = from the clock
	Epoch  time.Time    // "ts" of sequence 1; the n-th is n-1 ms later; default now
}

// MinPayloadBytes is the smallest payload that carries an identity.
const MinPayloadBytes = 96

func (c Config) withDefaults() Config {
	def := func(p *int, v int) {
		if *p == 0 {
			*p = v
		}
	}
	if c.Version == 0 {
		c.Version = 4
	}
	def(&c.Clients, 1)
	def(&c.Window, 20)
	def(&c.PayloadBytes, 120)
	def(&c.Phases, 1)
	if c.ClientPrefix == "" {
		c.ClientPrefix = "load"
	}
	if c.Topic == "" {
		c.Topic = "load/{client}/telemetry"
	}
	if c.Drain == 0 {
		c.Drain = 10 * time.Second
	}
	if c.SessionExpiry == 0 {
		c.SessionExpiry = 86400
	}
	if c.BackOffMin == 0 {
		c.BackOffMin = 50 * time.Millisecond
	}
	if c.BackOffMax == 0 {
		c.BackOffMax = 2 * time.Second
	}
	if c.Epoch.IsZero() {
		c.Epoch = time.Now()
	}
	if c.Seed == 0 {
		c.Seed = uint64(time.Now().UnixNano())
	}
	if c.Boot == 0 {
		c.Boot = mix(c.Seed)&0xffffffff | 1
	}
	return c
}

func (c Config) validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if c.Dial == nil {
		bad("no dialer is set")
	}
	if c.Version != 4 && c.Version != 5 {
		bad("MQTT version %d: 4 (3.1.1) or 5", c.Version)
	}
	if c.QoS > 2 {
		bad("qos %d: 0 to 2", c.QoS)
	}
	if c.Clients < 1 || c.Clients > 100_000 {
		bad("%d clients: 1 to 100000", c.Clients)
	}
	if c.Window < 1 || c.Window > 60_000 {
		bad("window %d: 1 to 60000 (packet ids are 16 bits)", c.Window)
	}
	if !strings.Contains(c.Topic, "{client}") || strings.ContainsAny(c.Topic, "#+\x00") || len(c.Topic) > 1024 {
		bad("topic %q: needs {client}, no wildcards, at most 1024 bytes", c.Topic)
	}
	if len(c.Bodies) == 0 && (c.PayloadBytes < MinPayloadBytes || c.PayloadBytes > 1<<20) {
		bad("payload of %d bytes: %d to %d", c.PayloadBytes, MinPayloadBytes, 1<<20)
	}
	if c.Rate < 0 || c.Count < 0 || c.Duration < 0 || c.Drain < 0 {
		bad("rate, count, duration and drain are not negative")
	}
	if c.BackOffMin > c.BackOffMax {
		bad("back-off from %v to %v", c.BackOffMin, c.BackOffMax)
	}
	if ms := c.Epoch.UnixMilli(); ms < 0 || ms > 1<<45 {
		bad("epoch %v: after 1970, before 3084", c.Epoch)
	}
	if c.Boot>>32 != 0 {
		bad("boot %x: 32 bits", c.Boot)
	}
	return errors.Join(errs...)
}

// DialTCP returns a dialer for "host:port", with TLS when conf is not nil.
func DialTCP(addr string, conf *tls.Config) func(ctx context.Context) (net.Conn, error) {
	d := &net.Dialer{Timeout: 10 * time.Second}
	if conf != nil {
		t := &tls.Dialer{NetDialer: d, Config: conf}
		return func(ctx context.Context) (net.Conn, error) { return t.DialContext(ctx, "tcp", addr) }
	}
	return func(ctx context.Context) (net.Conn, error) { return d.DialContext(ctx, "tcp", addr) }
}

// mix is the finalizer of splitmix64: a cheap, good spread of small seeds.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
