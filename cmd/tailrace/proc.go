package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

// proc is a daemon started as a child process, its output in a file of its own.
type proc struct {
	name string
	log  string
	cmd  *exec.Cmd
	done chan struct{} // closed once the process has ended; err is set before
	err  error
}

// binary finds one of our commands beside this one, then on the PATH.
func binary(name string) (string, error) {
	if runtime.GOOS == "windows" {
		name += ".exe"
	}
	if self, err := os.Executable(); err == nil {
		p := filepath.Join(filepath.Dir(self), name)
		if st, err := os.Stat(p); err == nil && !st.IsDir() {
			return p, nil
		}
	}
	p, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("%s is neither beside this program nor on the PATH: build all commands with `make build`", name)
	}
	return p, nil
}

// startProc starts a command whose output goes to dir/name.log. The child ends with
// this process where the platform can promise it, and does not see its Ctrl-C: the
// order of shutdown is ours.
func startProc(dir, name, path string, args ...string) (*proc, error) {
	p := &proc{name: name, log: filepath.Join(dir, name+".log"), done: make(chan struct{})}
	out, err := os.OpenFile(p.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	p.cmd = exec.Command(path, args...)
	p.cmd.Dir = dir
	p.cmd.Stdout, p.cmd.Stderr = out, out
	detach(p.cmd)
	if err := p.cmd.Start(); err != nil {
		out.Close()
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	go func() {
		p.err = p.cmd.Wait()
		out.Close()
		close(p.done)
	}()
	return p, nil
}

// stop asks the process to end and kills it when the grace has passed.
func (p *proc) stop(grace time.Duration) {
	if p == nil {
		return
	}
	terminate(p.cmd.Process)
	t := time.NewTimer(grace)
	defer t.Stop()
	select {
	case <-p.done:
	case <-t.C:
		p.cmd.Process.Kill()
		<-p.done
	}
}

// kill is a SIGKILL, as a power cut for the process.
func (p *proc) kill() {
	p.cmd.Process.Kill()
	<-p.done
}

// ended is the error to report when the process is gone though nobody stopped it.
func (p *proc) ended() error {
	tail := lastLines(p.log, 12)
	return fmt.Errorf("%s ended by itself (%v); its last words:\n%s", p.name, p.err, tail)
}

func lastLines(path string, n int) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	ls := strings.Split(strings.TrimRight(string(b), "\n"), "\n")
	return "  " + strings.Join(ls[max(0, len(ls)-n):], "\n  ")
}

// waitReady polls url until it answers 200, the process ends or ctx does.
func (p *proc) waitReady(ctx context.Context, url string) error {
	tick := time.NewTicker(25 * time.Millisecond)
	defer tick.Stop()
	hc := &http.Client{Timeout: time.Second}
	for {
		if resp, err := hc.Get(url); err == nil {
			io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10))
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-tick.C:
		case <-p.done:
			return p.ended()
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready: %w; its last words:\n%s", p.name, ctx.Err(), lastLines(p.log, 12))
		}
	}
}

// freePort returns want when nobody listens there on loopback, else a free port.
// Both networks are tried, since the hub's uplink is UDP.
func freePort(want int) (port int, err error) {
	try := func(p int) (int, error) {
		l, err := net.Listen("tcp4", fmt.Sprintf("127.0.0.1:%d", p))
		if err != nil {
			return 0, err
		}
		defer l.Close()
		p = l.Addr().(*net.TCPAddr).Port
		u, err := net.ListenPacket("udp4", fmt.Sprintf("127.0.0.1:%d", p))
		if err != nil {
			return 0, err
		}
		return p, u.Close()
	}
	if want > 0 {
		if p, err := try(want); err == nil {
			return p, nil
		}
	}
	for range 20 {
		if port, err = try(0); err == nil {
			return port, nil
		}
	}
	return 0, fmt.Errorf("find a free port on 127.0.0.1: %w", err)
}
