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
	"time"

	"tailrace/storage/storehttp"
	"tailrace/uplink"
	"tailrace/uplink/bundle"
	"tailrace/uplink/hub/relay"
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
	res, err := h.importBundle(r.Context(), patient{http.NewResponseController(w), r.Body})
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

// bundlePatience is how long the next bytes of a bundle may take: others wait for its end.
const bundlePatience = time.Minute

// patient reads a body that must not stand still.
type patient struct {
	rc   *http.ResponseController
	body io.Reader
}

func (p patient) Read(b []byte) (int, error) {
	p.rc.SetReadDeadline(time.Now().Add(bundlePatience)) // not every ResponseWriter has deadlines
	defer p.rc.SetReadDeadline(time.Time{})              // else it would end the request while the disk works
	return p.body.Read(b)
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
	failed := cmp.Or(im.failed(), ctx.Err())
	switch {
	case failed != nil:
		im.res.Problem = failed.Error()
	case err == io.EOF:
		im.res.Complete = true
	default: // cut off or damaged: what was good is stored
		im.res.Problem = err.Error()
	}
	im.finish()
	return im.res, failed
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
	mode  wire.Mode
	at    map[wire.ID]uplink.Range    // which offsets belong to an epoch
	begin int64                       // the first of them all
	held  map[wire.ID]uplink.RangeSet // by epoch, with what this import has stored
	whole uplink.RangeSet             // of the log, each offset in its epoch
	last  map[wire.ID]*wire.Held
}

// admit decides whether the bundle's log is the one that is held here, or goes on
// from it. Unlike a Hello, a bundle may be older than what the link has brought since.
func (im *bundleImport) admit(head *bundle.Header) error {
	h, s := im.h, sink{im.h}
	if err := h.cfg.mayConnect(head.Node); err != nil {
		return &storehttp.Error{Status: http.StatusForbidden, Code: "not_allowed", Message: err.Error()}
	}
	if e := h.elsewhere(im.ctx, head.Node); e != nil {
		return e
	}
	h.nodes.mu.Lock()
	fresh := h.nodes.nodes[head.Node] == nil
	n := h.nodes.get(head.Node, h.cfg.Now())
	h.nodes.mu.Unlock()
	if err := im.adopt(head, n); err != nil {
		return err
	}
	h.nodes.mu.Lock()
	if fresh {
		n.saved.Software = truncate(head.Software, 100)
		n.takeInventory(head.Inventory)
	}
	// How a partition comes is what the node last said by the link: a bundle may be older.
	modes, topics := map[assignKey]wire.Mode{}, map[string]bool{}
	note := func(topic string, partition int, m wire.Mode) {
		modes[assignKey{topic: topic, partition: partition}], topics[topic] = m, true
	}
	for _, p := range head.Inventory.Partitions {
		note(p.Topic, p.Partition, p.Mode)
	}
	if len(n.saved.Partitions) > 0 {
		clear(topics)
	}
	for _, p := range n.saved.Partitions {
		note(p.Topic, p.Partition, p.Mode)
	}
	idle := n.sessions == 0
	h.nodes.mu.Unlock()
	if fresh {
		if err := h.saveNode(im.ctx, head.Node, true); err != nil {
			return err
		}
	}
	if idle { // nothing is under way, of a session or of another import
		h.central.resume(head.Node)
	}
	progress, err := h.central.Progress(im.ctx, head.Node)
	if err != nil {
		return err
	}
	for _, p := range head.Parts {
		i := slices.IndexFunc(head.Inventory.Partitions, func(x wire.PartitionInfo) bool { return x.ID == p.Partition })
		info := head.Inventory.Partitions[i] // the reader has checked that it is there
		bp := &bundlePart{at: map[wire.ID]uplink.Range{}, begin: uplink.Forever, held: map[wire.ID]uplink.RangeSet{}, last: map[wire.ID]*wire.Held{}}
		bp.Topic, bp.Partition, bp.From, bp.To = info.Topic, info.Partition, p.From, p.To
		for _, have := range progress {
			if have.Topic == info.Topic && have.Partition == info.Partition {
				bp.held[have.Epoch], bp.last[have.Epoch] = have.Held.Clone(), have.Last
			}
		}
		bp.whole = heldNow(head.Inventory.Epochs, progress, info.Topic, info.Partition)
		for k, r := range uplink.EpochRanges(head.Inventory.Epochs, info.Topic, info.Partition) {
			if bp.at[head.Inventory.Epochs[k].ID] = r; r.To > r.From {
				bp.begin = min(bp.begin, r.From)
			}
		}
		for _, b := range p.Before {
			id := head.Inventory.Epochs[b.Epoch].ID
			if last := bp.last[id]; last != nil && differs(last, b.Held, min(p.From, bp.at[id].To)) {
				return im.fenced(fmt.Sprintf("its log is not the one stored here, they differ in %s/%d at offset %d", info.Topic, info.Partition, last.Offset))
			}
		}
		im.parts[p.Partition] = bp
		im.order = append(im.order, p.Partition)
		if bp.Refused = s.refuse(head.Node, info.Topic); bp.Refused != "" {
			continue
		}
		bp.mode, _ = s.order(head.Node, wire.PartitionInfo{Topic: info.Topic, Partition: info.Partition, Mode: modes[assignKey{topic: info.Topic, partition: info.Partition}]},
			func(topic string) bool { return topics[topic] })
	}
	return nil
}

