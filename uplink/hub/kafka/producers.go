package kafka

import (
	"context"
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"

	"tailrace/storage"
)

const (
	windowBatches  = 5     // KIP-98: what a broker remembers of a producer
	maxWindows     = 20000 // windows kept; beyond it the longest unused goes
	windowExpiry   = 24 * time.Hour
	idBlock        = 1000 // producer ids made durable at once
	windowPrefix   = "producer/"
	nextIDKey      = "producer-id"
	orderStripes   = 64
	windowMinBytes = 2 + 8 + 1
)

// producers keeps, for every idempotent producer and partition, the sequences
// of its last five batches, so that a batch that is sent again is not stored
// again. The window is durable in the same commit as the batch. What it lacks
// after a restart are the offsets of those batches: a repetition is then
// answered with DUPLICATE_SEQUENCE_NUMBER, which clients count as success.
//
// Two locks, never taken in the other order: the order lock of a producer
// (a stripe, by id) covers check and submission, and is held while Submit
// waits for room; mu covers the maps and is all that the committer's callbacks
// take.
type producers struct {
	store  *storage.Store
	now    func() time.Time
	orders [orderStripes]sync.Mutex

	mu      sync.Mutex
	windows map[windowKey]*window
	evicted bool // some window is on disk only

	ids struct {
		sync.Mutex       // held over the commit of a block
		next, end  int64 // ids [next, end) are ours to give out
	}
}

type windowKey struct {
	id        int64
	partition storage.PartitionID
}

func (k windowKey) String() string {
	return windowPrefix + strconv.FormatInt(k.id, 10) + "/" + strconv.FormatUint(uint64(k.partition), 10)
}

func parseWindowKey(s string) (k windowKey, ok bool) {
	s, ok = strings.CutPrefix(s, windowPrefix)
	a, b, cut := strings.Cut(s, "/")
	id, err1 := strconv.ParseInt(a, 10, 64)
	p, err2 := strconv.ParseUint(b, 10, 32)
	return windowKey{id, storage.PartitionID(p)}, ok && cut && err1 == nil && err2 == nil
}

// window is guarded by producers.mu.
type window struct {
	epoch   int16
	used    int64 // ms
	batches []sequences
	class   string
}

// sequences is one batch: its first and last sequence.
type sequences struct {
	first, last int32
	base        int64 // offset, -1 unknown
	turn        *turn // nil once durable
}

// turn is a batch on its way to the disk.
type turn struct {
	ps    *producers
	k     windowKey
	key   string         // of the durable window
	state []byte         // the window with this batch
	again []*producePart // sent again meanwhile; guarded by producers.mu
}

func newProducers(store *storage.Store, now func() time.Time) *producers {
	ps := &producers{store: store, now: now, windows: make(map[windowKey]*window)}
	store.RangeState(storage.KindGroup, func(key string, value []byte) bool {
		if k, ok := parseWindowKey(key); ok {
			if w := decodeWindow(value); w != nil {
				ps.windows[k] = w
			}
		}
		return true
	})
	return ps
}

// order takes the order locks of the batches' producers, in ascending order.
func (ps *producers) order(parts []*producePart) (unlock func()) {
	var held [orderStripes]bool
	for _, p := range parts {
		if id := p.batch.ProducerID(); id >= 0 {
			held[id%orderStripes] = true
		}
	}
	for i, h := range held {
		if h {
			ps.orders[i].Lock()
		}
	}
	return func() {
		for i, h := range held {
			if h {
				ps.orders[i].Unlock()
			}
		}
	}
}

// begin places a batch in its producer's order. It returns a turn when the
// batch is to be stored; an error when it is out of place; neither when the
// part has been, or will be, answered with the outcome of its first sending.
func (ps *producers) begin(p *producePart) (*turn, *kerr.Error) {
	b := p.batch
	k := windowKey{b.ProducerID(), p.p.ID()}
	first, epoch := b.BaseSequence(), b.ProducerEpoch()
	last := sequenceAfter(first, b.Count()-1)
	ps.mu.Lock()
	defer ps.mu.Unlock()
	ps.recall(k)
	w := ps.windows[k]
	switch {
	case w == nil:
		// Nothing known: any sequence begins a window (KIP-360).
		ps.makeRoom()
		w = &window{epoch: epoch}
		ps.windows[k] = w
	case epoch < w.epoch:
		return nil, kerr.InvalidProducerEpoch
	case epoch > w.epoch:
		if first != 0 {
			return nil, kerr.OutOfOrderSequenceNumber
		}
		w.epoch, w.batches = epoch, nil
	default:
		for i := range w.batches {
			if s := &w.batches[i]; s.first == first && s.last == last {
				return nil, ps.repeat(p, s)
			}
		}
		if n := len(w.batches); n > 0 && first != sequenceAfter(w.batches[n-1].last, 1) {
			return nil, kerr.OutOfOrderSequenceNumber
		}
	}
	t := &turn{ps: ps, k: k, key: k.String()}
	if len(w.batches) == windowBatches {
		w.batches = append(w.batches[:0], w.batches[1:]...)
	}
	w.batches = append(w.batches, sequences{first: first, last: last, base: -1, turn: t})
	w.used = ps.now().UnixMilli()
	w.class = p.p.Topic().Config().Class
	t.state = w.encode()
	return t, nil
}

// repeat answers a batch that was sent before. ps.mu is held.
func (ps *producers) repeat(p *producePart, s *sequences) *kerr.Error {
	switch {
	case s.turn != nil:
		s.turn.again = append(s.turn.again, p)
	case s.base >= 0:
		p.succeed(s.base)
	default:
		return kerr.DuplicateSequenceNumber
	}
	return nil
}

