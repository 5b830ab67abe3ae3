package devices

import (
	"errors"
	"fmt"
	"strings"
)

// Pattern is an MQTT topic filter whose segments may be named:
//
//	site/{site}/turbine/{turbine}/#
//	plant/+/wt-{nr}/status
//
// A segment is a literal, "+" (one level), "#" (this level and all below, last
// only; "a/#" matches "a" too, MQTT 5.0, 4.7.1.2), or text with one {name} in it,
// which matches a level with that beginning and end and at least one byte between.
// Wildcards and names in the first segment do not match topics that begin with
// "$" (MQTT 5.0, 4.7.2).
type Pattern struct {
	text     string
	segments []segment
	rest     bool // ends in "#"
	names    []string
}

type segment struct {
	prefix, suffix string // literal: all in prefix
	name           int    // index of the captured name; -1 none
	any            bool   // "+"
}

// maxCaptures bounds the names in one pattern; captures live on the stack of the matcher.
const maxCaptures = 16

type captures [maxCaptures]string

// ParsePattern checks and compiles a pattern.
func ParsePattern(text string) (Pattern, error) {
	p := Pattern{text: text}
	if text == "" {
		return p, errors.New("topic pattern is empty; \"#\" matches everything")
	}
	if len(text) > 65535 || strings.ContainsRune(text, 0) {
		return p, fmt.Errorf("topic pattern %.40q: longer than 65535 bytes or with a zero byte", text)
	}
	parts := strings.Split(text, "/")
	for i, s := range parts {
		if s == "#" {
			if i != len(parts)-1 {
				return p, fmt.Errorf("topic pattern %q: \"#\" must be the last segment", text)
			}
			p.rest = true
			break
		}
		seg := segment{name: -1, prefix: s}
		switch open := strings.IndexByte(s, '{'); {
		case s == "+":
			seg = segment{name: -1, any: true}
		case strings.ContainsAny(s, "+#"):
			return p, fmt.Errorf("topic pattern %q: segment %q: \"+\" and \"#\" stand alone between slashes", text, s)
		case open >= 0:
			end := strings.IndexByte(s, '}')
			if end < open || strings.ContainsAny(s[end+1:], "{}") {
				return p, fmt.Errorf("topic pattern %q: segment %q: want text with one {name}", text, s)
			}
			name := s[open+1 : end]
			if err := checkName(name); err != nil {
				return p, fmt.Errorf("topic pattern %q: %w", text, err)
			}
			for _, n := range p.names {
				if n == name {
					return p, fmt.Errorf("topic pattern %q: name {%s} is used twice", text, name)
				}
			}
			if len(p.names) == maxCaptures {
				return p, fmt.Errorf("topic pattern %q: more than %d names", text, maxCaptures)
			}
			seg = segment{prefix: s[:open], suffix: s[end+1:], name: len(p.names)}
			p.names = append(p.names, name)
		case strings.ContainsRune(s, '}'):
			return p, fmt.Errorf("topic pattern %q: segment %q: \"}\" without \"{\"", text, s)
		}
		p.segments = append(p.segments, seg)
	}
	return p, nil
}

// String returns the pattern as written.
func (p Pattern) String() string { return p.text }

// Filter returns the pattern as an MQTT topic filter (names become "+").
func (p Pattern) Filter() string {
	var b strings.Builder
	for i, s := range p.segments {
		if i > 0 {
			b.WriteByte('/')
		}
		if s.any || s.name >= 0 {
			b.WriteByte('+')
		} else {
			b.WriteString(s.prefix)
		}
	}
	if p.rest {
		if len(p.segments) > 0 {
			b.WriteByte('/')
		}
		b.WriteByte('#')
	}
	return b.String()
}

// match fills c with the captured names; they alias topic.
func (p *Pattern) match(topic string, c *captures) bool {
	rest, more := topic, true
	for i, s := range p.segments {
		if !more {
			return false
		}
		var level string
		level, rest, more = strings.Cut(rest, "/")
		if i == 0 && (s.any || s.name >= 0) && strings.HasPrefix(level, "$") {
			return false
		}
		switch {
		case s.any:
		case s.name >= 0:
			if len(level) <= len(s.prefix)+len(s.suffix) || !strings.HasPrefix(level, s.prefix) || !strings.HasSuffix(level, s.suffix) {
				return false
			}
			c[s.name] = level[len(s.prefix) : len(level)-len(s.suffix)]
		case level != s.prefix:
			return false
		}
	}
	if p.rest {
		return len(p.segments) > 0 || !strings.HasPrefix(topic, "$")
	}
	return !more
}

func checkName(name string) error {
	if name == "" {
		return errors.New("a name in braces is empty")
	}
	for i := range len(name) {
		c := name[i]
		if c != '_' && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (i == 0 || c < '0' || c > '9') {
			return fmt.Errorf("name {%s}: want letters, digits and \"_\", not beginning with a digit", name)
		}
	}
	switch name {
	case "topic", "client", "user":
		return fmt.Errorf("name {%s} is taken: it stands for the message's own %s in templates", name, name)
	}
	return nil
}
