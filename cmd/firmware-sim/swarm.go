package main

import (
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"tailrace/firmware-sim/swarm"
	"tailrace/uplink/pki"
)

func swarmCommand() *cobra.Command {
	var c swarm.Config
	var caCert, caKey, output string
	var every, duration time.Duration
	cmd := &cobra.Command{
		Use:   "swarm",
		Short: "Put thousands of nodes on a hub",
		Long: `swarm connects many nodes to a hub from one process, each with a certificate and socket of its
own, a log in memory and the real link. It needs the key of the CA that the hub knows nodes by, so use it with
certificates made for tests (tailrace dev-certs). Once a second it says how many are connected.`,
		Example: `  firmware-sim swarm --hub 127.0.0.1:7443 --nodes 1000
  firmware-sim swarm --hub 127.0.0.1:7443 --nodes 10000 --interval 10s -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if output != "text" && output != "json" {
				return usagef("-o %s: use text or json", output)
			}
			cert, err1 := os.ReadFile(caCert)
			key, err2 := os.ReadFile(caKey)
			if err := errors.Join(err1, err2); err != nil {
				return err
			}
			var err error
			if c.CA, err = pki.LoadCA(pki.Pair{Cert: cert, Key: key}); err != nil {
				return err
			}
			c.Roots = x509.NewCertPool()
			c.Roots.AppendCertsFromPEM(cert)
			needFiles(uint64(c.Nodes) + 200)
			ctx := cmd.Context()
			s := swarm.New(c)
			done := make(chan error, 1)
			go func() { done <- s.Run(ctx) }()
			var end <-chan time.Time
			if duration > 0 {
				end = time.After(duration)
			}
			tick := time.NewTicker(every)
			defer tick.Stop()
			for {
				select {
				case err := <-done:
					if ctx.Err() != nil {
						return nil
					}
					return err
				case <-end:
					return nil
				case <-tick.C:
					printSwarm(cmd.OutOrStdout(), s.Stats(), output)
				}
			}
		},
	}
	f := cmd.Flags()
	f.StringVar(&c.Hub, "hub", "127.0.0.1:7443", "the hub's address for nodes")
	f.StringVar(&caCert, "ca", "certs/ca.crt", "CA certificate")
	f.StringVar(&caKey, "ca-key", "certs/ca.key", "its key, to make the nodes' certificates")
	f.IntVarP(&c.Nodes, "nodes", "n", 1000, "nodes")
	f.StringVar(&c.Prefix, "prefix", "swarm", "node ids are PREFIX-00000 and so on")
	f.StringVar(&c.Topic, "topic", "swarm.telemetry", "topic of the records")
	f.IntVar(&c.Backlog, "backlog", 0, "records that each node has at the start, readings of 180 bytes")
	f.DurationVar(&c.Interval, "interval", 0, "time between the records of one node (0: one record, then silence)")
	f.Float64Var(&c.Rate, "rate", 500, "nodes started a second")
	f.Uint64Var(&c.Seed, "seed", 1, "seed; another one is another life of each node's log")
	f.DurationVar(&every, "every", time.Second, "how often to report")
	f.DurationVarP(&duration, "duration", "d", 0, "how long to stay (0: until interrupted)")
	f.StringVarP(&output, "output", "o", "text", "text or json, a line each")
	return cmd
}

// needFiles raises the limit of open files as far as allowed.
func needFiles(n uint64) {
	var lim syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &lim) == nil && uint64(lim.Cur) < n {
		lim.Cur = min(lim.Max, n)
		_ = syscall.Setrlimit(syscall.RLIMIT_NOFILE, &lim) // sockets then fail, and say why
	}
}

func printSwarm(w io.Writer, s swarm.Stats, output string) {
	if output == "json" {
		b, _ := json.Marshal(s) // plain numbers
		fmt.Fprintln(w, string(b))
		return
	}
	fmt.Fprintf(w, "%d of %d connected, %d reconnects, %d records made, %d acknowledged, slowest waits %.1f s\n", s.Connected, s.Nodes, s.Reconnects, s.Records, s.Acked, s.OldestAck)
}
