package hub

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"

	"tailrace/storage/storehttp"
	"tailrace/uplink"
	"tailrace/uplink/bundle"
	"tailrace/uplink/wire"
)

// bundleWindow is how many appends of a bundle may wait for the disk at once.
const bundleWindow = 8

// BundleResult says what became of a bundle.
type BundleResult struct {
	Bundle     string             `json:"bundle"`
	Node       string             `json:"node"`
	Created    string             `json:"created"` // by the node's clock
	Complete   bool               `json:"complete"`
	Problem    string             `json:"problem,omitempty"` // why it is not
	Records    int64              `json:"records"`           // stored now
	Held       int64              `json:"held"`              // offsets that were here before
	Lost       int64              `json:"lost"`              // offsets declared lost now
	Partitions []BundlePartResult `json:"partitions"`
}

// BundlePartResult is one partition of a bundle.
type BundlePartResult struct {
	Topic     string `json:"topic"`
	Partition int    `json:"partition"`
	From      int64  `json:"from"`
	To        int64  `json:"to"`
	Records   int64  `json:"records"`
	Held      int64  `json:"held"`
	Lost      int64  `json:"lost"`
	Refused   string `json:"refused,omitempty"` // why nothing more of it was taken
}

// serveBundle stores a bundle (package bundle) as it comes. Whatever was verified is
// stored, also of one that is cut off: bringing it again stores the rest.
func (h *Hub) serveBundle(w http.ResponseWriter, r *http.Request) {
	if !h.bundles.TryLock() {
		storehttp.WriteError(w, &storehttp.Error{Status: http.StatusConflict, Code: "busy", Message: "another bundle is being imported", Hint: "try again when it is done"})
		return
	}
	defer h.bundles.Unlock()
	res, err := h.importBundle(r.Context(), r.Body)
	var refused *storehttp.Error
	switch {
	case errors.As(err, &refused):
		storehttp.WriteError(w, refused)
	case err != nil:
		storehttp.WriteError(w, &storehttp.Error{Status: http.StatusServiceUnavailable, Code: "not_stored", Message: err.Error(), Hint: "bring the bundle again: what is stored is not stored twice"})
	default:
		reply(w, res)
	}
}

func (h *Hub) importBundle(ctx context.Context, body io.Reader) (*BundleResult, error) {
	pool, err := loadPool(h.cfg.TLS.CA)
	if err != nil {
		return nil, err
	}
	br, err := bundle.NewReader(body, bundle.Trust{Roots: pool, Now: h.cfg.Now()})
	if err != nil {
		return nil, &storehttp.Error{Status: http.StatusBadRequest, Code: "bad_bundle", Message: err.Error()}
	}
	defer br.Close()
	head := &br.Header
	im := &bundleImport{h: h, ctx: ctx, node: head.Node, parts: map[uint32]*bundlePart{}, slots: make(chan struct{}, bundleWindow),
		res: &BundleResult{Bundle: head.ID.String(), Node: head.Node, Created: stamp(head.Created.UnixNano / 1e6), Partitions: []BundlePartResult{}}}
	if err := im.admit(head); err != nil {
		return nil, err
	}
	for err == nil {
		var it bundle.Item
		if it, err = br.Next(); err == nil {
			err = im.item(it)
		}
	}
	im.wait()
	switch {
	case im.failed() != nil:
		return nil, im.failed()
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case err == io.EOF:
		im.res.Complete = true
	default: // cut off or damaged: what was good is stored
		im.res.Problem = err.Error()
	}
	im.finish()
	return im.res, nil
}

// bundleImport is one import. Items come from one goroutine; outcomes from the store's.
type bundleImport struct {
	h     *Hub
	ctx   context.Context
	node  string
	parts map[uint32]*bundlePart
	order []uint32
	slots chan struct{} // appends under way
	res   *BundleResult

	mu  sync.Mutex // guards err and the results of parts
	err error      // of the store: nothing more is taken
}

type bundlePart struct {
	BundlePartResult
	held map[wire.ID]uplink.RangeSet // by epoch, with what this import has stored
	last map[wire.ID]*wire.Held
}

