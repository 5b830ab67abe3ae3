// Package mqtt is an MQTT 3.1, 3.1.1 and 5.0 server whose acknowledgements mean
// "on disk". It listens, decodes, keeps sessions and delivers to subscribers; what
// a publish becomes and where it is stored is its Backend's business:
//
//	srv, err := mqtt.NewServer(mqtt.Config{Backend: node, State: node})
//	go srv.Run(ctx)                                  // housekeeping; ends with ctx
//	err = srv.Serve(listener, mqtt.ListenerOptions{}) // one call per listener
//
// One read of a connection becomes one burst, committed once; PUBACK, PUBREC and
// PUBCOMP are written after the burst's done, in order, in one write. DESIGN.md
// tells why it is built as it is. All methods of Server may be used concurrently.
package mqtt

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"tailrace/edge/limit"
	"tailrace/edge/mqtt/packet"
	"tailrace/edge/mqtt/topic"
)

// ErrServerClosed is what Serve returns after Shutdown.
var ErrServerClosed = errors.New("mqtt: server closed")

// Server is one MQTT server on any number of listeners.
type Server struct {
	cfg      Config
	log      *slog.Logger
	stats    counters
	subs     subIndex
	retained retainedSet
	flusher  flusher
	parker   parker
	turns    chan struct{} // of inTurn
	buffers  atomic.Int64  // bytes of read buffers beyond the pooled size
	quit     chan struct{} // closed by Shutdown
	wg       sync.WaitGroup

	willsBegun, willsEnded atomic.Uint64

	cursorMu     sync.Mutex // orders the records of KindCursor; above mu and session.mu
	checkpointMu sync.Mutex // guards the four; above cursorMu
	floor        map[uint32]int64
	floorSaved   map[uint32]int64
	groupsSaved  map[string]string // records of shared subscriptions
	grace        *grace

	started time.Time // when what was read at start began to count

	mu        sync.Mutex
	closing   bool
	trusted   bool // the clock, at the last look
	dated     bool // it has been trusted since the start, so all sessions have their true age
	sessions  map[string]*session
	quotas    map[string]*quota // of those, by identity or address
	conns     map[*conn]struct{}
	listeners map[net.Listener]struct{}
	admitted  int // connections accepted and not yet ended, WebSocket upgrades included
	logins    int // of those, not logged in
	arrivals  uint64
	byAddr    map[netip.Addr]*addrCount

	connects   limit.Buckets // new connections by address
	refusedLog limit.Buckets // refused logins that are worth a line, under no address
}

// noteRefused logs a refused login, and in a flood of them only some.
func (s *Server) noteRefused(args ...any) {
	level := slog.LevelInfo
	if !s.refusedLog.Take(netip.Addr{}, time.Now()) {
		level = slog.LevelDebug
	}
	s.log.Log(context.Background(), level, "login refused", args...)
}

// maxAddresses bounds what is remembered of addresses that have gone.
const maxAddresses = 16 << 10

type addrCount struct {
	conns   int
	guests  int                    // logged in
	pending map[*admitted]struct{} // not logged in
}

// NewServer checks the configuration and reads sessions and retained messages from
// State. It starts nothing.
func NewServer(cfg Config) (*Server, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	s := &Server{cfg: cfg, log: cfg.Logger, quit: make(chan struct{}), turns: make(chan struct{}, runtime.GOMAXPROCS(0)), sessions: map[string]*session{}, quotas: map[string]*quota{}, conns: map[*conn]struct{}{},
		listeners: map[net.Listener]struct{}{}, byAddr: map[netip.Addr]*addrCount{}}
	s.subs.srv = s
	s.retained = retainedSet{maxN: cfg.Limits.Retained, maxBytes: cfg.Limits.RetainedBytes, m: map[string]*message{}, pending: map[string]int{}}
	s.connects = limit.Buckets{Rate: float64(cfg.Limits.ConnectRate), Burst: float64(cfg.Limits.ConnectBurst), Max: maxAddresses}
	s.refusedLog = limit.Buckets{Rate: 1, Burst: 20, Max: 1}
	s.flusher.init()
	s.started = cfg.Now()
	s.load()
	s.trust(cfg.ClockTrusted(), s.started)
	s.loadCursors()
	return s, nil
}

