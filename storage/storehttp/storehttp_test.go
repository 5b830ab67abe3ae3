package storehttp_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"tailrace/storage"
	"tailrace/storage/record"
	"tailrace/storage/storagetest"
	"tailrace/storage/storehttp"
)

type server struct {
	t     *testing.T
	fs    *storagetest.CrashFS
	store *storage.Store
	url   string
}

func newServer(t *testing.T, change func(*storehttp.Config)) *server {
	t.Helper()
	fs, err := storagetest.NewCrashFS(filepath.Join(t.TempDir(), "store"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { fs.Close() })
	st, err := storage.Open(storage.Config{Dir: fs.Dir(), FS: fs, Classes: []storage.ClassConfig{{Name: "data"}}, RetentionInterval: -1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.Close() })
	c := storehttp.Config{Store: st, Now: func() time.Time { return time.UnixMilli(1_700_000_000_000) }}
	if change != nil {
		change(&c)
	}
	h, err := storehttp.New(c)
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	return &server{t, fs, st, srv.URL}
}

func (s *server) topic(name string, partitions int) *storage.Topic {
	s.t.Helper()
	t, err := s.store.CreateTopic(name, storage.TopicConfig{Partitions: partitions})
	if err != nil {
		s.t.Fatal(err)
	}
	return t
}

func (s *server) do(method, path, contentType, body string) (int, string) {
	s.t.Helper()
	req, err := http.NewRequest(method, s.url+path, strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

func (s *server) get(path string) string {
	s.t.Helper()
	code, body := s.do("GET", path, "", "")
	if code != 200 {
		s.t.Fatalf("GET %s: %d %s", path, code, body)
	}
	return body
}

func (s *server) post(topic, body string) storehttp.Produced {
	s.t.Helper()
	code, out := s.do("POST", "/api/v1/topics/"+topic+"/records", "application/json", body)
	if code != 200 {
		s.t.Fatalf("POST: %d %s", code, out)
	}
	var p storehttp.Produced
	if err := json.Unmarshal([]byte(out), &p); err != nil {
		s.t.Fatal(err)
	}
	return p
}

func TestWhatIsPostedIsGivenBack(t *testing.T) {
	s := newServer(t, nil)
	s.topic("t", 1)
	for _, c := range []struct{ name, in, out string }{
		{"json value", `{"key":"k","value":{"b": 1, "a":[1,2]}}`, `"key":"k","key_encoding":"text","value":{"b":1,"a":[1,2]},"value_encoding":"json"`},
		{"text value", `{"value":"hello \"you\"\n"}`, `"key":null,"key_encoding":"null","value":"hello \"you\"\n","value_encoding":"text"`},
		{"a JSON string is not text", `{"value":"x","value_encoding":"json"}`, `"value":"x","value_encoding":"json"`},
		{"big number keeps its digits", `{"value":12345678901234567890.10}`, `"value":12345678901234567890.10,"value_encoding":"json"`},
		{"bytes", `{"value":"AP8=","value_encoding":"base64","key":"/w==","key_encoding":"base64"}`, `"key":"/w==","key_encoding":"base64","value":"AP8=","value_encoding":"base64"`},
		{"tombstone", `{"key":"k","value":null}`, `"value":null,"value_encoding":"null"`},
		{"json null is not a tombstone", `{"key":"k","value":null,"value_encoding":"json"}`, `"value":null,"value_encoding":"json"`},
		{"headers keep order and repeat", `{"value":1,"headers":{"b":"1","a":"2","b":"3"}}`, `"headers":[{"key":"b","value":"1","value_encoding":"text"},{"key":"a","value":"2","value_encoding":"text"},{"key":"b","value":"3","value_encoding":"text"}]`},
		{"time as text", `{"value":1,"timestamp":"2024-02-29T12:00:00.250Z"}`, `"timestamp":1709208000250,"time":"2024-02-29T12:00:00.250Z"`},
		{"time as ms", `{"value":1,"timestamp":5}`, `"timestamp":5,"time":"1970-01-01T00:00:00.005Z"`},
		{"time absent", `{"value":1}`, `"timestamp":1700000000000`},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := s.post("t", `{"records":[`+c.in+`]}`)
			line := s.get(fmt.Sprintf("/api/v1/topics/t/records?from=%d", p.Records[0].Offset))
			if !strings.Contains(line, c.out) {
				t.Fatalf("got  %swant %s", line, c.out)
			}
			// What a query prints can be posted again, and is the same.
			code, out := s.do("POST", "/api/v1/topics/t/records", "application/x-ndjson", line)
			if code != 200 {
				t.Fatalf("posted again: %d %s", code, out)
			}
			again := s.get("/api/v1/topics/t/records?from=-1")
			_, want, _ := strings.Cut(line, `"timestamp"`)
			if _, got, _ := strings.Cut(again, `"timestamp"`); got != want {
				t.Errorf("after a round trip %swas %s", got, want)
			}
		})
	}
}

func TestRawBodyIsOneRecord(t *testing.T) {
	s := newServer(t, nil)
	s.topic("t", 1)
	if code, out := s.do("POST", "/api/v1/topics/t/records?key=a%20b&timestamp=77", "image/png", "\x89PNG\n"); code != 200 {
		t.Fatalf("%d %s", code, out)
	}
	if got := s.get("/api/v1/topics/t/records?format=raw&delimiter="); got != "\x89PNG\n" {
		t.Errorf("raw value %q", got)
	}
	if got := s.get("/api/v1/topics/t/records"); !strings.Contains(got, `"timestamp":77,`) || !strings.Contains(got, `"key":"a b"`) || !strings.Contains(got, `"value":"image/png"`) {
		t.Errorf("record %s", got)
	}
}

func TestSlowBodyIsGivenUp(t *testing.T) {
	s := newServer(t, func(c *storehttp.Config) { c.ReadTimeout = 50 * time.Millisecond })
	s.topic("t", 1)
	r, w := io.Pipe()
	defer w.Close()
	go w.Write([]byte(`{"records":[`)) // and then nothing
	resp, err := http.Post(s.url+"/api/v1/topics/t/records", "application/json", r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != 400 {
		t.Errorf("status %d", resp.StatusCode)
	}
}

// TestPostAnswersOnlyWhatIsDurable is a fault pair: the fsync fails, and nothing
// is answered with 200; then the power goes, and every 200 is still there.
func TestPostAnswersOnlyWhatIsDurable(t *testing.T) {
	for _, after := range []bool{false, true} {
		s := newServer(t, nil)
		s.topic("t", 1)
		s.post("t", `{"records":[{"value":1}]}`)
		fired := s.fs.Inject(storagetest.Fault{Call: storagetest.Sync, Err: syscall.EIO, After: after})
		code, out := s.do("POST", "/api/v1/topics/t/records", "application/json", `{"records":[{"value":2}]}`)
		if fired() == 0 {
			t.Fatal("the fault never fired")
		}
		if code != http.StatusServiceUnavailable || !strings.Contains(out, `"disk_error"`) {
			t.Errorf("fsync failed (after=%v): %d %s", after, code, out)
		}
		s.fs.Heal()
		last := s.post("t", `{"records":[{"value":3},{"value":4}]}`).Records[1].Offset
		dir := filepath.Join(t.TempDir(), "after")
		if note, err := s.fs.Cut(9, dir); err != nil {
			t.Fatal(note, err)
		}
		st, err := storage.Open(storage.Config{Dir: dir, Classes: []storage.ClassConfig{{Name: "data"}}})
		if err != nil {
			t.Fatal(err)
		}
		topic, _ := st.Topic("t")
		if hw := topic.Partition(0).HighWatermark(); hw <= last {
			t.Errorf("offset %d was answered with 200, after the power cut there are %d", last, hw)
		}
		st.Close()
	}
}

func TestErrorsSayWhatToDo(t *testing.T) {
	s := newServer(t, func(c *storehttp.Config) { c.MaxBodyBytes, c.MaxRecordBytes, c.MaxRecords = 2000, 100, 5 })
	s.topic("t", 2)
	s.topic("one", 1)
	s.topic("__inner", 1)
	s.post("one", `{"records":[{"value":1}]}`)
	const rec = "/api/v1/topics/t/records"
	for _, c := range []struct {
		name, method, path, contentType, body string
		code                                  int
		want                                  string
	}{
		{"unknown topic", "GET", "/api/v1/topics/x/records", "", "", 404, "unknown_topic"},
		{"unknown partition", "GET", rec + "?partition=7", "", "", 404, "unknown_partition"},
		{"negative partition", "GET", rec + "?partition=-1", "", "", 404, "unknown_partition"},
		{"misspelt parameter", "GET", rec + "?form=5", "", "", 400, "unknown_parameter"},
		{"offset of which partition?", "GET", rec + "?from=5", "", "", 400, "partition_required"},
		{"offset beyond the end", "GET", "/api/v1/topics/one/records?from=2", "", "", 416, `"start":0,"high_watermark":1`},
		{"bad offset", "GET", rec + "?partition=0&from=abc", "", "", 400, "bad_offset"},
		{"bad time", "GET", rec + "?from_time=yesterday", "", "", 400, "bad_time"},
		{"bad limit", "GET", rec + "?limit=-1", "", "", 400, "bad_limit"},
		{"bad format", "GET", rec + "?format=xml", "", "", 400, "bad_format"},
		{"tail until?", "GET", "/api/v1/topics/t/tail?to=5", "", "", 400, ""},
		{"post to nowhere", "POST", "/api/v1/topics/x/records", "application/json", `{"records":[{"value":1}]}`, 404, "unknown_topic"},
		{"post to an internal topic", "POST", "/api/v1/topics/__inner/records", "application/json", `{"records":[{"value":1}]}`, 403, "internal_topic"},
		{"not json", "POST", rec, "application/json", `{"records":[{]}`, 400, "bad_json"},
		{"cut json", "POST", rec, "application/json", `{"records":[`, 400, "ends too early"},
		{"two documents", "POST", rec, "application/json", `{"records":[{"value":1}]} {}`, 400, "after the JSON value"},
		{"unknown name", "POST", rec, "application/json", `{"records":[{"val":1}]}`, 400, `unknown field`},
		{"line is named", "POST", rec, "application/x-ndjson", "{\"value\":1}\n\n{\"value\":}\n", 400, `"line":3`},
		{"no records", "POST", rec, "application/json", `{"records":[]}`, 400, "no_records"},
		{"too many", "POST", rec, "application/json", `{"records":[{},{},{},{},{},{}]}`, 413, "too_many_records"},
		{"too large a record", "POST", rec, "text/plain", strings.Repeat("x", 200), 413, "record_too_large"},
		{"too large a body", "POST", rec, "text/plain", strings.Repeat("x", 3000), 413, "body_too_large"},
		{"partition that is not there", "POST", rec, "application/json", `{"records":[{"value":1,"partition":9}]}`, 404, "unknown_partition"},
		{"forged origin", "POST", rec, "application/json", `{"records":[{"value":1,"headers":{"tr":"x"}}]}`, 400, "reserved_header"},
		{"bad base64", "POST", rec, "application/json", `{"records":[{"value":"*","value_encoding":"base64"}]}`, 400, "not base64"},
		{"encoding of a number", "POST", rec, "application/json", `{"records":[{"value":1,"value_encoding":"text"}]}`, 400, "wants a string"},
		{"time of no calendar", "POST", rec, "application/json", `{"records":[{"value":1,"timestamp":-5}]}`, 400, "bad_time"},
		{"content type of no kind", "POST", rec, "///", `x`, 400, "bad_content_type"},
		{"method", "DELETE", rec, "", "", 405, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			code, out := s.do(c.method, c.path, c.contentType, c.body)
			if code != c.code || !strings.Contains(out, c.want) {
				t.Errorf("%d %swant %d with %s", code, out, c.code, c.want)
			}
			if c.code != 405 {
				var e struct{ Error storehttp.Error }
				if err := json.Unmarshal([]byte(out), &e); err != nil || e.Error.Code == "" || e.Error.Message == "" {
					t.Errorf("not an error of ours: %s", out)
				}
			}
		})
	}
	for _, p := range mustTopic(t, s.store, "t").Partitions() {
		if p.HighWatermark() != 0 {
			t.Error("a refused request left records")
		}
	}
}

func mustTopic(t *testing.T, s *storage.Store, name string) *storage.Topic {
	t.Helper()
	topic, ok := s.Topic(name)
	if !ok {
		t.Fatalf("no topic %s", name)
	}
	return topic
}

func TestPageOfAnotherOriginCannotWrite(t *testing.T) {
	s := newServer(t, nil)
	s.topic("t", 1)
	req, _ := http.NewRequest("POST", s.url+"/api/v1/topics/t/records", strings.NewReader("x"))
	req.Header.Set("Origin", "https://evil.example")
	req.Header.Set("Sec-Fetch-Site", "cross-site")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 403 {
		t.Errorf("status %d", resp.StatusCode)
	}
}

func TestGuardRefusesForeignHostNames(t *testing.T) {
	h := storehttp.Guard(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "in") }))
	for host, want := range map[string]int{"127.0.0.1:8080": 200, "localhost:8080": 200, "localhost": 200, "[::1]:8080": 200, "127.8.8.8": 200,
		"evil.example:8080": 421, "10.0.0.1": 421, "": 421} {
		r := httptest.NewRequest("GET", "/", nil)
		r.Host = host
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != want {
			t.Errorf("host %q: %d, want %d", host, w.Code, want)
		}
	}
}

