package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// env is where a run works and what it has started.
type env struct {
	dir   string
	short bool
	nodes int // on one hub; 0 = the bar's
	n     int
	tls   string // of the listener of the nodes that are started, as in ", tls: {…}"
}

func (e *env) sub(name string) (string, error) {
	e.n++
	d := filepath.Join(e.dir, fmt.Sprintf("%02d-%s", e.n, name))
	return d, os.MkdirAll(d, 0o700)
}

func bin(name string) string {
	p, err := filepath.Abs(filepath.Join("bin", name))
	if err != nil {
		return name
	}
	return p
}

func commit() string {
	b, err := exec.Command("git", "describe", "--always", "--dirty").Output()
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(b))
}

// daemon is a process under measurement.
type daemon struct {
	cmd  *exec.Cmd
	out  bytes.Buffer
	done chan struct{}
}

func start(dir, name string, args ...string) (*daemon, error) {
	d := &daemon{cmd: exec.Command(name, args...), done: make(chan struct{})}
	d.cmd.Dir = dir
	d.cmd.Stdout, d.cmd.Stderr = &d.out, &d.out
	if err := d.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	go func() {
		d.cmd.Wait()
		close(d.done)
	}()
	return d, nil
}

// stop ends the daemon and returns the CPU time it used in all.
func (d *daemon) stop() time.Duration {
	d.cmd.Process.Signal(os.Interrupt)
	t := time.NewTimer(15 * time.Second)
	defer t.Stop()
	select {
	case <-d.done:
	case <-t.C:
		d.cmd.Process.Kill()
		<-d.done
	}
	return d.cmd.ProcessState.UserTime() + d.cmd.ProcessState.SystemTime()
}

// waitFor polls until f succeeds, the daemon ends or a limit passes.
func (d *daemon) waitFor(ctx context.Context, f func() error) error {
	ctx, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := f()
		if err == nil {
			return nil
		}
		select {
		case <-d.done:
			return fmt.Errorf("%s ended: %s", d.cmd.Path, tailOf(d.out.String()))
		case <-ctx.Done():
			return fmt.Errorf("%s: %w (last: %v)", d.cmd.Path, ctx.Err(), err)
		case <-tick.C:
		}
	}
}

func tailOf(s string) string { return s[max(0, len(s)-2000):] }

func ready(url string) func() error {
	return func() error {
		resp, err := http.Get(url)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<20))
		if resp.StatusCode != http.StatusOK {
			return errors.New(resp.Status)
		}
		return nil
	}
}

func listening(addr string) func() error {
	return func() error {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			return err
		}
		return c.Close()
	}
}

func freePort() (int, error) {
	var busy error
	for range 50 { // the kernel picks a free TCP port, a hub wants it for UDP, too
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			return 0, err
		}
		port := l.Addr().(*net.TCPAddr).Port
		u, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port})
		l.Close()
		if err == nil {
			u.Close()
			return port, nil
		}
		busy = err
	}
	return 0, busy
}

// rss is the resident memory of the process in bytes (VmRSS of /proc).
func (d *daemon) rss() (int64, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/status", d.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if v, ok := strings.CutPrefix(s.Text(), "VmRSS:"); ok {
			kb, err := strconv.ParseInt(strings.Fields(v)[0], 10, 64)
			return kb * 1024, err
		}
	}
	return 0, errors.New("no VmRSS")
}

// cpu is the CPU time the process has used so far (fields 14 and 15 of /proc/pid/stat, in 1/100 s).
func (d *daemon) cpu() (time.Duration, error) { return cpuOf(d.cmd.Process.Pid) }

func cpuOf(pid int) (time.Duration, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+2:]))
	u, err1 := strconv.ParseInt(f[11], 10, 64)
	s, err2 := strconv.ParseInt(f[12], 10, 64)
	return time.Duration(u+s) * 10 * time.Millisecond, errors.Join(err1, err2)
}

