// Package ranges keeps sets of half-open offset ranges [From, To). It is the
// language in which the two ends of the uplink say what is held, wanted, acked
// and gone.
//
// A Set is a sorted list of non-empty, non-touching ranges. Methods that change
// a set work in place; a Set is not safe for concurrent use.
package ranges

import (
	"fmt"
	"slices"
	"strings"
)

// Range is the half-open range [From, To). Invariant in a Set: From < To.
type Range struct {
	From, To int64
}

// Len is the number of offsets in r.
func (r Range) Len() int64 { return r.To - r.From }

// String is the form used in logs and scripts: [from,to).
func (r Range) String() string { return fmt.Sprintf("[%d,%d)", r.From, r.To) }

// Set is a sorted list of ranges that neither overlap nor touch. The zero value
// is the empty set.
type Set []Range

// Of is the set of the one range [from, to); empty when to <= from.
func Of(from, to int64) Set {
	if to <= from {
		return nil
	}
	return Set{{from, to}}
}

// Add adds [from, to).
func (s *Set) Add(from, to int64) {
	if to <= from {
		return
	}
	t := *s
	if n := len(t); n > 0 { // in-order growth is the common case
		last := &t[n-1]
		if from >= last.From && from <= last.To {
			last.To = max(last.To, to)
			return
		}
		if from > last.To {
			*s = append(t, Range{from, to})
			return
		}
	} else {
		*s = append(t, Range{from, to})
		return
	}
	i, _ := slices.BinarySearchFunc(t, from, func(r Range, v int64) int { // first range with To >= from
		if r.To < v {
			return -1
		}
		return 1
	})
	j := i
	for j < len(t) && t[j].From <= to {
		from, to = min(from, t[j].From), max(to, t[j].To)
		j++
	}
	*s = slices.Replace(t, i, j, Range{from, to})
}

// AddSet adds every range of o.
func (s *Set) AddSet(o Set) {
	for _, r := range o {
		s.Add(r.From, r.To)
	}
}

// Remove takes [from, to) out.
func (s *Set) Remove(from, to int64) {
	if to <= from {
		return
	}
	t := *s
	i, _ := slices.BinarySearchFunc(t, from, func(r Range, v int64) int { // first range with To > from
		if r.To <= v {
			return -1
		}
		return 1
	})
	j := i
	var keep [2]Range
	n := 0
	for j < len(t) && t[j].From < to {
		if t[j].From < from {
			keep[n] = Range{t[j].From, from}
			n++
		}
		if t[j].To > to {
			keep[n] = Range{to, t[j].To}
			n++
		}
		j++
	}
	if i == j {
		return
	}
	*s = slices.Replace(t, i, j, keep[:n]...)
}

// RemoveSet takes every range of o out.
func (s *Set) RemoveSet(o Set) {
	for _, r := range o {
		s.Remove(r.From, r.To)
	}
}

// Contains says whether off is in the set.
func (s Set) Contains(off int64) bool { return s.Covers(off, off+1) }

// Covers says whether all of [from, to) is in the set.
func (s Set) Covers(from, to int64) bool {
	if to <= from {
		return true
	}
	i, _ := slices.BinarySearchFunc(s, from, func(r Range, v int64) int {
		if r.To <= v {
			return -1
		}
		return 1
	})
	return i < len(s) && s[i].From <= from && s[i].To >= to
}

// Within is a new set: the part of s inside [from, to).
func (s Set) Within(from, to int64) Set {
	var out Set
	for _, r := range s {
		if f, t := max(r.From, from), min(r.To, to); f < t {
			out = append(out, Range{f, t})
		}
	}
	return out
}

// Missing is a new set: the part of [from, to) that is not in s.
func (s Set) Missing(from, to int64) Set {
	var out Set
	for _, r := range s {
		if r.To <= from {
			continue
		}
		if r.From >= to || from >= to {
			break
		}
		if r.From > from {
			out = append(out, Range{from, r.From})
		}
		from = r.To
	}
	if from < to {
		out = append(out, Range{from, to})
	}
	return out
}

// Count is the number of offsets in the set.
func (s Set) Count() int64 {
	var n int64
	for _, r := range s {
		n += r.Len()
	}
	return n
}

// End is the end of the last range, 0 for the empty set.
func (s Set) End() int64 {
	if len(s) == 0 {
		return 0
	}
	return s[len(s)-1].To
}

// Clone is a copy that shares nothing with s.
func (s Set) Clone() Set { return slices.Clone(s) }

// Equal says whether both sets hold the same offsets.
func (s Set) Equal(o Set) bool { return slices.Equal(s, o) }

// Valid says whether the invariants hold: sorted, non-empty, non-touching, not negative.
func (s Set) Valid() bool {
	for i, r := range s {
		if r.From < 0 || r.To <= r.From || i > 0 && r.From <= s[i-1].To {
			return false
		}
	}
	return true
}

// String is the form used in logs and scripts: [0,5)[7,9), or "-" when empty.
func (s Set) String() string {
	if len(s) == 0 {
		return "-"
	}
	var b strings.Builder
	for _, r := range s {
		b.WriteString(r.String())
	}
	return b.String()
}
