package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"tailrace/firmware-sim/rawload"
)

// goTest runs tests and returns their output; a failed or absent test is an error.
func goTest(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", append([]string{"test", "-count=1", "-v", "-timeout=0"}, args...)...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out // the same writer: exec then copies in one goroutine
	err := cmd.Run()
	if err == nil && !strings.Contains(out.String(), "--- PASS") {
		err = errors.New("no test ran")
	}
	if err != nil {
		err = fmt.Errorf("%w: %s", err, tailOf(out.String()))
	}
	return out.String(), err
}

// said returns the first line of the output that a pattern matches.
func said(out, pattern string) string {
	return strings.TrimSpace(regexp.MustCompile(`(?m)^.*` + pattern + `.*$`).FindString(out))
}

func killTest(ctx context.Context, e *env) ([]row, error) {
	n := 200
	if e.short {
		n = 20
	}
	cmd := fmt.Sprintf("KILLS=%d .ci/crash kill", n)
	out, err := goTest(ctx, "./firmware-sim/scenario/kill", "-run", "TestKill", "-kills", strconv.Itoa(n))
	if err != nil {
		return nil, err
	}
	rows := []row{{fmt.Sprintf("kill -9 of node, hub or both, %d times", n), "no acked record lost, doubled or out of order", said(out, "acked"), true, cmd}}
	os.Setenv("TAILRACE_KILLS", strconv.Itoa(n))
	defer os.Unsetenv("TAILRACE_KILLS")
	if out, err = goTest(ctx, "./cmd/tailrace-edge", "-run", "TestWhatWasDurable"); err != nil {
		return rows, err
	}
	return append(rows, row{fmt.Sprintf("kill -9 between fsync and PUBACK, %d times (MQTT issue)", n), "every re-send is stored once", said(out, "each is stored once"), true,
		fmt.Sprintf("make dup KILLS=%d", n)}), nil
}

func linkDown(ctx context.Context, _ *env) ([]row, error) {
	out, err := goTest(ctx, "./firmware-sim/scenario", "-run", "TestLinkDownTenMinutes")
	if err != nil {
		return nil, err
	}
	return []row{{"link down 10 simulated minutes at 2,000 records/s", "all arrive once, in order; memory flat", said(out, "heap"), true,
		"go test -v ./firmware-sim/scenario -run TestLinkDownTenMinutes"}}, nil
}

func histories(ctx context.Context, e *env) ([]row, error) {
	n := 1000
	if e.short {
		n = 200
	}
	out, err := goTest(ctx, "./firmware-sim/scenario", "-run", "TestHistories", "-histories", strconv.Itoa(n))
	if err != nil {
		return nil, err
	}
	return []row{{"seeded histories with cuts, crashes and disk faults", "at least 200, none fails", said(out, "histories"), true, fmt.Sprintf("make sim HISTORIES=%d", n)}}, nil
}

// arm runs the demo with a node built for ARM under user-mode emulation against a native hub.
func arm(ctx context.Context, e *env) ([]row, error) {
	var rows []row
	for _, a := range []struct{ name, arch, arm, qemu string }{
		{"armv6", "arm", "6", "qemu-arm-static"}, {"arm64", "arm64", "", "qemu-aarch64-static"},
	} {
		dir, err := e.sub(a.name)
		if err != nil {
			return rows, err
		}
		edge := filepath.Join(dir, "tailrace-edge")
		build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", edge, "./cmd/tailrace-edge")
		build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+a.arch, "GOARM="+a.arm)
		if out, err := build.CombinedOutput(); err != nil {
			return rows, fmt.Errorf("build for %s: %w: %s", a.name, err, out)
		}
		qemu, err := exec.LookPath(a.qemu)
		if err != nil {
			return rows, err
		}
		l, line, err := runOnce(ctx, "--rows", "900", "--edge-exec", qemu+" "+edge)
		if err != nil {
			return rows, fmt.Errorf("%s: %w", a.name, err)
		}
		rows = append(rows, row{"node built for " + a.name + " under qemu-user, demo of 900 rows", "nothing lost, doubled, out of order; emulated, not real ARM",
			line, l.Lost+l.Duplicate+l.OutOfOrder+l.Altered == 0 && l.Delivered == l.Published && l.Published > 0,
			"go run ./cmd/bars -only arm"})
	}
	return rows, nil
}

