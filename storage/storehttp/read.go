package storehttp

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"time"

	"tailrace/storage"
	"tailrace/storage/record"
)

// scanner reads records of a partition block by block, skipping what a query
// does not ask for. Memory is one block and one decompressed batch.
type scanner struct {
	q         *query
	readBytes int
	buf       []byte
	dec       *record.Decompressor
	pos       Position
	visited   int64
}

// scan calls f for each matching record of p in [from, to) in offset order and
// returns the offset after the last record it looked at. f returns false to stop.
// Records below the log start (retention moved on meanwhile) are skipped.
func (s *scanner) scan(ctx context.Context, p Partition, from, to int64, f func(*record.Record, *Position) bool) (int64, error) {
	for from < to {
		if err := ctx.Err(); err != nil {
			return from, err
		}
		out, next, err := p.Read(s.buf[:0], from, s.readBytes)
		if errors.Is(err, storage.ErrOffsetOutOfRange) && from < p.Start() {
			from = p.Start()
			continue
		}
		if err != nil {
			return from, fmt.Errorf("read partition %d at offset %d: %w", p.Index(), from, err)
		}
		if next <= from {
			return from, nil
		}
		s.buf = out
		for rest := out; len(rest) > 0; {
			var b record.Batch
			if b, rest, err = record.Next(rest); err != nil {
				return from, fmt.Errorf("read partition %d at offset %d: %w", p.Index(), from, err)
			}
			stop, err := s.batch(p, b, from, to, f)
			if err != nil {
				return from, err
			}
			if stop {
				return to, nil
			}
		}
		from = next
	}
	return from, nil
}

func (s *scanner) batch(p Partition, b record.Batch, from, to int64, f func(*record.Record, *Position) bool) (stop bool, err error) {
	if b.Attributes()&record.AttrControl != 0 || b.MaxTimestamp() < s.q.fromTime || b.NextOffset() <= from {
		return false, nil
	}
	if b.BaseOffset() >= to {
		return true, nil
	}
	o, hasOrigin := p.Origin(b.BaseOffset())
	if s.q.node != "" && hasOrigin && o.Node != s.q.node {
		return false, nil
	}
	it := b.Iter(s.dec)
	for it.Next() {
		r := it.Record()
		if r.Offset < from {
			continue
		}
		if r.Offset >= to {
			return true, nil
		}
		s.visited++
		if r.Timestamp < s.q.fromTime || r.Timestamp >= s.q.toTime || s.q.hasKey && string(r.Key) != string(s.q.key) {
			continue
		}
		pos := s.position(r, b, o, hasOrigin)
		if s.q.node != "" && (pos == nil || pos.Node != s.q.node) {
			continue
		}
		if !f(r, pos) {
			return true, nil
		}
	}
	if err := it.Err(); err != nil {
		return false, fmt.Errorf("partition %d: %w", p.Index(), err)
	}
	return false, nil
}

// position finds a record's origin: the header that its node wrote, else the
// origin of its batch, in which positions follow each other.
func (s *scanner) position(r *record.Record, b record.Batch, o storage.Origin, hasOrigin bool) *Position {
	for i := len(r.Headers) - 1; i >= 0; i-- {
		if h := &r.Headers[i]; h.Key == originHeader {
			if node, epoch, off, ok := storage.ParseOriginHeader(h.Value); ok {
				s.pos = Position{Node: node, EpochSize: len(epoch), Offset: off}
				copy(s.pos.Epoch[:], epoch[:])
				if hasOrigin && o.Node == node && [8]byte(o.Epoch[:8]) == epoch {
					s.pos.Epoch, s.pos.EpochSize = o.Epoch, len(o.Epoch)
				}
				return &s.pos
			}
		}
	}
	if hasOrigin {
		s.pos = Position{o.Node, o.Epoch, len(o.Epoch), o.From + r.Offset - b.BaseOffset()}
		return &s.pos
	}
	return nil
}

// flushBytes is how much of an answer is gathered before it is written out.
const (
	flushBytes = 64 << 10
	minTime    = math.MinInt64
)

