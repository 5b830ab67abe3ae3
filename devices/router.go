// Package devices knows what speaks to a node: which stream, key and event time a
// message of which MQTT topic gets (Router), and which devices were seen when
// (Registry).
//
//	r, err := devices.NewRouter(devices.RouterConfig{
//		Rules:   []devices.Rule{{Topic: "wind/{site}/{turbine}/scada", Stream: "wind.scada", Key: "{site}/{turbine}"}},
//		Default: devices.Default{Stream: "unrouted"},
//	})
//	route, err := r.Route(devices.Message{Topic: "wind/marge/T01/scada"})
//
// Rules are tried in order and the first match decides. What no rule matches goes
// to the default, which has to be stated: a stream, or reject. Nothing disappears
// without an answer and a counter.
//
// A Route depends on topic, client and user only, never on the payload: callers
// keep it per connection and topic and do per message only EventTime.
package devices

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"tailrace/devices/payload"
)

// RouterConfig is the routing part of a node's configuration.
type RouterConfig struct {
	// Rules in order; the first match decides. May be empty.
	Rules []Rule
	// Default is for what no rule matches. Required: a stream, or Reject.
	Default Default
}

// Rule sends the messages of matching topics to a stream.
type Rule struct {
	// Name for counters and messages; default: the topic pattern.
	Name string `yaml:"name"`
	// Topic is the pattern (see Pattern). Required.
	Topic string `yaml:"topic"`
	// Stream is the template of the stream's name. Required unless Reject.
	Stream string `yaml:"stream"`
	// Key is the template of the record's key; default "{topic}"; "-" = no key.
	Key *string `yaml:"key"`
	// Device is the template of the device's name in the registry; default: the key.
	Device string `yaml:"device"`
	// Time says where the event time comes from; default: arrival at the node.
	Time TimeRule `yaml:"time"`
	// Dedupe recognises messages that a device sends again, by its own count; default off.
	Dedupe DedupeRule `yaml:"dedupe"`
	// Reject refuses these messages (MQTT 5: 0x90 Topic Name invalid).
	Reject bool `yaml:"reject"`
}

// Default is the rule for what no rule matches.
type Default struct {
	Stream string   `yaml:"stream"`
	Key    *string  `yaml:"key"` // default "{topic}"
	Time   TimeRule `yaml:"time"`
	Reject bool     `yaml:"reject"`
}

// TimeRule says where a record's event time is found.
type TimeRule struct {
	// Encoding of the payload: "json" or "cbor"; empty = time of arrival.
	Encoding payload.Encoding `yaml:"encoding"`
	// Field is the path to the time, "ts" or "data.0.ts".
	Field string `yaml:"field"`
	// Format: unix_s, unix_ms, unix_us, unix_ns (integers or with a fraction) or rfc3339.
	Format payload.Format `yaml:"format"`
	// Else: "arrival" (default) or "reject", for payloads without a readable time.
	Else string `yaml:"else"`
}

// Message is what a route depends on.
type Message struct {
	Topic  string
	Client string // MQTT client id
	User   string // user name or certificate identity
}

// Route is where the messages of one topic go. It is immutable and may be shared.
type Route struct {
	Stream string
	Key    []byte // nil = no key
	Device string // "" = not counted as a device
	Stats  *RuleStats

	time   *timeSource   // nil = arrival
	dedupe *dedupeSource // nil = off
}

// RuleStats counts what a rule did, since start. Fields may be read at any time.
type RuleStats struct {
	Rule        string
	Records     atomic.Uint64 // accepted publishes
	Rejected    atomic.Uint64 // refused publishes: by rule, by stream name or for lack of a time
	TimeArrival atomic.Uint64 // no readable time in the payload, arrival taken
	Duplicates  atomic.Uint64 // known by their sequence number and not stored again
	NoSequence  atomic.Uint64 // the rule wants a sequence number and there was none, or it was too old to be known; stored
	TimeClamped atomic.Uint64 // event time more than MaxAhead in the future, or before 1970
}

// Errors of Route and EventTime. All mean: refuse this message, count it, go on.
var (
	ErrUnmatched = errors.New("no rule matches the topic and the default is reject")
	ErrRejected  = errors.New("a rule refuses this topic")
	ErrStream    = errors.New("the topic expands to an illegal stream name")
	ErrNoTime    = errors.New("the payload has no readable event time and the rule says reject")
)

// MaxAhead is how far a record's timestamp may lie after its arrival. A Kafka
// broker (>= 4.0) fails a whole batch for one record beyond an hour.
const MaxAhead = time.Hour

type timeSource struct {
	field  payload.TimeField
	reject bool
}

type rule struct {
	pattern             Pattern
	stream, key, device template
	noKey, reject       bool
	time                *timeSource
	dedupe              *dedupeSource
	stats               RuleStats
}

// Router is immutable after NewRouter and may be used concurrently.
type Router struct {
	rules []*rule // the default is the last and matches everything
}

