package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"time"

	"github.com/spf13/cobra"
)

func newDrain(api *client) *cobra.Command {
	var hubs []string
	var retryAfter, over time.Duration
	var reason string
	c := &cobra.Command{
		Use:   "drain [NODE...]",
		Short: "Send nodes away from a hub, spread over time",
		Long: `Asks the named nodes, or all, to leave the hub: for a while (--retry-after), or to another hub of the
same store (--to). They keep what they take in, and lose nothing. --over spreads the orders, so that
thousands do not arrive elsewhere in one moment; --retry-after is spread by each node by up to half.

Exit code 1 when a named node is not connected: it was not told.`,
		Example: `  tailrace drain --retry-after 10m --reason "kernel update"
  tailrace drain --to hub-b.example.org:7443 --over 5m
  tailrace drain node-7 node-8 --to hub-b.example.org:7443`,
		RunE: func(c *cobra.Command, args []string) error {
			body, err := json.Marshal(map[string]any{"reason": reason, "nodes": args, "hubs": hubs, "retry_after": retryAfter.String(), "over": over.String()})
			if err != nil {
				return err
			}
			resp, err := api.upload(c.Context(), "/api/v1/drain", bytes.NewReader(body))
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			var res struct{ Told int }
			if err := json.NewDecoder(resp.Body).Decode(&res); err != nil {
				return fmt.Errorf("read the hub's answer: %w", err)
			}
			fmt.Fprintln(c.OutOrStdout(), res.Told, "nodes were told to leave")
			if res.Told < len(args) {
				return fmt.Errorf("%d of the %d nodes named were not told: they are not connected (tailrace nodes)", len(args)-res.Told, len(args))
			}
			return nil
		},
	}
	f := c.Flags()
	f.StringSliceVar(&hubs, "to", nil, "hubs to go to, host:port, of the same store")
	f.DurationVar(&retryAfter, "retry-after", 0, "come back not before this")
	f.DurationVar(&over, "over", 0, "spread the orders over this time")
	f.StringVar(&reason, "reason", "", "shown at the nodes")
	return c
}
