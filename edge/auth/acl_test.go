package auth_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"tailrace/edge/auth"
)

func rules(t testing.TB, text string) *auth.Rules {
	t.Helper()
	r, err := auth.ReadRules(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestRulesDecide(t *testing.T) {
	for _, c := range []struct {
		name, rules      string
		identity, client string
		action           auth.Action
		topic            string
		want             bool
	}{
		{"empty denies", "", "user:a", "a", auth.Publish, "t", false},
		{"only comments deny", "# allow * all #\n\n", "user:a", "a", auth.Publish, "t", false},
		{"first match decides", "deny * publish a/b\nallow * publish a/+", "user:a", "a", auth.Publish, "a/b", false},
		{"and the next one for others", "deny * publish a/b\nallow * publish a/+", "user:a", "a", auth.Publish, "a/c", true},
		{"publish is not will", "allow * publish #", "user:a", "a", auth.Will, "t", false},
		{"nor subscribe", "allow * publish,will #", "user:a", "a", auth.Subscribe, "t", false},
		{"user level", "allow * publish site/{user}/#", "user:a", "x", auth.Publish, "site/a/x", true},
		{"user level of another", "allow * publish site/{user}/#", "user:a", "x", auth.Publish, "site/b/x", false},
		{"part of a level", "allow * publish wt-{client}/#", "user:a", "x", auth.Publish, "wt-x", true},
		{"a client id with a plus matches no pattern", "allow * publish d/{client}/t", "user:a", "+", auth.Publish, "d/b/t", false},
		{"not even itself", "allow * subscribe d/{client}/t", "user:a", "+", auth.Subscribe, "d/+/t", false},
		{"a user with a hash", "allow * subscribe {user}", "user:#", "x", auth.Subscribe, "#", false},
		{"a user with a slash", "allow * publish d/{user}", "user:a/b", "x", auth.Publish, "d/a/b", false},
		{"an empty client id", "allow * publish d/{client}", "user:a", "", auth.Publish, "d/", false},
		{"anonymous has no name", "allow * publish {user}", "anonymous", "x", auth.Publish, "anonymous", false},
		{"anonymous by name", "allow anonymous publish #", "anonymous", "x", auth.Publish, "t", true},
		{"a user called anonymous is not anonymous", "allow anonymous publish #", "user:anonymous", "x", auth.Publish, "t", false},
		{"kind of identity", "allow user:a publish #", "cert:a", "x", auth.Publish, "t", false},
		{"either kind", "allow a publish #", "cert:a", "x", auth.Publish, "t", true},
		{"star at the end", "allow plc-* publish #", "user:plc-9", "x", auth.Publish, "t", true},
		{"a bare name is not compared with the kind", "allow user* publish #", "user:bob", "x", auth.Publish, "t", false},
		{"dollar topics need a name", "allow * all #", "user:a", "x", auth.Publish, "$x/y", false},
		{"dollar topics by name", "allow * all $x/#", "user:a", "x", auth.Publish, "$x/y", true},
		{"a wildcard in a published topic", "allow * all #", "user:a", "x", auth.Publish, "a/+", false},
		{"subscription within an allow", "allow * subscribe a/+/c", "user:a", "x", auth.Subscribe, "a/b/c", true},
		{"wider than the allow", "allow * subscribe a/+/c", "user:a", "x", auth.Subscribe, "a/#", false},
		{"wildcards meet a deny", "deny * subscribe secret/#\nallow * subscribe #", "user:a", "x", auth.Subscribe, "#", false},
		{"with one level", "deny * subscribe secret/#\nallow * subscribe #", "user:a", "x", auth.Subscribe, "+/x", false},
		{"and pass beside it", "deny * subscribe secret/#\nallow * subscribe #", "user:a", "x", auth.Subscribe, "open/#", true},
		{"hash includes its parent", "allow * subscribe a/#", "user:a", "x", auth.Subscribe, "a", true},
		{"hash is plus and hash", "allow * subscribe +/#", "user:a", "x", auth.Subscribe, "#", true},
		{"blank in a topic", "allow * publish a b/c", "user:a", "x", auth.Publish, "a b/c", true},
	} {
		if got := rules(t, c.rules).Allows(auth.Subject{Identity: c.identity, Client: c.client}, c.action, c.topic); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

func TestARuleWithAMistakeIsRefusedWithItsLine(t *testing.T) {
	for _, text := range []string{"permit * all #", "allow", "allow *", "allow * all", "allow * read #", "allow * publish,, #", "allow * all a/#/b", "allow * all a+/b", "allow * all {x}",
		"allow * all {user", "allow a*b all #", "refuse", "refuse a all #", "allow * all \xff"} {
		if _, err := auth.ReadRules(strings.NewReader("# first\n" + text + "\n")); err == nil || !strings.Contains(err.Error(), "line 2") {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestRefuseIsForWhoIsNamed(t *testing.T) {
	r := rules(t, "allow * all #\nrefuse cert:plc-7\nrefuse old-*\n")
	for id, want := range map[string]bool{"cert:plc-7": true, "user:plc-7": false, "user:old-1": true, "anonymous": false, "user:x": false} {
		if got := r.Refused(id); got != want {
			t.Errorf("%s: %v", id, got)
		}
	}
}

// The reference decides by looking at every topic over a small alphabet, "~" standing
// for all names that no rule knows. It shares nothing with the package but the words.
var universe = func() (all []string) {
	level := []string{"a", "b", "$x", "", "~"}
	all = append(all, level...)
	for last := all; len(all) < 5+25+125+625; last = all[len(all)-len(last)*5:] {
		for _, t := range last {
			for _, l := range level {
				all = append(all, t+"/"+l)
			}
		}
	}
	return all
}()

func refMatch(filter, topic []string) bool {
	if len(filter) == 0 || filter[0] == "#" {
		return len(filter) > 0 || len(topic) == 0
	}
	return len(topic) > 0 && (filter[0] == "+" || filter[0] == topic[0]) && refMatch(filter[1:], topic[1:])
}

func refMatches(filter, topic string) bool {
	if strings.HasPrefix(topic, "$") && (filter[:1] == "+" || filter[:1] == "#") {
		return false
	}
	return refMatch(strings.Split(filter, "/"), strings.Split(topic, "/"))
}

func refDecide(lines []string, identity, client, action, topic string) bool {
	name := strings.TrimPrefix(strings.TrimPrefix(identity, "user:"), "cert:")
	if identity == "anonymous" {
		name = ""
	}
	for _, line := range lines {
		f := strings.SplitN(line, " ", 4)
		who := f[1] == "*" || f[1] == identity || f[1] == name && name != "" && !strings.Contains(f[1], ":")
		does := f[2] == "all" || strings.Contains(f[2], action)
		bad := strings.Contains(f[3], "{user}") && (name == "" || strings.ContainsAny(name, "+#/")) ||
			strings.Contains(f[3], "{client}") && (client == "" || strings.ContainsAny(client, "+#/"))
		if !who || !does || bad {
			continue
		}
		pattern := strings.ReplaceAll(strings.ReplaceAll(f[3], "{user}", name), "{client}", client)
		asked, hit := 0, 0
		if topic == "" {
			return false
		}
		for _, t := range universe {
			if refMatches(topic, t) {
				asked++
				if refMatches(pattern, t) {
					hit++
				}
			}
		}
		if f[0] == "allow" && asked > 0 && hit == asked {
			return true
		} else if f[0] == "deny" && hit > 0 {
			return false
		}
	}
	return false
}

// 100,000 random questions; short form 10,000.
func TestRulesEqualTheReference(t *testing.T) {
	n := 100_000
	if testing.Short() {
		n = 10_000
	}
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 1))
	pick := func(s ...string) string { return s[r.IntN(len(s))] }
	filter := func(levels ...string) string {
		var out []string
		for range 1 + r.IntN(3) {
			out = append(out, pick(levels...))
		}
		if r.IntN(4) == 0 {
			out[len(out)-1] = "#"
		}
		if f := strings.Join(out, "/"); f != "" {
			return f
		}
		return "a"
	}
	allowed := 0
	for range n {
		var lines []string
		for range r.IntN(5) {
			lines = append(lines, fmt.Sprintf("%s %s %s %s", pick("allow", "allow", "deny"), pick("*", "*", "anonymous", "user:a", "cert:a", "a", "b", "user:+"),
				pick("publish", "subscribe", "will", "all", "publish,will"), filter("a", "b", "$x", "", "+", "{user}", "{client}", "+")))
		}
		identity, client := pick("user:a", "user:b", "cert:a", "anonymous", "user:+", "user:#", "user:a/b"), pick("a", "b", "+", "#", "a/b", "")
		action := pick("publish", "subscribe", "will")
		topic := filter("a", "b", "$x", "", "+", "~")
		if action != "subscribe" {
			topic = universe[r.IntN(len(universe))]
		}
		a, _ := auth.ParseAction(action)
		got := rules(t, strings.Join(lines, "\n")).Allows(auth.Subject{Identity: identity, Client: client}, a, topic)
		if want := refDecide(lines, identity, client, action, topic); got != want {
			t.Fatalf("seed %d: %s as %s wants %s %q: %v, the reference says %v\n%s", seed, client, identity, action, topic, got, want, strings.Join(lines, "\n"))
		}
		if got {
			allowed++
		}
	}
	if allowed < n/50 {
		t.Errorf("only %d of %d allowed: the questions ask little", allowed, n)
	}
}
