// Package topic knows MQTT topic names and filters: whether they are well formed,
// whether a filter matches a name, and a Tree that finds all subscriptions that
// match a name (MQTT 5.0, 4.7 and 4.8.2).
package topic

import "strings"

// MaxLevels bounds the levels of a name or filter, and so the depth of every
// recursion over them.
const MaxLevels = 128

// ValidName reports whether s may be published to. The string itself must have
// been checked as an MQTT string before.
func ValidName(s string) bool {
	return len(s) > 0 && len(s) <= 65535 && !strings.ContainsAny(s, "+#\x00") && !TooDeep(s)
}

// ValidFilter reports whether s is a well-formed filter, without a $share prefix.
func ValidFilter(s string) bool {
	if len(s) == 0 || len(s) > 65535 || strings.IndexByte(s, 0) >= 0 || TooDeep(s) {
		return false
	}
	for rest, more := s, true; more; {
		var level string
		level, rest, more = strings.Cut(rest, "/")
		if len(level) > 1 && strings.ContainsAny(level, "+#") || level == "#" && more {
			return false
		}
	}
	return true
}

// TooDeep reports whether s has more levels than we take.
func TooDeep(s string) bool { return strings.Count(s, "/") >= MaxLevels }

// Shared splits "$share/group/filter". ok is false when s starts with $share/ and
// is not well formed; group is empty for a filter that is not shared.
func Shared(s string) (group, filter string, ok bool) {
	rest, shared := strings.CutPrefix(s, "$share/")
	if !shared {
		return "", s, s != "$share"
	}
	group, filter, found := strings.Cut(rest, "/")
	if !found || group == "" || filter == "" || strings.ContainsAny(group, "+#") {
		return "", "", false
	}
	return group, filter, true
}

// Match reports whether filter matches name. Wildcards in the first level do not
// match names that begin with $ (4.7.2-1).
func Match(filter, name string) bool {
	if strings.HasPrefix(name, "$") && (strings.HasPrefix(filter, "+") || strings.HasPrefix(filter, "#")) {
		return false
	}
	for {
		f, frest, fmore := strings.Cut(filter, "/")
		if f == "#" {
			return true
		}
		n, nrest, nmore := strings.Cut(name, "/")
		if f != "+" && f != n {
			return false
		}
		if !fmore || !nmore {
			// "sport/#" also matches "sport".
			return fmore == nmore || fmore && frest == "#"
		}
		filter, name = frest, nrest
	}
}
