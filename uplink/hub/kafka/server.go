// Package kafka serves a storage.Store by the Kafka protocol: any Kafka client
// lists topics, reads them by offset and by time, and produces to them.
//
// A [Server] takes listeners that its caller has bound (plain or TLS):
//
//	srv, err := kafka.NewServer(kafka.Config{Store: store})
//	err = srv.Serve(ctx, ln)
//
// Stored batches are sent as they lie in the log; a produced batch is stored as
// it came, with base offset and leader epoch stamped, and acknowledged when it
// is durable. One file per API key (00_produce.go …) says which versions are
// spoken and what of them is left out; DESIGN.md says why.
package kafka

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"golang.org/x/sync/semaphore"

	"tailrace/storage"
	"tailrace/uplink/hub/kafka/access"
)

// Operation is what a client wants to do with a resource.
type Operation string

// Operations that Config.Authorize is asked about.
const (
	OpDescribe Operation = "describe" // see a topic, its offsets and configuration
	OpRead     Operation = "read"     // fetch from a topic
	OpWrite    Operation = "write"    // produce to a topic
	OpCreate   Operation = "create"   // create a topic
	OpDelete   Operation = "delete"   // delete a topic, or records of it
	OpAlter    Operation = "alter"    // change a topic's configuration, add partitions
	OpGroup    Operation = "group"    // join a consumer group or set its offsets
)

// Peer is the client of a connection.
type Peer struct {
	Remote   net.Addr
	ClientID string               // what the client calls itself; proves nothing
	TLS      *tls.ConnectionState // nil without TLS
	User     string               // who has proved to be: by password, or by certificate (its common name; "node:…" and "device:…" of those of our own CA); "" nobody
}

// Config is what [NewServer] needs. Only Store is required.
type Config struct {
	Store *storage.Store
	// Advertised is the host:port that clients are told to connect to; empty
	// is the address at which the asking client reached this server.
	Advertised string
	// BrokerID is the id of the one broker; 0 is 1.
	BrokerID int32
	// ClusterID; empty is made from the store's id.
	ClusterID string
	// AutoCreate, if set, is the configuration of topics that a client
	// produces to, or asks about with leave to create, and that do not exist.
	// Nil: such topics are unknown.
	AutoCreate *storage.TopicConfig
	// TopicDefaults is what CreateTopics starts from.
	TopicDefaults storage.TopicConfig
	// ReadOnly refuses produce, topic creation and deletion.
	ReadOnly bool
	// Reserved, if set, names topics that clients may read and nothing else.
	Reserved func(topic string) bool
	// Users, if set, are those who may use the server, after SASL. Nil: nobody is
	// asked.
	Users *access.Users
	// Authorize decides about every use of a topic or group; nil allows all.
	Authorize func(p Peer, op Operation, resource string) bool

	// MaxConns bounds the connections; 0 is 1,000. One more is closed at once.
	MaxConns int
	// MaxFrameBytes bounds one request; 0 is 8 MiB, at least 64 KiB. Requests
	// other than Produce are bound to 1 MiB.
	MaxFrameBytes int
	// MaxBatchBytes bounds a produced batch; 0 is 1,048,588, Kafka's default.
	MaxBatchBytes int
	// MaxFetchBytes bounds the records of one Fetch response, but for a first
	// batch that is larger by itself; 0 is 8 MiB.
	MaxFetchBytes int
	// RequestBytes bounds the memory of all requests beyond 64 KiB (a request
	// that is decoded into many parts counts for more than its size); 0 is
	// 128 MiB. Beyond it, requests wait.
	RequestBytes int64
	// ResponseBytes bounds the records held for all Fetch responses; 0 is
	// 128 MiB. Beyond it, responses carry one batch.
	ResponseBytes int64
	// MaxInFlight bounds the produce requests of a connection that wait for
	// the disk; 0 is 16. Other requests are served one at a time.
	MaxInFlight int
	// MaxFuture refuses produced records whose timestamp is further ahead;
	// 0 is 1 h as in Kafka (message.timestamp.after.max.ms), negative no limit.
	MaxFuture time.Duration
	// IdleTimeout closes a connection that asks nothing; 0 is 10 min.
	IdleTimeout time.Duration
	// TransferTimeout bounds the arrival of one request and the taking of one
	// response; 0 is 30 s.
	TransferTimeout time.Duration
	// MaxGroups bounds the consumer groups with members, MaxGroupMembers the
	// members of each; 0 is 1,000 and 500.
	MaxGroups, MaxGroupMembers int
	// RebalanceDelay is how long a new group waits for more members after its
	// first one; 0 is 250 ms, negative none.
	RebalanceDelay time.Duration
	// OffsetRetention forgets the offsets of a group without members after
	// that long; 0 is 7 days.
	OffsetRetention time.Duration

	Now     func() time.Time // nil is time.Now
	Logger  *slog.Logger     // nil discards
	Metrics *metrics.Set     // nil: not exposed
}

