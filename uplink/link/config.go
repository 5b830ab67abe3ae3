package link

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/url"
	"time"

	"tailrace/uplink/wire"
)

// ClientConfig configures a node's end.
type ClientConfig struct {
	NodeID string      // must be the name in the certificate (common name or a URI SAN ending in /NodeID)
	Hubs   []string    // host:port, all serving one store, tried in order
	TLS    *tls.Config // client certificate and roots; cloned, ALPN and TLS 1.3 are set here
	// CertTime is the time at which the hub's certificates (leaf first) must be valid; nil = TLS.Time.
	CertTime   func(chain []*x509.Certificate) time.Time
	Tickets    Keeper                         // TLS tickets over restarts; nil = kept in memory
	Source     Source                         // the node's log
	Status     func() wire.Status             // nil = no reports
	PacketConn func() (net.PacketConn, error) // a fresh socket, closed by the client; nil = UDP on the wildcard address
	Resolve    func(hub string) (net.Addr, error)
	Rand       *rand.Rand // jitter and session ids; nil = seeded by the system
	Logger     *slog.Logger
	Boot       wire.ID // this start of the process; zero = random
	Software   string  // name and version, for people

	// OnWelcome may refuse a hub by its store (another store than before): the client then
	// tries the next hub. Nothing of a refused hub reaches Source. nil = any store.
	OnWelcome func(w wire.Welcome) error
	// KnownStore is the hub's store that welcomed this node last, for Hello; nil = not told.
	KnownStore func() *wire.StoreRef
	OnConfig   func(c wire.Config)
	OnCommand  func(c wire.Command) wire.CommandResult // nil = every command is refused. Runs on a goroutine of its own, one at a time.
	OnFork     func(f wire.Fork, topic string, partition int)

	ClockTrusted func() bool // nil = true

	Fallback    []string                                                // host:port over TCP, in the order of Hubs, for where QUIC does not work; none = never
	Proxy       *url.URL                                                // of TCP: http://[user:password@]host:port; nil = none
	DialTCP     func(ctx context.Context, hub string) (net.Conn, error) // nil = the network, through Proxy
	ReturnAfter time.Duration                                           // over TCP, when to try QUIC again. Default 5 min

	RateLimit      int64         // bytes per second that data may take; live goes at once, and counts. 0 = no limit, else at least 1 KiB
	WindowBytes    int           // raw bytes outstanding at most, whatever credit says. Default 8 MiB, 256 KiB..64 MiB
	FrameBytes     int           // bulk frames, raw. Default 128 KiB, 16 KiB..1 MiB
	LiveWindow     int           // zstd window of the live stream. Default 32 KiB
	BulkWindow     int           // zstd window of the bulk stream. Default 512 KiB
	NoCompression  bool          // send everything with codec none
	NoTransform    bool          // compress with zstd only
	NoEarlyData    bool          // say Hello only after the handshake
	MaxBulk        int           // extra bulk connections at most, within what the hub allows. Default 16, negative = none
	Heartbeat      time.Duration // default 15 s; the hub's wish wins
	StatusInterval time.Duration // default 15 s
	IdleTimeout    time.Duration // of the QUIC connection; default 90 s
	BackoffMin     time.Duration // default 500 ms
	BackoffMax     time.Duration // default 60 s
	DialTimeout    time.Duration // default 10 s
	Probe          time.Duration // how often a node without a connection asks for the path, 68 bytes each: 20 MB a day at the default of 300 ms. Negative = never
	StallTimeout   time.Duration // redial when the hub answers but nothing outstanding becomes durable for so long. Default 2 min
}

// ServerConfig configures the hub's end.
type ServerConfig struct {
	PacketConn net.PacketConn // closed by Run
	Listener   net.Listener   // TCP, for nodes whose networks do not let UDP pass; closed by Run; nil = none
	TLS        *tls.Config    // server certificate and ClientCAs; cloned, client certificates required, TLS 1.3
	Sink       Sink
	Logger     *slog.Logger

	StatelessResetKey *[32]byte // fixed across restarts, so that nodes notice one at once; nil = none
	TicketKeys        Keeper    // keys of TLS tickets over restarts, so that nodes come back by resumption; nil = kept in memory
	NoEarlyData       bool      // take no Hello before the handshake is over

	// Split cuts a concatenation of batches to the offsets [from, to); nil = a batch that
	// crosses the edge of a wanted range is refused. storage/record has one.
	Split func(batches []byte, from, to int64) ([]byte, error)

	MaxNodes      int // sessions at once. Default 16384
	MaxHandshakes int // handshakes under way at once, QUIC and TCP together. Default 512
	// MaxHandshakesPerAddress are those of one address (IPv6: /64) among them. Default 64.
	MaxHandshakesPerAddress int
	Credit                  [wire.Lanes]int64 // raw bytes a session may have outstanding, by lane. Default 1, 1 and 8 MiB
	TotalBytes              int64             // raw bytes outstanding of all sessions. Default 512 MiB
	FrameBytes              int               // largest raw frame. Default wire.MaxFrameBytes
	WindowBytes             int               // largest zstd window. Default 1 MiB
	MaxBulk                 int               // extra bulk connections a session may open. Default 16
	Heartbeat               time.Duration     // asked of nodes. Default 15 s
	IdleTimeout             time.Duration     // default 90 s
	HelloTimeout            time.Duration     // from accept to Hello. Default 10 s
	RestartSpread           time.Duration     // over which nodes spread their return after a restart of the hub. Default 1 s
	AckDelay                time.Duration     // acks are coalesced for at most this long. Default 0: whatever became durable since the last one was written
}
