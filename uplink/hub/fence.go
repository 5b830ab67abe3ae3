package hub

import (
	"fmt"
	"slices"

	"tailrace/uplink/wire"
)

// verdict is what becomes of a Hello.
type verdict struct {
	adopt  []wire.EpochInfo // the node's epochs from now on; nil = as before
	reason string           // not empty: the node is fenced, and why in words for an operator
	fresh  bool             // adopt begins a log that has nothing in common with the one known
}

// decide compares the epochs a node names (oldest first, the last is current)
// with those the hub knows of it. The rule: a log may only go on where the log
// that the hub knows has ended. Whatever else turns up under the node's name is
// another copy of it, and nothing is taken from a copy:
//
//	known   named    verdict
//	-       any      the node is new: adopted
//	A B     A B      the same log
//	A B     A B C    it lost its tail, or was recovered, and went on: C adopted
//	A B     A        an older state of the log came back (a restored backup, a swapped card): fenced
//	A B     A X      a second log grew from A (a cloned card): fenced
//	A B     X        a log that knows nothing of A and B: adopted as the node's new one when
//	                 no session is live (a replaced disk), fenced while one is (two machines
//	                 with one certificate)
//	A B     A B, but less of it than was stored here: an older state: fenced (see rolledBack)
//
// An operator who knows better accepts the next Hello as a new log (AcceptNext);
// not an epoch that is known, whose offsets are taken.
func decide(known, named []wire.EpochInfo, live, accept bool) verdict {
	if len(named) == 0 {
		return verdict{reason: "the node names no epoch of its log"}
	}
	current := named[len(named)-1]
	if len(known) == 0 {
		return verdict{adopt: named, fresh: true}
	}
	last := known[len(known)-1]
	if current.ID == last.ID {
		return verdict{}
	}
	for i, ep := range named {
		// A node may leave out epochs of which it holds nothing any more.
		if ep.Parent == last.ID && !ep.Parent.IsZero() {
			return verdict{adopt: append(append([]wire.EpochInfo(nil), known...), named[i:]...)}
		}
	}
	if accept && !slices.ContainsFunc(known, func(k wire.EpochInfo) bool { return k.ID == current.ID }) {
		return verdict{adopt: append(append([]wire.EpochInfo(nil), known...), unknown(known, named)...), fresh: true}
	}
	if slices.ContainsFunc(known, func(k wire.EpochInfo) bool { return k.ID == current.ID }) {
		return verdict{reason: fmt.Sprintf("its log is at epoch %s, the hub has already seen the later epoch %s: an older copy of the log came back (a restored backup or a swapped card)",
			short(current.ID), short(last.ID))}
	}
	for _, k := range known {
		for _, n := range named {
			if n.ID == k.ID || n.Parent == k.ID && !k.ID.IsZero() {
				return verdict{reason: fmt.Sprintf("its log parted from epoch %s, from which epoch %s has grown already: two copies of one log are in use (a cloned card)",
					short(k.ID), short(last.ID))}
			}
		}
	}
	if live {
		return verdict{reason: fmt.Sprintf("its log (epoch %s) has nothing in common with that of the machine connected now (epoch %s): two machines use one certificate",
			short(current.ID), short(last.ID))}
	}
	return verdict{adopt: append(append([]wire.EpochInfo(nil), known...), named...), fresh: true}
}

func unknown(known, named []wire.EpochInfo) []wire.EpochInfo {
	var out []wire.EpochInfo
	for _, n := range named {
		if !slices.ContainsFunc(known, func(k wire.EpochInfo) bool { return k.ID == n.ID }) {
			out = append(out, n)
		}
	}
	return out
}

// rolledBack finds a partition of the node's current epoch of which the hub
// holds more than the node has: the log is an older state of itself, and its
// next records would reuse offsets that are taken.
func rolledBack(inv wire.Inventory, progress []Progress) string {
	if len(inv.Epochs) == 0 {
		return ""
	}
	current := inv.Epochs[len(inv.Epochs)-1].ID
	next := map[assignKey]int64{}
	for _, p := range inv.Partitions {
		next[assignKey{topic: p.Topic, partition: p.Partition}] = p.Next
	}
	for _, p := range progress {
		if p.Epoch != current {
			continue
		}
		if end := p.Held.End(); end > next[assignKey{topic: p.Topic, partition: p.Partition}] {
			return fmt.Sprintf("its log of %s/%d ends at offset %d, the hub holds %d of the same epoch: an older copy of the log came back (a restored backup or image)",
				p.Topic, p.Partition, next[assignKey{topic: p.Topic, partition: p.Partition}], end)
		}
	}
	return ""
}

func short(id wire.ID) string { return id.String()[:8] }
