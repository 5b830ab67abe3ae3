package main

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	firmwaresim "tailrace/firmware-sim"
	"tailrace/firmware-sim/floor"
	"tailrace/firmware-sim/ledger"
	"tailrace/firmware-sim/rawload"
)

type loadFlags struct {
	serverFlags
	c        rawload.Config
	version  string
	qos      int
	recorded string
}

func loadCommand() *cobra.Command {
	var f loadFlags
	cmd := &cobra.Command{
		Use:   "load",
		Short: "Put a raw load on a server and measure acknowledged messages per second",
		Long: `load writes hand-built MQTT packets from many connections, the whole window in
one write, and measures acknowledgements: rate, latency, cost. It is cheap, so
that it can share a machine with the server under test.

A run ends after --duration, or when every client has sent --count messages.`,
		Example: `  firmware-sim load --clients 50 --window 20 --duration 5s
  firmware-sim load --clients 500 --window 20 --duration 5s -o json
  firmware-sim load --rate 1000 --clients 10 --duration 1m --payload-from res-marge
  firmware-sim load --count 10000 --reconnect --ledger run.ledger`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd.Context(), cmd.OutOrStdout()) },
	}
	fs := cmd.Flags()
	f.add(fs)
	fs.IntVarP(&f.c.Clients, "clients", "c", 50, "connections")
	fs.IntVarP(&f.c.Window, "window", "w", 20, "publishes in flight a connection")
	fs.IntVarP(&f.qos, "qos", "q", 1, "0 or 1")
	fs.StringVar(&f.version, "mqtt", "3.1.1", "protocol version: 3.1.1 or 5")
	fs.IntVarP(&f.c.PayloadBytes, "bytes", "b", 120, "payload size")
	fs.StringVar(&f.recorded, "payload-from", "", "take payloads from this recorded set instead, or model for modelled turbines")
	fs.StringVar(&f.c.Topic, "topic", "load/{client}/telemetry", "topic; {client} is the client's id")
	fs.StringVar(&f.c.ClientPrefix, "client-prefix", "load", "client ids are PREFIX-00000 and so on")
	fs.DurationVarP(&f.c.Duration, "duration", "d", 0, "how long to send (default 5s without --count)")
	fs.Int64VarP(&f.c.Count, "count", "n", 0, "messages a client")
	fs.Float64VarP(&f.c.Rate, "rate", "r", 0, "messages per second of all clients (0: as fast as acknowledged)")
	fs.DurationVar(&f.c.Drain, "drain", 10*time.Second, "how long to wait for the last acknowledgements")
	fs.BoolVar(&f.c.Reconnect, "reconnect", false, "reconnect and send again what was not acknowledged")
	fs.BoolVar(&f.c.CleanStart, "clean", false, "no persistent session")
	fs.Uint64Var(&f.c.Seed, "seed", 0, "seed of jitter and run name (0: by the clock)")
	return cmd
}

func (f *loadFlags) run(ctx context.Context, w io.Writer) error {
	dial, password, err := f.dialer()
	if err != nil {
		return err
	}
	c := f.c
	c.Dial, c.Username, c.Password = dial, f.user, password
	switch f.version {
	case "3.1.1", "3", "4":
		c.Version = 4
	case "5":
		c.Version = 5
	default:
		return usagef("--mqtt %q: 3.1.1 or 5", f.version)
	}
	if f.qos < 0 || f.qos > 1 {
		return usagef("--qos %d: 0 or 1", f.qos)
	}
	c.QoS = byte(f.qos)
	if c.Count == 0 && c.Duration == 0 {
		c.Duration = 5 * time.Second
	}
	if f.recorded != "" {
		if c.Bodies, err = firmwaresim.Bodies(f.recorded, 2000, rand.New(rand.NewPCG(c.Seed, 1))); err != nil {
			return usageError{err}
		}
	}
	if f.ledger != "" {
		if c.Ledger, err = ledger.Create(f.ledger); err != nil {
			return err
		}
		defer c.Ledger.Close()
	}
	l, err := rawload.New(c)
	if err != nil {
		return usageError{err}
	}
	last, lastAcked := time.Now(), int64(0)
	stop := progress(os.Stderr, func() string {
		p, now := l.Progress(), time.Now()
		rate := float64(p.Acked-lastAcked) / now.Sub(last).Seconds()
		last, lastAcked = now, p.Acked
		return fmt.Sprintf("connected %d of %d   acked %d (%.0f/s)   refused %d   reconnects %d", p.Connected, c.Clients, p.Acked, rate, p.Refused, p.Reconnects)
	})
	r, err := l.Run(ctx)
	stop()
	if err != nil {
		return fmt.Errorf("load on %s: %w", f.url, err)
	}
	if f.output == "json" {
		return printJSON(w, r)
	}
	fmt.Fprintf(w, "%d x %d, QoS %d, %d bytes: %.0f acked/s, p50 %d µs, p99 %d µs, max %d µs\n",
		r.Clients, r.Window, r.QoS, r.PayloadBytes, r.PerSecond, r.P50us, r.P99us, r.MaxUs)
	fmt.Fprintf(w, "%d published, %d acked, %d refused, %d unknown, %d sent again, %d reconnects in %.2f s; this generator used %.2f CPU-s per million\n",
		r.Published, r.Acked, r.Refused, r.Unknown, r.Resent, r.Reconnects, r.Seconds, r.CPUPerM)
	if r.Failed > 0 {
		fmt.Fprintf(w, "%d clients failed; the first: %s\n", r.Failed, r.FirstError)
	}
	return nil
}

func floorCommand() *cobra.Command {
	var listen, file string
	var noSync bool
	cmd := &cobra.Command{
		Use:    "floor",
		Short:  "Run the bare publish path: parse, one write and fdatasync for all waiting, PUBACK",
		Hidden: true,
		Example: `  firmware-sim floor --listen 127.0.0.1:1884 &
  firmware-sim load --server mqtt://127.0.0.1:1884 --duration 5s`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGTERM)
			defer stop()
			temp := file == ""
			if temp {
				file = filepath.Join(os.TempDir(), fmt.Sprintf("firmware-sim-floor-%d.log", os.Getpid()))
				defer os.Remove(file)
			}
			f, err := os.OpenFile(file, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
			if err != nil {
				return err
			}
			defer f.Close()
			ln, err := net.Listen("tcp", listen)
			if err != nil {
				return err
			}
			fmt.Fprintf(os.Stderr, "listening on %s, writing %s\n", ln.Addr(), file)
			s := &floor.Server{File: f, NoSync: noSync}
			if err := s.Serve(ctx, ln); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%d records, %d commits, %d bytes\n", s.Records.Load(), s.Commits.Load(), s.Bytes.Load())
			return nil
		},
	}
	cmd.Flags().StringVar(&listen, "listen", "127.0.0.1:1884", "address")
	cmd.Flags().StringVar(&file, "file", "", "file to append to (default: a temporary one, removed at the end)")
	cmd.Flags().BoolVar(&noSync, "no-sync", false, "do not sync")
	return cmd
}
