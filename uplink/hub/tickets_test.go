package hub_test

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The keys of a hub's tickets are its owner's alone, and a node comes back by resumption after a restart of the hub.
func TestTicketKeysAreKept(t *testing.T) {
	certDir := certs(t, "node-1")
	c := hubConfig(t, certDir)
	h, _, stop := startHub(t, c)
	nodes, _, _ := h.Addrs()
	s := newSite(t, certDir, "node-1", nodes)
	s.publish("temp", 10)
	until(t, "records", func() bool { return s.ackedTo("temp") == 10 })
	c.Listen = nodes
	stop()
	st, err := os.Stat(filepath.Join(c.DataDir, "link-ticket-keys"))
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st, err)
	}
	_, url, stop := startHub(t, c)
	defer stop()
	s.publish("temp", 10)
	until(t, "records after the restart", func() bool { return s.ackedTo("temp") == 20 })
	resp, err := http.Get(url + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var b strings.Builder
	resp.Write(&b)
	for _, want := range []string{`tailrace_hub_handshakes_total{kind="whole"} 0`, `tailrace_hub_handshakes_total{kind="resumed"} 1`} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("metrics lack %s", want)
		}
	}
}
