package packet

// Publish is a decoded PUBLISH. Slices alias the packet. Topic is empty when the
// client used only an alias.
type Publish struct {
	QoS         byte
	Retain, Dup bool
	Topic       []byte
	Known       string // set by the caller: a topic that was read before, and is not looked at again
	ID          uint16 // 0 at QoS 0
	Alias       uint16 // 0 = none
	Props       MessageProps
	Payload     []byte
}

// ReadPublish decodes the body of a PUBLISH. It allocates only when there are more
// user properties than p.Props.User has room for.
func ReadPublish(head byte, body []byte, v Version, p *Publish) error {
	p.QoS = head >> 1 & 3
	p.Retain = head&1 != 0
	p.Dup = head&8 != 0
	p.ID, p.Alias = 0, 0
	if v == V5 || !p.Props.Empty() {
		p.Props.Reset()
	}
	if p.QoS == 3 { // 3.3.1-4
		return malformed("PUBLISH with QoS 3")
	}
	if p.QoS == 0 && p.Dup { // 3.3.1-2
		return malformed("PUBLISH with DUP at QoS 0")
	}
	r := cursor{b: body}
	p.Topic = r.bin()
	known := string(p.Topic) == p.Known
	if !known && !ValidString(p.Topic) {
		r.bad, r.b = true, nil
	}
	if p.QoS > 0 {
		p.ID = r.u16()
	}
	if r.bad {
		return malformed("PUBLISH header")
	}
	if p.QoS > 0 && p.ID == 0 { // 2.2.1-3
		return protocol("PUBLISH with packet id 0")
	}
	if !known && hasWildcard(p.Topic) { // 3.3.2-2
		return &Error{TopicNameInvalid, "PUBLISH to a topic with a wildcard"}
	}
	if v == V5 {
		ps := props(&r, inPublish)
		var q property
		for ps.next(&q) {
			if q.id == pTopicAlias {
				if q.u == 0 { // 3.3.2-8
					return &Error{TopicAliasInvalid, "topic alias 0"}
				}
				p.Alias = uint16(q.u)
			} else if err := p.Props.set(&q); err != nil {
				return err
			}
		}
		if ps.err != nil {
			return ps.err
		}
	}
	if len(p.Topic) == 0 && p.Alias == 0 {
		if v == V5 {
			return protocol("PUBLISH without topic and alias")
		}
		return malformed("PUBLISH without topic")
	}
	p.Payload = r.b
	return nil
}

// Out describes one outgoing PUBLISH.
type Out struct {
	QoS         byte
	Retain, Dup bool
	ID          uint16
	Topic       string
	Alias       uint16   // 0 = none (5)
	Props       []byte   // as of MessageProps.Append (5)
	HasExpiry   bool     // (5)
	Expiry      uint32   // remaining seconds
	SubIDs      []uint32 // (5)
	Payload     []byte
}

// Size is the length of the encoded packet.
func (o *Out) Size(v Version) int {
	n := o.bodyLen(v)
	return 1 + varintLen(n) + n
}

func (o *Out) propsLen() int {
	n := len(o.Props)
	if o.HasExpiry {
		n += 5
	}
	if o.Alias != 0 {
		n += 3
	}
	for _, id := range o.SubIDs {
		n += 1 + varintLen(int(id))
	}
	return n
}

func (o *Out) bodyLen(v Version) int {
	n := 2 + len(o.Topic) + len(o.Payload)
	if o.QoS > 0 {
		n += 2
	}
	if v == V5 {
		p := o.propsLen()
		n += varintLen(p) + p
	}
	return n
}

// AppendPublish encodes o for version v.
func AppendPublish(dst []byte, v Version, o *Out) []byte {
	head := byte(PUBLISH)<<4 | o.QoS<<1
	if o.Retain {
		head |= 1
	}
	if o.Dup {
		head |= 8
	}
	dst = append(dst, head)
	dst = appendVarint(dst, o.bodyLen(v))
	dst = appendStr(dst, o.Topic)
	if o.QoS > 0 {
		dst = appendU16(dst, o.ID)
	}
	if v == V5 {
		dst = appendVarint(dst, o.propsLen())
		if o.HasExpiry {
			dst = appendU32(append(dst, pMessageExpiry), o.Expiry)
		}
		if o.Alias != 0 {
			dst = appendU16(append(dst, pTopicAlias), o.Alias)
		}
		dst = append(dst, o.Props...)
		for _, id := range o.SubIDs {
			dst = appendVarint(append(dst, pSubscriptionID), int(id))
		}
	}
	return append(dst, o.Payload...)
}
