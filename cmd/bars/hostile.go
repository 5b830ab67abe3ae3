package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"tailrace/firmware-sim/hostile"
	"tailrace/firmware-sim/rawload"
)

// hostileMix measures 200 good devices at 2,000 publishes/s, alone and beside
// the attack, on a node with GOMEMLIMIT=128MiB. The attackers are a process of
// their own with nice 10: on a real site their CPU is not the node's.
func hostileMix(ctx context.Context, e *env) ([]row, error) {
	dir, err := e.sub("hostile")
	if err != nil {
		return nil, err
	}
	mp, err1 := freePort()
	hp, err2 := freePort()
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	conf := fmt.Sprintf(`node: node-1
storage:
  dir: data
  classes: [{name: main, when_full: reject, max_size: 4GiB, commit_interval: 0s}]
mqtt:
  listeners: [{address: "127.0.0.1:%d"}]
  auth: {password_file: passwd}
  client: {max_topics: 1000}
  max_logins: 8192 # so that all sockets of the attack can be open: by default 2048, and less of an attack
routes: [{topic: "load/#", stream: good}]
default: {stream: other}
http: {address: "127.0.0.1:%d"}
`, mp, hp)
	if err := os.WriteFile(filepath.Join(dir, "edge.yaml"), []byte(conf), 0o600); err != nil {
		return nil, err
	}
	for user, password := range map[string]string{"good": "good-password", "mallory": "stolen"} {
		c := exec.CommandContext(ctx, bin("tailrace"), "passwd", "add", filepath.Join(dir, "passwd"), user)
		c.Stdin = strings.NewReader(password + "\n")
		if out, err := c.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("tailrace passwd: %w: %s", err, out)
		}
	}
	d, err := start(dir, "env", "GOMEMLIMIT=128MiB", bin("tailrace-edge"), "-config", "edge.yaml")
	if err != nil {
		return nil, err
	}
	defer d.stop()
	url := fmt.Sprintf("http://127.0.0.1:%d", hp)
	if err := d.waitFor(ctx, ready(url+"/readyz")); err != nil {
		return nil, err
	}
	addr := fmt.Sprintf("127.0.0.1:%d", mp)
	// Quiet and attack in turns, on the same connections of the good devices: the machine is
	// not the same all the time. Phases: quiet, attack, and what lies between and is not measured.
	rounds, quietFor, attackFor, between := 3, 10*time.Second, 20*time.Second, 3*time.Second
	if e.short {
		rounds, quietFor, attackFor, between = 2, 3*time.Second, 5*time.Second, time.Second
	}
	load, err := rawload.New(rawload.Config{Dial: rawload.DialTCP(addr, nil), QoS: 1, Clients: 200, Window: 20, PayloadBytes: payloadBytes, Rate: 2000,
		Duration: time.Duration(rounds)*(quietFor+attackFor+between) + between, Phases: 3, ClientPrefix: "good", Username: "good", Password: "good-password", Drain: 30 * time.Second})
	if err != nil {
		return nil, err
	}
	type outcome struct {
		r   rawload.Result
		err error
	}
	loaded := make(chan outcome, 1)
	load.SetPhase(betweenPhase)
	go func() { r, err := load.Run(ctx); loaded <- outcome{r, err} }()
	if err := pause(ctx, between); err != nil {
		return nil, err
	}
	top := make(chan float64, 1)
	lctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { m, _ := d.sampleRSS(lctx, time.Hour); top <- m }()
	var what hostile.Result
	var logins []time.Duration
	var used time.Duration
	refused := 0
	for i := range rounds {
		load.SetPhase(quietPhase)
		if err := pause(ctx, quietFor); err != nil {
			return nil, err
		}
		load.SetPhase(attackPhase)
		before, _ := d.cpu()
		w, took, no, err := underAttack(ctx, addr, i, attackFor)
		if err != nil {
			return nil, fmt.Errorf("%w: %s", err, tailOf(d.out.String()))
		}
		load.SetPhase(betweenPhase)
		after, _ := d.cpu()
		used += after - before
		what, logins, refused = what.And(w), append(logins, took...), refused+no
		if err := pause(ctx, between); err != nil {
			return nil, err
		}
	}
	o := <-loaded
	cancel()
	rss := <-top
	if o.err != nil {
		return nil, fmt.Errorf("%w: %s", o.err, tailOf(d.out.String()))
	}
	r, quiet, attack := o.r, o.r.Phases[quietPhase], o.r.Phases[attackPhase]
	var st struct {
		Topics []struct {
			Topic   string `json:"topic"`
			Durable int64  `json:"durable"`
		} `json:"topics"`
	}
	if err := getJSON(url+"/api/v1/status", &st); err != nil {
		return nil, fmt.Errorf("the node has gone: %w: %s", err, tailOf(d.out.String()))
	}
	var stored int64
	for _, t := range st.Topics {
		if t.Topic == "good" {
			stored = t.Durable
		}
	}
	slices.Sort(logins)
	worst := time.Duration(0)
	if len(logins) > 0 {
		worst = logins[len(logins)-1]
	}
	cmd := "go run ./cmd/bars -only hostile"
	ratio := float64(attack.P99us) / float64(max(quiet.P99us, 1))
	seconds := float64(rounds) * attackFor.Seconds()
	return []row{
		{"hostile mix beside 200 devices at 2,000/s, GOMEMLIMIT 128 MiB", "no crash, no acknowledged loss", fmt.Sprintf("%d acked, %d stored, %d devices failed, %d bad logins let in, %.0f MB RSS at most; %.0f s of %s",
			r.Acked, stored, r.Failed, what.LetIn, rss, seconds, what), stored >= r.Acked && r.Acked > 0 && r.Failed == 0 && r.Reconnects == 0 && what.LetIn == 0, cmd},
		{"good p99 beside the hostile mix, in turns with quiet", "below 3x quiet", fmt.Sprintf("%.2fx (%d us against %d us; p50 %d against %d; %.0f of 2000/s; node %.2f cores)", ratio, attack.P99us, quiet.P99us, attack.P50us, quiet.P50us,
			float64(attack.Acked)/seconds, used.Seconds()/seconds), ratio < 3, cmd},
		{"a good device logs in during the attack", "always", fmt.Sprintf("%d of %d, at most %v", len(logins), len(logins)+refused, worst.Round(time.Millisecond)), refused == 0 && len(logins) > 0, cmd},
	}, nil
}

