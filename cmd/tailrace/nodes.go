package main

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
)

type nodeInfo struct {
	Node        string  `json:"node"`
	State       string  `json:"state"`
	Dark        bool    `json:"dark"`
	Fenced      string  `json:"fenced"`
	LastSeen    string  `json:"last_seen"`
	LastSeenAgo float64 `json:"last_seen_seconds"`
	LagRecords  int64   `json:"lag_records"`
	LagBytes    int64   `json:"lag_bytes"`
	LagSeconds  float64 `json:"lag_seconds"`
	Lost        int64   `json:"lost_records"`
	Stored      int64   `json:"stored_records"`
	RTTSeconds  float64 `json:"rtt_seconds"`
	OtherCopy   string  `json:"other_copy"`
	Status      struct {
		Links []struct {
			Name      string `json:"name"`
			Interface string `json:"interface"`
			Monthly   int64  `json:"monthly_bytes"`
			Used      int64  `json:"used_bytes"`
			Left      int64  `json:"left_bytes"`
			Forecast  int64  `json:"forecast_bytes"`
			Ends      string `json:"period_ends"`
			Held      string `json:"held"`
		} `json:"links"`
	} `json:"status"`
	ClockOffset float64  `json:"clock_offset_seconds"`
	Drain       *float64 `json:"drain_seconds"`
	Refused     []struct {
		Topic  string `json:"topic"`
		Reason string `json:"reason"`
	} `json:"refused_topics"`
	Topics []struct {
		Topic            string   `json:"topic"`
		Partition        int      `json:"partition"`
		CentralTopic     string   `json:"central_topic"`
		CentralPartition int      `json:"central_partition"`
		Next             int64    `json:"next"`
		CompleteTo       int64    `json:"complete_to"`
		CompleteTime     string   `json:"complete_time"`
		LagRecords       int64    `json:"lag_records"`
		LagSeconds       float64  `json:"lag_seconds"`
		Stored           int64    `json:"stored_records"`
		Lost             int64    `json:"lost_records"`
		Mode             string   `json:"mode"`
		Priority         int      `json:"priority"`
		LagBytes         int64    `json:"lag_bytes"`
		AtNode           int64    `json:"at_node_records"`
		Drain            *float64 `json:"drain_seconds"`
		Wire             float64  `json:"wire_bytes_per_record"`
		Backfill         string   `json:"backfill_topic"`
	} `json:"topics"`
}

