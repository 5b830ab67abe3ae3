// Package storehttp is the HTTP API over a storage.Store that the node and the
// hub both serve: topics, records by offset and by time, a live tail by
// server-sent events, and writing of records.
//
//	GET  /api/v1/topics                   all topics with sizes and times
//	GET  /api/v1/topics/{topic}           one topic with its partitions
//	GET  /api/v1/topics/{topic}/records   records as NDJSON, CSV or raw values, streamed
//	GET  /api/v1/topics/{topic}/tail      live records as server-sent events
//	POST /api/v1/topics/{topic}/records   append; 200 only after fsync
//
// Every answer is bounded in memory: a query reads one block of batches at a
// time and a slow reader slows its own query only. Errors are JSON:
// {"error":{"code":"unknown_topic","message":"...","hint":"..."}}.
//
// A Handler is safe for concurrent use. It authenticates nobody: the daemon
// puts its own authentication in front, and Guard for plain loopback listeners.
package storehttp

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"sync/atomic"
	"time"

	"tailrace/storage"
)

// Config says what is served and how much of it at once.
type Config struct {
	Store  *storage.Store
	Log    Log          // instead of Store
	Logger *slog.Logger // nil = discard

	// ReadOnly leaves the POST route out.
	ReadOnly bool
	// Create makes a topic that a POST names and that does not exist.
	// nil: such a POST is refused with 404.
	Create func(ctx context.Context, topic string) (Topic, error)

	MaxBodyBytes   int64         // of a POST; default 8 MiB
	MaxRecordBytes int           // key, value and headers of one record; default 1 MiB
	MaxRecords     int           // in one POST; default 10,000
	MaxReaders     int           // record queries and tails at once; default 64, more get 503
	ReadBytes      int           // block read from the log at a time by a query; default 256 KiB
	ReadTimeout    time.Duration // a POST's body must be here by then; default 60 s
	WriteTimeout   time.Duration // a reader that takes nothing for so long is dropped; default 60 s
	Heartbeat      time.Duration // comment line on a silent tail, so that proxies keep it open; default 15 s
	Now            func() time.Time
}

func (c Config) withDefaults() Config {
	def(&c.MaxBodyBytes, 8<<20)
	def(&c.MaxRecordBytes, 1<<20)
	def(&c.MaxRecords, 10000)
	def(&c.MaxReaders, 64)
	def(&c.ReadBytes, 256<<10)
	def(&c.ReadTimeout, time.Minute)
	def(&c.WriteTimeout, time.Minute)
	def(&c.Heartbeat, 15*time.Second)
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	return c
}

func def[T int | int64 | time.Duration](p *T, v T) {
	if *p == 0 {
		*p = v
	}
}

// Handler serves the API. Make it with New.
type Handler struct {
	cfg     Config
	log     Log
	mux     *http.ServeMux
	readers chan struct{} // one token per running query or tail; capacity MaxReaders
	origin  *http.CrossOriginProtection
	stats   counters
}

// Stats are totals since New.
type Stats struct {
	RecordsRead, RecordsWritten, WritesRefused, ReadersRefused int64
}

type counters struct {
	read, written, writesRefused, readersRefused atomic.Int64
}

// New checks the configuration and returns the handler.
func New(c Config) (*Handler, error) {
	if c.Log == nil {
		if c.Store == nil {
			return nil, errors.New("storehttp: Config.Store is required")
		}
		c.Log = OfStore(c.Store)
	}
	c = c.withDefaults()
	h := &Handler{
		cfg: c, log: c.Log, mux: http.NewServeMux(),
		readers: make(chan struct{}, c.MaxReaders),
		origin:  http.NewCrossOriginProtection(),
	}
	h.mux.HandleFunc("GET /api/v1/topics", h.topics)
	h.mux.HandleFunc("GET /api/v1/topics/{topic}", h.topic)
	h.mux.HandleFunc("GET /api/v1/topics/{topic}/records", h.records)
	h.mux.HandleFunc("GET /api/v1/topics/{topic}/tail", h.tail)
	if !c.ReadOnly {
		h.mux.HandleFunc("POST /api/v1/topics/{topic}/records", h.produce)
	}
	return h, nil
}

// ServeHTTP answers the routes named in the package comment, anything else
// with 404. Mount it at /api/v1/topics and /api/v1/topics/.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) { h.mux.ServeHTTP(w, r) }

// Stats returns totals since New.
func (h *Handler) Stats() Stats {
	return Stats{h.stats.read.Load(), h.stats.written.Load(), h.stats.writesRefused.Load(), h.stats.readersRefused.Load()}
}

// enter takes a reader's token; the caller releases it with leave.
func (h *Handler) enter(w http.ResponseWriter) bool {
	select {
	case h.readers <- struct{}{}:
		return true
	default:
		h.stats.readersRefused.Add(1)
		w.Header().Set("Retry-After", "5")
		WriteError(w, &Error{Status: http.StatusServiceUnavailable, Code: "too_many_readers",
			Message: "the limit of concurrent record queries and tails is reached",
			Hint:    "try again in a few seconds"})
		return false
	}
}

func (h *Handler) leave() { <-h.readers }

// lookup finds the topic of the path or answers 404.
func (h *Handler) lookup(w http.ResponseWriter, r *http.Request) Topic {
	name := r.PathValue("topic")
	t, err := h.log.Topic(r.Context(), name)
	if err == nil && t == nil {
		err = unknownTopic(name)
	}
	if err != nil {
		WriteError(w, storeError(err))
		return nil
	}
	return t
}
