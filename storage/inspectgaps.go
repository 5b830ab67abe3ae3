package storage

import (
	"encoding/binary"

	"github.com/fxamacker/cbor/v2"
)

// missing finds the ranges that the next Open will declare lost: gaps between batches, before
// the first and behind the last, that are above the start and that no row of the ledger has.
// Behind the last only the second copy tells of them here; Open asks the side files, too.
func (x *inspector) missing() {
	rows := lossRowsOf(x.state)
	clean := map[PartitionID]int64{}
	for _, k := range x.state.keys(kindClean) {
		v, _ := x.state.get(kindClean, k)
		var st cleanState
		if len(k) == 4 && cbor.Unmarshal(v, &st) == nil {
			clean[PartitionID(binary.BigEndian.Uint32([]byte(k)))] = st.To
		}
	}
	for i := range x.ci.Partitions {
		p := &x.ci.Partitions[i]
		if p.Topic == "" {
			continue
		}
		from := int64(0) // what lies below is deleted, or compacted
		if v, ok := x.state.get(kindStart, string((&Partition{id: p.Partition}).startKey())); ok && len(v) == 8 {
			from = int64(binary.BigEndian.Uint64(v))
		}
		from = max(from, clean[p.Partition])
		gaps := x.gaps
		if x.twin != nil {
			gaps = append(gaps[:len(gaps):len(gaps)], lostRange{p.Partition, x.ends[p.Partition], x.twin.next[p.Partition]})
		}
		for _, g := range gaps {
			if g.from = max(g.from, from); g.partition != p.Partition {
				continue
			}
			for _, left := range subtractRows(g, rows) {
				p.Missing = append(p.Missing, OffsetRange{left.from, left.to})
				x.in.problem(x.class, "", 0, "loss", "%s/%d: offsets [%d, %d) are missing and not declared lost: the next start declares them", p.Topic, p.Index, left.from, left.to)
			}
		}
	}
}
