package storehttp

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"tailrace/storage/record"
)

// input is one record of a POST, in the shape in which records are given out.
type input struct {
	Key           *string         `json:"key"`
	KeyEncoding   string          `json:"key_encoding"`
	Value         json.RawMessage `json:"value"`
	ValueEncoding string          `json:"value_encoding"`
	Headers       json.RawMessage `json:"headers"`   // [{"key","value","value_encoding"}] or {"key":"value"}
	Timestamp     json.RawMessage `json:"timestamp"` // ms or RFC 3339; absent = now
	Partition     *int            `json:"partition"`

	// Given out with records, ignored when read, so that what a query printed can be posted again.
	Topic  json.RawMessage `json:"topic"`
	Offset json.RawMessage `json:"offset"`
	Time   json.RawMessage `json:"time"`
	Origin json.RawMessage `json:"origin"`
}

type inputHeader struct {
	Key           string  `json:"key"`
	Value         *string `json:"value"`
	ValueEncoding string  `json:"value_encoding"`
}

// Produced answers a POST: where each record is, in the order given.
type Produced struct {
	Records []ProducedRecord `json:"records"`
}

// ProducedRecord is the place of one stored record.
type ProducedRecord struct {
	Partition int   `json:"partition"`
	Offset    int64 `json:"offset"`
	Timestamp int64 `json:"timestamp"`
}

// produce appends the records of a POST as one commit: all of them are durable
// when it answers 200, and none is stored when it refuses.
func (h *Handler) produce(w http.ResponseWriter, r *http.Request) {
	resp, err := h.produceBody(w, r)
	if err != nil {
		h.stats.writesRefused.Add(1)
		WriteError(w, storeError(err))
		return
	}
	h.stats.written.Add(int64(len(resp.Records)))
	writeJSON(w, http.StatusOK, resp)
}

func (h *Handler) produceBody(w http.ResponseWriter, r *http.Request) (*Produced, error) {
	name := r.PathValue("topic")
	if err := h.origin.Check(r); err != nil {
		return nil, &Error{Status: http.StatusForbidden, Code: "cross_origin", Message: "a page of another origin may not write here"}
	}
	if Internal(name) {
		return nil, &Error{Status: http.StatusForbidden, Code: "internal_topic", Message: fmt.Sprintf("topic %q is written by Tailrace only", name)}
	}
	t, err := h.log.Topic(r.Context(), name)
	if err != nil {
		return nil, err
	}
	if t == nil && h.cfg.Create == nil {
		return nil, unknownTopic(name)
	}
	rc := http.NewResponseController(w)
	rc.SetReadDeadline(time.Now().Add(h.cfg.ReadTimeout)) // not every ResponseWriter has deadlines
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, h.cfg.MaxBodyBytes))
	if err != nil {
		var tooBig *http.MaxBytesError
		if errors.As(err, &tooBig) {
			return nil, &Error{Status: http.StatusRequestEntityTooLarge, Code: "body_too_large",
				Message: fmt.Sprintf("the body is larger than %d bytes", h.cfg.MaxBodyBytes), Hint: "send it in several requests"}
		}
		return nil, badRequest("bad_body", "reading the body: %v", err)
	}
	rc.SetReadDeadline(time.Time{}) // else it would end the request while the disk works
	items, err := h.parseBody(r, body)
	if err != nil {
		return nil, err
	}
	if len(items) == 0 {
		return nil, badRequest("no_records", "the request holds no records")
	}
	if t == nil {
		if t, err = h.cfg.Create(r.Context(), name); err != nil {
			return nil, err
		}
	}
	return h.commit(r.Context(), t, items)
}

var turn atomic.Uint32 // spreads records without key and partition; any start is as good

func (h *Handler) commit(ctx context.Context, t Topic, items []Item) (*Produced, error) {
	parts := len(t.Parts())
	if parts == 0 {
		return nil, unknownTopic(t.Name())
	}
	keyless := int(turn.Add(1)) % parts // one partition per request keeps its records together
	compacted := t.Compacted()
	for i := range items {
		it := &items[i]
		if compacted && it.Key == nil {
			return nil, &Error{Status: http.StatusUnprocessableEntity, Code: "no_key", Line: i + 1,
				Message: fmt.Sprintf("record %d has no key, and topic %s is compacted (cleanup.policy)", i+1, t.Name())}
		}
		switch {
		case it.Partition < 0 && it.Key != nil:
			it.Partition = PartitionForKey(it.Key, parts)
		case it.Partition < 0:
			it.Partition = keyless
		case it.Partition >= parts:
			return nil, &Error{Status: http.StatusNotFound, Code: "unknown_partition", Line: i + 1,
				Message: fmt.Sprintf("record %d: topic %s has no partition %d", i+1, t.Name(), it.Partition)}
		}
	}
	if err := h.log.Append(ctx, t, items); err != nil {
		return nil, err
	}
	resp := &Produced{Records: make([]ProducedRecord, len(items))}
	for i, it := range items {
		resp.Records[i] = ProducedRecord{it.Partition, it.Offset, it.Timestamp}
	}
	return resp, nil
}

