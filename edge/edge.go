// Package edge is the node daemon: it takes messages in by MQTT and from brokers,
// acknowledges what is on disk, and replicates it to the hub.
//
//	cfg, err := edge.LoadConfig("edge.yaml")
//	node, err := edge.New(cfg)
//	err = node.Run(ctx) // until ctx ends
//
// It composes edge/mqtt, edge/bridge, devices, storage and uplink/link; the parts
// meet only here. New checks and reads files, and starts nothing; Run opens the
// store and owns every goroutine until it returns.
package edge

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"tailrace/devices"
	"tailrace/edge/auth"
	"tailrace/edge/bridge"
	"tailrace/edge/mqtt"
	"tailrace/storage"
	"tailrace/uplink/link"
	"tailrace/uplink/wire"
)

// Node is one node. Make it with New.
type Node struct {
	cfg    Config
	logger *slog.Logger
	router *devices.Router
	auth   *authenticator
	notify notifier
	medium medium

	mqttTLS   []*liveTLS // per listener; nil = plain
	inherited *inherited
	uplinkTLS *tls.Config
	// uplinkPair is the certificate of the next connection to the hub.
	uplinkPair atomic.Pointer[tls.Certificate]
	bridgeCfg  []bridge.Config

	registry *devices.Registry
	started  time.Time
	ready    chan struct{} // closed when everything listens
	serving  atomic.Bool   // readiness: between ready and shutdown

	// Set by Run before ready is closed, then read only.
	store      *storage.Store
	streams    *streams
	ingest     *ingest
	source     *source
	clock      *clock
	mqtt       *mqtt.Server
	bridges    []*bridge.Bridge
	link       *link.Client // nil without hubs
	budgets    *budgets     // nil without hubs
	sketcher   *sketcher    // nil when nothing is sketched
	mqttAddrs  []net.Addr
	httpAddr   net.Addr // nil when off
	committing progressWatch
	wear       *wear
	alarms     alarms
	fileSystem string // what is wrong with that of the data directory
}

// New checks the configuration and reads the files that it names.
func New(c Config) (*Node, error) {
	c = c.withDefaults()
	if err := c.validate(); err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	n := &Node{cfg: c, logger: c.Logger, notify: newNotifier(os.Getenv), inherited: inheritedSockets(os.Getenv), ready: make(chan struct{}), started: c.Now(),
		registry: devices.NewRegistry(devices.RegistryConfig{Node: c.Node, MaxDevices: c.Devices.Max})}
	var err error
	if n.router, err = devices.NewRouter(devices.RouterConfig{Rules: c.Routes, Default: c.Default}); err != nil {
		return nil, err
	}
	if n.auth, err = newAuthenticator(c.MQTT.Auth, c.Now); err != nil {
		return nil, err
	}
	for i, l := range c.MQTT.Listeners {
		var t *liveTLS
		if l.TLS != nil {
			if t, err = newLiveTLS(l.TLS); err != nil {
				return nil, fmt.Errorf("mqtt.listeners[%d].tls: %w", i, err)
			}
		}
		n.mqttTLS = append(n.mqttTLS, t)
	}
	if len(c.Uplink.Hubs) > 0 {
		if n.uplinkTLS, err = c.loadUplink(); err != nil {
			return nil, fmt.Errorf("uplink.tls: %w", err)
		}
		n.uplinkPair.Store(&n.uplinkTLS.Certificates[0])
		n.uplinkTLS.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return n.uplinkPair.Load(), nil }
	}
	for _, b := range c.Bridges {
		bc, err := b.bridgeConfig(c)
		if err != nil {
			return nil, fmt.Errorf("bridge %s: %w", b.Name, err)
		}
		n.bridgeCfg = append(n.bridgeCfg, bc)
	}
	return n, nil
}

// Ready is closed when all listeners are open and the store has recovered.
func (n *Node) Ready() <-chan struct{} { return n.ready }

// MQTTAddrs are the addresses of the MQTT listeners in the order of the
// configuration, HTTPAddr that of the HTTP listener (nil when off). Valid once Ready.
func (n *Node) MQTTAddrs() []net.Addr { return n.mqttAddrs }
func (n *Node) HTTPAddr() net.Addr    { return n.httpAddr }

// Store is the node's store, for tests that look inside. Valid once Ready.
func (n *Node) Store() *storage.Store { return n.store }

