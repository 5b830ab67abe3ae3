package packet

// Ack is a decoded PUBACK, PUBREC, PUBREL or PUBCOMP.
type Ack struct {
	ID   uint16
	Code Code
}

// ackCodes are the reasons a client may give. MQTT 5.0, 3.4.2.1, 3.5.2.1, 3.6.2.1, 3.7.2.1.
func ackCode(t Type, c Code) bool {
	switch c {
	case Success:
		return true
	case PacketIDNotFound:
		return t == PUBREL || t == PUBCOMP
	case 0x10, Unspecified, ImplementationError, NotAuthorized, TopicNameInvalid, PacketIDInUse, QuotaExceeded, PayloadFormatInvalid:
		return t == PUBACK || t == PUBREC
	}
	return false
}

// ReadAck decodes the four acknowledgements.
func ReadAck(head byte, body []byte, v Version) (Ack, error) {
	t := Type(head >> 4)
	var want byte
	if t == PUBREL {
		want = 2 // 3.6.1-1
	}
	if head&15 != want && !(v == V31 && t == PUBREL && head&7 == 2) {
		return Ack{}, malformed(t.String() + " flags")
	}
	r := cursor{b: body}
	a := Ack{ID: r.u16()}
	if r.bad {
		return a, malformed(t.String() + " without packet id")
	}
	if a.ID == 0 {
		return a, protocol(t.String() + " with packet id 0")
	}
	if len(r.b) == 0 {
		return a, nil
	}
	if v != V5 {
		return a, malformed("bytes after " + t.String())
	}
	a.Code = Code(r.u8())
	if !ackCode(t, a.Code) {
		return a, protocol(t.String() + " with an unknown reason")
	}
	if len(r.b) == 0 {
		return a, nil
	}
	ps := props(&r, inAck)
	if err := ps.skip(); err != nil {
		return a, err
	}
	if len(r.b) != 0 {
		return a, malformed("bytes after " + t.String())
	}
	return a, nil
}

// AppendAck encodes PUBACK, PUBREC, PUBREL or PUBCOMP. Before version 5 the code
// is not sent: the caller must not acknowledge a failure there.
func AppendAck(dst []byte, v Version, t Type, id uint16, c Code) []byte {
	head := byte(t) << 4
	if t == PUBREL {
		head |= 2
	}
	if v != V5 || c == Success {
		return append(dst, head, 2, byte(id>>8), byte(id))
	}
	return append(dst, head, 3, byte(id>>8), byte(id), byte(c))
}
