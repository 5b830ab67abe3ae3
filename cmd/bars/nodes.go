package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"tailrace/firmware-sim/swarm"
)

// manyNodes puts 10,000 nodes with the real link on one hub, lets them be silent, and
// restarts the hub.
func manyNodes(ctx context.Context, e *env) ([]row, error) {
	n := cmp.Or(e.nodes, 10_000)
	if e.short && e.nodes == 0 {
		n = 1_000
	}
	command := "go run ./cmd/bars -only nodes"
	if n != 10_000 {
		command += fmt.Sprintf(" -nodes %d", n)
	}
	hub, quic, httpURL, _, err := e.hub(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { hub.stop() }()
	base, err := hub.rss()
	if err != nil {
		return nil, err
	}
	sw, err := e.startSwarm(quic, n)
	if err != nil {
		return nil, err
	}
	defer sw.stop()
	all := func(s swarm.Stats) bool { return s.Connected == n && s.Acked >= int64(n) }
	took, _, err := sw.until(ctx, 3*time.Minute, all)
	if err != nil {
		return nil, fmt.Errorf("connect %d nodes: %w", n, err)
	}
	if err := pause(ctx, 75*time.Second); err != nil { // compression contexts are given up after 30 s
		return nil, err
	}
	before, err := hub.cpu()
	if err != nil {
		return nil, err
	}
	swarmBefore, err := cpuOf(sw.cmd.Process.Pid)
	if err != nil {
		return nil, err
	}
	const idle = 30 * time.Second
	if err := pause(ctx, idle); err != nil {
		return nil, err
	}
	after, err := hub.cpu()
	if err != nil {
		return nil, err
	}
	swarmAfter, err := cpuOf(sw.cmd.Process.Pid)
	if err != nil {
		return nil, err
	}
	rss, err := hub.rss()
	if err != nil {
		return nil, err
	}
	each, share := float64(rss-base)/float64(n)/1000, 100*(after-before).Seconds()/idle.Seconds()
	rows := []row{
		{fmt.Sprintf("%d silent nodes on one hub, memory each", n), "under 150 KB", fmt.Sprintf("%.0f KB (connected in %.0f s)", each, took.Seconds()), each < 150, command},
		{"the same, CPU of the hub", "under 25 % of a core", fmt.Sprintf("%.1f %% (the nodes themselves, on the same cores: %.1f %%)", share, 100*(swarmAfter-swarmBefore).Seconds()/idle.Seconds()), share < 25, command},
	}
	hub.stop()
	if swarmBefore, err = cpuOf(sw.cmd.Process.Pid); err != nil {
		return rows, err
	}
	dir := hub.cmd.Dir
	if hub, err = start(dir, bin("tailrace-hub"), "-config", "hub.yaml"); err != nil {
		return rows, err
	}
	if err := hub.waitFor(ctx, ready(httpURL+"/readyz")); err != nil {
		return rows, err
	}
	took, fastest, err := sw.until(ctx, 3*time.Minute, func(s swarm.Stats) bool { return s.Connected == n && s.Reconnects >= int64(n) })
	if err != nil {
		return rows, fmt.Errorf("after a restart of the hub: %w", err)
	}
	if swarmAfter, err = cpuOf(sw.cmd.Process.Pid); err != nil {
		return rows, err
	}
	if after, err = hub.cpu(); err != nil {
		return rows, err
	}
	return append(rows, row{"all of them back after a restart of the hub", "60 s, at most 1,000 in one second",
		fmt.Sprintf("%.0f s, at most %d in one second; CPU of the hub %.1f s since its start, of the nodes %.1f s", took.Seconds(), fastest, after.Seconds(), (swarmAfter - swarmBefore).Seconds()), took < time.Minute && fastest <= 1000, command}), nil
}

// swarmProcess is firmware-sim swarm.
type swarmProcess struct {
	cmd   *exec.Cmd
	errs  lockedBuffer
	lines chan swarm.Stats // capacity 1, the newest
	ended chan struct{}
}

func (e *env) startSwarm(hub string, n int, args ...string) (*swarmProcess, error) {
	certs := filepath.Join(e.dir, "certs")
	p := &swarmProcess{lines: make(chan swarm.Stats, 1), ended: make(chan struct{}),
		cmd: exec.Command(bin("firmware-sim"), append([]string{"swarm", "--hub", hub, "--nodes", fmt.Sprint(n), "--ca", certs + "/ca.crt", "--ca-key", certs + "/ca.key", "-o", "json", "--every", "1s"}, args...)...)}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	p.cmd.Stderr = &p.errs
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		defer close(p.ended)
		p.read(out)
		p.cmd.Wait()
	}()
	return p, nil
}

func (p *swarmProcess) read(out io.Reader) {
	for sc := bufio.NewScanner(out); sc.Scan(); {
		var s swarm.Stats
		if json.Unmarshal(sc.Bytes(), &s) != nil {
			continue
		}
		select {
		case <-p.lines:
		default:
		}
		p.lines <- s
	}
}

// until waits for a state of the swarm. fastest is by how many its connected nodes grew
// at most from one report to the next, a second later.
func (p *swarmProcess) until(ctx context.Context, limit time.Duration, ok func(swarm.Stats) bool) (took time.Duration, fastest int, err error) {
	begin := time.Now()
	t := time.NewTimer(limit)
	defer t.Stop()
	var last *swarm.Stats
	for {
		select {
		case s := <-p.lines:
			if last != nil {
				fastest = max(fastest, s.Connected-last.Connected)
			}
			last = &s
			if ok(s) {
				return time.Since(begin), fastest, nil
			}
		case <-p.ended:
			return 0, 0, fmt.Errorf("the swarm ended: %s", tailOf(p.errs.String()))
		case <-t.C:
			if last == nil {
				last = new(swarm.Stats)
			}
			return 0, 0, fmt.Errorf("not within %v: %+v", limit, *last)
		case <-ctx.Done():
			return 0, 0, ctx.Err()
		}
	}
}

func (p *swarmProcess) stop() {
	p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.ended:
	case <-time.After(20 * time.Second):
		p.cmd.Process.Kill()
		<-p.ended
	}
}
