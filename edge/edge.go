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
	"context"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"tailrace/devices"
	"tailrace/edge/auth"
	"tailrace/edge/bridge"
	"tailrace/edge/mqtt"
	"tailrace/storage"
	"tailrace/uplink/link"
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

// clockTrusted says whether the wall clock is right, as far as the kernel or the hub
// can tell. Before the store is open: whether it is not certainly wrong.
func (n *Node) clockTrusted() bool {
	if n.clock != nil {
		return n.clock.isTrusted()
	}
	return n.uplinkTLS == nil || n.uplinkTLS.Time == nil || !n.uplinkTLS.Time().After(n.cfg.Now())
}

// newClock watches the wall clock from the monotonic one.
func (n *Node) newClock() *clock {
	boot, up := n.cfg.KernelBoot()
	if boot == "" {
		id := n.store.Identity().BootID
		boot = hex.EncodeToString(id[:])
	}
	base := time.Now()
	c := &clock{node: n.cfg.Node, wall: n.cfg.Now, boot: boot, synced: n.cfg.ClockSynced, store: n.store, logger: n.logger.With("part", "clock"),
		mono: func() time.Duration { return up + time.Since(base) }}
	if n.uplinkTLS != nil {
		c.floor = certFloor(n.uplinkTLS.Certificates[0].Leaf, buildTime())
	}
	c.offset = func() (time.Duration, bool) {
		if n.link == nil {
			return 0, false
		}
		st := n.link.State()
		return st.ClockOffset + time.Since(n.cfg.Now()), st.Connected && time.Since(st.Since) > hubSettle // it is measured from time.Now, by heartbeats
	}
	c.load()
	return c
}

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
			Name: cc.Name, SegmentBytes: int(c.Storage.segmentSize(cc)), CommitInterval: interval,
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
		Backend: n.ingest, State: state{n.store}, Log: replay{n.store, bridgeClients(n.bridgeCfg)}, Now: c.Now, Logger: n.logger.With("part", "mqtt"), TerseRefusals: c.MQTT.TerseRefusals,
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
		NodeID: c.Node, Hubs: c.Uplink.Hubs, TLS: n.uplinkTLS, CertTime: n.certTime, Source: n.source, Status: n.wireStatus, PacketConn: c.PacketConn,
		Logger: n.logger.With("part", "uplink"), Boot: n.store.Identity().BootID, Software: "tailrace-edge " + c.Version,
		KnownStore: n.source.knownStore, OnWelcome: n.source.welcomed,
		ClockTrusted: n.clockTrusted, WindowBytes: int(c.Uplink.Window), NoCompression: c.Uplink.NoCompression,
	}); err != nil {
		return fmt.Errorf("uplink: %w", err)
	}
	n.budgets = newBudgets(c, n.store, n.link, n.budgetTime)
	return nil
}