func orDefault[T int | int32 | int64 | time.Duration](v *T, def T) {
	if *v == 0 {
		*v = def
	}
}

func (c Config) withDefaults() Config {
	orDefault(&c.BrokerID, 1)
	orDefault(&c.MaxConns, 1000)
	orDefault(&c.MaxFrameBytes, 8<<20)
	orDefault(&c.MaxBatchBytes, 1<<20+12)
	orDefault(&c.MaxFetchBytes, 8<<20)
	orDefault(&c.RequestBytes, 128<<20)
	orDefault(&c.ResponseBytes, 128<<20)
	orDefault(&c.MaxInFlight, 16)
	orDefault(&c.MaxFuture, time.Hour)
	orDefault(&c.IdleTimeout, 10*time.Minute)
	orDefault(&c.TransferTimeout, 30*time.Second)
	orDefault(&c.MaxGroups, 1000)
	orDefault(&c.MaxGroupMembers, 500)
	orDefault(&c.RebalanceDelay, 250*time.Millisecond)
	orDefault(&c.OffsetRetention, 7*24*time.Hour)
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Metrics == nil {
		c.Metrics = metrics.NewSet()
	}
	return c
}

func (c Config) validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf("kafka: "+format, args...)) }
	if c.Store == nil {
		bad("store is missing")
	}
	if c.Advertised != "" {
		if _, _, err := splitAddr(c.Advertised); err != nil {
			bad("advertised address %q: want host:port: %v", c.Advertised, err)
		}
	}
	if c.BrokerID < 0 {
		bad("broker id %d: 0 or more", c.BrokerID)
	}
	if c.MaxConns < 1 || c.MaxInFlight < 1 || c.MaxFetchBytes < 1 || c.MaxGroups < 1 || c.MaxGroupMembers < 1 {
		bad("max conns %d, in flight %d, fetch bytes %d, groups %d, group members %d: 1 or more",
			c.MaxConns, c.MaxInFlight, c.MaxFetchBytes, c.MaxGroups, c.MaxGroupMembers)
	}
	if c.MaxFrameBytes < 64<<10 || c.MaxFrameBytes > 256<<20 {
		bad("max frame bytes %d: 64 KiB to 256 MiB", c.MaxFrameBytes)
	}
	if c.MaxBatchBytes < 1<<10 || c.MaxBatchBytes > c.MaxFrameBytes || c.MaxBatchBytes > storage.MaxRecordBytes {
		bad("max batch bytes %d: 1 KiB to max frame bytes (%d), at most %d", c.MaxBatchBytes, c.MaxFrameBytes, storage.MaxRecordBytes)
	}
	if c.RequestBytes < 2*int64(c.MaxFrameBytes) || c.ResponseBytes < 2*int64(c.MaxFetchBytes) {
		bad("request bytes %d, response bytes %d: at least twice max frame bytes (%d) and max fetch bytes (%d)",
			c.RequestBytes, c.ResponseBytes, c.MaxFrameBytes, c.MaxFetchBytes)
	}
	return errors.Join(errs...)
}

