package wire

// Want asks for data of one partition and epoch, hub to node.
type Want struct {
	ID        uint32   `cbor:"1,keyasint"` // named by Cancel, Fork and Error
	Partition uint32   `cbor:"2,keyasint"` // PartitionInfo.ID
	Epoch     ID       `cbor:"3,keyasint"`
	Ranges    RangeSet `cbor:"4,keyasint,omitempty"` // bounded ranges, sent in this order
	Follow    bool     `cbor:"5,keyasint,omitempty"` // then everything from From on, as it becomes durable
	From      int64    `cbor:"6,keyasint,omitempty"`
	Lane      Lane     `cbor:"7,keyasint,omitempty"`
	CatchUp   Lane     `cbor:"8,keyasint,omitempty"`  // lane while the node is more than a frame behind
	Rate      uint64   `cbor:"9,keyasint,omitempty"`  // raw bytes per second on Lane, 0 = as before
	Credit    uint64   `cbor:"10,keyasint,omitempty"` // raises the credit of Lane to at least this
	Last      *Held    `cbor:"11,keyasint,omitempty"` // the last batch the hub holds here, as the node stored it
	SlowRate  uint64   `cbor:"12,keyasint,omitempty"` // raw bytes per second on CatchUp, 0 = as before
	SkipMS    uint32   `cbor:"13,keyasint,omitempty"` // what is older when its turn comes may be passed over, see Skip; 0 = nothing may
}

// Held is the proof that hub and node mean the same log.
type Held struct {
	Offset int64  `cbor:"1,keyasint"` // base offset of the batch
	CRC    uint32 `cbor:"2,keyasint"` // its CRC32C field
}

// Type implements Message.
func (*Want) Type() Type { return TypeWant }

// Cancel withdraws a Want, hub to node. What was sent stays sent.
type Cancel struct {
	Want uint32 `cbor:"1,keyasint"`
}

// Type implements Message.
func (*Cancel) Type() Type { return TypeCancel }

// Ack says what is durable at the hub, and grants credit, hub to node.
type Ack struct {
	Acks   []PartitionRanges `cbor:"1,keyasint,omitempty"`
	Credit [Lanes]uint64     `cbor:"2,keyasint"` // per lane, cumulative since the session began
}

// PartitionRanges are offsets of one partition and epoch.
type PartitionRanges struct {
	Partition uint32   `cbor:"1,keyasint"`
	Epoch     ID       `cbor:"2,keyasint"`
	Ranges    RangeSet `cbor:"3,keyasint"`
}

// Type implements Message.
func (*Ack) Type() Type { return TypeAck }

// GapReason says why a range will never come.
type GapReason uint8

const (
	GapEvicted GapReason = 1 // the disk policy freed it
	GapDamaged GapReason = 2 // it did not survive on disk
	GapExpired GapReason = 3 // retention freed it
	GapDeleted GapReason = 4 // an operator deleted it
	GapMissing GapReason = 5 // the node does not have it and does not know why
	// GapUnreadable: the node's disk refuses to read it, and may give it to ddrescue.
	GapUnreadable GapReason = 6
)

func (r GapReason) String() string {
	switch r {
	case GapEvicted:
		return "evicted"
	case GapDamaged:
		return "damaged"
	case GapExpired:
		return "expired"
	case GapDeleted:
		return "deleted"
	case GapMissing:
		return "missing"
	case GapUnreadable:
		return "unreadable"
	}
	return "unknown"
}

// Gap is one run of offsets that will never come.
type Gap struct {
	Ranges RangeSet  `cbor:"1,keyasint"`
	Reason GapReason `cbor:"2,keyasint"`
	At     int64     `cbor:"3,keyasint,omitempty"` // ms since 1970, when it was lost; 0 = unknown
	Detail string    `cbor:"4,keyasint,omitempty"`
}

// GapReport proposes gaps, node to hub. The hub subtracts what it holds, commits
// ledger rows and progress together, and answers with an Ack of the ranges.
type GapReport struct {
	Partition uint32 `cbor:"1,keyasint"`
	Epoch     ID     `cbor:"2,keyasint"`
	Gaps      []Gap  `cbor:"3,keyasint"`
}

// Type implements Message.
func (*GapReport) Type() Type { return TypeGap }

// Fork refuses a Want, node to hub: the node's log differs from the batch the hub
// holds, or ends before it. Nothing is merged.
type Fork struct {
	Want      uint32 `cbor:"1,keyasint"`
	Partition uint32 `cbor:"2,keyasint"`
	Epoch     ID     `cbor:"3,keyasint"`
	Offset    int64  `cbor:"4,keyasint"`           // Want.Last.Offset
	CRC       uint32 `cbor:"5,keyasint,omitempty"` // what the node has there; 0 with Absent
	Absent    bool   `cbor:"6,keyasint,omitempty"` // the node's log ends before Offset
	Next      int64  `cbor:"7,keyasint"`           // the node's next offset
}

// Type implements Message.
func (*Fork) Type() Type { return TypeFork }
