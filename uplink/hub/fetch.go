package hub

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"tailrace/storage"
	"tailrace/uplink/hub/internal/saved"
	"tailrace/uplink/link"
	"tailrace/uplink/wire"
)

// A fetch is an operator's wish for a span of time of a topic that stays at its node
// (on demand). It is durable until it is done or cancelled: a node that is away answers
// when it is back. The way of one:
//
//	queued ──▶ delivering ──▶ done
//	  │            │
//	  └────────────┴──▶ cancelled, failed
//
// The node says once where the records lie (wire.Locate); from then on the fetch is a set
// of ranges, and what it lacks is a matter of the hub's progress, as with every record:
// asked for anew in each session, stored once. Ranges that the node has no longer come
// as gaps and stand in the loss ledger.
const (
	fetchQueued     = "queued"     // the node was not asked yet
	fetchDelivering = "delivering" // its ranges are known and asked for
	fetchDone       = "done"
	fetchCancelled  = "cancelled"
	fetchFailed     = "failed"
)

const (
	fetchPrefix   = "fetch/"               // followed by the id in the key of a KindRegistry entry
	maxFetches    = 1000                   // not over
	maxFetchDone  = 200                    // over, kept for people
	fetchTick     = 10 * time.Second       // looks at what no event has told of
	fetchPause    = 200 * time.Millisecond // between two looks: every append is an event
	locateTimeout = 5 * time.Minute
)

// savedFetch is the value of a KindRegistry entry "fetch/<id>". On disk for good.
type savedFetch struct {
	ID      string                 `cbor:"1,keyasint"`
	Node    string                 `cbor:"2,keyasint"`
	Topic   string                 `cbor:"3,keyasint"`
	From    int64                  `cbor:"4,keyasint"` // ms since 1970
	To      int64                  `cbor:"5,keyasint"`
	State   string                 `cbor:"6,keyasint"`
	Note    string                 `cbor:"7,keyasint,omitempty"`
	Created int64                  `cbor:"8,keyasint"`
	Ended   int64                  `cbor:"9,keyasint,omitempty"`
	Parts   []wire.PartitionRanges `cbor:"10,keyasint,omitempty"` // Partition is the index in the topic
	Oldest  int64                  `cbor:"11,keyasint,omitempty"` // time of the oldest record that the node had
	Lost    int64                  `cbor:"12,keyasint,omitempty"` // of the ranges, when it ended
}

func (f *savedFetch) over() bool {
	return f.State == fetchDone || f.State == fetchCancelled || f.State == fetchFailed
}

// fetch is one in memory.
type fetch struct {
	savedFetch
	session wire.ID // in which its ranges were asked for
	busy    bool    // the node is being asked where they are
}

// fetches is the table of them. One goroutine moves them on.
type fetches struct {
	h    *Hub
	wake chan struct{} // capacity 1
	open atomic.Int64  // not over

	mu  sync.Mutex // guards the following
	all map[string]*fetch
}

func newFetches(h *Hub) (*fetches, error) {
	x := &fetches{h: h, wake: make(chan struct{}, 1), all: map[string]*fetch{}}
	var err error
	h.store.RangeState(storage.KindRegistry, func(key string, value []byte) bool {
		if _, ok := cutPrefix(key, fetchPrefix); !ok {
			return true
		}
		err = x.load(key, value)
		return err == nil
	})
	return x, err
}

