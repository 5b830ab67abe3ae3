package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// row is a record as the HTTP API writes it in NDJSON; the raw line is kept.
type row struct {
	Topic     string          `json:"topic"`
	Partition int             `json:"partition"`
	Offset    int64           `json:"offset"`
	Timestamp int64           `json:"timestamp"`
	Key       json.RawMessage `json:"key"`
	Origin    struct {
		Node   string `json:"node"`
		Epoch  string `json:"epoch"`
		Offset int64  `json:"offset"`
	} `json:"origin"`
	Headers []struct {
		Key string `json:"key"`
	} `json:"headers"`
}

// maxLine bounds one NDJSON line: a record of a few MB in base64 with its headers.
const maxLine = 64 << 20

type replayFlags struct {
	partition        int
	node, key        string
	fromOff, toOff   string
	from, to         string
	limit            int64
	format, out      string
	quiet, corrected bool
}

func newReplay(api *client) *cobra.Command {
	var f replayFlags
	c := &cobra.Command{
		Use:   "replay TOPIC",
		Short: "Read a topic again: by offset, time, device or node",
		Long: `Writes the records of a topic, oldest first in each partition, as often as wanted and the
same every time. Narrow it by partition and offsets, by time [from, to), by device (the
record's key) and by node. Progress goes to standard error.`,
		Example: `  tailrace replay wind.telemetry
  tailrace replay wind.telemetry --from 2026-11-01T00:00:00Z --to 2026-11-02T00:00:00Z --format csv --out day.csv
  tailrace replay wind.telemetry --device MRG_T01 --limit 10
  tailrace replay wind.telemetry --partition 0 --from-offset 5000 --to-offset 6000
  tailrace replay wind.telemetry --url http://127.0.0.1:8081     # on site, from the node`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return replay(c.Context(), api, args[0], f, c.OutOrStdout(), c.ErrOrStderr())
		},
	}
	p := c.Flags()
	p.IntVar(&f.partition, "partition", -1, "one partition only")
	p.StringVar(&f.node, "node", "", "records of this node only")
	p.StringVar(&f.key, "device", "", "records of this device (record key) only")
	p.StringVar(&f.key, "key", "", "the same as --device")
	p.StringVar(&f.fromOff, "from-offset", "", "first offset (needs --partition where there are several); negative counts from the end")
	p.StringVar(&f.toOff, "to-offset", "", "offset to stop before")
	p.StringVar(&f.from, "from", "", "records of this time or later: RFC 3339, ms since 1970, or a span back such as 15m")
	p.StringVar(&f.to, "to", "", "records before this time")
	p.Int64Var(&f.limit, "limit", 0, "at most so many records (0: all)")
	p.StringVar(&f.format, "format", "ndjson", "ndjson or csv")
	p.StringVar(&f.out, "out", "", "file to write (default: standard output)")
	p.BoolVar(&f.corrected, "corrected", false, "correct the times of records that a node wrote while its clock was wrong; --from and --to still mean the times as stored")
	p.BoolVarP(&f.quiet, "quiet", "q", false, "no progress")
	return c
}

func (f *replayFlags) query(now time.Time) (url.Values, error) {
	if f.format != "ndjson" && f.format != "csv" {
		return nil, &exitError{exitUsage, fmt.Errorf("--format %s: use ndjson or csv", f.format)}
	}
	q := url.Values{"limit": {"0"}}
	if f.partition >= 0 {
		q.Set("partition", strconv.Itoa(f.partition))
	}
	if f.node == "" && f.limit > 0 { // a node filter is ours, so the limit is, too
		q.Set("limit", strconv.FormatInt(f.limit, 10))
	}
	for name, v := range map[string]string{"key": f.key, "from": f.fromOff, "to": f.toOff} {
		if v != "" {
			q.Set(name, v)
		}
	}
	for name, v := range map[string]string{"from_time": f.from, "to_time": f.to} {
		if v != "" {
			q.Set(name, timeArg(v, now))
		}
	}
	return q, nil
}

