package hub

import (
	"context"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"tailrace/storage"
	"tailrace/storage/record"
	"tailrace/storage/storehttp"
	"tailrace/uplink/hub/kafka"
	"tailrace/uplink/link"
	"tailrace/uplink/pki"
	"tailrace/uplink/wire"
)

// Hub is the daemon. Make it with New, run it once.
type Hub struct {
	cfg     Config
	log     *slog.Logger
	store   *storage.Store // with a Kafka cluster it holds nothing that counts
	central engine
	nodes   nodeTable
	links   *link.Server
	kafka   *kafka.Server // nil when its listener is off
	api     *storehttp.Handler
	metrics *hubMetrics
	devices *deviceTracker
	fetches *fetches
	started time.Time

	conn    net.PacketConn
	nodeLn  net.Listener // nil without listen_tcp
	httpLn  net.Listener
	kafkaLn net.Listener
	handler http.Handler

	raiseMu   sync.Mutex // held while the leader epoch is raised; guards raisedAt
	raisedAt  time.Time
	storeNote string // guarded by nodes.mu: what this store was found to lack

	bundles sync.Mutex // held while a bundle is imported

	ready   atomic.Bool // serving, and not stopping
	running atomic.Bool
}

// New checks the configuration, opens the store (which recovers it) and binds
// the sockets. It starts no listener: Run does. Close what is not run.
func New(c Config) (_ *Hub, err error) {
	if err := c.Validate(); err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	c = c.withDefaults()
	h := &Hub{cfg: c, log: c.Logger.With("subsystem", "hub"), nodes: nodeTable{nodes: map[string]*node{}}, started: c.Now()}
	defer func() {
		if err != nil {
			h.release()
		}
	}()
	linkTLS, key, err := loadLinkTLS(c)
	if err != nil {
		return nil, err
	}
	if h.store, err = storage.Open(c.storage()); err != nil {
		return nil, fmt.Errorf("open the store in %s: %w", c.DataDir, err)
	}
	for _, r := range h.store.Identity().Recovered {
		h.log.Warn("store repaired", "class", r.Class, "file", r.File, "what", r.What, "bytes", r.Bytes, "entries", r.Entries, "detail", r.Detail)
	}
	if h.devices, err = newDeviceTracker(h); err != nil {
		return nil, err
	}
	if h.fetches, err = newFetches(h); err != nil {
		return nil, err
	}
	classes := make([]string, len(c.Classes))
	for i, k := range c.Classes {
		classes[i] = k.Name
	}
	if c.Store.Kafka != nil {
		if err = h.notEmbedded(); err != nil {
			return nil, err
		}
		cl, err := openCluster(h)
		if err != nil {
			return nil, err
		}
		h.central = cl
	} else {
		e, err := NewEmbedded(EmbeddedConfig{Store: h.store, Classes: classes, Topics: c.rules(),
			MaxQueuedBytes: int64(c.Limits.QueuedBytes), Logger: h.log, Now: c.Now})
		if err != nil {
			return nil, err
		}
		h.central = e
		if err := h.loadNodes(); err != nil {
			return nil, err
		}
	}
	h.metrics = newMetrics(h)
	if h.api, err = storehttp.New(storehttp.Config{Log: h.central.log(), Logger: h.log, ReadOnly: c.HTTP.ReadOnly, Now: c.Now,
		MaxReaders: c.Limits.MaxReaders, MaxBodyBytes: int64(c.Limits.MaxBody),
		Create: h.createTopic}); err != nil {
		return nil, err
	}
	if err = h.listen(); err != nil {
		return nil, err
	}
	if h.links, err = link.NewServer(link.ServerConfig{PacketConn: h.conn, Listener: h.nodeLn, TLS: linkTLS, Sink: sink{h}, Logger: c.Logger.With("subsystem", "link"),
		StatelessResetKey: key, TicketKeys: storage.StateFile{FS: c.FS, Path: filepath.Join(c.DataDir, "link-ticket-keys")}, MaxNodes: c.Limits.MaxNodes, MaxHandshakes: c.Limits.MaxHandshakes, MaxHandshakesPerAddress: c.Limits.MaxHandshakesPerAddress, RestartSpread: restartSpread(len(h.nodes.nodes)),
		Split: splitRange}); err != nil {
		return nil, err
	}
	if h.kafkaLn != nil {
		if h.kafka, err = h.newKafka(); err != nil {
			return nil, err
		}
	}
	if h.handler, err = h.buildHandler(); err != nil {
		return nil, err
	}
	return h, nil
}

