package packet

// Property identifiers, MQTT 5.0, 2.2.2.2.
const (
	pPayloadFormat   = 0x01
	pMessageExpiry   = 0x02
	pContentType     = 0x03
	pResponseTopic   = 0x08
	pCorrelation     = 0x09
	pSubscriptionID  = 0x0B
	pSessionExpiry   = 0x11
	pAssignedID      = 0x12
	pServerKeepAlive = 0x13
	pAuthMethod      = 0x15
	pAuthData        = 0x16
	pRequestProblem  = 0x17
	pWillDelay       = 0x18
	pRequestResponse = 0x19
	pReasonString    = 0x1F
	pReceiveMax      = 0x21
	pTopicAliasMax   = 0x22
	pTopicAlias      = 0x23
	pUserProperty    = 0x26
	pMaxPacket       = 0x27
)

type propKind byte

const (
	kByte propKind = iota + 1
	kU16
	kU32
	kVarint
	kString
	kBinary
	kPair
)

// in says in which packets a client may send the property.
const (
	inConnect uint16 = 1 << iota
	inWill
	inPublish
	inSubscribe
	inUnsubscribe
	inAck // PUBACK, PUBREC, PUBREL, PUBCOMP
	inDisconnect
	inAuth
)

const inAll = inConnect | inWill | inPublish | inSubscribe | inUnsubscribe | inAck | inDisconnect | inAuth

var propTable = [0x2B]struct {
	kind propKind
	in   uint16
}{
	pPayloadFormat:   {kByte, inPublish | inWill},
	pMessageExpiry:   {kU32, inPublish | inWill},
	pContentType:     {kString, inPublish | inWill},
	pResponseTopic:   {kString, inPublish | inWill},
	pCorrelation:     {kBinary, inPublish | inWill},
	pSubscriptionID:  {kVarint, inSubscribe}, // never from a client in PUBLISH: 3.3.4-6
	pSessionExpiry:   {kU32, inConnect | inDisconnect},
	pAuthMethod:      {kString, inConnect | inAuth},
	pAuthData:        {kBinary, inConnect | inAuth},
	pRequestProblem:  {kByte, inConnect},
	pWillDelay:       {kU32, inWill},
	pRequestResponse: {kByte, inConnect},
	pReasonString:    {kString, inAck | inDisconnect | inAuth},
	pReceiveMax:      {kU16, inConnect},
	pTopicAliasMax:   {kU16, inConnect},
	pTopicAlias:      {kU16, inPublish},
	pUserProperty:    {kPair, inAll},
	pMaxPacket:       {kU32, inConnect},
}

// property is one decoded property. u holds numbers, a strings and binary, (a, v) pairs.
type property struct {
	id   byte
	u    uint32
	a, v []byte
}

// properties walks one property section.
type properties struct {
	c     cursor
	in    uint16
	users uint16 // user properties so far
	seen  uint64
	err   error
}

// maxUserProperties of one section: an empty one is five bytes on the wire and ten times that here.
const maxUserProperties = 1024

// props starts the property section at c and moves c behind it.
func props(c *cursor, in uint16) properties {
	n := c.varint()
	if c.bad {
		return properties{err: malformed("property length")}
	}
	b := c.take(int(n))
	if c.bad {
		return properties{err: malformed("properties longer than their packet")}
	}
	return properties{c: cursor{b: b}, in: in}
}

// next decodes the next property into p; false at the end or on an error.
func (r *properties) next(p *property) bool {
	if r.err != nil || len(r.c.b) == 0 {
		return false
	}
	id := r.c.varint()
	if r.c.bad || id >= uint32(len(propTable)) || propTable[id].kind == 0 {
		r.err = malformed("unknown property")
		return false
	}
	def := propTable[id]
	if def.in&r.in == 0 {
		r.err = protocol("property that does not belong into this packet")
		return false
	}
	if id == pUserProperty { // MQTT 5.0: all others at most once
		if r.users++; r.users > maxUserProperties {
			r.err = &Error{QuotaExceeded, "more than 1024 user properties"}
			return false
		}
	} else {
		if r.seen>>id&1 == 1 {
			r.err = protocol("property given twice")
			return false
		}
		r.seen |= 1 << id
	}
	*p = property{id: byte(id)}
	switch def.kind {
	case kByte:
		p.u = uint32(r.c.u8())
	case kU16:
		p.u = uint32(r.c.u16())
	case kU32:
		p.u = r.c.u32()
	case kVarint:
		p.u = r.c.varint()
	case kString:
		p.a = r.c.str()
	case kBinary:
		p.a = r.c.bin()
	case kPair:
		p.a = r.c.str()
		p.v = r.c.str()
	}
	if r.c.bad {
		r.err = malformed("property value")
		return false
	}
	return true
}