// Reload reads passwords, rules of access and certificates again now, whether or not
// they seem changed. Connections stay, but for those of whom is not let in any more,
// and subscriptions that are not allowed any more end. A certificate that cannot be read
// leaves the old one in use; passwords or rules that cannot be read leave nobody any right.
func (n *Node) Reload() error {
	var errs []error
	for i, t := range n.mqttTLS {
		if t != nil {
			if err := t.reload(); err != nil {
				errs = append(errs, fmt.Errorf("mqtt.listeners[%d].tls, the old one stays: %w", i, err))
			}
		}
	}
	if n.uplinkTLS != nil {
		if t, err := n.cfg.loadUplink(); err != nil {
			errs = append(errs, fmt.Errorf("uplink.tls, the old one stays: %w", err))
		} else {
			n.uplinkPair.Store(&t.Certificates[0])
		}
	}
	errs = append(errs, n.reloadAccess(true))
	return errors.Join(errs...)
}

// reloadAccess reads passwords and rules again, and asks about everybody if they changed.
func (n *Node) reloadAccess(force bool) error {
	changed, err := n.auth.reload(force)
	if changed {
		select {
		case <-n.ready:
			n.reviewAccess(err)
		default: // nobody is in
		}
	}
	return err
}

// reviewAccess lets everything that is connected or subscribed be asked about again.
func (n *Node) reviewAccess(why error) {
	n.ingest.generation.Add(1)
	closed, ended := n.mqtt.Review(n.ingest.Still, func(c *mqtt.Client, filter string) error {
		if n.auth.policy.Load().broken != nil { // the connections end; their sessions wait for better rules
			return nil
		}
		return n.ingest.AuthorizeSubscribe(c, filter, 0)
	})
	n.logger.Info("access reviewed", "connections_closed", closed, "subscriptions_ended", ended, "err", why)
}