// Run runs the node until ctx ends or something fails for good. It may be called once.
func (n *Node) Run(ctx context.Context) (err error) {
	if err := n.open(); err != nil {
		if n.store != nil {
			return errors.Join(err, n.store.Close())
		}
		return err
	}
	var listeners []net.Listener
	closeAll := func() {
		for _, l := range listeners {
			l.Close()
		}
	}
	listen := func(what, address string) (net.Listener, error) {
		l, err := n.cfg.Listen("tcp", address)
		if err != nil {
			return nil, fmt.Errorf("listen for %s on %s: %w", what, address, err)
		}
		listeners = append(listeners, l)
		return l, nil
	}
	for _, lc := range n.cfg.MQTT.Listeners {
		l, err := n.listenMQTT(lc, listen)
		if err == nil && !slices.Contains(listeners, l) {
			listeners = append(listeners, l)
		}
		if err != nil {
			closeAll()
			return errors.Join(err, n.store.Close())
		}
		n.mqttAddrs = append(n.mqttAddrs, l.Addr())
	}
	if err := n.inherited.closeUnused(); err != nil {
		n.logger.Warn("socket activation", "err", err)
	}
	mqttListeners := listeners
	var web net.Listener
	if n.cfg.HTTP.Address != "off" {
		if web, err = listen("http", n.cfg.HTTP.Address); err != nil {
			closeAll()
			return errors.Join(err, n.store.Close())
		}
		n.httpAddr = web.Addr()
	}
	handler, err := n.handler()
	if err != nil {
		closeAll()
		return errors.Join(err, n.store.Close())
	}

	// Each part that has to end at its own point of the shutdown has its own context.
	// A part that fails ends all others.
	failed, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	base := context.WithoutCancel(ctx)
	bridgeCtx, stopBridges := context.WithCancel(base)
	linkCtx, stopLink := context.WithCancel(base)
	houseCtx, stopHouse := context.WithCancel(base)
	mqttCtx, stopMQTT := context.WithCancel(base)
	defer stopBridges()
	defer stopLink()
	defer stopHouse()
	defer stopMQTT()
	var intake, uplink, house, server errgroup.Group

	for i, l := range mqttListeners {
		o := mqtt.ListenerOptions{WebSocket: n.cfg.MQTT.Listeners[i].Transport == "websocket"}
		if t := n.mqttTLS[i]; t != nil {
			o.TLS = t.config()
		}
		n.logger.Info("listening for mqtt", "address", l.Addr().String(), "tls", o.TLS != nil, "websocket", o.WebSocket)
		intake.Go(func() error {
			if err := n.mqtt.Serve(l, o); err != nil && !errors.Is(err, mqtt.ErrServerClosed) {
				fail(fmt.Errorf("mqtt listener %s: %w", l.Addr(), err))
			}
			return nil
		})
	}
	intake.Go(func() error { return n.mqtt.Run(mqttCtx) })
	for _, b := range n.bridges {
		intake.Go(func() error { b.Run(bridgeCtx); return nil })
	}
	if n.link != nil {
		unsubscribe := n.store.Subscribe(n.source.changed)
		defer unsubscribe()
		uplink.Go(func() error { n.link.Run(linkCtx); return nil })
		uplink.Go(func() error { n.budgets.run(linkCtx); return nil })
		if n.cfg.PacketConn == nil { // the kernel's news is of its own network, not of another one
			uplink.Go(func() error {
				if err := link.WatchLinkUp(linkCtx, n.link.LinkUp); linkCtx.Err() == nil {
					n.logger.Info("a network that comes back is found by probes only", "err", err)
				}
				return nil
			})
		}
	}
	house.Go(func() error { n.housekeeping(houseCtx); return nil })
	house.Go(func() error { n.clock.run(houseCtx); return nil })
	house.Go(func() error { n.notify.watch(houseCtx, n.healthy); return nil })
	srv := &http.Server{Handler: handler, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10}
	if web != nil {
		n.logger.Info("listening for http", "address", web.Addr().String())
		server.Go(func() error {
			if err := srv.Serve(web); !errors.Is(err, http.ErrServerClosed) {
				fail(fmt.Errorf("http listener %s: %w", web.Addr(), err))
			}
			return nil
		})
	}
	n.serving.Store(true)
	close(n.ready)
	if err := n.notify.send("READY=1\nSTATUS=taking messages in"); err != nil {
		n.logger.Warn("systemd cannot be notified", "err", err)
	}
	n.logger.Info("node is ready", "node", n.cfg.Node, "version", n.cfg.Version)

	<-failed.Done()
	cause := context.Cause(failed)
	n.logger.Info("shutting down", "cause", cause, "timeout", n.cfg.ShutdownTimeout)
	end, cancel := context.WithTimeout(base, n.cfg.ShutdownTimeout)
	defer cancel()

	// The order of the end. Each step has what is left of the timeout.
	n.serving.Store(false)
	_ = n.notify.send("STOPPING=1")
	var errs []error
	// 1. No new connections; what devices have under way is committed and answered.
	if err := n.mqtt.Shutdown(end); err != nil {
		errs = append(errs, err)
	}
	stopMQTT()
	// 2. Bridges: what is with the disk is acknowledged to the brokers, then they leave.
	stopBridges()
	intake.Wait()
	// 3. The last commit of our own: the registry, up to date.
	stopHouse()
	house.Wait()
	n.saveRegistry(end, true)
	// 4. What is durable goes to the hub while the time allows and the link moves.
	n.flushUplink(end)
	stopLink()
	uplink.Wait()
	// 5. Readers of the HTTP API; tails never end by themselves and are cut.
	if web != nil {
		short, cancel := context.WithTimeout(end, time.Second)
		if srv.Shutdown(short) != nil {
			srv.Close()
		}
		cancel()
		server.Wait()
	}
	// 6. Storage last: nothing uses it any more.
	if err := n.store.Close(); err != nil {
		errs = append(errs, fmt.Errorf("close store: %w", err))
	}
	if ctx.Err() == nil { // a part has failed
		errs = append([]error{cause}, errs...)
	}
	n.logger.Info("node has stopped")
	return errors.Join(errs...)
}

