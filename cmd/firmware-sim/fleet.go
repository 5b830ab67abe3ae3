package main

import (
	"context"
	"fmt"
	"io"
	"math"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	firmwaresim "tailrace/firmware-sim"
	"tailrace/firmware-sim/data"
	"tailrace/firmware-sim/ledger"
)

type fleetFlags struct {
	serverFlags
	turbines, machines, nonsense int
	recorded                     []string
	site, line, pace             string
	interval, duration           time.Duration
	brownOuts                    time.Duration
	rows, limit, window, ring    int
	cbor, noRTC, drift           float64
	seed                         uint64
	loop, wait, lossless         bool
}

func fleetCommand() *cobra.Command {
	var f fleetFlags
	cmd := &cobra.Command{
		Use:   "fleet",
		Short: "Run a fleet of devices that behave like firmware (the default)",
		Example: `  firmware-sim                                      10 turbines and 3 machines, one reading a second
  firmware-sim --recorded res-marge --pace 600      nine recorded turbines, ten minutes each second
  firmware-sim --recorded all --pace max --rows 500 as fast as the server acknowledges, then stop
  firmware-sim --turbines 5000 --interval 10s       many devices
  firmware-sim --turbines 50 --brown-outs 2m --no-rtc 0.2 --nonsense 3
  firmware-sim --server mqtts://gw:8883 --ca ca.pem --cert dev.pem --key dev.key`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd.Context(), cmd.OutOrStdout()) },
	}
	fs := cmd.Flags()
	f.add(fs)
	fs.IntVar(&f.turbines, "turbines", 0, "modelled wind turbines (10 when no devices are asked for)")
	fs.IntVar(&f.machines, "machines", 0, "modelled factory machines (3 when no devices are asked for)")
	fs.StringSliceVar(&f.recorded, "recorded", nil, "recorded sets to replay, or all; see firmware-sim sources")
	fs.IntVar(&f.nonsense, "nonsense", 0, "broken devices that send rubbish")
	fs.StringVar(&f.site, "site", "west", "name of the modelled wind farm")
	fs.StringVar(&f.line, "line", "line-1", "name of the modelled factory line")
	fs.StringVar(&f.pace, "pace", "1", "simulated seconds per second, or max")
	fs.DurationVar(&f.interval, "interval", 0, "simulated time between readings (default: 1s, recorded sets their own)")
	fs.IntVar(&f.rows, "rows", 0, "recorded rows a device (0: all)")
	fs.IntVar(&f.limit, "limit", 0, "readings a device, then it switches off (0: none)")
	fs.BoolVar(&f.loop, "loop", false, "start recorded sets again at their end")
	fs.DurationVarP(&f.duration, "duration", "d", 0, "stop after this time (0: until done or Ctrl-C)")
	fs.IntVar(&f.window, "window", 8, "publishes in flight a device")
	fs.IntVar(&f.ring, "ring", 64, "readings a device keeps in RAM while offline; the oldest goes first")
	fs.BoolVar(&f.lossless, "lossless", false, "stop sampling while the RAM is full, instead of dropping")
	fs.DurationVar(&f.brownOuts, "brown-outs", 0, "mean time between power losses of a device (0: never)")
	fs.Float64Var(&f.noRTC, "no-rtc", 0, "share of devices that boot without a clock, 0 to 1")
	fs.Float64Var(&f.drift, "drift", 20, "clock drift, standard deviation in ppm")
	fs.Float64Var(&f.cbor, "cbor", 0, "share of devices that send CBOR instead of JSON, 0 to 1")
	fs.Uint64Var(&f.seed, "seed", 1, "seed of everything drawn")
	fs.BoolVar(&f.wait, "wait", false, "start although the server cannot be reached yet")
	return cmd
}

func (f *fleetFlags) devices() ([]firmwaresim.Device, error) {
	turbines, machines := f.turbines, f.machines
	if turbines == 0 && machines == 0 && len(f.recorded) == 0 && f.nonsense == 0 {
		turbines, machines = 10, 3
	}
	if turbines < 0 || machines < 0 || f.nonsense < 0 || f.rows < 0 {
		return nil, usagef("numbers of devices and rows are not negative")
	}
	out := firmwaresim.WindFarm(f.site, turbines)
	out = append(out, firmwaresim.FactoryLine(f.line, machines)...)
	sets := f.recorded
	if len(sets) == 1 && sets[0] == "all" {
		sets = nil
		for _, s := range data.Sets() {
			sets = append(sets, s.Name)
		}
	}
	for _, name := range sets {
		d, err := firmwaresim.Recorded(name, f.rows)
		if err != nil {
			return nil, usageError{err}
		}
		out = append(out, d...)
	}
	if !(f.cbor >= 0 && f.cbor <= 1) {
		return nil, usagef("--cbor %v: 0 to 1", f.cbor)
	}
	for i := range out {
		if f.interval > 0 {
			out[i].Interval = f.interval
		}
		if math.Floor(float64(i+1)*f.cbor) > math.Floor(float64(i)*f.cbor) {
			out[i].Encoding = firmwaresim.CBOR
		}
	}
	return append(out, firmwaresim.Nonsense(f.nonsense)...), nil
}

