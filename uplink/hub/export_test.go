package hub

import (
	"context"
	"math"
	"math/rand/v2"

	"tailrace/storage/record"
	"tailrace/uplink/hub/internal/saved"
	"tailrace/uplink/link"
	"tailrace/uplink/wire"
)

// Decide exposes the fencing rule to tests: why a node is fenced ("" = it is
// not), and the epochs adopted.
func Decide(known, named []wire.EpochInfo, live, accept bool) (string, []wire.EpochInfo) {
	v := decide(known, named, live, accept)
	return v.reason, v.adopt
}

// RolledBack exposes the check for a log that is an older state of itself.
func RolledBack(inv wire.Inventory, progress []Progress) string { return rolledBack(inv, progress) }

// MetricNames are all names that /metrics may show of the hub itself.
func MetricNames() []string {
	var out []string
	for _, f := range families {
		out = append(out, f.name)
	}
	return out
}

// SinkOf is the hub as the link sees it.
func SinkOf(h *Hub) link.Sink { return sink{h} }

// SetLiveFirst and SetInOrder are what a plan says of a node's topic.
func SetLiveFirst(e *Embedded, node, topic string) { e.setOrder(assignKey{node, topic, 0}, orderTwo) }
func SetInOrder(e *Embedded, node, topic string)   { e.setOrder(assignKey{node, topic, 0}, orderStrict) }

// Resume is the part of Hello that lets a node's streams go on.
func Resume(e *Embedded, node string) { e.resume(node) }

// CentralOf is the hub's store of records.
func CentralOf(h *Hub) *Embedded { return h.Central() }

// Regain restores the progress of an origin that is forgotten before.
func Regain(e *Embedded, o wire.Origin) error {
	st := e.streams[streamKey{o.Node, o.Epoch, o.Topic, o.Partition}]
	st.mu.Lock()
	st.prog, st.held, st.pend = progressValue{LastOffset: -1}, nil, nil
	st.mu.Unlock()
	return e.regain(context.Background())
}

// OfferedBytes is how much the account of devices of a hub on a cluster keeps of batches that it has no time for.
func OfferedBytes(size, batches int) (n int) {
	d := &deviceTracker{offered: make(chan deviceBatch, maxOffered)}
	b := make(record.Batch, size)
	for range batches {
		d.offer("n1", b)
	}
	for len(d.offered) > 0 {
		n += len((<-d.offered).batch)
	}
	return n
}

// ProgressForms are one random progress of an origin as it is written, and as CBOR's library writes it.
func ProgressForms(r *rand.Rand) (own, library []byte) {
	number := func() int64 { return int64(r.Uint64()>>1) >> r.IntN(63) * int64(r.IntN(2)) }
	v := progressValue{LastOffset: number() - 1, LastCRC: uint32(number()), MaxTime: number(), Stored: number(), BackNext: number(), Backfilled: number()}
	if r.IntN(4) == 0 {
		v.MaxTime = -number()
	}
	at := number() >> 8
	for range r.IntN(30) {
		to := at + 1 + number()>>8
		v.Held.Add(at, to)
		if at = to + 1 + number()>>8; at < 0 || at > math.MaxInt64/4 {
			break
		}
	}
	return v.encode([]byte("before")), append([]byte("before"), saved.Encode(v)...)
}
