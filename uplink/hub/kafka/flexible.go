package kafka

// Requests of flexible versions end each structure in tagged fields: a number, then as
// many of tag, length and bytes. kmsg believes the number, and goes on counting when the
// bytes have ended: a frame of forty bytes costs it a minute. So the layout of every
// flexible request we serve is walked before kmsg sees it. The layouts are compared
// with what kmsg writes, in the tests.
//
// A layout is one letter a field: 1 2 4 8 and u are integers of so many bytes and a
// UUID, s is a compact string or bytes (or null), [ ] a compact array, t tagged fields; T as
// well, without tag 1: Fetch's is of followers and has tagged fields of its own, which
// nobody would check.

// layout of the flexible versions of a key; "" when there is none.
func layout(key, version int16) string {
	pick := func(from int16, list ...string) string {
		if i := int(version - from); i < len(list) {
			return list[max(i, 0)]
		}
		return list[len(list)-1]
	}
	switch key {
	case 1:
		return "4444144[s[448484t]t][s[4]t]sT"
	case 2:
		return "41[s[448t]t]t"
	case 3:
		return pick(9, "[st]111t", "[ust]111t", "[ust]11t")
	case 8:
		return "s4ss[s[484st]t]t"
	case 9:
		return pick(6, "s[s[4]t]t", "s[s[4]t]1t")
	case 10:
		return "s1t"
	case 11:
		return "s44sss[sst]t"
	case 12:
		return "s4sst"
	case 13:
		return "s[sst]t"
	case 14:
		return pick(4, "s4ss[sst]t", "s4ssss[sst]t")
	case 15:
		return "[s]1t"
	case 16:
		return pick(3, "t", "[s]t")
	case 18:
		return "sst"
	case 19:
		return "[s42[4[4]t][sst]t]41t"
	case 20:
		return pick(4, "[s]4t", "[s]4t", "[sut]4t")
	case 21:
		return "[s[48t]t]4t"
	case 22:
		return pick(2, "s4t", "s482t")
	case 23:
		return "4[s[444t]t]t"
	case 29:
		return "1s1ss11t"
	case 32:
		return "[1s[s]t]11t"
	case 36:
		return "st"
	case 37:
		return "[s4[[4]t]t]41t"
	case 42:
		return "[s]t"
	case 44:
		return "[1s[s1st]t]1t"
	case 60:
		return pick(0, "1t", "11t")
	}
	return ""
}

// soundFlexible tells whether a body has the layout of its request, and what follows it.
func soundFlexible(key, version int16, body []byte) (rest []byte, ok bool) {
	l := layout(key, version)
	r := reader{b: body}
	r.walk(l)
	return r.b, l != "" && !r.bad
}

// walk takes what a layout says.
func (r *reader) walk(l string) {
	for i := 0; i < len(l) && !r.bad; i++ {
		switch c := l[i]; c {
		case '1', '2', '4', '8':
			r.span(int(c - '0'))
		case 'u':
			r.span(16)
		case 's':
			if n := r.uvarint(); n > 0 {
				r.span(boundedLen(n - 1))
			}
		case 't', 'T':
			r.checkTags(c == 'T')
		case '[':
			end, depth := i+1, 1
			for ; depth > 0; end++ {
				switch l[end] {
				case '[':
					depth++
				case ']':
					depth--
				}
			}
			inner := l[i+1 : end-1]
			n := r.uvarint()
			if n > 0 && int64(n-1) > int64(len(r.b)) { // an element takes a byte at least
				r.bad = true
			}
			for ; n > 1 && !r.bad; n-- {
				r.walk(inner)
			}
			i = end - 1
		}
	}
}

// checkTags takes tagged fields.
func (r *reader) checkTags(notOne bool) {
	n := r.uvarint()
	if int64(n) > int64(len(r.b)/2) {
		r.bad = true
	}
	for ; n > 0 && !r.bad; n-- {
		if tag := r.uvarint(); notOne && tag == 1 {
			r.bad = true
		}
		r.span(boundedLen(r.uvarint()))
	}
}

// boundedLen is a length that span refuses when it does not fit an int.
func boundedLen(n uint32) int { return int(min(n, 1<<30)) }
