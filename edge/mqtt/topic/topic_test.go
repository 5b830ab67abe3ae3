package topic_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"tailrace/edge/mqtt/topic"
)

func TestMatchFollowsTheStandard(t *testing.T) {
	for _, c := range []struct {
		filter, name string
		want         bool
	}{
		{"sport/tennis/player1/#", "sport/tennis/player1", true},
		{"sport/tennis/player1/#", "sport/tennis/player1/ranking", true},
		{"sport/#", "sport", true},
		{"#", "a/b/c", true},
		{"#", "$SYS/a", false},
		{"+/a", "$SYS/a", false},
		{"$SYS/#", "$SYS/a", true},
		{"$SYS/#", "$SYS", true},
		{"sport/+", "sport", false},
		{"sport/+", "sport/", true},
		{"+/+", "/finance", true},
		{"/+", "/finance", true},
		{"+", "/finance", false},
		{"a/b", "a/b/c", false},
		{"a/b/c", "a/b", false},
		{"a/+/c/#", "a/x/c", true},
		{"a//c", "a//c", true},
		{"a/+", "a", false},
		{"a/#", "ab", false},
	} {
		if got := topic.Match(c.filter, c.name); got != c.want {
			t.Errorf("Match(%q, %q) = %v", c.filter, c.name, got)
		}
		var tr topic.Tree[int, int]
		tr.Put(c.filter, 1, 1)
		n := 0
		tr.Match(c.name, func(int, int) { n++ })
		if (n == 1) != c.want || n > 1 {
			t.Errorf("Tree %q, %q: %d matches, want %v", c.filter, c.name, n, c.want)
		}
	}
}

func TestFiltersAndSharedNames(t *testing.T) {
	for f, want := range map[string]bool{"a": true, "#": true, "+": true, "a/#": true, "a/+/b": true, "/": true, "a#": false, "a+/b": false, "#/a": false,
		"": false, "a/#/b": false, "a\x00": false, strings.Repeat("/", topic.MaxLevels): false, strings.Repeat("/", topic.MaxLevels-1): true} {
		if topic.ValidFilter(f) != want {
			t.Errorf("ValidFilter(%q) = %v", f, !want)
		}
	}
	for f, want := range map[string][3]string{"$share/g/a/b": {"g", "a/b", "true"}, "a": {"", "a", "true"}, "$share/g": {"", "", "false"}, "$share//a": {"", "", "false"},
		"$share/g+/a": {"", "", "false"}, "$share": {"", "$share", "false"}, "$share/g/": {"", "", "false"}} {
		g, x, ok := topic.Shared(f)
		if want != [3]string{g, x, fmt.Sprint(ok)} {
			t.Errorf("Shared(%q) = %q %q %v", f, g, x, ok)
		}
	}
}

// TestTreeEqualsMatch compares the tree with the plain function on random sets.
func TestTreeEqualsMatch(t *testing.T) {
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 1))
	levels := []string{"a", "b", "", "$x", "+", "#"}
	make1 := func(n int) string {
		var l []string
		for range 1 + r.IntN(4) {
			l = append(l, levels[r.IntN(n)])
		}
		return strings.Join(l, "/")
	}
	for round := range 2000 {
		var tr topic.Tree[int, string]
		set := map[string]map[int]bool{}
		for i := range 12 {
			f, k := make1(6), i%3
			if !topic.ValidFilter(f) {
				continue
			}
			if r.IntN(4) == 0 {
				tr.Delete(f, k)
				delete(set[f], k)
			} else {
				tr.Put(f, k, f)
				if set[f] == nil {
					set[f] = map[int]bool{}
				}
				set[f][k] = true
			}
		}
		name := make1(4)
		if name == "" {
			continue
		}
		var got, want []string
		tr.Match(name, func(k int, f string) { got = append(got, fmt.Sprint(k, f)) })
		n := 0
		for f, ks := range set {
			for k := range ks {
				n++
				if topic.Match(f, name) {
					want = append(want, fmt.Sprint(k, f))
				}
			}
		}
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) || tr.Len() != n {
			t.Fatalf("seed %d round %d name %q: got %q want %q len %d want %d", seed, round, name, got, want, tr.Len(), n)
		}
	}
}
