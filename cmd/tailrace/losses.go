package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
)

type lossInfo struct {
	Node       string `json:"node"`
	Epoch      string `json:"epoch"`
	Topic      string `json:"topic"`
	Partition  int    `json:"partition"`
	From       int64  `json:"from"`
	To         int64  `json:"to"`
	Records    int64  `json:"records"`
	Reason     string `json:"reason"`
	Detail     string `json:"detail"`
	LostAt     int64  `json:"lost_at"`
	DeclaredAt int64  `json:"declared_at"`
}

type lossTotal struct {
	Node    string `json:"node"`
	Topic   string `json:"topic"`
	Reason  string `json:"reason"`
	Ranges  int64  `json:"ranges"`
	Records int64  `json:"records"`
}

func newLosses(api *client) *cobra.Command {
	var output, node, topic string
	var limit int
	var totals bool
	c := &cobra.Command{
		Use:   "losses",
		Short: "Show the loss ledger: what was acknowledged and will never come",
		Long: `Shows the loss ledger of a hub, newest first: each range of offsets that a node acknowledged
to its devices and that can never arrive, with the reason.

  evicted  the node's disk was full and its policy is drop-oldest
  damaged  the node's disk no longer had what was written
  expired  retention at the node freed it before the hub had it (or after a hub lost it)
  missing  the node came back without it

The ledger is a topic too: tailrace replay __tailrace_loss, or any Kafka client.`,
		Example: `  tailrace losses
  tailrace losses --node node-7 --topic wind.telemetry
  tailrace losses --totals
  tailrace losses -o json | jq '.totals'`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if output != "text" && output != "json" {
				return &exitError{exitUsage, fmt.Errorf("-o %s: use text or json", output)}
			}
			q := url.Values{"limit": {strconv.Itoa(limit)}}
			for name, v := range map[string]string{"node": node, "topic": topic} {
				if v != "" {
					q.Set(name, v)
				}
			}
			var raw json.RawMessage
			if err := api.getJSON(c.Context(), "/api/v1/losses", q, &raw); err != nil {
				return err
			}
			if output == "json" {
				_, err := fmt.Fprintln(c.OutOrStdout(), string(raw))
				return err
			}
			var list struct {
				Losses []lossInfo  `json:"losses"`
				Totals []lossTotal `json:"totals"`
			}
			if err := json.Unmarshal(raw, &list); err != nil {
				return err
			}
			return printLosses(c.OutOrStdout(), list.Losses, list.Totals, totals)
		},
	}
	f := c.Flags()
	f.StringVarP(&output, "output", "o", "text", "text or json")
	f.StringVar(&node, "node", "", "this node only")
	f.StringVar(&topic, "topic", "", "this topic only")
	f.IntVar(&limit, "limit", 1000, "at most so many ranges, the newest")
	f.BoolVar(&totals, "totals", false, "sums by node, topic and reason only")
	return c
}

func printLosses(w io.Writer, rows []lossInfo, totals []lossTotal, sums bool) error {
	if len(totals) == 0 {
		_, err := fmt.Fprintln(w, "nothing was lost")
		return err
	}
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	if !sums {
		fmt.Fprintln(tw, "DECLARED\tNODE\tTOPIC\tEPOCH\tFROM\tTO\tRECORDS\tREASON\tLOST AT\tDETAIL")
		for _, r := range rows {
			fmt.Fprintf(tw, "%s\t%s\t%s/%d\t%.8s\t%d\t%d\t%d\t%s\t%s\t%s\n", stamp(r.DeclaredAt), r.Node, r.Topic, r.Partition, r.Epoch,
				r.From, r.To, r.Records, r.Reason, stamp(r.LostAt), r.Detail)
		}
		fmt.Fprintln(tw)
	}
	fmt.Fprintln(tw, "NODE\tTOPIC\tREASON\tRANGES\tRECORDS")
	for _, t := range totals {
		fmt.Fprintf(tw, "%s\t%s\t%s\t%d\t%d\n", t.Node, t.Topic, t.Reason, t.Ranges, t.Records)
	}
	return tw.Flush()
}

// stamp is a time in ms since 1970 for people.
func stamp(ms int64) string {
	if ms == 0 {
		return "-"
	}
	return time.UnixMilli(ms).UTC().Format(time.RFC3339)
}