// load takes over a fetch as it was saved.
func (x *fetches) load(key string, value []byte) error {
	f := &fetch{}
	if err := saved.Decode(value, &f.savedFetch); err != nil {
		return fmt.Errorf("registry entry %q: %w", key, err)
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if old := x.all[f.ID]; old != nil && !old.over() {
		x.open.Add(-1)
	}
	if x.all[f.ID] = f; !f.over() {
		x.open.Add(1)
	}
	return nil
}

// drop forgets the fetches of nodes that are served elsewhere.
func (x *fetches) drop(gone func(node string) bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for id, f := range x.all {
		if gone(f.Node) {
			if !f.over() {
				x.open.Add(-1)
			}
			delete(x.all, id)
		}
	}
}

// poke says that something may have moved. It never blocks, and costs nothing while
// there is no fetch.
func (x *fetches) poke() {
	if x.open.Load() == 0 {
		return
	}
	select {
	case x.wake <- struct{}{}:
	default:
	}
}

// run moves fetches on until ctx ends.
func (x *fetches) run(ctx context.Context) {
	t := time.NewTicker(fetchTick)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-x.wake:
		case <-t.C:
		}
		x.mu.Lock()
		var open []*fetch
		for _, f := range x.all {
			if !f.over() {
				open = append(open, f)
			}
		}
		x.mu.Unlock()
		slices.SortFunc(open, func(a, b *fetch) int { return cmp.Compare(a.Created, b.Created) })
		for _, f := range open {
			x.step(ctx, f)
		}
		pause := time.NewTimer(fetchPause)
		select {
		case <-ctx.Done():
		case <-pause.C:
		}
		pause.Stop()
	}
}

// session is the node's session, zero without one.
func (x *fetches) session(node string) wire.ID {
	x.h.nodes.mu.Lock()
	defer x.h.nodes.mu.Unlock()
	if n := x.h.nodes.nodes[node]; n != nil && n.sessions > 0 {
		return n.info.Session
	}
	return wire.ID{}
}

// step does what can be done for one fetch now.
func (x *fetches) step(ctx context.Context, f *fetch) {
	session := x.session(f.Node)
	x.mu.Lock()
	state, busy, asked, parts := f.State, f.busy, f.session == session, f.Parts
	if state == fetchQueued && !busy && !session.IsZero() {
		f.busy = true
		x.mu.Unlock()
		go x.locate(ctx, f)
		return
	}
	x.mu.Unlock()
	if state != fetchDelivering {
		return
	}
	open, lost := x.missing(f, parts)
	if len(open) == 0 {
		x.end(f, fetchDone, "", lost)
		return
	}
	if session.IsZero() || asked || x.h.links == nil {
		return
	}
	for _, p := range open {
		err := x.h.links.Want(f.Node, f.Topic, int(p.Partition), p.Epoch, p.Ranges, wire.LaneBackfill, 0)
		if errors.Is(err, link.ErrNotConnected) {
			return
		}
		if err != nil {
			x.end(f, fetchFailed, err.Error(), lost)
			return
		}
	}
	x.mu.Lock()
	f.session = session
	x.mu.Unlock()
}

// missing is what the hub lacks of a fetch's ranges, and how much of them is declared lost.
func (x *fetches) missing(f *fetch, parts []wire.PartitionRanges) (open []wire.PartitionRanges, lost int64) {
	progress, err := x.h.central.Progress(context.Background(), f.Node)
	if err != nil {
		return parts, 0
	}
	rows := x.h.central.Losses(f.Node, f.Topic, maxLossRows)
	for _, p := range parts {
		want := p.Ranges.Clone()
		for _, have := range progress {
			if have.Topic == f.Topic && have.Partition == int(p.Partition) && have.Epoch == p.Epoch {
				want.RemoveSet(have.Held)
			}
		}
		if len(want) > 0 {
			open = append(open, wire.PartitionRanges{Partition: p.Partition, Epoch: p.Epoch, Ranges: want})
		}
		for _, r := range rows {
			if r.Partition == int(p.Partition) && r.Epoch == p.Epoch.String() {
				lost += p.Ranges.Within(r.From, r.To).Count()
			}
		}
	}
	return open, lost
}