// succeed records that the batch is durable at base.
func (t *turn) succeed(base int64) {
	for _, p := range t.end(base, true) {
		p.succeed(base)
	}
}

// fail takes the batch back. The window falls back to what is durable.
func (t *turn) fail(e *kerr.Error) {
	for _, p := range t.end(-1, false) {
		p.fail(e, "")
	}
}

func (t *turn) end(base int64, ok bool) []*producePart {
	t.ps.mu.Lock()
	defer t.ps.mu.Unlock()
	if w := t.ps.windows[t.k]; w != nil {
		for i := range w.batches {
			if w.batches[i].turn != t {
				continue
			}
			if ok {
				w.batches[i].base, w.batches[i].turn = base, nil
			} else {
				w.batches = append(w.batches[:i], w.batches[i+1:]...)
			}
			break
		}
		if len(w.batches) == 0 {
			delete(t.ps.windows, t.k)
		}
	}
	again := t.again
	t.again = nil
	return again
}

// makeRoom drops the window that was unused for longest when there are too
// many. Its durable form stays until expire. ps.mu is held.
func (ps *producers) makeRoom() {
	if len(ps.windows) < maxWindows {
		return
	}
	// A sample is enough: map order is random, and the oldest of 64 is old.
	var oldest windowKey
	var found *window
	n := 0
	for k, w := range ps.windows {
		if found == nil || w.used < found.used {
			oldest, found = k, w
		}
		if n++; n == 64 {
			break
		}
	}
	delete(ps.windows, oldest)
	ps.evicted = true
}

// recall takes a window that memory had no room for from the disk. ps.mu is
// held; it is given up meanwhile.
func (ps *producers) recall(k windowKey) {
	if ps.windows[k] != nil || !ps.evicted {
		return
	}
	ps.mu.Unlock()
	v, ok := ps.store.State(storage.KindGroup, k.String())
	ps.mu.Lock()
	if w := decodeWindow(v); ok && w != nil && ps.windows[k] == nil {
		ps.makeRoom()
		ps.windows[k] = w
	}
}

// expire forgets windows that were not used for a day, in memory and on disk.
func (ps *producers) expire(ctx context.Context) error {
	limit := ps.now().Add(-windowExpiry).UnixMilli()
	gone := make(map[string][]string) // by class
	ps.store.RangeState(storage.KindGroup, func(key string, value []byte) bool {
		if k, ok := parseWindowKey(key); ok {
			w := decodeWindow(value)
			ps.mu.Lock()
			live := ps.windows[k]
			if w == nil || live == nil && w.used < limit || live != nil && live.used < limit {
				class := ""
				if w != nil {
					class = w.class
				}
				gone[class] = append(gone[class], key)
				delete(ps.windows, k)
			}
			ps.mu.Unlock()
		}
		return true
	})
	for class, keys := range gone {
		a := ps.store.NewAppend(class)
		for _, k := range keys {
			a.Set(storage.KindGroup, k, nil)
		}
		if err := ps.store.Commit(ctx, a); err != nil {
			return fmt.Errorf("forget %d producers: %w", len(keys), err)
		}
	}
	return nil
}

// newID gives out a producer id that no life of this store has given out.
func (ps *producers) newID(ctx context.Context) (int64, error) {
	ps.ids.Lock()
	defer ps.ids.Unlock()
	if ps.ids.next == ps.ids.end {
		next := int64(1)
		if v, ok := ps.store.State(storage.KindGroup, nextIDKey); ok && len(v) == 8 {
			next = int64(binary.BigEndian.Uint64(v))
		}
		a := ps.store.NewAppend("")
		a.Set(storage.KindGroup, nextIDKey, binary.BigEndian.AppendUint64(nil, uint64(next+idBlock)))
		if err := ps.store.Commit(ctx, a); err != nil {
			return 0, fmt.Errorf("reserve producer ids: %w", err)
		}
		ps.ids.next, ps.ids.end = next, next+idBlock
	}
	id := ps.ids.next
	ps.ids.next++
	return id, nil
}

// The durable form of a window (StateKind KindGroup, key
// "producer/<id>/<partition id>"), big endian:
//
//	off size field
//	  0    2 epoch
//	  2    8 last use, ms since 1970
//	 10    1 n, number of batches, at most 5
//	 11  8*n first and last sequence of each, oldest first, 4 bytes each
//	 ..      storage class
func (w *window) encode() []byte {
	b := binary.BigEndian.AppendUint16(make([]byte, 0, windowMinBytes+8*len(w.batches)+len(w.class)), uint16(w.epoch))
	b = binary.BigEndian.AppendUint64(b, uint64(w.used))
	b = append(b, byte(len(w.batches)))
	for _, s := range w.batches {
		b = binary.BigEndian.AppendUint32(b, uint32(s.first))
		b = binary.BigEndian.AppendUint32(b, uint32(s.last))
	}
	return append(b, w.class...)
}

// decodeWindow returns nil for bytes that no encode made.
func decodeWindow(b []byte) *window {
	if len(b) < windowMinBytes {
		return nil
	}
	w := &window{epoch: int16(binary.BigEndian.Uint16(b)), used: int64(binary.BigEndian.Uint64(b[2:]))}
	n := int(b[10])
	if b = b[windowMinBytes:]; n > windowBatches || len(b) < 8*n {
		return nil
	}
	for range n {
		w.batches = append(w.batches, sequences{first: int32(binary.BigEndian.Uint32(b)), last: int32(binary.BigEndian.Uint32(b[4:])), base: -1})
		b = b[8:]
	}
	w.class = string(b)
	return w
}