// Server answers Kafka clients. Safe for concurrent use.
type Server struct {
	cfg       Config
	store     *storage.Store
	log       *slog.Logger
	apis      map[int16]api
	clusterID string
	requests  *semaphore.Weighted
	responses *semaphore.Weighted
	producers *producers
	groups    *groups
	stats     stats

	mu    sync.Mutex
	conns map[*conn]struct{} // guarded by mu
}

// NewServer checks the configuration and reads what the store keeps of
// producers and groups. It starts nothing.
func NewServer(cfg Config) (*Server, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	id := cfg.Store.Identity()
	s := &Server{
		cfg: cfg, store: cfg.Store, log: cfg.Logger, clusterID: cfg.ClusterID,
		requests:  semaphore.NewWeighted(cfg.RequestBytes),
		responses: semaphore.NewWeighted(cfg.ResponseBytes),
		producers: newProducers(cfg.Store, cfg.Now),
		conns:     make(map[*conn]struct{}),
		apis:      make(map[int16]api),
	}
	if s.clusterID == "" {
		s.clusterID = base64.RawURLEncoding.EncodeToString(id.StoreID[:])
	}
	for _, a := range table() {
		s.apis[a.key] = a
	}
	s.stats = newStats(cfg.Metrics, s)
	s.groups = newGroups(s)
	return s, nil
}

// Serve accepts connections until ctx ends or the listener fails, and returns
// when all of them are closed: those that wait for new records at once, those
// that wait for the disk when they have their answer. It closes ln. A TLS
// listener (crypto/tls.NewListener) is served like a plain one. Several
// listeners may be served at once.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { ln.Close() })
	defer stop()
	var wg sync.WaitGroup
	wg.Go(func() { s.sweep(ctx) })
	var err error
	for {
		var nc net.Conn
		if nc, err = ln.Accept(); err != nil {
			var temp interface{ Temporary() bool }
			if ctx.Err() == nil && errors.As(err, &temp) && temp.Temporary() { // out of descriptors
				s.log.Warn("kafka accept", "err", err)
				select {
				case <-ctx.Done():
				case <-time.After(50 * time.Millisecond):
				}
				continue
			}
			break
		}
		c := newConn(s, nc)
		if !s.admit(c) {
			s.stats.refused.Inc()
			s.log.Warn("kafka connection refused, too many", "remote", nc.RemoteAddr(), "max_conns", s.cfg.MaxConns)
			nc.Close()
			continue
		}
		wg.Go(func() {
			defer s.dismiss(c)
			c.serve(ctx)
		})
	}
	if ctx.Err() != nil {
		err = nil
	} else {
		err = fmt.Errorf("kafka: accept on %v: %w", ln.Addr(), err)
	}
	cancel()
	ln.Close()
	wg.Wait()
	return err
}

// sweep forgets idle producers and the offsets of abandoned groups.
func (s *Server) sweep(ctx context.Context) {
	tick := time.NewTicker(10 * time.Minute)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if err := s.producers.expire(ctx); err != nil {
				s.log.Warn("kafka expire producers", "err", err)
			}
			if err := s.groups.expire(ctx); err != nil {
				s.log.Warn("kafka expire group offsets", "err", err)
			}
		}
	}
}

func (s *Server) admit(c *conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.conns) >= s.cfg.MaxConns {
		return false
	}
	s.conns[c] = struct{}{}
	return true
}

func (s *Server) dismiss(c *conn) {
	s.mu.Lock()
	delete(s.conns, c)
	s.mu.Unlock()
}

// Conns is the number of open connections.
func (s *Server) Conns() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conns)
}

func (s *Server) allowed(c *conn, op Operation, resource string) bool {
	if op == OpWrite || op == OpCreate || op == OpDelete || op == OpAlter {
		if s.cfg.ReadOnly || s.cfg.Reserved != nil && s.cfg.Reserved(resource) {
			return false
		}
	}
	return s.cfg.Authorize == nil || s.cfg.Authorize(c.peer, op, resource)
}

func splitAddr(addr string) (string, int32, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return "", 0, err
	}
	p, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return "", 0, fmt.Errorf("port %q: %w", port, err)
	}
	if host == "" {
		return "", 0, errors.New("host is empty")
	}
	return host, int32(p), nil
}
