package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"tailrace/storage"
)

// Exit status of check beyond the common ones.
const exitDamaged = 3

func newCheck() *cobra.Command {
	var output string
	c := &cobra.Command{
		Use:   "check DIR",
		Short: "Verify and describe a log directory",
		Long: `Reads every byte of a node's or hub's data directory, checks every checksum, and says what is
there: topics, partitions, offsets, times, state. It changes nothing and takes no lock; stop
the daemon first, or a tail that is being written may look torn.

Exit status: 0 sound (a torn tail from a crash is sound: the next start cuts it), 3 acknowledged
data is damaged, 1 the directory cannot be read, 2 wrong usage.`,
		Example: `  tailrace check /var/lib/tailrace
  tailrace check /var/lib/tailrace -o json | jq .problems`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if output != "text" && output != "json" {
				return &exitError{exitUsage, fmt.Errorf("-o %s: use text or json", output)}
			}
			prog := newProgress(c.ErrOrStderr(), false, "bytes")
			var last int64
			in, err := storage.Inspect(args[0], func(done, total int64) {
				prog.total = total
				prog.add(done - last)
				last = done
			})
			prog.done()
			if err != nil {
				return err
			}
			if output == "json" {
				enc := json.NewEncoder(c.OutOrStdout())
				enc.SetIndent("", "  ")
				err = enc.Encode(in)
			} else {
				err = printInspection(c.OutOrStdout(), in)
			}
			if err == nil && in.Lossy() {
				err = &exitError{exitDamaged, errors.New("acknowledged data is damaged; the next start sets it aside, declares the range and goes on")}
			}
			return err
		},
	}
	c.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	return c
}

func printInspection(w io.Writer, in *storage.Inspection) error {
	fmt.Fprintf(w, "%s: node %s, store %s\n", in.Dir, dash(in.Identity["node"]), dash(in.Identity["store"]))
	for _, c := range in.Classes {
		fmt.Fprintf(w, "\nclass %s: %d segments, %s, %d entries in %d commits, %d records, epoch %d\n", c.Class, c.Segments, byteSize(c.Bytes),
			c.Entries, c.Commits, c.Records, c.Epoch)
		if len(c.State) > 0 {
			fmt.Fprint(w, "  state keys:")
			var kinds []string
			for k := range c.State {
				kinds = append(kinds, k)
			}
			slices.Sort(kinds)
			for _, k := range kinds {
				fmt.Fprintf(w, " %s %d", k, c.State[k])
			}
			fmt.Fprintln(w)
		}
		if len(c.Partitions) > 0 {
			tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
			fmt.Fprintln(tw, "  TOPIC\tPARTITION\tSTART\tNEXT\tRECORDS\tBATCHES\tBYTES\tFIRST\tLAST")
			for _, p := range c.Partitions {
				first, last := "-", "-"
				if p.Records > 0 {
					first, last = time.UnixMilli(p.MinTime).UTC().Format(time.RFC3339), time.UnixMilli(p.MaxTime).UTC().Format(time.RFC3339)
				}
				fmt.Fprintf(tw, "  %s\t%d\t%d\t%d\t%d\t%d\t%s\t%s\t%s\n", dash(p.Topic), p.Index, p.Start, p.Next, p.Records, p.Batches, byteSize(p.Bytes), first, last)
			}
			tw.Flush()
		}
		for _, q := range c.Quarantined {
			fmt.Fprintf(w, "  set aside earlier: quarantine/%s\n", q)
		}
	}
	fmt.Fprintln(w)
	if len(in.Problems) == 0 {
		_, err := fmt.Fprintln(w, "sound: every checksum holds")
		return err
	}
	for _, p := range in.Problems {
		fmt.Fprintf(w, "%s: class %s, %s at byte %d: %s\n", p.Severity, p.Class, p.File, p.Offset, p.What)
	}
	return nil
}