// admit decides whether the bundle's log is the one that is held here, or goes on
// from it. Unlike a Hello, a bundle may be older than what the link has brought since.
func (im *bundleImport) admit(head *bundle.Header) error {
	h, refuse := im.h, func(why string) error {
		return &storehttp.Error{Status: http.StatusConflict, Code: "fenced", Message: "node " + head.Node + ": " + why,
			Hint: `what to do stands in the README under "Copies of a node"`}
	}
	h.nodes.mu.Lock()
	n := h.nodes.nodes[head.Node]
	fresh := n == nil
	var fenced string
	if n != nil {
		fenced = n.saved.Fenced
	}
	h.nodes.mu.Unlock()
	if fenced != "" {
		return refuse("it is fenced: " + fenced)
	}
	known := h.central.Epochs(head.Node)
	if !slices.ContainsFunc(known, func(e wire.EpochInfo) bool {
		return e.ID == head.Inventory.Epochs[len(head.Inventory.Epochs)-1].ID
	}) {
		v := decide(known, head.Inventory.Epochs, true, false)
		if v.reason != "" {
			return refuse(v.reason)
		}
		if v.adopt != nil {
			if err := h.central.Adopt(im.ctx, head.Node, v.adopt); err != nil {
				return err
			}
		}
	}
	progress, err := h.central.Progress(im.ctx, head.Node)
	if err != nil {
		return err
	}
	for _, p := range head.Parts {
		i := slices.IndexFunc(head.Inventory.Partitions, func(x wire.PartitionInfo) bool { return x.ID == p.Partition })
		info := head.Inventory.Partitions[i] // the reader has checked that it is there
		bp := &bundlePart{held: map[wire.ID]uplink.RangeSet{}, last: map[wire.ID]*wire.Held{}}
		bp.Topic, bp.Partition, bp.From, bp.To = info.Topic, info.Partition, p.From, p.To
		for _, have := range progress {
			if have.Topic == info.Topic && have.Partition == info.Partition {
				bp.held[have.Epoch], bp.last[have.Epoch] = have.Held.Clone(), have.Last
			}
		}
		for _, b := range p.Before {
			id := head.Inventory.Epochs[b.Epoch].ID
			if last := bp.last[id]; last != nil && last.Offset == b.Held.Offset && last.CRC != b.Held.CRC {
				return refuse(fmt.Sprintf("its log is not the one stored here, they differ in %s/%d at offset %d", info.Topic, info.Partition, last.Offset))
			}
		}
		h.central.allowHoles(assignKey{head.Node, info.Topic, info.Partition}, info.Mode == wire.ModeOnDemand)
		im.parts[p.Partition] = bp
		im.order = append(im.order, p.Partition)
	}
	if fresh {
		h.nodes.mu.Lock()
		n := h.nodes.get(head.Node, h.cfg.Now())
		n.saved.Software = truncate(head.Software, 100)
		n.takeInventory(head.Inventory)
		h.nodes.mu.Unlock()
		return h.saveNode(im.ctx, head.Node, true)
	}
	return nil
}

func (im *bundleImport) failed() error {
	im.mu.Lock()
	defer im.mu.Unlock()
	return im.err
}

