package hub

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"tailrace/storage/storehttp"
	"tailrace/uplink/hub/console"
)

// buildHandler joins the API, the console, metrics and health.
//
//	GET  /api/v1/topics…             package storehttp
//	POST /api/v1/topics/{t}/records  package storehttp
//	GET  /api/v1/nodes               {"nodes":[NodeInfo]}
//	GET  /api/v1/nodes/{node}        NodeInfo
//	POST /api/v1/nodes/{node}/accept takes the node's next log whatever it is; ends a fence
//	GET  /api/v1/devices             ?after=&limit=   {"devices":[DeviceInfo],"next":"…"}
//	GET  /api/v1/losses              ?node=&topic=&limit=   {"losses":[LossRow],"totals":[…]}
//	POST /api/v1/drain               sends nodes away (drainRequest): {"told": n}
//	GET  /api/v1/fetches             ?node=   {"fetches":[FetchInfo]}
//	POST /api/v1/fetches             a fetchRequest: 202 and FetchInfo
//	DELETE /api/v1/fetches/{id}      cancels
//	POST /api/v1/bundles             a bundle (package bundle): BundleResult
//	GET  /healthz /readyz /metrics   without authentication: healthz, readyz
//	GET  /                           console
func (h *Hub) buildHandler() (http.Handler, error) {
	mux := http.NewServeMux()
	mux.Handle("/api/v1/topics", h.api)
	mux.Handle("/api/v1/topics/", h.api)
	mux.HandleFunc("GET /api/v1/nodes", h.serveNodes)
	mux.HandleFunc("GET /api/v1/nodes/{node}", h.serveNode)
	if !h.cfg.HTTP.ReadOnly {
		mux.HandleFunc("POST /api/v1/nodes/{node}/accept", h.serveAccept)
		mux.HandleFunc("POST /api/v1/bundles", h.serveBundle)
		mux.HandleFunc("POST /api/v1/drain", h.serveDrain)
	}
	h.fetchRoutes(mux)
	mux.HandleFunc("GET /api/v1/devices", h.serveDevices)
	mux.HandleFunc("GET /api/v1/losses", h.serveLosses)
	mux.HandleFunc("GET /metrics", h.serveMetrics)
	ui, err := console.New(console.Config{Log: h.central.log(), Fleet: fleet{h}, Logger: h.log, Now: h.cfg.Now, Software: h.cfg.Software})
	if err != nil {
		return nil, err
	}
	mux.Handle("/", ui)
	mux.HandleFunc("/api/", func(w http.ResponseWriter, r *http.Request) {
		storehttp.WriteError(w, &storehttp.Error{Status: http.StatusNotFound, Code: "unknown_path", Message: "there is no " + r.URL.Path,
			Hint: "see /api/v1/topics, /api/v1/nodes, /api/v1/devices, /api/v1/losses, /api/v1/fetches"})
	})

	tokens, err := loadTokens(h.cfg.HTTP.TokenFile)
	if err != nil {
		return nil, fmt.Errorf("http.token_file: %w", err)
	}
	var protected http.Handler = http.NewCrossOriginProtection().Handler(mux)
	if tokens != nil {
		protected = requireToken(protected, tokens)
	} else if h.cfg.HTTP.Cert == "" {
		protected = storehttp.Guard(mux)
	}
	outer := http.NewServeMux()
	outer.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) { writeText(w, http.StatusOK, "ok\n") })
	outer.HandleFunc("GET /readyz", h.serveReady)
	outer.Handle("/", protected)
	return h.count(outer), nil
}

// statusWriter remembers the status for the counters and passes everything
// else through (http.ResponseController finds Unwrap).
type statusWriter struct {
	http.ResponseWriter
	status int
}

func (w *statusWriter) WriteHeader(code int) {
	if w.status == 0 {
		w.status = code
	}
	w.ResponseWriter.WriteHeader(code)
}

