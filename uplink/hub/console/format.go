package console

import (
	"fmt"
	"html/template"
	"math"
	"strconv"
	"time"
)

// functions are what templates use to write values for people.
func functions(version string) template.FuncMap {
	return template.FuncMap{
		"asset":    func(name string) string { return "/static/" + name + "?v=" + version },
		"count":    count,
		"bytes":    byteCount,
		"seconds":  seconds,
		"rate":     func(v float64) string { return fmt.Sprintf("%.0f", math.Max(0, v)) },
		"ms":       func(d time.Duration) string { return fmt.Sprintf("%.1f ms", float64(d)/1e6) },
		"utc":      func(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05") },
		"iso":      func(t time.Time) string { return t.UTC().Format(time.RFC3339) },
		"short":    func(s string) string { return s[:min(8, len(s))] },
		"stamp":    shortStamp,
		"percent":  func(part, whole int64) int64 { return min(100, part*100/max(1, whole)) },
		"since":    func(t, now time.Time) string { return seconds(now.Sub(t).Seconds()) },
		"sub":      func(a, b int64) int64 { return a - b },
		"duration": func(s int64) string { return seconds(float64(s)) },
	}
}

// count writes a whole number with thin groups: 1 234 567.
func count(n int64) string {
	s := strconv.FormatInt(n, 10)
	neg := ""
	if s[0] == '-' {
		neg, s = "-", s[1:]
	}
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "\u202f" + s[i:]
	}
	return neg + s
}

func byteCount(n int64) string {
	if n < 1024 {
		return strconv.FormatInt(n, 10) + " B"
	}
	f, i := float64(n)/1024, 0
	for f >= 1023.5 && i < 5 {
		f /= 1024
		i++
	}
	return fmt.Sprintf("%.3g %ciB", f, "KMGTPE"[i])
}

// seconds writes a span with two units at most: 4 s, 3 min 20 s, 2 d 4 h.
func seconds(s float64) string {
	switch {
	case s < 0.05:
		return "0 s"
	case s < 10:
		return fmt.Sprintf("%.1f s", s)
	case s < 60:
		return fmt.Sprintf("%.0f s", s)
	}
	n := int64(s)
	units := []struct {
		name string
		n    int64
	}{{"y", 365 * 86400}, {"d", 86400}, {"h", 3600}, {"min", 60}, {"s", 1}}
	for i, u := range units {
		if n < u.n {
			continue
		}
		out := fmt.Sprintf("%d %s", n/u.n, u.name)
		if i+1 < len(units) {
			if rest := n % u.n / units[i+1].n; rest > 0 {
				out += fmt.Sprintf(" %d %s", rest, units[i+1].name)
			}
		}
		return out
	}
	return "0 s"
}

// shortStamp turns the API's RFC 3339 into what a table shows.
func shortStamp(s string) string {
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		return "–"
	}
	return t.UTC().Format("2006-01-02 15:04:05")
}
