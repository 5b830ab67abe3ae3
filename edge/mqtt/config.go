package mqtt

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"time"
)

// Config of a Server. Backend and State are required.
type Config struct {
	Backend Backend
	State   State
	Log     Log // nil = deliveries that wait are in memory and end with the process
	Limits  Limits
	// TerseRefusals: SUBACK says 0x80 for every refusal of the backend (MQTT 5.0, 3.9.3:
	// "does not wish to reveal the reason").
	TerseRefusals bool
	// Shared reports an identity that anybody may have; nil = the empty one.
	Shared func(identity string) bool
	Now    func() time.Time // nil = time.Now; stamps arrivals and session ends
	// ClockTrusted says whether Now is right; nil = it is. While it may not be, how long clients had
	// been away before the start is not known, and sessions count from the start.
	ClockTrusted func() bool
	Logger       *slog.Logger // nil = discard
}

// Limits bound what clients can take. Zero values mean the default in brackets.
type Limits struct {
	// Before login.
	LoginTimeout        time.Duration // from accept to CONNACK, TLS and WebSocket handshake included [10 s]
	LoginBytes          int           // largest CONNECT [70,000: a will of 64 KiB fits]
	MaxConnections      int           // all listeners together [20,000]
	MaxPerAddress       int           // connections of one IP address [10,000]
	MaxLogins           int           // connections that have not logged in yet [2,048]
	MaxLoginsPerAddress int           // of those, of one IP address [1,024]
	ConnectRate         int           // new connections a second of one IP address, after ConnectBurst [500]
	ConnectBurst        int           // [MaxPerAddress]

	// Packets.
	MaxRecordBytes int // topic, payload and properties of one publish; above: 0x95 [1 MiB]
	MaxPacketBytes int // above: the connection is closed with 0x95 [MaxRecordBytes + 64 KiB]
	BufferBytes    int // memory of all packets that do not fit the pooled buffers [64 MiB]
	ClientIDBytes  int // [256]

	// A connected client.
	ReceiveMaximum   int           // QoS 1 and 2 publishes not yet acknowledged (MQTT 5) [256]
	Window           int           // re-sends that can be recognised, per client; >= ReceiveMaximum [512]
	TopicAliases     int           // Topic Alias Maximum [32]
	OpenQoS2         int           // QoS 2 publishes without PUBREL; above: closed with 0x93 [1,024]
	PublishRate      int           // publishes a second; above: the client is read more slowly; 0 = no limit
	PublishBytes     int           // bytes of them a second, likewise; 0 = no limit
	Bursts           int           // reads of one connection that wait for the disk [4]
	MaxKeepAlive     time.Duration // imposed on MQTT 5 clients that want more or none; 0 = not imposed
	WriteTimeout     time.Duration // a peer that takes no byte for so long is closed [20 s]
	OutboundBytes    int           // waiting to be written to one client [256 KiB]; above: QoS 0 deliveries are dropped, its reads stop
	Subscriptions    int           // per session [200]
	OutboundInFlight int           // QoS 1 and 2 deliveries not yet acknowledged [64]
	Queued           int           // QoS 1 and 2 deliveries that wait, also while away; above: dropped and counted [1,000]
	RefusedHold      time.Duration // how long a 3.x client whose publish was refused is held before it is closed [1 s]

	// The server.
	Sessions int // of all clients, those away included [100,000]; above: CONNACK 0x97
	// Of one identity [a tenth of Sessions, at least 1]; above: CONNACK 0x97. Identities for which
	// Shared says that they stand for anybody are counted by address instead, up to MaxPerAddress.
	SessionsPerIdentity int
	MaxSessionExpiry    time.Duration // longer wishes, and 3.x sessions, end so long after the connection [30 days]
	Retained            int           // messages [10,000]; above: stored, but not retained, and counted
	RetainedBytes       int           // of them together [64 MiB]
}

// ListenerOptions belong to one listener.
type ListenerOptions struct {
	Name      string      // for logs and Client.Listener; "" = the address
	TLS       *tls.Config // nil = plain. With ClientAuth set, the verified certificate goes to Authenticate
	WebSocket bool        // MQTT over WebSocket, subprotocol "mqtt"
	Path      string      // of the WebSocket; "" = any
	Origins   []string    // browsers' origins allowed besides our own host (host patterns)
}

func def[T int | time.Duration](v *T, d T) {
	if *v == 0 {
		*v = d
	}
}

