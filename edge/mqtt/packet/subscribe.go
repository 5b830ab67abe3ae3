package packet

// Sub is one topic filter of a SUBSCRIBE with its options.
type Sub struct {
	Filter         []byte
	QoS            byte
	NoLocal        bool // (5)
	RetainAsPub    bool // (5)
	RetainHandling byte // (5) 0 send at subscribe, 1 only when new, 2 never
}

// Subscribe is a decoded SUBSCRIBE. Filters are well-formed strings but not yet
// checked as filters: that is answered per filter.
type Subscribe struct {
	ID    uint16
	SubID uint32 // 0 = none
	Subs  []Sub
}

// ReadSubscribe decodes the body of a SUBSCRIBE with at most maxFilters filters.
func ReadSubscribe(head byte, body []byte, v Version, s *Subscribe, maxFilters int) error {
	s.SubID, s.Subs = 0, s.Subs[:0]
	if head&15 != 2 && !(v == V31 && head&7 == 2) { // 3.8.1-1
		return malformed("SUBSCRIBE flags")
	}
	r := cursor{b: body}
	s.ID = r.u16()
	if r.bad {
		return malformed("SUBSCRIBE header")
	}
	if s.ID == 0 {
		return protocol("SUBSCRIBE with packet id 0")
	}
	if v == V5 {
		ps := props(&r, inSubscribe)
		var p property
		for ps.next(&p) {
			if p.id == pSubscriptionID {
				if p.u == 0 { // 3.8.2.1.2
					return protocol("subscription id 0")
				}
				s.SubID = p.u
			}
		}
		if ps.err != nil {
			return ps.err
		}
	}
	if len(r.b) == 0 { // 3.8.3-2
		return protocol("SUBSCRIBE without a filter")
	}
	for len(r.b) > 0 {
		if len(s.Subs) == maxFilters {
			return &Error{QuotaExceeded, "too many filters in one SUBSCRIBE"}
		}
		f := r.str()
		o := r.u8()
		if r.bad { // the packet of eight bytes that ends here ended a whole broker once
			return malformed("SUBSCRIBE filter")
		}
		sub := Sub{Filter: f, QoS: o & 3}
		reserved := o &^ 3
		if v == V5 {
			sub.NoLocal = o&4 != 0
			sub.RetainAsPub = o&8 != 0
			sub.RetainHandling = o >> 4 & 3
			reserved = o & 0xC0
		}
		if reserved != 0 || sub.QoS == 3 { // 3.8.3-4, -5
			return malformed("SUBSCRIBE options")
		}
		if sub.RetainHandling == 3 {
			return protocol("retain handling 3")
		}
		if len(f) == 0 {
			return malformed("empty topic filter")
		}
		s.Subs = append(s.Subs, sub)
	}
	return nil
}

// Unsubscribe is a decoded UNSUBSCRIBE.
type Unsubscribe struct {
	ID      uint16
	Filters [][]byte
}

// ReadUnsubscribe decodes the body of an UNSUBSCRIBE.
func ReadUnsubscribe(head byte, body []byte, v Version, u *Unsubscribe, maxFilters int) error {
	u.Filters = u.Filters[:0]
	if head&15 != 2 && !(v == V31 && head&7 == 2) {
		return malformed("UNSUBSCRIBE flags")
	}
	r := cursor{b: body}
	u.ID = r.u16()
	if r.bad {
		return malformed("UNSUBSCRIBE header")
	}
	if u.ID == 0 {
		return protocol("UNSUBSCRIBE with packet id 0")
	}
	if v == V5 {
		ps := props(&r, inUnsubscribe)
		if err := ps.skip(); err != nil {
			return err
		}
	}
	if len(r.b) == 0 {
		return protocol("UNSUBSCRIBE without a filter")
	}
	for len(r.b) > 0 {
		if len(u.Filters) == maxFilters {
			return &Error{QuotaExceeded, "too many filters in one UNSUBSCRIBE"}
		}
		f := r.str()
		if r.bad || len(f) == 0 {
			return malformed("UNSUBSCRIBE filter")
		}
		u.Filters = append(u.Filters, f)
	}
	return nil
}

// AppendSuback encodes a SUBACK. Before version 5 every failure is 0x80.
func AppendSuback(dst []byte, v Version, id uint16, codes []Code) []byte {
	dst = append(dst, byte(SUBACK)<<4)
	if v == V5 {
		dst = appendVarint(dst, 3+len(codes))
		dst = append(dst, byte(id>>8), byte(id), 0)
	} else {
		dst = appendVarint(dst, 2+len(codes))
		dst = append(dst, byte(id>>8), byte(id))
	}
	for _, c := range codes {
		if v != V5 && c >= 0x80 {
			c = 0x80
		}
		dst = append(dst, byte(c))
	}
	return dst
}

// AppendUnsuback encodes an UNSUBACK; before version 5 it has no codes.
func AppendUnsuback(dst []byte, v Version, id uint16, codes []Code) []byte {
	dst = append(dst, byte(UNSUBACK)<<4)
	if v != V5 {
		return append(dst, 2, byte(id>>8), byte(id))
	}
	dst = appendVarint(dst, 3+len(codes))
	dst = append(dst, byte(id>>8), byte(id), 0)
	for _, c := range codes {
		dst = append(dst, byte(c))
	}
	return dst
}
