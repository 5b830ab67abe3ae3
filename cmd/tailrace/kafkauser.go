package main

import (
	"bufio"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"tailrace/uplink/hub/kafka/access"
)

func newKafkaUser() *cobra.Command {
	return &cobra.Command{
		Use:   "kafka-user NAME",
		Short: "Make a line of the hub's kafka.users_file from a password on standard input",
		Long: `Reads a password from standard input (its first line) and prints the line for the file
that kafka.users_file of the hub names. The line holds SCRAM verifiers: who reads it can
guess passwords, but cannot log in with it. The hub reads the file again when it changes.`,
		Example: `  openssl rand -hex 16 | tee password | tailrace kafka-user scada >> kafka-users`,
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			sc := bufio.NewScanner(c.InOrStdin())
			if !sc.Scan() {
				return &exitError{exitUsage, errors.Join(errors.New("no password on standard input"), sc.Err())}
			}
			line, err := access.Line(args[0], strings.TrimRight(sc.Text(), "\r"))
			if err != nil {
				return &exitError{exitUsage, err}
			}
			fmt.Fprintln(c.OutOrStdout(), line)
			return nil
		},
	}
}
