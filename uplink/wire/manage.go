package wire

// Status is the node's health, node to hub. Counters count since boot.
type Status struct {
	Clock        Clock        `cbor:"1,keyasint"`
	UptimeSec    int64        `cbor:"2,keyasint,omitempty"`
	DiskBytes    int64        `cbor:"3,keyasint,omitempty"` // used by the log
	DiskBudget   int64        `cbor:"4,keyasint,omitempty"`
	DiskFree     int64        `cbor:"5,keyasint,omitempty"`
	WrittenBytes int64        `cbor:"6,keyasint,omitempty"` // to the device, for wear
	Fsyncs       int64        `cbor:"7,keyasint,omitempty"`
	Devices      int64        `cbor:"8,keyasint,omitempty"` // connected now
	Records      int64        `cbor:"9,keyasint,omitempty"` // acknowledged to devices
	Refused      int64        `cbor:"10,keyasint,omitempty"`
	Dropped      int64        `cbor:"11,keyasint,omitempty"` // evicted before the hub had them
	Backlog      []Backlog    `cbor:"12,keyasint,omitempty"`
	ConfigSeen   uint64       `cbor:"13,keyasint,omitempty"` // Config.Version in force
	Notes        []string     `cbor:"14,keyasint,omitempty"` // what a person should look at
	Link         LinkStatus   `cbor:"15,keyasint"`           // filled in by the link
	Links        []LinkBudget `cbor:"16,keyasint,omitempty"` // classes of links, as the node is configured
}

// Backlog is what the hub does not have yet of one partition.
type Backlog struct {
	Topic     string `cbor:"1,keyasint"`
	Partition int    `cbor:"2,keyasint"`
	Next      int64  `cbor:"3,keyasint"` // the node's durable end
	Records   int64  `cbor:"4,keyasint"`
	Bytes     int64  `cbor:"5,keyasint,omitempty"`
	OldestMS  int64  `cbor:"6,keyasint,omitempty"` // ms since 1970 of the oldest unacked record
	Start     int64  `cbor:"7,keyasint,omitempty"` // the node's first offset
	Kept      bool   `cbor:"8,keyasint,omitempty"` // not a backlog: it stays at the node until it is asked for
}

// LinkBudget is one class of links of a node: what it may use, has used, and will.
type LinkBudget struct {
	Name      string `cbor:"1,keyasint"`
	Interface string `cbor:"2,keyasint,omitempty"` // in use; empty = this class is not
	RateLimit int64  `cbor:"3,keyasint,omitempty"` // bytes per second
	Monthly   int64  `cbor:"4,keyasint,omitempty"` // bytes, 0 = no budget
	Used      int64  `cbor:"5,keyasint,omitempty"` // in this period
	Forecast  int64  `cbor:"6,keyasint,omitempty"` // at its end
	EndsMS    int64  `cbor:"7,keyasint,omitempty"` // of the period, ms since 1970; 0 = the clock is not known
	Held      string `cbor:"8,keyasint,omitempty"` // why something waits; empty = nothing does
}

// LinkStatus is the link as the node sees it.
type LinkStatus struct {
	RTTMicros     int64 `cbor:"1,keyasint,omitempty"`
	Reconnects    int64 `cbor:"2,keyasint,omitempty"`
	BytesSent     int64 `cbor:"3,keyasint,omitempty"`
	BytesLost     int64 `cbor:"4,keyasint,omitempty"`
	SendErrors    int64 `cbor:"5,keyasint,omitempty"`
	InFlightBytes int64 `cbor:"6,keyasint,omitempty"`
}

// Type implements Message.
func (*Status) Type() Type { return TypeStatus }

// Config is a configuration for the node, hub to node. Its body is the node's business.
type Config struct {
	Version uint64 `cbor:"1,keyasint"`
	Body    []byte `cbor:"2,keyasint"`
}

// Type implements Message.
func (*Config) Type() Type { return TypeConfig }

// Command asks the node to do something once, hub to node.
type Command struct {
	ID       uint64 `cbor:"1,keyasint"`
	Name     string `cbor:"2,keyasint"`
	Args     []byte `cbor:"3,keyasint,omitempty"`
	ExpireMS int64  `cbor:"4,keyasint,omitempty"` // ms since 1970; 0 = never
}

// Type implements Message.
func (*Command) Type() Type { return TypeCommand }

// CommandResult answers Command, node to hub.
type CommandResult struct {
	ID    uint64 `cbor:"1,keyasint"`
	Error string `cbor:"2,keyasint,omitempty"` // empty = done
	Body  []byte `cbor:"3,keyasint,omitempty"`
}

// Type implements Message.
func (*CommandResult) Type() Type { return TypeCommandResult }

// HeartbeatPad makes every Heartbeat at least 40 bytes: smaller packets do not
// provoke a stateless reset from a restarted hub (RFC 9000, 10.3).
const HeartbeatPad = 32

// QuietPad makes a quiet one 40 bytes.
const QuietPad = 24

// Heartbeat goes both ways. The receiver of one with Reply false answers with the
// same Sequence and Sent, Reply true and its own Clock: that measures round trip and clock offset.
// A quiet one is not answered, the acknowledgement below tells enough: an idle day of answers costs a megabyte.
type Heartbeat struct {
	Sequence uint64 `cbor:"1,keyasint"`
	Sent     int64  `cbor:"2,keyasint"` // the asker's clock, UnixNano
	Reply    bool   `cbor:"3,keyasint,omitempty"`
	Clock    Clock  `cbor:"4,keyasint"`
	Pad      []byte `cbor:"5,keyasint"`
	Quiet    bool   `cbor:"6,keyasint,omitempty"`
}

// Type implements Message.
func (*Heartbeat) Type() Type { return TypeHeartbeat }

// Drain asks the node to leave, hub to node: finish nothing, reconnect elsewhere or later.
type Drain struct {
	Reason       string   `cbor:"1,keyasint,omitempty"`
	Hubs         []string `cbor:"2,keyasint,omitempty"` // other addresses of the same store
	RetryAfterMS uint32   `cbor:"3,keyasint,omitempty"`
}

// Type implements Message.
func (*Drain) Type() Type { return TypeDrain }

// Code classifies an Error.
type Code uint32

// The numbers are on the wire, and are the QUIC application error codes too.
const (
	CodeOK          Code = 0
	CodeProtocol    Code = 1  // bytes or an order of messages that the protocol does not allow
	CodeVersion     Code = 2  // no common version
	CodeAuth        Code = 3  // the certificate does not carry this node id
	CodeSuperseded  Code = 4  // a newer session of this node has taken over
	CodeFenced      Code = 5  // a clone or an old copy: the hub takes nothing from it
	CodeUnavailable Code = 6  // the hub's store cannot take data now; retry later
	CodeOverload    Code = 7  // too many nodes or handshakes
	CodeStall       Code = 8  // no progress with data outstanding
	CodeShutdown    Code = 9  // the other end is going away
	CodeStraddle    Code = 10 // a batch crosses the edge of a wanted range and cannot be split here
	CodeInternal    Code = 11
)

// Error is the last message before a connection closes, or, with Want set, about one Want.
type Error struct {
	Code         Code   `cbor:"1,keyasint"`
	Message      string `cbor:"2,keyasint,omitempty"`
	RetryAfterMS uint32 `cbor:"3,keyasint,omitempty"`
	Want         uint32 `cbor:"4,keyasint,omitempty"`
}

// Type implements Message.
func (*Error) Type() Type { return TypeError }