// edgeNode starts a node alone (no uplink unless hub is set) and waits until it is ready.
func (e *env) edgeNode(ctx context.Context, hub string, wrap ...string) (d *daemon, mqtt string, httpURL string, err error) {
	dir, err := e.sub("edge")
	if err != nil {
		return nil, "", "", err
	}
	mp, err1 := freePort()
	hp, err2 := freePort()
	if err := errors.Join(err1, err2); err != nil {
		return nil, "", "", err
	}
	uplink := ""
	if hub != "" {
		uplink = fmt.Sprintf("uplink:\n  hubs: [%q]\n  tls: {cert: %[2]s/certs/node-1.crt, key: %[2]s/certs/node-1.key, ca: %[2]s/certs/ca.crt, server_name: localhost}\n", hub, e.dir)
	}
	conf := fmt.Sprintf(`node: node-1
storage:
  dir: data
  classes: [{name: main, when_full: reject, max_size: 4GiB, commit_interval: 0s}]
mqtt:
  listeners: [{address: "127.0.0.1:%d"%s}]
  auth: {allow_anonymous: true}
default: {stream: load}
%shttp: {address: "127.0.0.1:%d"}
`, mp, e.tls, uplink, hp)
	if err := os.WriteFile(filepath.Join(dir, "edge.yaml"), []byte(conf), 0o600); err != nil {
		return nil, "", "", err
	}
	args := append(slices.Clone(wrap), bin("tailrace-edge"), "-config", "edge.yaml")
	if d, err = start(dir, args[0], args[1:]...); err != nil {
		return nil, "", "", err
	}
	httpURL = fmt.Sprintf("http://127.0.0.1:%d", hp)
	if err = d.waitFor(ctx, ready(httpURL+"/readyz")); err != nil {
		d.stop()
	}
	return d, fmt.Sprintf("127.0.0.1:%d", mp), httpURL, err
}

// hub starts a hub and returns its uplink, HTTP and Kafka addresses.
func (e *env) hub(ctx context.Context) (d *daemon, quic, httpURL, kafka string, err error) {
	dir, err := e.sub("hub")
	if err != nil {
		return nil, "", "", "", err
	}
	if out, err := exec.CommandContext(ctx, bin("tailrace"), "dev-certs", "--dir", filepath.Join(e.dir, "certs")).CombinedOutput(); err != nil {
		return nil, "", "", "", fmt.Errorf("dev-certs: %w: %s", err, out)
	}
	var ports [3]int
	for i := range ports {
		if ports[i], err = freePort(); err != nil {
			return nil, "", "", "", err
		}
	}
	conf := fmt.Sprintf(`data_dir: data
listen: 127.0.0.1:%d
tls: {cert: %[2]s/certs/hub.crt, key: %[2]s/certs/hub.key, ca: %[2]s/certs/ca.crt}
http: {listen: "127.0.0.1:%[3]d"}
kafka: {listen: "127.0.0.1:%[4]d"}
topics: [{match: "*", partitions: 1}]
`, ports[0], e.dir, ports[1], ports[2])
	if err := os.WriteFile(filepath.Join(dir, "hub.yaml"), []byte(conf), 0o600); err != nil {
		return nil, "", "", "", err
	}
	if d, err = start(dir, bin("tailrace-hub"), "-config", "hub.yaml"); err != nil {
		return nil, "", "", "", err
	}
	httpURL = fmt.Sprintf("http://127.0.0.1:%d", ports[1])
	if err = d.waitFor(ctx, ready(httpURL+"/readyz")); err != nil {
		d.stop()
	}
	return d, fmt.Sprintf("127.0.0.1:%d", ports[0]), httpURL, fmt.Sprintf("127.0.0.1:%d", ports[2]), err
}

func median[T int64 | float64 | time.Duration](v []T) T {
	s := slices.Clone(v)
	slices.Sort(s)
	return s[len(s)/2]
}

// lockedBuffer collects what a process prints while others look at it.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