// open opens the store and makes everything that hangs on it. Nothing runs yet.
func (n *Node) open() error {
	c := n.cfg
	if err := os.MkdirAll(c.Storage.Dir, 0o750); err != nil {
		return fmt.Errorf("make storage.dir: %w", err)
	}
	n.medium = mediumOf(c.Storage.Dir)
	n.wear = newWear(n.medium, "/sys", int64(c.Storage.Endurance), c.Now())
	n.alarms.logger = n.logger
	n.fileSystem = fileSystemWarning(c.Storage.Dir)
	sc := storage.Config{
		Dir: c.Storage.Dir, FS: c.FS, NodeID: c.Node, OriginHeaders: true, Now: c.Now, Logger: n.logger.With("part", "storage"),
		Folds: Folds(), NewEpoch: c.NewEpoch,
		MaxBytes: int64(c.Storage.MaxSize), ScrubInterval: c.Storage.ScrubInterval,
	}
	names := make([]string, 0, len(c.Storage.Classes))
	for _, cc := range c.Storage.Classes {
		policy, err := storage.ParseFullPolicy(cc.WhenFull)
		if err != nil {
			return err
		}
		interval := n.medium.commitInterval()
		if cc.CommitInterval != nil {
			interval = *cc.CommitInterval
		}
		sc.Classes = append(sc.Classes, storage.ClassConfig{
			Name: cc.Name, SegmentBytes: int(c.Storage.segmentSize(cc)), CommitInterval: interval, Pack: interval > 0,
			MaxBytes: int64(cc.MaxSize), WhenFull: policy, MinFreeBytes: int64(cc.MinFree),
			Priority: cc.Priority,
		})
		names = append(names, cc.Name)
		n.logger.Info("storage class", "class", cc.Name, "commit_interval", interval, "medium", n.medium.Kind, "device", n.medium.Device, "when_full", policy.String())
	}
	var err error
	if n.store, err = storage.Open(sc); err != nil {
		return fmt.Errorf("open store: %w", err)
	}
	for _, r := range n.store.Identity().Recovered {
		n.logger.Warn("the log was repaired", "class", r.Class, "file", r.File, "what", r.What, "bytes", r.Bytes, "entries", r.Entries, "detail", r.Detail)
	}
	n.streams = newStreams(n.store, c)
	if err := n.streams.reconcile(); errors.Is(err, storage.ErrFull) {
		n.logger.Warn("new settings of streams wait until there is room on the disk and the node is started again", "err", err)
	} else if err != nil {
		return err
	}
	n.wear.tick(c.Now(), n.store.Stats())
	n.checkAlarms()
	n.loadRegistry()
	n.clock = n.newClock()
	n.source = newSource(n.store, n.streams, n.logger.With("part", "uplink"))
	n.streams.changed = func() { wake(n.source.changed) }
	n.clock.made = func() {
		n.streams.generation.Add(1)
		n.streams.changed()
	}
	n.ingest = &ingest{store: n.store, router: n.router, streams: n.streams, registry: n.registry, auth: n.auth, classes: names, logger: n.logger,
		sequences: newSequences(c.Devices.Max, n.store),
		suspects:  newQuarantine(c.MQTT.Quarantine, c.Now, n.logger), topics: c.MQTT.Client.MaxTopics, review: func() { n.mqtt.Review(n.ingest.Still, nil) }}
	if n.mqtt, err = mqtt.NewServer(mqtt.Config{
		Backend: n.ingest, State: state{n.store}, Log: replay{n.store, bridgeClients(n.bridgeCfg)}, Now: c.Now, ClockTrusted: n.clock.isTrusted, Logger: n.logger.With("part", "mqtt"), TerseRefusals: c.MQTT.TerseRefusals,
		Shared: func(identity string) bool { return identity == auth.Anonymous },
		Limits: mqtt.Limits{
			MaxRecordBytes: int(c.MQTT.MaxRecordSize), MaxConnections: c.MQTT.MaxConnections, MaxLogins: c.MQTT.MaxLogins, ReceiveMaximum: c.MQTT.ReceiveMaximum,
			Sessions: c.MQTT.MaxSessions, SessionsPerIdentity: c.MQTT.MaxSessionsPerIdentity, MaxSessionExpiry: c.MQTT.MaxSessionExpiry, MaxKeepAlive: c.MQTT.MaxKeepAlive, RetainedBytes: int(c.MQTT.RetainedSize),
			PublishRate: c.MQTT.Client.PublishRate, PublishBytes: int(c.MQTT.Client.BytesPerSecond), Subscriptions: c.MQTT.Client.MaxSubscriptions,
			MaxPerAddress: c.MQTT.Address.MaxConnections, MaxLoginsPerAddress: c.MQTT.Address.MaxLogins,
			ConnectRate: c.MQTT.Address.ConnectRate, ConnectBurst: c.MQTT.Address.ConnectBurst, LoginTimeout: c.MQTT.Address.LoginTimeout,
		},
	}); err != nil {
		return err
	}
	// Rules may have changed while we were away: subscriptions of sessions are asked about.
	n.reviewAccess(nil)
	for _, bc := range n.bridgeCfg {
		bc.Sink = newBridgeSink(n.ingest, bc.ClientID, bc.ReceiveMaximum)
		b, err := bridge.New(bc)
		if err != nil {
			return err
		}
		n.bridges = append(n.bridges, b)
	}
	if len(c.Uplink.Hubs) == 0 {
		return nil
	}
	proxy, err := c.Uplink.proxy()
	if err != nil {
		return err
	}
	if n.link, err = link.NewClient(link.ClientConfig{
		Fallback: c.Uplink.Fallback, Proxy: proxy, RateLimit: int64(c.Uplink.RateLimit),
		NodeID: c.Node, Hubs: c.Uplink.Hubs, TLS: n.uplinkTLS, CertTime: n.certTime, Tickets: storage.StateFile{FS: c.FS, Path: filepath.Join(c.Storage.Dir, "link-tickets")}, Source: n.source, Status: n.wireStatus, PacketConn: c.PacketConn,
		Logger: n.logger.With("part", "uplink"), Boot: n.store.Identity().BootID, Software: "tailrace-edge " + c.Version,
		KnownStore: n.source.knownStore, OnWelcome: n.welcomed,
		ClockTrusted: n.clockTrusted, WindowBytes: int(c.Uplink.Window), NoCompression: c.Uplink.NoCompression,
	}); err != nil {
		return fmt.Errorf("uplink: %w", err)
	}
	n.budgets = newBudgets(c, n.store, n.link, n.budgetTime)
	if n.sketcher = newSketcher(n); n.sketcher != nil {
		n.sketcher.connected = func() bool { return n.link.State().Connected }
	}
	return nil
}

// welcomed hears that a hub has taken the node in.
func (n *Node) welcomed(w wire.Welcome) error {
	err := n.source.welcomed(w)
	if err == nil && n.sketcher != nil {
		wake(n.sketcher.welcome)
	}
	return err
}