func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (h *Hub) count(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		sw := &statusWriter{ResponseWriter: w}
		defer func() {
			if sw.status == 0 {
				sw.status = http.StatusOK
			}
			h.metrics.requests[min(sw.status/100, len(h.metrics.requests)-1)].Inc()
		}()
		next.ServeHTTP(sw, r)
	})
}

// loadTokens reads the lines of a token file; empty lines and # are skipped.
// Hashes are kept, so that comparing takes the same time for every length.
// A word "read-only" behind a token lets it read, and nothing else.
func loadTokens(file string) ([]token, error) {
	if file == "" {
		return nil, nil
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var out []token
	for line := range bytes.Lines(b) {
		line = bytes.TrimSpace(line)
		if len(line) == 0 || line[0] == '#' {
			continue
		}
		line, word, _ := bytes.Cut(line, []byte(" "))
		word = bytes.TrimSpace(word)
		if len(word) > 0 && string(word) != "read-only" {
			return nil, fmt.Errorf("%s: %q behind a token: only read-only may stand there", file, word)
		}
		if len(line) < 16 {
			return nil, fmt.Errorf("%s: a token has at least 16 characters (openssl rand -hex 24 makes one)", file)
		}
		out = append(out, token{sha256.Sum256(line), len(word) > 0})
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%s holds no token", file)
	}
	return out, nil
}

// token is one that opens the API.
type token struct {
	sum      [32]byte
	readOnly bool
}

func requireToken(next http.Handler, tokens []token) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		given, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		if !ok { // a browser asks for a password
			_, given, ok = r.BasicAuth()
		}
		sum := sha256.Sum256([]byte(given))
		match, may := 0, 0 // may: not only read
		for i := range tokens {
			same := subtle.ConstantTimeCompare(sum[:], tokens[i].sum[:])
			match |= same
			if !tokens[i].readOnly {
				may |= same
			}
		}
		if !ok || match != 1 {
			w.Header().Set("WWW-Authenticate", `Basic realm="Tailrace: any user name, the token as password", charset="UTF-8"`)
			storehttp.WriteError(w, &storehttp.Error{Status: http.StatusUnauthorized, Code: "unauthorized", Message: "a token is required",
				Hint: "send Authorization: Bearer with a line of the hub's token file"})
			return
		}
		if may != 1 && r.Method != http.MethodGet && r.Method != http.MethodHead {
			storehttp.WriteError(w, &storehttp.Error{Status: http.StatusForbidden, Code: "read_only_token", Message: "this token may read only"})
			return
		}
		next.ServeHTTP(w, r)
	})
}

func writeText(w http.ResponseWriter, status int, s string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	w.Write([]byte(s))
}

// serveReady says whether the hub takes and stores records: it runs, and no
// storage class is broken.
func (h *Hub) serveReady(w http.ResponseWriter, r *http.Request) {
	if !h.ready.Load() {
		writeText(w, http.StatusServiceUnavailable, "not ready: starting or stopping\n")
		return
	}
	if err := h.central.settled(); err != nil {
		writeText(w, http.StatusServiceUnavailable, fmt.Sprintf("not ready: %v\n", err))
		return
	}
	for _, c := range h.store.Stats().Classes {
		if c.Broken != nil {
			writeText(w, http.StatusServiceUnavailable, fmt.Sprintf("not ready: storage class %s: %v\n", c.Class, c.Broken))
			return
		}
	}
	writeText(w, http.StatusOK, "ready\n")
}

func reply(w http.ResponseWriter, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		storehttp.WriteError(w, &storehttp.Error{Status: http.StatusInternalServerError, Code: "internal", Message: err.Error()})
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("Cache-Control", "no-store")
	w.Write(append(b, '\n'))
}

func (h *Hub) serveNodes(w http.ResponseWriter, r *http.Request) {
	answer := map[string]any{"nodes": h.Nodes()}
	h.nodes.mu.Lock()
	if h.storeNote != "" {
		answer["store_note"] = h.storeNote
	}
	h.nodes.mu.Unlock()
	reply(w, answer)
}

