package hub

import (
	"encoding/json"
	"fmt"
	"net/http"
	"path"

	"tailrace/storage/storehttp"
	"tailrace/uplink/wire"
)

// fetchRequest is the body of POST /api/v1/fetches. Times are RFC 3339 or ms since 1970.
type fetchRequest struct {
	Node  string `json:"node"`
	Topic string `json:"topic"`
	From  string `json:"from"`
	To    string `json:"to"` // exclusive; empty = now
}

func (h *Hub) fetchRoutes(mux *http.ServeMux) {
	mux.HandleFunc("GET /api/v1/fetches", func(w http.ResponseWriter, r *http.Request) {
		reply(w, map[string]any{"fetches": h.fetches.list(r.URL.Query().Get("node"))})
	})
	if h.cfg.HTTP.ReadOnly {
		return
	}
	mux.HandleFunc("POST /api/v1/fetches", h.serveFetch)
	mux.HandleFunc("DELETE /api/v1/fetches/{id}", func(w http.ResponseWriter, r *http.Request) {
		f, ok := h.fetches.cancel(r.PathValue("id"))
		if !ok {
			storehttp.WriteError(w, &storehttp.Error{Status: http.StatusNotFound, Code: "unknown_fetch", Message: fmt.Sprintf("there is no fetch %q", r.PathValue("id")), Hint: "GET /api/v1/fetches lists them"})
			return
		}
		reply(w, f)
	})
}

func (h *Hub) serveFetch(w http.ResponseWriter, r *http.Request) {
	fail := func(status int, code, hint, format string, args ...any) {
		storehttp.WriteError(w, &storehttp.Error{Status: status, Code: code, Message: fmt.Sprintf(format, args...), Hint: hint})
	}
	var q fetchRequest
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, 64<<10))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&q); err != nil {
		fail(http.StatusBadRequest, "bad_body", "", `want {"node": …, "topic": …, "from": …, "to": …}: %v`, err)
		return
	}
	if why := h.cfg.mayFetch(q.Node, q.Topic); why != "" {
		fail(http.StatusForbidden, "not_allowed", "", "%s", why)
		return
	}
	if e := h.elsewhere(r.Context(), q.Node); e != nil {
		storehttp.WriteError(w, e)
		return
	}
	from, err := storehttp.ParseTime("from", q.From)
	if err != nil {
		storehttp.WriteError(w, err.(*storehttp.Error)) // ParseTime returns no other
		return
	}
	to := h.cfg.Now().UnixMilli()
	if q.To != "" {
		if to, err = storehttp.ParseTime("to", q.To); err != nil {
			storehttp.WriteError(w, err.(*storehttp.Error)) // ParseTime returns no other
			return
		}
	}
	if to <= from {
		fail(http.StatusBadRequest, "bad_span", "", "to %s does not lie behind from %s", stamp(to), stamp(from))
		return
	}
	mode, known := h.modeOf(q.Node, q.Topic)
	switch {
	case !known:
		fail(http.StatusNotFound, "unknown_topic", "GET /api/v1/nodes lists what each node has", "node %q has not told of a topic %q", q.Node, q.Topic)
		return
	case mode != wire.ModeOnDemand.String():
		fail(http.StatusConflict, "not_on_demand", "", "topic %q of node %q is %s: there is nothing to fetch", q.Topic, q.Node, mode)
		return
	}
	f, err := h.fetches.request(r.Context(), q.Node, q.Topic, from, to)
	if err != nil {
		fail(http.StatusServiceUnavailable, "not_stored", "", "%v", err)
		return
	}
	h.log.Info("fetch requested", "fetch", f.ID, "node", q.Node, "topic", q.Topic, "from", f.From, "to", f.To, "remote", r.RemoteAddr)
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusAccepted)
	reply(w, f)
}

// mayFetch is the rule for fetches, "" = allowed.
func (c Config) mayFetch(node, topic string) string {
	if len(c.HTTP.Fetch) == 0 {
		return ""
	}
	for _, r := range c.HTTP.Fetch {
		n, _ := path.Match(r.Node, node)
		t, _ := path.Match(r.Topic, topic)
		if n && t {
			return ""
		}
	}
	return fmt.Sprintf("http.fetch of the hub's configuration does not allow topic %q of node %q", topic, node)
}

// FetchRule allows to fetch topics that stay at their nodes.
type FetchRule struct {
	Node  string `yaml:"node"`  // glob
	Topic string `yaml:"topic"` // glob
}

func validateFetch(rules []FetchRule, bad func(string, ...any)) {
	for i, r := range rules {
		_, e1 := path.Match(r.Node, "x")
		_, e2 := path.Match(r.Topic, "x")
		if e1 != nil || e2 != nil || r.Node == "" || r.Topic == "" {
			bad("http.fetch[%d]: want node and topic, each a pattern", i)
		}
	}
}

// modeOf is how a node's topic is replicated, as last heard.
func (h *Hub) modeOf(node, topic string) (mode string, known bool) {
	h.nodes.mu.Lock()
	defer h.nodes.mu.Unlock()
	n := h.nodes.nodes[node]
	if n == nil {
		return "", false
	}
	for _, p := range n.saved.Partitions {
		if p.Topic == topic {
			if n.refusedTopics[topic] != "" {
				return wire.ModeRefused.String(), true
			}
			return p.Mode.String(), true
		}
	}
	return "", false
}
