// Package console is the hub's pages for a browser: fleet, node, topics, one
// topic with a live chart and its latest records, losses.
//
// Pages are html/template; what changes comes by server-sent events as HTML
// that htmx morphs in, and as buckets for uPlot that are made here, so that a
// browser never gets more points than it draws. htmx and uPlot are embedded as
// published. There is no inline script or style and no request to another
// origin; the Content-Security-Policy says so.
//
// Import rule: it reads storage and what Config.Fleet tells; it does not know
// the hub.
package console

import (
	"bytes"
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"html/template"
	"io/fs"
	"log/slog"
	"net/http"
	"sort"
	"strings"
	"sync"
	"time"

	"tailrace/storage/storehttp"
)

//go:embed static templates
var files embed.FS

// Fleet is what the console wants to know of nodes. Calls are cheap and may be concurrent.
type Fleet interface {
	Nodes() []Node
	Losses(limit int) ([]Loss, []LossTotal)
	Received() int64   // records of nodes stored since start
	KafkaAddr() string // for the line to copy; empty = no listener
}

// Node is one row of the fleet.
type Node struct {
	Name, State, Fenced, Software, Remote, Epoch string
	Dark                                         bool
	LastSeen                                     time.Time
	RTT                                          time.Duration
	LagRecords, LagBytes                         int64
	LagSeconds                                   float64
	Stored, Lost, Devices, DiskBytes, DiskBudget int64
	DrainSeconds                                 *float64 // nil = not known
	ClockOffset                                  time.Duration
	Links                                        []Link
	Notes, Forks                                 []string
	Topics                                       []NodeTopic
}

// Link is a class of links of a node with its budget.
type Link struct {
	Name, Interface, Held, Ends              string
	RateLimit, Monthly, Used, Left, Forecast int64
}

// NodeTopic is the state of one topic partition of a node.
type NodeTopic struct {
	Topic            string
	Partition        int
	CentralTopic     string
	CentralPartition int
	CompleteTo, Next int64
	CompleteTime     string
	LagRecords       int64
	LagSeconds       float64
	Stored, Lost     int64
	Mode             string
	Priority         int32
	AtNode           int64    // not here on purpose
	Backfill         string   // topic of its gaps; empty = none
	DrainSeconds     *float64 // nil = not known
	WirePerRecord    float64  // bytes
}

// Loss is one row of the loss ledger.
type Loss struct {
	Node, Topic, Reason, Detail string
	Partition                   int
	From, To, Records           int64
	Declared                    time.Time
}

// LossTotal sums losses.
type LossTotal struct {
	Node, Topic, Reason string
	Ranges, Records     int64
}

// Config is what the console is made of.
type Config struct {
	Log      storehttp.Log
	Fleet    Fleet
	Logger   *slog.Logger
	Now      func() time.Time
	Software string

	MaxStreams int           // browsers' event streams at once; default 128
	Refresh    time.Duration // least time between two updates of a stream; default 1 s
}

// Handler serves the pages.
type Handler struct {
	cfg     Config
	mux     *http.ServeMux
	pages   map[string]*template.Template
	streams chan struct{} // one token per event stream

	mu       sync.Mutex // guards what follows
	rateAt   time.Time
	received int64
	rate     float64 // records per second, smoothed
}

// New parses the templates.
func New(c Config) (*Handler, error) {
	if c.Log == nil || c.Fleet == nil {
		return nil, errors.New("console: Config wants Log and Fleet")
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.MaxStreams == 0 {
		c.MaxStreams = 128
	}
	if c.Refresh == 0 {
		c.Refresh = time.Second
	}
	h := &Handler{cfg: c, mux: http.NewServeMux(), pages: map[string]*template.Template{}, streams: make(chan struct{}, c.MaxStreams)}
	version, err := assetVersion()
	if err != nil {
		return nil, err
	}
	for _, page := range []string{"fleet", "node", "topics", "topic", "losses"} {
		t, err := template.New("layout.html").Funcs(functions(version)).ParseFS(files, "templates/layout.html", "templates/"+page+".html")
		if err != nil {
			return nil, fmt.Errorf("console: %w", err)
		}
		h.pages[page] = t
	}
	static, err := fs.Sub(files, "static")
	if err != nil {
		return nil, err
	}
	h.mux.Handle("GET /static/", cached(http.StripPrefix("/static/", http.FileServerFS(static))))
	h.mux.HandleFunc("GET /{$}", h.fleetPage)
	h.mux.HandleFunc("GET /nodes/{node}", h.nodePage)
	h.mux.HandleFunc("GET /topics", h.topicsPage)
	h.mux.HandleFunc("GET /topics/{topic}", h.topicPage)
	h.mux.HandleFunc("GET /losses", h.lossesPage)
	h.mux.HandleFunc("GET /events/fleet", h.fleetEvents)
	h.mux.HandleFunc("GET /events/nodes/{node}", h.nodeEvents)
	h.mux.HandleFunc("GET /events/topics", h.topicsEvents)
	h.mux.HandleFunc("GET /events/topics/{topic}/records", h.recordEvents)
	h.mux.HandleFunc("GET /events/topics/{topic}/chart", h.chartEvents)
	h.mux.HandleFunc("GET /events/losses", h.lossesEvents)
	return h, nil
}

// csp allows what is embedded and nothing else.
const csp = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"

func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	head := w.Header()
	head.Set("Content-Security-Policy", csp)
	head.Set("X-Content-Type-Options", "nosniff")
	head.Set("Referrer-Policy", "same-origin")
	head.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.mux.ServeHTTP(w, r)
}

