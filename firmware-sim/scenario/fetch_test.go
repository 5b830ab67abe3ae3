package scenario

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"tailrace/edge"
	"tailrace/uplink/hub"
)

// api calls the hub's HTTP API.
func (w *truth) api(method, path string, body any, into any) int {
	w.t.Helper()
	b, err := json.Marshal(body)
	w.must(err)
	r := httptest.NewRequest(method, "http://127.0.0.1:8080"+path, bytes.NewReader(b))
	r.RemoteAddr = "127.0.0.1:999"
	rec := httptest.NewRecorder()
	w.central().Handler().ServeHTTP(rec, r)
	if into != nil && rec.Code/100 == 2 {
		w.must(json.Unmarshal(rec.Body.Bytes(), into))
	}
	return rec.Code
}

func (w *truth) fetch(id string) hub.FetchInfo {
	w.t.Helper()
	var list struct{ Fetches []hub.FetchInfo }
	w.api("GET", "/api/v1/fetches", nil, &list)
	for _, f := range list.Fetches {
		if f.ID == id {
			return f
		}
	}
	w.t.Fatalf("no fetch %s in %+v", id, list)
	return hub.FetchInfo{}
}

// A topic on demand stays at its node. A span of it comes when it is asked for: at once,
// or when the node is back, over restarts of the hub; the same twice is stored once; what
// the node has no longer is declared lost; and the rest never comes.
func TestFetchOfATopicOnDemand(t *testing.T) {
	inTruth(t, func(c *edge.Config) {
		c.Topics = []edge.TopicConfig{{Match: stream, Mode: "on-demand", RetentionSize: 400 << 10}}
	}, func(w *truth) {
		w.ready(w.node)
		w.ready(w.hub)
		at := func(from, n int) string { // puts n records a minute later, and says when that began
			time.Sleep(time.Minute)
			begin := time.Now().UTC().Format(time.RFC3339Nano)
			w.put(w.node, stream, "a", from, n)
			w.put(w.node, quiet, "q", from, 1)
			return begin
		}
		first := at(0, 100)
		second := at(100, 100)
		third := at(200, 50)
		w.until("the hub knows the topic", func() bool { return len(w.info().Topics) == 2 })
		time.Sleep(time.Minute)
		if n := len(w.told(stream)); n != 0 {
			t.Fatalf("%d records of a topic on demand came by themselves", n)
		}
		if i := w.info(); i.LagRecords != 0 || i.Topics[1].AtNode != 250 {
			t.Errorf("%+v", i)
		}
		ask := func(from, to string) (f hub.FetchInfo) {
			t.Helper()
			if code := w.api("POST", "/api/v1/fetches", map[string]string{"node": nodeID, "topic": stream, "from": from, "to": to}, &f); code != 202 {
				t.Fatalf("answer %d", code)
			}
			return f
		}
		done := func(id string) (f hub.FetchInfo) {
			t.Helper()
			w.until("fetch "+id+" is over", func() bool { f = w.fetch(id); return f.Ended != "" })
			return f
		}
		f := done(ask(second, third).ID)
		if got := w.told(stream); f.State != "done" || f.Stored != 100 || f.Lost != 0 || len(got) != 100 || got[0] != "a 00100" || got[99] != "a 00199" {
			t.Fatalf("%+v; %d records here", f, len(w.told(stream)))
		}
		f = done(ask(second, third).ID) // the same once more
		if f.State != "done" || f.Stored != 100 || len(w.told(stream)) != 100 {
			t.Fatalf("%+v; %d records here", f, len(w.told(stream)))
		}
		// Offline: the request waits, over a restart of the hub.
		w.down()
		time.Sleep(2 * time.Minute)
		f = ask(first, second)
		later := ask(third, "")
		gone := ask(third, "")
		if code := w.api("DELETE", "/api/v1/fetches/"+gone.ID, nil, nil); code != 200 || w.fetch(gone.ID).State != "cancelled" {
			t.Errorf("cancel: %d, %+v", code, w.fetch(gone.ID))
		}
		time.Sleep(time.Minute)
		if f = w.fetch(f.ID); f.State != "queued" || f.Online {
			t.Errorf("while the node is away: %+v", f)
		}
		w.hub.off()
		w.must(w.hub.on())
		w.ready(w.hub)
		w.up()
		if f = done(f.ID); f.State != "done" || f.Stored != 100 {
			t.Errorf("after the outage: %+v", f)
		}
		if later = done(later.ID); later.State != "done" || later.Stored != 50 {
			t.Errorf("after the outage: %+v", later)
		}
		if w.fetch(gone.ID).State != "cancelled" || w.count(stream) != 250 {
			t.Errorf("%d records here, %+v", w.count(stream), w.fetch(gone.ID))
		}
		// The node's retention frees the oldest: a span that reaches back to them says so.
		fourth := at(250, 700)
		w.must(w.node.store().Retain())
		start, _ := w.node.store().Topic(stream)
		low := start.Partition(0).Start()
		if low <= 250 {
			t.Fatalf("the node still has everything from %d on", low)
		}
		f = done(ask(fourth, "").ID)
		if f.State != "done" || f.Lost != low-250 || f.Stored != 950-low+250 || f.Oldest == "" {
			t.Errorf("the node has from %d on: %+v", low, f)
		}
		if rows, n := w.ledger(stream); n != low-250 || rows[0].Reason != "expired" {
			t.Errorf("ledger %+v", rows)
		}
		w.exact(stream)
		// What cannot be asked for.
		for what, code := range map[string]int{
			fmt.Sprintf(`{"node":"%s","topic":"%s","from":"%s"}`, nodeID, quiet, first):           http.StatusConflict,
			fmt.Sprintf(`{"node":"%s","topic":"nothing","from":"%s"}`, nodeID, first):             http.StatusNotFound,
			fmt.Sprintf(`{"node":"nobody","topic":"%s","from":"%s"}`, stream, first):              http.StatusNotFound,
			fmt.Sprintf(`{"node":"%s","topic":"%s","from":"%s","to":"0"}`, nodeID, stream, first): http.StatusBadRequest,
			fmt.Sprintf(`{"node":"%s","topic":"%s","from":"soon"}`, nodeID, stream):               http.StatusBadRequest,
			`{"nodes":["a"]}`: http.StatusBadRequest,
		} {
			if got := w.api("POST", "/api/v1/fetches", json.RawMessage(what), nil); got != code {
				t.Errorf("%s: %d, want %d", what, got, code)
			}
		}
	})
}