// item takes one item. Its error ends the import; what is wrong with one partition
// alone refuses the rest of that partition.
func (im *bundleImport) item(it bundle.Item) error {
	if err := im.failed(); err != nil {
		return err
	}
	bp := im.parts[it.Partition.ID]
	im.mu.Lock()
	refused := bp.Refused
	im.mu.Unlock()
	if refused != "" {
		return nil
	}
	o := wire.Origin{Node: im.node, Epoch: it.Epoch.ID, Topic: it.Partition.Topic, Partition: it.Partition.Partition, Lane: wire.LaneBulk}
	if it.Gaps != nil {
		return im.gaps(bp, o, it.Gaps)
	}
	held := bp.held[o.Epoch]
	var fresh, dup int64
	for rest := it.Batches; len(rest) > 0; {
		b, r, err := wire.NextBatch(rest)
		if err != nil {
			return err
		}
		rest = r
		if last := bp.last[o.Epoch]; last != nil && last.Offset == b.Base && last.CRC != b.CRC {
			im.refuse(bp, fmt.Sprintf("the log in the bundle is not the one stored here: they differ at offset %d", b.Base))
			return nil
		}
		n := held.Missing(b.Base, b.Next).Count()
		fresh, dup = fresh+n, dup+b.Next-b.Base-n
		held.Add(b.Base, b.Next)
	}
	bp.held[o.Epoch] = held
	if fresh == 0 {
		im.count(bp, func(p *BundlePartResult) { p.Held += dup })
		return nil
	}
	select {
	case im.slots <- struct{}{}:
	case <-im.ctx.Done():
		return im.ctx.Err()
	}
	im.h.central.Append(im.ctx, o, bytes.Clone(it.Batches), func(_ uplink.RangeSet, err error) {
		defer func() { <-im.slots }()
		if err == nil {
			im.count(bp, func(p *BundlePartResult) { p.Records, p.Held = p.Records+fresh, p.Held+dup })
			return
		}
		im.outcome(bp, o, err)
	})
	return nil
}

func (im *bundleImport) gaps(bp *bundlePart, o wire.Origin, gaps []wire.Gap) error {
	im.wait() // in order behind the records before it
	var n int64
	held := bp.held[o.Epoch]
	for _, g := range gaps {
		for _, r := range g.Ranges {
			n += held.Missing(r.From, r.To).Count()
			held.Add(r.From, r.To)
		}
	}
	bp.held[o.Epoch] = held
	if _, err := (sink{im.h}).Declare(im.ctx, o, gaps); err != nil {
		im.outcome(bp, o, err)
		return im.failed()
	}
	im.count(bp, func(p *BundlePartResult) { p.Lost += n })
	return nil
}

// outcome sorts an error: of this partition, or of the store.
func (im *bundleImport) outcome(bp *bundlePart, o wire.Origin, err error) {
	var order *OrderError
	var topic *TopicError
	switch {
	case errors.As(err, &order):
		im.refuse(bp, fmt.Sprintf("the hub holds it to offset %d, the bundle goes on at %d: export again from there, or import first what lies between", order.Expected, order.Got))
	case errors.As(err, &topic):
		im.refuse(bp, topic.Error())
	case comesAgain(err) || im.ctx.Err() != nil:
		im.mu.Lock()
		if im.err == nil {
			im.err = err
		}
		im.mu.Unlock()
	default:
		im.refuse(bp, err.Error())
	}
	(sink{im.h}).appendFailed(o, err)
}

func (im *bundleImport) refuse(bp *bundlePart, why string) {
	im.count(bp, func(p *BundlePartResult) { p.Refused = cmp.Or(p.Refused, why) })
}

func (im *bundleImport) count(bp *bundlePart, f func(*BundlePartResult)) {
	im.mu.Lock()
	f(&bp.BundlePartResult)
	im.mu.Unlock()
}

// wait returns when every append has an outcome.
func (im *bundleImport) wait() {
	for range cap(im.slots) {
		im.slots <- struct{}{}
	}
	for range cap(im.slots) {
		<-im.slots
	}
}

// finish sums up. A connected node is asked to come back: its session began with less
// than the hub holds now.
func (im *bundleImport) finish() {
	res := im.res
	for _, id := range im.order {
		p := im.parts[id].BundlePartResult
		res.Partitions = append(res.Partitions, p)
		res.Records, res.Held, res.Lost = res.Records+p.Records, res.Held+p.Held, res.Lost+p.Lost
		if p.Refused != "" {
			res.Complete = false
			res.Problem = cmp.Or(res.Problem, "not everything was taken")
		}
	}
	if res.Records+res.Lost > 0 {
		_ = im.h.links.Disconnect(im.node, wire.CodeUnavailable, "a bundle of this node's records was imported: come back [retry after 100 ms]") // it may not be connected
	}
	im.h.log.Info("bundle imported", "node", im.node, "bundle", res.Bundle, "complete", res.Complete, "problem", res.Problem, "records", res.Records, "held", res.Held, "lost", res.Lost)
}
