package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	firmwaresim "tailrace/firmware-sim"
)

type demoFlags struct {
	once     bool
	rows     int
	dir      string
	keep     bool
	pace     float64
	edgeExec string
}

// Recorded data of the demo: nine turbines, three days at ten minutes. One row in
// two seconds a turbine looks alive and lasts for a quarter of an hour; then the
// recording starts again.
const (
	demoSet  = "res-marge"
	demoPace = 300
)

func newDemo() *cobra.Command {
	var f demoFlags
	c := &cobra.Command{
		Use:   "demo",
		Short: "Run the whole system here: a hub, two nodes, a wind farm",
		Long: `Starts a hub and two nodes as processes on loopback, makes their certificates, and lets a
wind farm replay recorded turbine data through them. It needs no root, takes free ports when
the usual ones are busy, and leaves nothing behind when Ctrl-C ends it.

With --once it is a test with a yes or no: a fixed slice of the recorded data goes through,
the link is cut once and a node is killed (SIGKILL, with publishes unacknowledged) once on
the way, and what a Kafka consumer got is compared with the source rows. It prints one line
of JSON and exits 0 only if nothing is missing, doubled, altered or out of order.`,
		Example: `  tailrace demo
  tailrace demo --once
  tailrace demo --once --rows 900 --dir /tmp/run    # keep logs and data for a look`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if f.once {
				return demoOnce(c.Context(), f, c.OutOrStdout(), c.ErrOrStderr())
			}
			return demo(c.Context(), f, c.OutOrStdout())
		},
	}
	p := c.Flags()
	p.BoolVar(&f.once, "once", false, "one fixed run with a cut and a kill, checked against the source")
	p.IntVar(&f.rows, "rows", 0, "with --once: rows in all (0: all of the recorded set)")
	p.StringVar(&f.dir, "dir", "", "new directory for data, logs and configuration, kept afterwards (default: a temporary one)")
	p.BoolVar(&f.keep, "keep", false, "keep the temporary directory")
	p.Float64Var(&f.pace, "pace", demoPace, "recorded seconds per second")
	p.StringVar(&f.edgeExec, "edge-exec", "", "command that runs a node, for example under an emulator")
	p.MarkHidden("edge-exec")
	return c
}

func demo(ctx context.Context, f demoFlags, out io.Writer) (err error) {
	dir, done, err := workDir(f.dir, f.keep)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, done()) }()
	s, err := newStack(dir, stackOptions{nodes: 2, edgeExec: f.edgeExec, usual: true})
	if err != nil {
		return err
	}
	for _, m := range s.moved {
		fmt.Fprintln(out, "note:", m)
	}
	defer s.stop()
	if err := s.start(ctx); err != nil {
		return err
	}
	fleets, err := s.fleets(firmwaresim.Config{Pace: f.pace, Loop: true}, 0)
	if err != nil {
		return err
	}
	runCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, len(fleets))
	for _, fl := range fleets {
		go func() { ended <- fl.Run(runCtx) }()
	}
	// The lines below are there to be pasted: they must work at once, so the first
	// record has to be at the centre before they are printed.
	if err := s.waitTopic(ctx, stackTopic); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		self = "tailrace"
	}
	fmt.Fprintf(out, `
Tailrace is running: 9 recorded turbines -> 2 nodes -> 1 hub. Data and logs: %s

  console   %s
  kcat      kcat -b %s -C -t %s -o beginning
  tail      %s tail %s --url %s --last 5

Ctrl-C ends it.

`, dir, s.hubURL(), s.kafkaAddr(), stackTopic, self, stackTopic, s.hubURL())

	prog := newProgress(out, false, "records acknowledged")
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	var last int64
	for running := len(fleets); running > 0; {
		select {
		case e := <-ended:
			running--
			cancel()
			if e != nil && ctx.Err() == nil {
				err = errors.Join(err, e)
			}
		case <-tick.C:
			if e := s.failed(); e != nil && ctx.Err() == nil {
				err = errors.Join(err, e)
				cancel()
			}
			var acked int64
			for _, fl := range fleets {
				acked += fl.Stats().Acked
			}
			prog.add(acked - last)
			last = acked
		}
	}
	prog.done()
	fmt.Fprintln(out, "stopping ...")
	return err
}

// fleets makes one fleet of recorded turbines for each node, the turbines dealt out
// in turn. rows > 0 stops a turbine after that many.
func (s *stack) fleets(c firmwaresim.Config, rows int) ([]*firmwaresim.Fleet, error) {
	devices, err := firmwaresim.Recorded(demoSet, rows)
	if err != nil {
		return nil, err
	}
	var out []*firmwaresim.Fleet
	for i, n := range s.nodes {
		fc := c
		fc.Devices = nil
		for k := i; k < len(devices); k += len(s.nodes) {
			fc.Devices = append(fc.Devices, devices[k])
		}
		fc.Seed += uint64(i)
		fc.Dial = firmwaresim.DialTCP(fmt.Sprintf("127.0.0.1:%d", n.mqtt), nil)
		fl, err := firmwaresim.New(fc)
		if err != nil {
			return nil, err
		}
		out = append(out, fl)
	}
	return out, nil
}
