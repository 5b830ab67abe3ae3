package console

import (
	"cmp"
	"encoding/base64"
	"net/http"
	"slices"
	"sync"
	"time"
	"unicode/utf8"

	"tailrace/storage/record"
	"tailrace/storage/storehttp"
)

const (
	latestRows   = 25
	sampleBytes  = 4 << 20 // read at most of one topic for a page
	maxCellBytes = 400
)

type topicData struct {
	Info    storehttp.TopicInfo
	Kafka   string
	Field   string
	Fields  []string
	Span    string
	Spans   []string
	Records recordsData
}

type recordsData struct {
	Topic string
	Rows  []row
}

type row struct {
	Partition        int
	Offset           int64
	Time             string
	Key, Value, Node string
	ts               int64
}

// decompressors are kept: a page reads the same topic every second.
var decompressors = sync.Pool{New: func() any { return record.NewDecompressor(0) }}

// tailRead visits about the last n records of each of a topic's partitions, in
// offset order per partition, reading at most sampleBytes.
func tailRead(t storehttp.Topic, n int64, f func(p storehttp.Partition, r *record.Record, node string)) error {
	parts := t.Parts()
	for _, p := range parts {
		from := max(p.Start(), p.HighWatermark()-n)
		if _, err := readFrom(p, from, sampleBytes/max(1, len(parts)), f); err != nil {
			return err
		}
	}
	return nil
}

// readFrom visits records from an offset to the end, or until budget bytes were
// read; it returns the offset to go on from.
func readFrom(p storehttp.Partition, from int64, budget int, f func(p storehttp.Partition, r *record.Record, node string)) (int64, error) {
	d := decompressors.Get().(*record.Decompressor)
	defer decompressors.Put(d)
	var buf []byte
	for from < p.HighWatermark() && budget > 0 {
		from = max(from, p.Start())
		out, next, err := p.Read(buf[:0], from, 256<<10)
		if err != nil {
			return from, err
		}
		if next <= from {
			break
		}
		budget -= len(out)
		buf = out
		for rest := out; len(rest) > 0; {
			var b record.Batch
			if b, rest, err = record.Next(rest); err != nil {
				return from, err
			}
			o, _ := p.Origin(b.BaseOffset())
			it := b.Iter(d)
			for it.Next() {
				if r := it.Record(); r.Offset >= from {
					f(p, r, o.Node)
				}
			}
			if err := it.Err(); err != nil {
				return from, err
			}
		}
		from = next
	}
	return from, nil
}

func (h *Handler) latest(t storehttp.Topic) (recordsData, error) {
	d := recordsData{Topic: t.Name()}
	err := tailRead(t, latestRows, func(p storehttp.Partition, r *record.Record, node string) {
		d.Rows = append(d.Rows, row{Partition: p.Index(), Offset: r.Offset, Time: time.UnixMilli(r.Timestamp).UTC().Format("2006-01-02 15:04:05.000"),
			Key: cell(r.Key), Value: cell(r.Value), Node: node, ts: r.Timestamp})
	})
	slices.SortStableFunc(d.Rows, func(a, b row) int {
		return cmp.Or(cmp.Compare(b.ts, a.ts), cmp.Compare(a.Partition, b.Partition), cmp.Compare(b.Offset, a.Offset))
	})
	d.Rows = d.Rows[:min(latestRows, len(d.Rows))]
	return d, err
}

// cell is bytes as a table shows them.
func cell(b []byte) string {
	if b == nil {
		return "–"
	}
	cut := false
	if len(b) > maxCellBytes {
		b, cut = b[:maxCellBytes], true
		for i := 0; i < utf8.UTFMax && len(b) > 0 && !utf8.Valid(b); i++ { // do not cut a character
			b = b[:len(b)-1]
		}
	}
	s := string(b)
	if !utf8.Valid(b) {
		s = "base64:" + base64.StdEncoding.EncodeToString(b[:min(len(b), 120)])
	}
	if cut {
		s += " …"
	}
	return s
}

func (h *Handler) lookup(w http.ResponseWriter, r *http.Request) storehttp.Topic {
	t, err := h.cfg.Log.Topic(r.Context(), r.PathValue("topic"))
	switch {
	case err != nil:
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return nil
	case t == nil:
		http.Error(w, "there is no such topic", http.StatusNotFound)
		return nil
	}
	return t
}

func (h *Handler) topicPage(w http.ResponseWriter, r *http.Request) {
	t := h.lookup(w, r)
	if t == nil {
		return
	}
	rows, err := h.latest(t)
	if err != nil {
		h.cfg.Logger.Warn("console topic page", "topic", t.Name(), "error", err)
	}
	c := newChart(t, r.URL.Query().Get("field"), r.URL.Query().Get("span"))
	d := topicData{Info: storehttp.Describe(t, true), Kafka: h.cfg.Fleet.KafkaAddr(), Field: c.field, Fields: c.fields,
		Span: c.spanName, Spans: spanNames(), Records: rows}
	h.render(w, "topic", t.Name(), "topics", d)
}

func (h *Handler) recordEvents(w http.ResponseWriter, r *http.Request) {
	t := h.lookup(w, r)
	if t == nil {
		return
	}
	end, first := int64(0), true
	var last []byte
	h.stream(w, r, "", func() ([]byte, error) {
		now := int64(0)
		for _, p := range t.Parts() {
			now += p.HighWatermark()
		}
		if !first && now == end {
			return last, nil
		}
		first, end = false, now
		d, err := h.latest(t)
		if err != nil {
			return nil, err
		}
		last, err = h.fragment("topic", d)
		return last, err
	})
}

func (h *Handler) chartEvents(w http.ResponseWriter, r *http.Request) {
	t := h.lookup(w, r)
	if t == nil {
		return
	}
	c := newChart(t, r.URL.Query().Get("field"), r.URL.Query().Get("span"))
	h.stream(w, r, "chart", func() ([]byte, error) {
		c.follow()
		return c.json()
	})
}
