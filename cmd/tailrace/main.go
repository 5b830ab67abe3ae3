// Command tailrace is the operator's tool: it starts the demo, replays and tails
// topics, shows topics and nodes, checks log directories and makes certificates for
// development. It talks to a hub, or to a node on site, over their HTTP API.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

// version is set by the linker.
var version = "dev"

// Exit codes, the same for every command.
const (
	exitFailed = 1 // the command could not do what was asked, or what it found is bad
	exitUsage  = 2 // the command line is wrong
)

// exitError carries an exit code through cobra.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string { return e.err.Error() }
func (e *exitError) Unwrap() error { return e.err }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// A second signal kills at once: the first one restores the default action.
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, os.Args[1:]))
}

func run(ctx context.Context, args []string) int {
	root := newRoot()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return 130
	}
	fmt.Fprintln(os.Stderr, "tailrace:", err)
	var ee *exitError
	if errors.As(err, &ee) {
		return ee.code
	}
	return exitFailed
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "tailrace",
		Short: "Event streams that start at the sensor",
		Long: `tailrace is the operator's tool of Tailrace: replay and tail topics, look at
topics and nodes, check a log directory, run the demo.

It talks to a hub by default (http://127.0.0.1:8080). On site, point it at a node:
--url http://127.0.0.1:8081.`,
		Example: `  tailrace demo
  tailrace topics
  tailrace tail wind.telemetry --key MRG_T01
  tailrace replay wind.telemetry --from 2026-11-01T00:00:00Z --format csv > day.csv
  tailrace nodes || echo "a node is dark"`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Version:       version,
	}
	root.SetVersionTemplate("tailrace {{.Version}}\n")
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return &exitError{exitUsage, fmt.Errorf("%w (see %s --help)", err, c.CommandPath())}
	})
	var api client
	api.flags(root.PersistentFlags())
	root.AddCommand(
		newDemo(),
		newTopics(&api),
		newTail(&api),
		newReplay(&api),
		newNodes(&api),
		newLosses(&api),
		newFetch(&api),
		newExportBundle(&api),
		newImportBundle(&api),
		newDrain(&api),
		newHub(),
		newDoctor(),
		newCheck(),
		newDevCerts(),
		newPasswd(),
		newACL(),
		newKafkaUser(),
		&cobra.Command{
			Use: "version", Short: "Print the version", Args: cobra.NoArgs,
			Run: func(*cobra.Command, []string) { fmt.Println("tailrace", version) },
		},
	)
	return root
}
