package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

type node struct {
	cmd  *exec.Cmd
	dir  string
	mqtt string
	done chan struct{}
}

// startNode starts a tailrace-edge with a data directory of its own, as the suites
// want it. acl is a list of rules, "" = none.
func startNode(binary, acl string) (*node, error) {
	binary, err := filepath.Abs(binary)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "tailrace-conformance")
	if err != nil {
		return nil, err
	}
	mp, err1 := freePort()
	hp, err2 := freePort()
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	if acl != "" {
		acl = "    acl: " + acl
	}
	conf := fmt.Sprintf(nodeConfig, mp, acl, hp)
	if err := os.WriteFile(filepath.Join(dir, "edge.yaml"), []byte(conf), 0o600); err != nil {
		return nil, err
	}
	out, err := os.Create(filepath.Join(dir, "node.log"))
	if err != nil {
		return nil, err
	}
	defer out.Close()
	n := &node{cmd: exec.Command(binary, "-config", "edge.yaml"), dir: dir, mqtt: fmt.Sprintf("127.0.0.1:%d", mp), done: make(chan struct{})}
	n.cmd.Dir, n.cmd.Stdout, n.cmd.Stderr = dir, out, out
	if err := n.cmd.Start(); err != nil {
		return nil, err
	}
	go func() { n.cmd.Wait(); close(n.done) }()
	for end := time.Now().Add(30 * time.Second); ; {
		resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/readyz", hp))
		if err == nil {
			io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return n, nil
			}
		}
		select {
		case <-n.done:
			log, _ := os.ReadFile(filepath.Join(dir, "node.log"))
			return nil, fmt.Errorf("%s ended: %s", binary, log)
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(end) {
			n.stop()
			return nil, errors.New("node is not ready after 30 s")
		}
	}
}

const nodeConfig = `node: conformance
storage:
  dir: data
  classes: [{name: main, when_full: reject, max_size: 1GiB, commit_interval: 0s}]
mqtt:
  listeners: [{address: "127.0.0.1:%d"}]
  max_keep_alive: 60s
  terse_refusals: true
  auth:
    allow_anonymous: true
%s
default: {stream: all}
http: {address: "127.0.0.1:%d"}
log: {level: warn}
`

func (n *node) stop() {
	n.cmd.Process.Signal(os.Interrupt)
	select {
	case <-n.done:
	case <-time.After(20 * time.Second):
		n.cmd.Process.Kill()
		<-n.done
	}
	os.RemoveAll(n.dir)
}

func freePort() (int, error) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// readKnown reads names of wire cases, one a line; what follows a tab is for readers.
func readKnown(file string) (map[string]bool, error) {
	known := map[string]bool{}
	if file == "" {
		return known, nil
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if name, _, _ := strings.Cut(s.Text(), "\t"); name != "" && name[0] != '#' {
			known[name] = true
		}
	}
	return known, nil
}
