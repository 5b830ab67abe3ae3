package wire

// Type numbers a kind of control message. The numbers are on the wire for good;
// a receiver skips those it does not know.
type Type uint64

// The control messages.
const (
	TypeHello         Type = 1
	TypeWelcome       Type = 2
	TypeInventory     Type = 3
	TypeWant          Type = 4
	TypeCancel        Type = 5
	TypeAck           Type = 6
	TypeGap           Type = 7
	TypeFork          Type = 8
	TypeStatus        Type = 9
	TypeConfig        Type = 10
	TypeCommand       Type = 11
	TypeCommandResult Type = 12
	TypeHeartbeat     Type = 13
	TypeDrain         Type = 14
	TypeError         Type = 15
	TypeRefusals      Type = 16
	TypeSkip          Type = 17
)

// Message is one control message.
type Message interface {
	Type() Type
}
