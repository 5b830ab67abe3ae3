package wire

import "fmt"

// Role of a connection within a session.
type Role uint8

const (
	RoleMain Role = 0 // control, live data and one bulk stream
	RoleBulk Role = 1 // a further connection of the session named in Hello, for bulk data only
)

// Hello opens every connection, node to hub, on the control stream.
type Hello struct {
	Version    uint64    `cbor:"1,keyasint"`           // highest version spoken
	MinVersion uint64    `cbor:"2,keyasint"`           // lowest version spoken
	Node       string    `cbor:"3,keyasint"`           // must equal the name in the certificate
	Session    ID        `cbor:"4,keyasint"`           // shared by all connections of a session
	Boot       ID        `cbor:"5,keyasint"`           // one start of the node's process
	Sequence   uint64    `cbor:"6,keyasint"`           // sessions of this boot, counted from 1: a late Hello never displaces a newer session
	Role       Role      `cbor:"7,keyasint,omitempty"` // RoleBulk joins a session that a main connection opened
	Clock      Clock     `cbor:"8,keyasint"`           // the node's clock as the message was made
	Inventory  Inventory `cbor:"9,keyasint"`           // empty with RoleBulk
	Codecs     []Codec   `cbor:"10,keyasint"`          // codecs the node can send, preferred first
	Features   []string  `cbor:"11,keyasint,omitempty"`
	Software   string    `cbor:"12,keyasint,omitempty"` // name and version, for people
	Index      uint32    `cbor:"13,keyasint,omitempty"` // number of a bulk connection within its session
	Store      *StoreRef `cbor:"14,keyasint,omitempty"` // the hub's store that welcomed this node last; nil = none yet
}

// StoreRef names a life of a hub's store, as Welcome did. By it a hub recognises that
// its disk was lost, or that an older state of it came back.
type StoreRef struct {
	ID    ID    `cbor:"1,keyasint"`
	Epoch int32 `cbor:"2,keyasint"`
}

// Clock is one reading of a clock, for offsets and trust.
type Clock struct {
	UnixNano int64 `cbor:"1,keyasint"`
	Trusted  bool  `cbor:"2,keyasint,omitempty"` // set by NTP, GPS or an RTC since boot
}

// Inventory says what a node has. A later one replaces an earlier one.
type Inventory struct {
	Epochs     []EpochInfo     `cbor:"1,keyasint"` // oldest first; the last is the current one. Frames and Wants refer to epochs by id or by index here
	Partitions []PartitionInfo `cbor:"2,keyasint"`
}

// EpochInfo is one life of the node's log.
type EpochInfo struct {
	ID     ID          `cbor:"1,keyasint"`
	Parent ID          `cbor:"2,keyasint"` // zero for the first
	Number int32       `cbor:"3,keyasint"`
	Forks  []ForkPoint `cbor:"4,keyasint,omitempty"` // where it starts, per partition; a partition not named starts at 0
}

// First is the epoch's first offset in a partition.
func (e EpochInfo) First(topic string, partition int) int64 {
	for _, f := range e.Forks {
		if f.Topic == topic && f.Partition == partition {
			return f.Offset
		}
	}
	return 0
}

// ForkPoint is the first offset of an epoch in one partition.
type ForkPoint struct {
	Topic     string `cbor:"1,keyasint"`
	Partition int    `cbor:"2,keyasint"`
	Offset    int64  `cbor:"3,keyasint"`
}

// PartitionInfo is one partition of a node.
type PartitionInfo struct {
	ID        uint32 `cbor:"1,keyasint"` // the node's number for it, the same for the whole session; what frames carry
	Topic     string `cbor:"2,keyasint"`
	Partition int    `cbor:"3,keyasint"`
	Start     int64  `cbor:"4,keyasint"`           // first offset still held
	Next      int64  `cbor:"5,keyasint"`           // one past the last durable offset
	MinTime   int64  `cbor:"6,keyasint,omitempty"` // ms since 1970
	MaxTime   int64  `cbor:"7,keyasint,omitempty"`
	Bytes     int64  `cbor:"8,keyasint,omitempty"` // held, as far as known
	Mode      Mode   `cbor:"9,keyasint,omitempty"`
	Class     string `cbor:"10,keyasint,omitempty"` // storage class
	Acked     int64  `cbor:"11,keyasint,omitempty"` // the store in Hello.Store has acknowledged everything below, as far as this start of the node knows
	Priority  int32  `cbor:"12,keyasint,omitempty"` // of the topic, as the node is configured: for people, and for the node's own order of sending
}

// Mode is how a topic is replicated.
type Mode uint8

const (
	ModeInOrder   Mode = 0 // everything, in partition order
	ModeLiveFirst Mode = 1 // newest at once, the gap by the backfill lane
	ModeOnDemand  Mode = 2 // only what the hub asks for by range

	// ModeRefused is the hub's own: nothing is asked for, nothing is taken. Not on the wire.
	ModeRefused Mode = 255
)

var modeNames = map[Mode]string{ModeInOrder: "in-order", ModeLiveFirst: "live-first", ModeOnDemand: "on-demand", ModeRefused: "refused"}

// String is the word of the configuration.
func (m Mode) String() string {
	if s, ok := modeNames[m]; ok {
		return s
	}
	return fmt.Sprintf("mode(%d)", uint8(m))
}

// Type implements Message.
func (*Hello) Type() Type { return TypeHello }

// Type implements Message.
func (*Inventory) Type() Type { return TypeInventory }

// Welcome answers Hello, hub to node.
type Welcome struct {
	Version     uint64        `cbor:"1,keyasint"` // the version both speak from here on
	Session     ID            `cbor:"2,keyasint"`
	StoreID     ID            `cbor:"3,keyasint"` // a node never frees on another store's acks
	StoreEpoch  int32         `cbor:"4,keyasint"` // Kafka leader epoch; grows when the hub's store was restored
	Clock       Clock         `cbor:"5,keyasint"`
	Codec       Codec         `cbor:"6,keyasint,omitempty"` // what the hub chose of Hello.Codecs
	FrameBytes  uint32        `cbor:"7,keyasint"`           // largest raw frame the hub takes
	WindowBytes uint32        `cbor:"8,keyasint"`           // largest zstd window the hub takes
	Credit      [Lanes]uint64 `cbor:"9,keyasint"`           // raw bytes per lane that may be sent, counted from the start of the session
	MaxBulk     uint32        `cbor:"10,keyasint,omitempty"`
	HeartbeatMS uint32        `cbor:"11,keyasint,omitempty"`
	Features    []string      `cbor:"12,keyasint,omitempty"`
	Boot        ID            `cbor:"13,keyasint"`           // one start of the hub's process
	SpreadMS    uint32        `cbor:"14,keyasint,omitempty"` // over what nodes without probes come back after a restart of the hub
}

// Type implements Message.
func (*Welcome) Type() Type { return TypeWelcome }
