package relay

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"tailrace/storage/record"
	"tailrace/uplink"
	"tailrace/uplink/wire"
)

// Keys of the progress topic: a kind, then what it is of. Nothing else is in the topic.
const (
	keyProgress = "p/" // node/epoch/topic/partition: value
	keyEpochs   = "e/" // node: []wire.EpochInfo
	keyNote     = "n/" // node: what the hub says of it
	keyEntry    = "x/" // node/key: what else the hub keeps of it
)

// originKey names an origin as keys do. Names hold no "/".
type originKey struct {
	node      string
	epoch     wire.ID
	topic     string
	partition int
}

func keyOf(o wire.Origin) originKey { return originKey{o.Node, o.Epoch, o.Topic, o.Partition} }

func (k originKey) origin() wire.Origin {
	return wire.Origin{Node: k.node, Epoch: k.epoch, Topic: k.topic, Partition: k.partition}
}

func (k originKey) String() string {
	return k.node + "/" + k.epoch.String() + "/" + k.topic + "/" + strconv.Itoa(k.partition)
}

func parseOriginKey(s string) (k originKey, err error) {
	f := strings.Split(s, "/")
	if len(f) != 4 || len(f[1]) != 2*len(k.epoch) {
		return k, errors.New("want node/epoch/topic/partition")
	}
	k.node, k.topic = f[0], f[2]
	for i := range k.epoch {
		n, err := strconv.ParseUint(f[1][2*i:2*i+2], 16, 8)
		if err != nil {
			return k, err
		}
		k.epoch[i] = byte(n)
	}
	k.partition, err = strconv.Atoi(f[3])
	return k, err
}

// value is the progress of an origin. It is in the cluster for good: fields are added,
// never renumbered. 1 to 7 are those of the embedded store.
type value struct {
	Held       uplink.RangeSet `cbor:"1,keyasint"`
	LastOffset int64           `cbor:"2,keyasint"` // base offset of the highest batch stored, as the node stored it; -1 = none
	LastCRC    uint32          `cbor:"3,keyasint"`
	MaxTime    int64           `cbor:"4,keyasint,omitempty"`
	Stored     int64           `cbor:"5,keyasint,omitempty"`
	BackNext   int64           `cbor:"6,keyasint,omitempty"` // one past the last offset stored in the companion topic
	Backfilled int64           `cbor:"7,keyasint,omitempty"` // of Stored, in the companion topic
	Partition  int32           `cbor:"8,keyasint"`           // of the topic in the cluster
}

// Order is what a node's partition demands of the ranges that come.
type Order int

const (
	Strict Order = iota // no hole in front of a record
	Two                 // holes: they are filled by way of the companion topic
	Any                 // ranges come as they are asked for
)

type partKey struct {
	node, topic string
	partition   int
}

// stream is the state of one origin in one generation. Guarded by the generation's mu.
type stream struct {
	key  originKey
	base int64 // the first offset of the epoch in this partition
	at   int32 // partition of the topic in the cluster

	val  value           // committed
	next value           // with what the transaction under way stores; meaningful while it is built
	held uplink.RangeSet // committed, never changed in place: handed out by reference
	pend uplink.RangeSet // held and what waits
	top  int64           // nothing below may be stored in the topic: what is higher is, or waits
	back int64           // the same of the companion
	// halted: something was not stored, so nothing behind it is until Resume.
	halted error
}

// reset forgets what waits.
func (st *stream) reset() {
	st.pend = st.held.Clone()
	st.top, st.back = st.val.LastOffset+1, st.val.BackNext
}

// OrderError refuses records that would leave a hole in front of them.
type OrderError struct {
	Origin        wire.Origin
	Expected, Got int64
}

func (e *OrderError) Error() string {
	return fmt.Sprintf("%s: records from offset %d, but offset %d is neither held nor declared lost", e.Origin, e.Got, e.Expected)
}

// TopicError refuses a topic.
type TopicError struct{ Topic, Reason string }

func (e *TopicError) Error() string { return fmt.Sprintf("topic %q: %s", e.Topic, e.Reason) }

// maxHeldRanges bounds the progress of one origin.
const maxHeldRanges = 4096

// place says where a piece is stored, and refuses what would leave a hole.
func (st *stream) place(order Order, pend uplink.RangeSet, top, back, from int64, asked bool) (backfill bool, err error) {
	if st.halted != nil && order != Any {
		return false, fmt.Errorf("%s: what came before offset %d was not stored: %w", st.key.origin(), from, st.halted)
	}
	if order == Any {
		return false, nil
	}
	backfill = asked || from < top
	if backfill && from < back {
		return backfill, &OrderError{st.key.origin(), back, from}
	}
	if order == Strict && !pend.Covers(st.base, from) {
		return backfill, &OrderError{st.key.origin(), pend.Missing(st.base, from)[0].From, from}
	}
	return backfill, nil
}

// errCompanion asks for the companion topic, which a piece goes to; nothing has changed.
var errCompanion = errors.New("the companion topic is needed")

// entries are what is new of list, as they will be stored; pend, top and back grow by it.
// ready says whether the companion topic is there.
func (st *stream) entries(order Order, list []record.Batch, asked, ready bool) (add []*entry, err error) {
	pend, top, back := st.pend, st.top, st.back
	grown := false
	for _, b := range list {
		from, to := b.BaseOffset(), b.NextOffset()
		for _, r := range pend.Missing(from, to) {
			companion, err := st.place(order, pend, top, back, r.From, asked)
			if err != nil {
				return nil, err
			}
			if companion && !ready {
				return nil, errCompanion
			}
			piece := b
			if r.From != from || r.To != to { // the batch straddles what is held
				cut, err := record.Split(nil, b, r.From, r.To)
				if err != nil {
					return nil, fmt.Errorf("%s: %w", st.key.origin(), err)
				}
				piece = record.Batch(cut)
			}
			if !grown {
				pend, grown = pend.Clone(), true
			}
			pend.Add(r.From, r.To)
			if companion {
				back = r.To
			} else {
				top = max(top, r.To)
			}
			add = append(add, &entry{st: st, batch: piece, back: companion, bytes: len(piece)})
		}
	}
	if len(pend) > maxHeldRanges {
		return nil, fmt.Errorf("%s: more than %d separate ranges", st.key.origin(), maxHeldRanges)
	}
	st.pend, st.top, st.back = pend, top, back
	return add, nil
}

// entry is what waits for a transaction: a batch, a range declared lost, or a key of the
// progress topic.
type entry struct {
	st    *stream
	batch record.Batch // offsets as at the node
	back  bool         // goes to the companion topic
	gap   *Loss
	key   string // with value: stands for itself
	value []byte
	bytes int

	err    error // why it was not stored; the transaction went on without it
	purged bool  // its stream's failure has been told
	dead   []deadPiece
}

// deadPiece is a batch, or a part of one, that the cluster refused: it goes to the
// dead-letter topic and is declared lost.
type deadPiece struct {
	batch record.Batch // offsets as at the node
	err   error
	loss  *Loss
}

// waiter is one call: it is done when the first after entries are committed.
type waiter struct {
	st    *stream // nil for keys
	after uint64
	bytes int64
	at    time.Time // when it came
	done  func(held uplink.RangeSet, err error)
}

// Loss is a row of the loss ledger.
type Loss struct {
	Origin           wire.Origin
	Range            uplink.Range
	Gap              wire.Gap
	CentralTopic     string
	CentralPartition int
	DeclaredAt       int64 // ms since 1970
}
