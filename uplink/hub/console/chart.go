package console

import (
	"cmp"
	"encoding/json"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/tidwall/gjson"

	"tailrace/storage/record"
	"tailrace/storage/storehttp"
)

const (
	chartBuckets = 240 // at most, across the chart
	chartSeries  = 8   // keys drawn; more are counted and not drawn
	sampleSize   = 20000
	maxFields    = 40
)

// span is a width of the time axis; 0 chooses by the data.
type span struct {
	name string
	d    time.Duration
}

var spans = []span{{"auto", 0}, {"1 min", time.Minute}, {"5 min", 5 * time.Minute}, {"15 min", 15 * time.Minute}, {"1 h", time.Hour},
	{"6 h", 6 * time.Hour}, {"1 d", 24 * time.Hour}, {"7 d", 7 * 24 * time.Hour}, {"30 d", 30 * 24 * time.Hour}, {"1 y", 365 * 24 * time.Hour}}

func spanNames() []string {
	out := make([]string, len(spans))
	for i, s := range spans {
		out[i] = s.name
	}
	return out
}

// chart follows one numeric field of a topic, one series per key, as buckets
// of minimum, mean and maximum. Its memory does not depend on the data: at
// most chartSeries × chartBuckets. Time is record time, so a replay of old
// readings draws like a live one.
type chart struct {
	topic    storehttp.Topic
	field    string // gjson path
	fields   []string
	spanName string
	width    int64 // of a bucket, ms
	next     map[int]int64
	series   []*series
	others   map[string]bool // keys not drawn; at most 1,000 are counted
	hi       int64           // largest time seen, ms
	changed  bool
	last     []byte
}

type series struct {
	key     string
	buckets map[int64]*bucket // by time/width
	last    float64
	lastAt  int64
}

type bucket struct {
	min, max, sum float64
	n             int
}

// point is one value found while sampling.
type point struct {
	key string
	ts  int64
	v   float64
}

// newChart samples the end of the topic: which numeric fields there are, which
// one to draw, and how wide.
func newChart(t storehttp.Topic, field, spanName string) *chart {
	c := &chart{topic: t, next: map[int]int64{}, others: map[string]bool{}}
	type seen struct {
		n        int
		distinct map[float64]bool
	}
	found := map[string]*seen{}
	note := func(path string, v float64) {
		s := found[path]
		if s == nil {
			if len(found) >= maxFields {
				return
			}
			s = &seen{distinct: map[float64]bool{}}
			found[path] = s
		}
		s.n++
		if len(s.distinct) < 50 {
			s.distinct[v] = true
		}
	}
	// Fields come from the last few hundred records; errors leave the chart empty.
	tailRead(t, 200, func(_ storehttp.Partition, r *record.Record, _ string) { numbers(r.Value, note) })
	for f := range found {
		c.fields = append(c.fields, f)
	}
	slices.Sort(c.fields)
	if field != "" && found[field] != nil {
		c.field = field
	} else {
		best := -1.0
		for _, f := range c.fields {
			if s := score(f, len(found[f].distinct), found[f].n); s > best {
				best, c.field = s, f
			}
		}
	}
	if c.field == "" {
		return c
	}
	c.sample(spanName)
	return c
}

// numbers calls f for the numeric fields of a JSON object, one level of nesting
// deep, and for a value that is a number itself (path "@this").
func numbers(b []byte, f func(path string, v float64)) {
	if len(b) == 0 || !gjson.ValidBytes(b) {
		return
	}
	v := gjson.ParseBytes(b)
	if v.Type == gjson.Number {
		f("@this", v.Num)
		return
	}
	if !v.IsObject() {
		return
	}
	v.ForEach(func(k, v gjson.Result) bool {
		path := gjson.Escape(k.Str)
		switch {
		case v.Type == gjson.Number:
			f(path, v.Num)
		case v.IsObject():
			v.ForEach(func(k2, v2 gjson.Result) bool {
				if v2.Type == gjson.Number {
					f(path+"."+gjson.Escape(k2.Str), v2.Num)
				}
				return true
			})
		}
		return true
	})
}

