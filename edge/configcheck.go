package edge

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"tailrace/devices"
	"tailrace/edge/auth"
	"tailrace/storage"
	"tailrace/uplink/pki"
)

// validate reports everything that cannot be, after defaults.
func (c Config) validate() error {
	var errs []error
	bad := func(ok bool, format string, a ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, a...))
		}
	}
	if c.Node == "" {
		bad(false, "node: required: the name in this node's certificate")
	} else if err := pki.ValidName(c.Node); err != nil {
		bad(false, "node: %w", err)
	}
	classes := c.validateStorage(bad)
	if _, err := devices.NewRouter(devices.RouterConfig{Rules: c.Routes, Default: c.Default}); err != nil {
		bad(false, "%w", err)
	}
	for i, t := range c.Topics {
		_, err := path.Match(t.Match, "x")
		bad(t.Match != "" && err == nil, "topics[%d].match %q: want a stream name or a pattern with * and ?", i, t.Match)
		bad(t.Class == "" || classes[t.Class], "topics[%d].class %q: no such storage class", i, t.Class)
		bad(t.Retention >= 0 && t.RetentionSize >= 0, "topics[%d]: negative retention", i)
		bad(t.RetentionShare >= 0 && t.RetentionShare <= 1, "topics[%d].retention_share %v: want 0 to 1", i, t.RetentionShare)
		bad(t.RetentionShare == 0 || c.Storage.budget(t.Class) > 0, "topics[%d].retention_share: a share of what? set max_size of its storage class, or storage.max_size", i)
		_, err = parseMode(t.Mode)
		bad(err == nil, "topics[%d].mode: %v", i, err)
		bad(t.Priority >= -maxPriority && t.Priority <= maxPriority, "topics[%d].priority %d: want -100 to 100", i, t.Priority)
		bad(t.Sketch == nil || t.Sketch.Window >= time.Second && t.Sketch.Window <= 24*time.Hour, "topics[%d].sketch.window: want 1s to 24h", i)
	}
	c.validateMQTT(bad)
	names := map[string]bool{}
	for i, b := range c.Bridges {
		for _, err := range b.validate() {
			bad(false, "bridges[%d] %s: %w", i, b.Name, err)
		}
		bad(!names[b.Name], "bridges[%d]: name %q is there twice", i, b.Name)
		names[b.Name] = true
	}
	bad(c.Devices.Max >= 1 && c.Devices.Max <= 1_000_000, "devices.max %d: want 1 to 1000000", c.Devices.Max)
	for i, h := range c.Uplink.Hubs {
		_, _, err := net.SplitHostPort(h)
		bad(err == nil, "uplink.hubs[%d] %q: want host:port", i, h)
	}
	for i, h := range c.Uplink.Fallback {
		_, _, err := net.SplitHostPort(h)
		bad(err == nil, "uplink.fallback[%d] %q: want host:port", i, h)
	}
	if p := c.Uplink.Proxy; p != "" {
		u, err := url.Parse(p)
		bad(err == nil && u.Scheme == "http" && u.Host != "", "uplink.proxy: want http://[user:password@]host:port")
	}
	bad(c.Uplink.RateLimit == 0 || c.Uplink.RateLimit >= 1<<10, "uplink.rate_limit %v: want at least 1KiB", c.Uplink.RateLimit)
	c.validateLinks(bad)
	if len(c.Uplink.Hubs) > 0 {
		bad(c.Uplink.TLS != nil, "uplink.tls: required with hubs: {cert, key, ca}")
	}
	if t := c.Uplink.TLS; t != nil {
		bad(t.Cert != "" && t.Key != "" && t.CA != "", "uplink.tls: cert, key and ca are all required")
	}
	bad(c.Uplink.Window == 0 || c.Uplink.Window >= 256<<10 && c.Uplink.Window <= 64<<20, "uplink.window %v: want 256KiB to 64MiB", c.Uplink.Window)
	if c.HTTP.Address != "off" {
		bad(c.HTTP.AllowRemote || isLoopback(c.HTTP.Address), "http.address %q: is not a loopback address and the API has no login; say allow_remote: true to open it to everybody there", c.HTTP.Address)
	}
	bad(slices.Contains([]string{"debug", "info", "warn", "error"}, c.Log.Level), "log.level %q: want debug, info, warn or error", c.Log.Level)
	bad(slices.Contains([]string{"auto", "text", "json"}, c.Log.Format), "log.format %q: want auto, text or json", c.Log.Format)
	bad(c.ShutdownTimeout > 0, "shutdown_timeout %v: want more than 0", c.ShutdownTimeout)
	return errors.Join(errs...)
}

