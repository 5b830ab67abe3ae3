package storage

import (
	"encoding/binary"
	"encoding/hex"
	"strconv"
	"time"
)

// PartitionID names a partition within its store. Ids are never reused.
type PartitionID uint32

func (id PartitionID) String() string { return "p" + strconv.FormatUint(uint64(id), 10) }

// TopicConfig is what a topic is created with.
type TopicConfig struct {
	// Partitions is the number of partitions; 0 is 1.
	Partitions int `cbor:"1,keyasint"`
	// Class is the storage class, "" the default. It cannot be changed.
	Class string `cbor:"2,keyasint"`
	// RetentionAge: batches whose newest record is older go; 0 keeps for ever.
	RetentionAge time.Duration `cbor:"3,keyasint"`
	// RetentionBytes: the oldest go when a partition is larger; 0 no limit.
	RetentionBytes int64 `cbor:"4,keyasint"`
	// RetentionByArrival counts RetentionAge from the commit in this store, not
	// from the record's time: data that arrives weeks late stays for its time.
	RetentionByArrival bool `cbor:"5,keyasint"`
	// Labels are kept for the users of the store.
	Labels map[string]string `cbor:"6,keyasint,omitempty"`
	// Compaction keeps the newest record of each key; nil, or not On: no compaction.
	// What it points to must not change.
	Compaction *Compaction `cbor:"7,keyasint,omitempty"`
}

// Origin is the position at which a stored batch was first made durable. A hub
// keeps it beside the batch.
type Origin struct {
	Node      string
	Epoch     [16]byte
	Topic     string
	Partition int
	From, To  int64 // half-open
}

// Epoch is one life of a store's log. A new one begins when recovery had to
// cut something, with a new random id; offsets go on.
type Epoch struct {
	Number int32
	ID     [16]byte
	Parent [16]byte // zero for the first
	// ForkAt is, for each partition that had records, the first offset of this
	// epoch. Partitions that are not there begin at 0.
	ForkAt map[PartitionID]int64
	At     time.Time
}

// Identity tells which store this is.
type Identity struct {
	NodeID  string
	StoreID [16]byte
	Epoch   Epoch
	// BootID is new with every Open.
	BootID [16]byte
	// Recovered is what this Open had to repair; empty after a clean one.
	Recovered []Repair
}

// Repair is one thing recovery did.
type Repair struct {
	Class string
	File  string
	What  string // "tail-cut", "rot", "missing", "unreadable", "quarantined", "truncation-finished", "temp-removed", "tail-lost", "state-restored", "declared", "identity-restored"
	Bytes int64  // cut or set aside
	// Entries that were lost; for a cut tail they were never acknowledged,
	// unless the disk had lied about a flush.
	Entries int
	Detail  string
}

// LossReason says why a range is gone.
type LossReason uint8

const (
	LossEvicted LossReason = 1 // disk policy DropOldest
	LossDamaged LossReason = 2 // the disk no longer had what was written
	// LossUnreadable: the disk refused to read it, each time it was asked.
	LossUnreadable LossReason = 3
)

func (r LossReason) String() string {
	switch r {
	case LossEvicted:
		return "evicted"
	case LossDamaged:
		return "damaged"
	case LossUnreadable:
		return "unreadable"
	}
	return "reason " + strconv.Itoa(int(r))
}

// Loss is one row of the store's own loss ledger: offsets [From, To) of a
// partition were acknowledged and can no longer be read here.
type Loss struct {
	Partition PartitionID
	Topic     string
	Index     int
	From, To  int64
	Reason    LossReason
	At        time.Time // first noticed
}

// Stats are counters since Open and levels.
type Stats struct {
	Classes  []ClassStats
	MaxBytes int64 // budget over all classes, 0 none
}

// ClassStats are the figures of one commit log.
type ClassStats struct {
	Class           string
	Records         uint64 // made durable since Open
	RecordBytes     uint64 // of their batches
	PayloadBytes    uint64 // of their values: what devices sent; whole batches count as they are
	Commits         uint64
	Fsyncs          uint64 // of segment files
	WrittenBytes    uint64 // to segment files, framing included
	Failures        uint64 // commits that failed
	Refused         uint64 // appends refused with ErrFull
	Full            bool   // appends are refused, or the disk was full at the last attempt
	Reserve         int64  // bytes kept allocated for giving data up on a full disk; 0 while in use
	WaitingBytes    int64  // submitted, not durable yet
	Segments        int
	DiskBytes       int64 // segments
	MaxBytes        int64 // the budget, 0 none
	StateKeys       int
	StateBytes      int64
	EvictedRecords  uint64
	LastEvicted     time.Time // when records the hub does not have were given up last
	DamagedRecords  uint64
	Healed          uint64 // segments repaired while the store was open
	ScrubbedBytes   uint64 // read to find rot, since Open
	ScrubDamaged    uint64 // segments in which that met damage, or that could not be read
	CompactBytes    int64  // files of compacted partitions, part of DiskBytes
	Compactions     uint64 // of partitions, since Open
	CompactedAway   uint64 // records they took out
	CompactedBytes  uint64 // bytes they read and did not write again
	CommitNanos     uint64 // spent from taking a group to its fsync's end
	Broken          error  // why the log does not take appends now, or nil
	Failing         error  // of the last commit, when the disk failed it; the log was opened anew
	LastCommit      uint64
	LastCommitStart time.Time
}

// OriginHeader is the key of the header that [Config.OriginHeaders] adds, the
// last one of the record. Its value is the node id, the first 8 bytes of the
// epoch's id, and the offset as 8 bytes big endian, which come last so that a
// compressor meets the same bytes in each record.
const OriginHeader = "tr"

// ParseOriginHeader takes the value of an origin header apart.
func ParseOriginHeader(v []byte) (node string, epoch [8]byte, offset int64, ok bool) {
	if len(v) < 16 || len(v) > 255+16 {
		return "", epoch, 0, false
	}
	n := len(v) - 16
	copy(epoch[:], v[n:])
	offset = int64(binary.BigEndian.Uint64(v[n+8:]))
	return string(v[:n]), epoch, offset, offset >= 0
}

func hexID(id [16]byte) string { return hex.EncodeToString(id[:]) }
