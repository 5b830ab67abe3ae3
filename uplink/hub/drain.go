package hub

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"time"

	"tailrace/storage/storehttp"
	"tailrace/uplink/link"
)

// drainRequest is the body of POST /api/v1/drain. Durations as Go writes them: 30s, 5m.
type drainRequest struct {
	Reason     string   `json:"reason"`
	Nodes      []string `json:"nodes"`
	Hubs       []string `json:"hubs"`
	RetryAfter string   `json:"retry_after"`
	Over       string   `json:"over"`
}

// serveDrain sends nodes away, and answers {"told": n} when the last was told.
func (h *Hub) serveDrain(w http.ResponseWriter, r *http.Request) {
	bad := func(msg string) {
		storehttp.WriteError(w, &storehttp.Error{Status: http.StatusBadRequest, Code: "bad_drain", Message: msg,
			Hint: `{"reason":"upgrade","nodes":[],"hubs":["hub-b:7443"],"retry_after":"5m","over":"1m"}`})
	}
	var q drainRequest
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, 4<<20))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&q); err != nil {
		bad("the body is not an order: " + err.Error())
		return
	}
	o := link.DrainOrder{Reason: truncate(q.Reason, 200), Nodes: q.Nodes, Hubs: q.Hubs}
	if o.Reason == "" {
		o.Reason = "the hub's operator asked"
	}
	var err error
	if o.RetryAfter, err = span(q.RetryAfter); err != nil {
		bad("retry_after: " + err.Error())
		return
	}
	if o.Over, err = span(q.Over); err != nil {
		bad("over: " + err.Error())
		return
	}
	if len(o.Hubs) > 64 {
		bad("more than 64 hubs")
		return
	}
	for _, hub := range o.Hubs {
		if _, _, err := net.SplitHostPort(hub); err != nil {
			bad("hub " + hub + ": want host:port")
			return
		}
	}
	told, err := h.links.Drain(r.Context(), o)
	h.log.Warn("nodes were sent away", "reason", o.Reason, "told", told, "hubs", o.Hubs, "retry_after", o.RetryAfter, "remote", r.RemoteAddr, "err", err)
	reply(w, map[string]any{"told": told})
}

// span reads a duration of up to a day; "" is none.
func span(s string) (time.Duration, error) {
	if s == "" {
		return 0, nil
	}
	d, err := time.ParseDuration(s)
	if err == nil && (d < 0 || d > 24*time.Hour) {
		err = fmt.Errorf("%v is not within 0 and 24h", d)
	}
	return d, err
}
