package hub_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"tailrace/uplink/hub"
)

// call asks the hub's handler as a client on this machine would.
func call(h *hub.Hub, method, path, body string, change func(*http.Request)) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, "http://127.0.0.1:8080"+path, strings.NewReader(body))
	r.Header.Set("Content-Type", "application/json")
	if change != nil {
		change(r)
	}
	w := httptest.NewRecorder()
	h.Handler().ServeHTTP(w, r)
	return w
}

func newHub(t *testing.T, change func(*hub.Config)) *hub.Hub {
	t.Helper()
	c := hubConfig(t, certs(t))
	if change != nil {
		change(&c)
	}
	h, _, _ := startHub(t, c)
	until(t, "the hub is ready", h.Ready)
	return h
}

func TestTopicsAreMadeByRule(t *testing.T) {
	h := newHub(t, func(c *hub.Config) {
		c.Topics = []hub.TopicConfig{{Match: "wind.*", Partitions: 2, Retention: hub.Duration(time.Hour)}, {Match: "one"}}
	})
	w := call(h, "POST", "/api/v1/topics/wind.a/records", `{"records":[{"value":1}]}`, nil)
	if w.Code != 200 {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	topic, ok := h.Store().Topic("wind.a")
	if !ok || len(topic.Partitions()) != 2 || topic.Config().RetentionAge != time.Hour || !topic.Config().RetentionByArrival {
		t.Errorf("made with %+v", topic.Config())
	}
	if w := call(h, "POST", "/api/v1/topics/other/records", `{"records":[{"value":1}]}`, nil); w.Code != 404 || !strings.Contains(w.Body.String(), "no rule under topics") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

func TestReadOnlyHubTakesNoPost(t *testing.T) {
	h := newHub(t, func(c *hub.Config) { c.HTTP.ReadOnly = true })
	for _, path := range []string{"/api/v1/topics/t/records", "/api/v1/nodes/n/accept"} {
		if w := call(h, "POST", path, `{"records":[{"value":1}]}`, nil); w.Code < 400 {
			t.Errorf("%s: %d", path, w.Code)
		}
	}
}

func TestTokenIsRequiredWhereOneIsConfigured(t *testing.T) {
	file := filepath.Join(t.TempDir(), "tokens")
	if err := os.WriteFile(file, []byte("# two\nfirst-token-0123456789\nsecond-token-0123456789\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	h := newHub(t, func(c *hub.Config) { c.HTTP.TokenFile = file })
	for _, c := range []struct {
		name, path string
		auth       func(*http.Request)
		want       int
	}{
		{"none", "/api/v1/nodes", nil, 401},
		{"console", "/", nil, 401},
		{"metrics", "/metrics", nil, 401},
		{"health is open", "/healthz", nil, 200},
		{"readiness is open", "/readyz", nil, 200},
		{"first", "/api/v1/nodes", func(r *http.Request) { r.Header.Set("Authorization", "Bearer first-token-0123456789") }, 200},
		{"second, in a browser", "/", func(r *http.Request) { r.SetBasicAuth("me", "second-token-0123456789") }, 200},
		{"wrong", "/api/v1/nodes", func(r *http.Request) { r.Header.Set("Authorization", "Bearer first-token-012345678") }, 401},
		{"comment", "/api/v1/nodes", func(r *http.Request) { r.Header.Set("Authorization", "Bearer # two") }, 401},
		{"empty", "/api/v1/nodes", func(r *http.Request) { r.Header.Set("Authorization", "Bearer ") }, 401},
	} {
		if w := call(h, "GET", c.path, "", c.auth); w.Code != c.want {
			t.Errorf("%s: %d, want %d", c.name, w.Code, c.want)
		}
	}
	for name, content := range map[string]string{"short": "abc\n", "none": "# nothing\n"} {
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		c := hubConfig(t, certs(t))
		c.HTTP.TokenFile = file
		if h, err := hub.New(c); err == nil {
			h.Close()
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestOpenHubAnswersToLoopbackNamesOnly(t *testing.T) {
	h := newHub(t, nil)
	if w := call(h, "GET", "/api/v1/nodes", "", func(r *http.Request) { r.Host = "evil.example" }); w.Code != 421 {
		t.Errorf("foreign host name: %d", w.Code)
	}
	if w := call(h, "POST", "/api/v1/nodes/n/accept", "", func(r *http.Request) {
		r.Header.Set("Origin", "https://evil.example")
		r.Header.Set("Sec-Fetch-Site", "cross-site")
	}); w.Code != 403 {
		t.Errorf("page of another origin: %d", w.Code)
	}
}

func TestHubAPIErrors(t *testing.T) {
	h := newHub(t, nil)
	for path, want := range map[string]string{"/api/v1/nodes/x": "unknown_node", "/api/v1/devices?limit=0": "bad_limit", "/api/v1/losses?limit=x": "bad_limit", "/api/v2/": "unknown_path"} {
		if w := call(h, "GET", path, "", nil); w.Code < 400 || !strings.Contains(w.Body.String(), want) {
			t.Errorf("%s: %d %s", path, w.Code, w.Body)
		}
	}
	for path, want := range map[string]string{"/api/v1/nodes": `{"nodes":[]}`, "/api/v1/devices": `{"devices":[],"next":""}`, "/api/v1/losses": `{"losses":[],"totals":[]}`} {
		if w := call(h, "GET", path, "", nil); w.Code != 200 || strings.TrimSpace(w.Body.String()) != want {
			t.Errorf("%s: %d %s", path, w.Code, w.Body)
		}
	}
}

// TestConsoleNeedsNothingFromElsewhere: every page answers under a policy that
// allows its own files only, and holds no inline script, style or handler.
func TestConsoleNeedsNothingFromElsewhere(t *testing.T) {
	h := newHub(t, nil)
	call(h, "POST", "/api/v1/topics/wind/records", `{"records":[{"key":"<b>k</b>","value":{"power":5}},{"key":"k2","value":{"power":7.5,"html":"<script>alert(1)</script>"}}]}`, nil)
	inline := regexp.MustCompile(`(?i)<script>|<style|\sstyle=|\son[a-z]+=|javascript:|https?://|//[a-z]`)
	asset := regexp.MustCompile(`(?:src|href)="(/static/[^"]+)"`)
	seen := map[string]bool{}
	for path, want := range map[string]string{"/": "No node yet", "/topics": "wind", "/topics/wind": "power", "/losses": "Nothing was lost"} {
		w := call(h, "GET", path, "", nil)
		csp := w.Header().Get("Content-Security-Policy")
		if w.Code != 200 || !strings.Contains(w.Body.String(), want) {
			t.Errorf("%s: %d, want %q in it", path, w.Code, want)
		}
		if !strings.HasPrefix(csp, "default-src 'none';") || strings.Contains(csp, "unsafe") || strings.Contains(csp, "http") {
			t.Errorf("%s: policy %q", path, csp)
		}
		if m := inline.FindString(w.Body.String()); m != "" {
			t.Errorf("%s holds %q", path, m)
		}
		for _, m := range asset.FindAllStringSubmatch(w.Body.String(), -1) {
			seen[m[1]] = true
		}
	}
	if len(seen) < 6 {
		t.Errorf("assets %v", seen)
	}
	for path := range seen {
		if w := call(h, "GET", path, "", nil); w.Code != 200 || w.Body.Len() == 0 || w.Header().Get("Content-Security-Policy") == "" {
			t.Errorf("%s: %d", path, w.Code)
		}
	}
	for path, want := range map[string]int{"/topics/none": 404, "/nodes/none": 404, "/nonsense": 404, "/static/": 404} {
		if w := call(h, "GET", path, "", nil); w.Code != want {
			t.Errorf("%s: %d, want %d", path, w.Code, want)
		}
	}
}

// TestLiveChartFollowsTheTopic reads the chart's events as the browser does.
func TestLiveChartFollowsTheTopic(t *testing.T) {
	h := newHub(t, nil)
	_, addr, _ := h.Addrs()
	put := func(ts int64, key string, v float64) {
		t.Helper()
		if w := call(h, "POST", "/api/v1/topics/wind/records", fmt.Sprintf(`{"records":[{"key":%q,"timestamp":%d,"value":{"seq":%d,"power_kw":%v}}]}`, key, ts, ts, v), nil); w.Code != 200 {
			t.Fatal(w.Body)
		}
	}
	for i := range 20 {
		put(1_700_000_000_000+int64(i)*1000, "a", float64(i))
		put(1_700_000_000_000+int64(i)*1000, "b", float64(-i))
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	req, _ := http.NewRequestWithContext(ctx, "GET", "http://"+addr+"/events/topics/wind/chart", nil)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	events := bufio.NewScanner(resp.Body)
	events.Buffer(nil, 1<<20)
	chart := func() string {
		t.Helper()
		for events.Scan() {
			if data, ok := strings.CutPrefix(events.Text(), "data: "); ok {
				return data
			}
		}
		t.Fatal("the stream ended:", events.Err())
		return ""
	}
	if first := chart(); !strings.Contains(first, `"field":"power_kw"`) || !strings.Contains(first, `"key":"a"`) || !strings.Contains(first, `"min":-19,"max":0,"last":-19`) {
		t.Errorf("first: %s", first)
	}
	put(1_700_000_020_000, "a", 777)
	for !strings.Contains(chart(), `"last":777`) {
	}
}

func TestEveryMetricIsDocumented(t *testing.T) {
	doc, err := os.ReadFile("METRICS.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range hub.MetricNames() {
		if !bytes.Contains(doc, []byte("`"+name+"`")) {
			t.Errorf("METRICS.md does not explain %s", name)
		}
	}
	h := newHub(t, nil)
	w := call(h, "GET", "/metrics", "", nil)
	line := regexp.MustCompile(`^(# (HELP|TYPE) .+|[a-zA-Z_:][a-zA-Z0-9_:]*(\{[^}]*\})? [^ ]+)$`)
	for _, l := range strings.Split(strings.TrimSpace(w.Body.String()), "\n") {
		if !line.MatchString(l) {
			t.Errorf("not the exposition format: %q", l)
		}
	}
}

func TestStopEndsOpenStreams(t *testing.T) {
	h, url, stop := startHub(t, hubConfig(t, certs(t)))
	until(t, "the hub is ready", h.Ready)
	resp, err := http.Get(url + "/events/fleet")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	start := time.Now()
	stop()
	if d := time.Since(start); d > 4*time.Second {
		t.Errorf("stopping took %v with a page open", d)
	}
	if _, err := io.Copy(io.Discard, resp.Body); err == nil && time.Since(start) > 10*time.Second {
		t.Error("the stream goes on")
	}
}

func TestNewReleasesWhatItTookWhenItFails(t *testing.T) {
	c := hubConfig(t, certs(t))
	h, err := hub.New(c)
	if err != nil {
		t.Fatal(err)
	}
	addr, _, _ := h.Addrs()
	busy := c
	busy.DataDir = filepath.Join(t.TempDir(), "other")
	busy.Listen = addr
	if _, err := hub.New(busy); err == nil {
		t.Fatal("two hubs on one address")
	}
	busy.Listen = "127.0.0.1:0"
	again, err := hub.New(busy) // the directory is free again
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
	h.Close()
	again, err = hub.New(c)
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
}
