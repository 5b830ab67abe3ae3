// Package cmd_test holds the rule of who may import whom (see README, "Map").
package cmd_test

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"strings"
	"testing"
)

// rules: a package under "pkg" must not depend, directly or not, on one under "not".
var rules = []struct{ pkg, not, why string }{
	{"tailrace/devices", "tailrace/storage", "leaves meet through small interfaces of their users"},
	{"tailrace/devices", "tailrace/uplink", "leaves meet through small interfaces of their users"},
	{"tailrace/devices", "tailrace/edge", "a leaf knows no composer"},
	{"tailrace/storage", "tailrace/devices", "leaves meet through small interfaces of their users"},
	{"tailrace/storage", "tailrace/uplink", "storage is ignorant of networks"},
	{"tailrace/storage", "tailrace/edge", "a leaf knows no composer"},
	{"tailrace/storage", "github.com/quic-go", "storage is ignorant of networks"},
	{"tailrace/uplink/link", "tailrace/storage", "the link takes a Source and a Sink, not a store"},
	{"tailrace/uplink/link", "tailrace/uplink/hub", "the hub imports the link, not the other way round"},
	{"tailrace/uplink/wire", "github.com/quic-go", "the wire format knows no transport"},
	{"tailrace/uplink/wire", "tailrace/uplink/link", "the wire format knows no transport"},
	{"tailrace/edge", "tailrace/uplink/hub", "composers never import each other"},
	{"tailrace/edge", "github.com/twmb/franz-go", "a node never links Kafka code: it must stay small"},
	{"tailrace/cmd/tailrace-edge", "github.com/twmb/franz-go", "a node never links Kafka code: it must stay small"},
	{"tailrace/uplink/hub", "tailrace/edge", "composers never import each other"},
	{"tailrace/firmware-sim", "tailrace/storage", "the simulated fleet knows devices and MQTT only"},
	{"tailrace/firmware-sim", "tailrace/uplink", "the simulated fleet knows devices and MQTT only"},
	{"tailrace/firmware-sim", "tailrace/edge", "the simulated fleet knows devices and MQTT only"},
}

// except: packages that a rule on their parent does not bind, with the reason.
var except = map[string]string{
	"tailrace/firmware-sim/scenario": "end-to-end tests compose everything on purpose",
	"tailrace/firmware-sim/swarm":    "a load for hubs, made of the real link",
}

type pkg struct {
	ImportPath string
	Deps       []string
	Imports    []string
}

func list(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Deps,Imports", "tailrace/...")
	out, err := cmd.Output()
	if err != nil {
		var ee *exec.ExitError
		if errors.As(err, &ee) {
			t.Fatalf("go list: %v\n%s", err, ee.Stderr)
		}
		t.Fatal(err)
	}
	var ps []pkg
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return ps
		} else if err != nil {
			t.Fatal(err)
		}
		ps = append(ps, p)
	}
}

func under(path, root string) bool { return path == root || strings.HasPrefix(path, root+"/") }

func exempt(path string) bool {
	for e := range except {
		if under(path, e) {
			return true
		}
	}
	return false
}

func TestImportRules(t *testing.T) {
	ps := list(t)
	if len(ps) < 10 {
		t.Fatalf("go list found %d packages only", len(ps))
	}
	for _, r := range rules {
		found := false
		for _, p := range ps {
			if !under(p.ImportPath, r.pkg) || exempt(p.ImportPath) {
				continue
			}
			found = true
			for _, d := range p.Deps {
				if under(d, r.not) {
					t.Errorf("%s depends on %s: %s", p.ImportPath, d, r.why)
				}
			}
		}
		if !found {
			t.Errorf("rule on %s binds no package", r.pkg)
		}
	}
}

func TestImportNothingFromCommands(t *testing.T) {
	for _, p := range list(t) {
		for _, d := range p.Imports {
			if under(d, "tailrace/cmd") && !sameCommand(p.ImportPath, d) {
				t.Errorf("%s imports %s: nothing imports a command", p.ImportPath, d)
			}
		}
	}
}

// sameCommand says whether both paths lie under one cmd/<name>.
func sameCommand(a, b string) bool {
	part := func(p string) string {
		f := strings.SplitN(p, "/", 4)
		if len(f) < 3 {
			return p
		}
		return f[2]
	}
	return under(a, "tailrace/cmd") && part(a) == part(b)
}

// TestImportTopLevel keeps the given top level exactly.
func TestImportTopLevel(t *testing.T) {
	allowed := map[string]bool{}
	for _, n := range []string{"edge", "uplink", "storage", "devices", "cmd", "firmware-sim"} {
		allowed[n] = true
	}
	for _, p := range list(t) {
		top := strings.SplitN(strings.TrimPrefix(p.ImportPath, "tailrace/"), "/", 2)[0]
		if !allowed[top] {
			t.Errorf("package %s lies outside the given top level", p.ImportPath)
		}
	}
}