// fill stores n records whose timestamps go up and down, with a key for every third.
func (s *server) fill(topic *storage.Topic, n int) (times []int64) {
	s.t.Helper()
	for i := range n {
		ts := int64(1_000_000 + i*1000 - i%7*2500) // late ones in between
		times = append(times, ts)
		a := s.store.NewAppend("")
		if err := a.Record(topic.Partition(0), ts, []byte(fmt.Sprint("k", i%3)), []byte(fmt.Sprint(i)), nil); err != nil {
			s.t.Fatal(err)
		}
		if err := s.store.Commit(context.Background(), a); err != nil {
			s.t.Fatal(err)
		}
	}
	return times
}

// TestQueriesAnswerExactlyWhatTheyAsk compares with a loop over the same records.
func TestQueriesAnswerExactlyWhatTheyAsk(t *testing.T) {
	s := newServer(t, func(c *storehttp.Config) { c.ReadBytes = 300 }) // many blocks
	topic := s.topic("t", 1)
	const n = 120
	times := s.fill(topic, n)
	for _, c := range []struct {
		query string
		in    func(i int, ts int64) bool
		limit int
	}{
		{"", func(int, int64) bool { return true }, 0},
		{"from=30&to=60", func(i int, _ int64) bool { return i >= 30 && i < 60 }, 0},
		{"from=-5", func(i int, _ int64) bool { return i >= n-5 }, 0},
		{"from=-500", func(int, int64) bool { return true }, 0},
		{"from=latest", func(int, int64) bool { return false }, 0},
		{"from=earliest&to=-100", func(i int, _ int64) bool { return i < 20 }, 0},
		{"from=60&to=30", func(int, int64) bool { return false }, 0},
		{"key=k1", func(i int, _ int64) bool { return i%3 == 1 }, 0},
		{"key=k1&limit=4", func(i int, _ int64) bool { return i%3 == 1 }, 4},
		{"limit=0", func(int, int64) bool { return true }, 0},
		{"from_time=1050000&to_time=1060000", func(_ int, ts int64) bool { return ts >= 1050000 && ts < 1060000 }, 0},
		{"from_time=1970-01-01T00:17:30Z", func(_ int, ts int64) bool { return ts >= 1050000 }, 0},
		{"from_time=9999999999", func(int, int64) bool { return false }, 0},
		{"to_time=1010000", func(_ int, ts int64) bool { return ts < 1010000 }, 0},
		{"from=50&from_time=1020000", func(i int, ts int64) bool { return i >= 50 && ts >= 1020000 }, 0},
		{"node=nobody", func(int, int64) bool { return false }, 0},
	} {
		t.Run(c.query, func(t *testing.T) {
			var want []string
			for i, ts := range times {
				if c.in(i, ts) && (c.limit == 0 || len(want) < c.limit) {
					want = append(want, fmt.Sprint(i))
				}
			}
			got := strings.Fields(s.get("/api/v1/topics/t/records?format=raw&" + c.query))
			if strings.Join(got, " ") != strings.Join(want, " ") {
				t.Errorf("got  %v\nwant %v", got, want)
			}
		})
	}
}

