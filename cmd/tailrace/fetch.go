package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
)

type fetchInfo struct {
	ID     string `json:"id"`
	Node   string `json:"node"`
	Topic  string `json:"topic"`
	From   string `json:"from"`
	To     string `json:"to"`
	State  string `json:"state"`
	Note   string `json:"note"`
	Online bool   `json:"node_connected"`
	Oldest string `json:"node_has_from"`
	Wanted int64  `json:"wanted_offsets"`
	Stored int64  `json:"stored_records"`
	Lost   int64  `json:"lost_records"`
}

func newFetch(api *client) *cobra.Command {
	var from, to, output, cancel, node string
	var list, wait bool
	c := &cobra.Command{
		Use:   "fetch NODE TOPIC --from TIME [--to TIME]",
		Short: "Ask a node for a span of time of a topic that stays there (mode: on-demand)",
		Long: `Asks for the records of a span of time of a topic that the node keeps to itself (mode:
on-demand in its configuration). They come into the topic at the hub as other records do: once, whatever
happens on the way. A node that is away answers when it is back; the request waits at the hub, also over
its restarts. Records come in whole batches of the node, so a few around the span come along.

What the node has no longer is declared lost: LOST here, and tailrace losses.

  queued      the node was not asked yet: it is away
  delivering  it is on its way
  done        everything that the node had of the span is in the topic
  failed      see the note
  cancelled   what had come stays`,
		Example: `  tailrace fetch node-7 vibration.raw --from 2026-11-01T08:00:00Z --to 2026-11-01T09:00:00Z --wait
  tailrace fetch --list
  tailrace fetch --cancel 3f9a02c4d1e7`,
		Args: func(c *cobra.Command, args []string) error {
			if want := 2; list || cancel != "" {
				if want = 0; len(args) != want {
					return &exitError{exitUsage, fmt.Errorf("--list and --cancel take no node and topic")}
				}
			} else if len(args) != want || from == "" {
				return &exitError{exitUsage, fmt.Errorf("want NODE TOPIC --from TIME (see tailrace fetch --help)")}
			}
			if output != "text" && output != "json" {
				return &exitError{exitUsage, fmt.Errorf("-o %s: use text or json", output)}
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			ctx, w := c.Context(), c.OutOrStdout()
			switch {
			case list:
				return listFetches(ctx, api, w, node, output)
			case cancel != "":
				f, raw, err := fetchCall(ctx, api, http.MethodDelete, "/api/v1/fetches/"+url.PathEscape(cancel), nil)
				if err != nil {
					return err
				}
				return printFetch(w, f, raw, output)
			}
			now := time.Now()
			body, err := json.Marshal(map[string]string{"node": args[0], "topic": args[1], "from": timeArg(from, now), "to": timeArg(to, now)})
			if err != nil {
				return err
			}
			f, raw, err := fetchCall(ctx, api, http.MethodPost, "/api/v1/fetches", body)
			if err != nil {
				return err
			}
			if wait {
				if f, raw, err = waitFetch(ctx, api, f.ID); err != nil {
					return err
				}
			}
			if err := printFetch(w, f, raw, output); err != nil {
				return err
			}
			if f.State == "failed" || wait && f.State != "done" {
				return fmt.Errorf("fetch %s: %s %s", f.ID, f.State, f.Note)
			}
			return nil
		},
	}
	fl := c.Flags()
	fl.StringVar(&from, "from", "", "begin of the span: RFC 3339, ms since 1970, or a time back such as 15m")
	fl.StringVar(&to, "to", "", "end of the span, exclusive; default now")
	fl.BoolVar(&wait, "wait", false, "wait until it is done")
	fl.BoolVar(&list, "list", false, "list fetches, the newest first")
	fl.StringVar(&node, "node", "", "with --list: of this node only")
	fl.StringVar(&cancel, "cancel", "", "cancel the fetch of this id")
	fl.StringVarP(&output, "output", "o", "text", "text or json")
	return c
}

func fetchCall(ctx context.Context, api *client, method, path string, body []byte) (f fetchInfo, raw []byte, err error) {
	resp, err := api.do(ctx, method, path, nil, bytes.NewReader(body))
	if err != nil {
		return f, nil, err
	}
	defer resp.Body.Close()
	if raw, err = io.ReadAll(io.LimitReader(resp.Body, 1<<20)); err != nil {
		return f, nil, err
	}
	return f, raw, json.Unmarshal(raw, &f)
}

func fetches(ctx context.Context, api *client, node string) (list []fetchInfo, raw json.RawMessage, err error) {
	q := url.Values{}
	if node != "" {
		q.Set("node", node)
	}
	if err := api.getJSON(ctx, "/api/v1/fetches", q, &raw); err != nil {
		return nil, nil, err
	}
	var answer struct {
		Fetches []fetchInfo `json:"fetches"`
	}
	err = json.Unmarshal(raw, &answer)
	return answer.Fetches, raw, err
}

// waitFetch looks once a second until a fetch is over.
func waitFetch(ctx context.Context, api *client, id string) (f fetchInfo, raw []byte, err error) {
	t := time.NewTicker(time.Second)
	defer t.Stop()
	for {
		list, _, err := fetches(ctx, api, "")
		if err != nil {
			return f, nil, err
		}
		for _, f := range list {
			if f.ID == id && (f.State == "done" || f.State == "failed" || f.State == "cancelled") {
				raw, err := json.Marshal(f)
				return f, raw, err
			}
		}
		select {
		case <-ctx.Done():
			return f, nil, ctx.Err()
		case <-t.C:
		}
	}
}

func listFetches(ctx context.Context, api *client, w io.Writer, node, output string) error {
	list, raw, err := fetches(ctx, api, node)
	if err != nil {
		return err
	}
	if output == "json" {
		_, err := fmt.Fprintln(w, string(raw))
		return err
	}
	if len(list) == 0 {
		_, err := fmt.Fprintln(w, "no fetches")
		return err
	}
	return fetchTable(w, list)
}

func printFetch(w io.Writer, f fetchInfo, raw []byte, output string) error {
	if output == "json" {
		_, err := fmt.Fprintln(w, string(bytes.TrimSpace(raw)))
		return err
	}
	return fetchTable(w, []fetchInfo{f})
}

func fetchTable(w io.Writer, list []fetchInfo) error {
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(tw, "ID\tNODE\tTOPIC\tFROM\tTO\tSTATE\tHERE\tOF\tLOST\tNOTE")
	for _, f := range list {
		note := f.Note
		if note == "" && f.State == "queued" && !f.Online {
			note = "the node is not connected"
		}
		if note == "" && f.Lost > 0 && f.Oldest != "" {
			note = "the node has records from " + f.Oldest + " on"
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%s\t%d\t%d\t%d\t%s\n", f.ID, f.Node, f.Topic, f.From, f.To, f.State, f.Stored, f.Wanted, f.Lost, dash(note))
	}
	return tw.Flush()
}