// adopt takes the bundle's epochs where they go on from those that are known.
func (im *bundleImport) adopt(head *bundle.Header, n *node) error {
	h, s := im.h, sink{im.h}
	n.adopting.Lock()
	defer n.adopting.Unlock()
	h.nodes.mu.Lock()
	fenced, connected := n.saved.Fenced, n.sessions > 0
	h.nodes.mu.Unlock()
	if fenced != "" {
		return im.fenced("it is fenced: " + fenced)
	}
	known, err := h.central.known(head.Node)
	if err != nil {
		return err
	}
	named := head.Inventory.Epochs
	if slices.ContainsFunc(known, func(e wire.EpochInfo) bool { return e.ID == named[len(named)-1].ID }) {
		return nil
	}
	v := decide(known, named, true, false)
	if v.reason != "" {
		return im.fenced(v.reason)
	}
	if v.adopt == nil {
		return nil
	}
	if connected { // with a log that this one has left behind: it would go on sending
		return im.fenced("the bundle's log is newer than that of the machine connected now: two copies are in use, or it has just been restarted; try again when it is gone")
	}
	if err := h.central.Adopt(im.ctx, head.Node, v.adopt); err != nil {
		return err
	}
	return s.closeEpochs(im.ctx, head.Node, known, v)
}

func (im *bundleImport) fenced(why string) error {
	return &storehttp.Error{Status: http.StatusConflict, Code: "fenced", Message: "node " + im.node + ": " + why,
		Hint: `what to do stands in the README under "Copies of a node"`}
}

// differs says whether the log with a batch b, which ends at end or behind it, is another than the
// one whose last batch is held here: batches of one log begin at the same offsets.
func differs(held *wire.Held, b wire.Held, end int64) bool {
	return held.Offset == b.Offset && held.CRC != b.CRC || held.Offset > b.Offset && held.Offset < end
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
	held, at := bp.held[o.Epoch], bp.at[o.Epoch]
	var fresh, dup int64
	for rest := it.Batches; len(rest) > 0; {
		b, r, err := wire.NextBatch(rest)
		if err != nil {
			return err
		}
		rest = r
		if last := bp.last[o.Epoch]; last != nil && differs(last, wire.Held{Offset: b.Base, CRC: b.CRC}, b.Next) {
			im.refuse(bp, fmt.Sprintf("the log in the bundle is not the one stored here: they differ at offset %d", last.Offset))
			return nil
		}
		if b.Base < at.From || b.Next > at.To {
			im.refuse(bp, fmt.Sprintf("offsets [%d, %d) do not belong to epoch %s, which has [%d, %d)", b.Base, b.Next, short(o.Epoch), at.From, at.To))
			return nil
		}
		n := held.Missing(b.Base, b.Next).Count()
		// In order, over all epochs, into the companion too: a piece of a gap that is
		// stored hides what lies before it.
		if n > 0 && bp.mode != wire.ModeOnDemand && !bp.whole.Covers(bp.begin, b.Base) {
			im.refuse(bp, behindHole(bp.whole.Missing(bp.begin, b.Base)[0].From, b.Base))
			return nil
		}
		fresh, dup = fresh+n, dup+b.Next-b.Base-n
		held.Add(b.Base, b.Next)
		bp.whole.Add(b.Base, b.Next)
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
	(sink{im.h}).Append(im.ctx, o, bytes.Clone(it.Batches), func(_ uplink.RangeSet, err error) {
		defer func() { <-im.slots }()
		if err == nil {
			im.count(bp, func(p *BundlePartResult) { p.Records, p.Held = p.Records+fresh, p.Held+dup })
			return
		}
		im.outcome(bp, err)
	})
	return nil
}

func behindHole(expected, got int64) string {
	return fmt.Sprintf("the hub holds it to offset %d, the bundle goes on at %d: export again from there, or import first what lies between", expected, got)
}

func (im *bundleImport) gaps(bp *bundlePart, o wire.Origin, gaps []wire.Gap) error {
	im.wait() // in order behind the records before it
	var n int64
	held := bp.held[o.Epoch]
	for _, g := range gaps {
		for _, r := range g.Ranges {
			n += held.Missing(r.From, r.To).Count()
			held.Add(r.From, r.To)
			bp.whole.Add(r.From, r.To)
		}
	}
	bp.held[o.Epoch] = held
	if _, err := (sink{im.h}).Declare(im.ctx, o, gaps); err != nil {
		im.outcome(bp, err)
		return im.failed()
	}
	im.count(bp, func(p *BundlePartResult) { p.Lost += n })
	return nil
}

// outcome sorts an error: of this partition, or of the store.
func (im *bundleImport) outcome(bp *bundlePart, err error) {
	var order *OrderError
	var topic *TopicError
	switch {
	case errors.As(err, &order):
		im.refuse(bp, behindHole(order.Expected, order.Got))
	case errors.As(err, &topic):
		im.refuse(bp, topic.Error())
	case comesAgain(err) || relay.ComesAgain(err) || im.ctx.Err() != nil:
		im.mu.Lock()
		if im.err == nil {
			im.err = err
		}
		im.mu.Unlock()
	default:
		im.refuse(bp, err.Error())
	}
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
