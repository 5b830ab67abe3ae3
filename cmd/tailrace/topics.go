package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
)

type topicInfo struct {
	Name             string `json:"name"`
	Class            string `json:"class"`
	PartitionCount   int    `json:"partition_count"`
	Records          int64  `json:"records"`
	Bytes            int64  `json:"bytes"`
	MinTime          string `json:"min_time"`
	MaxTime          string `json:"max_time"`
	RetentionSeconds int64  `json:"retention_seconds"`
	RetentionBytes   int64  `json:"retention_bytes"`
	Internal         bool   `json:"internal"`
	Partitions       []struct {
		Partition     int    `json:"partition"`
		Start         int64  `json:"start"`
		HighWatermark int64  `json:"high_watermark"`
		Bytes         int64  `json:"bytes"`
		MinTime       string `json:"min_time"`
		MaxTime       string `json:"max_time"`
	} `json:"partitions"`
}

func newTopics(api *client) *cobra.Command {
	var output string
	var all bool
	c := &cobra.Command{
		Use:   "topics [TOPIC]",
		Short: "List topics, or the partitions of one",
		Example: `  tailrace topics
  tailrace topics wind.telemetry
  tailrace topics -o json | jq .`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if output != "text" && output != "json" {
				return &exitError{exitUsage, fmt.Errorf("-o %s: use text or json", output)}
			}
			path := "/api/v1/topics"
			if len(args) == 1 {
				path += "/" + url.PathEscape(args[0])
			}
			var raw json.RawMessage
			if err := api.getJSON(c.Context(), path, nil, &raw); err != nil {
				return err
			}
			if output == "json" {
				_, err := fmt.Fprintln(c.OutOrStdout(), string(raw))
				return err
			}
			if len(args) == 1 {
				var t topicInfo
				if err := json.Unmarshal(raw, &t); err != nil {
					return err
				}
				return printPartitions(c.OutOrStdout(), t)
			}
			var list struct {
				Topics []topicInfo `json:"topics"`
			}
			if err := json.Unmarshal(raw, &list); err != nil {
				return err
			}
			return printTopics(c.OutOrStdout(), list.Topics, all)
		},
	}
	c.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	c.Flags().BoolVarP(&all, "all", "a", false, "internal topics, too")
	return c
}

func printTopics(w io.Writer, ts []topicInfo, all bool) error {
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(tw, "TOPIC\tPARTITIONS\tRECORDS\tBYTES\tFIRST\tLAST\tKEPT")
	shown := 0
	for _, t := range ts {
		if t.Internal && !all {
			continue
		}
		shown++
		kept := "for ever"
		if t.RetentionSeconds > 0 {
			kept = (time.Duration(t.RetentionSeconds) * time.Second).String()
		}
		if t.RetentionBytes > 0 {
			kept += ", " + byteSize(t.RetentionBytes)
		}
		fmt.Fprintf(tw, "%s\t%d\t%d\t%s\t%s\t%s\t%s\n", t.Name, t.PartitionCount, t.Records, byteSize(t.Bytes), dash(t.MinTime), dash(t.MaxTime), kept)
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	if shown == 0 {
		_, err := fmt.Fprintln(w, "(none yet: topics appear with the first record)")
		return err
	}
	return nil
}

func printPartitions(w io.Writer, t topicInfo) error {
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(tw, "PARTITION\tSTART\tNEXT\tRECORDS\tBYTES\tFIRST\tLAST")
	for _, p := range t.Partitions {
		fmt.Fprintf(tw, "%d\t%d\t%d\t%d\t%s\t%s\t%s\n", p.Partition, p.Start, p.HighWatermark, p.HighWatermark-p.Start, byteSize(p.Bytes), dash(p.MinTime), dash(p.MaxTime))
	}
	return tw.Flush()
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// byteSize writes n with a binary unit, three digits or so.
func byteSize(n int64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	f, i := float64(n)/1024, 0
	for f >= 1024 && i < len(units)-1 {
		f /= 1024
		i++
	}
	return fmt.Sprintf("%.3g %ciB", f, units[i])
}