func (c Config) validateStorage(bad func(bool, string, ...any)) map[string]bool {
	bad(c.Storage.Dir != "", "storage.dir: required: the directory for this node's data")
	bad(len(c.Storage.Classes) > 0, "storage.classes: at least one is required, for example [{name: main, when_full: reject, max_size: 4GiB}]")
	bad(c.Storage.MaxTopics >= 1 && c.Storage.MaxTopics <= 100_000, "storage.max_topics %d: want 1 to 100000", c.Storage.MaxTopics)
	names := map[string]bool{}
	for i, cc := range c.Storage.Classes {
		bad(cc.Name != "", "storage.classes[%d].name: required", i)
		bad(!names[cc.Name], "storage.classes[%d].name %q is there twice", i, cc.Name)
		names[cc.Name] = true
		if _, err := storage.ParseFullPolicy(cc.WhenFull); err != nil {
			bad(false, "storage.classes[%d].when_full %q: required: \"reject\" (devices are told to keep their data) or \"drop-oldest\" (the oldest data is given up and declared lost)", i, cc.WhenFull)
		}
		bad(cc.CommitInterval == nil || *cc.CommitInterval >= 0 && *cc.CommitInterval <= time.Minute, "storage.classes[%d].commit_interval: want 0s to 1m", i)
		seg := c.Storage.segmentSize(cc)
		bad(seg >= 64<<10 && seg <= 64<<20, "storage.classes[%d].segment_size %v: want 64KiB to 64MiB", i, seg)
		bad(c.Storage.MaxSize == 0 || c.Storage.MaxSize >= ByteSize(4+2*len(c.Storage.Classes))*seg, "storage.max_size %v: want 0 or at least %v", c.Storage.MaxSize, ByteSize(4+2*len(c.Storage.Classes))*seg)
		bad(cc.MaxSize == 0 || cc.MaxSize >= 6*seg, "storage.classes[%d].max_size %v: want 0 or at least 6 segments (%v)", i, cc.MaxSize, 6*seg)
		bad(cc.MinFree >= 0, "storage.classes[%d].min_free %v: negative", i, cc.MinFree)
	}
	return names
}

