// Package packet decodes what an MQTT client may send and encodes what a server
// may answer, for MQTT 3.1, 3.1.1 and 5.0.
//
// Decoders are strict: every length is checked against the bytes that are there,
// reserved bits must be as the standard says, strings must be well-formed, and a
// packet must end where its parts end. They never panic, never allocate in
// proportion to a length that was only claimed, and return slices that alias the
// input. Encoders have the shape Append…(dst, …) and extend the caller's buffer.
//
// Every decode error is an *Error that carries the MQTT 5 reason code with which
// the connection is to be closed. All functions are safe for concurrent use.
package packet

import "fmt"

// Type is the control packet type, the upper four bits of the first byte.
type Type byte

// MQTT 5.0, 2.1.2.
const (
	CONNECT     Type = 1
	CONNACK     Type = 2
	PUBLISH     Type = 3
	PUBACK      Type = 4
	PUBREC      Type = 5
	PUBREL      Type = 6
	PUBCOMP     Type = 7
	SUBSCRIBE   Type = 8
	SUBACK      Type = 9
	UNSUBSCRIBE Type = 10
	UNSUBACK    Type = 11
	PINGREQ     Type = 12
	PINGRESP    Type = 13
	DISCONNECT  Type = 14
	AUTH        Type = 15
)

var typeNames = [16]string{"RESERVED", "CONNECT", "CONNACK", "PUBLISH", "PUBACK", "PUBREC", "PUBREL", "PUBCOMP",
	"SUBSCRIBE", "SUBACK", "UNSUBSCRIBE", "UNSUBACK", "PINGREQ", "PINGRESP", "DISCONNECT", "AUTH"}

func (t Type) String() string { return typeNames[t&15] }

// Version is the protocol level of CONNECT.
type Version byte

const (
	V31  Version = 3 // "MQIsdp"
	V311 Version = 4
	V5   Version = 5
)

func (v Version) String() string {
	switch v {
	case V31:
		return "3.1"
	case V311:
		return "3.1.1"
	case V5:
		return "5"
	}
	return fmt.Sprintf("level %d", byte(v))
}

// Code is an MQTT 5 reason code (MQTT 5.0, 2.4). From 0x80 on it is a failure.
type Code byte

const (
	Success               Code = 0x00
	DisconnectWithWill    Code = 0x04
	NoSubscriptionExisted Code = 0x11
	Unspecified           Code = 0x80
	Malformed             Code = 0x81
	ProtocolError         Code = 0x82
	ImplementationError   Code = 0x83
	UnsupportedVersion    Code = 0x84
	ClientIDNotValid      Code = 0x85
	BadUserOrPassword     Code = 0x86
	NotAuthorized         Code = 0x87
	ServerUnavailable     Code = 0x88
	ServerBusy            Code = 0x89
	Banned                Code = 0x8A
	ServerShuttingDown    Code = 0x8B
	BadAuthMethod         Code = 0x8C
	KeepAliveTimeout      Code = 0x8D
	SessionTakenOver      Code = 0x8E
	TopicFilterInvalid    Code = 0x8F
	TopicNameInvalid      Code = 0x90
	PacketIDInUse         Code = 0x91
	PacketIDNotFound      Code = 0x92
	ReceiveMaxExceeded    Code = 0x93
	TopicAliasInvalid     Code = 0x94
	PacketTooLarge        Code = 0x95
	MessageRateTooHigh    Code = 0x96
	QuotaExceeded         Code = 0x97
	AdministrativeAction  Code = 0x98
	PayloadFormatInvalid  Code = 0x99
	RetainNotSupported    Code = 0x9A
	QoSNotSupported       Code = 0x9B
	SharedNotSupported    Code = 0x9E
	ConnectionRateTooHigh Code = 0x9F
	MaximumConnectTime    Code = 0xA0
	SubIDsNotSupported    Code = 0xA1
	WildcardsNotSupported Code = 0xA2
)

// Error is why a packet, and with it the connection, is refused.
type Error struct {
	Code Code
	What string // what was wrong, with the paragraph where that helps
}

func (e *Error) Error() string { return fmt.Sprintf("%s (MQTT reason 0x%02X)", e.What, byte(e.Code)) }

func malformed(what string) error { return &Error{Malformed, what} }
func protocol(what string) error  { return &Error{ProtocolError, what} }

// Frame finds the first whole packet in b: head is its first byte, the body is
// b[start:end]. When more bytes are needed it returns end = 0 and, once the length
// is known, the bytes the whole packet needs in need. A packet above max bytes
// (fixed header included) is refused from its length alone.
func Frame(b []byte, max int) (head byte, start, end, need int, err error) {
	if len(b) < 2 {
		return 0, 0, 0, 2, notBegun(b)
	}
	n, shift := 0, 0
	for i := 1; ; i++ {
		if i == 5 { // MQTT 5.0, 1.5.5: at most four bytes
			return 0, 0, 0, 0, malformed("remaining length of more than four bytes")
		}
		if i >= len(b) {
			return 0, 0, 0, i + 1, notBegun(b)
		}
		c := b[i]
		n |= int(c&0x7f) << shift
		if c < 0x80 {
			if c == 0 && i > 1 { // MQTT 5.0, 1.5.5-1: shortest form
				return 0, 0, 0, 0, malformed("remaining length not in its shortest form")
			}
			start = i + 1
			break
		}
		shift += 7
	}
	if start+n > max {
		return b[0], start, 0, start + n, &Error{PacketTooLarge, fmt.Sprintf("packet of %d bytes, limit %d", start+n, max)}
	}
	if len(b) < start+n {
		return b[0], start, 0, start + n, notBegun(b)
	}
	return b[0], start, start + n, start + n, nil
}

// notBegun refuses a first byte that begins no packet, before the rest has come.
func notBegun(b []byte) error {
	if len(b) > 0 && b[0]>>4 == 0 { // MQTT 5.0, 2.1.2
		return protocol("packet type 0")
	}
	return nil
}