func newNodes(api *client) *cobra.Command {
	var output, node string
	var topics bool
	c := &cobra.Command{
		Use:   "nodes",
		Short: "List the nodes of a hub; exit status 1 when one is dark or fenced",
		Long: `Lists what the hub knows of its nodes. The exit status is for monitoring: 0 when every
node is connected, 1 when one is dark (not connected) or fenced (its log is not the one
the hub has seen).

--topics shows completeness: below COMPLETE TO every offset of the node's partition is at the
hub or declared lost (tailrace losses), up to the record time beside it. So a reading that is
not there is known not to be there, not here yet, or gone. HERE IN is when the lag is gone at the
rate of the last reports ("?": it does not shrink, or two reports of the session are not in yet).
AT NODE are records that stay at the node on purpose: of topics on demand (tailrace fetch) and of
topics that the hub's node_rules refuse. WIRE B/REC is what a record took on the link, compressed,
without packet headers, since the hub started.`,
		Example: `  tailrace nodes
  tailrace nodes --topics --node node-7
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
				Nodes     []nodeInfo `json:"nodes"`
				StoreNote string     `json:"store_note"`
			}
			if err := json.Unmarshal(raw, &list); err != nil {
				return err
			}
			if node != "" {
				list.Nodes = slices.DeleteFunc(list.Nodes, func(n nodeInfo) bool { return n.Node != node })
				if len(list.Nodes) == 0 {
					return fmt.Errorf("the hub knows no node %q", node)
				}
			}
			w := c.OutOrStdout()
			var err error
			switch {
			case output == "json":
				_, err = fmt.Fprintln(w, string(raw))
			case topics:
				err = printCompleteness(w, list.Nodes)
			default:
				err = printNodes(w, list.Nodes)
			}
			if err != nil {
				return err
			}
			if list.StoreNote != "" && output != "json" {
				fmt.Fprintln(w, "hub:", list.StoreNote)
			}
			return darkError(list.Nodes)
		},
	}
	c.Flags().StringVarP(&output, "output", "o", "text", "text or json (everything, whatever --topics and --node say)")
	c.Flags().BoolVar(&topics, "topics", false, "completeness of each topic of each node")
	c.Flags().StringVar(&node, "node", "", "this node only")
	return c
}

func printCompleteness(w io.Writer, ns []nodeInfo) error {
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(tw, "NODE\tTOPIC\tMODE\tCOMPLETE TO\tTIME\tOF\tLAG\tLAG BYTES\tBEHIND\tHERE IN\tAT NODE\tSTORED\tLOST\tWIRE B/REC\tCENTRAL PARTITION")
	for _, n := range ns {
		for _, t := range n.Topics {
			central := "-"
			if t.CentralTopic != "" {
				central = fmt.Sprintf("%s/%d", t.CentralTopic, t.CentralPartition)
				if t.Backfill != "" {
					central += ", gaps in " + t.Backfill
				}
			}
			mode := t.Mode
			if t.Priority != 0 {
				mode += fmt.Sprintf(" %+d", t.Priority)
			}
			fmt.Fprintf(tw, "%s\t%s/%d\t%s\t%d\t%s\t%d\t%d\t%s\t%s\t%s\t%d\t%d\t%d\t%.1f\t%s\n", n.Node, t.Topic, t.Partition, dash(mode), t.CompleteTo, dash(t.CompleteTime), t.Next,
				t.LagRecords, byteSize(t.LagBytes), seconds(t.LagSeconds), drain(t.LagRecords, t.Drain), t.AtNode, t.Stored, t.Lost, t.Wire, central)
		}
	}
	return tw.Flush()
}

func printNodes(w io.Writer, ns []nodeInfo) error {
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(tw, "NODE\tSTATE\tLAST SEEN\tSTORED\tLAG\tLAG BYTES\tBEHIND\tHERE IN\tLOST\tRTT\tCLOCK OFFSET")
	for _, n := range ns {
		seen := "never" // its records came in a bundle
		if n.LastSeen != "" {
			seen = seconds(n.LastSeenAgo) + " ago"
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%d\t%d\t%s\t%s\t%s\t%d\t%s\t%s\n", n.Node, n.State, seen, n.Stored,
			n.LagRecords, byteSize(n.LagBytes), seconds(n.LagSeconds), drain(n.LagRecords, n.Drain), n.Lost, seconds(n.RTTSeconds), seconds(n.ClockOffset))
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	for _, n := range ns {
		if n.Fenced != "" {
			fmt.Fprintf(w, "%s is fenced: %s\n", n.Node, n.Fenced)
		}
		for _, l := range n.Status.Links {
			if l.Interface == "" && l.Monthly == 0 {
				continue
			}
			fmt.Fprintf(w, "%s: link %s (%s): %s used", n.Node, l.Name, dash(l.Interface), byteSize(l.Used))
			if l.Monthly > 0 {
				fmt.Fprintf(w, " of %s, %s left", byteSize(l.Monthly), byteSize(l.Left))
			}
			if l.Ends != "" {
				fmt.Fprintf(w, ", %s expected until %.10s", byteSize(l.Forecast), l.Ends)
			}
			if l.Held != "" {
				fmt.Fprintf(w, "; held back: %s", l.Held)
			}
			fmt.Fprintln(w)
		}
		for _, r := range n.Refused {
			fmt.Fprintf(w, "%s: topic %s is not taken: %s\n", n.Node, r.Topic, r.Reason)
		}
		if n.OtherCopy != "" {
			fmt.Fprintf(w, "%s: another machine with this name is refused, %s\n", n.Node, n.OtherCopy)
		}
	}
	if len(ns) == 0 {
		_, err := fmt.Fprintln(w, "(no node has connected yet)")
		return err
	}
	return nil
}

// drain is when a lag is gone.
func drain(lag int64, s *float64) string {
	switch {
	case lag == 0:
		return "-"
	case s == nil:
		return "?"
	}
	return seconds(*s)
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
