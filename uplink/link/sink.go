package link

import (
	"context"
	"fmt"
	"time"

	"tailrace/uplink"
	"tailrace/uplink/wire"
)

// Sink is the hub's store as the link needs it. Methods are called from several
// goroutines at once, for one node from one at a time.
type Sink interface {
	// Identity names the store. A node never frees on another store's acks.
	Identity() (storeID wire.ID, storeEpoch int32)

	// Hello admits a session: nothing of an older session of this node is under way any more.
	// It returns what is durable here of what the node offers, or a *RefuseError (fenced clone,
	// unknown node, store not ready). Fencing by boot, sequence and epoch is decided here.
	Hello(ctx context.Context, node string, h wire.Hello) (Plan, error)

	// Inventory is called when a connected node's set of partitions changed.
	Inventory(ctx context.Context, node string, inv wire.Inventory) (Plan, error)

	// Append stores whole batches with contiguous, ascending offsets, all of o's epoch, CRC
	// verified. It may block (back-pressure for this node only). done runs exactly once, when
	// they and the progress are durable or failed, in order per origin, must not block, and may
	// run before Append returns. held is what may be acknowledged: at least the offsets of the
	// batches (held earlier or now). Several Appends of an origin may be under way: once one
	// failed, those behind it must fail too, until the next Hello. batches belongs to the Sink until done is called. Offsets
	// that are held already must be dropped by the Sink and acknowledged.
	Append(ctx context.Context, o wire.Origin, batches []byte, done func(held uplink.RangeSet, err error))

	// Declare commits ledger rows for the part of gaps that is not held, and progress over all
	// of it, in one step, and returns what may be acknowledged.
	Declare(ctx context.Context, o wire.Origin, gaps []wire.Gap) (uplink.RangeSet, error)

	// Fork reports that the node's log is not the one whose records are held here. Nothing of
	// this partition and epoch is asked of it again in this session.
	Fork(node string, o wire.Origin, f wire.Fork)

	// Status is the node's health report.
	Status(node string, st wire.Status)

	// Connected and Disconnected bracket a session, after Hello was accepted.
	Connected(node string, info SessionInfo)
	Disconnected(node string, info SessionInfo, reason error)
}

// An Admitter is a Sink that can refuse a Hello before the node's session is ended for
// it: a machine that will not be taken must not disturb the one that is.
type Admitter interface {
	Admit(node string, h wire.Hello) error
}

// SessionInfo describes a session to people.
type SessionInfo struct {
	Session, Boot wire.ID
	Remote        string
	Since         time.Time
	Software      string
}

// Plan is the hub's durable progress for one node, and what it wants.
type Plan struct {
	// Progress holds one entry per (epoch, topic, partition) of which anything is held. What the
	// node offers and Progress does not name is wanted from its first offset.
	Progress []uplink.Progress
	// Mode overrides the mode that the inventory names, by topic.
	Mode map[string]wire.Mode
	// Refused are topics of which nothing is asked for and nothing taken, and why. The node is told.
	Refused map[string]string
	// Rate limits bytes per second by lane, 0 = none.
	Rate [wire.Lanes]uint64
	// Config is sent after Welcome; nil = nothing to say.
	Config *wire.Config
}

// RefuseError refuses a session and says for how long.
type RefuseError struct {
	Code       wire.Code
	Message    string
	RetryAfter time.Duration // 0 = the node decides
	Hubs       []string      // host:port of hubs of the same store that will not refuse; the node goes there first
}

func (e *RefuseError) Error() string {
	return fmt.Sprintf("refused (code %d): %s", e.Code, e.Message)
}
