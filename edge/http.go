package edge

import (
	"context"
	"encoding/json"
	"net/http"
	"strconv"

	"tailrace/devices"
	"tailrace/storage/storehttp"
)

// handler serves
//
//	/api/v1/topics…            package storehttp: topics, records, live tail, POST of records
//	GET /api/v1/status         Status
//	GET /api/v1/devices        ?after=NAME&limit=N, in order of name
//	GET /api/v1/devices/{name}
//	GET /api/v1/bundle         a bundle for a hub, see serveBundle
//	GET /metrics               Prometheus text
//	GET /healthz               200 while the process serves
//	GET /readyz                200 while messages are taken in, else 503 with the reason
func (n *Node) handler() (http.Handler, error) {
	topics, err := storehttp.New(storehttp.Config{
		Store: n.store, Logger: n.logger, MaxRecordBytes: int(n.cfg.MQTT.MaxRecordSize), Now: n.cfg.Now,
		Create: func(_ context.Context, topic string) (storehttp.Topic, error) {
			if err := devices.CheckStreamName(topic); err != nil {
				return nil, &storehttp.Error{Status: http.StatusBadRequest, Code: "bad_topic", Message: err.Error()}
			}
			t, err := n.streams.create(topic)
			if err != nil {
				return nil, err
			}
			return storehttp.OfTopic(t), nil
		},
	})
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.Handle("/api/v1/topics", topics)
	mux.Handle("/api/v1/topics/", topics)
	mux.HandleFunc("GET /api/v1/status", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, n.Status()) })
	mux.HandleFunc("GET /api/v1/devices", n.serveDevices)
	mux.HandleFunc("GET /api/v1/devices/{name...}", n.serveDevice)
	mux.HandleFunc("GET /api/v1/bundle", n.serveBundle)
	mux.HandleFunc("GET /metrics", n.serveMetrics)
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("ok\n")) })
	mux.HandleFunc("GET /readyz", n.serveReady)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		storehttp.WriteError(w, &storehttp.Error{Status: http.StatusNotFound, Code: "unknown_path", Message: "there is no " + r.URL.Path,
			Hint: "try /api/v1/status, /api/v1/topics, /api/v1/devices, /metrics, /healthz or /readyz"})
	})
	if n.cfg.HTTP.AllowRemote {
		return http.NewCrossOriginProtection().Handler(mux), nil
	}
	return storehttp.Guard(mux), nil
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	_ = enc.Encode(v) // the reader has gone
}

func (n *Node) serveReady(w http.ResponseWriter, _ *http.Request) {
	var why []string
	if !n.serving.Load() {
		why = append(why, "shutting down")
	}
	for _, c := range n.store.Stats().Classes {
		if c.Broken != nil {
			why = append(why, "storage class "+c.Class+": "+c.Broken.Error())
		}
	}
	if len(why) == 0 {
		w.Write([]byte("ready\n"))
		return
	}
	w.WriteHeader(http.StatusServiceUnavailable)
	for _, s := range why {
		w.Write([]byte(s + "\n"))
	}
}

// devicePage is the answer of /api/v1/devices. Next, when not empty, is the "after" of the next page.
type devicePage struct {
	Devices []devices.DeviceInfo `json:"devices"`
	Known   int                  `json:"known"`
	Evicted uint64               `json:"forgotten"` // for lack of room, since start
	Next    string               `json:"next,omitempty"`
}

func (n *Node) serveDevices(w http.ResponseWriter, r *http.Request) {
	limit := 1000
	if s := r.URL.Query().Get("limit"); s != "" {
		v, err := strconv.Atoi(s)
		if err != nil || v < 1 || v > 10_000 {
			storehttp.WriteError(w, &storehttp.Error{Status: http.StatusBadRequest, Code: "bad_limit", Message: "limit " + strconv.Quote(s) + ": want 1 to 10000"})
			return
		}
		limit = v
	}
	page := devicePage{Devices: n.registry.List(r.URL.Query().Get("after"), limit), Known: n.registry.Len(), Evicted: n.registry.Evicted()}
	if len(page.Devices) == limit {
		page.Next = page.Devices[limit-1].Device
	}
	writeJSON(w, page)
}

func (n *Node) serveDevice(w http.ResponseWriter, r *http.Request) {
	d, ok := n.registry.Get(r.PathValue("name"))
	if !ok {
		storehttp.WriteError(w, &storehttp.Error{Status: http.StatusNotFound, Code: "unknown_device", Message: "no device of this name was seen", Hint: "GET /api/v1/devices lists them"})
		return
	}
	writeJSON(w, d)
}
