package link

import (
	crand "crypto/rand"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"time"

	"github.com/quic-go/quic-go"

	"tailrace/uplink/pki"
	"tailrace/uplink/wire"
)

func (c ClientConfig) withDefaults() (ClientConfig, error) {
	var errs []error
	if err := pki.ValidName(c.NodeID); err != nil {
		errs = append(errs, fmt.Errorf("node id: %w", err))
	}
	if len(c.Hubs) == 0 {
		errs = append(errs, errors.New("no hub address"))
	}
	if c.TLS == nil || len(c.TLS.Certificates) == 0 && c.TLS.GetClientCertificate == nil {
		errs = append(errs, errors.New("no client certificate: the hub knows a node by it"))
	}
	intIn(&errs, "WindowBytes", &c.WindowBytes, 8<<20, 256<<10, 64<<20)
	intIn(&errs, "FrameBytes", &c.FrameBytes, 128<<10, 16<<10, 1<<20)
	intIn(&errs, "LiveWindow", &c.LiveWindow, 32<<10, 1<<10, 1<<20)
	intIn(&errs, "BulkWindow", &c.BulkWindow, 512<<10, 1<<10, 8<<20)
	durIn(&errs, "Heartbeat", &c.Heartbeat, 15*time.Second, 100*time.Millisecond, 10*time.Minute)
	durIn(&errs, "StatusInterval", &c.StatusInterval, 15*time.Second, 100*time.Millisecond, time.Hour)
	durIn(&errs, "IdleTimeout", &c.IdleTimeout, 90*time.Second, time.Second, 24*time.Hour)
	durIn(&errs, "BackoffMin", &c.BackoffMin, 500*time.Millisecond, time.Millisecond, time.Hour)
	durIn(&errs, "BackoffMax", &c.BackoffMax, max(60*time.Second, c.BackoffMin), c.BackoffMin, 24*time.Hour)
	durIn(&errs, "DialTimeout", &c.DialTimeout, 10*time.Second, 100*time.Millisecond, 10*time.Minute)
	durIn(&errs, "ReturnAfter", &c.ReturnAfter, 5*time.Minute, time.Second, 24*time.Hour)
	if c.RateLimit != 0 && c.RateLimit < 1<<10 {
		errs = append(errs, fmt.Errorf("RateLimit is %d, at least 1024 is needed", c.RateLimit))
	}
	if p := c.Proxy; p != nil && (p.Scheme != "http" || p.Host == "") {
		errs = append(errs, fmt.Errorf("proxy is %s, want http://host:port", p.Redacted()))
	}
	durIn(&errs, "StallTimeout", &c.StallTimeout, 2*time.Minute, time.Second, 24*time.Hour)
	if c.Probe >= 0 {
		durIn(&errs, "Probe", &c.Probe, 300*time.Millisecond, 50*time.Millisecond, time.Hour)
	}
	switch {
	case c.MaxBulk == 0:
		c.MaxBulk = 16
	case c.MaxBulk < 0:
		c.MaxBulk = 0
	case c.MaxBulk > 64:
		errs = append(errs, fmt.Errorf("MaxBulk is %d, allowed are up to 64", c.MaxBulk))
	}
	if len(errs) > 0 {
		return c, fmt.Errorf("uplink client: %w", errors.Join(errs...))
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Rand == nil {
		var seed [32]byte
		crand.Read(seed[:])
		c.Rand = rand.New(rand.NewChaCha8(seed))
	}
	if c.Boot.IsZero() {
		c.Boot = randomID(c.Rand)
	}
	if c.Resolve == nil {
		c.Resolve = func(hub string) (net.Addr, error) { return net.ResolveUDPAddr("udp", hub) }
	}
	if c.PacketConn == nil {
		// The wildcard address: a change of the interface's address then needs no code.
		c.PacketConn = func() (net.PacketConn, error) { return net.ListenUDP("udp", nil) }
	}
	if c.DialTCP == nil {
		c.DialTCP = dialTCP(c.Proxy)
	}
	c.TLS = c.TLS.Clone()
	c.TLS.MinVersion = tls.VersionTLS13
	c.TLS.NextProtos = []string{wire.ALPN}
	return c, nil
}

func (c ServerConfig) withDefaults() (ServerConfig, error) {
	var errs []error
	if c.PacketConn == nil {
		errs = append(errs, errors.New("no PacketConn"))
	}
	if c.TLS == nil || len(c.TLS.Certificates) == 0 && c.TLS.GetCertificate == nil {
		errs = append(errs, errors.New("no server certificate"))
	}
	if c.TLS != nil && c.TLS.ClientCAs == nil {
		errs = append(errs, errors.New("TLS.ClientCAs is nil: nodes are known by certificates of that authority"))
	}
	if c.Sink == nil {
		errs = append(errs, errors.New("no Sink"))
	}
	intIn(&errs, "MaxNodes", &c.MaxNodes, 16384, 1, 1<<20)
	intIn(&errs, "MaxHandshakes", &c.MaxHandshakes, 512, 1, 1<<20)
	intIn(&errs, "MaxHandshakesPerAddress", &c.MaxHandshakesPerAddress, min(64, c.MaxHandshakes), 1, c.MaxHandshakes)
	for l, d := range [wire.Lanes]int64{1 << 20, 1 << 20, 8 << 20} {
		if c.Credit[l] == 0 {
			c.Credit[l] = d
		}
		if c.Credit[l] < 16<<10 || c.Credit[l] > 1<<30 {
			errs = append(errs, fmt.Errorf("credit of lane %s is %d, allowed are %d to %d", wire.Lane(l), c.Credit[l], 16<<10, 1<<30))
		}
	}
	if c.TotalBytes == 0 {
		c.TotalBytes = 512 << 20
	}
	if c.TotalBytes < 1<<20 {
		errs = append(errs, fmt.Errorf("TotalBytes is %d, at least %d is needed", c.TotalBytes, 1<<20))
	}
	intIn(&errs, "FrameBytes", &c.FrameBytes, wire.MaxFrameBytes, 64<<10, wire.MaxFrameBytes)
	intIn(&errs, "WindowBytes", &c.WindowBytes, 1<<20, 1<<10, 8<<20)
	intIn(&errs, "MaxBulk", &c.MaxBulk, 16, 0, 64)
	durIn(&errs, "Heartbeat", &c.Heartbeat, 15*time.Second, 100*time.Millisecond, 10*time.Minute)
	durIn(&errs, "IdleTimeout", &c.IdleTimeout, 90*time.Second, time.Second, 24*time.Hour)
	durIn(&errs, "HelloTimeout", &c.HelloTimeout, 10*time.Second, 100*time.Millisecond, 10*time.Minute)
	durIn(&errs, "RestartSpread", &c.RestartSpread, time.Second, time.Millisecond, time.Minute)
	if c.AckDelay < 0 || c.AckDelay > time.Minute {
		errs = append(errs, fmt.Errorf("AckDelay is %v, allowed are 0 to 1m", c.AckDelay))
	}
	if len(errs) > 0 {
		return c, fmt.Errorf("uplink server: %w", errors.Join(errs...))
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	c.TLS = c.TLS.Clone()
	c.TLS.MinVersion = tls.VersionTLS13
	c.TLS.NextProtos = []string{wire.ALPN, alpnTest}
	c.TLS.ClientAuth = tls.RequireAndVerifyClientCert
	return c, nil
}

func intIn(errs *[]error, name string, v *int, def, low, high int) {
	if *v == 0 {
		*v = def
	}
	if *v < low || *v > high {
		*errs = append(*errs, fmt.Errorf("%s is %d, allowed are %d to %d", name, *v, low, high))
	}
}

func durIn(errs *[]error, name string, v *time.Duration, def, low, high time.Duration) {
	if *v == 0 {
		*v = def
	}
	if *v < low || *v > high {
		*errs = append(*errs, fmt.Errorf("%s is %v, allowed are %v to %v", name, *v, low, high))
	}
}

func randomID(r *rand.Rand) (id wire.ID) {
	binary.LittleEndian.PutUint64(id[:8], r.Uint64())
	binary.LittleEndian.PutUint64(id[8:], r.Uint64())
	return id
}

// quicConfig is common to both ends. Packets stay at 1200 bytes: quic-go's discovered
// packet size never shrinks, and a path whose MTU falls would kill the connection.
func quicConfig(idle, handshake time.Duration) *quic.Config {
	return &quic.Config{
		HandshakeIdleTimeout:    handshake,
		MaxIdleTimeout:          idle,
		InitialPacketSize:       1200,
		DisablePathMTUDiscovery: true,
	}
}
