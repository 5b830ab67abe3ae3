package access

import (
	"bufio"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
)

// operations that a rule may name. Whoever may do anything with a topic may see
// it.
var operations = []string{"describe", "read", "write", "create", "delete", "alter", "group"}

// Rules say who may do what. What no rule allows is refused. A line is
//
//	user  operations  pattern
//
// with globs for user and pattern ("*" is everybody, or everything), and a list
// of describe, read, write, create, delete, alter (topics), group (consumer
// groups), or all:
//
//	reader-*   read          wind.*
//	reader-*   group         reports-*
//	scada      read,write    *
//	admin      all           *
//
// Clients that have not proved to be anyone are called anonymous.
type Rules struct{ file *watched[[]rule] }

type rule struct {
	user, pattern string
	ops           []string
}

// LoadRules reads the file. failed is told when it cannot be read again later.
func LoadRules(file string, failed func(error)) (*Rules, error) {
	w, err := watch(file, readRules, failed)
	if err != nil {
		return nil, err
	}
	return &Rules{w}, nil
}

func readRules(r io.Reader) ([]rule, error) {
	var out []rule
	sc := bufio.NewScanner(r)
	for n := 1; sc.Scan(); n++ {
		text, _, _ := strings.Cut(sc.Text(), "#")
		f := strings.Fields(text)
		if len(f) == 0 {
			continue
		}
		if len(f) != 3 {
			return nil, fmt.Errorf("line %d: want user, operations, pattern", n)
		}
		ru := rule{user: f[0], pattern: f[2], ops: strings.Split(f[1], ",")}
		for _, p := range []string{ru.user, ru.pattern} {
			if _, err := path.Match(p, "x"); err != nil {
				return nil, fmt.Errorf("line %d: %q is not a pattern", n, p)
			}
		}
		for _, op := range ru.ops {
			if op != "all" && !slices.Contains(operations, op) {
				return nil, fmt.Errorf("line %d: operation %q: %s or all", n, op, strings.Join(operations, ", "))
			}
		}
		out = append(out, ru)
	}
	return out, sc.Err()
}

// Allow tells whether the user may do op with the topic, or group, of the name.
func (r *Rules) Allow(user, op, name string) bool {
	if user == "" {
		user = Anonymous
	}
	for _, ru := range r.file.get() {
		if !ru.does(op) {
			continue
		}
		if ok, _ := path.Match(ru.user, user); !ok {
			continue
		}
		if ok, _ := path.Match(ru.pattern, name); ok {
			return true
		}
	}
	return false
}

func (ru rule) does(op string) bool {
	return slices.ContainsFunc(ru.ops, func(o string) bool {
		return o == op || o == "all" || op == "describe" && o != "group"
	})
}
