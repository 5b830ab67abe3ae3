// Package uplink is the replication protocol between a node and a hub as plain
// values: Sender (the node's half), Receiver (the hub's half), range sets and
// windows. Nothing here does I/O, reads a clock or starts a goroutine; package
// uplink/link drives it over QUIC, and PROTOCOL.md describes the whole.
//
// The hub asks, the node answers: a Receiver turns the hub's durable progress
// and the node's inventory into Wants; a Sender turns Wants into reads of the
// node's log, within the credit that the hub granted; the Receiver puts what
// arrives back in order, and what the hub made durable becomes Acks.
package uplink

import "tailrace/uplink/ranges"

// Range is the half-open offset range [From, To).
type Range = ranges.Range

// RangeSet is a sorted set of disjoint half-open offset ranges.
type RangeSet = ranges.Set

// Forever is the open end of a range that is followed as it grows.
const Forever = int64(1<<63 - 1)
