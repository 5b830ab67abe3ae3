package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"tailrace/firmware-sim/rawload"
)

// flash measures what a node costs the flash: bytes that reach the block device, journal
// included, per byte of payload, at 100 events/s of 120 bytes over 32 topics, on file
// systems of its own on loop devices. It needs root. The short form runs 10 s each and
// only ext4 at 100 ms; the long one 60 s each.
func flash(ctx context.Context, e *env) ([]row, error) {
	cases := []struct {
		fs       string
		mkfs     []string
		interval string
		most     float64
	}{
		{"ext4", []string{"mkfs.ext4", "-q"}, "100ms", 20},
		{"ext4", []string{"mkfs.ext4", "-q"}, "1s", 4},
		{"ext4 fast_commit", []string{"mkfs.ext4", "-q", "-O", "fast_commit"}, "100ms", 8.5},
		{"ext4 fast_commit", []string{"mkfs.ext4", "-q", "-O", "fast_commit"}, "1s", 2},
		{"xfs", []string{"mkfs.xfs", "-q"}, "100ms", 0},
		{"xfs", []string{"mkfs.xfs", "-q"}, "1s", 0},
	}
	dur := 60 * time.Second
	if e.short {
		cases, dur = cases[:1], 10*time.Second
	}
	var rows []row
	for _, c := range cases {
		name := fmt.Sprintf("flash: device bytes per payload byte, %s, commit interval %s", c.fs, c.interval)
		r := row{Bar: name, Command: "go run ./cmd/bars -only flash (root)"}
		r.Target = "reported"
		if c.most > 0 {
			r.Target = fmt.Sprintf("at most %g", c.most)
		}
		m, err := e.flashRun(ctx, c.mkfs, c.interval, dur)
		if err != nil {
			r.Measured = "not measured: " + err.Error()
		} else {
			r.Measured = fmt.Sprintf("%.2f (the log's own bytes %.2f; %.1f KB/s to the device, %.0f fsyncs a minute, %d events in %v)",
				m.perByte, m.log, m.rate/1000, m.fsyncs, m.events, dur)
			r.OK = c.most == 0 || m.perByte <= c.most
		}
		rows = append(rows, r)
		if ctx.Err() != nil {
			break
		}
	}
	return rows, nil
}

type flashFigures struct {
	perByte, rate, fsyncs, log float64 // log: bytes of the log per byte of payload
	events                     int64
}