func (f *fleetFlags) run(ctx context.Context, w io.Writer) error {
	dial, password, err := f.dialer()
	if err != nil {
		return err
	}
	pace := firmwaresim.MaxPace
	if f.pace != "max" {
		if pace, err = strconv.ParseFloat(strings.TrimPrefix(f.pace, "x"), 64); err != nil || !(pace > 0) {
			return usagef("--pace %q: a number above 0, or max", f.pace)
		}
	}
	devices, err := f.devices()
	if err != nil {
		return err
	}
	c := firmwaresim.Config{Dial: dial, Devices: devices, Seed: f.seed, Pace: pace, Limit: f.limit, Loop: f.loop,
		Window: f.window, Ring: f.ring, Lossless: f.lossless, Username: f.user, Password: password,
		BrownOuts: f.brownOuts, NoRTC: f.noRTC, DriftPPM: f.drift}
	if f.drift == 0 {
		c.DriftPPM = -1
	}
	if f.ledger != "" {
		if c.Ledger, err = ledger.Create(f.ledger); err != nil {
			return err
		}
		defer c.Ledger.Close()
		c.Ledger.Note(fmt.Sprintf("fleet of %d devices, seed %d", len(devices), f.seed))
	}
	fleet, err := firmwaresim.New(c)
	if err != nil {
		return usageError{err}
	}
	if !f.wait {
		if err := reachable(ctx, f.url, dial); err != nil {
			return err
		}
	}
	if f.duration > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, f.duration)
		defer cancel()
	}
	fmt.Fprintf(os.Stderr, "%d devices → %s, pace %s, seed %d. Ctrl-C ends.\n", len(devices), f.url, f.pace, f.seed)
	begin, last, lastAcked := time.Now(), time.Now(), int64(0)
	stop := progress(os.Stderr, func() string {
		s, now := fleet.Stats(), time.Now()
		rate := float64(s.Acked-lastAcked) / now.Sub(last).Seconds()
		last, lastAcked = now, s.Acked
		line := fmt.Sprintf("connected %d of %d   acked %d (%.0f/s)   in flight %d", s.Connected, s.Devices, s.Acked, rate, s.InFlight)
		for _, x := range []struct {
			name string
			n    int64
		}{{"dropped", s.Dropped}, {"refused", s.Refused}, {"power losses", s.BrownOuts}, {"nonsense", s.Nonsense}} {
			if x.n > 0 {
				line += fmt.Sprintf("   %s %d", x.name, x.n)
			}
		}
		return line
	})
	err = fleet.Run(ctx)
	stop()
	if err != nil {
		return err
	}
	s, seconds := fleet.Stats(), time.Since(begin).Seconds()
	if f.output == "json" {
		return printJSON(w, struct {
			firmwaresim.Stats
			Seconds float64 `json:"seconds"`
		}{s, seconds})
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "devices\t%d, %d done, %d boots, %d power losses\n", s.Devices, s.Done, s.Boots, s.BrownOuts)
	fmt.Fprintf(t, "connections\t%d, %d attempts failed, %d sessions lost\n", s.Connects, s.ConnectFails, s.SessionsLost)
	fmt.Fprintf(t, "readings\t%d taken, %d dropped by full RAM, %d lost with it\n", s.Samples, s.Dropped, s.Unsent)
	fmt.Fprintf(t, "messages\t%d published, %d acked, %d refused, %d unknown, %d sent again\n", s.Published, s.Acked, s.Refused, s.Forgotten, s.Resent)
	fmt.Fprintf(t, "time\t%.1f s, %.0f acks/s\n", seconds, float64(s.Acked)/seconds)
	if s.Refused > 0 {
		fmt.Fprintf(t, "refused\tlast reason %#x\n", s.LastRefusal)
	}
	if s.Nonsense > 0 {
		fmt.Fprintf(t, "nonsense\t%d connections\n", s.Nonsense)
	}
	return t.Flush()
}

func sourcesCommand() *cobra.Command {
	var licences bool
	cmd := &cobra.Command{
		Use:   "sources",
		Short: "List the recorded data sets, where they come from and their licences",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			w := cmd.OutOrStdout()
			if licences {
				_, err := fmt.Fprintf(w, "%s\n%s", data.Sources, data.Licenses)
				return err
			}
			for _, s := range data.Sets() {
				t, err := s.Open()
				if err != nil {
					return err
				}
				fmt.Fprintf(w, "%s\n  %s\n  %d rows, %d devices, %d signals\n  %s\n", s.Name, s.About, t.Len(), len(t.Devices), len(t.Signals), s.Citation)
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&licences, "licences", false, "print the full account of sources and the licence texts")
	return cmd
}
