// Command tailrace-hub is the central daemon: nodes replicate to it, it keeps
// what they send, and consumers read it by the Kafka protocol, HTTP and in a
// browser.
//
//	tailrace-hub -config hub.yaml
//	tailrace-hub -config hub.yaml -check-config
//
// Exit status: 0 stopped as asked, 1 failed, 2 wrong usage or configuration.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"syscall"

	"tailrace/uplink/hub"
)

var version = "dev" // set by the linker

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

func run(args []string, stdout, stderr io.Writer) int {
	f := flag.NewFlagSet("tailrace-hub", flag.ContinueOnError)
	f.SetOutput(stderr)
	file := f.String("config", "", "configuration file (YAML), required; see deploy/hub.example.yaml")
	check := f.Bool("check-config", false, "check the configuration and exit")
	show := f.Bool("version", false, "print the version and exit")
	if err := f.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return 0
		}
		return 2
	}
	if *show {
		fmt.Fprintf(stdout, "tailrace-hub %s %s %s/%s\n", version, runtime.Version(), runtime.GOOS, runtime.GOARCH)
		return 0
	}
	if *file == "" || f.NArg() > 0 {
		fmt.Fprintln(stderr, "tailrace-hub: -config FILE is required, and nothing else (-h lists the flags)")
		return 2
	}
	c, err := hub.LoadConfig(*file)
	if err != nil {
		fmt.Fprintf(stderr, "tailrace-hub: configuration:\n%v\n", err)
		return 2
	}
	if *check {
		fmt.Fprintf(stdout, "%s: ok\n", *file)
		return 0
	}
	level, err := hub.ParseLevel(c.Log.Level)
	if err != nil { // LoadConfig has checked it
		fmt.Fprintln(stderr, "tailrace-hub:", err)
		return 2
	}
	opts := &slog.HandlerOptions{Level: level}
	var handler slog.Handler = slog.NewTextHandler(stderr, opts)
	if c.Log.Format == "json" {
		handler = slog.NewJSONHandler(stderr, opts)
	}
	c.Logger = slog.New(handler)
	c.Software = "tailrace-hub " + version

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	h, err := hub.New(c)
	if err != nil {
		c.Logger.Error("hub does not start", "error", err)
		return 1
	}
	context.AfterFunc(ctx, func() { // a second signal ends the process at once
		stop()
		notify("STOPPING=1")
	})
	go watchdog(ctx, h)
	go thrift(ctx, h.Links().Sessions, collector{debug.SetGCPercent, debug.FreeOSMemory})
	if err := h.Run(ctx); err != nil {
		c.Logger.Error("hub stopped", "error", err)
		return 1
	}
	return 0
}
