// Command firmware-sim runs simulated devices against an MQTT server: a fleet
// that behaves like firmware, or a raw load. See firmware-sim --help.
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

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends the process at once
	if err := root().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "firmware-sim:", err)
		var u usageError
		if errors.As(err, &u) {
			fmt.Fprintln(os.Stderr, "Run 'firmware-sim --help' for usage.")
			os.Exit(2)
		}
		os.Exit(1)
	}
}

// usageError is a mistake on the command line.
type usageError struct{ error }

func (u usageError) Unwrap() error { return u.error }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

func root() *cobra.Command {
	fleet := fleetCommand()
	cmd := &cobra.Command{
		Use:   "firmware-sim",
		Short: "Simulated wind turbines and factory machines that publish over MQTT",
		Long: `firmware-sim runs simulated devices against an MQTT server.

Without a subcommand it runs a fleet (the same as "firmware-sim fleet"): devices
that boot, sample, keep readings in a small RAM buffer, publish at QoS 1,
reconnect, lose power and number all they send.`,
		Example:       fleet.Example,
		Args:          cobra.NoArgs,
		RunE:          fleet.RunE,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	cmd.Flags().AddFlagSet(fleet.Flags())
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	cmd.AddCommand(fleet, loadCommand(), checkCommand(), floorCommand(), sourcesCommand(), swarmCommand())
	cmd.CompletionOptions.HiddenDefaultCmd = true
	return cmd
}