// cached lets a browser keep static files: their addresses carry a version.
func cached(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/") { // no listings
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Cache-Control", "public, max-age=86400")
		next.ServeHTTP(w, r)
	})
}

// assetVersion is a hash over all static files.
func assetVersion() (string, error) {
	sum := sha256.New()
	err := fs.WalkDir(files, "static", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := files.ReadFile(path)
		sum.Write(b)
		return err
	})
	return hex.EncodeToString(sum.Sum(nil))[:12], err
}

// page is what every template gets.
type page struct {
	Title, Nav string
	Software   string
	Data       any
}

func (h *Handler) render(w http.ResponseWriter, name, title, nav string, data any) {
	var b bytes.Buffer
	if err := h.pages[name].ExecuteTemplate(&b, "layout.html", page{title, nav, h.cfg.Software, data}); err != nil {
		h.cfg.Logger.Error("console page", "page", name, "error", err)
		http.Error(w, "the page could not be made; the hub's log says why", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.Write(b.Bytes())
}

// fragment renders the live part of a page.
func (h *Handler) fragment(name string, data any) ([]byte, error) {
	var b bytes.Buffer
	err := h.pages[name].ExecuteTemplate(&b, "live", data)
	return b.Bytes(), err
}

// fleetData is the fleet page.
type fleetData struct {
	Nodes                      []Node
	Connected, Dark, Fenced    int
	LagRecords, LagBytes, Lost int64
	LagSeconds                 float64
	Received                   int64
	Rate                       float64
	Now                        time.Time
}

func (h *Handler) fleet() fleetData {
	d := fleetData{Nodes: h.cfg.Fleet.Nodes(), Received: h.cfg.Fleet.Received(), Now: h.cfg.Now()}
	for _, n := range d.Nodes {
		switch {
		case n.Fenced != "":
			d.Fenced++
		case n.Dark:
			d.Dark++
		default:
			d.Connected++
		}
		d.LagRecords += n.LagRecords
		d.LagBytes += n.LagBytes
		d.Lost += n.Lost
		d.LagSeconds = max(d.LagSeconds, n.LagSeconds)
	}
	// What needs a hand comes first.
	sort.SliceStable(d.Nodes, func(i, j int) bool { return rank(d.Nodes[i]) < rank(d.Nodes[j]) })
	d.Rate = h.ingestRate(d.Received, d.Now)
	return d
}

func rank(n Node) int {
	switch {
	case n.Fenced != "":
		return 0
	case n.Dark:
		return 1
	}
	return 2
}

// ingestRate smooths the records per second over some seconds.
func (h *Handler) ingestRate(received int64, now time.Time) float64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	dt := now.Sub(h.rateAt).Seconds()
	switch {
	case h.rateAt.IsZero() || dt > 30:
		h.rate = 0
	case dt < 0.5:
		return h.rate
	default:
		h.rate += min(1, dt/3) * (float64(received-h.received)/dt - h.rate)
	}
	h.rateAt, h.received = now, received
	return h.rate
}

func (h *Handler) fleetPage(w http.ResponseWriter, r *http.Request) {
	h.render(w, "fleet", "Fleet", "fleet", h.fleet())
}

func (h *Handler) node(name string) (Node, bool) {
	for _, n := range h.cfg.Fleet.Nodes() {
		if n.Name == name {
			return n, true
		}
	}
	return Node{}, false
}

func (h *Handler) nodePage(w http.ResponseWriter, r *http.Request) {
	n, ok := h.node(r.PathValue("node"))
	if !ok {
		http.Error(w, "this node was never seen", http.StatusNotFound)
		return
	}
	h.render(w, "node", n.Name, "fleet", n)
}

type topicsData struct {
	Topics, Internal []storehttp.TopicInfo
}

func (h *Handler) topicList(ctx context.Context) (topicsData, error) {
	var d topicsData
	ts, err := h.cfg.Log.Topics(ctx)
	if err != nil {
		return d, err
	}
	for _, t := range ts {
		info := storehttp.Describe(t, false)
		if info.Internal {
			d.Internal = append(d.Internal, info)
		} else {
			d.Topics = append(d.Topics, info)
		}
	}
	return d, nil
}

func (h *Handler) topicsPage(w http.ResponseWriter, r *http.Request) {
	d, err := h.topicList(r.Context())
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	h.render(w, "topics", "Topics", "topics", d)
}

type lossesData struct {
	Rows   []Loss
	Totals []LossTotal
}

func (h *Handler) losses() lossesData {
	rows, totals := h.cfg.Fleet.Losses(200)
	return lossesData{rows, totals}
}

func (h *Handler) lossesPage(w http.ResponseWriter, r *http.Request) {
	h.render(w, "losses", "Losses", "losses", h.losses())
}
