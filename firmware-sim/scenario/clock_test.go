package scenario

import (
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"tailrace/edge"
	"tailrace/uplink/pki"
)

const day = 24 * time.Hour

// validity of a certificate, in days before and after the beginning of the simulation.
type validity struct{ from, to int }

// reissue replaces the certificates of hub and node.
func reissue(t *testing.T, dir string, hub, node validity, name string) {
	t.Helper()
	start := time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)
	at := func(d int) time.Time { return start.Add(time.Duration(d)*day + time.Hour) } // certificates are backdated by an hour
	ca, pair, err := pki.NewCA(rand.Reader, "simulation", at(-9000), 20000*day)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{"ca.crt": pair.Cert}
	for role, v := range map[pki.Role]validity{pki.RoleHub: hub, pki.RoleNode: node} {
		id, hosts := nodeID, []string(nil)
		if role == pki.RoleHub {
			id, hosts = "hub", []string{name}
		}
		p, err := ca.Issue(rand.Reader, role, id, hosts, at(v.from), time.Duration(v.to-v.from)*day)
		if err != nil {
			t.Fatal(err)
		}
		files[string(role)+".crt"], files[string(role)+".key"] = p.Cert, p.Key
	}
	for name, b := range files {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// A node whose clock is not trusted finds its hub whenever there is a time at which the
// hub's certificate is valid and which is not before all that the node knows to have
// passed. A node that trusts its clock checks it at that time.
func TestCertificatesOfTheHubAndAWrongClock(t *testing.T) {
	year, ip := 365*day, hubAddr.IP.String()
	for name, c := range map[string]struct {
		hub, node validity
		wrong     time.Duration // of the node's clock
		synced    bool
		host      string
		known     int // the node has known the time at this day before the test begins, 0 = never
		refused   string
	}{
		"1970, all certificates of the same day":            {hub: validity{0, 90}, node: validity{0, 90}, wrong: -30 * year},
		"1970, hub's certificate newer than all known":      {hub: validity{-1, 90}, node: validity{-1000, 90}, wrong: -30 * year},
		"1970, and the kernel says it is right":             {hub: validity{-1, 90}, node: validity{-1000, 90}, wrong: -30 * year, synced: true},
		"1970, hub's certificate newer than what was known": {hub: validity{-1, 90}, node: validity{-1000, 90}, wrong: -30 * year, known: -100},
		"years ahead, nobody keeps the clock":               {hub: validity{-1, 90}, node: validity{-1000, 90}, wrong: 20 * year},
		"right, nobody keeps the clock":                     {hub: validity{-1, 90}, node: validity{-1000, 90}},
		"right":                                             {hub: validity{-1, 90}, node: validity{-1000, 90}, synced: true},

		"1970, hub's certificate expired before the node's was made": {hub: validity{-2000, -1001}, node: validity{-1000, 90}, wrong: -30 * year, refused: "expired"},
		"1970, hub's certificate expired before the known time":      {hub: validity{-2000, -200}, node: validity{-1000, 90}, wrong: -30 * year, known: -100, refused: "expired"},
		"1970, hub of another name":                                  {hub: validity{-1, 90}, node: validity{-1000, 90}, wrong: -30 * year, host: "10.9.9.9", refused: "10.9.9.9"},
		"right and kept, hub's certificate expired":                  {hub: validity{-90, -1}, node: validity{-1000, 90}, synced: true, refused: "expired"},
		"right and kept, hub's certificate not yet valid":            {hub: validity{2, 90}, node: validity{-1000, 90}, synced: true, refused: "not yet valid"},
		"years ahead, and the kernel says it is right":               {hub: validity{-1, 90}, node: validity{-1000, 90}, wrong: 20 * year, synced: true, refused: "expired"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			certs, dir, host := scratch(t), scratch(t), c.host
			if host == "" {
				host = ip
			}
			reissue(t, certs, c.hub, c.node, host)
			synctest.Test(t, func(t *testing.T) {
				w := newTruth(t, 1, dir, certs, nil)
				defer w.end()
				w.up()
				w.flash(w.node)
				wrong := func(e *edge.Config) {
					e.Now = func() time.Time { return time.Now().Add(c.wrong) }
					e.ClockSynced = func() bool { return c.synced }
				}
				if c.known != 0 { // an earlier start, with the right time of then
					w.tuneNode = func(e *edge.Config) {
						e.Now = func() time.Time { return time.Now().Add(time.Duration(c.known) * day) }
						e.ClockSynced = func() bool { return true }
					}
					w.must(w.node.on())
					w.put(w.node, stream, "a", 0, 10)
					time.Sleep(5 * time.Second)
					w.node.off()
				}
				w.tune(wrong)
				w.must(w.hub.on())
				w.must(w.node.on())
				w.put(w.node, stream, "b", 0, 10)
				if c.refused == "" {
					w.complete()
					w.exact(stream)
					return
				}
				time.Sleep(5 * time.Minute)
				if st := w.node.edge().Status(); st.Uplink == nil || st.Uplink.Connected || !strings.Contains(st.Uplink.LastError, c.refused) {
					t.Errorf("the node's uplink: %+v, want a refusal that says %q", st.Uplink, c.refused)
				}
				if n := w.hub.records(); n != 0 {
					t.Errorf("%d records at a hub that should have been refused", n)
				}
			})
		})
	}
}

// Certificates of another authority are refused, whatever the node's clock.
func TestHubOfAnotherAuthorityIsRefusedIn1970(t *testing.T) {
	certs, other, dir := scratch(t), scratch(t), scratch(t)
	for _, d := range []string{certs, other} {
		reissue(t, d, validity{-1, 90}, validity{-1000, 90}, hubAddr.IP.String())
	}
	mine, err := os.ReadFile(filepath.Join(certs, "ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := os.ReadFile(filepath.Join(other, "ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	for name, ca := range map[string][]byte{"control": mine, "other": theirs} {
		t.Run(name, func(t *testing.T) {
			b, _ := pem.Decode(ca)
			if _, err := x509.ParseCertificate(b.Bytes); err != nil {
				t.Fatal(err)
			}
			file := filepath.Join(scratch(t), "ca.crt")
			if err := os.WriteFile(file, ca, 0o600); err != nil {
				t.Fatal(err)
			}
			synctest.Test(t, func(t *testing.T) {
				w := newTruth(t, 1, filepath.Join(dir, name), certs, nil)
				defer w.end()
				w.up()
				w.flash(w.node)
				w.tune(func(e *edge.Config) {
					e.Uplink.TLS.CA = file
					e.Now = func() time.Time { return time.Unix(60, 0).Add(time.Since(w.start)) }
					e.ClockSynced = func() bool { return false }
				})
				w.must(w.hub.on())
				w.must(w.node.on())
				w.put(w.node, stream, "a", 0, 10)
				if name == "control" {
					w.complete()
					return
				}
				time.Sleep(5 * time.Minute)
				if st := w.node.edge().Status(); st.Uplink.Connected || !strings.Contains(st.Uplink.LastError, "unknown authority") {
					t.Errorf("the node's uplink: %+v", st.Uplink)
				}
			})
		})
	}
}
