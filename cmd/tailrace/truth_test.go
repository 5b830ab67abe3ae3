package main

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"tailrace/storage"
)

// runCommand runs a command line and returns its output and exit status.
func runCommand(t *testing.T, args ...string) (string, int) {
	t.Helper()
	var out, errs bytes.Buffer
	root := newRoot()
	root.SetArgs(args)
	root.SetOut(&out)
	root.SetErr(&errs)
	err := root.ExecuteContext(context.Background())
	var ee *exitError
	switch {
	case err == nil:
		return out.String(), 0
	case errors.As(err, &ee):
		return out.String() + err.Error(), ee.code
	}
	return out.String() + err.Error(), exitFailed
}

func TestLossesAndCompletenessAreShown(t *testing.T) {
	h := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/api/v1/losses":
			if r.URL.Query().Get("node") == "none" {
				w.Write([]byte(`{"losses":[],"totals":[]}`))
				return
			}
			w.Write([]byte(`{"losses":[{"node":"n1","epoch":"aabbccddee","topic":"wind","partition":0,"from":10,"to":20,"records":10,"reason":"evicted","declared_at":1000}],
				"totals":[{"node":"n1","topic":"wind","reason":"evicted","ranges":1,"records":10}]}`))
		case "/api/v1/nodes":
			w.Write([]byte(`{"store_note":"an older backup","nodes":[{"node":"n1","state":"connected","other_copy":"a clone knocks","topics":[
				{"topic":"wind","partition":0,"complete_to":4711,"complete_time":"2026-11-01T00:00:00.000Z","next":5000,"lag_records":289}]}]}`))
		}
	}))
	defer h.Close()
	for _, c := range []struct {
		args []string
		want []string
	}{
		{[]string{"losses"}, []string{"n1", "wind/0", "aabbccdd ", "evicted", "1970-01-01T00:00:01Z"}},
		{[]string{"losses", "-o", "json"}, []string{`"totals":[{"node":"n1"`}},
		{[]string{"losses", "--node", "none"}, []string{"nothing was lost"}},
		{[]string{"nodes", "--topics"}, []string{"4711", "2026-11-01T00:00:00.000Z", "5000", "289", "an older backup"}},
		{[]string{"nodes"}, []string{"another machine with this name is refused, a clone knocks"}},
	} {
		out, code := runCommand(t, append(c.args, "--url", h.URL)...)
		if code != 0 {
			t.Errorf("%v: exit %d, %s", c.args, code, out)
		}
		for _, s := range c.want {
			if !strings.Contains(out, s) {
				t.Errorf("%v: no %q in\n%s", c.args, s, out)
			}
		}
	}
}

func TestCheckRepairsAndSaysSo(t *testing.T) {
	dir := t.TempDir()
	st, err := storage.Open(storage.Config{Dir: dir, NodeID: "n1", Classes: []storage.ClassConfig{{Name: "main", SegmentBytes: 16 << 10}}})
	if err != nil {
		t.Fatal(err)
	}
	top, err := st.CreateTopic("wind", storage.TopicConfig{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 100 {
		a := st.NewAppend("")
		if err := a.Record(top.Partition(0), int64(i+1), nil, make([]byte, 500), nil); err != nil {
			t.Fatal(err)
		}
		if err := st.Commit(t.Context(), a); err != nil {
			t.Fatal(err)
		}
	}
	if out, code := runCommand(t, "check", dir, "--repair"); code != exitFailed || !strings.Contains(out, "in use") {
		t.Errorf("in use: exit %d, %s", code, out)
	}
	if err := st.Close(); err != nil {
		t.Fatal(err)
	}
	if out, code := runCommand(t, "check", dir, "--repair"); code != 0 || !strings.Contains(out, "sound") {
		t.Errorf("sound: exit %d, %s", code, out)
	}
	segs, _ := filepath.Glob(filepath.Join(dir, "main", "log", "0*"))
	b, err := os.ReadFile(segs[1])
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := os.WriteFile(segs[1], b, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, code := runCommand(t, "check", dir); code != exitDamaged {
		t.Errorf("damaged: exit %d, %s", code, out)
	}
	out, code := runCommand(t, "check", dir, "--repair")
	if code != exitDamaged || !strings.Contains(out, "kept as it was: main/quarantine/") || !strings.Contains(out, "epoch 2") || !strings.Contains(out, "declared lost") {
		t.Errorf("repaired: exit %d, %s", code, out)
	}
	if out, code := runCommand(t, "check", dir); code != 0 {
		t.Errorf("after the repair: exit %d, %s", code, out)
	}
}
