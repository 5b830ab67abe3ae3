package console

import (
	"bytes"
	"errors"
	"net/http"
	"time"
)

// stream sends what render gives, at most once per Refresh and only when it
// changed, until the browser leaves. A browser that takes nothing for half a
// minute is dropped. event "" is what htmx swaps in.
func (h *Handler) stream(w http.ResponseWriter, r *http.Request, event string, render func() ([]byte, error)) {
	select {
	case h.streams <- struct{}{}:
		defer func() { <-h.streams }()
	default:
		w.Header().Set("Retry-After", "10")
		http.Error(w, "too many open pages", http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Accel-Buffering", "no")
	rc := http.NewResponseController(w)
	tick := time.NewTicker(h.cfg.Refresh)
	defer tick.Stop()
	var last []byte
	for silent := 0; ; silent++ {
		b, err := render()
		if err != nil {
			h.cfg.Logger.Warn("console stream", "path", r.URL.Path, "error", err)
			return
		}
		var out []byte
		switch {
		case !bytes.Equal(b, last):
			last, silent = b, 0
			out = appendEvent(nil, event, b)
		case silent >= 15:
			silent = 0
			out = []byte(": still here\n\n")
		}
		if out != nil {
			rc.SetWriteDeadline(time.Now().Add(30 * time.Second)) // not every writer has deadlines
			if _, err := w.Write(out); err != nil {
				return
			}
			if err := rc.Flush(); err != nil && !errors.Is(err, http.ErrNotSupported) {
				return
			}
		}
		select {
		case <-r.Context().Done():
			return
		case <-tick.C:
		}
	}
}

// appendEvent writes one event; every line of data gets its prefix.
func appendEvent(dst []byte, event string, data []byte) []byte {
	if event != "" {
		dst = append(append(append(dst, "event: "...), event...), '\n')
	}
	for line := range bytes.Lines(data) {
		dst = append(dst, "data: "...)
		dst = append(dst, bytes.TrimRight(line, "\r\n")...)
		dst = append(dst, '\n')
	}
	return append(dst, '\n')
}

func (h *Handler) fleetEvents(w http.ResponseWriter, r *http.Request) {
	h.stream(w, r, "", func() ([]byte, error) { return h.fragment("fleet", h.fleet()) })
}

func (h *Handler) nodeEvents(w http.ResponseWriter, r *http.Request) {
	h.stream(w, r, "", func() ([]byte, error) {
		n, _ := h.node(r.PathValue("node"))
		return h.fragment("node", n)
	})
}

func (h *Handler) topicsEvents(w http.ResponseWriter, r *http.Request) {
	h.stream(w, r, "", func() ([]byte, error) {
		d, err := h.topicList(r.Context())
		if err != nil {
			return nil, err
		}
		return h.fragment("topics", d)
	})
}

func (h *Handler) lossesEvents(w http.ResponseWriter, r *http.Request) {
	h.stream(w, r, "", func() ([]byte, error) { return h.fragment("losses", h.losses()) })
}