func replay(ctx context.Context, api *client, topic string, f replayFlags, stdout, stderr io.Writer) (err error) {
	q, err := f.query(time.Now())
	if err != nil {
		return err
	}
	out := stdout
	if f.out != "" {
		file, err := os.Create(f.out)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, file.Close()) }()
		out = file
	}
	var fix corrections
	if f.corrected {
		if fix, err = loadCorrections(ctx, api, topic); err != nil {
			return err
		}
	}
	resp, err := api.get(ctx, "/api/v1/topics/"+url.PathEscape(topic)+"/records", q)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	w := bufio.NewWriterSize(out, 64<<10)
	defer func() { err = errors.Join(err, w.Flush()) }()
	sink := rowSink(w, f.format)
	prog := newProgress(stderr, f.quiet || f.out == "" && isTerminal(os.Stdout), "records")
	defer prog.done()
	n := int64(0)
	err = lines(resp.Body, func(line []byte) error {
		var r row
		if err := json.Unmarshal(line, &r); err != nil {
			return fmt.Errorf("the server sent a line that is not a record: %w", err)
		}
		if e := streamError(line); e != nil {
			return e
		}
		if f.node != "" && r.Origin.Node != f.node {
			return nil
		}
		if f.corrected {
			if line, err = fix.apply(&r, line); err != nil {
				return err
			}
		}
		if err := sink(line); err != nil {
			return err
		}
		n++
		prog.add(1)
		if f.limit > 0 && n >= f.limit {
			return io.EOF
		}
		return nil
	})
	if errors.Is(err, io.EOF) {
		err = nil
	}
	if err != nil && ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// streamError recognises the line with which the API ends an answer that failed
// after its first byte: an answer cut short must not look complete.
func streamError(line []byte) error {
	if !strings.HasPrefix(string(line), `{"error"`) {
		return nil
	}
	var body struct {
		Error *apiError `json:"error"`
	}
	if json.Unmarshal(line, &body) == nil && body.Error != nil {
		return body.Error
	}
	return nil
}

func lines(r io.Reader, f func([]byte) error) error {
	s := bufio.NewScanner(r)
	s.Buffer(make([]byte, 0, 64<<10), maxLine)
	for s.Scan() {
		if len(s.Bytes()) == 0 {
			continue
		}
		if err := f(s.Bytes()); err != nil {
			return err
		}
	}
	return s.Err()
}

// rowSink writes NDJSON lines as they are, or CSV with one column per leaf of the
// first record's JSON value: {"signals":{"rpm":1}} makes a column signals.rpm.
func rowSink(w io.Writer, format string) func([]byte) error {
	if format == "ndjson" {
		return func(line []byte) error {
			if _, err := w.Write(line); err != nil {
				return err
			}
			_, err := w.Write([]byte{'\n'})
			return err
		}
	}
	cw := csv.NewWriter(w)
	var columns []string
	return func(line []byte) error {
		var r struct {
			row
			Key   any             `json:"key"`
			Value json.RawMessage `json:"value"`
		}
		if err := json.Unmarshal(line, &r); err != nil {
			return err
		}
		var names []string
		leaves := map[string]string{}
		flatten("", r.Value, 0, func(name, v string) {
			names = append(names, name)
			leaves[name] = v
		})
		if columns == nil {
			columns = names
			if err := cw.Write(append([]string{"partition", "offset", "time", "node", "key"}, columns...)); err != nil {
				return err
			}
		}
		rec := []string{strconv.Itoa(r.Partition), strconv.FormatInt(r.Offset, 10),
			time.UnixMilli(r.Timestamp).UTC().Format(time.RFC3339Nano), r.Origin.Node, text(r.Key)}
		for _, c := range columns {
			rec = append(rec, leaves[c])
		}
		if err := cw.Write(rec); err != nil {
			return err
		}
		cw.Flush()
		return cw.Error()
	}
}

// maxNesting bounds how deep an object is taken apart; below it a cell is JSON.
const maxNesting = 8

// flatten calls f for each leaf of a JSON value in order, with a dotted name;
// arrays are leaves. A value that is no object is one leaf "value".
func flatten(prefix string, v json.RawMessage, depth int, f func(name, v string)) {
	d := json.NewDecoder(bytes.NewReader(v))
	if t, err := d.Token(); err != nil || t != json.Delim('{') || depth == maxNesting {
		if prefix == "" {
			prefix = "value"
		}
		f(prefix, rawText(v))
		return
	}
	for d.More() {
		k, err := d.Token()
		if err != nil {
			return
		}
		var field json.RawMessage
		if d.Decode(&field) != nil {
			return
		}
		name, _ := k.(string)
		if prefix != "" {
			name = prefix + "." + name
		}
		flatten(name, field, depth+1, f)
	}
}

func text(v any) string {
	if v == nil {
		return ""
	}
	return fmt.Sprint(v)
}

// rawText is a JSON value as a CSV cell: strings without quotes, null empty.
func rawText(v json.RawMessage) string {
	var s string
	if json.Unmarshal(v, &s) == nil {
		return s
	}
	if string(v) == "null" {
		return ""
	}
	return string(v)
}
