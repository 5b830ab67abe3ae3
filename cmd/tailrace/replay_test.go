package main

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

const twoRows = `{"topic":"t","partition":1,"offset":7,"timestamp":1000,"key":"T01","value":{"a":1.50,"s":{"x":"y,z","n":null}},"origin":{"node":"n1"}}
{"topic":"t","partition":1,"offset":8,"timestamp":2000,"key":null,"value":{"s":{"n":[1,2]},"a":2},"origin":{"node":"n2"}}
`

// serve answers path with body.
func serve(t *testing.T, path, body string) *client {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != path {
			http.Error(w, `{"error":{"code":"unknown_topic","message":"there is no topic \"nope\"","hint":"look"}}`, http.StatusNotFound)
			return
		}
		w.Write([]byte(body))
	}))
	t.Cleanup(s.Close)
	return &client{base: s.URL}
}

func replayed(t *testing.T, c *client, topic string, f replayFlags) (string, error) {
	t.Helper()
	var out, progress bytes.Buffer
	f.partition = -1
	err := replay(context.Background(), c, topic, f, &out, &progress)
	return out.String(), err
}

func TestReplayCSVHasOneColumnPerLeaf(t *testing.T) {
	c := serve(t, "/api/v1/topics/t/records", twoRows)
	got, err := replayed(t, c, "t", replayFlags{format: "csv"})
	want := "partition,offset,time,node,key,a,s.x,s.n\n" +
		"1,7,1970-01-01T00:00:01Z,n1,T01,1.50,\"y,z\",\n" +
		"1,8,1970-01-01T00:00:02Z,n2,,2,,\"[1,2]\"\n"
	if err != nil || got != want {
		t.Errorf("%v\n%s\nwant\n%s", err, got, want)
	}
}

func TestReplayFiltersByNodeAndKeepsLinesAsTheyAre(t *testing.T) {
	c := serve(t, "/api/v1/topics/t/records", twoRows)
	got, err := replayed(t, c, "t", replayFlags{format: "ndjson", node: "n2"})
	if want := strings.SplitAfter(twoRows, "\n")[1]; err != nil || got != want {
		t.Errorf("%v %q, want %q", err, got, want)
	}
	if got, err = replayed(t, c, "t", replayFlags{format: "ndjson", limit: 1}); err != nil || strings.Count(got, "\n") != 1 {
		t.Errorf("limit 1: %v %q", err, got)
	}
}

// An answer that broke off must not look complete.
func TestReplayReportsAnAnswerThatFailedHalfWay(t *testing.T) {
	c := serve(t, "/api/v1/topics/t/records", twoRows+`{"error":{"code":"disk_error","message":"read failed"}}`+"\n")
	if _, err := replayed(t, c, "t", replayFlags{format: "ndjson"}); err == nil || !strings.Contains(err.Error(), "read failed") {
		t.Errorf("error %v", err)
	}
}

func TestUnknownTopicSaysWhatToDo(t *testing.T) {
	c := serve(t, "/x", "")
	_, err := replayed(t, c, "nope", replayFlags{format: "ndjson"})
	var ae *apiError
	if !errors.As(err, &ae) || ae.Status != http.StatusNotFound || !strings.Contains(err.Error(), "no topic") || !strings.Contains(err.Error(), "look") {
		t.Errorf("error %v", err)
	}
}

func TestReplayQueryTakesSpansBack(t *testing.T) {
	now := time.UnixMilli(1_000_000)
	f := replayFlags{partition: 2, from: "15m", fromOff: "-5", key: "k", format: "csv"}
	q, err := f.query(now)
	if err != nil || q.Get("from_time") != "100000" || q.Get("from") != "-5" || q.Get("partition") != "2" || q.Get("key") != "k" || q.Get("limit") != "0" {
		t.Errorf("%v %v", q, err)
	}
	if _, err := (&replayFlags{format: "xml"}).query(now); err == nil {
		t.Error("format xml accepted")
	}
}

func TestTailReadsEventsAndEndsAtItsLimit(t *testing.T) {
	body := ": keep-alive\n\nid: 0:1\ndata: " + strings.SplitN(twoRows, "\n", 2)[0] + "\n\nevent: skipped\ndata: {\"n\":3}\n\n"
	c := serve(t, "/api/v1/topics/t/tail", body)
	var out bytes.Buffer
	if err := tail(context.Background(), c, "t", nil, "", 1, "text", &out); err != nil {
		t.Fatal(err)
	}
	if s := out.String(); !strings.Contains(s, "T01") || !strings.Contains(s, `{"a":1.50`) {
		t.Errorf("%q", s)
	}
	out.Reset()
	err := tail(context.Background(), c, "t", nil, "", 0, "json", &out)
	if err == nil || !strings.Contains(out.String(), "retention removed") {
		t.Errorf("a stream that ends must say so: %v %q", err, out.String())
	}
}

func TestNodesStatusIsForMonitoring(t *testing.T) {
	for _, tc := range []struct {
		name string
		ns   []nodeInfo
		bad  bool
	}{
		{"none", nil, false},
		{"connected", []nodeInfo{{Node: "a"}}, false},
		{"dark", []nodeInfo{{Node: "a"}, {Node: "b", Dark: true}}, true},
		{"fenced", []nodeInfo{{Node: "a", Fenced: "a copy"}}, true},
	} {
		if err := darkError(tc.ns); (err != nil) != tc.bad {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
}

func TestSourceCheckFindsEachFault(t *testing.T) {
	for _, tc := range []struct {
		name  string
		send  func(c *sourceCheck, row func(i int) []byte)
		wrong func(c *sourceCheck) int64
	}{
		{"lost", func(c *sourceCheck, r func(int) []byte) { c.see(key(c), r(0)); c.see(key(c), r(2)) }, func(c *sourceCheck) int64 { return c.lost() - int64(c.total) + 3 }},
		{"duplicate", func(c *sourceCheck, r func(int) []byte) { c.see(key(c), r(0)); c.see(key(c), r(0)) }, func(c *sourceCheck) int64 { return c.duplicate }},
		{"out of order", func(c *sourceCheck, r func(int) []byte) { c.see(key(c), r(1)); c.see(key(c), r(0)) }, func(c *sourceCheck) int64 { return c.outOfOrder }},
		{"altered", func(c *sourceCheck, r func(int) []byte) {
			c.see(key(c), bytes.Replace(r(0), []byte(`919.5`), []byte(`919.6`), 1))
		}, func(c *sourceCheck) int64 { return c.altered }},
		{"other device", func(c *sourceCheck, r func(int) []byte) { c.see([]byte("MRG_T02"), r(0)) }, func(c *sourceCheck) int64 { return c.altered }},
	} {
		c, row := recordedRows(t)
		tc.send(c, row)
		if n := tc.wrong(c); n != 1 {
			t.Errorf("%s: found %d", tc.name, n)
		}
	}
	c, row := recordedRows(t)
	for i := range 3 {
		c.see(key(c), row(i))
	}
	if c.altered+c.duplicate+c.outOfOrder != 0 || c.lost() != int64(c.total)-3 {
		t.Errorf("sound rows: %+v", c)
	}
}

func key(c *sourceCheck) []byte { return []byte(c.table.Devices[0]) }
