// Package firmwaresim is a fleet of simulated devices that behave like firmware:
// wind turbines and factory machines that boot, sample, keep a small ring of
// readings in RAM, publish over MQTT 5 at QoS 1 with several in flight, reconnect
// with back-off and jitter, announce a last will, number what they send, drift in
// time, sometimes know no time at all, and sometimes lose power. A few may be
// broken on purpose and send nonsense.
//
//	fleet, err := firmwaresim.New(firmwaresim.Config{
//		Dial:    firmwaresim.DialTCP("127.0.0.1:1883", nil),
//		Devices: firmwaresim.WindFarm("west", 12),
//	})
//	err = fleet.Run(ctx)
//
// Readings come from physics models (WindFarm, FactoryLine) or are recorded ones,
// replayed to the letter (Recorded). Everything a run depends on is passed in
// (dialer, seed, time through the runtime's clock), so a fleet runs in
// testing/synctest over in-memory connections.
//
// # Topics and payloads
//
//	site/<site>/turbine/<id>/telemetry   factory/<line>/machine/<id>/telemetry
//	site/<site>/turbine/<id>/status      factory/<line>/machine/<id>/status (retained; also the will)
//
//	{"site":"west","turbine":"T01","ts":1700000000000,"boot":"5f3a09c1","seq":17,"drop":0,"signals":{"power_kw":919.5,…}}
//
// ts is milliseconds since 1970 by the device's own clock; boot is drawn at each
// power-on; seq counts the readings of that boot from 1; drop is how many readings
// the ring lost so far in this boot (their seq are missing, too). While a device
// without a battery-backed clock has not been told the time, it adds "clk":"none"
// and "up", its milliseconds since boot. Status messages carry a seq of their own.
package firmwaresim

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"math"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"tailrace/firmware-sim/ledger"
)

// MaxPace lets devices sample as fast as the server acknowledges.
var MaxPace = math.Inf(1)

// Stamp says what a reading's "ts" is.
type Stamp int

const (
	StampAuto      Stamp = iota // the recorded time for recorded readings, else the device's clock
	StampDevice                 // the device's clock: wall time with drift, or none yet
	StampSimulated              // Start + elapsed × Pace, exact
)

// Config describes a fleet. The zero value of a field means its default.
type Config struct {
	// Dial opens a connection to the server. Required; see DialTCP.
	Dial func(ctx context.Context) (net.Conn, error)
	// Devices of the fleet. Required; see WindFarm, FactoryLine, Recorded, Nonsense.
	Devices []Device

	Seed  uint64    // of everything drawn; 0 is a seed like any other
	Run   uint64    // mixed into boot ids, so that two runs with one seed differ; default: the clock
	Pace  float64   // simulated seconds per second; default 1, MaxPace = as fast as acknowledged
	Limit int       // readings a device, then it switches off; 0 = none (recorded: their rows)
	Loop  bool      // recorded readings start again at their end
	Stamp Stamp     // what "ts" is
	Start time.Time // of simulated time; default now

	Window int // publishes in flight a device; default 8
	Ring   int // readings kept in RAM while they cannot be sent; default 64
	// Lossless stops sampling while the ring is full, instead of dropping the
	// oldest. Always so at MaxPace.
	Lossless bool

	Username, Password     string
	KeepAlive              uint16        // seconds; default 30
	SessionExpiry          uint32        // seconds; default one day
	BackOffMin, BackOffMax time.Duration // default 500 ms and 60 s, with full jitter
	AckTimeout             time.Duration // without any ack for so long, the device reconnects; default 30 s
	Drain                  time.Duration // after ctx ends: how long to wait for the last acks; default 5 s

	BrownOuts time.Duration // mean time between power losses of a device; 0 = never
	NoRTC     float64       // share of devices without a battery-backed clock, 0…1
	DriftPPM  float64       // standard deviation of clock drift; default 20, negative = none

	// Ledger receives intents and outcomes of all numbered messages.
	Ledger *ledger.Book
	// OnIntent is called before a message is first sent, OnOutcome when it was
	// acknowledged or refused, or when the device forgets it. From many
	// goroutines; they must not block. The payload must not be changed.
	OnIntent  func(Message)
	OnOutcome func(Message, Outcome)

	Logger *slog.Logger // default: discard
}

// Message is one numbered publish.
type Message struct {
	Client, Topic string
	Boot, Seq     uint64
	Payload       []byte
}

// Outcome is how a message ended for its device.
type Outcome struct {
	Acked  bool
	Reason byte // MQTT 5 reason code of a refusal; 0 with Acked false: unknown (lost with the device's RAM, or never answered)
}