// instructions counts the instructions of a node per record on x86-64 with valgrind:
// two runs of different length, so that start-up falls out of the difference.
func instructions(ctx context.Context, e *env) ([]row, error) {
	counts := map[int64]int64{}
	short, long := int64(4_000), int64(24_000)
	// The runtime now and then spins for a while under valgrind's one-thread-at-a-time
	// scheduler, so of three runs of each length the least counts.
	for _, n := range []int64{short, long, short, long, short, long} {
		// Without asynchronous preemption, since its signals end valgrind; lackey, since
		// callgrind does not survive the signal that ends the node.
		d, mqtt, _, err := e.edgeNode(ctx, "", "env", "GODEBUG=asyncpreemptoff=1", "valgrind", "--tool=lackey", "--basic-counts=yes")
		if err != nil {
			return nil, err
		}
		r, err := rawload.Run(ctx, rawload.Config{Dial: rawload.DialTCP(mqtt, nil), QoS: 1, Clients: 4, Window: 20, PayloadBytes: 180, Count: n / 4, Drain: time.Minute})
		d.stop()
		if err != nil || r.Acked != n {
			return nil, fmt.Errorf("%d of %d acknowledged under valgrind: %v", r.Acked, n, err)
		}
		m := regexp.MustCompile(`guest instrs:\s+([\d,]+)`).FindStringSubmatch(d.out.String())
		if m == nil {
			return nil, errors.New("valgrind counted nothing: " + tailOf(d.out.String()))
		}
		c, err := strconv.ParseInt(strings.ReplaceAll(m[1], ",", ""), 10, 64)
		if err != nil {
			return nil, err
		}
		if old, ok := counts[n]; !ok || c < old {
			counts[n] = c
		}
	}
	per := float64(counts[long]-counts[short]) / float64(long-short)
	return []row{{"instructions of the node per record, x86-64, 4x20 clients", "stated", fmt.Sprintf("%.0f (valgrind; not measured on real ARM)", per), true,
		"go run ./cmd/bars -only instructions"}}, nil
}

// newcomer clones the repository, runs make run, and pastes the kcat line it prints.
func newcomer(ctx context.Context, e *env) ([]row, error) {
	dir, err := e.sub("newcomer")
	if err != nil {
		return nil, err
	}
	begin := time.Now()
	if out, err := exec.CommandContext(ctx, "git", "clone", "-q", ".", filepath.Join(dir, "tailrace")).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("clone: %w: %s", err, out)
	}
	var out lockedBuffer
	mk := exec.Command("make", "run")
	mk.Dir = filepath.Join(dir, "tailrace")
	mk.Stdout, mk.Stderr = &out, &out
	mk.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := mk.Start(); err != nil {
		return nil, err
	}
	ended := make(chan struct{})
	go func() { mk.Wait(); close(ended) }()
	defer func() {
		syscall.Kill(-mk.Process.Pid, syscall.SIGINT)
		<-ended
	}()
	line := regexp.MustCompile(`kcat -b \S+ -C -t \S+ -o beginning`)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	var kcat string
	for kcat == "" {
		select {
		case <-tick.C:
			kcat = line.FindString(out.String())
		case <-ended:
			return nil, fmt.Errorf("make run ended: %s", tailOf(out.String()))
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		if time.Since(begin) > 10*time.Minute {
			return nil, fmt.Errorf("no kcat line after %v: %s", time.Since(begin), tailOf(out.String()))
		}
	}
	// -c 20: the pasted line would go on for ever.
	got, err := exec.CommandContext(ctx, "timeout", append([]string{"60"}, append(strings.Fields(kcat), "-c", "20")...)...).Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", kcat, err)
	}
	took := time.Since(begin)
	n := bytes.Count(got, []byte(`"turbine"`))
	return []row{{"newcomer: clone, make run, paste the kcat line, see turbine records", "under 2 minutes",
		fmt.Sprintf("%.0f s, %d records (module and build caches as they are here)", took.Seconds(), n), n == 20 && took < 2*time.Minute, "go run ./cmd/bars -only newcomer"}}, nil
}
