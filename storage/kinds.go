package storage

import "strconv"

// StateKind names a space of keys of durable state. The numbers are on disk.
// A key belongs to one class: write it always by appends of the same class
// (reading looks through the classes in order).
type StateKind uint8

// Kinds below 16 are the store's own.
const (
	kindTopic StateKind = 1 // key: topic name
	kindStart StateKind = 2 // key: partition id; the log start offset
	kindEpoch StateKind = 3 // key: epoch number
	kindNext  StateKind = 4 // key: "partition"; the lowest id never given out
	kindLoss  StateKind = 5 // key: partition id, reason, from
	kindClean StateKind = 6 // key: partition id; its files after a compaction
	kindPad   StateKind = 7 // never set; operations that delete it fill a block
)

// Kinds for the users of the store.
const (
	KindSession  StateKind = 16 // MQTT sessions, subscriptions, QoS 2 ids
	KindRetained StateKind = 17 // MQTT retained messages
	KindWindow   StateKind = 18 // MQTT DUP windows, folded
	KindProgress StateKind = 19 // ranges received, per origin
	KindAssign   StateKind = 20 // node partition to central partition
	KindLedger   StateKind = 21 // ranges declared lost by others
	KindRegistry StateKind = 22 // devices
	KindMeta     StateKind = 23 // anything small
	KindGroup    StateKind = 24 // consumer groups
	KindCursor   StateKind = 25 // positions of MQTT deliveries
	KindSequence StateKind = 26 // sequence numbers of devices, folded
)

func (k StateKind) String() string {
	names := map[StateKind]string{
		kindTopic: "topic", kindStart: "start-offset", kindEpoch: "epoch", kindNext: "next-partition-id", kindLoss: "loss", kindClean: "compacted", kindPad: "padding",
		KindSession: "session", KindRetained: "retained", KindWindow: "window", KindProgress: "progress", KindAssign: "assign",
		KindLedger: "ledger", KindRegistry: "registry", KindMeta: "meta", KindGroup: "group", KindCursor: "cursor", KindSequence: "sequence",
	}
	if s, ok := names[k]; ok {
		return s
	}
	return "kind " + strconv.Itoa(int(k))
}
