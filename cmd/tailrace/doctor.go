package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"tailrace/edge"
	"tailrace/uplink/link"
)

func newDoctor() *cobra.Command {
	var config, output string
	var noLoad, quiet bool
	var bytes int64
	var silences []string
	c := &cobra.Command{
		Use:   "doctor",
		Short: "Measure the link from this machine to its hub, and say what is wrong with it",
		Long: `Measures the path from a node to its hub as the node's configuration has it, over UDP (QUIC) and,
where a fallback is set, over TCP: round trip, loss, packet size, what it carries, how long its queue is, whether a
firewall forgets silent flows, and the difference of the clocks. Then it says in words what it found.

It logs in with the node's certificate, stores nothing, and does not disturb a node that runs. It sends
about twice --bytes; on a metered link use --no-load. Exit code 1 when it found a problem.`,
		Example: `  tailrace doctor --config /etc/tailrace/edge.yaml
  tailrace doctor --config edge.yaml --no-load -o json
  tailrace doctor --config edge.yaml --idle 20s,60s`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if output != "text" && output != "json" {
				return &exitError{exitUsage, fmt.Errorf("-o %s: use text or json", output)}
			}
			var idle []time.Duration
			for _, s := range silences {
				d, err := time.ParseDuration(s)
				if err != nil {
					return &exitError{exitUsage, fmt.Errorf("--idle: %w", err)}
				}
				idle = append(idle, d)
			}
			cfg, err := edge.LoadConfig(config)
			if err != nil {
				return &exitError{exitUsage, err}
			}
			path, err := cfg.Path()
			if err != nil {
				return err
			}
			d := link.DiagnoseConfig{Client: path, Bytes: bytes, Idle: idle}
			if noLoad {
				d.Bytes = -1
			}
			if !quiet && output == "text" {
				d.Step = func(what string) { fmt.Fprintln(c.ErrOrStderr(), "…", what) }
			}
			res, err := link.Diagnose(c.Context(), d)
			if err != nil {
				return err
			}
			if output == "json" {
				enc := json.NewEncoder(c.OutOrStdout())
				enc.SetIndent("", "  ")
				err = enc.Encode(res)
			} else {
				err = printDiagnosis(c.OutOrStdout(), res)
			}
			if err != nil {
				return err
			}
			for _, f := range res.Findings {
				if f.Problem {
					return errors.New("the link has a problem")
				}
			}
			return nil
		},
	}
	f := c.Flags()
	f.StringVarP(&config, "config", "c", "/etc/tailrace/edge.yaml", "the node's configuration")
	f.StringVarP(&output, "output", "o", "text", "text or json")
	f.Int64Var(&bytes, "bytes", 4<<20, "bytes to send over each transport, for at most 5 s")
	f.BoolVar(&noLoad, "no-load", false, "do not measure what the link carries")
	f.StringSliceVar(&silences, "idle", []string{"20s"}, "silences after which the hub tries to reach this machine; below 90s; none: --idle \"\"")
	f.BoolVarP(&quiet, "quiet", "q", false, "do not say what is being measured")
	return c
}

func printDiagnosis(w io.Writer, d *link.Diagnosis) error {
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintf(tw, "hub\t%s\t%s\n", d.Hub, d.Probes.Address)
	if p := d.Probes; p.Answered > 0 {
		fmt.Fprintf(tw, "UDP\t%d of %d packets came back\tround trip %.1f ms (%.1f to %.1f), payload up to %d bytes\n", p.Answered, p.Sent, p.RTTMedian, p.RTTMin, p.RTTMax, p.MaxPacket)
	} else {
		fmt.Fprintf(tw, "UDP\t0 of %d packets came back\t%s\n", p.Sent, p.Error)
	}
	path := func(name string, p *link.PathResult) {
		switch {
		case p == nil:
		case p.Error != "":
			fmt.Fprintf(tw, "%s\tfails\t%s\n", name, p.Error)
		case p.Bytes == 0:
			fmt.Fprintf(tw, "%s\tworks\thandshake %.0f ms, round trip %.1f ms\n", name, p.Handshake, p.RTT)
		default:
			fmt.Fprintf(tw, "%s\t%.2f Mbit/s\thandshake %.0f ms, round trip %.1f ms, under load %.0f ms more, %.1f %% lost\n", name, p.BitsPerSecond/1e6, p.Handshake, p.RTT, p.Queue, p.Loss)
		}
	}
	path("QUIC", d.QUIC)
	path("TCP", d.TCP)
	for _, i := range d.Idle {
		state := "the hub reaches this machine"
		if !i.Alive {
			state = "the hub does not reach this machine any more"
		}
		fmt.Fprintf(tw, "silence\t%.0f s\t%s\n", i.Seconds, state)
	}
	if d.QUIC != nil && d.QUIC.Error == "" || d.TCP != nil && d.TCP.Error == "" {
		fmt.Fprintf(tw, "clock\t%.3f s\tof the hub ahead of this one\n", d.ClockOffset)
	}
	if !d.CertEnd.IsZero() {
		fmt.Fprintf(tw, "certificate\t%s\tits last day\n", d.CertEnd.Format(time.DateOnly))
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(w)
	if len(d.Findings) == 0 {
		_, err := fmt.Fprintln(w, "Nothing to remark: the link is good.")
		return err
	}
	for _, f := range d.Findings {
		mark := "note:   "
		if f.Problem {
			mark = "PROBLEM:"
		}
		fmt.Fprintf(w, "%s %s\n", mark, f.What)
		if f.Do != "" {
			fmt.Fprintf(w, "         do: %s\n", f.Do)
		}
	}
	return nil
}
