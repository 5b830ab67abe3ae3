package devices_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"tailrace/devices"
)

func ptr(s string) *string { return &s }

func router(t testing.TB, d devices.Default, rules ...devices.Rule) *devices.Router {
	t.Helper()
	r, err := devices.NewRouter(devices.RouterConfig{Rules: rules, Default: d})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestFirstMatchingRuleDecides(t *testing.T) {
	r := router(t, devices.Default{Stream: "unrouted"},
		devices.Rule{Topic: "site/{site}/turbine/{turbine}/alarm", Stream: "alarms", Key: ptr("{turbine}")},
		devices.Rule{Topic: "site/{site}/turbine/{turbine}/#", Stream: "turbine.{site}", Key: ptr("{site}/{turbine}")},
		devices.Rule{Topic: "plant/+/wt-{nr}", Stream: "plant", Device: "wt {nr}"},
		devices.Rule{Topic: "raw/#", Stream: "raw", Key: ptr("-")},
		devices.Rule{Topic: "secret/#", Reject: true},
		devices.Rule{Topic: "by/{x}", Stream: "{x}", Key: ptr("{client}:{user}:{{{topic}}}")},
	)
	for _, c := range []struct {
		topic, stream, key, device string
		err                        error
	}{
		{"site/marge/turbine/T01/alarm", "alarms", "T01", "T01", nil},
		{"site/marge/turbine/T01/scada", "turbine.marge", "marge/T01", "marge/T01", nil},
		{"site/marge/turbine/T01/a/b/c", "turbine.marge", "marge/T01", "marge/T01", nil},
		{"site/marge/turbine/T01", "turbine.marge", "marge/T01", "marge/T01", nil}, // "#" includes the parent level
		{"site/marge/turbine", "unrouted", "site/marge/turbine", "site/marge/turbine", nil},
		{"site/Åre nord/turbine/1/x", "turbine.__re_nord", "Åre nord/1", "Åre nord/1", nil}, // Å has two bytes; the key keeps it
		{"plant/7/wt-12", "plant", "plant/7/wt-12", "wt 12", nil},
		{"plant/7/wt-", "unrouted", "plant/7/wt-", "plant/7/wt-", nil}, // a name takes at least one byte
		{"plant//wt-1", "plant", "plant//wt-1", "wt 1", nil},           // "+" matches an empty level
		{"raw", "raw", "", "", nil},
		{"secret/x", "", "", "", devices.ErrRejected},
		{"by/z", "z", "c1:u1:{by/z}", "c1:u1:{by/z}", nil},
		{"by/__offsets", "", "", "", devices.ErrStream},
		{"by/..", "", "", "", devices.ErrStream},
		{"by/" + strings.Repeat("x", 250), "", "", "", devices.ErrStream},
		{"$SYS/uptime", "unrouted", "$SYS/uptime", "$SYS/uptime", nil},
		{"", "unrouted", "", "", nil},
	} {
		got, err := r.Route(devices.Message{Topic: c.topic, Client: "c1", User: "u1"})
		if !errors.Is(err, c.err) {
			t.Errorf("%q: error %v, want %v", c.topic, err, c.err)
			continue
		}
		if got.Stats == nil {
			t.Errorf("%q: no counters", c.topic)
		}
		if err != nil {
			continue
		}
		if got.Stream != c.stream || string(got.Key) != c.key || got.Device != c.device {
			t.Errorf("%q: stream %q key %q device %q; want %q %q %q", c.topic, got.Stream, got.Key, got.Device, c.stream, c.key, c.device)
		}
	}
}

func TestUnmatchedIsRefusedWhenTheDefaultSaysSo(t *testing.T) {
	r := router(t, devices.Default{Reject: true}, devices.Rule{Topic: "+/a", Stream: "s"})
	if _, err := r.Route(devices.Message{Topic: "x/b"}); !errors.Is(err, devices.ErrUnmatched) {
		t.Fatalf("error %v", err)
	}
	// "$" topics do not match a wildcard in the first level (MQTT 5.0, 4.7.2-1).
	if _, err := r.Route(devices.Message{Topic: "$SYS/a"}); !errors.Is(err, devices.ErrUnmatched) {
		t.Fatalf("$SYS matched +: %v", err)
	}
}

func TestNoKeyMeansNull(t *testing.T) {
	r := router(t, devices.Default{Stream: "s", Key: ptr("-")})
	got, err := r.Route(devices.Message{Topic: "a"})
	if err != nil || got.Key != nil {
		t.Fatalf("key %q, %v", got.Key, err)
	}
}

func TestRulesThatCannotWorkAreRefusedTogether(t *testing.T) {
	ok := devices.Default{Stream: "d"}
	for _, c := range []struct {
		name string
		cfg  devices.RouterConfig
		want string
	}{
		{"no default", devices.RouterConfig{}, "no route matches"},
		{"bad default name", devices.RouterConfig{Default: devices.Default{Stream: "a b"}}, "character"},
		{"hash in the middle", devices.RouterConfig{Default: ok, Rules: []devices.Rule{{Topic: "a/#/b", Stream: "s"}}}, "last segment"},
		{"plus in a word", devices.RouterConfig{Default: ok, Rules: []devices.Rule{{Topic: "a/b+", Stream: "s"}}}, "stand alone"},
		{"name twice", devices.RouterConfig{Default: ok, Rules: []devices.Rule{{Topic: "{a}/{a}", Stream: "s"}}}, "twice"},
		{"two names in a level", devices.RouterConfig{Default: ok, Rules: []devices.Rule{{Topic: "{a}-{b}", Stream: "s"}}}, "one {name}"},
		{"taken name", devices.RouterConfig{Default: ok, Rules: []devices.Rule{{Topic: "{client}", Stream: "s"}}}, "taken"},
		{"unknown name in key", devices.RouterConfig{Default: ok, Rules: []devices.Rule{{Topic: "{a}", Stream: "s", Key: ptr("{b}")}}}, "known: topic, client, user, a"},
		{"open brace", devices.RouterConfig{Default: ok, Rules: []devices.Rule{{Topic: "a", Stream: "s{"}}}, "not closed"},
		{"no stream", devices.RouterConfig{Default: ok, Rules: []devices.Rule{{Topic: "a"}}}, "stream is missing"},
		{"stream and reject", devices.RouterConfig{Default: ok, Rules: []devices.Rule{{Topic: "a", Stream: "s", Reject: true}}}, "one of them"},
		{"system stream", devices.RouterConfig{Default: ok, Rules: []devices.Rule{{Topic: "a", Stream: "__x"}}}, "kept for the system"},
		{"shadowed", devices.RouterConfig{Default: ok, Rules: []devices.Rule{{Topic: "a/{x}", Stream: "s"}, {Topic: "a/+", Stream: "t"}}}, "can never match"},
		{"time without encoding", devices.RouterConfig{Default: ok, Rules: []devices.Rule{{Topic: "a", Stream: "s", Time: devices.TimeRule{Field: "ts"}}}}, "encoding"},
		{"unknown format", devices.RouterConfig{Default: ok, Rules: []devices.Rule{{Topic: "a", Stream: "s", Time: devices.TimeRule{Encoding: "json", Field: "ts", Format: "unix"}}}}, "unix_ms"},
		{"both problems named", devices.RouterConfig{Rules: []devices.Rule{{Topic: "a/#/b", Stream: "s"}}}, "no route matches"},
	} {
		_, err := devices.NewRouter(c.cfg)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v; want something with %q", c.name, err, c.want)
		}
	}
}