// NewRouter compiles the rules; the error names every problem.
func NewRouter(c RouterConfig) (*Router, error) {
	var errs []error
	r := &Router{}
	for i, in := range c.Rules {
		ru, err := compile(in)
		if err != nil {
			errs = append(errs, fmt.Errorf("routes[%d] %s: %w", i, in.Name, err))
			continue
		}
		for _, earlier := range r.rules {
			if earlier.pattern.Filter() == ru.pattern.Filter() && earlier.pattern.plain() {
				errs = append(errs, fmt.Errorf("routes[%d] %q can never match: %q before it takes the same topics", i, in.Topic, earlier.pattern.text))
			}
		}
		r.rules = append(r.rules, ru)
	}
	if c.Default.Stream == "" && !c.Default.Reject {
		errs = append(errs, errors.New("default: say what happens to topics that no route matches: {stream: NAME} or {reject: true}"))
	} else if d, err := compile(Rule{Name: "default", Topic: "#", Stream: c.Default.Stream, Key: c.Default.Key, Time: c.Default.Time, Reject: c.Default.Reject}); err != nil {
		errs = append(errs, fmt.Errorf("default: %w", err))
	} else {
		r.rules = append(r.rules, d)
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return r, nil
}

// plain: every name takes a whole level, so the filter describes the pattern exactly.
func (p Pattern) plain() bool {
	for _, s := range p.segments {
		if s.name >= 0 && (s.prefix != "" || s.suffix != "") {
			return false
		}
	}
	return true
}

func compile(in Rule) (*rule, error) {
	ru := &rule{reject: in.Reject}
	var errs []error
	check := func(err error) {
		if err != nil {
			errs = append(errs, err)
		}
	}
	var err error
	ru.pattern, err = ParsePattern(in.Topic)
	check(err)
	ru.stats.Rule = in.Name
	if in.Name == "" {
		ru.stats.Rule = in.Topic
	}
	if in.Reject {
		if in.Stream != "" {
			check(errors.New("has a stream and reject; want one of them"))
		}
		return ru, errors.Join(errs...)
	}
	if in.Stream == "" {
		check(errors.New("stream is missing (or say reject: true)"))
	}
	ru.stream, err = parseTemplate(in.Stream, ru.pattern.names)
	check(err)
	if name, ok := ru.stream.literal(); ok && in.Stream != "" {
		check(CheckStreamName(name))
	}
	key := "{topic}"
	if in.Key != nil {
		key = *in.Key
	}
	ru.noKey = key == "-"
	if key == "" {
		check(errors.New("key is empty; say \"-\" for records without a key"))
	}
	ru.key, err = parseTemplate(key, ru.pattern.names)
	check(err)
	if in.Device != "" {
		ru.device, err = parseTemplate(in.Device, ru.pattern.names)
		check(err)
	}
	ru.time, err = compileTime(in.Time)
	check(err)
	ru.dedupe, err = compileDedupe(in.Dedupe)
	check(err)
	return ru, errors.Join(errs...)
}

func compileTime(t TimeRule) (*timeSource, error) {
	switch t.Else {
	case "", "arrival", "reject":
	default:
		return nil, fmt.Errorf("time.else %q: want \"arrival\" or \"reject\"", t.Else)
	}
	if t.Encoding == "" {
		if t.Field != "" || t.Format != "" || t.Else == "reject" {
			return nil, errors.New("time has a field, format or else but no encoding: say encoding: json or cbor")
		}
		return nil, nil
	}
	f, err := payload.CompileTime(t.Encoding, t.Field, t.Format)
	if err != nil {
		return nil, err
	}
	return &timeSource{field: f, reject: t.Else == "reject"}, nil
}

// Route decides where messages of m's topic go. On an error the returned route
// still names the rule in Stats, for the caller to count with.
func (r *Router) Route(m Message) (Route, error) {
	var c captures
	for i, ru := range r.rules {
		last := i == len(r.rules)-1
		if !last && !ru.pattern.match(m.Topic, &c) { // the default takes "$" topics too
			continue
		}
		route := Route{Stats: &ru.stats, time: ru.time, dedupe: ru.dedupe}
		if ru.reject {
			if last {
				return route, ErrUnmatched
			}
			return route, ErrRejected
		}
		var err error
		if route.Stream, err = streamName(ru.stream.expand(&m, &c)); err != nil {
			return route, fmt.Errorf("%w: %w", ErrStream, err)
		}
		if !ru.noKey {
			route.Key = []byte(ru.key.expand(&m, &c))
		}
		if len(ru.device.parts) > 0 {
			route.Device = ru.device.expand(&m, &c)
		} else {
			route.Device = string(route.Key)
		}
		return route, nil
	}
	return Route{}, ErrUnmatched // not reached: the default matches
}

// Stats returns the counters of every rule in order, the default last.
func (r *Router) Stats() []*RuleStats {
	out := make([]*RuleStats, len(r.rules))
	for i, ru := range r.rules {
		out[i] = &ru.stats
	}
	return out
}

// EventTime is a record's time. FromPayload: Nanos is what the payload said,
// whatever Millis was clamped to.
type EventTime struct {
	Millis      int64 // record timestamp: within [0, arrival+MaxAhead]
	Nanos       int64
	FromPayload bool
}

// EventTime finds the time of one message. It allocates nothing.
func (r *Route) EventTime(body []byte, arrival time.Time) (EventTime, error) {
	now := arrival.UnixMilli()
	if r.time == nil {
		return EventTime{Millis: now}, nil
	}
	ns, err := r.time.field.Time(body)
	if err != nil {
		if r.time.reject {
			return EventTime{}, ErrNoTime
		}
		r.Stats.TimeArrival.Add(1)
		return EventTime{Millis: now}, nil
	}
	ms := floorDiv(ns, 1e6)
	if limit := now + MaxAhead.Milliseconds(); ms > limit || ms < 0 {
		ms = min(max(ms, 0), limit)
		r.Stats.TimeClamped.Add(1)
	}
	return EventTime{Millis: ms, Nanos: ns, FromPayload: true}, nil
}

func floorDiv(a, b int64) int64 {
	q := a / b
	if a%b < 0 {
		q--
	}
	return q
}
