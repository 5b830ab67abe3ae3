// Package link carries the uplink over QUIC: Client at the node, Server at the
// hub. It moves bytes and drives the plain values of package uplink; what the
// node has and what the hub keeps come in through Source and Sink.
//
// A node's memory does not depend on its backlog: batches are read from the
// Source just in time and forgotten once written to the connection. A hub's
// memory does not depend on its store's speed: a node may only have as many bytes
// outstanding as the hub granted credit for, and credit returns when the Sink
// reports durable.
package link

import (
	"errors"

	"tailrace/uplink"
	"tailrace/uplink/wire"
)

// ErrGone is returned by Source.Read for an offset that the node no longer has:
// below the start, evicted, or cut out as damaged. Source.Gaps says why.
var ErrGone = errors.New("the node no longer has this offset")

// Source is the node's log as the link needs it. Methods are called from several
// goroutines at once, and must not block for longer than a disk read.
type Source interface {
	// Inventory is everything there is, now. Epochs oldest first, the last one current.
	Inventory() wire.Inventory

	// Generation changes whenever the set of partitions (not their offsets) changes.
	Generation() uint64

	// Bounds is the first offset held and one past the last durable offset; cheap, no allocation.
	Bounds(topic string, partition int) (start, next int64)

	// Read appends to dst whole stored batches, in order and without a hole between them,
	// the first one containing from, about maxBytes in all but at least one batch, never
	// beyond durable; next is one past the last offset read. At the end: nothing, from, nil.
	// The first batch after a hole may start above from: the link proposes the hole as a gap.
	Read(dst []byte, topic string, partition int, from int64, maxBytes int) (batches []byte, next int64, err error)

	// Changed is signalled (capacity 1) when any partition's durable offset or Generation moves.
	Changed() <-chan struct{}

	// Acked reports ranges that are durable at the hub, or declared lost there: the node may
	// free them and forget the gaps they cover. Ranges come again after a reconnect.
	Acked(topic string, partition int, epoch wire.ID, held uplink.RangeSet)

	// Gaps are ranges that will never come and were not acked yet.
	Gaps() []GapProposal
}

// A Commander is a Source that answers the hub's commands, when ClientConfig.OnCommand is
// nil. It runs on a goroutine of its own, one at a time.
type Commander interface {
	Command(c wire.Command) wire.CommandResult
}

// GapProposal is a gap of one partition and epoch.
type GapProposal struct {
	Topic     string
	Partition int
	Epoch     wire.ID
	Gap       wire.Gap
}
