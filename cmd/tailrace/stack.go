package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// stack is the whole system on this machine: a hub, nodes, a link between them that
// can be cut, each daemon a process of its own, everything below one directory.
type stack struct {
	dir    string
	opts   stackOptions
	hub    *proc
	nodes  []*stackNode
	relay  *relay
	quic   int // hub's UDP port
	http   int
	kafka  int
	moved  []string // notes about ports that were taken
	edge   []string // command of a node without its arguments
	hubBin string
}

type stackNode struct {
	id   string
	mqtt int
	http int
	proc *proc
}

type stackOptions struct {
	nodes     int
	edgeExec  string // command that runs a node instead of the binary beside this one, for example under an emulator
	usual     bool   // try the usual ports first
	readyTime time.Duration
}

const (
	stackTopic     = "wind.telemetry"
	stackReadyTime = 30 * time.Second
	// stopGrace is how long a daemon may take to flush and end.
	stopGrace = 15 * time.Second
)

// newStack makes directory, certificates and configuration, and picks ports.
func newStack(dir string, o stackOptions) (*stack, error) {
	s := &stack{dir: dir, opts: o}
	if s.opts.readyTime == 0 {
		s.opts.readyTime = stackReadyTime
	}
	var err error
	if s.hubBin, err = binary("tailrace-hub"); err != nil {
		return nil, err
	}
	if o.edgeExec != "" {
		s.edge = strings.Fields(o.edgeExec)
	} else {
		bin, err := binary("tailrace-edge")
		if err != nil {
			return nil, err
		}
		s.edge = []string{bin}
	}
	port := func(what string, usual int) int {
		if err != nil {
			return 0
		}
		want := usual
		if !o.usual {
			want = 0
		}
		var p int
		if p, err = freePort(want); err == nil && want != 0 && p != want {
			s.moved = append(s.moved, fmt.Sprintf("port %d is taken, %s uses %d", want, what, p))
		}
		return p
	}
	s.quic, s.http, s.kafka = port("the hub's uplink", 7443), port("the hub's HTTP", 8080), port("the hub's Kafka listener", 9092)
	var ids []string
	for i := range o.nodes {
		n := &stackNode{id: fmt.Sprintf("node-%d", i+1), mqtt: port("MQTT of a node", 1883+i), http: port("HTTP of a node", 8081+i)}
		s.nodes = append(s.nodes, n)
		ids = append(ids, n.id)
	}
	if err != nil {
		return nil, err
	}
	if _, err := writeDevCerts(filepath.Join(dir, "certs"), ids, nil, time.Now()); err != nil {
		return nil, err
	}
	return s, s.writeHubConfig()
}

func (s *stack) writeHubConfig() error {
	return os.WriteFile(filepath.Join(s.dir, "hub.yaml"), fmt.Appendf(nil, `data_dir: hub
listen: 127.0.0.1:%d
tls: {cert: certs/hub.crt, key: certs/hub.key, ca: certs/ca.crt}
http: {listen: "127.0.0.1:%d"}
kafka: {listen: "127.0.0.1:%d"}
topics:
  - {match: "*", partitions: 2}
`, s.quic, s.http, s.kafka), 0o600)
}

func (s *stack) writeNodeConfig(n *stackNode) error {
	return os.WriteFile(filepath.Join(s.dir, n.id+".yaml"), fmt.Appendf(nil, `node: %s
storage:
  dir: %s
  classes:
    - {name: main, when_full: reject, max_size: 1GiB}
mqtt:
  listeners:
    - {address: "127.0.0.1:%d"}
  auth: {allow_anonymous: true}   # a demo on loopback
routes:
  - {topic: "site/{site}/turbine/{turbine}/telemetry", stream: %s, key: "{turbine}", time: {encoding: json, field: ts, format: unix_ms}}
  - {topic: "site/{site}/turbine/{turbine}/status", stream: wind.status, key: "{turbine}"}
  - {topic: "factory/{line}/machine/{machine}/telemetry", stream: factory.telemetry, key: "{machine}", time: {encoding: json, field: ts, format: unix_ms}}
default: {stream: unrouted}
uplink:
  hubs: ["%s"]
  tls: {cert: certs/%s.crt, key: certs/%s.key, ca: certs/ca.crt, server_name: localhost}
http: {address: "127.0.0.1:%d"}
`, n.id, n.id, n.mqtt, stackTopic, s.relay.addr(), n.id, n.id, n.http), 0o600)
}

// start brings hub, relay and nodes up and returns when all are ready.
func (s *stack) start(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, s.opts.readyTime)
	defer cancel()
	var err error
	if s.relay, err = newRelay(fmt.Sprintf("127.0.0.1:%d", s.quic)); err != nil {
		return err
	}
	if err := s.startHub(ctx); err != nil {
		return err
	}
	for _, n := range s.nodes {
		if err := s.writeNodeConfig(n); err != nil {
			return err
		}
		if err := s.startNode(ctx, n); err != nil {
			return err
		}
	}
	return nil
}

func (s *stack) startHub(ctx context.Context) error {
	var err error
	if s.hub, err = startProc(s.dir, "hub", s.hubBin, "-config", "hub.yaml"); err != nil {
		return err
	}
	return s.hub.waitReady(ctx, s.hubURL()+"/readyz")
}

func (s *stack) startNode(ctx context.Context, n *stackNode) error {
	args := append(append([]string{}, s.edge[1:]...), "-config", n.id+".yaml")
	var err error
	if n.proc, err = startProc(s.dir, n.id, s.edge[0], args...); err != nil {
		return err
	}
	return n.proc.waitReady(ctx, fmt.Sprintf("http://127.0.0.1:%d/readyz", n.http))
}

// waitTopic returns once the hub serves the topic.
func (s *stack) waitTopic(ctx context.Context, topic string) error {
	ctx, cancel := context.WithTimeout(ctx, s.opts.readyTime)
	defer cancel()
	return s.hub.waitReady(ctx, s.hubURL()+"/api/v1/topics/"+topic)
}

func (s *stack) hubURL() string    { return fmt.Sprintf("http://127.0.0.1:%d", s.http) }
func (s *stack) kafkaAddr() string { return fmt.Sprintf("127.0.0.1:%d", s.kafka) }

// stop ends everything in order: nodes first, so that the hub can take their last
// records.
func (s *stack) stop() {
	for _, n := range s.nodes {
		n.proc.stop(stopGrace)
	}
	s.hub.stop(stopGrace)
	if s.relay != nil {
		s.relay.close()
	}
}

// failed returns the first daemon that ended though nobody stopped it.
func (s *stack) failed() error {
	ps := []*proc{s.hub}
	for _, n := range s.nodes {
		ps = append(ps, n.proc)
	}
	for _, p := range ps {
		select {
		case <-p.done:
			return p.ended()
		default:
		}
	}
	return nil
}

// workDir makes the directory of a run. done removes it, unless keep.
func workDir(dir string, keep bool) (path string, done func() error, err error) {
	if dir != "" {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return "", nil, err
		}
		entries, err := os.ReadDir(dir)
		if err != nil {
			return "", nil, err
		}
		if len(entries) > 0 {
			return "", nil, &exitError{exitUsage, errors.New("--dir " + dir + " is not empty: name a new directory")}
		}
		abs, err := filepath.Abs(dir)
		return abs, func() error { return nil }, err
	}
	path, err = os.MkdirTemp("", "tailrace-demo-")
	return path, func() error {
		if keep {
			return nil
		}
		return os.RemoveAll(path)
	}, err
}
