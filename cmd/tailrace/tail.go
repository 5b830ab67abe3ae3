package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

func newTail(api *client) *cobra.Command {
	var (
		f      replayFlags
		last   int
		output string
	)
	c := &cobra.Command{
		Use:   "tail TOPIC",
		Short: "Watch a topic as records arrive",
		Long: `Prints records as they become durable, until Ctrl-C. On a hub that is what nodes
replicated; on a node (--url http://127.0.0.1:8081) what its devices sent.`,
		Example: `  tailrace tail wind.telemetry
  tailrace tail wind.telemetry --device MRG_T01 --last 5
  tailrace tail wind.telemetry -o json | jq .value.power_kw`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if output != "text" && output != "json" {
				return &exitError{exitUsage, fmt.Errorf("-o %s: use text or json", output)}
			}
			q := url.Values{}
			if f.key != "" {
				q.Set("key", f.key)
			}
			if f.partition >= 0 {
				q.Set("partition", strconv.Itoa(f.partition))
			}
			if last > 0 {
				q.Set("from", strconv.Itoa(-last))
			}
			return tail(c.Context(), api, args[0], q, f.node, f.limit, output, c.OutOrStdout())
		},
	}
	p := c.Flags()
	p.IntVar(&f.partition, "partition", -1, "one partition only")
	p.StringVar(&f.node, "node", "", "records of this node only")
	p.StringVar(&f.key, "device", "", "records of this device (record key) only")
	p.StringVar(&f.key, "key", "", "the same as --device")
	p.IntVarP(&last, "last", "n", 0, "begin so many records back in each partition")
	p.Int64Var(&f.limit, "limit", 0, "end after so many records (0: never)")
	p.StringVarP(&output, "output", "o", "text", "text or json")
	return c
}

func tail(ctx context.Context, api *client, topic string, q url.Values, node string, limit int64, output string, out io.Writer) error {
	resp, err := api.get(ctx, "/api/v1/topics/"+url.PathEscape(topic)+"/tail", q)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	w := bufio.NewWriter(out)
	n := int64(0)
	err = events(resp.Body, func(event string, data []byte) error {
		switch event {
		case "", "message", "record":
		case "error":
			var e apiError
			if json.Unmarshal(data, &e) == nil && e.Message != "" {
				return &e
			}
			return fmt.Errorf("the server ended the stream: %s", data)
		case "skipped":
			fmt.Fprintf(w, "... retention removed records before they were read: %s\n", data)
			return w.Flush()
		default: // keep-alives and kinds that a newer server knows
			return nil
		}
		var r struct {
			row
			Key   any             `json:"key"`
			Value json.RawMessage `json:"value"`
		}
		if err := json.Unmarshal(data, &r); err != nil {
			return fmt.Errorf("the server sent something that is not a record: %w", err)
		}
		if node != "" && r.Origin.Node != node {
			return nil
		}
		if output == "json" {
			w.Write(data)
			w.WriteByte('\n')
		} else {
			fmt.Fprintf(w, "%s  %d/%-8d %-14s %s\n", time.UnixMilli(r.Timestamp).Format("2006-01-02 15:04:05.000"),
				r.Partition, r.Offset, text(r.Key), rawText(r.Value))
		}
		if err := w.Flush(); err != nil {
			return err
		}
		if n++; limit > 0 && n >= limit {
			return io.EOF
		}
		return nil
	})
	switch {
	case errors.Is(err, io.EOF), ctx.Err() != nil:
		return nil // Ctrl-C is how a tail ends
	case err == nil:
		return errors.New("the server closed the stream")
	}
	return err
}

// events reads Server-Sent Events (WHATWG HTML, 9.2) and calls f for each.
func events(r io.Reader, f func(event string, data []byte) error) error {
	s := bufio.NewScanner(r)
	s.Buffer(make([]byte, 0, 64<<10), maxLine)
	var event string
	var data []byte
	for s.Scan() {
		line := s.Text()
		switch {
		case line == "":
			if len(data) > 0 {
				if err := f(event, data); err != nil {
					return err
				}
			}
			event, data = "", data[:0]
		case strings.HasPrefix(line, "event:"):
			event = strings.TrimSpace(line[len("event:"):])
		case strings.HasPrefix(line, "data:"):
			if len(data) > 0 {
				data = append(data, '\n')
			}
			data = append(data, strings.TrimPrefix(line[len("data:"):], " ")...)
		}
	}
	return s.Err()
}
