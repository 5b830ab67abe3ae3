// Command tailrace-edge runs a node: MQTT in, log on disk, replication to a hub.
//
//	tailrace-edge -config edge.yaml
//	tailrace-edge -config edge.yaml -check-config
//	tailrace-edge -config edge.yaml -new-epoch
//	tailrace-edge version
//
// SIGINT and SIGTERM end it cleanly, a second one at once; SIGHUP reads the
// password file again. Exit status: 0 clean, 1 failed, 2 usage or configuration.
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
	"runtime/debug"
	"syscall"

	"tailrace/edge"
	"tailrace/edge/auth"
)

// version is set by the linker (-X main.version=…); else it comes from the build information.
var version string

// hashWorker is the argument with which a node starts itself to hash passwords (auth.Worker).
const hashWorker = "hash-worker"

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

func run(args []string, stdout, stderr io.Writer) int {
	fs := flag.NewFlagSet("tailrace-edge", flag.ContinueOnError)
	fs.SetOutput(stderr)
	file := fs.String("config", "", "configuration `file` (YAML); deploy/edge.example.yaml documents every field")
	check := fs.Bool("check-config", false, "check the configuration and the files it names, then exit")
	newEpoch := fs.Bool("new-epoch", false, "begin a new epoch of the log at this start; only for a node that the hub fences because its log has lost its end")
	showVersion := fs.Bool("version", false, "print the version and exit")
	fs.Usage = func() {
		fmt.Fprintln(stderr, "usage: tailrace-edge -config FILE [-check-config | -new-epoch]\n       tailrace-edge version")
		fs.PrintDefaults()
	}
	if len(args) == 1 && args[0] == hashWorker {
		if err := auth.ServeHashes(os.Stdin, stdout); err != nil {
			fmt.Fprintln(stderr, "hash worker:", err)
			return 1
		}
		return 0
	}
	if err := fs.Parse(args); errors.Is(err, flag.ErrHelp) {
		return 0
	} else if err != nil {
		return 2
	}
	switch {
	case *showVersion || fs.Arg(0) == "version" && fs.NArg() == 1:
		fmt.Fprintln(stdout, "tailrace-edge", softwareVersion())
		return 0
	case fs.NArg() > 0 || *file == "":
		fs.Usage()
		return 2
	}
	cfg, err := edge.LoadConfig(*file)
	if err == nil {
		err = cfg.CheckFiles()
	}
	if err != nil {
		fmt.Fprintln(stderr, err)
		return 2
	}
	if *check {
		fmt.Fprintln(stdout, "configuration is valid")
		return 0
	}
	cfg.Version, cfg.NewEpoch = softwareVersion(), *newEpoch
	logger := slog.New(cfg.Log.Handler(stderr, isTerminal(os.Stderr)))
	cfg.Logger = logger
	if cfg.MQTT.Auth.HashWorker, err = auth.SelfWorker(hashWorker, logger); err != nil {
		logger.Warn("no process of their own for password hashes", "error", err)
	}
	node, err := edge.New(cfg)
	if err != nil {
		fmt.Fprintln(stderr, err)
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // from here on a second signal ends the process at once
	go reloadOnHangup(ctx, node, logger)
	if err := node.Run(ctx); err != nil {
		logger.Error("node has failed", "err", err)
		return 1
	}
	return 0
}

func reloadOnHangup(ctx context.Context, node *edge.Node, logger *slog.Logger) {
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	for {
		select {
		case <-ctx.Done():
			return
		case <-hup:
			if err := node.Reload(); err != nil {
				logger.Error("reload: the old users stay", "err", err)
			}
		}
	}
}

func isTerminal(f *os.File) bool {
	st, err := f.Stat()
	return err == nil && st.Mode()&os.ModeCharDevice != 0
}

func softwareVersion() string {
	if version != "" {
		return version
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	v := info.Main.Version
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && len(s.Value) >= 12 && (v == "" || v == "(devel)") {
			v = "devel-" + s.Value[:12]
		}
	}
	if v == "" || v == "(devel)" {
		return "devel"
	}
	return v
}