func (c Config) validateMQTT(bad func(bool, string, ...any)) {
	m := c.MQTT
	// A retained message is a state entry too, and those end at storage.MaxStateBytes.
	bad(m.MaxRecordSize >= 64 && m.MaxRecordSize <= 3<<20, "mqtt.max_record_size %v: want 64B to 3MiB", m.MaxRecordSize)
	bad(m.MaxLogins >= 0 && m.MaxSessionsPerIdentity >= 0, "mqtt: max_logins and max_sessions_per_identity must not be negative")
	bad(m.MaxConnections >= 0 && m.ReceiveMaximum >= 0 && m.ReceiveMaximum <= 65535 && m.MaxSessions >= 0 && m.MaxSessionExpiry >= 0 && m.RetainedSize > 0,
		"mqtt: limits must not be negative, receive_maximum at most 65535")
	certLogin := false
	for i, l := range m.Listeners {
		if name, ok := activated(l.Address); ok {
			bad(name != "" && !strings.Contains(name, ":"), "mqtt.listeners[%d].address %q: want systemd:NAME", i, l.Address)
		} else {
			_, _, err := net.SplitHostPort(l.Address)
			bad(err == nil, "mqtt.listeners[%d].address %q: want host:port or systemd:NAME", i, l.Address)
		}
		bad(l.Transport == "tcp" || l.Transport == "websocket", "mqtt.listeners[%d].transport %q: want tcp or websocket", i, l.Transport)
		if l.TLS == nil {
			_, inherited := activated(l.Address) // checked when its address is known
			bad(l.AllowPlaintext || inherited || isLoopback(l.Address), "mqtt.listeners[%d].address %q: others can reach it and it has no tls; add tls: {cert, key} or say allow_plaintext: true", i, l.Address)
			continue
		}
		bad(l.TLS.Cert != "" && l.TLS.Key != "", "mqtt.listeners[%d].tls: cert and key are required", i)
		bad(!l.TLS.RequireClientCert || l.TLS.ClientCA != "", "mqtt.listeners[%d].tls.require_client_cert needs client_ca", i)
		certLogin = certLogin || l.TLS.ClientCA != ""
	}
	bad(m.Auth.ACLFile == "" || m.Auth.ACL == nil, "mqtt.auth: acl_file or acl, not both")
	if _, err := auth.ReadRules(strings.NewReader(strings.Join(m.Auth.ACL, "\n"))); err != nil {
		bad(false, "mqtt.auth.acl: %w", err)
	}
	bad(m.Auth.ClientIDs == nil || m.Auth.BindClientID == nil || *m.Auth.BindClientID, "mqtt.auth.client_ids: bind_client_id: false binds nothing")
	if _, err := auth.NewBinding(m.Auth.ClientIDs); err != nil {
		bad(false, "mqtt.auth.client_ids: %w", err)
	}
	bad(m.Auth.FailedLogins.Burst >= 1 && m.Auth.FailedLogins.PerMinute > 0, "mqtt.auth.failed_logins: burst and per_minute must be above 0")
	cl, ad := m.Client, m.Address
	bad(cl.PublishRate >= 0 && cl.BytesPerSecond >= 0 && cl.MaxTopics >= 1 && cl.MaxSubscriptions >= 0, "mqtt.client: limits must not be negative")
	bad(ad.MaxConnections >= 0 && ad.MaxLogins >= 0 && ad.ConnectRate >= 0 && ad.ConnectBurst >= 0 && ad.LoginTimeout >= 0, "mqtt.address: limits must not be negative")
	bad(m.Quarantine.Strikes >= -1 && m.Quarantine.Duration > 0, "mqtt.quarantine: want strikes of -1 or more and a duration")
	if len(m.Listeners) > 0 {
		bad(m.Auth.AllowAnonymous || m.Auth.PasswordFile != "" || certLogin,
			"mqtt.auth: nobody could log in: set password_file, a listener with tls.client_ca, or allow_anonymous: true")
	}
	bad(len(m.Listeners)+len(c.Bridges) > 0, "mqtt.listeners: the node takes nothing in: configure a listener or a bridge")
}

// isLoopback: names are not resolved, so only literal addresses and "localhost" count.
func isLoopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

// CheckFiles reads the files that the configuration names, so that --check-config
// finds a missing certificate before the restart does.
func (c Config) CheckFiles() error {
	c = c.withDefaults()
	var errs []error
	if _, err := newAuthenticator(c.MQTT.Auth, c.Now); err != nil {
		errs = append(errs, err)
	}
	for i, l := range c.MQTT.Listeners {
		if l.TLS != nil {
			if _, err := l.TLS.load(); err != nil {
				errs = append(errs, fmt.Errorf("mqtt.listeners[%d].tls: %w", i, err))
			}
		}
	}
	if c.Uplink.TLS != nil {
		if _, err := c.loadUplink(); err != nil {
			errs = append(errs, fmt.Errorf("uplink.tls: %w", err))
		}
	}
	for i, b := range c.Bridges {
		if _, err := b.bridgeConfig(c); err != nil {
			errs = append(errs, fmt.Errorf("bridges[%d] %s: %w", i, b.Name, err))
		}
	}
	if dir := filepath.Clean(c.Storage.Dir); dir != "" {
		if st, err := os.Stat(dir); err == nil && !st.IsDir() {
			errs = append(errs, fmt.Errorf("storage.dir %s: not a directory", dir))
		}
	}
	return errors.Join(errs...)
}
