package packet

// Disconnect is a decoded DISCONNECT.
type Disconnect struct {
	Code      Code
	HasExpiry bool
	Expiry    uint32
}

// ReadDisconnect decodes the body of a DISCONNECT.
func ReadDisconnect(head byte, body []byte, v Version) (Disconnect, error) {
	var d Disconnect
	if head&15 != 0 {
		return d, malformed("DISCONNECT flags")
	}
	if len(body) == 0 {
		return d, nil
	}
	if v != V5 {
		return d, malformed("bytes after DISCONNECT")
	}
	r := cursor{b: body}
	d.Code = Code(r.u8())
	if len(r.b) > 0 {
		ps := props(&r, inDisconnect)
		var p property
		for ps.next(&p) {
			if p.id == pSessionExpiry {
				d.HasExpiry, d.Expiry = true, p.u
			}
		}
		if ps.err != nil {
			return d, ps.err
		}
	}
	if len(r.b) != 0 {
		return d, malformed("bytes after DISCONNECT")
	}
	switch d.Code { // 3.14.2.1, those a client may send
	case Success, DisconnectWithWill, Unspecified, Malformed, ProtocolError, ImplementationError, TopicNameInvalid,
		ReceiveMaxExceeded, TopicAliasInvalid, PacketTooLarge, MessageRateTooHigh, QuotaExceeded, AdministrativeAction, PayloadFormatInvalid:
		return d, nil
	}
	return d, protocol("DISCONNECT with an unknown reason")
}

// ReadPing checks a PINGREQ.
func ReadPing(head byte, body []byte) error {
	if head&15 != 0 || len(body) != 0 {
		return malformed("PINGREQ")
	}
	return nil
}

// AppendDisconnect encodes a DISCONNECT of the server (5 only) with a reason
// string, which is left out when empty.
func AppendDisconnect(dst []byte, c Code, reason string) []byte {
	if reason == "" {
		return append(dst, byte(DISCONNECT)<<4, 1, byte(c))
	}
	if len(reason) > 120 {
		reason = reason[:120]
	}
	p := 3 + len(reason)
	return appendStr(append(dst, byte(DISCONNECT)<<4, byte(2+p), byte(c), byte(p), pReasonString), reason)
}

// AppendPingresp encodes a PINGRESP.
func AppendPingresp(dst []byte) []byte { return append(dst, byte(PINGRESP)<<4, 0) }
