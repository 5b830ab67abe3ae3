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

// hostileMix measures 200 good devices at 2,000 publishes/s, first alone and then beside
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
	quietFor, attackFor := 15*time.Second, 60*time.Second
	if e.short {
		quietFor, attackFor = 5*time.Second, 8*time.Second
	}
	good := func(prefix string, dur time.Duration) (rawload.Result, error) {
		return rawload.Run(ctx, rawload.Config{Dial: rawload.DialTCP(addr, nil), QoS: 1, Clients: 200, Window: 20, PayloadBytes: payloadBytes, Rate: 2000,
			Duration: dur, ClientPrefix: prefix, Username: "good", Password: "good-password", Drain: 30 * time.Second})
	}
	quiet, err := good("quiet", quietFor)
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	attack := exec.CommandContext(ctx, "nice", "-n", "10", self, "hostile-attack", addr, (attackFor + 2*time.Second).String())
	attack.Stderr = os.Stderr
	var report lockedBuffer
	attack.Stdout = &report
	attack.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := attack.Start(); err != nil {
		return nil, err
	}
	// Somebody new comes in once a second meanwhile.
	lctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var logins []time.Duration
	refused := 0
	probed := make(chan struct{})
	go func() {
		defer close(probed)
		t := time.NewTicker(time.Second)
		defer t.Stop()
		for n := 0; ; n++ {
			select {
			case <-t.C:
			case <-lctx.Done():
				return
			}
			took, err := hostile.Login(lctx, addr, fmt.Sprintf("late-%d", n), "good", "good-password")
			if lctx.Err() != nil {
				return
			}
			if err != nil {
				refused++
			} else {
				logins = append(logins, took)
			}
		}
	}()
	top := make(chan float64, 1)
	go func() { m, _ := d.sampleRSS(lctx, attackFor); top <- m }()
	used, _ := d.cpu()
	r, err := good("good", attackFor)
	after, _ := d.cpu()
	cancel()
	<-probed
	rss := <-top
	werr := attack.Wait()
	if err := errors.Join(err, werr); err != nil {
		return nil, fmt.Errorf("%w: %s", err, tailOf(d.out.String()))
	}
	var what hostile.Result
	if err := json.Unmarshal([]byte(report.String()), &what); err != nil {
		return nil, err
	}
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
	acked := quiet.Acked + r.Acked
	slices.Sort(logins)
	worst := time.Duration(0)
	if len(logins) > 0 {
		worst = logins[len(logins)-1]
	}
	cmd := "go run ./cmd/bars -only hostile"
	ratio := float64(r.P99us) / float64(max(quiet.P99us, 1))
	return []row{
		{"hostile mix beside 200 devices at 2,000/s, GOMEMLIMIT 128 MiB", "no crash, no acknowledged loss", fmt.Sprintf("%d acked, %d stored, %d clients failed, %d bad logins let in, %.0f MB RSS at most; %s",
			acked, stored, r.Failed, what.LetIn, rss, what), stored >= acked && acked > 0 && r.Failed == 0 && what.LetIn == 0, cmd},
		{"good p99 beside the hostile mix", "below 3x quiet", fmt.Sprintf("%.2fx (%d us against %d us; p50 %d against %d; %.0f of 2000/s; node %.2f cores)", ratio, r.P99us, quiet.P99us, r.P50us, quiet.P50us, r.PerSecond, (after-used).Seconds()/attackFor.Seconds()), ratio < 3, cmd},
		{"a good device logs in during the attack", "always", fmt.Sprintf("%d of %d, at most %v", len(logins), len(logins)+refused, worst.Round(time.Millisecond)), refused == 0 && len(logins) > 0, cmd},
	}, nil
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