// score prefers what looks like a reading: it varies, and its name says so.
// Counters, ids and times vary, too, but nobody wants to look at them.
func score(name string, distinct, n int) float64 {
	s := float64(distinct) / float64(max(1, min(n, 50)))
	name = strings.ToLower(name)
	for i, good := range []string{"power", "value", "speed", "temp", "pressure", "rpm", "flow", "current", "volt"} {
		if strings.Contains(name, good) {
			s += 1.5 - 0.1*float64(i)
			break
		}
	}
	for _, bad := range []string{"seq", "time", "ts", "id", "epoch", "count", "uptime", "boot", "status", "code"} {
		if name == bad || strings.HasSuffix(name, "_"+bad) || strings.HasPrefix(name, bad+"_") {
			s -= 2
			break
		}
	}
	return s
}

// sample reads the end of the topic, chooses the drawn keys, the span and the
// bucket width, and fills the buckets.
func (c *chart) sample(spanName string) {
	var pts []point
	parts := c.topic.Parts()
	for _, p := range parts {
		from := max(p.Start(), p.HighWatermark()-int64(sampleSize/max(1, len(parts))))
		c.next[p.Index()], _ = readFrom(p, from, 2*sampleBytes/max(1, len(parts)), func(_ storehttp.Partition, r *record.Record, node string) {
			if pt, ok := c.point(r, node); ok {
				pts = append(pts, pt)
			}
		})
		c.next[p.Index()] = max(c.next[p.Index()], from)
	}
	lo := int64(math.MaxInt64)
	perKey := map[string]int{}
	for _, pt := range pts {
		lo, c.hi = min(lo, pt.ts), max(c.hi, pt.ts)
		perKey[pt.key]++
	}
	keys := make([]string, 0, len(perKey))
	most := 1
	for k, n := range perKey {
		keys = append(keys, k)
		most = max(most, n)
	}
	slices.Sort(keys)
	for i, k := range keys {
		if i < chartSeries {
			c.series = append(c.series, &series{key: k, buckets: map[int64]*bucket{}})
		}
	}
	width := time.Duration(0)
	c.spanName = "auto"
	for _, s := range spans {
		if s.name == spanName && s.d > 0 {
			width, c.spanName = s.d, s.name
		}
	}
	if width == 0 {
		have := time.Duration(max(0, c.hi-lo)) * time.Millisecond
		for _, s := range spans[1:] {
			if width = s.d; s.d >= have {
				break
			}
		}
	}
	c.width = max(1, width.Milliseconds()/chartBuckets, typicalGap(pts)*3/2)
	for _, pt := range pts {
		c.add(pt)
	}
	c.changed = true
}

// typicalGap is the median time between two readings of one key: buckets
// narrower than that would show holes that are none.
func typicalGap(pts []point) int64 {
	last := map[string]int64{}
	var gaps []int64
	for _, pt := range pts {
		if before, ok := last[pt.key]; ok && pt.ts > before {
			gaps = append(gaps, pt.ts-before)
		}
		last[pt.key] = pt.ts
	}
	if len(gaps) == 0 {
		return 0
	}
	slices.Sort(gaps)
	return gaps[len(gaps)/2]
}

func (c *chart) point(r *record.Record, node string) (point, bool) {
	v := gjson.GetBytes(r.Value, c.field)
	if v.Type != gjson.Number || math.IsInf(v.Num, 0) || math.IsNaN(v.Num) {
		return point{}, false
	}
	key := cell(r.Key)
	if r.Key == nil {
		key = cmp.Or(node, "value")
	}
	return point{key, r.Timestamp, v.Num}, true
}