func unknownNode(id string) *storehttp.Error {
	return &storehttp.Error{Status: http.StatusNotFound, Code: "unknown_node", Message: fmt.Sprintf("node %q was never seen", id), Hint: "GET /api/v1/nodes lists them"}
}

func (h *Hub) serveNode(w http.ResponseWriter, r *http.Request) {
	id := r.PathValue("node")
	for _, n := range h.Nodes() {
		if n.Node == id {
			reply(w, n)
			return
		}
	}
	storehttp.WriteError(w, unknownNode(id))
}

// serveAccept makes the node's next Hello begin a new log, and forgets which
// processes were displaced.
func (h *Hub) serveAccept(w http.ResponseWriter, r *http.Request) {
	id := r.PathValue("node")
	if e := h.elsewhere(r.Context(), id); e != nil {
		storehttp.WriteError(w, e)
		return
	}
	h.nodes.mu.Lock()
	n := h.nodes.nodes[id]
	if n != nil {
		n.saved.AcceptNext, n.saved.Fenced, n.saved.FencedAt = true, "", 0
		n.displaced, n.refused, n.other = nil, nil, ""
	}
	h.nodes.mu.Unlock()
	if n == nil {
		storehttp.WriteError(w, unknownNode(id))
		return
	}
	if err := h.saveNode(r.Context(), id, true); err != nil {
		storehttp.WriteError(w, &storehttp.Error{Status: http.StatusServiceUnavailable, Code: "not_stored", Message: err.Error()})
		return
	}
	h.log.Warn("operator accepts the node's next log", "node", id, "remote", r.RemoteAddr)
	reply(w, map[string]any{"node": id, "accept_next": true})
}

// intParam reads a bounded number from the query.
func intParam(r *http.Request, name string, def, most int) (int, error) {
	s := r.URL.Query().Get(name)
	if s == "" {
		return def, nil
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 || n > most {
		return 0, &storehttp.Error{Status: http.StatusBadRequest, Code: "bad_" + name, Message: fmt.Sprintf("%s=%q: a number from 1 to %d", name, s, most)}
	}
	return n, nil
}

func (h *Hub) serveDevices(w http.ResponseWriter, r *http.Request) {
	limit, err := intParam(r, "limit", 1000, 10000)
	if err != nil {
		storehttp.WriteError(w, err.(*storehttp.Error)) // intParam returns no other
		return
	}
	list, next := h.Devices(r.URL.Query().Get("after"), limit)
	reply(w, map[string]any{"devices": list, "next": next})
}

// LossTotalInfo is one sum of the ledger in GET /api/v1/losses.
type LossTotalInfo struct {
	Node    string `json:"node"`
	Topic   string `json:"topic"`
	Reason  string `json:"reason"`
	Ranges  int64  `json:"ranges"`
	Records int64  `json:"records"`
}

func (h *Hub) serveLosses(w http.ResponseWriter, r *http.Request) {
	limit, err := intParam(r, "limit", 1000, maxLossRows)
	if err != nil {
		storehttp.WriteError(w, err.(*storehttp.Error)) // intParam returns no other
		return
	}
	q := r.URL.Query()
	totals := []LossTotalInfo{}
	for _, k := range sortedLossKeys(h.central.LossTotals()) {
		if (q.Get("node") == "" || k.Node == q.Get("node")) && (q.Get("topic") == "" || k.Topic == q.Get("topic")) {
			totals = append(totals, k)
		}
	}
	reply(w, map[string]any{"losses": h.central.Losses(q.Get("node"), q.Get("topic"), limit), "totals": totals})
}

func parseStamp(s string) (int64, error) {
	t, err := time.Parse(time.RFC3339Nano, s)
	return t.UnixMilli(), err
}
