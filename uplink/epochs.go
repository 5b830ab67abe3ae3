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

// epochTable is a node's list of epochs, with their forks by partition.
type epochTable struct {
	list  []wire.EpochInfo
	index map[wire.ID]int
	forks []map[name]int64
}

func newEpochTable(list []wire.EpochInfo) epochTable {
	t := epochTable{list: list, index: make(map[wire.ID]int, len(list)), forks: make([]map[name]int64, len(list))}
	for i := range list {
		t.index[list[i].ID] = i
		t.forks[i] = make(map[name]int64, len(list[i].Forks))
		for _, f := range list[i].Forks {
			t.forks[i][name{f.Topic, f.Partition}] = f.Offset
		}
	}
	return t
}

// spans cuts a partition at the forks of its epochs, oldest first. The newest span is
// open. A partition that an epoch does not name had no records before it.
func (t *epochTable) spans(n name) []span {
	return cut(len(t.list), func(i int) int64 { return t.forks[i][n] })
}

func cut(epochs int, fork func(i int) int64) []span {
	out := make([]span, 0, epochs)
	for i := range epochs {
		from := fork(i)
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

// EpochRanges says, for each of a log's epochs (oldest first), which offsets of a partition
// belong to it; empty for an epoch whose records a later one has taken over.
func EpochRanges(list []wire.EpochInfo, topic string, partition int) []Range {
	out := make([]Range, len(list))
	for _, s := range cut(len(list), func(i int) int64 {
		for _, f := range list[i].Forks {
			if f.Topic == topic && f.Partition == partition {
				return f.Offset
			}
		}
		return 0
	}) {
		out[s.epoch] = Range{From: s.from, To: s.to}
	}
	return out
}

// find is the index of an epoch, or -1.
func (t *epochTable) find(id wire.ID) int {
	if i, ok := t.index[id]; ok {
		return i
	}
	return -1
}

func (t *epochTable) id(i int) wire.ID { return t.list[i].ID }
