package storehttp

import (
	"math"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// query is a parsed record query or tail.
type query struct {
	topic      Topic
	partitions []Partition
	from, to   bound // offsets, to exclusive
	fromTime   int64 // ms, inclusive; math.MinInt64 = none
	toTime     int64 // ms, exclusive; math.MaxInt64 = none
	key        []byte
	hasKey     bool
	node       string // only records of this node; "" = all
	limit      int64  // 0 = none
	format     string
	delimiter  string
}

// bound is an offset as a caller may write it: a number, "earliest", "latest",
// or a negative number that counts back from the high watermark.
type bound struct {
	set      bool
	n        int64
	earliest bool
	latest   bool
}

var queryParams = map[string]bool{"partition": true, "from": true, "to": true, "from_time": true, "to_time": true,
	"key": true, "node": true, "limit": true, "format": true, "delimiter": true}

// parseQuery reads the parameters; a misspelt one is an error, because a filter
// that silently does nothing answers the wrong question.
func parseQuery(t Topic, r *http.Request) (*query, error) {
	v, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, badRequest("bad_query", "the query string does not parse: %v", err)
	}
	for name := range v {
		if !queryParams[name] {
			e := badRequest("unknown_parameter", "unknown parameter %q", name)
			e.Hint = "parameters are partition, from, to, from_time, to_time, key, node, limit, format, delimiter"
			return nil, e
		}
	}
	q := &query{topic: t, partitions: t.Parts(), fromTime: math.MinInt64, toTime: math.MaxInt64,
		limit: 1000, format: "ndjson", delimiter: "\n"}
	if s := v.Get("partition"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil || n < 0 || n >= len(q.partitions) {
			return nil, &Error{Status: http.StatusNotFound, Code: "unknown_partition",
				Message: "topic " + t.Name() + " has no partition " + strconv.Quote(s)}
		}
		q.partitions = q.partitions[n : n+1]
	}
	if q.from, err = parseBound("from", v.Get("from")); err != nil {
		return nil, err
	}
	if q.to, err = parseBound("to", v.Get("to")); err != nil {
		return nil, err
	}
	if q.from.absolute() || q.to.absolute() {
		if len(q.partitions) > 1 {
			return nil, badRequest("partition_required", "from and to are offsets of one partition, and topic %s has %d: give partition", t.Name(), len(q.partitions))
		}
	}
	if s := v.Get("from_time"); s != "" {
		if q.fromTime, err = ParseTime("from_time", s); err != nil {
			return nil, err
		}
	}
	if s := v.Get("to_time"); s != "" {
		if q.toTime, err = ParseTime("to_time", s); err != nil {
			return nil, err
		}
	}
	if v.Has("key") {
		q.hasKey, q.key = true, []byte(v.Get("key"))
	}
	q.node = v.Get("node")
	if s := v.Get("limit"); s != "" {
		if q.limit, err = strconv.ParseInt(s, 10, 64); err != nil || q.limit < 0 {
			return nil, badRequest("bad_limit", "limit %q is not a number of records (0 = all)", s)
		}
	}
	if s := v.Get("format"); s != "" {
		q.format = s
	}
	if q.format != "ndjson" && q.format != "csv" && q.format != "raw" {
		return nil, badRequest("bad_format", "format %q is not one of ndjson, csv, raw", q.format)
	}
	if v.Has("delimiter") {
		q.delimiter = v.Get("delimiter")
	}
	return q, nil
}

func parseBound(name, s string) (bound, error) {
	switch s {
	case "":
		return bound{}, nil
	case "earliest":
		return bound{set: true, earliest: true}, nil
	case "latest":
		return bound{set: true, latest: true}, nil
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return bound{}, badRequest("bad_offset", "%s=%q is not an offset, earliest, latest or a negative count from the end", name, s)
	}
	return bound{set: true, n: n}, nil
}

// absolute tells whether the bound means something in one partition only.
func (b bound) absolute() bool { return b.set && !b.earliest && !b.latest && b.n >= 0 }

// resolve turns the bound into an offset of p. Counting back stops at the log
// start; an absolute offset outside [start, high watermark] is refused.
func (b bound) resolve(p Partition, absent int64) (int64, error) {
	start, hw := p.Start(), p.HighWatermark()
	switch {
	case !b.set:
		return absent, nil
	case b.earliest:
		return start, nil
	case b.latest:
		return hw, nil
	case b.n < 0:
		return max(start, hw+b.n), nil
	case b.n < start || b.n > hw:
		return 0, offsetOutOfRange(p, b.n)
	}
	return b.n, nil
}

func offsetOutOfRange(p Partition, off int64) *Error {
	start, hw := p.Start(), p.HighWatermark()
	e := &Error{Status: http.StatusRequestedRangeNotSatisfiable, Code: "offset_out_of_range", Start: &start, HighWatermark: &hw,
		Hint: "leave from out to begin at the first offset that is kept"}
	e.Message = "offset " + strconv.FormatInt(off, 10) + " is outside [" + strconv.FormatInt(start, 10) + ", " +
		strconv.FormatInt(hw, 10) + "] of partition " + strconv.Itoa(p.Index())
	return e
}

// ParseTime reads a query parameter: RFC 3339 or milliseconds since 1970.
func ParseTime(name, s string) (int64, error) {
	if ms, err := strconv.ParseInt(s, 10, 64); err == nil {
		return ms, nil
	}
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		return 0, badRequest("bad_time", "%s=%q is neither RFC 3339 (2026-01-31T13:00:00Z) nor milliseconds since 1970", name, s)
	}
	// A record carries whole milliseconds: rounding a bound up keeps
	// "from 00:00:00.0005" from including 00:00:00.000.
	ms := t.UnixMilli()
	if t.After(time.UnixMilli(ms)) {
		ms++
	}
	return ms, nil
}