// restartSpread is over how long nodes come back after a restart: 250 handshakes a second
// take about half a core.
func restartSpread(nodes int) time.Duration {
	return min(max(100*time.Millisecond, time.Duration(nodes)*time.Second/250), time.Minute)
}

func (h *Hub) createTopic(ctx context.Context, name string) (storehttp.Topic, error) {
	t, err := h.central.create(ctx, name)
	var bad *TopicError
	if errors.As(err, &bad) {
		return nil, &storehttp.Error{Status: http.StatusNotFound, Code: "unknown_topic", Message: bad.Error(),
			Hint: "create the topic with a Kafka client, or add a rule under topics: in the hub's configuration"}
	}
	return t, err
}

// splitRange cuts a concatenation of batches to [from, to) for the link.
func splitRange(batches []byte, from, to int64) ([]byte, error) {
	var out []byte
	for len(batches) > 0 {
		b, rest, err := record.Next(batches)
		if err != nil {
			return nil, err
		}
		batches = rest
		switch {
		case b.NextOffset() <= from || b.BaseOffset() >= to:
		case b.BaseOffset() >= from && b.NextOffset() <= to:
			out = append(out, b...)
		default:
			if out, err = record.Split(out, b, from, to); err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}

// loadLinkTLS reads the hub's certificate and the CA of its nodes. The key for
// stateless resets is derived from the private key, so that it survives
// restarts without a file of its own (RFC 9000, 10.3.2).
func loadLinkTLS(c Config) (*tls.Config, *[32]byte, error) {
	cert, err := tls.LoadX509KeyPair(c.TLS.Cert, c.TLS.Key)
	if err != nil {
		return nil, nil, fmt.Errorf("tls.cert, tls.key: %w (tailrace dev-certs makes a set for one machine)", err)
	}
	pool, err := loadPool(c.TLS.CA)
	if err != nil {
		return nil, nil, fmt.Errorf("tls.ca: %w", err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		return nil, nil, fmt.Errorf("tls.key: %w", err)
	}
	b, err := hkdf.Key(sha256.New, secret, nil, "tailrace stateless reset", 32)
	if err != nil {
		return nil, nil, err
	}
	key := [32]byte(b)
	t := &tls.Config{Certificates: []tls.Certificate{cert}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS13}
	if c.PacketConn != nil { // simulated time: certificates are checked by the same clock
		t.Time = c.Now
	}
	// Unlike VerifyPeerCertificate this runs on resumed connections, too.
	t.VerifyConnection = func(cs tls.ConnectionState) error {
		if len(cs.PeerCertificates) == 0 {
			return errors.New("no client certificate")
		}
		role, id := pki.Identity(cs.PeerCertificates[0])
		if role == pki.RoleHub {
			return fmt.Errorf("certificate %q is a hub's, not a node's", id)
		}
		return c.mayConnect(id)
	}
	return t, &key, nil
}

func (c Config) mayConnect(id string) error {
	if len(c.Nodes) == 0 {
		return nil
	}
	for _, g := range c.Nodes {
		if ok, _ := path.Match(g, id); ok {
			return nil
		}
	}
	return fmt.Errorf("node %q is not among nodes: in the hub's configuration", id)
}

func loadPool(file string) (*x509.CertPool, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(b) {
		return nil, fmt.Errorf("%s holds no PEM certificate", file)
	}
	return pool, nil
}

// serverTLS is the TLS of a TCP listener; nil when none is configured.
func serverTLS(certFile, keyFile, clientCA string) (*tls.Config, error) {
	if certFile == "" {
		return nil, nil
	}
	cert, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return nil, err
	}
	t := &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
	if clientCA != "" {
		if t.ClientCAs, err = loadPool(clientCA); err != nil {
			return nil, err
		}
		t.ClientAuth = tls.RequireAndVerifyClientCert
	}
	return t, nil
}

func (h *Hub) listen() (err error) {
	c := h.cfg
	if h.conn = c.PacketConn; h.conn == nil {
		if h.conn, err = net.ListenPacket("udp", c.Listen); err != nil {
			return fmt.Errorf("listen for nodes: %w", err)
		}
	}
	if c.ListenTCP != "" {
		if h.nodeLn, err = net.Listen("tcp", c.ListenTCP); err != nil {
			return fmt.Errorf("listen for nodes over TCP: %w", err)
		}
	}
	if h.httpLn, err = listenTCP(c.HTTP.Listen, c.HTTP.Cert, c.HTTP.Key, c.HTTP.ClientCA, "h2", "http/1.1"); err != nil {
		return fmt.Errorf("http: %w", err)
	}
	if h.kafkaLn, err = listenTCP(c.Kafka.Listen, c.Kafka.Cert, c.Kafka.Key, c.Kafka.ClientCA); err != nil {
		return fmt.Errorf("kafka: %w", err)
	}
	return nil
}

func listenTCP(addr, cert, key, clientCA string, protos ...string) (net.Listener, error) {
	if addr == "off" {
		return nil, nil
	}
	t, err := serverTLS(cert, key, clientCA)
	if err != nil {
		return nil, err
	}
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, err
	}
	if t != nil {
		t.NextProtos = protos
		ln = tls.NewListener(ln, t)
	}
	return ln, nil
}

// Addrs are the addresses in use, empty where a listener is off.
func (h *Hub) Addrs() (nodes, http, kafka string) {
	nodes = h.conn.LocalAddr().String()
	if h.httpLn != nil {
		http = h.httpLn.Addr().String()
	}
	if h.kafkaLn != nil {
		kafka = h.kafkaLn.Addr().String()
	}
	return
}

// Store is the central store, for what serves from it.
func (h *Hub) Store() *storage.Store { return h.store }

// Central is the engine on the store; nil when the records are in a Kafka cluster.
func (h *Hub) Central() *Embedded {
	e, _ := h.central.(*Embedded)
	return e
}

// clustered says whether the records are in a Kafka cluster.
func (h *Hub) clustered() bool { return h.cfg.Store.Kafka != nil }

// here says whether this hub serves a node.
func (h *Hub) here(node string) bool {
	_, err := h.central.known(node)
	return err == nil
}

// notEmbedded refuses to leave records behind: data_dir was that of an embedded hub.
func (h *Hub) notEmbedded() error {
	if movedTo(h.store) != nil {
		return nil
	}
	for _, t := range h.store.Topics() {
		return fmt.Errorf("data_dir %s holds topics (%s …) of a hub that kept its records there: move them with tailrace hub migrate, or "+
			"name another data_dir, and keep this one for a hub without store.kafka", h.cfg.DataDir, t.Name())
	}
	return nil
}

// Links is the server that nodes connect to.
func (h *Hub) Links() *link.Server { return h.links }

// Handler serves what the HTTP listener does.
func (h *Hub) Handler() http.Handler { return h.handler }

// Ready says whether the hub takes work: it runs, has what it is to serve, and is not stopping.
func (h *Hub) Ready() bool { return h.ready.Load() && h.central.settled() == nil }

// Run serves until ctx ends or a listener fails, stops in order and returns why.
func (h *Hub) Run(ctx context.Context) error {
	if h.running.Swap(true) {
		return errors.New("hub: Run was called before")
	}
	defer h.release()
	nodesAddr, httpAddr, kafkaAddr := h.Addrs()
	id := h.store.Identity()
	h.log.Info("hub started", "nodes", nodesAddr, "http", httpAddr, "kafka", kafkaAddr, "data_dir", h.cfg.DataDir,
		"store", wire.ID(id.StoreID).String(), "store_epoch", id.Epoch.Number)

	// Consumers and nodes end before the store does, so each has a context of its own.
	g, serving := errgroup.WithContext(ctx)
	linkCtx, stopLink := context.WithCancel(context.Background())
	defer stopLink()
	readCtx, stopRead := context.WithCancel(context.Background())
	defer stopRead()
	g.Go(func() error {
		err := h.links.Run(linkCtx)
		if linkCtx.Err() != nil {
			return nil
		}
		return fmt.Errorf("listener for nodes: %w", err)
	})
	g.Go(func() error { h.devices.run(readCtx); return nil })
	g.Go(func() error { h.fetches.run(linkCtx); return nil })
	var srv *http.Server
	if h.httpLn != nil {
		// No ReadTimeout: it would end every stream after that time (net/http keeps
		// the deadline while the handler runs). Bodies have a deadline of their own.
		srv = &http.Server{Handler: h.handler, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10,
			BaseContext: func(net.Listener) context.Context { return readCtx },
			ErrorLog:    slog.NewLogLogger(h.log.Handler(), slog.LevelDebug)}
		g.Go(func() error {
			if err := srv.Serve(h.httpLn); !errors.Is(err, http.ErrServerClosed) {
				return fmt.Errorf("http listener: %w", err)
			}
			return nil
		})
	}
	if h.kafkaLn != nil {
		g.Go(func() error {
			return h.kafka.Serve(readCtx, h.kafkaLn)
		})
	}
	h.ready.Store(true)
	<-serving.Done()

	// Stop, in this order:
	h.ready.Store(false) // 1. readyz says no
	h.log.Info("hub stopping")
	stopLink() // 2. no new records; nodes keep what is not acked
	stopRead() // 3. tails, queries and Kafka consumers end
	if srv != nil {
		end, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		if srv.Shutdown(end) != nil {
			srv.Close()
		}
		cancel()
	}
	if h.kafkaLn != nil {
		h.kafkaLn.Close()
	}
	err := g.Wait()
	h.devices.save(true)
	h.central.Close()       // 4. what is on its way to the disk gets there
	cerr := h.store.Close() // 5. the store, last
	h.log.Info("hub stopped")
	return errors.Join(err, cerr)
}

// Close frees what New took when Run was not called.
func (h *Hub) Close() error {
	if h.running.Swap(true) {
		return nil
	}
	h.release()
	return nil
}

func (h *Hub) release() {
	if h.httpLn != nil {
		h.httpLn.Close()
	}
	if h.kafkaLn != nil {
		h.kafkaLn.Close()
	}
	if h.nodeLn != nil {
		h.nodeLn.Close()
	}
	if h.conn != nil {
		h.conn.Close()
	}
	if h.central != nil {
		h.central.Close()
	}
	if h.store != nil {
		h.store.Close() // a second time does nothing
	}
}

// hangAfter is how long a commit may take before the hub counts as hung. A
// slow disk takes seconds; a dead one for ever.
const hangAfter = 45 * time.Second

// Alive says whether the store makes progress: no commit has been under way
// for longer than a disk can take.
func (h *Hub) Alive() bool {
	if !h.Ready() {
		return true // starting and stopping have their own limits
	}
	for _, c := range h.store.Stats().Classes {
		if !c.LastCommitStart.IsZero() && c.WaitingBytes > 0 && h.cfg.Now().Sub(c.LastCommitStart) > hangAfter {
			return false
		}
	}
	return true
}