// flashRun runs the node on a fresh file system on a loop device.
func (e *env) flashRun(ctx context.Context, mkfs []string, interval string, dur time.Duration) (m flashFigures, err error) {
	dir, err := e.sub("flash")
	if err != nil {
		return m, err
	}
	image, mnt := filepath.Join(dir, "image"), filepath.Join(dir, "mnt")
	if err := errors.Join(os.Mkdir(mnt, 0o700), os.WriteFile(image, nil, 0o600), os.Truncate(image, 512<<20)); err != nil {
		return m, err
	}
	defer os.Remove(image)
	run := func(name string, args ...string) (string, error) {
		out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
		if err != nil {
			return "", fmt.Errorf("%s: %w: %s", name, err, strings.TrimSpace(string(out)))
		}
		return strings.TrimSpace(string(out)), nil
	}
	if _, err := run(mkfs[0], append(mkfs[1:], image)...); err != nil {
		return m, err
	}
	loop, err := run("losetup", "--find", "--show", image)
	if err != nil {
		return m, err
	}
	defer exec.Command("losetup", "--detach", loop).Run()
	if _, err := run("mount", "-o", "noatime", loop, mnt); err != nil {
		return m, err
	}
	defer exec.Command("umount", "-l", mnt).Run()
	d, addr, url, err := e.nodeOn(ctx, dir, mnt, interval)
	if err != nil {
		return m, err
	}
	defer d.stop()
	l, err := rawload.New(rawload.Config{Dial: rawload.DialTCP(addr, nil), QoS: 1, Clients: flashTopics, Window: 20, PayloadBytes: flashPayload,
		Topic: "t/{client}", Rate: 100})
	if err != nil {
		return m, err
	}
	lctx, stop := context.WithCancel(ctx)
	defer stop()
	type ended struct {
		res rawload.Result
		err error
	}
	done := make(chan ended, 1)
	go func() {
		res, err := l.Run(lctx)
		done <- ended{res, err}
	}()
	// What is measured is the steady state: all devices are connected, all topics made.
	for l.Progress().Acked < 5*flashTopics {
		select {
		case r := <-done:
			return m, fmt.Errorf("the load ended: %w %s", r.err, r.res.FirstError)
		case <-ctx.Done():
			return m, ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
	before, err := e.flashSample(run, l, loop, mnt, url)
	if err != nil {
		return m, err
	}
	select {
	case <-time.After(dur):
	case <-ctx.Done():
		return m, ctx.Err()
	}
	after, err := e.flashSample(run, l, loop, mnt, url)
	if err != nil {
		return m, err
	}
	stop()
	if r := <-done; r.res.Failed > 0 || r.res.Refused > 0 {
		return m, fmt.Errorf("%d devices failed, %d publishes were refused: %s", r.res.Failed, r.res.Refused, r.res.FirstError)
	}
	took := after.at.Sub(before.at)
	m.events = after.acked - before.acked
	if rate := float64(m.events) / took.Seconds(); rate < 94 || rate > 106 { // at an interval of 1 s the sample may miss a commit at either end
		return m, fmt.Errorf("%.1f events/s were acknowledged, not 100", rate)
	}
	written := float64(after.sectors-before.sectors) * 512
	m.perByte, m.rate = written/float64(m.events*flashPayload), written/took.Seconds()
	m.fsyncs = float64(after.fsyncs-before.fsyncs) / took.Minutes()
	if told := float64(after.device - before.device); told < 0.95*written || told > 1.05*written {
		return m, fmt.Errorf("the node's status tells of %.0f bytes written to the device, the block layer of %.0f", told, written)
	}
	m.log = float64(after.log-before.log) / float64(m.events*flashPayload)
	return m, nil
}

const (
	flashTopics  = 32
	flashPayload = 120
)

type flashSample struct {
	at                                  time.Time
	acked, sectors, fsyncs, log, device int64
}

// flashSample takes the counters once what lies in the page cache is written: it belongs
// to what came before.
func (e *env) flashSample(run func(string, ...string) (string, error), l *rawload.Load, loop, mnt, url string) (s flashSample, err error) {
	if _, err := run("sync", "-f", mnt); err != nil {
		return s, err
	}
	var status struct {
		Store struct {
			Flash struct {
				DeviceBytes int64 `json:"device_bytes"`
			}
			Classes []struct {
				Fsyncs       int64
				WrittenBytes int64 `json:"written_bytes"`
			}
		}
	}
	if err := getJSON(url+"/api/v1/status", &status); err != nil {
		return s, err
	}
	for _, c := range status.Store.Classes {
		s.fsyncs, s.log = s.fsyncs+c.Fsyncs, s.log+c.WrittenBytes
	}
	s.at, s.acked, s.device = time.Now(), l.Progress().Acked, status.Store.Flash.DeviceBytes
	s.sectors, err = sectors(loop)
	return s, err
}

// sectors is what the block device has written, in units of 512 bytes.
func sectors(device string) (int64, error) {
	b, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(device), "stat"))
	if err != nil {
		return 0, err
	}
	f := strings.Fields(string(b))
	if len(f) < 7 {
		return 0, fmt.Errorf("%s: short", device)
	}
	return strconv.ParseInt(f[6], 10, 64)
}

// nodeOn starts a node alone with its data below mnt.
func (e *env) nodeOn(ctx context.Context, dir, mnt, interval string) (d *daemon, mqtt, url string, err error) {
	mp, err1 := freePort()
	hp, err2 := freePort()
	if err := errors.Join(err1, err2); err != nil {
		return nil, "", "", err
	}
	conf := fmt.Sprintf(`node: node-1
storage:
  dir: %s/data
  classes: [{name: main, when_full: reject, max_size: 256MiB, commit_interval: %s}]
mqtt:
  listeners: [{address: "127.0.0.1:%d"}]
  auth: {allow_anonymous: true}
routes: [{topic: "t/{device}", stream: "s.{device}"}]
default: {reject: true}
http: {address: "127.0.0.1:%d"}
`, mnt, interval, mp, hp)
	if err := os.WriteFile(filepath.Join(dir, "edge.yaml"), []byte(conf), 0o600); err != nil {
		return nil, "", "", err
	}
	if d, err = start(dir, bin("tailrace-edge"), "-config", "edge.yaml"); err != nil {
		return nil, "", "", err
	}
	url = fmt.Sprintf("http://127.0.0.1:%d", hp)
	if err = d.waitFor(ctx, ready(url+"/readyz")); err != nil {
		d.stop()
	}
	return d, fmt.Sprintf("127.0.0.1:%d", mp), url, err
}