func TestEventTimeIsClampedToAnHourAheadAndTheOriginalKept(t *testing.T) {
	rule := devices.Rule{Topic: "t", Stream: "s", Time: devices.TimeRule{Encoding: "json", Field: "ts", Format: "unix_ms"}}
	strict := rule
	strict.Topic, strict.Time.Else = "strict", "reject"
	r := router(t, devices.Default{Stream: "d"}, rule, strict)
	arrival := time.UnixMilli(1700000000000)
	route, _ := r.Route(devices.Message{Topic: "t"})
	for _, c := range []struct {
		body string
		want devices.EventTime
	}{
		{`{"ts":1699999999999.000001}`, devices.EventTime{Millis: 1699999999999, Nanos: 1699999999999000001, FromPayload: true}},
		{`{"ts":1700003600000}`, devices.EventTime{Millis: 1700003600000, Nanos: 1700003600000e6, FromPayload: true}},
		{`{"ts":1700003600001}`, devices.EventTime{Millis: 1700003600000, Nanos: 1700003600001e6, FromPayload: true}},
		{`{"ts":-5}`, devices.EventTime{Millis: 0, Nanos: -5e6, FromPayload: true}},
		{`{"ts":"soon"}`, devices.EventTime{Millis: 1700000000000}},
		{`{}`, devices.EventTime{Millis: 1700000000000}},
		{`nonsense`, devices.EventTime{Millis: 1700000000000}},
	} {
		got, err := route.EventTime([]byte(c.body), arrival)
		if err != nil || got != c.want {
			t.Errorf("%s: %+v, %v; want %+v", c.body, got, err, c.want)
		}
	}
	if n := route.Stats.TimeArrival.Load(); n != 3 {
		t.Errorf("%d records counted as without time, want 3", n)
	}
	if n := route.Stats.TimeClamped.Load(); n != 2 {
		t.Errorf("%d clamped, want 2", n)
	}
	route, _ = r.Route(devices.Message{Topic: "strict"})
	if _, err := route.EventTime([]byte(`{}`), arrival); !errors.Is(err, devices.ErrNoTime) {
		t.Errorf("strict rule: %v", err)
	}
	plain, _ := r.Route(devices.Message{Topic: "else"})
	if got, err := plain.EventTime(nil, arrival); err != nil || got != (devices.EventTime{Millis: 1700000000000}) {
		t.Errorf("arrival: %+v, %v", got, err)
	}
}

