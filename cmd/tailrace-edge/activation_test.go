//go:build linux

package main

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// The test is systemd: it opens the sockets, passes them by name, and a client that
// connects before the daemon runs waits for it.
func TestSocketsOfSystemdAreTakenByName(t *testing.T) {
	d := newDaemon(t, "")
	conf := filepath.Join(d.dir, "edge.yaml")
	body, _ := os.ReadFile(conf)
	os.WriteFile(conf, []byte(strings.Replace(string(body), `{address: "`+d.mqtt+`"}`, `{address: "systemd:mqtt-b"}, {address: "systemd:mqtt-a"}`, 1)), 0o600)
	var files []*os.File
	var addrs []string
	for range 3 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		f, err := l.(*net.TCPListener).File()
		if err != nil {
			t.Fatal(err)
		}
		l.Close()
		defer f.Close()
		files, addrs = append(files, f), append(addrs, l.Addr().String())
	}
	early, err := net.Dial("tcp", addrs[0])
	if err != nil {
		t.Fatal(err)
	}
	defer early.Close()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	d.cmd = exec.Command("sh", "-c", `LISTEN_PID=$$ exec "$0" -config "$1"`, exe, conf)
	d.cmd.Env = append(os.Environ(), "TAILRACE_EDGE_MAIN=1", "LISTEN_FDS=3", "LISTEN_FDNAMES=mqtt-a:mqtt-b:unused")
	d.cmd.ExtraFiles = files
	d.cmd.Stderr = &d.log
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	d.ready()
	other, err := net.Dial("tcp", addrs[1])
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	for _, nc := range []net.Conn{early, other} {
		nc.SetDeadline(time.Now().Add(30 * time.Second))
		nc.Write([]byte("\x10\x0d\x00\x04MQTT\x04\x02\x00\x3c\x00\x01a"))
		ack := make([]byte, 4)
		if _, err := nc.Read(ack); err != nil || ack[0] != 0x20 || ack[3] != 0 {
			t.Fatalf("CONNACK % x, %v", ack, err)
		}
	}
	d.stop()
	if !strings.Contains(d.log.String(), "unused") {
		t.Errorf("nothing said of the socket that nobody uses")
	}
}
