//go:build linux

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"tailrace/edge/auth"
	"tailrace/firmware-sim/hostile"
)

// Passwords are hashed by a child with less priority, of which no list of processes tells more
// than its name.
func TestPasswordsAreHashedByAChild(t *testing.T) {
	h, err := auth.Hash([]byte("open sesame"))
	if err != nil {
		t.Fatal(err)
	}
	d := newDaemon(t, "")
	passwd := filepath.Join(d.dir, "passwd")
	conf := filepath.Join(d.dir, "edge.yaml")
	b, err := os.ReadFile(conf)
	if err != nil {
		t.Fatal(err)
	}
	b = []byte(strings.Replace(string(b), "auth: {allow_anonymous: true}", "auth: {password_file: "+passwd+"}", 1))
	if err := os.WriteFile(conf, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(passwd, []byte("plc:"+h+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	d.start()
	if _, err := hostile.Login(t.Context(), d.mqtt, "c", "plc", "open sesame"); err != nil {
		t.Fatal(err)
	}
	if _, err := hostile.Login(t.Context(), d.mqtt, "c", "plc", "open barley"); err == nil {
		t.Error("a wrong password lets in")
	}
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", d.cmd.Process.Pid))
	var children string
	for _, l := range lists {
		b, _ := os.ReadFile(l)
		children += string(b)
	}
	var child int
	if _, err := fmt.Sscan(children, &child); err != nil {
		t.Fatalf("no child (%v): %s", err, d.log.String())
	}
	line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", child))
	if args := strings.Split(strings.TrimRight(string(line), "\x00"), "\x00"); len(args) != 2 || args[1] != hashWorker {
		t.Errorf("command line %q", line)
	}
	if p, err := syscall.Getpriority(syscall.PRIO_PROCESS, child); err != nil || 20-p != 10 { // as the kernel counts
		t.Errorf("nice %d, %v", 20-p, err)
	}
	d.kill()
	if log := d.log.String(); strings.Contains(log, "sesame") || strings.Contains(log, "barley") || strings.Contains(log, "hashed in this process") {
		t.Error(log)
	}
}
