//go:build linux

package kill

import (
	"crypto/rand"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"tailrace/uplink/pki"
)

// site is one hub and one node on loopback, with directories, certificates and
// configuration files made for it.
type site struct {
	dir       string
	node, hub *proc

	mqtt, nodeHTTP, hubHTTP, kafka, quic string // addresses
}

// newSite builds the daemons and writes what they need. It starts nothing.
func newSite(dir string) (*site, error) {
	s := &site{dir: dir}
	for _, d := range []string{"certs", "node", "hub"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return nil, err
		}
	}
	for _, name := range []string{"tailrace-edge", "tailrace-hub"} {
		build := exec.Command("go", "build", "-o", filepath.Join(dir, name), "tailrace/cmd/"+name)
		if out, err := build.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("build %s: %w\n%s", name, err, out)
		}
	}
	if err := s.certs(); err != nil {
		return nil, err
	}
	for _, a := range []*string{&s.mqtt, &s.nodeHTTP, &s.hubHTTP, &s.kafka} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close()
		*a = l.Addr().String()
	}
	u, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	defer u.Close()
	s.quic = u.LocalAddr().String()

	at := func(name string) string { return filepath.Join(dir, name) }
	edge := fmt.Sprintf(edgeConfig, at("node"), s.mqtt, s.quic, at("certs"), s.nodeHTTP)
	hub := fmt.Sprintf(hubConfig, at("hub"), s.quic, at("certs"), s.hubHTTP, s.kafka)
	if err := os.WriteFile(at("edge.yaml"), []byte(edge), 0o600); err != nil {
		return nil, err
	}
	if err := os.WriteFile(at("hub.yaml"), []byte(hub), 0o600); err != nil {
		return nil, err
	}
	s.node = newProc("node", at("tailrace-edge"), "--config", at("edge.yaml"))
	s.hub = newProc("hub", at("tailrace-hub"), "--config", at("hub.yaml"))
	return s, nil
}

const nodeID = "node-1"

const edgeConfig = `node: ` + nodeID + `
storage:
  dir: %[1]s
  classes:
    - {name: main, when_full: reject, segment_size: 256KiB, commit_interval: 0s}
mqtt:
  listeners:
    - {address: "%[2]s"}
  auth: {allow_anonymous: true}
default: {stream: telemetry}
uplink:
  hubs: ["%[3]s"]
  tls: {cert: %[4]s/node-1.crt, key: %[4]s/node-1.key, ca: %[4]s/ca.crt}
http: {address: "%[5]s"}
log: {level: warn, format: text}
`

const hubConfig = `data_dir: %[1]s
listen: "%[2]s"
tls: {cert: %[3]s/hub.crt, key: %[3]s/hub.key, ca: %[3]s/ca.crt}
http: {listen: "%[4]s"}
kafka: {listen: "%[5]s"}
classes: [{name: data, segment_bytes: 1MiB}]
topics: [{match: "*", partitions: 3}]
log: {level: warn, format: text}
`

// certs makes an authority, a certificate for the hub and one for the node.
func (s *site) certs() error {
	now := time.Now()
	ca, pair, err := pki.NewCA(rand.Reader, "kill test", now, 24*time.Hour)
	if err != nil {
		return err
	}
	files := map[string][]byte{"ca.crt": pair.Cert}
	for name, role := range map[string]pki.Role{"hub": pki.RoleHub, nodeID: pki.RoleNode} {
		p, err := ca.Issue(rand.Reader, role, name, []string{"localhost", "127.0.0.1"}, now, 24*time.Hour)
		if err != nil {
			return err
		}
		files[name+".crt"], files[name+".key"] = p.Cert, p.Key
	}
	for name, b := range files {
		if err := os.WriteFile(filepath.Join(s.dir, "certs", name), b, 0o600); err != nil {
			return err
		}
	}
	return nil
}