// records streams the records that a query asks for. The end of each
// partition is fixed when the request arrives, so the answer always ends.
//
// An error after the first byte cannot become a status any more; then the
// connection is cut, so that a partial answer never looks whole.
func (h *Handler) records(w http.ResponseWriter, r *http.Request) {
	t := h.lookup(w, r)
	if t == nil {
		return
	}
	q, err := parseQuery(t, r)
	if err != nil {
		WriteError(w, storeError(err))
		return
	}
	type part struct {
		p        Partition
		from, to int64
	}
	var parts []part
	for _, p := range q.partitions {
		from, err := q.from.resolve(p, p.Start())
		if err == nil && q.fromTime > minTime {
			var off int64
			var ok bool
			if off, _, ok, err = p.OffsetForTime(q.fromTime); err == nil {
				if !ok { // no record is that young
					continue
				}
				from = max(from, off)
			}
		}
		var to int64
		if err == nil {
			to, err = q.to.resolve(p, p.HighWatermark())
		}
		if err != nil {
			WriteError(w, storeError(err))
			return
		}
		parts = append(parts, part{p, from, to})
	}
	if !h.enter(w) {
		return
	}
	defer h.leave()

	w.Header().Set("Content-Type", map[string]string{"ndjson": "application/x-ndjson", "csv": "text/csv; charset=utf-8", "raw": "application/octet-stream"}[q.format])
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Trailer", "Tailrace-Records, Tailrace-Next")
	out := answer{h: h, w: w, rc: http.NewResponseController(w)}
	if q.format == "csv" {
		out.buf = append(out.buf, csvHeader...)
	}
	s := scanner{q: q, readBytes: h.cfg.ReadBytes, dec: record.NewDecompressor(0)}
	defer s.dec.Close()
	var n, last int64
	next := ""
	for _, pt := range parts {
		if q.limit > 0 && n >= q.limit {
			break
		}
		last = -1
		var werr error
		end, err := s.scan(r.Context(), pt.p, pt.from, pt.to, func(rec *record.Record, pos *Position) bool {
			switch q.format {
			case "ndjson":
				out.buf = append(appendRecord(out.buf, t.Name(), pt.p.Index(), rec, pos), '\n')
			case "csv":
				out.buf = appendCSV(out.buf, t.Name(), pt.p.Index(), rec, pos)
			case "raw":
				out.buf = append(append(out.buf, rec.Value...), q.delimiter...)
			}
			n++
			last = rec.Offset
			if len(out.buf) >= flushBytes {
				werr = out.flush()
			}
			return werr == nil && (q.limit == 0 || n < q.limit)
		})
		if err == nil {
			err = werr
		}
		if err != nil {
			h.abort(&out, r, err)
			return
		}
		if q.limit > 0 && n >= q.limit {
			end = last + 1
		}
		if next != "" {
			next += ","
		}
		next += strconv.Itoa(pt.p.Index()) + ":" + strconv.FormatInt(max(end, last+1), 10)
	}
	if err := out.flush(); err != nil {
		h.abort(&out, r, err)
		return
	}
	h.stats.read.Add(n)
	w.Header().Set("Tailrace-Records", strconv.FormatInt(n, 10))
	w.Header().Set("Tailrace-Next", next)
}

// abort ends an answer that cannot be completed: with an error status while
// nothing was sent, else by cutting the connection.
func (h *Handler) abort(out *answer, r *http.Request, err error) {
	if r.Context().Err() == nil {
		h.cfg.Logger.Warn("record query failed", "path", r.URL.Path, "remote", r.RemoteAddr, "error", err)
	}
	if out.sent {
		panic(http.ErrAbortHandler)
	}
	out.w.Header().Del("Trailer")
	WriteError(out.w, storeError(err))
}

// answer gathers output and writes it under a deadline.
type answer struct {
	h   *Handler
	w   http.ResponseWriter
	rc  *http.ResponseController
	buf []byte

	sent bool // something was written: the status is out
}

func (a *answer) flush() error {
	if len(a.buf) == 0 {
		return nil
	}
	// Not every ResponseWriter has deadlines (HTTP/2 has, httptest has not).
	a.rc.SetWriteDeadline(time.Now().Add(a.h.cfg.WriteTimeout))
	a.sent = true
	_, err := a.w.Write(a.buf)
	a.buf = a.buf[:0]
	if err != nil {
		return err
	}
	if err := a.rc.Flush(); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	return nil
}
