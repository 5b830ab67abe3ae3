package uplink

import "tailrace/uplink/wire"

// name is a partition as people and interfaces call it.
type name struct {
	topic string
	index int
}

// span is the part of a partition that one epoch covers. Offsets go on over an
// epoch's start, so an offset of the node's log lies in exactly one span.
type span struct {
	epoch    int // index in Inventory.Epochs
	from, to int64
}

// spans cuts a partition at the forks of its epochs, oldest first. The newest span is open.
func spans(epochs []wire.EpochInfo, topic string, index int) []span {
	out := make([]span, 0, len(epochs))
	for i := range epochs {
		var from int64
		for _, f := range epochs[i].Forks {
			if f.Topic == topic && f.Partition == index {
				from = f.Offset
			}
		}
		// A fork below an older one takes that one's tail over: its offsets were lost here.
		for len(out) > 0 && out[len(out)-1].from >= from {
			out = out[:len(out)-1]
		}
		if n := len(out); n > 0 {
			out[n-1].to = from
		}
		out = append(out, span{i, from, Forever})
	}
	return out
}

func epochIndex(epochs []wire.EpochInfo, id wire.ID) int {
	for i := range epochs {
		if epochs[i].ID == id {
			return i
		}
	}
	return -1
}
