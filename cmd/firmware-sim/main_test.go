package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"tailrace/firmware-sim/floor"
	"tailrace/firmware-sim/ledger"
)

// TestMain lets the test binary be the command: signals need a process.
func TestMain(m *testing.M) {
	if os.Getenv("FIRMWARE_SIM_MAIN") != "" {
		main()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func run(args ...string) (out string, err error) {
	var b bytes.Buffer
	c := root()
	c.SetArgs(args)
	c.SetOut(&b)
	c.SetErr(&b)
	err = c.ExecuteContext(context.Background())
	return b.String(), err
}

func serveFloor(t *testing.T) (addr string) {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- (&floor.Server{File: f}).Serve(ctx, ln) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		f.Close()
	})
	return ln.Addr().String()
}

func TestLoadPrintsOneLineOfJSONAndALedger(t *testing.T) {
	addr := serveFloor(t)
	file := filepath.Join(t.TempDir(), "run.ledger")
	out, err := run("load", "-s", addr, "-c", "5", "-n", "200", "-o", "json", "--payload-from", "res-marge", "--ledger", file)
	if err != nil {
		t.Fatal(err)
	}
	var r map[string]any
	if err := json.Unmarshal([]byte(out), &r); err != nil || strings.Count(out, "\n") != 1 {
		t.Fatalf("%v: %q", err, out)
	}
	if r["acked"] != 1000.0 || r["published"] != 1000.0 || r["p99_us"] == 0.0 || r["per_second"] == 0.0 {
		t.Fatal(out)
	}
	book, err := ledger.Load(file)
	if err != nil || book.Totals().Acked != 1000 || book.Err() != nil {
		t.Fatalf("%+v %v", book, err)
	}
	if _, err := run("load", "-s", addr, "-n", "1", "--ledger", file); err == nil || !strings.Contains(err.Error(), "exist") {
		t.Errorf("an existing ledger: %v", err)
	}
}

func TestMistakesAreToldWithWhatIsWrong(t *testing.T) {
	for args, want := range map[string]string{
		"--pace fast":                         "--pace",
		"--recorded nothing":                  "res-marge",
		"-s ftp://x":                          "mqtt",
		"-o yaml":                             "json",
		"--ca x -s mqtt://h":                  "mqtts",
		"--turbines -1":                       "negative",
		"--window 0 --ring -3":                "ring",
		"--nope":                              "nope",
		"load --mqtt 4.2":                     "3.1.1",
		"load -q 2":                           "qos",
		"load -b 3":                           "payload",
		"load extra":                          "extra",
		"-s 127.0.0.1:1 --turbines 1":         "no MQTT server at 127.0.0.1:1",
		"load -s 127.0.0.1:1 -n 1":            "127.0.0.1:1",
		"--cert x --key y -s mqtts://h":       "--cert",
		"-s mqtts://h --ca /does/not/exist.x": "--ca",
		"--password-file /does/not/exist.x":   "--password-file",
	} {
		_, err := run(strings.Fields(args)...)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want a word on %q", args, err, want)
		}
	}
}

func TestHelpHasExamplesAndSourcesHaveCitations(t *testing.T) {
	for _, args := range [][]string{{"--help"}, {"fleet", "--help"}, {"load", "--help"}, {"floor", "--help"}} {
		out, err := run(args...)
		if err != nil || !strings.Contains(out, "Examples:") {
			t.Errorf("%v: %v\n%s", args, err, out)
		}
	}
	if out, _ := run("--help"); strings.Contains(out, "floor") {
		t.Error("floor is for benchmarks and hidden")
	}
	out, err := run("sources")
	if err != nil || !strings.Contains(out, "Zenodo") || !strings.Contains(out, "10.24432/C5CW21") {
		t.Error(err, out)
	}
	if out, _ = run("sources", "--licences"); !strings.Contains(out, "Redistribution and use") {
		t.Error("licence texts are missing")
	}
}

// Ctrl-C ends a load in order: the acks in flight are awaited, the result is
// printed, the exit status is 0.
func TestCtrlCEndsCleanly(t *testing.T) {
	addr := serveFloor(t)
	cmd := exec.Command(os.Args[0], "load", "-s", addr, "-c", "3", "-d", "5m", "-o", "json", "--rate", "2000")
	cmd.Env = append(os.Environ(), "FIRMWARE_SIM_MAIN=1")
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(500*time.Millisecond, func() { _ = cmd.Process.Signal(syscall.SIGINT) })
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%v: %s", err, errs.String())
	}
	var r struct{ Acked, Published, Unknown int }
	if err := json.Unmarshal(out.Bytes(), &r); err != nil || r.Acked == 0 || r.Unknown != 0 || r.Acked != r.Published {
		t.Fatalf("%v %+v %s", err, r, out.String())
	}
}

// A replay in NDJSON is compared with the ledger of the run: whole, it passes;
// with one record gone, or one twice, the command says so and fails.
func TestCheckComparesAReplayWithTheLedger(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "run.ledger")
	book, err := ledger.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	const topic = "site/a/turbine/T1/telemetry"
	s := book.Session(topic, 0xab)
	var lines []string
	for seq := uint64(1); seq <= 20; seq++ {
		p := fmt.Sprintf(`{"boot":"ab","seq":%d,"signals":{"x":1.50}}`, seq)
		s.Intent(seq, ledger.Hash([]byte(p)))
		s.Ack(seq, 1)
		lines = append(lines, fmt.Sprintf(`{"topic":"telemetry","partition":0,"offset":%%d,"value":%s,"value_encoding":"json","headers":[{"key":"mqtt.topic","value":"%s","value_encoding":"text"}]}`, p, topic))
	}
	if err := book.Close(); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		lines []string
		want  string
	}{
		"whole":  {lines, ""},
		"lost":   {append(append([]string(nil), lines[:5]...), lines[6:]...), "lost=1"},
		"double": {append(append([]string(nil), lines...), lines[3]), "duplicate=1"},
	} {
		replay := filepath.Join(dir, name)
		var text string
		for off, l := range c.lines {
			text += fmt.Sprintf(l, off) + "\n"
		}
		if err := os.WriteFile(replay, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := run("check", "--ledger", file, "-o", "json", replay)
		if (err == nil) != (c.want == "") || (err != nil && !strings.Contains(err.Error(), c.want)) || !strings.Contains(out, `"acked":20`) {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
	if _, err := run("check", "--ledger", file, file); err == nil || !strings.Contains(err.Error(), "not a record") {
		t.Errorf("rubbish: %v", err)
	}
}