func TestAnswerNamesWhereToGoOn(t *testing.T) {
	s := newServer(t, nil)
	s.fill(s.topic("t", 1), 10)
	next := "0"
	var all []string
	for range 5 {
		resp, err := http.Get(s.url + "/api/v1/topics/t/records?format=raw&limit=3&from=" + next)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		all = append(all, strings.Fields(string(b))...)
		_, next, _ = strings.Cut(resp.Trailer.Get("Tailrace-Next"), ":")
	}
	if got := strings.Join(all, " "); got != "0 1 2 3 4 5 6 7 8 9" {
		t.Errorf("paged: %s", got)
	}
}

func TestCSVQuotesWhatNeedsIt(t *testing.T) {
	s := newServer(t, nil)
	s.topic("t", 1)
	s.post("t", `{"records":[{"key":"a,b","value":{"x":"y\n"},"timestamp":0}]}`)
	got := s.get("/api/v1/topics/t/records?format=csv")
	want := "topic,partition,offset,timestamp,time,key,key_encoding,value,value_encoding,node,epoch,origin_offset\n" +
		"t,0,0,0,1970-01-01T00:00:00.000Z,\"a,b\",text,\"{\"\"x\"\":\"\"y\\n\"\"}\",text,,,\n"
	if got != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

// TestOriginComesFromTheBatchOrTheRecord: at the hub batches carry it, merged
// or not; a node's records carry it in a header, which is not shown as one.
func TestOriginComesFromTheBatchOrTheRecord(t *testing.T) {
	s := newServer(t, nil)
	topic := s.topic("t", 1)
	var bl record.Builder
	bl.Reset(nil)
	for range 3 {
		bl.Add(1, nil, []byte("x"), nil)
	}
	a := s.store.NewAppend("")
	if err := a.Batch(topic.Partition(0), record.Batch(bl.Finish(500, 0)), &storage.Origin{Node: "n1", Epoch: [16]byte{0xab}, Topic: "t", From: 500, To: 503}); err != nil {
		t.Fatal(err)
	}
	if err := s.store.Commit(context.Background(), a); err != nil {
		t.Fatal(err)
	}
	got := s.get("/api/v1/topics/t/records?from=2&node=n1")
	if !strings.Contains(got, `"offset":2,`) || !strings.Contains(got, `"origin":{"node":"n1","epoch":"ab000000000000000000000000000000","offset":502}`) {
		t.Error(got)
	}
	if got := s.get("/api/v1/topics/t/records?node=n2"); got != "" {
		t.Error("another node's records:", got)
	}

	node, err := storage.Open(storage.Config{Dir: filepath.Join(t.TempDir(), "node"), NodeID: "n7", OriginHeaders: true, Classes: []storage.ClassConfig{{Name: "data"}}})
	if err != nil {
		t.Fatal(err)
	}
	defer node.Close()
	h, err := storehttp.New(storehttp.Config{Store: node})
	if err != nil {
		t.Fatal(err)
	}
	nt, err := node.CreateTopic("t", storage.TopicConfig{})
	if err != nil {
		t.Fatal(err)
	}
	na := node.NewAppend("")
	na.Record(nt.Partition(0), 1, nil, []byte("x"), []record.Header{{Key: "h", Value: []byte("v")}})
	if err := node.Commit(context.Background(), na); err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("GET", "/api/v1/topics/t/records", nil))
	if out := w.Body.String(); !strings.Contains(out, `"origin":{"node":"n7","epoch":"`) || strings.Contains(out, `"tr"`) || !strings.Contains(out, `"key":"h"`) {
		t.Error(out)
	}
}

