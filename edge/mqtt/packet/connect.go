package packet

import "bytes"

// Will is the message a server publishes for a client that went away.
type Will struct {
	Topic, Payload []byte
	QoS            byte
	Retain         bool
	Delay          uint32 // seconds
	Props          MessageProps
}

// Connect is a decoded CONNECT. Slices alias the packet.
type Connect struct {
	Version      Version
	Clean        bool // Clean Session (3.x), Clean Start (5)
	KeepAlive    uint16
	ClientID     []byte
	HasWill      bool
	Will         Will
	HasUser      bool
	Username     []byte
	HasPassword  bool
	Password     []byte
	Expiry       uint32 // session expiry in seconds (5)
	ReceiveMax   uint16 // 65,535 when absent
	MaxPacket    uint32 // 0 = no limit
	AliasMax     uint16
	NoProblem    bool // client asked for no reason strings
	AuthMethod   []byte
	HasAuth      bool
	UserProperty []UserProperty
}

// ReadConnect decodes the body of a CONNECT. An *Error with UnsupportedVersion
// leaves c.Version at the level asked for.
func ReadConnect(head byte, body []byte, c *Connect) error {
	*c = Connect{ReceiveMax: 65535}
	r := cursor{b: body}
	name := r.bin()
	level := r.u8()
	if r.bad {
		return malformed("CONNECT header")
	}
	c.Version = Version(level)
	switch {
	case bytes.Equal(name, []byte("MQTT")):
		if level != 4 && level != 5 {
			return &Error{UnsupportedVersion, "protocol level not 4 or 5"}
		}
	case bytes.Equal(name, []byte("MQIsdp")):
		if level != 3 {
			return &Error{UnsupportedVersion, "MQIsdp with a level other than 3"}
		}
	default:
		return malformed("protocol name")
	}
	// MQTT 3.1, 3.1: flags of the fixed header, and bit 0 below, are "not used".
	if head != byte(CONNECT)<<4 && c.Version != V31 {
		return malformed("CONNECT flags")
	}
	flags := r.u8()
	c.KeepAlive = r.u16()
	if r.bad {
		return malformed("CONNECT header")
	}
	if flags&1 != 0 && c.Version != V31 { // 3.1.2-3
		return malformed("reserved CONNECT flag")
	}
	c.Clean = flags&2 != 0
	c.HasWill = flags&4 != 0
	c.Will.QoS = flags >> 3 & 3
	c.Will.Retain = flags&0x20 != 0
	c.HasPassword = flags&0x40 != 0
	c.HasUser = flags&0x80 != 0
	if c.Will.QoS == 3 || !c.HasWill && (c.Will.QoS != 0 || c.Will.Retain) { // 3.1.2-11 to -15
		return malformed("will flags")
	}
	if c.Version != V5 && c.HasPassword && !c.HasUser { // 3.1.1: 3.1.2-22
		return malformed("password without user name")
	}
	if c.Version == V5 {
		if err := c.properties(&r); err != nil {
			return err
		}
	}
	c.ClientID = r.str()
	if c.HasWill {
		if err := c.will(&r); err != nil {
			return err
		}
	}
	if c.HasUser {
		c.Username = r.str()
	}
	if c.HasPassword {
		c.Password = r.bin()
	}
	if r.bad {
		return malformed("CONNECT payload")
	}
	if len(r.b) != 0 {
		return malformed("bytes after the CONNECT payload")
	}
	return nil
}

func (c *Connect) properties(r *cursor) error {
	ps := props(r, inConnect)
	var p property
	for ps.next(&p) {
		switch p.id {
		case pSessionExpiry:
			c.Expiry = p.u
		case pReceiveMax:
			if p.u == 0 {
				return protocol("receive maximum 0")
			}
			c.ReceiveMax = uint16(p.u)
		case pMaxPacket:
			if p.u == 0 {
				return protocol("maximum packet size 0")
			}
			c.MaxPacket = p.u
		case pTopicAliasMax:
			c.AliasMax = uint16(p.u)
		case pRequestProblem:
			if err := bool01(&p); err != nil {
				return err
			}
			c.NoProblem = p.u == 0
		case pRequestResponse:
			if err := bool01(&p); err != nil {
				return err
			}
		case pAuthMethod:
			c.HasAuth, c.AuthMethod = true, p.a
		case pUserProperty:
			c.UserProperty = append(c.UserProperty, UserProperty{p.a, p.v})
		}
	}
	if ps.err == nil && ps.seen>>pAuthData&1 == 1 && !c.HasAuth { // 3.1.2.11.10
		return protocol("authentication data without method")
	}
	return ps.err
}

func (c *Connect) will(r *cursor) error {
	if c.Version == V5 {
		ps := props(r, inWill)
		var p property
		for ps.next(&p) {
			if p.id == pWillDelay {
				c.Will.Delay = p.u
			} else if err := c.Will.Props.set(&p); err != nil {
				return err
			}
		}
		if ps.err != nil {
			return ps.err
		}
	}
	c.Will.Topic = r.str()
	c.Will.Payload = r.bin()
	if r.bad {
		return malformed("will")
	}
	if len(c.Will.Topic) == 0 || hasWildcard(c.Will.Topic) {
		return malformed("will topic")
	}
	return nil
}

// Connack is what the server answers. Numbers at zero are left out (ReceiveMax
// 65,535 is the default of the standard and left out, too).
type Connack struct {
	SessionPresent bool
	Code           Code
	AssignedID     string
	HasKeepAlive   bool
	KeepAlive      uint16
	HasExpiry      bool
	Expiry         uint32
	ReceiveMax     uint16
	AliasMax       uint16
	MaxPacket      uint32
	Reason         string
}

// AppendConnack encodes a CONNACK for version v.
func AppendConnack(dst []byte, v Version, a *Connack) []byte {
	var ack byte
	if a.SessionPresent && a.Code == Success && v != V31 {
		ack = 1
	}
	if v != V5 {
		return append(dst, byte(CONNACK)<<4, 2, ack, connackV3(a.Code))
	}
	var buf [64]byte
	p := buf[:0]
	if a.HasExpiry {
		p = appendU32(append(p, pSessionExpiry), a.Expiry)
	}
	if a.AssignedID != "" {
		p = appendStr(append(p, pAssignedID), a.AssignedID)
	}
	if a.HasKeepAlive {
		p = appendU16(append(p, pServerKeepAlive), a.KeepAlive)
	}
	if a.Reason != "" {
		p = appendStr(append(p, pReasonString), a.Reason)
	}
	if a.ReceiveMax != 0 && a.ReceiveMax != 65535 {
		p = appendU16(append(p, pReceiveMax), a.ReceiveMax)
	}
	if a.AliasMax != 0 {
		p = appendU16(append(p, pTopicAliasMax), a.AliasMax)
	}
	if a.MaxPacket != 0 {
		p = appendU32(append(p, pMaxPacket), a.MaxPacket)
	}
	dst = append(dst, byte(CONNACK)<<4)
	dst = appendVarint(dst, 2+varintLen(len(p))+len(p))
	dst = append(dst, ack, byte(a.Code))
	return append(appendVarint(dst, len(p)), p...)
}

// connackV3 maps a reason to a return code of MQTT 3.1.1, table 3.1.
func connackV3(c Code) byte {
	switch c {
	case Success:
		return 0
	case UnsupportedVersion:
		return 1
	case ClientIDNotValid:
		return 2
	case BadUserOrPassword:
		return 4
	case NotAuthorized, Banned, BadAuthMethod:
		return 5
	}
	return 3 // server unavailable
}
