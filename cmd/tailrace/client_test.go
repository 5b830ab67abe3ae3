package main

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// A hub has no /api/v1/bundle, a node no /api/v1/nodes: the message says that it may be
// the wrong one of the two.
func TestTheWrongServerIsNamed(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Error(w, `{"error":{"code":"unknown_path","message":"there is no `+r.URL.Path+`","hint":"see /api/v1/topics"}}`, http.StatusNotFound)
	}))
	defer s.Close()
	for _, args := range [][]string{{"export-bundle"}, {"nodes"}, {"drain"}} {
		out, code := runCommand(t, append(args, "--url", s.URL)...)
		if code != exitFailed || !strings.Contains(out, s.URL) || !strings.Contains(out, "--url") {
			t.Errorf("%v: exit %d, %s", args, code, out)
		}
	}
}

func TestTimesAreGivenAsSpansBack(t *testing.T) {
	now := time.UnixMilli(1_000_000)
	for in, want := range map[string]string{"15m": "100000", "2026-11-01T00:00:00Z": "2026-11-01T00:00:00Z", "1793534400000": "1793534400000", "": ""} {
		if got := timeArg(in, now); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

// A node that is not connected is not sent away, and a typo in its name is not silence.
func TestDrainSaysWhoWasNotTold(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.Write([]byte(`{"told":1}`)) }))
	defer s.Close()
	for _, c := range []struct {
		nodes []string
		code  int
	}{{nil, 0}, {[]string{"node-1"}, 0}, {[]string{"node-1", "nod-2"}, exitFailed}} {
		if out, code := runCommand(t, append([]string{"drain", "--url", s.URL}, c.nodes...)...); code != c.code || !strings.HasPrefix(out, "1 nodes were told") {
			t.Errorf("%v: exit %d, %s", c.nodes, code, out)
		}
	}
}

// doctor --idle "" measures no silence, as its help says; what is no duration is refused.
func TestDoctorTakesNoSilence(t *testing.T) {
	for idle, want := range map[string]string{"": "nowhere.yaml", "20s,60s": "nowhere.yaml", "soon": "--idle"} {
		if out, code := runCommand(t, "doctor", "--config", "nowhere.yaml", "--idle", idle); code != exitUsage || !strings.Contains(out, want) {
			t.Errorf("--idle %q: exit %d, %s", idle, code, out)
		}
	}
}
