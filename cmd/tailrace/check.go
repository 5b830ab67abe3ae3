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

	"tailrace/edge"
	"tailrace/storage"
)

// Exit status of check beyond the common ones.
const (
	exitDamaged    = 3
	exitUnrepaired = 4
)

func newCheck() *cobra.Command {
	var output string
	var repair bool
	c := &cobra.Command{
		Use:   "check DIR",
		Short: "Verify, describe and repair a log directory",
		Long: `Reads every byte of a node's or hub's data directory, checks every checksum, and says what is
there: topics, partitions, offsets, times, state. Without --repair it changes nothing and
takes no lock; stop the daemon first, or a tail that is being written may look torn.

--repair does what the next start of the daemon would do, and more thoroughly, since every
byte was read: it cuts a torn tail, puts markers in the place of damaged entries, declares
what is lost, and begins a new epoch if anything was cut. It takes the directory's lock,
first copies every file that it will change to <class>/quarantine, and changes nothing if
that fails. A sound directory is not touched.

Exit status: 0 sound (a torn tail from a crash is sound: the next start cuts it); with
--repair: sound now, and nothing acknowledged was damaged. 3 acknowledged data is damaged;
with --repair: sound now, what was damaged is declared lost. 4 with --repair: something is
left that cannot be repaired. 1 the directory cannot be read or is in use, nothing was
changed. 2 wrong usage.`,
		Example: `  tailrace check /var/lib/tailrace
  tailrace check /var/lib/tailrace -o json | jq .problems
  systemctl stop tailrace-edge && tailrace check /var/lib/tailrace --repair`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if output != "text" && output != "json" {
				return &exitError{exitUsage, fmt.Errorf("-o %s: use text or json", output)}
			}
			prog := newProgress(c.ErrOrStderr(), false, "bytes")
			var last int64
			show := func(done, total int64) {
				if done < last { // read a second time
					prog.restart()
					last = 0
				}
				prog.total = total
				prog.add(done - last)
				last = done
			}
			if repair {
				return repairDir(c.OutOrStdout(), args[0], output, show, prog.done)
			}
			in, err := storage.Inspect(args[0], show)
			prog.done()
			if err != nil {
				return err
			}
			if err = print(c.OutOrStdout(), output, in, func(w io.Writer) error { return printInspection(w, in) }); err == nil && in.Lossy() {
				err = &exitError{exitDamaged, errors.New("acknowledged data is damaged; the next start sets it aside, declares the range and goes on")}
			}
			return err
		},
	}
	c.Flags().BoolVar(&repair, "repair", false, "repair what is wrong; copies of what is changed are kept in quarantine")
	c.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	return c
}

// print writes v as JSON, or by text.
func print(w io.Writer, output string, v any, text func(io.Writer) error) error {
	if output != "json" {
		return text(w)
	}
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

func repairDir(w io.Writer, dir, output string, progress func(done, total int64), done func()) error {
	// The folds are those of a node; a hub has none.
	r, err := storage.RepairDir(storage.RepairConfig{Dir: dir, Progress: progress,
		Folds: edge.Folds()})
	done()
	if err != nil {
		return err
	}
	err = print(w, output, r, func(w io.Writer) error {
		for _, p := range r.Before.Problems {
			if !p.Settled {
				fmt.Fprintf(w, "found, %s: class %s, %s at byte %d: %s\n", p.Severity, p.Class, p.File, p.Offset, p.What)
			}
		}
		for _, f := range r.Copies {
			fmt.Fprintf(w, "kept as it was: %s\n", f)
		}
		for _, d := range r.Done {
			fmt.Fprintf(w, "repaired: class %s, %s: %s, %d bytes, %d entries. %s\n", d.Class, d.File, d.What, d.Bytes, d.Entries, d.Detail)
		}
		if len(r.Done) > 0 {
			fmt.Fprintf(w, "the log is in epoch %d\n\n", r.Epoch)
		}
		return printInspection(w, r.After)
	})
	switch {
	case err != nil:
		return err
	case slices.ContainsFunc(r.After.Problems, func(p storage.Problem) bool { return !p.Settled }):
		return &exitError{exitUnrepaired, errors.New("something is left that cannot be repaired; the daemon reports it when it reads it")}
	case r.Before.Lossy():
		return &exitError{exitDamaged, errors.New("repaired; acknowledged data was damaged, and is declared lost")}
	}
	return nil
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
	if !slices.ContainsFunc(in.Problems, func(p storage.Problem) bool { return !p.Settled }) {
		fmt.Fprintln(w, "sound: every checksum holds")
	}
	for _, p := range in.Problems {
		fmt.Fprintf(w, "%s: class %s, %s at byte %d: %s\n", p.Severity, p.Class, p.File, p.Offset, p.What)
	}
	return nil
}
