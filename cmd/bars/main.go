// Command bars measures every bar that has a figure and prints bar, target, measured
// and the command that shows it. It ends with status 1 when one falls short. Both
// sides of a comparison are measured in the same run, in turns.
//
//	make bars                      all
//	go run ./cmd/bars -only ingest those whose name contains "ingest"
//	go run ./cmd/bars -only quick  what CI reports on
//	go run ./cmd/bars -report      never fail: for noisy machines
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// row is one measured bar.
type row struct {
	Bar      string `json:"bar"`
	Target   string `json:"target"`
	Measured string `json:"measured"`
	OK       bool   `json:"ok"`
	Command  string `json:"command"`
}

// group measures some bars that share a set-up.
type group struct {
	name string
	run  func(context.Context, *env) ([]row, error)
}

var groups = []group{
	{"size", binarySize},
	{"memory", memory},
	{"clients", idleClients},
	{"ingest", ingest},
	{"latency", ackLatency},
	{"end-to-end", endToEnd},
	{"replay", kafkaReplay},
	{"kafka-broker", kafkaBroker},
	{"kafka-stalled", kafkaStalled},
	{"big-log", bigLog},
	{"flash", flash},
	{"hostile", hostileMix},
	{"nodes", manyNodes},
	{"hub-ingest", hubIngest},
	{"costs", costs},
	{"demo", demoOnce},
	{"kill", killTest},
	{"link-down", linkDown},
	{"histories", histories},
	{"arm", arm},
	{"instructions", instructions},
	{"newcomer", newcomer},
	{"wire-bytes", wireBytes},
	{"link-simulated", linkSimulated},
}

func main() {
	only := flag.String("only", "", "measure groups whose name contains this")
	report := flag.Bool("report", false, "exit 0 even when a bar falls short")
	output := flag.String("o", "text", "text or json")
	short := flag.Bool("short", false, "short forms of the long runs")
	nodes := flag.Int("nodes", 0, "how many nodes the group of that name connects; 0 = 10,000, or 1,000 with -short")
	list := flag.Bool("list", false, "list the groups")
	flag.Parse()
	if *list {
		for _, g := range groups {
			fmt.Println(g.name)
		}
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if flag.Arg(0) == "floor-server" { // see floorSide
		if err := serveFloor(ctx, flag.Arg(1)); err != nil && ctx.Err() == nil {
			fmt.Fprintln(os.Stderr, "floor:", err)
			os.Exit(1)
		}
		return
	}
	if flag.Arg(0) == "hostile-attack" { // see hostileMix
		if err := attackFrom(ctx, flag.Arg(1), flag.Arg(2)); err != nil {
			fmt.Fprintln(os.Stderr, "hostile:", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(measure(ctx, *only, *output, *report, &env{short: *short, nodes: *nodes}))
}

// quick are the groups that CI reports on: what no test of its own measures.
var quick = []string{"size", "memory", "ingest", "latency", "end-to-end", "replay", "instructions"}

func wanted(name, only string) bool {
	if only == "quick" {
		return slices.Contains(quick, name)
	}
	return strings.Contains(name, only)
}

func measure(ctx context.Context, only, output string, report bool, e *env) int {
	dir, err := os.MkdirTemp("", "tailrace-bars-")
	if err != nil {
		fmt.Fprintln(os.Stderr, "bars:", err)
		return 2
	}
	defer os.RemoveAll(dir)
	e.dir = dir
	var rows []row
	for _, g := range groups {
		if !wanted(g.name, only) || ctx.Err() != nil {
			continue
		}
		start := time.Now()
		fmt.Fprintf(os.Stderr, "bars: %s ...\n", g.name)
		rs, err := g.run(ctx, e)
		if err != nil {
			rs = append(rs, row{Bar: g.name, Target: "measured", Measured: "not measured: " + err.Error(), Command: "go run ./cmd/bars -only " + g.name})
		}
		fmt.Fprintf(os.Stderr, "bars: %s took %.0f s\n", g.name, time.Since(start).Seconds())
		rows = append(rows, rs...)
	}
	missed := 0
	for _, r := range rows {
		if !r.OK {
			missed++
		}
	}
	if output == "json" {
		enc := json.NewEncoder(os.Stdout)
		enc.SetIndent("", "  ")
		enc.Encode(rows)
	} else {
		fmt.Printf("%s, %d CPUs, %s, commit %s\n\n", runtime.GOOS+"/"+runtime.GOARCH, runtime.NumCPU(), runtime.Version(), commit())
		tw := tabwriter.NewWriter(os.Stdout, 0, 8, 2, ' ', 0)
		fmt.Fprintln(tw, "\tBAR\tTARGET\tMEASURED\tCOMMAND")
		for _, r := range rows {
			mark := "ok"
			if !r.OK {
				mark = "MISSED"
			}
			fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\n", mark, r.Bar, r.Target, r.Measured, r.Command)
		}
		tw.Flush()
		fmt.Printf("\n%d of %d bars hold\n", len(rows)-missed, len(rows))
	}
	if missed > 0 && !report {
		return 1
	}
	return 0
}