// parseBody reads records as the content type says: JSON with "records", one
// JSON object a line, or any other type: the body is one record's value.
func (h *Handler) parseBody(r *http.Request, body []byte) ([]Item, error) {
	ct := r.Header.Get("Content-Type")
	media, _, err := mime.ParseMediaType(ct)
	if err != nil && ct != "" {
		return nil, badRequest("bad_content_type", "Content-Type %q does not parse", ct)
	}
	switch media {
	case "application/json":
		var doc struct {
			Records []json.RawMessage `json:"records"`
		}
		if err := strict(body, &doc); err != nil {
			e := badRequest("bad_json", "the body is not {\"records\":[…]}: %v", err)
			e.Hint = "to store a JSON document as it is, send it with Content-Type application/octet-stream"
			return nil, e
		}
		if len(doc.Records) > h.cfg.MaxRecords {
			return nil, h.tooMany()
		}
		items := make([]Item, 0, len(doc.Records))
		for i, raw := range doc.Records {
			it, err := h.parseItem(raw)
			if err != nil {
				return nil, badRequest("bad_record", "record %d: %v", i+1, err)
			}
			items = append(items, it)
		}
		return items, h.checkSizes(items)
	case "application/x-ndjson", "application/jsonl", "application/x-jsonlines":
		var items []Item
		sc := bufio.NewScanner(bytes.NewReader(body))
		sc.Buffer(nil, len(body)+1)
		for line := 1; sc.Scan(); line++ {
			if len(bytes.TrimSpace(sc.Bytes())) == 0 {
				continue
			}
			if len(items) == h.cfg.MaxRecords {
				return nil, h.tooMany()
			}
			it, err := h.parseItem(sc.Bytes())
			if err != nil {
				e := badRequest("bad_record", "line %d: %v", line, err)
				e.Line = line
				return nil, e
			}
			items = append(items, it)
		}
		return items, h.checkSizes(items)
	}
	it := Item{Partition: -1, Timestamp: h.cfg.Now().UnixMilli(), Value: body}
	v := r.URL.Query()
	if v.Has("key") {
		it.Key = []byte(v.Get("key"))
	}
	if s := v.Get("partition"); s != "" {
		if it.Partition, err = strconv.Atoi(s); err != nil || it.Partition < 0 {
			return nil, badRequest("bad_partition", "partition %q is not a number", s)
		}
	}
	if s := v.Get("timestamp"); s != "" {
		if it.Timestamp, err = ParseTime("timestamp", s); err != nil {
			return nil, err
		}
	}
	if media != "" {
		it.Headers = []record.Header{{Key: "content-type", Value: []byte(ct)}}
	}
	items := []Item{it}
	return items, h.checkSizes(items)
}

func (h *Handler) tooMany() error {
	return &Error{Status: http.StatusRequestEntityTooLarge, Code: "too_many_records",
		Message: fmt.Sprintf("more than %d records in one request", h.cfg.MaxRecords), Hint: "send them in several requests"}
}

// maxTime is the last millisecond of the year 9999, which RFC 3339 can still write.
const maxRecordTime = 253402300799999

func (h *Handler) checkSizes(items []Item) error {
	for i := range items {
		it := &items[i]
		n := len(it.Key) + len(it.Value)
		for _, hd := range it.Headers {
			if hd.Key == originHeader {
				return badRequest("reserved_header", "record %d: header %q names a record's origin and is written by nodes only", i+1, originHeader)
			}
			n += len(hd.Key) + len(hd.Value)
		}
		if n > h.cfg.MaxRecordBytes {
			return &Error{Status: http.StatusRequestEntityTooLarge, Code: "record_too_large",
				Message: fmt.Sprintf("record %d has %d bytes, the limit is %d", i+1, n, h.cfg.MaxRecordBytes)}
		}
		if it.Timestamp < 0 || it.Timestamp > maxRecordTime {
			return badRequest("bad_time", "record %d: timestamp %d is outside the years 1970 to 9999", i+1, it.Timestamp)
		}
	}
	return nil
}