// Phases of the good devices' load.
const (
	quietPhase = iota
	attackPhase
	betweenPhase
)

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// underAttack runs the attackers for so long, while somebody new comes in once a second.
func underAttack(ctx context.Context, addr string, round int, dur time.Duration) (what hostile.Result, logins []time.Duration, refused int, err error) {
	self, err := os.Executable()
	if err != nil {
		return what, nil, 0, err
	}
	attack := exec.CommandContext(ctx, "nice", "-n", "10", self, "hostile-attack", addr, dur.String())
	var report lockedBuffer
	attack.Stdout, attack.Stderr = &report, os.Stderr
	attack.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := attack.Start(); err != nil {
		return what, nil, 0, err
	}
	done := make(chan error, 1)
	go func() { done <- attack.Wait() }()
	t := time.NewTicker(time.Second)
	defer t.Stop()
	for n := 0; ; n++ {
		select {
		case err := <-done:
			if err == nil {
				err = json.Unmarshal([]byte(report.String()), &what)
			}
			return what, logins, refused, err
		case <-t.C:
		}
		if took, err := hostile.Login(ctx, addr, fmt.Sprintf("late-%d-%d", round, n), "good", "good-password"); err != nil {
			refused++
			fmt.Fprintln(os.Stderr, "hostile: a good login:", err)
		} else {
			logins = append(logins, took)
		}
	}
}

// attackFrom is the process of the attackers.
func attackFrom(ctx context.Context, addr, duration string) error {
	dur, err := time.ParseDuration(duration)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, dur)
	defer cancel()
	return json.NewEncoder(os.Stdout).Encode(hostile.Run(ctx, hostile.Config{Target: addr, Idle: 5000, Slow: 1000, BadLogins: 2000, Topics: 200, ClientIDs: 50, Claims: 50,
		User: "mallory", Password: "stolen"}))
}