// load rebuilds memory from the state. A record that is not understood is left where
// it is and reported: the server starts in any case.
func (s *Server) load() {
	s.cfg.State.Load(KindSession, func(id string, b []byte) bool {
		ss, err := decodeSession(id, b)
		if err != nil {
			s.log.Error("session record not understood, client starts anew", "client", id, "error", err)
			return true
		}
		ss.srv = s
		s.sessions[id] = ss
		s.count(ss, ss.identity)
		for f, sub := range ss.subs {
			if g, plain, ok := topic.Shared(f); ok {
				s.subs.put(ss, g, plain, sub)
			}
		}
		return true
	})
	s.cfg.State.Load(KindRetained, func(t string, b []byte) bool {
		m, err := decodeMessage(b)
		if err != nil {
			s.log.Error("retained message not understood", "topic", t, "error", err)
			return true
		}
		s.retained.set(t, m)
		return true
	})
}

// trust takes in whether the clock is right. When it is for the first time, sessions that were
// read at start get their true age, which no later step of the clock changes: it is bound to the
// monotonic clock of now. Caller holds s.mu, or nothing runs yet.
func (s *Server) trust(trusted bool, now time.Time) {
	s.trusted = trusted
	if s.dated || !trusted {
		return
	}
	s.dated = true
	for _, ss := range s.sessions {
		if ss.restored {
			ss.gone = now.Add(-max(awayFor(ss.gone, now), now.Sub(s.started)))
		}
	}
}

// awayFor is how long ago gone was. It is zero for a client that was connected when we
// ended. A node may boot in 1970 and learn the time later, so a time that cannot be is not
// believed: a session that ends too early costs a client its unacknowledged messages, one
// that ends too late costs nothing.
func awayFor(gone, now time.Time) time.Duration {
	if gone.Year() < 2020 {
		return 0
	}
	return max(0, now.Sub(gone))
}

// Run does the housekeeping: wills of before the start, sessions that end. It
// returns after ctx ends and everything is shut down.
func (s *Server) Run(ctx context.Context) error {
	s.restoreWills()
	t := time.NewTicker(5 * time.Second)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			s.sweep()
			s.lookAround(time.Now())
		case <-s.quit:
			return nil
		case <-ctx.Done():
			end, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
			defer cancel()
			return s.Shutdown(end)
		}
	}
}

// Shutdown stops accepting, ends all connections after what they have in flight is
// answered, and returns when the last one has gone or ctx ends. Sessions and wills
// stay for the next start.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	if !s.closing {
		s.closing = true
		close(s.quit)
	}
	for l := range s.listeners {
		l.Close()
	}
	for _, ss := range s.sessions {
		if ss.willTimer != nil {
			ss.willTimer.Stop()
		}
	}
	conns := make([]*conn, 0, len(s.conns))
	for c := range s.conns {
		conns = append(conns, c)
	}
	s.mu.Unlock()
	for _, c := range conns {
		c.stop(cause{code: packet.ServerShuttingDown})
	}
	done := make(chan struct{})
	go func() { s.wg.Wait(); close(done) }()
	select {
	case <-done:
		s.parker.close()
		s.checkpoint(true)
		return nil
	case <-ctx.Done():
		for _, c := range conns {
			c.nc.Close()
		}
		return fmt.Errorf("mqtt: shut down: %w", context.Cause(ctx))
	}
}

// recovered is the second line behind decoders that do not panic: a bug ends the
// connection that met it, not the node.
func (s *Server) recovered(c *conn) {
	if r := recover(); r != nil {
		s.stats.Panics.Add(1)
		s.log.Error("internal error in a connection, it is closed", "client", c.ID, "remote", c.Remote, "panic", fmt.Sprint(r), "stack", string(debug.Stack()))
		c.stop(cause{code: packet.Unspecified, panicked: true})
		c.nc.Close()
	}
}

// aliases is the Topic Alias Maximum we give.
func (s *Server) aliases() int { return max(0, s.cfg.Limits.TopicAliases) }
