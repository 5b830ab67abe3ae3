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

// layouts are those of the flexible versions, by key and first version; the last that is
// not later than a version is its layout.
var layouts = []struct {
	key, from int16
	fields    string
}{
	{1, 12, "4444144[s[448484t]t][s[4]t]sT"},
	{2, 6, "41[s[448t]t]t"},
	{3, 9, "[st]111t"},
	{3, 10, "[ust]111t"},
	{3, 11, "[ust]11t"},
	{8, 8, "s4ss[s[484st]t]t"},
	{9, 6, "s[s[4]t]t"},
	{9, 7, "s[s[4]t]1t"},
	{10, 3, "s1t"},
	{11, 6, "s44sss[sst]t"},
	{12, 4, "s4sst"},
	{13, 4, "s[sst]t"},
	{14, 4, "s4ss[sst]t"},
	{14, 5, "s4ssss[sst]t"},
	{15, 5, "[s]1t"},
	{16, 3, "t"},
	{16, 4, "[s]t"},
	{18, 3, "sst"},
	{19, 5, "[s42[4[4]t][sst]t]41t"},
	{20, 4, "[s]4t"},
	{20, 6, "[sut]4t"},
	{21, 2, "[s[48t]t]4t"},
	{22, 2, "s4t"},
	{22, 3, "s482t"},
	{23, 4, "4[s[444t]t]t"},
	{29, 2, "1s1ss11t"},
	{32, 4, "[1s[s]t]11t"},
	{36, 2, "st"},
	{37, 2, "[s4[[4]t]t]41t"},
	{42, 2, "[s]t"},
	{44, 1, "[1s[s1st]t]1t"},
	{60, 0, "1t"},
	{60, 1, "11t"},
}

// soundFlexible tells whether a body has the layout of its request, and what follows it.
func soundFlexible(key, version int16, body []byte) (rest []byte, ok bool) {
	fields := ""
	for i := range layouts {
		if l := &layouts[i]; l.key > key {
			break
		} else if l.key == key && l.from <= version {
			fields = l.fields
		}
	}
	r := reader{b: body}
	r.walk(fields)
	return r.b, fields != "" && !r.bad
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
			r.span(max(r.compact(), 0))
		case 't':
			r.tags()
		case 'T':
			r.tags(1)
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
			for n := r.array(true, 1); n > 0 && !r.bad; n-- {
				r.walk(l[i+1 : end-1])
			}
			i = end - 1
		}
	}
}
