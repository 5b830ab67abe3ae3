package auth

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"unicode/utf8"
)

// Action is what somebody wants to do with a topic.
type Action uint8

const (
	Publish Action = 1 << iota
	Subscribe
	Will
	allActions = Publish | Subscribe | Will
)

var actions = map[string]Action{"publish": Publish, "subscribe": Subscribe, "will": Will, "all": allActions}

// ParseAction reads "publish", "subscribe" or "will".
func ParseAction(s string) (Action, error) {
	if a, ok := actions[s]; ok && a != allActions {
		return a, nil
	}
	return 0, fmt.Errorf("action %q: want publish, subscribe or will", s)
}

// Subject is who wants to do it. Neither field is trusted to be free of wildcards.
type Subject struct{ Identity, Client string }

// Rules are ordered: the first that matches decides, and what none matches is
// denied. One per line:
//
//	allow|deny  WHO  ACTIONS  PATTERN
//	refuse      WHO
//
// WHO is "*" (everybody), "anonymous", "user:NAME", "cert:NAME", or NAME (either); a
// name may end in "*". ACTIONS are publish, subscribe and will, with commas between,
// or all. PATTERN is an MQTT filter in whose levels {user} and {client} stand for the
// subject's name and client id; a name or id that is empty or holds "+", "#" or "/"
// matches no pattern with it. refuse lets WHO not even connect.
//
// A topic is denied by a rule that matches it. A subscription is allowed by an allow
// that covers all of it, and denied by a deny that meets any of it: nobody reads
// by "#" what is denied by name.
type Rules struct{ rules []rule }

type rule struct {
	text   string
	line   int
	verb   verb
	who    string // without the "*" at the end
	prefix bool   // who ended in "*"
	action Action
	levels []string
}

type verb uint8

const (
	deny verb = iota
	allow
	refuse
)

const (
	maxRules     = 10_000
	maxRuleBytes = 4096
)

// LoadRules reads a file; the error names the line.
func LoadRules(file string) (*Rules, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("acl file: %w", err)
	}
	defer f.Close()
	r, err := ReadRules(f)
	if err != nil {
		return nil, fmt.Errorf("acl file %s %w", file, err)
	}
	return r, nil
}

// ReadRules reads lines; blank ones and those that begin with "#" are comments.
func ReadRules(r io.Reader) (*Rules, error) {
	rs := &Rules{}
	s := bufio.NewScanner(r)
	s.Buffer(nil, maxRuleBytes)
	for n := 1; s.Scan(); n++ {
		text := strings.TrimSpace(s.Text())
		if text == "" || text[0] == '#' {
			continue
		}
		ru, err := parseRule(text)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		ru.line = n
		if rs.rules = append(rs.rules, ru); len(rs.rules) > maxRules {
			return nil, fmt.Errorf("line %d: more than %d rules", n, maxRules)
		}
	}
	if err := s.Err(); err != nil {
		return nil, err
	}
	return rs, nil
}

// field cuts the first word off.
func field(s string) (word, rest string) {
	s = strings.TrimLeft(s, " \t")
	if i := strings.IndexAny(s, " \t"); i >= 0 {
		return s[:i], strings.TrimLeft(s[i:], " \t")
	}
	return s, ""
}

func parseRule(text string) (rule, error) {
	ru := rule{text: text}
	word, rest := field(text)
	switch word {
	case "allow":
		ru.verb = allow
	case "deny":
		ru.verb = deny
	case "refuse":
		ru.verb = refuse
	default:
		return ru, fmt.Errorf("%q: want allow, deny or refuse", word)
	}
	if ru.who, rest = field(rest); ru.who == "" {
		return ru, errors.New("whom? *, anonymous, user:NAME, cert:NAME or NAME")
	}
	ru.who, ru.prefix = strings.CutSuffix(ru.who, "*")
	if strings.Contains(ru.who, "*") {
		return ru, fmt.Errorf("%q: a * stands only at the end", ru.who)
	}
	if ru.verb == refuse {
		if rest != "" {
			return ru, fmt.Errorf("refuse takes a name and nothing else, not %q", rest)
		}
		return ru, nil
	}
	word, rest = field(rest)
	for a := range strings.SplitSeq(word, ",") {
		if actions[a] == 0 {
			return ru, fmt.Errorf("action %q: want publish, subscribe, will (with commas between) or all", a)
		}
		ru.action |= actions[a]
	}
	if rest == "" || !utf8.ValidString(rest) || strings.ContainsRune(rest, 0) {
		return ru, errors.New("topic pattern is empty or not UTF-8; \"#\" is every topic")
	}
	ru.levels = strings.Split(rest, "/")
	for i, l := range ru.levels {
		bare := strings.NewReplacer("{user}", "", "{client}", "").Replace(l)
		switch {
		case l == "+", l == "#" && i == len(ru.levels)-1:
		case strings.ContainsAny(bare, "+#"):
			return ru, fmt.Errorf("pattern %q: + is a level of its own and # is the last one", rest)
		case strings.ContainsAny(bare, "{}"):
			return ru, fmt.Errorf("pattern %q: want {user} or {client} in braces", rest)
		}
	}
	return ru, nil
}

