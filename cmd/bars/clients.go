package main

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// idleClients measures what connections cost a real node that do nothing: 5,000, then
// 15,000, persistent MQTT 3.1.1 sessions that have subscribed, from many loopback
// addresses since one has only so many ports and the node its limits per address.
func idleClients(ctx context.Context, e *env) ([]row, error) {
	most, targets := 15_000, []idleTarget{{5_000, 40}, {15_000, 120}}
	var lim syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &lim); err == nil && lim.Cur < uint64(most)+500 {
		lim.Cur = min(lim.Max, uint64(most)+500)
		syscall.Setrlimit(syscall.RLIMIT_NOFILE, &lim)
	}
	var rows []row
	for _, t := range []bool{false, true} {
		rs, err := e.idleClients(ctx, t, targets)
		if rows = append(rows, rs...); err != nil {
			return rows, err
		}
		targets = targets[:1]
	}
	return rows, nil
}

// idleTarget is what n clients may cost.
type idleTarget struct {
	n  int
	mb float64
}

// idleClients holds clients of a new node; those over TLS are stated, since the state of
// a TLS connection alone is several times what a plain one costs.
func (e *env) idleClients(ctx context.Context, secure bool, targets []idleTarget) ([]row, error) {
	over := ""
	if secure {
		over = " over TLS"
		certs := filepath.Join(e.dir, "certs")
		if out, err := exec.CommandContext(ctx, bin("tailrace"), "dev-certs", "--dir", certs).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("dev-certs: %w: %s", err, out)
		}
		e.tls = fmt.Sprintf(", tls: {cert: %[1]s/hub.crt, key: %[1]s/hub.key}", certs)
		defer func() { e.tls = "" }()
	}
	d, mqtt, _, err := e.edgeNode(ctx, "")
	if err != nil {
		return nil, err
	}
	defer d.stop()
	var conns []net.Conn
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	var rows []row
	for _, t := range targets {
		if e.short && t.n > targets[0].n {
			break
		}
		for len(conns) < t.n {
			if ctx.Err() != nil {
				return rows, ctx.Err()
			}
			c, err := idleClient(mqtt, len(conns), secure)
			if err != nil {
				return rows, fmt.Errorf("client %d: %w", len(conns), err)
			}
			conns = append(conns, c)
		}
		mb, err := d.sampleRSS(ctx, 10*time.Second)
		if err != nil {
			return rows, err
		}
		target := fmt.Sprintf("under %.0f MB", t.mb)
		if secure {
			target = "stated"
		}
		rows = append(rows, row{fmt.Sprintf("node with %d idle clients%s, RSS", t.n, over), target, fmt.Sprintf("%.1f MB at most in 10 s", mb), secure || mb < t.mb, "go run ./cmd/bars -only clients"})
	}
	return rows, nil
}

// idleClient logs in and subscribes. Of one address come 100.
func idleClient(addr string, i int, secure bool) (net.Conn, error) {
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, byte(1+i/100/250), byte(1+i/100%250))}, Timeout: 20 * time.Second}
	c, err := dialer.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	if secure {
		c = tls.Client(c, &tls.Config{InsecureSkipVerify: true}) // whom it talks to is not what is measured
	}
	str := func(b []byte, s string) []byte { return append(binary.BigEndian.AppendUint16(b, uint16(len(s))), s...) }
	hello := append(str(nil, "MQTT"), 4, 0, 0, 0)
	hello = str(hello, fmt.Sprintf("idle-%05d", i))
	sub := str([]byte{0, 1}, fmt.Sprintf("command/idle-%05d", i))
	b := append([]byte{0x10, byte(len(hello))}, hello...)
	b = append(append(b, 0x82, byte(len(sub)+1)), sub...)
	c.SetDeadline(time.Now().Add(30 * time.Second))
	var answer [9]byte // CONNACK and SUBACK
	if _, err = c.Write(append(b, 1)); err == nil {
		_, err = io.ReadFull(c, answer[:])
	}
	if err == nil && (answer[0] != 0x20 || answer[3] != 0 || answer[8] != 1) {
		err = fmt.Errorf("refused: % x", answer)
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return c, c.SetDeadline(time.Time{})
}