// events reads server-sent events from a tail.
func (s *server) tail(ctx context.Context, path, lastID string) (next func() (id, data string)) {
	s.t.Helper()
	req, err := http.NewRequestWithContext(ctx, "GET", s.url+path, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	if lastID != "" {
		req.Header.Set("Last-Event-ID", lastID)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { resp.Body.Close() })
	if ct := resp.Header.Get("Content-Type"); resp.StatusCode != 200 || ct != "text/event-stream" {
		s.t.Fatalf("%s, %s", resp.Status, ct)
	}
	sc := bufio.NewScanner(resp.Body)
	return func() (id, data string) {
		s.t.Helper()
		for sc.Scan() {
			line := sc.Text()
			switch {
			case strings.HasPrefix(line, "id: "):
				id = line[4:]
			case strings.HasPrefix(line, "data: "):
				data = line[6:]
			case line == "" && data != "":
				return id, data
			}
		}
		s.t.Fatalf("the tail ended: %v", sc.Err())
		return
	}
}

// TestTailGoesOnWhereItWas: what is stored while a reader is away comes first,
// nothing twice.
func TestTailGoesOnWhereItWas(t *testing.T) {
	s := newServer(t, nil)
	s.topic("t", 2)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	put := func(v, partition int) {
		s.post("t", fmt.Sprintf(`{"records":[{"value":%d,"partition":%d}]}`, v, partition))
	}
	put(0, 0)
	first, leave := context.WithCancel(ctx)
	next := s.tail(first, "/api/v1/topics/t/tail", "")
	put(1, 0)
	put(2, 1)
	var id, data string
	for _, want := range []string{`"value":1,`, `"value":2,`} {
		if id, data = next(); !strings.Contains(data, want) {
			t.Fatalf("%s, want %s", data, want)
		}
	}
	if id != "0:2,1:1" {
		t.Fatalf("id %q", id)
	}
	leave()
	put(3, 0)
	put(4, 1)
	next = s.tail(ctx, "/api/v1/topics/t/tail", id)
	seen := map[string]bool{}
	for range 2 {
		_, data := next()
		for _, v := range []string{"3", "4"} {
			if strings.Contains(data, `"value":`+v+`,`) {
				seen[v] = true
			}
		}
	}
	if !seen["3"] || !seen["4"] {
		t.Errorf("after coming back: %v", seen)
	}
	// From some records back, of one key's partition, with an end.
	next = s.tail(ctx, "/api/v1/topics/t/tail?from=-1&partition=1&limit=1", "")
	if _, data := next(); !strings.Contains(data, `"value":4,`) {
		t.Error(data)
	}
}

func TestTailSaysWhatRetentionTook(t *testing.T) {
	s := newServer(t, nil)
	topic := s.topic("t", 1)
	s.fill(topic, 10)
	if err := topic.Partition(0).SetStart(7); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	next := s.tail(ctx, "/api/v1/topics/t/tail", "0:2")
	if _, data := next(); data != `{"partition":0,"from":2,"to":7}` {
		t.Errorf("skipped: %s", data)
	}
	if _, data := next(); !strings.Contains(data, `"offset":7,`) {
		t.Errorf("then: %s", data)
	}
}

func TestReadersAreLimited(t *testing.T) {
	s := newServer(t, func(c *storehttp.Config) { c.MaxReaders = 2 })
	s.topic("t", 1)
	ctx, cancel := context.WithCancel(context.Background())
	for range 2 {
		s.tail(ctx, "/api/v1/topics/t/tail", "")
	}
	if code, out := s.do("GET", "/api/v1/topics/t/records", "", ""); code != 503 || !strings.Contains(out, "too_many_readers") {
		t.Errorf("%d %s", code, out)
	}
	cancel()
	for deadline := time.Now().Add(30 * time.Second); ; {
		if code, _ := s.do("GET", "/api/v1/topics/t/records", "", ""); code == 200 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("tokens do not come back")
		}
	}
}

