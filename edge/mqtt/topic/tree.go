package topic

import "strings"

// Tree maps filters to sets of values, with at most one value per filter and key.
// It is not safe for concurrent use.
type Tree[K comparable, V any] struct {
	root node[K, V]
	n    int
}

type node[K comparable, V any] struct {
	level    string
	children map[string]*node[K, V]
	vals     map[K]V
	parent   *node[K, V]
}

// Len is the number of values.
func (t *Tree[K, V]) Len() int { return t.n }

// Put sets the value of key at filter and reports whether it was new.
func (t *Tree[K, V]) Put(filter string, key K, v V) (added bool) {
	n := &t.root
	for rest, more := filter, true; more; {
		var level string
		level, rest, more = strings.Cut(rest, "/")
		c := n.children[level]
		if c == nil {
			if n.children == nil {
				n.children = map[string]*node[K, V]{}
			}
			c = &node[K, V]{level: level, parent: n}
			n.children[level] = c
		}
		n = c
	}
	if n.vals == nil {
		n.vals = map[K]V{}
	}
	_, old := n.vals[key]
	n.vals[key] = v
	if !old {
		t.n++
	}
	return !old
}

func (t *Tree[K, V]) find(filter string) *node[K, V] {
	n := &t.root
	for rest, more := filter, true; more && n != nil; {
		var level string
		level, rest, more = strings.Cut(rest, "/")
		n = n.children[level]
	}
	return n
}

// Get returns the value of key at exactly filter.
func (t *Tree[K, V]) Get(filter string, key K) (V, bool) {
	var v V
	n := t.find(filter)
	if n == nil {
		return v, false
	}
	v, ok := n.vals[key]
	return v, ok
}

// Delete removes the value of key at filter; empty branches go with it.
func (t *Tree[K, V]) Delete(filter string, key K) bool {
	n := t.find(filter)
	if n == nil {
		return false
	}
	if _, ok := n.vals[key]; !ok {
		return false
	}
	delete(n.vals, key)
	t.n--
	for n.parent != nil && len(n.vals) == 0 && len(n.children) == 0 {
		p := n.parent
		delete(p.children, n.level)
		n = p
	}
	return true
}

// Match calls f for every value whose filter matches name.
func (t *Tree[K, V]) Match(name string, f func(K, V)) {
	if t.n > 0 {
		t.root.match(name, true, strings.HasPrefix(name, "$"), f)
	}
}

// Each calls f for every value.
func (t *Tree[K, V]) Each(f func(K, V)) { t.root.all(f) }

func (n *node[K, V]) all(f func(K, V)) { // as deep as the filters are: MaxLevels
	n.each(f)
	for _, c := range n.children {
		c.all(f)
	}
}

func (n *node[K, V]) each(f func(K, V)) {
	for k, v := range n.vals {
		f(k, v)
	}
}

// match descends one level of name; more tells whether a level is left at all.
// The depth is bounded by MaxLevels, the breadth at each level by two.
func (n *node[K, V]) match(name string, more, dollar bool, f func(K, V)) {
	if !dollar {
		if c := n.children["#"]; c != nil {
			c.each(f)
		}
	}
	if !more {
		n.each(f)
		return
	}
	level, rest, next := strings.Cut(name, "/")
	if c := n.children[level]; c != nil && level != "+" && level != "#" {
		c.match(rest, next, false, f)
	}
	if !dollar {
		if c := n.children["+"]; c != nil {
			c.match(rest, next, false, f)
		}
	}
}
