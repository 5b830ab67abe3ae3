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