// Verdict is a decision and the rule that made it.
type Verdict struct {
	Allowed bool
	Line    int    // 0 = no rule matches
	Rule    string // as written
}

// Refused reports whether a rule keeps the identity out.
func (r *Rules) Refused(identity string) bool {
	for i := range r.rules {
		if ru := &r.rules[i]; ru.verb == refuse && ru.isWho(identity) {
			return true
		}
	}
	return false
}

// Allows decides; topic is a name, or for Subscribe a filter without its $share prefix.
func (r *Rules) Allows(s Subject, a Action, topic string) bool { return r.Decide(s, a, topic).Allowed }

// Decide is Allows with the reason.
func (r *Rules) Decide(s Subject, a Action, topic string) Verdict {
	if topic == "" || a != Subscribe && strings.ContainsAny(topic, "+#") {
		return Verdict{}
	}
	want := strings.Split(topic, "/")
	if want[0] == "#" { // a topic has at least one level
		want = []string{"+", "#"}
	}
	for i := range r.rules {
		ru := &r.rules[i]
		if ru.verb == refuse || ru.action&a == 0 || !ru.isWho(s.Identity) {
			continue
		}
		pattern, ok := ru.expand(s)
		if !ok {
			continue
		}
		if ru.verb == allow && covers(pattern, want) || ru.verb == deny && meets(pattern, want) {
			return Verdict{ru.verb == allow, ru.line, ru.text}
		}
	}
	return Verdict{}
}

// isWho keeps the three ways of naming apart: a bare name is never compared with the
// "user:" in front of an identity, or "user*" would be everybody.
func (ru *rule) isWho(identity string) bool {
	match := func(s string) bool { return s == ru.who || ru.prefix && strings.HasPrefix(s, ru.who) }
	switch name := Name(identity); {
	case ru.who == "" && ru.prefix:
		return true
	case strings.Contains(ru.who, ":"):
		return match(identity)
	case ru.who == Anonymous && !ru.prefix:
		return identity == Anonymous
	default:
		return name != "" && match(name)
	}
}

// expand puts the subject's names in; false when one cannot stand for a level.
func (ru *rule) expand(s Subject) ([]string, bool) {
	levels := ru.levels
	if levels[0] == "#" {
		levels = []string{"+", "#"}
	}
	var out []string
	for i, l := range levels {
		if !strings.Contains(l, "{") {
			continue
		}
		if out == nil {
			out = append(out, levels...)
		}
		for hole, name := range map[string]string{"{user}": Name(s.Identity), "{client}": s.Client} {
			if strings.Contains(l, hole) && !pure(name) {
				return nil, false
			}
		}
		out[i] = strings.NewReplacer("{user}", Name(s.Identity), "{client}", s.Client).Replace(l)
	}
	if out == nil {
		return levels, true
	}
	return out, true
}

// covers: every topic of the filter f is one of p. Neither begins with "#".
func covers(p, f []string) bool {
	for i := 0; ; i++ {
		switch {
		case i < len(p) && p[i] == "#":
			return true
		case i == len(p) || i == len(f):
			return len(p) == len(f)
		case f[i] == "#":
			return false
		case p[i] == "+":
			if i == 0 && strings.HasPrefix(f[0], "$") { // MQTT 5.0, 4.7.2
				return false
			}
		case p[i] != f[i]:
			return false
		}
	}
}

// meets: some topic is one of both. Neither begins with "#".
func meets(p, f []string) bool {
	for i := 0; ; i++ {
		switch {
		case i < len(p) && p[i] == "#", i < len(f) && f[i] == "#":
			return true
		case i == len(p) || i == len(f):
			return len(p) == len(f)
		case p[i] == "+" || f[i] == "+":
			if i == 0 && (strings.HasPrefix(f[0], "$") || strings.HasPrefix(p[0], "$")) {
				return false
			}
		case p[i] != f[i]:
			return false
		}
	}
}