// listenMQTT opens a listener, or takes the one that systemd has opened.
func (n *Node) listenMQTT(c ListenerConfig, open func(what, address string) (net.Listener, error)) (net.Listener, error) {
	name, ok := activated(c.Address)
	if !ok {
		return open("mqtt", c.Address)
	}
	l, err := n.inherited.listen(name)
	if err != nil {
		return nil, err
	}
	if c.TLS == nil && !c.AllowPlaintext && reachable(l) {
		l.Close()
		return nil, fmt.Errorf("mqtt listener %s: others can reach %s and it has no tls; add tls: {cert, key} or say allow_plaintext: true", c.Address, l.Addr())
	}
	return l, nil
}

// flushUplink waits until the hub has everything, the deadline, or a second without progress.
func (n *Node) flushUplink(ctx context.Context) {
	if n.link == nil || !n.link.State().Connected {
		return
	}
	t := time.NewTicker(20 * time.Millisecond)
	defer t.Stop()
	best, idle := int64(-1), 0
	for {
		lag, _ := n.source.lag()
		if lag == 0 {
			return
		}
		if idle++; best < 0 || lag < best {
			best, idle = lag, 0
		}
		if idle > 50 {
			n.logger.Info("the hub does not have everything yet; the rest follows after the next start", "records", lag)
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

const (
	tickInterval = 5 * time.Second
	saveInterval = time.Minute
)

// housekeeping keeps rates up to date, writes the registry at most once a minute
// and settles losses that the hub has declared.
func (n *Node) housekeeping(ctx context.Context) {
	t := time.NewTicker(tickInterval)
	defer t.Stop()
	saved := n.cfg.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-n.source.settle:
			n.source.settleLosses(ctx)
		case <-t.C:
			now := n.cfg.Now()
			n.registry.Tick(now)
			if err := n.reloadAccess(false); err != nil {
				n.logger.Error("passwords or rules of access cannot be read again", "err", err)
			}
			n.wear.tick(now, n.store.Stats())
			n.checkAlarms()
			if now.Sub(saved) >= saveInterval {
				saved = now
				n.saveRegistry(ctx, false)
			}
		}
	}
}

const registryKey = "device/"

// saveRegistry writes what has changed. The append joins whatever commit is under
// way; without changes nothing is written, so an idle node leaves the flash alone.
func (n *Node) saveRegistry(ctx context.Context, all bool) {
	a := n.store.NewAppend(n.ingest.classes[0])
	entries := 0
	n.registry.Save(n.cfg.Now(), all, func(id string, value []byte) {
		a.Set(storage.KindRegistry, registryKey+id, value)
		entries++
	})
	if entries == 0 {
		return
	}
	if err := n.store.Commit(ctx, a); err != nil {
		n.logger.Warn("device registry is not saved; the next save writes it again if devices go on sending", "err", err)
	}
}

func (n *Node) loadRegistry() {
	forgotten, err := n.registry.Load(func(yield func(string, []byte) bool) {
		n.store.RangeState(storage.KindRegistry, func(key string, value []byte) bool {
			if len(key) < len(registryKey) {
				return true
			}
			return yield(key[len(registryKey):], value)
		})
	})
	if err != nil {
		n.logger.Warn("device registry: an entry is not understood and is forgotten", "err", err)
	}
	if len(forgotten) > 0 {
		a := n.store.NewAppend(n.cfg.Storage.Classes[0].Name)
		for _, id := range forgotten {
			a.Set(storage.KindRegistry, registryKey+id, nil)
		}
		n.store.Submit(a, func(*storage.Append, error) {})
	}
}

// progressWatch remembers the committers' counters between two looks.
type progressWatch struct {
	seen map[string]uint64
	wait map[string]bool
}

// healthy is asked by the watchdog, from one goroutine: false when some log had
// appends waiting at both looks and neither committed nor failed in between.
func (n *Node) healthy() bool {
	w := &n.committing
	if w.seen == nil {
		w.seen, w.wait = map[string]uint64{}, map[string]bool{}
	}
	ok := true
	for _, c := range n.store.Stats().Classes {
		done, waiting := c.Commits+c.Failures+c.Refused, c.WaitingBytes > 0
		if waiting && w.wait[c.Class] && w.seen[c.Class] == done {
			n.logger.Error("the committer makes no progress", "class", c.Class, "waiting_bytes", c.WaitingBytes)
			ok = false
		}
		w.seen[c.Class], w.wait[c.Class] = done, waiting
	}
	return ok
}