func (h *Handler) parseItem(raw []byte) (Item, error) {
	var in input
	it := Item{Partition: -1, Timestamp: h.cfg.Now().UnixMilli()}
	if err := strict(raw, &in); err != nil {
		return it, err
	}
	var err error
	if in.Key != nil {
		if it.Key, err = decodeText(*in.Key, in.KeyEncoding); err != nil {
			return it, fmt.Errorf("key: %w", err)
		}
	}
	if it.Value, err = decodeValue(in.Value, in.ValueEncoding); err != nil {
		return it, fmt.Errorf("value: %w", err)
	}
	if it.Headers, err = decodeHeaders(in.Headers); err != nil {
		return it, fmt.Errorf("headers: %w", err)
	}
	if len(in.Timestamp) > 0 && string(in.Timestamp) != "null" {
		s := string(in.Timestamp)
		if s[0] == '"' {
			if err := json.Unmarshal(in.Timestamp, &s); err != nil {
				return it, err
			}
		}
		if it.Timestamp, err = ParseTime("timestamp", s); err != nil {
			return it, err
		}
	}
	if in.Partition != nil {
		if it.Partition = *in.Partition; it.Partition < 0 {
			return it, fmt.Errorf("partition %d is negative", it.Partition)
		}
	}
	return it, nil
}

func decodeValue(raw json.RawMessage, enc string) ([]byte, error) {
	switch {
	case len(raw) == 0 || string(raw) == "null" && enc != encJSON:
		return nil, nil
	case enc == encJSON || enc == "" && raw[0] != '"':
		var buf bytes.Buffer
		if err := json.Compact(&buf, raw); err != nil {
			return nil, err
		}
		return buf.Bytes(), nil
	case raw[0] != '"':
		return nil, fmt.Errorf("encoding %q wants a string", enc)
	}
	var s string
	if err := json.Unmarshal(raw, &s); err != nil {
		return nil, err
	}
	return decodeText(s, enc)
}

func decodeText(s, enc string) ([]byte, error) {
	switch enc {
	case "", encText:
		return []byte(s), nil
	case encBase64:
		b, err := base64.StdEncoding.DecodeString(s)
		if err != nil {
			return nil, fmt.Errorf("not base64: %w", err)
		}
		return b, nil
	case encNull:
		return nil, nil
	}
	return nil, fmt.Errorf("unknown encoding %q (text, base64; json for values)", enc)
}

func decodeHeaders(raw json.RawMessage) ([]record.Header, error) {
	if len(raw) == 0 || string(raw) == "null" {
		return nil, nil
	}
	if raw[0] == '{' {
		// Read token by token: a map would lose the order and repeated names.
		dec := json.NewDecoder(bytes.NewReader(raw))
		dec.Token()
		var out []record.Header
		for dec.More() {
			name, err := dec.Token()
			if err != nil {
				return nil, err
			}
			var s *string
			if err := dec.Decode(&s); err != nil {
				return nil, fmt.Errorf("%q: %w", name, err)
			}
			hd := record.Header{Key: name.(string)} // an object's names are strings
			if s != nil {
				hd.Value = []byte(*s)
			}
			out = append(out, hd)
		}
		return out, nil
	}
	var list []inputHeader
	if err := strict(raw, &list); err != nil {
		return nil, err
	}
	out := make([]record.Header, 0, len(list))
	for _, in := range list {
		hd := record.Header{Key: in.Key}
		if in.Value != nil {
			var err error
			if hd.Value, err = decodeText(*in.Value, in.ValueEncoding); err != nil {
				return nil, fmt.Errorf("%q: %w", in.Key, err)
			}
		}
		out = append(out, hd)
	}
	return out, nil
}

// strict decodes exactly one JSON value and refuses unknown names.
func strict(b []byte, v any) error {
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return errors.New("it ends too early")
		}
		return err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("there is something after the JSON value")
	}
	return nil
}

// PartitionForKey chooses a partition as Kafka's Java client does (murmur2),
// so that a key lands in the same partition whichever way it is produced.
func PartitionForKey(key []byte, partitions int) int {
	const m, r = 0x5bd1e995, 24
	h := uint32(0x9747b28c) ^ uint32(len(key))
	for len(key) >= 4 {
		k := uint32(key[0]) | uint32(key[1])<<8 | uint32(key[2])<<16 | uint32(key[3])<<24
		k *= m
		k ^= k >> r
		k *= m
		h = h*m ^ k
		key = key[4:]
	}
	switch len(key) {
	case 3:
		h ^= uint32(key[2]) << 16
		fallthrough
	case 2:
		h ^= uint32(key[1]) << 8
		fallthrough
	case 1:
		h = (h ^ uint32(key[0])) * m
	}
	h ^= h >> 13
	h *= m
	h ^= h >> 15
	return int(h&0x7fffffff) % partitions
}