func (l Limits) withDefaults() Limits {
	def(&l.LoginTimeout, 10*time.Second)
	def(&l.LoginBytes, 70_000)
	def(&l.MaxConnections, 20_000)
	def(&l.MaxPerAddress, 10_000)
	def(&l.MaxLogins, 2048)
	def(&l.MaxLoginsPerAddress, 1024)
	def(&l.ConnectRate, 500)
	def(&l.ConnectBurst, l.MaxPerAddress)
	def(&l.MaxRecordBytes, 1<<20)
	def(&l.MaxPacketBytes, l.MaxRecordBytes+64<<10)
	def(&l.BufferBytes, 64<<20)
	def(&l.ClientIDBytes, 256)
	def(&l.ReceiveMaximum, 256)
	def(&l.Window, max(512, l.ReceiveMaximum))
	def(&l.TopicAliases, 32)
	def(&l.OpenQoS2, 1024)
	def(&l.Bursts, 4)
	def(&l.WriteTimeout, 20*time.Second)
	def(&l.OutboundBytes, 256<<10)
	def(&l.Subscriptions, 200)
	def(&l.OutboundInFlight, 64)
	def(&l.Queued, 1000)
	def(&l.RefusedHold, time.Second)
	def(&l.Sessions, 100_000)
	def(&l.SessionsPerIdentity, max(1, l.Sessions/10))
	def(&l.MaxSessionExpiry, 30*24*time.Hour)
	def(&l.Retained, 10_000)
	def(&l.RetainedBytes, 64<<20)
	return l
}

func (c Config) withDefaults() Config {
	c.Limits = c.Limits.withDefaults()
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.ClockTrusted == nil {
		c.ClockTrusted = func() bool { return true }
	}
	if c.Shared == nil {
		c.Shared = func(identity string) bool { return identity == "" }
	}
	return c
}

// validate reports all that cannot be, after defaults.
func (c *Config) validate() error {
	var errs []error
	bad := func(ok bool, format string, a ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf("mqtt: "+format, a...))
		}
	}
	l := &c.Limits
	bad(c.Backend != nil, "Backend is required")
	bad(c.State != nil, "State is required")
	bad(l.ReceiveMaximum >= 1 && l.ReceiveMaximum <= 65535, "ReceiveMaximum %d is not in 1..65535", l.ReceiveMaximum)
	bad(l.Window >= l.ReceiveMaximum && l.Window <= maxWindow, "Window %d is not between ReceiveMaximum %d and %d: a client may re-send that many", l.Window, l.ReceiveMaximum, maxWindow)
	bad(l.TopicAliases >= -1 && l.TopicAliases <= 65535, "TopicAliases %d is not in -1 (none)..65535", l.TopicAliases)
	bad(l.MaxPacketBytes >= 128 && l.MaxPacketBytes <= 256<<20, "MaxPacketBytes %d is not in 128..268435456", l.MaxPacketBytes)
	bad(l.MaxRecordBytes >= 1 && l.MaxRecordBytes <= l.MaxPacketBytes, "MaxRecordBytes %d is above MaxPacketBytes %d", l.MaxRecordBytes, l.MaxPacketBytes)
	bad(l.BufferBytes >= l.MaxPacketBytes, "BufferBytes %d is below MaxPacketBytes %d: such a packet could never be read", l.BufferBytes, l.MaxPacketBytes)
	bad(l.OutboundInFlight >= 1 && l.OutboundInFlight <= 32768, "OutboundInFlight %d is not in 1..32768", l.OutboundInFlight)
	bad(l.MaxKeepAlive >= 0 && l.MaxKeepAlive <= 65535*time.Second, "MaxKeepAlive %v is not in 0..65535 s", l.MaxKeepAlive)
	bad(l.MaxSessionExpiry <= 100*365*24*time.Hour, "MaxSessionExpiry %v is above 100 years", l.MaxSessionExpiry)
	for name, v := range map[string]int{"LoginBytes": l.LoginBytes, "MaxConnections": l.MaxConnections, "MaxPerAddress": l.MaxPerAddress, "MaxLogins": l.MaxLogins,
		"MaxLoginsPerAddress": l.MaxLoginsPerAddress, "ClientIDBytes": l.ClientIDBytes, "OpenQoS2": l.OpenQoS2, "Bursts": l.Bursts, "OutboundBytes": l.OutboundBytes,
		"Subscriptions": l.Subscriptions, "Queued": l.Queued, "Sessions": l.Sessions, "SessionsPerIdentity": l.SessionsPerIdentity, "Retained": l.Retained, "RetainedBytes": l.RetainedBytes} {
		bad(v > 0, "%s must be above 0", name)
	}
	// Not as int: a Duration of more than 2 s does not fit one on 32-bit ARM.
	for name, v := range map[string]time.Duration{"LoginTimeout": l.LoginTimeout, "WriteTimeout": l.WriteTimeout, "RefusedHold": l.RefusedHold, "MaxSessionExpiry": l.MaxSessionExpiry} {
		bad(v > 0, "%s must be above 0", name)
	}
	return errors.Join(errs...)
}