// locate asks the node where the records are.
func (x *fetches) locate(ctx context.Context, f *fetch) {
	defer x.poke()
	// Without a deadline of its own, which the node would compare with its clock.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	timer := time.AfterFunc(locateTimeout, cancel)
	defer timer.Stop()
	args, err := wire.EncodeLocate(wire.Locate{Topic: f.Topic, From: f.From, To: f.To})
	var res wire.CommandResult
	if err == nil {
		res, err = x.h.links.Command(ctx, f.Node, wire.CommandLocate, args)
	}
	var found wire.Located
	switch {
	case err != nil: // it went, or is slow: asked again
		x.mu.Lock()
		f.busy = false
		x.mu.Unlock()
		return
	case res.Error != "":
		err = errors.New("the node says: " + res.Error)
	default:
		found, err = wire.DecodeLocated(res.Body)
	}
	if err == nil {
		err = x.accept(f, found)
	}
	x.mu.Lock()
	f.busy = false
	x.mu.Unlock()
	if err != nil {
		x.end(f, fetchFailed, err.Error(), 0)
	}
}

// accept takes the node's answer: its ranges are the fetch from now on.
func (x *fetches) accept(f *fetch, found wire.Located) error {
	index := x.partitions(f.Node, f.Topic)
	held := 0
	progress, err := x.h.central.Progress(context.Background(), f.Node)
	if err != nil {
		return nil // asked again
	}
	for _, p := range progress {
		if p.Topic == f.Topic {
			held = max(held, len(p.Held))
		}
	}
	pieces := 0
	for i := range found.Ranges {
		r := &found.Ranges[i]
		k, ok := index[r.Partition]
		if !ok {
			return fmt.Errorf("the node answers for a partition %d that it has not told of", r.Partition)
		}
		r.Partition = uint32(k)
		pieces += len(r.Ranges)
	}
	if held+pieces > maxHeldRanges-64 {
		return fmt.Errorf("the topic is here in %d pieces already, and this would be %d more, of at most %d: fetch one longer span that joins them", held, pieces, maxHeldRanges)
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if f.over() { // cancelled meanwhile
		return nil
	}
	f.State, f.Parts, f.Oldest = fetchDelivering, found.Ranges, found.Oldest
	x.save(&f.savedFetch, nil)
	return nil
}

// partitions maps the numbers of a node's inventory to the indices of a topic.
func (x *fetches) partitions(node, topic string) map[uint32]int {
	x.h.nodes.mu.Lock()
	defer x.h.nodes.mu.Unlock()
	out := map[uint32]int{}
	if n := x.h.nodes.nodes[node]; n != nil {
		for _, p := range n.saved.Partitions {
			if p.Topic == topic {
				out[p.ID] = p.Partition
			}
		}
	}
	return out
}

// end is the last change of a fetch.
func (x *fetches) end(f *fetch, state, note string, lost int64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if f.over() {
		return
	}
	x.open.Add(-1)
	f.State, f.Note, f.Lost, f.Ended = state, truncate(note, 400), lost, x.h.cfg.Now().UnixMilli()
	x.save(&f.savedFetch, nil)
	x.h.log.Info("fetch ended", "fetch", f.ID, "node", f.Node, "topic", f.Topic, "state", state, "note", note, "lost", lost)
	x.forget()
}

// forget drops the oldest of those that are over. Called with mu held.
func (x *fetches) forget() {
	var over []*fetch
	for _, f := range x.all {
		if f.over() {
			over = append(over, f)
		}
	}
	slices.SortFunc(over, func(a, b *fetch) int { return cmp.Compare(a.Ended, b.Ended) })
	for len(over) > maxFetchDone {
		delete(x.all, over[0].ID)
		x.h.central.saveEntry(over[0].Node, fetchPrefix+over[0].ID, nil, nil)
		over = over[1:]
	}
}

// save writes a fetch; done, when not nil, hears when it is durable.
func (x *fetches) save(f *savedFetch, done func(error)) {
	x.h.central.saveEntry(f.Node, fetchPrefix+f.ID, saved.Encode(*f), done)
}

// request makes a fetch; it is durable on return.
func (x *fetches) request(ctx context.Context, node, topic string, from, to int64) (FetchInfo, error) {
	x.mu.Lock()
	open := 0
	for _, f := range x.all {
		if !f.over() {
			open++
		}
	}
	if open >= maxFetches {
		x.mu.Unlock()
		return FetchInfo{}, fmt.Errorf("%d fetches wait already, the limit", maxFetches)
	}
	var id [6]byte
	rand.Read(id[:])
	f := &fetch{savedFetch: savedFetch{ID: hex.EncodeToString(id[:]), Node: node, Topic: topic, From: from, To: to, State: fetchQueued, Created: x.h.cfg.Now().UnixMilli()}}
	saved := make(chan error, 1)
	x.save(&f.savedFetch, func(err error) { saved <- err })
	x.mu.Unlock()
	select {
	case err := <-saved:
		if err != nil {
			return FetchInfo{}, err
		}
	case <-ctx.Done():
		return FetchInfo{}, ctx.Err()
	}
	x.mu.Lock()
	x.all[f.ID] = f
	x.open.Add(1)
	x.mu.Unlock()
	x.poke()
	return x.info(f), nil
}

// cancel ends a fetch; false when there is none of that id.
func (x *fetches) cancel(id string) (FetchInfo, bool) {
	x.mu.Lock()
	f := x.all[id]
	x.mu.Unlock()
	if f == nil {
		return FetchInfo{}, false
	}
	_, lost := x.missing(f, f.Parts)
	x.end(f, fetchCancelled, "", lost)
	if x.h.links != nil && x.h.links.Withdraw(f.Node, f.Topic) == nil {
		x.mu.Lock()
		for _, o := range x.all { // others of that topic ask anew
			if o.Node == f.Node && o.Topic == f.Topic {
				o.session = wire.ID{}
			}
		}
		x.mu.Unlock()
		x.poke()
	}
	return x.info(f), true
}

// list is every fetch, the newest first.
func (x *fetches) list(node string) []FetchInfo {
	x.mu.Lock()
	all := make([]*fetch, 0, len(x.all))
	for _, f := range x.all {
		if node == "" || f.Node == node {
			all = append(all, f)
		}
	}
	x.mu.Unlock()
	slices.SortFunc(all, func(a, b *fetch) int { return cmp.Or(cmp.Compare(b.Created, a.Created), cmp.Compare(a.ID, b.ID)) })
	out := make([]FetchInfo, 0, len(all))
	for _, f := range all {
		out = append(out, x.info(f))
	}
	return out
}

// FetchInfo is a fetch in the API.
type FetchInfo struct {
	ID      string `json:"id"`
	Node    string `json:"node"`
	Topic   string `json:"topic"`
	From    string `json:"from"`
	To      string `json:"to"` // exclusive
	State   string `json:"state"`
	Note    string `json:"note,omitempty"`
	Created string `json:"created"`
	Ended   string `json:"ended,omitempty"`
	Online  bool   `json:"node_connected"`
	Oldest  string `json:"node_has_from,omitempty"` // time of the oldest record that the node had
	Wanted  int64  `json:"wanted_offsets"`          // in whole batches, what is gone included
	Stored  int64  `json:"stored_records"`          // of them here, whether fetched now or before
	Lost    int64  `json:"lost_records"`            // of them gone at the node, and in the loss ledger
}

func (x *fetches) info(f *fetch) FetchInfo {
	x.mu.Lock()
	s := f.savedFetch
	x.mu.Unlock()
	out := FetchInfo{ID: s.ID, Node: s.Node, Topic: s.Topic, From: stamp(s.From), To: stamp(s.To), State: s.State, Note: s.Note, Created: stamp(s.Created), Ended: stamp(s.Ended),
		Online: !x.session(s.Node).IsZero(), Oldest: stamp(s.Oldest), Lost: s.Lost}
	missing, lost := x.missing(f, s.Parts)
	if !s.over() {
		out.Lost = lost
	}
	var lacking int64
	for _, p := range missing {
		lacking += p.Ranges.Count()
	}
	for _, p := range s.Parts {
		out.Wanted += p.Ranges.Count()
	}
	out.Stored = max(0, out.Wanted-lacking-out.Lost)
	return out
}
