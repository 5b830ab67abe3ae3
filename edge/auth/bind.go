package auth

import (
	"errors"
	"fmt"
	"strings"
)

// DefaultClientIDs: the name itself, or the name, a separator and anything. Without
// the separator "plc-1" could use the client id of "plc-10".
var DefaultClientIDs = []string{"{user}", "{user}-*", "{user}_*", "{user}.*", "{user}:*", "{user}/*"}

// Binding says which client ids an identity may use. The zero value allows all.
type Binding struct{ patterns []string }

// NewBinding takes patterns with {user} in them, which may end in "*" for any rest.
func NewBinding(patterns []string) (Binding, error) {
	var errs []error
	for _, p := range patterns {
		rest := strings.TrimSuffix(p, "*")
		if strings.Count(rest, "{user}") != 1 || strings.ContainsAny(strings.Replace(rest, "{user}", "", 1), "{}*") {
			errs = append(errs, fmt.Errorf("client id pattern %q: want {user} once, and at most one * at the end", p))
		}
	}
	return Binding{patterns}, errors.Join(errs...)
}

// None reports whether nothing is bound.
func (b Binding) None() bool { return len(b.patterns) == 0 }

// Owner is the user whose client id this is by the patterns; of several the one with
// the longest name: of users "a" and "a-b" the second owns "a-b-c". "" = nobody.
func (p *Passwords) Owner(clientID string, b Binding) string {
	if p == nil {
		return ""
	}
	for n := len(clientID); n > 0; n-- { // a name is somewhere in its ids: patterns may have a prefix
		for i := 0; i+n <= len(clientID); i++ {
			name := clientID[i : i+n]
			if _, known := p.hash[name]; known && b.Allows(UserID(name), clientID) {
				return name
			}
		}
	}
	return ""
}

// Allows: an identity without a name (anonymous) has no claim to check.
func (b Binding) Allows(identity, clientID string) bool {
	name := Name(identity)
	if len(b.patterns) == 0 || name == "" {
		return true
	}
	for _, p := range b.patterns {
		want, open := strings.CutSuffix(p, "*")
		want = strings.Replace(want, "{user}", name, 1)
		if clientID == want || open && strings.HasPrefix(clientID, want) {
			return true
		}
	}
	return false
}