func (c *chart) add(pt point) {
	i := slices.IndexFunc(c.series, func(s *series) bool { return s.key == pt.key })
	if i < 0 {
		if len(c.series) >= chartSeries {
			if len(c.others) < 1000 {
				c.others[pt.key] = true
			}
			return
		}
		c.series = append(c.series, &series{key: pt.key, buckets: map[int64]*bucket{}})
		i = len(c.series) - 1
	}
	s := c.series[i]
	c.hi = max(c.hi, pt.ts)
	if pt.ts >= s.lastAt {
		s.last, s.lastAt = pt.v, pt.ts
	}
	at := pt.ts / c.width
	if at <= c.hi/c.width-chartBuckets {
		return
	}
	b := s.buckets[at]
	if b == nil {
		b = &bucket{min: pt.v, max: pt.v}
		s.buckets[at] = b
		if len(s.buckets) > 2*chartBuckets { // forget what has moved out on the left
			for k := range s.buckets {
				if k <= c.hi/c.width-chartBuckets {
					delete(s.buckets, k)
				}
			}
		}
	}
	b.min, b.max = min(b.min, pt.v), max(b.max, pt.v)
	b.sum += pt.v
	b.n++
	c.changed = true
}

// follow takes in what has become durable since.
func (c *chart) follow() {
	if c.field == "" {
		return
	}
	for _, p := range c.topic.Parts() {
		from, ok := c.next[p.Index()]
		if end := p.HighWatermark(); !ok || end-from > sampleSize { // too far behind: draw what is new
			from = max(p.Start(), end-sampleSize)
		}
		next, err := readFrom(p, from, 2*sampleBytes, func(_ storehttp.Partition, r *record.Record, node string) {
			if pt, ok := c.point(r, node); ok {
				c.add(pt)
			}
		})
		if err == nil {
			c.next[p.Index()] = next
		}
	}
}

// chartJSON is what the browser draws: one time axis, and per series as many
// values as there are times, null where there is no reading.
type chartJSON struct {
	Field  string       `json:"field"`
	Times  []float64    `json:"times"` // s since 1970, middle of the bucket
	Series []chartSerie `json:"series"`
	Others int          `json:"others"` // keys not drawn
	Bucket float64      `json:"bucket_seconds"`
}

type chartSerie struct {
	Key  string     `json:"key"`
	Mean []*float64 `json:"mean"`
	Min  float64    `json:"min"`
	Max  float64    `json:"max"`
	Last float64    `json:"last"`
}

func (c *chart) json() ([]byte, error) {
	if c.last != nil && !c.changed {
		return c.last, nil
	}
	c.changed = false
	out := chartJSON{Field: c.field, Times: []float64{}, Series: []chartSerie{}, Others: len(c.others), Bucket: float64(c.width) / 1000}
	if c.width > 0 {
		end := c.hi / c.width
		first := end
		for _, s := range c.series {
			for at := range s.buckets {
				if at > end-chartBuckets {
					first = min(first, at)
				}
			}
		}
		for at := first; at <= end; at++ {
			out.Times = append(out.Times, (float64(at)+0.5)*float64(c.width)/1000)
		}
		for _, s := range c.series {
			cs := chartSerie{Key: s.key, Mean: make([]*float64, 0, len(out.Times)), Min: math.Inf(1), Max: math.Inf(-1), Last: s.last}
			for at := first; at <= end; at++ {
				b := s.buckets[at]
				if b == nil {
					cs.Mean = append(cs.Mean, nil)
					continue
				}
				v := round(b.sum / float64(b.n))
				cs.Mean = append(cs.Mean, &v)
				cs.Min, cs.Max = min(cs.Min, b.min), max(cs.Max, b.max)
			}
			if math.IsInf(cs.Min, 0) { // nothing in view
				continue
			}
			out.Series = append(out.Series, cs)
		}
	}
	var err error
	c.last, err = json.Marshal(out)
	return c.last, err
}

// round keeps six digits: more cannot be seen.
func round(v float64) float64 {
	if v == 0 {
		return 0
	}
	p := math.Pow(10, 5-math.Floor(math.Log10(math.Abs(v))))
	if r := math.Round(v*p) / p; !math.IsInf(r, 0) && !math.IsNaN(r) {
		return r
	}
	return v
}
