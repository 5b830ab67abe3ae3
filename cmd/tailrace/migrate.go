package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"tailrace/uplink/hub"
)

func newHub() *cobra.Command {
	c := &cobra.Command{
		Use:   "hub",
		Short: "Work on a hub's data, without the hub",
		Args:  cobra.NoArgs,
		RunE:  func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(newMigrate())
	return c
}

func newMigrate() *cobra.Command {
	var (
		from, to, output, mapFile string
		dryRun, quiet, verbose    bool
		step                      int
	)
	c := &cobra.Command{
		Use:   "migrate --from HUB.yaml --to HUB-ON-KAFKA.yaml",
		Short: "Move what an embedded hub holds into a Kafka cluster",
		Long: `Copies the topics of a hub that keeps its records itself into an Apache Kafka cluster, and with them
where everybody is: offsets of consumer groups, progress of nodes, the loss ledger, fetches
that wait. Both files are configurations of a hub: --from the one that it runs with now, --to the one with
store.kafka (and another data_dir) that it will run with.

Stop the hub first: its nodes keep what they take in, and go on with the hub on the cluster where they
were, nothing lost and nothing twice. Nothing is deleted from the embedded store; it refuses to serve
once everything is in the cluster.

A partition keeps its number, a record gets another offset: --map writes which (also kept in the topic
__NAME_migration of the cluster). Offsets of consumer groups are those of the same records. Every step
is a transaction: ended at any point, the same command goes on where it was, and no hub starts on the cluster before
it is through.

Exit status: 0 moved (or, with --dry-run, nothing stands in the way), 1 not, 2 wrong usage.`,
		Example: `  tailrace hub migrate --from hub.yaml --to hub-kafka.yaml --dry-run
  tailrace hub migrate --from hub.yaml --to hub-kafka.yaml
  tailrace hub migrate --from hub.yaml --to hub-kafka.yaml -o json --map offsets.ndjson | jq .groups`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) (err error) {
			if output != "text" && output != "json" {
				return &exitError{exitUsage, fmt.Errorf("-o %s: use text or json", output)}
			}
			if from == "" || to == "" {
				return &exitError{exitUsage, errors.New("--from and --to are required")}
			}
			old, err := hub.LoadConfig(from)
			if err != nil {
				return &exitError{exitUsage, err}
			}
			next, err := hub.LoadConfig(to)
			if err != nil {
				return &exitError{exitUsage, err}
			}
			if verbose {
				next.Logger = slog.New(slog.NewTextHandler(c.ErrOrStderr(), nil))
				old.Logger = next.Logger
			}
			opts := hub.MigrateOptions{DryRun: dryRun, Step: step}
			if mapFile != "" {
				f, err := os.Create(mapFile)
				if err != nil {
					return err
				}
				w := bufio.NewWriter(f)
				defer func() { err = errors.Join(err, w.Flush(), f.Close()) }()
				opts.Map = w
			}
			p := newProgress(c.ErrOrStderr(), quiet, "bytes")
			last := int64(0)
			opts.Progress = func(done, total int64) {
				p.total = total
				p.add(done - last)
				last = done
			}
			res, err := hub.Migrate(c.Context(), old, next, opts)
			p.done()
			if res != nil {
				err = errors.Join(err, printMigration(c.OutOrStdout(), res, output))
			}
			return err
		},
	}
	f := c.Flags()
	f.StringVar(&from, "from", "", "configuration of the embedded hub")
	f.StringVar(&to, "to", "", "configuration of the hub on the cluster")
	f.BoolVar(&dryRun, "dry-run", false, "say what would be done, and what stands in the way; change nothing")
	f.StringVar(&mapFile, "map", "", "file to write the map of offsets to, one JSON object a line")
	f.StringVarP(&output, "output", "o", "text", "text or json")
	f.IntVar(&step, "step", 1<<20, "bytes of a partition in one transaction")
	f.BoolVarP(&quiet, "quiet", "q", false, "no progress")
	f.BoolVarP(&verbose, "verbose", "v", false, "log what is done")
	return c
}

func printMigration(w io.Writer, m *hub.Migration, output string) error {
	if output == "json" {
		b, err := json.Marshal(m)
		if err == nil {
			_, err = fmt.Fprintf(w, "%s\n", b)
		}
		return err
	}
	for _, s := range m.Problems {
		fmt.Fprintln(w, "cannot be done:", s)
	}
	for _, s := range m.Warnings {
		fmt.Fprintln(w, "note:", s)
	}
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(tw, "TOPIC\tPARTITION\tHERE\tCOPIED TO\tIN THE CLUSTER")
	for _, t := range m.Topics {
		for _, p := range t.Parts {
			at := "-"
			if p.First >= 0 {
				at = fmt.Sprintf("%d to %d, %d runs", p.First, p.Last, p.Runs)
			}
			fmt.Fprintf(tw, "%s\t%d\t[%d, %d)\t%d\t%s\n", t.Name, p.Partition, p.Start, p.End, p.Copied, at)
		}
	}
	if len(m.Groups) > 0 {
		fmt.Fprintln(tw, "\nGROUP\tTOPIC\tPARTITION\tOFFSET\tIN THE CLUSTER")
		for _, g := range m.Groups {
			fmt.Fprintf(tw, "%s\t%s\t%d\t%d\t%d\n", g.Group, g.Topic, g.Partition, g.Old, g.New)
		}
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	var err error
	switch {
	case m.Done:
		_, err = fmt.Fprintf(w, "\nmoved into fleet %s: %d records by this run, progress of %d nodes. Start the hub with store.kafka (%s).\n", m.Fleet, m.Records, m.Nodes, time.Now().UTC().Format(time.RFC3339))
	case m.DryRun:
		_, err = fmt.Fprintln(w, "\nnothing was changed")
	default:
		_, err = fmt.Fprintf(w, "\nnot finished: %d records by this run; run it again\n", m.Records)
	}
	return err
}