func FuzzRouter(f *testing.F) {
	f.Add("site/{site}/t-{n}/#", "{site}.x", "site/a/t-1/z")
	f.Add("+/#", "s", "$SYS/x")
	f.Fuzz(func(t *testing.T, pattern, stream, topic string) {
		r, err := devices.NewRouter(devices.RouterConfig{Rules: []devices.Rule{{Topic: pattern, Stream: stream}}, Default: devices.Default{Reject: true}})
		if err != nil {
			return
		}
		route, err := r.Route(devices.Message{Topic: topic})
		if err == nil && devices.CheckStreamName(route.Stream) != nil {
			t.Fatalf("illegal stream %q from %q", route.Stream, topic)
		}
	})
}

func BenchmarkRouteMiss(b *testing.B) {
	r := router(b, devices.Default{Stream: "d"}, devices.Rule{Topic: "site/{site}/turbine/{turbine}/#", Stream: "turbine.{site}", Key: ptr("{turbine}")})
	b.ReportAllocs()
	for b.Loop() {
		r.Route(devices.Message{Topic: "site/marge/turbine/T01/scada"})
	}
}

// What is no whole number, as seconds with a fraction, or no boot, is no sequence: it would be taken
// for another message that it is not.
func TestSequenceIsAWholeNumber(t *testing.T) {
	r := router(t, devices.Default{Stream: "unrouted"}, devices.Rule{Topic: "a", Stream: "a", Dedupe: devices.DedupeRule{Encoding: "json", Field: "n", Boot: "b"}})
	route, err := r.Route(devices.Message{Topic: "a"})
	if err != nil {
		t.Fatal(err)
	}
	for body, want := range map[string]bool{
		`{"n":7,"b":1}`: true, `{"n":"7","b":"x"}`: true, `{"n":7.0,"b":1}`: true, `{"n":1700000000123456789,"b":1}`: true,
		`{"n":7.5,"b":1}`: false, `{"n":"7.5","b":1}`: false, `{"n":75e-1,"b":1}`: false, `{"n":-7,"b":1}`: false, `{"n":7,"b":1.5}`: false, `{"n":7}`: false,
	} {
		if _, n, ok := route.Sequence([]byte(body), nil); ok != want || ok && n != 7 && n != 1700000000123456789 {
			t.Errorf("%s: %d, %v", body, n, ok)
		}
	}
}