// TestFailedReadNeverLooksWhole: before the first byte it is a status, after it
// the connection is cut.
func TestFailedReadNeverLooksWhole(t *testing.T) {
	s := newServer(t, func(c *storehttp.Config) { c.ReadBytes = 100 })
	s.fill(s.topic("t", 1), 2000)
	for _, n := range []int{1, 1500} {
		s.fs.Heal()
		fired := s.fs.Inject(storagetest.Fault{Call: storagetest.Read, N: n, Err: syscall.EIO, Forever: true})
		resp, err := http.Get(s.url + "/api/v1/topics/t/records?limit=0")
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if fired() == 0 {
			t.Fatalf("n=%d: no read reached the disk", n)
		}
		if early := resp.StatusCode == 503; early != (n == 1) || !early && err == nil || early && !bytes.Contains(b, []byte("disk_error")) {
			t.Errorf("n=%d: %s, %d bytes, %v", n, resp.Status, len(b), err)
		}
	}
}

func TestStringsOfRecordsAreValidJSON(t *testing.T) {
	s := newServer(t, nil)
	topic := s.topic("t", 1)
	all := make([]byte, 256)
	for i := range all {
		all[i] = byte(i)
	}
	for _, v := range [][]byte{all, []byte("\u2028\u2029\x7f\x00\x1f\"\\/<>&é"), []byte("{\"a\":\"\u2028\"}"), {}, []byte("\xed\xa0\x80")} {
		a := s.store.NewAppend("")
		a.Record(topic.Partition(0), 1, v, v, []record.Header{{Key: string(v), Value: v}})
		if err := s.store.Commit(context.Background(), a); err != nil {
			t.Fatal(err)
		}
	}
	for line := range bytes.Lines([]byte(s.get("/api/v1/topics/t/records"))) {
		if !json.Valid(line) {
			t.Errorf("not JSON: %q", line)
		}
	}
}

func TestPartitionForKeyIsKafkas(t *testing.T) {
	// From Kafka's own test of Utils.murmur2 (UtilsTest.testMurmur2): hash & 0x7fffffff.
	for key, hash := range map[string]int{"21": -973932308, "foobar": -790332482, "a-little-bit-long-string": -985981536,
		"a-little-bit-longer-string": -1486304829, "lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971, "abc": 479470107} {
		if got, want := storehttp.PartitionForKey([]byte(key), 1<<20), int(uint32(hash)&0x7fffffff)%(1<<20); got != want {
			t.Errorf("%s: %d, want %d", key, got, want)
		}
	}
}
