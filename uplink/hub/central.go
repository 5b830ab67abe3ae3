package hub

import (
	"context"
	"errors"
	"fmt"

	"tailrace/uplink"
	"tailrace/uplink/wire"
)

// Central is the central store as the hub uses it: where records of all nodes
// are kept, and the only truth about what has arrived. Embedded is the one on
// one machine.
//
// Every method may be called concurrently.
type Central interface {
	// Progress returns what is durable of a node, one entry per (epoch, topic, partition).
	Progress(ctx context.Context, node string) ([]Progress, error)

	// Append stores the records of batches that are not held yet. batches is a
	// concatenation of whole batches of one origin in ascending order; the
	// slice is the caller's again when Append returns. done is called exactly
	// once, when the records and the progress that covers them are durable
	// together, or with the reason why not; calls for one origin come in the
	// order of the Appends, on a goroutine that must not be blocked. held is
	// everything durable of the origin, not the caller's to change.
	//
	// Append blocks while more than a bounded amount waits for the disk.
	Append(ctx context.Context, o wire.Origin, batches []byte, done func(held uplink.RangeSet, err error))

	// Declare records that ranges of an origin will never come: ledger rows and
	// progress in one step. What is held is subtracted. It returns what is held
	// or declared afterwards.
	Declare(ctx context.Context, o wire.Origin, gaps []wire.Gap) (uplink.RangeSet, error)

	// Adopt makes the epochs of a node known, durably. Records of an epoch
	// that is not known are refused.
	Adopt(ctx context.Context, node string, epochs []wire.EpochInfo) error

	// Identity names the store; nodes free nothing on another store's acks.
	Identity() (id wire.ID, epoch int32)
}

// Progress is what is durable of one origin.
type Progress struct {
	Epoch     wire.ID
	Topic     string
	Partition int
	Held      uplink.RangeSet // stored or declared lost
	Last      *wire.Held      // the highest batch stored, as the node stored it; nil before the first
	MaxTime   int64           // largest record timestamp stored, ms since 1970
	Stored    int64           // records stored (Held without what was declared lost)
	Backfill  int64           // of them in the companion topic
	Central   Assignment
}

// Assignment is the central partition of a node's partition. It never changes.
type Assignment struct {
	Topic     string `cbor:"1,keyasint"`
	Partition int    `cbor:"2,keyasint"`
	Class     string `cbor:"3,keyasint"` // storage class: progress stays in the log of the records
}

var (
	// ErrUnknownEpoch refuses records of an epoch that no Hello has introduced.
	ErrUnknownEpoch = errors.New("epoch is not known for this node")
	// ErrStopped refuses work after the hub began to stop.
	ErrStopped = errors.New("hub is stopping")
)

// OrderError refuses records that would leave a hole in front of them.
type OrderError struct {
	Origin   wire.Origin
	Expected int64 // the first offset that is neither held nor on its way to the disk
	Got      int64
}

func (e *OrderError) Error() string {
	return fmt.Sprintf("%s: records from offset %d, but offset %d is neither held nor declared lost", e.Origin, e.Got, e.Expected)
}

// TopicError refuses a topic name that no rule of the configuration allows.
type TopicError struct{ Topic, Reason string }

func (e *TopicError) Error() string { return fmt.Sprintf("topic %q: %s", e.Topic, e.Reason) }
