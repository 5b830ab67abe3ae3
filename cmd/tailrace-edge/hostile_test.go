//go:build linux

package main

import (
	"context"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tailrace/edge/auth"
	"tailrace/firmware-sim/hostile"
	"tailrace/firmware-sim/rawload"
)

// Beside the attack of firmware-sim/hostile, good devices lose nothing that was acknowledged and
// newcomers get in. 5 s and a tenth of the sockets here; `go run ./cmd/bars -only hostile` is
// the long form, with the figures.
func TestAHostileMixHurtsNobodyElse(t *testing.T) {
	if testing.Short() {
		t.Skip("5 s")
	}
	t.Setenv("GOMEMLIMIT", "128MiB")
	d := newDaemon(t, "")
	for user, pw := range map[string]string{"good": "good-password", "mallory": "stolen"} {
		h, err := auth.Hash([]byte(pw))
		if err == nil {
			_, err = auth.SetPassword(filepath.Join(d.dir, "passwd"), user, h)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	conf := filepath.Join(d.dir, "edge.yaml")
	body, _ := os.ReadFile(conf)
	os.WriteFile(conf, []byte(strings.NewReplacer("{allow_anonymous: true}", "{password_file: "+filepath.Join(d.dir, "passwd")+"}\n  client: {max_topics: 100}",
		"default: {stream: unrouted}", "  - {topic: load/#, stream: good}\ndefault: {stream: unrouted}").Replace(string(body))), 0o600)
	d.start()

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	attacked := make(chan hostile.Result, 1)
	go func() {
		attacked <- hostile.Run(ctx, hostile.Config{Target: d.mqtt, Idle: 500, Slow: 100, BadLogins: 200, Topics: 100, ClientIDs: 20, Claims: 20, User: "mallory", Password: "stolen"})
	}()
	r, err := rawload.Run(ctx, rawload.Config{Dial: rawload.DialTCP(d.mqtt, nil), QoS: 1, Clients: 50, Rate: 500, Duration: 5 * time.Second, Drain: time.Minute,
		Username: "good", Password: "good-password"}) // no second try: the guesses must not be in the way of their logins
	if err != nil || r.Failed > 0 {
		t.Fatalf("%v, %d clients failed: %s", err, r.Failed, r.FirstError)
	}
	if took, err := hostile.Login(ctx, d.mqtt, "late", "good", "good-password"); err != nil {
		t.Errorf("a newcomer: %v after %v", err, took)
	}
	cancel()
	what := <-attacked
	t.Logf("%d acked; %v", r.Acked, what)
	if what.LetIn > 0 {
		t.Errorf("%d bad logins were let in", what.LetIn)
	}
	if what.Idle == 0 || what.Slow == 0 || what.BadLogins == 0 || what.Topics == 0 || what.ClientIDs == 0 || what.Claims == 0 {
		t.Errorf("some kind of attack did not take place: %+v", what)
	}
	if n := len(d.records("good")); int64(n) < r.Acked || r.Acked == 0 {
		t.Errorf("%d acknowledged, %d stored", r.Acked, n)
	}
	if resp, err := http.Get("http://" + d.http + "/readyz"); err != nil || resp.StatusCode != http.StatusOK {
		t.Errorf("the node after it: %v", err)
	}
}
