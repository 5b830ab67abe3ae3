package edge

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"tailrace/edge/mqtt"
	"tailrace/uplink/link"
)

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
	if n.sketcher != nil {
		house.Go(func() error { n.sketcher.run(houseCtx); return nil })
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