// skip checks a section whose values we do not use.
func (r *properties) skip() error {
	var p property
	for r.next(&p) {
	}
	return r.err
}

func bool01(p *property) error {
	if p.u > 1 {
		return protocol("property that must be 0 or 1")
	}
	return nil
}

// UserProperty is one name and value pair.
type UserProperty struct{ Key, Value []byte }

// MessageProps are the MQTT 5 properties of a PUBLISH or a will. Slices alias the packet.
type MessageProps struct {
	HasFormat   bool
	Format      byte // 1 = UTF-8 text
	HasExpiry   bool
	Expiry      uint32 // seconds
	ContentType []byte // nil = absent
	Response    []byte // nil = absent
	Correlation []byte // nil = absent
	User        []UserProperty
}

// Reset empties m and keeps the capacity of User.
func (m *MessageProps) Reset() { *m = MessageProps{User: m.User[:0]} }

// Empty reports whether nothing is set.
func (m *MessageProps) Empty() bool {
	return !m.HasFormat && !m.HasExpiry && m.ContentType == nil && m.Response == nil && m.Correlation == nil && len(m.User) == 0
}

func (m *MessageProps) set(p *property) error {
	switch p.id {
	case pPayloadFormat:
		m.HasFormat, m.Format = true, byte(p.u)
		return bool01(p)
	case pMessageExpiry:
		m.HasExpiry, m.Expiry = true, p.u
	case pContentType:
		m.ContentType = p.a
	case pResponseTopic:
		m.Response = p.a
		if len(p.a) == 0 || hasWildcard(p.a) { // 3.3.2-14
			return protocol("response topic with wildcards or empty")
		}
	case pCorrelation:
		m.Correlation = p.a
	case pUserProperty:
		m.User = append(m.User, UserProperty{p.a, p.v})
	}
	return nil
}

func hasWildcard(s []byte) bool {
	for _, c := range s {
		if c == '+' || c == '#' {
			return true
		}
	}
	return false
}

func appendVarint(dst []byte, n int) []byte {
	for n >= 0x80 {
		dst = append(dst, byte(n)|0x80)
		n >>= 7
	}
	return append(dst, byte(n))
}

func varintLen(n int) int {
	l := 1
	for ; n >= 0x80; n >>= 7 {
		l++
	}
	return l
}

func appendU16(dst []byte, v uint16) []byte { return append(dst, byte(v>>8), byte(v)) }

func appendU32(dst []byte, v uint32) []byte {
	return append(dst, byte(v>>24), byte(v>>16), byte(v>>8), byte(v))
}

func appendStr[S []byte | string](dst []byte, s S) []byte {
	return append(appendU16(dst, uint16(len(s))), s...)
}

// Append encodes the properties other than the expiry, in a fixed order; the
// encoding is what AppendPublish takes as its props.
func (m *MessageProps) Append(dst []byte) []byte {
	if m.HasFormat {
		dst = append(dst, pPayloadFormat, m.Format)
	}
	if m.ContentType != nil {
		dst = appendStr(append(dst, pContentType), m.ContentType)
	}
	if m.Response != nil {
		dst = appendStr(append(dst, pResponseTopic), m.Response)
	}
	if m.Correlation != nil {
		dst = appendStr(append(dst, pCorrelation), m.Correlation)
	}
	for _, u := range m.User { // order is kept: 3.3.2-18
		dst = appendStr(appendStr(append(dst, pUserProperty), u.Key), u.Value)
	}
	return dst
}

// ParseMessageProps is the inverse of MessageProps.Append, for stored messages.
func ParseMessageProps(b []byte, m *MessageProps) error {
	m.Reset()
	r := properties{c: cursor{b: b}, in: inPublish}
	var p property
	for r.next(&p) {
		if err := m.set(&p); err != nil {
			return err
		}
	}
	return r.err
}
