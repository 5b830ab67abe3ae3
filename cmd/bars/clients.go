package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"syscall"
	"time"
)

// idleClients measures what connections cost a real node that do nothing: 5,000, then
// 15,000, persistent MQTT 3.1.1 sessions that have subscribed, from many loopback
// addresses since one has only so many ports and the node its limits per address.
func idleClients(ctx context.Context, e *env) ([]row, error) {
	most, targets := 15_000, []struct {
		n  int
		mb float64
	}{{5_000, 40}, {15_000, 120}}
	var lim syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &lim); err == nil && lim.Cur < uint64(most)+500 {
		lim.Cur = min(lim.Max, uint64(most)+500)
		syscall.Setrlimit(syscall.RLIMIT_NOFILE, &lim)
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
			c, err := idleClient(mqtt, len(conns))
			if err != nil {
				return rows, fmt.Errorf("client %d: %w", len(conns), err)
			}
			conns = append(conns, c)
		}
		mb, err := d.sampleRSS(ctx, 10*time.Second)
		if err != nil {
			return rows, err
		}
		rows = append(rows, row{fmt.Sprintf("node with %d idle clients, RSS", t.n), fmt.Sprintf("under %.0f MB", t.mb), fmt.Sprintf("%.1f MB at most in 10 s", mb), mb < t.mb, "go run ./cmd/bars -only clients"})
	}
	return rows, nil
}

// idleClient logs in and subscribes. Of one address come 100.
func idleClient(addr string, i int) (net.Conn, error) {
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, byte(1+i/100/250), byte(1+i/100%250))}, Timeout: 20 * time.Second}
	c, err := dialer.Dial("tcp", addr)
	if err != nil {
		return nil, err
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