func (c Config) withDefaults() Config {
	if c.Run == 0 {
		c.Run = uint64(time.Now().UnixNano())
	}
	if c.Pace == 0 {
		c.Pace = 1
	}
	if c.Start.IsZero() {
		c.Start = time.Now()
	}
	if c.Window == 0 {
		c.Window = 8
	}
	if c.Ring == 0 {
		c.Ring = 64
	}
	if c.KeepAlive == 0 {
		c.KeepAlive = 30
	}
	if c.SessionExpiry == 0 {
		c.SessionExpiry = 86400
	}
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	def(&c.BackOffMin, 500*time.Millisecond)
	def(&c.BackOffMax, time.Minute)
	def(&c.AckTimeout, 30*time.Second)
	def(&c.Drain, 5*time.Second)
	if c.DriftPPM == 0 {
		c.DriftPPM = 20
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if math.IsInf(c.Pace, 1) {
		c.Lossless = true
	}
	return c
}

func (c Config) validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if c.Dial == nil {
		bad("no dialer is set")
	}
	if len(c.Devices) == 0 {
		bad("no devices")
	}
	if len(c.Devices) > 100_000 {
		bad("%d devices: at most 100000 in one process", len(c.Devices))
	}
	if !(c.Pace > 0) {
		bad("pace %v: above 0", c.Pace)
	}
	if c.Window < 1 || c.Window > 1000 {
		bad("window %d: 1 to 1000", c.Window)
	}
	if c.Ring < 1 || c.Ring > 1<<20 {
		bad("ring of %d readings: 1 to 1048576", c.Ring)
	}
	if c.NoRTC < 0 || c.NoRTC > 1 {
		bad("share without clock %v: 0 to 1", c.NoRTC)
	}
	if c.Limit < 0 || c.BrownOuts < 0 || c.Drain < 0 || c.AckTimeout < 0 || c.BackOffMin <= 0 {
		bad("limit, brown-outs, drain, ack timeout and back-off are not negative")
	}
	if c.BackOffMin > c.BackOffMax {
		bad("back-off from %v to %v", c.BackOffMin, c.BackOffMax)
	}
	names := map[string]bool{}
	for _, d := range c.Devices {
		if err := d.validate(); err != nil {
			errs = append(errs, err)
		}
		if id := d.ClientID(); names[id] {
			bad("two devices with client id %q", id)
		} else {
			names[id] = true
		}
		if len(errs) > 20 {
			break
		}
	}
	return errors.Join(errs...)
}

// Stats counts since the start. Counters only rise, but for Connected and InFlight.
type Stats struct {
	Devices      int   `json:"devices"`
	Done         int64 `json:"done"` // devices that reached their limit and switched off
	Connected    int64 `json:"connected"`
	Boots        int64 `json:"boots"`
	BrownOuts    int64 `json:"brown_outs"`
	Connects     int64 `json:"connects"`
	ConnectFails int64 `json:"connect_failures"`
	Samples      int64 `json:"samples"`
	Dropped      int64 `json:"dropped"`   // by full rings
	Published    int64 `json:"published"` // distinct messages, readings and status
	Acked        int64 `json:"acked"`
	Refused      int64 `json:"refused"`
	LastRefusal  byte  `json:"last_refusal,omitempty"` // MQTT 5 reason code
	Forgotten    int64 `json:"forgotten"`              // outcome unknown when the device lost its memory or was switched off
	Unsent       int64 `json:"unsent"`                 // readings lost with the RAM before they were sent
	Resent       int64 `json:"resent"`
	SessionsLost int64 `json:"sessions_lost"`
	InFlight     int64 `json:"in_flight"`
	Nonsense     int64 `json:"nonsense"` // spoiled packets and connections sent on purpose
	Bytes        int64 `json:"payload_bytes"`
}

// counters is Stats while running.
type counters struct {
	done, connected, boots, brownOuts, connects, connectFails, samples, dropped, published, acked, refused,
	lastRefusal, forgotten, unsent, resent, sessionsLost, inFlight, nonsense, bytes atomic.Int64
}

// Fleet is a fleet of devices. Use it once.
type Fleet struct {
	c     Config
	n     counters
	dials chan struct{} // bounds simultaneous connects
}

// New checks the configuration; it starts nothing.
func New(c Config) (*Fleet, error) {
	c = c.withDefaults()
	if err := c.validate(); err != nil {
		return nil, fmt.Errorf("firmware-sim: %w", err)
	}
	return &Fleet{c: c, dials: make(chan struct{}, 64)}, nil
}

// Run runs the fleet until ctx ends or every device has reached its limit. When
// ctx ends the devices stop sampling, send what they hold for at most Drain, and
// disconnect. Nothing it started runs on when it returns.
func (f *Fleet) Run(ctx context.Context) error {
	hard, abort := context.WithCancel(context.WithoutCancel(ctx))
	defer abort()
	stop := context.AfterFunc(ctx, func() {
		t := time.AfterFunc(f.c.Drain, abort)
		context.AfterFunc(hard, func() { t.Stop() })
	})
	defer stop()
	var sources sync.WaitGroup
	errs := make(chan error, 1)
	for i := range f.c.Devices {
		d := &f.c.Devices[i]
		sources.Go(func() {
			var err error
			if d.Source == nil {
				f.talkNonsense(ctx, d)
			} else {
				err = f.newDevice(d).run(ctx, hard)
			}
			if err != nil {
				select {
				case errs <- fmt.Errorf("device %s: %w", d.ClientID(), err):
				default:
				}
			}
		})
	}
	sources.Wait()
	if err := f.c.Ledger.Flush(); err != nil {
		return err
	}
	select {
	case err := <-errs:
		return err
	default:
		return nil
	}
}

// Stats may be called at any time.
func (f *Fleet) Stats() Stats {
	n := &f.n
	return Stats{Devices: len(f.c.Devices), Done: n.done.Load(), Connected: n.connected.Load(), Boots: n.boots.Load(),
		BrownOuts: n.brownOuts.Load(), Connects: n.connects.Load(), ConnectFails: n.connectFails.Load(),
		Samples: n.samples.Load(), Dropped: n.dropped.Load(), Published: n.published.Load(), Acked: n.acked.Load(),
		Refused: n.refused.Load(), LastRefusal: byte(n.lastRefusal.Load()), Forgotten: n.forgotten.Load(), Unsent: n.unsent.Load(), Resent: n.resent.Load(),
		SessionsLost: n.sessionsLost.Load(), InFlight: n.inFlight.Load(), Nonsense: n.nonsense.Load(), Bytes: n.bytes.Load()}
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

// rngOf gives every device and purpose its own chance, by seed and name alone.
func rngOf(seed uint64, names ...string) *rand.Rand {
	h := fnv.New64a()
	h.Write([]byte(strings.Join(names, "\x00")))
	return rand.New(rand.NewPCG(seed, h.Sum64()))
}
