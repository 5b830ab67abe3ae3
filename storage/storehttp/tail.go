package storehttp

import (
	"context"
	"net/http"
	"strconv"
	"strings"
	"time"

	"tailrace/storage/record"
)

// tail sends records as they become durable, as server-sent events:
//
//	id: 0:118,1:42
//	data: {"topic":"turbines",…}
//
// The id holds the next offset of every partition, so a browser that
// reconnects (Last-Event-ID) goes on without a gap or a repetition. Nothing is
// queued for a reader: a slow one reads later from the log, and when retention
// has passed it by, an event "skipped" says how much it missed.
func (h *Handler) tail(w http.ResponseWriter, r *http.Request) {
	t := h.lookup(w, r)
	if t == nil {
		return
	}
	q, err := parseQuery(t, r)
	if err == nil && (q.to.set || q.fromTime != minTime || q.format != "ndjson") {
		err = badRequest("unknown_parameter", "a tail takes partition, from, key, node and limit only")
	}
	if err != nil {
		WriteError(w, storeError(err))
		return
	}
	if !r.URL.Query().Has("limit") {
		q.limit = 0
	}
	next := make([]int64, len(q.partitions))
	for i, p := range q.partitions {
		if next[i], err = q.from.resolve(p, p.HighWatermark()); err != nil {
			WriteError(w, storeError(err))
			return
		}
	}
	resume(r.Header.Get("Last-Event-ID"), q.partitions, next)
	if !h.enter(w) {
		return
	}
	defer h.leave()

	// Capacity 1: a signal says "look again", more of them say nothing more.
	moved := make(chan struct{}, 1)
	for _, p := range q.partitions {
		defer p.Subscribe(moved)()
	}
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Accel-Buffering", "no")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	out := answer{h: h, w: w, rc: http.NewResponseController(w)}
	out.buf = append(out.buf, "retry: 2000\n\n"...)
	if out.flush() != nil {
		return
	}
	beat := time.NewTicker(h.cfg.Heartbeat)
	defer beat.Stop()
	s := scanner{q: q, readBytes: h.cfg.ReadBytes, dec: record.NewDecompressor(0)}
	defer s.dec.Close()
	for n := int64(0); ; {
		done, err := h.drain(r.Context(), &out, &s, q, next, &n)
		if err == nil {
			err = out.flush()
		}
		if err != nil || done {
			if err != nil && r.Context().Err() == nil {
				h.cfg.Logger.Debug("tail ended", "topic", t.Name(), "remote", r.RemoteAddr, "error", err)
			}
			return
		}
		select {
		case <-r.Context().Done():
			return
		case <-moved:
		case <-beat.C:
			out.buf = append(out.buf, ": still here\n\n"...)
		}
	}
}

// drain sends everything durable at the moment.
func (h *Handler) drain(ctx context.Context, out *answer, s *scanner, q *query, next []int64, n *int64) (done bool, err error) {
	for i, p := range q.partitions {
		if start := p.Start(); start > next[i] {
			out.buf = append(out.buf, `event: skipped`+"\n"+`data: {"partition":`...)
			out.buf = strconv.AppendInt(out.buf, int64(p.Index()), 10)
			out.buf = append(out.buf, `,"from":`...)
			out.buf = strconv.AppendInt(out.buf, next[i], 10)
			out.buf = append(out.buf, `,"to":`...)
			out.buf = strconv.AppendInt(out.buf, start, 10)
			out.buf = append(out.buf, "}\n\n"...)
			next[i] = start
		}
		var werr error
		end, err := s.scan(ctx, p, next[i], p.HighWatermark(), func(rec *record.Record, pos *Position) bool {
			next[i] = rec.Offset + 1
			out.buf = append(out.buf, "id: "...)
			out.buf = appendNext(out.buf, q.partitions, next)
			out.buf = append(out.buf, "\ndata: "...)
			out.buf = appendRecord(out.buf, q.topic.Name(), p.Index(), rec, pos)
			out.buf = append(out.buf, "\n\n"...)
			*n++
			h.stats.read.Add(1)
			if len(out.buf) >= flushBytes {
				werr = out.flush()
			}
			return werr == nil && (q.limit == 0 || *n < q.limit)
		})
		if err == nil {
			err = werr
		}
		if err != nil {
			return false, err
		}
		if q.limit > 0 && *n >= q.limit {
			return true, nil
		}
		next[i] = max(next[i], end) // past records that the filter left out
	}
	return false, nil
}

func appendNext(dst []byte, parts []Partition, next []int64) []byte {
	for i, p := range parts {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = strconv.AppendInt(dst, int64(p.Index()), 10)
		dst = append(dst, ':')
		dst = strconv.AppendInt(dst, next[i], 10)
	}
	return dst
}

// resume takes over the positions of a Last-Event-ID where they make sense for
// the partition; anything else in it is ignored.
func resume(id string, parts []Partition, next []int64) {
	for item := range strings.SplitSeq(id, ",") {
		a, b, _ := strings.Cut(item, ":")
		index, err1 := strconv.Atoi(a)
		off, err2 := strconv.ParseInt(b, 10, 64)
		if err1 != nil || err2 != nil || off < 0 {
			continue
		}
		for i, p := range parts {
			if p.Index() == index && off <= p.HighWatermark() {
				next[i] = off
			}
		}
	}
}
