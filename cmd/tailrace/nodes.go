package main

import (
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
)

type nodeInfo struct {
	Node        string  `json:"node"`
	State       string  `json:"state"`
	Dark        bool    `json:"dark"`
	Fenced      string  `json:"fenced"`
	LastSeenAgo float64 `json:"last_seen_seconds"`
	LagRecords  int64   `json:"lag_records"`
	LagBytes    int64   `json:"lag_bytes"`
	LagSeconds  float64 `json:"lag_seconds"`
	Lost        int64   `json:"lost_records"`
	Stored      int64   `json:"stored_records"`
	RTTSeconds  float64 `json:"rtt_seconds"`
}

func newNodes(api *client) *cobra.Command {
	var output string
	c := &cobra.Command{
		Use:   "nodes",
		Short: "List the nodes of a hub; exit status 1 when one is dark or fenced",
		Long: `Lists what the hub knows of its nodes. The exit status is for monitoring: 0 when every
node is connected, 1 when one is dark (not connected) or fenced (its log is not the one
the hub has seen).`,
		Example: `  tailrace nodes
  tailrace nodes -o json | jq '.nodes[] | select(.dark) | .node'
  tailrace nodes >/dev/null || mail -s "a node is dark" ops@example.org </dev/null`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if output != "text" && output != "json" {
				return &exitError{exitUsage, fmt.Errorf("-o %s: use text or json", output)}
			}
			var raw json.RawMessage
			if err := api.getJSON(c.Context(), "/api/v1/nodes", nil, &raw); err != nil {
				return err
			}
			var list struct {
				Nodes []nodeInfo `json:"nodes"`
			}
			if err := json.Unmarshal(raw, &list); err != nil {
				return err
			}
			if output == "json" {
				fmt.Fprintln(c.OutOrStdout(), string(raw))
			} else if err := printNodes(c.OutOrStdout(), list.Nodes); err != nil {
				return err
			}
			return darkError(list.Nodes)
		},
	}
	c.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	return c
}

func printNodes(w io.Writer, ns []nodeInfo) error {
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(tw, "NODE\tSTATE\tLAST SEEN\tSTORED\tLAG\tLAG BYTES\tBEHIND\tLOST\tRTT")
	for _, n := range ns {
		fmt.Fprintf(tw, "%s\t%s\t%s ago\t%d\t%d\t%s\t%s\t%d\t%s\n", n.Node, n.State, seconds(n.LastSeenAgo), n.Stored,
			n.LagRecords, byteSize(n.LagBytes), seconds(n.LagSeconds), n.Lost, seconds(n.RTTSeconds))
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	for _, n := range ns {
		if n.Fenced != "" {
			fmt.Fprintf(w, "%s is fenced: %s\n", n.Node, n.Fenced)
		}
	}
	if len(ns) == 0 {
		_, err := fmt.Fprintln(w, "(no node has connected yet)")
		return err
	}
	return nil
}

// darkError is the exit status: an error naming every node that needs a look.
func darkError(ns []nodeInfo) error {
	var bad []string
	for _, n := range ns {
		if n.Dark || n.Fenced != "" {
			bad = append(bad, n.Node)
		}
	}
	if len(bad) == 0 {
		return nil
	}
	return fmt.Errorf("%d of %d nodes dark or fenced: %v", len(bad), len(ns), bad)
}

func seconds(s float64) string {
	d := time.Duration(s * float64(time.Second))
	switch {
	case d >= time.Minute:
		return d.Round(time.Second).String()
	case d >= time.Second:
		return d.Round(100 * time.Millisecond).String()
	}
	return d.Round(100 * time.Microsecond).String()
}
