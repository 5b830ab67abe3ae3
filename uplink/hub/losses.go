package hub

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"

	"tailrace/storage"
	"tailrace/storage/record"
	"tailrace/uplink"
	"tailrace/uplink/wire"
)

// LossRow is one row of the loss ledger: the value of a record on topic
// __tailrace_loss (its key is the node), and an entry of GET /api/v1/losses.
type LossRow struct {
	Node             string `json:"node"`
	Epoch            string `json:"epoch"`
	Topic            string `json:"topic"`
	Partition        int    `json:"partition"`
	From             int64  `json:"from"`
	To               int64  `json:"to"` // exclusive
	Records          int64  `json:"records"`
	Reason           string `json:"reason"`
	Detail           string `json:"detail,omitempty"`
	LostAt           int64  `json:"lost_at,omitempty"` // ms since 1970, when known
	DeclaredAt       int64  `json:"declared_at"`       // ms since 1970
	CentralTopic     string `json:"central_topic"`
	CentralPartition int    `json:"central_partition"`
}

func (r LossRow) encode() []byte {
	b, err := json.Marshal(r)
	if err != nil { // strings and numbers always encode
		panic("internal error: " + err.Error())
	}
	return b
}

func (st *stream) lossRow(g *gapEntry) LossRow {
	return LossRow{
		Node: st.key.node, Epoch: st.key.epoch.String(), Topic: st.key.topic, Partition: st.key.partition,
		From: g.r.From, To: g.r.To, Records: g.r.Len(), Reason: g.g.Reason.String(), Detail: truncate(g.g.Detail, 500),
		LostAt: g.g.At, DeclaredAt: st.e.cfg.Now().UnixMilli(),
		CentralTopic: st.assign.Topic, CentralPartition: st.assign.Partition,
	}
}

func truncate(s string, n int) string {
	if len(s) > n {
		return s[:n] + "…"
	}
	return s
}

// Declare implements Central. What is on its way to the disk counts as held:
// the rows are queued behind it, and fail with it.
func (e *Embedded) Declare(ctx context.Context, o wire.Origin, gaps []wire.Gap) (uplink.RangeSet, error) {
	if e.stopping() {
		return nil, ErrStopped
	}
	st, err := e.stream(o)
	if err != nil {
		return nil, err
	}
	type result struct {
		held uplink.RangeSet
		err  error
	}
	ch := make(chan result, 1) // the one send never blocks
	if err := st.declare(gaps, func(held uplink.RangeSet, err error) { ch <- result{held, err} }); err != nil {
		return nil, err
	}
	select {
	case r := <-ch:
		return r.held, r.err
	case <-ctx.Done():
		return nil, fmt.Errorf("%s: waiting for the disk: %w", o, ctx.Err())
	}
}

func (st *stream) declare(gaps []wire.Gap, done func(uplink.RangeSet, error)) error {
	st.mu.Lock()
	pend := st.pend.Clone()
	var add []entry
	var n int64
	for _, g := range gaps {
		for _, r := range g.Ranges {
			for _, m := range pend.Missing(max(r.From, st.base), r.To) {
				pend.Add(m.From, m.To)
				add = append(add, entry{gap: &gapEntry{m, g}})
				n += m.Len()
			}
		}
	}
	if len(pend) > maxHeldRanges {
		st.mu.Unlock()
		return fmt.Errorf("%s: more than %d separate ranges", st.key.origin(), maxHeldRanges)
	}
	st.pend = pend
	st.e.stats.declared.Add(n)
	st.push(add, waiter{done: done})
	return nil
}

// maxLossRows is how many rows are kept in memory for the API; the topic keeps all.
const maxLossRows = 10000

// lossTable is what the API and the metrics know of the ledger.
type lossTable struct {
	mu     sync.Mutex
	rows   []LossRow // the newest, oldest first
	totals map[LossKey]LossTotal
}

// LossKey groups losses.
type LossKey struct{ Node, Topic, Reason string }

// LossTotal sums the losses of a group.
type LossTotal struct{ Ranges, Records int64 }

func (t *lossTable) add(rows []LossRow) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.totals == nil {
		t.totals = map[LossKey]LossTotal{}
	}
	for _, r := range rows {
		k := LossKey{r.Node, r.Topic, r.Reason}
		sum := t.totals[k]
		sum.Ranges++
		sum.Records += r.Records
		t.totals[k] = sum
	}
	t.rows = append(t.rows, rows...)
	if n := len(t.rows) - maxLossRows; n > maxLossRows/10 {
		t.rows = slices.Clone(t.rows[n:])
	}
}

// load reads the ledger topics.
func (t *lossTable) load(ledger map[string]*storage.Partition) error {
	var all []LossRow
	if err := eachLoss(ledger, func(row LossRow) error {
		if all = append(all, row); len(all) > maxLossRows { // totals stay exact, memory stays flat
			t.add(all)
			all = nil
		}
		return nil
	}); err != nil {
		return err
	}
	slices.SortStableFunc(all, func(a, b LossRow) int { return cmp.Compare(a.DeclaredAt, b.DeclaredAt) })
	t.add(all)
	return nil
}

// eachLoss reads the ledger topics to their end. A row that does not decode is somebody else's
// record and is skipped.
func eachLoss(ledger map[string]*storage.Partition, f func(LossRow) error) error {
	d := record.NewDecompressor(0)
	defer d.Close()
	for class, p := range ledger {
		var buf []byte
		for off := p.Start(); off < p.HighWatermark(); {
			out, next, err := p.Read(buf[:0], off, 1<<20)
			if err != nil {
				return fmt.Errorf("read the loss ledger of class %s at offset %d: %w", class, off, err)
			}
			if next <= off {
				break
			}
			buf, off = out, next
			for rest := out; len(rest) > 0; {
				var b record.Batch
				if b, rest, err = record.Next(rest); err != nil {
					return fmt.Errorf("read the loss ledger of class %s: %w", class, err)
				}
				it := b.Iter(d)
				for it.Next() {
					var row LossRow
					if json.Unmarshal(it.Record().Value, &row) == nil && row.Node != "" {
						if err := f(row); err != nil {
							return err
						}
					}
				}
			}
		}
	}
	return nil
}

// Losses returns the newest rows of the ledger, newest first, at most limit.
func (e *Embedded) Losses(node, topic string, limit int) []LossRow {
	return e.losses.newest(node, topic, limit)
}

// LossTotals returns the sums of the whole ledger.
func (e *Embedded) LossTotals() map[LossKey]LossTotal { return e.losses.sums() }

func (t *lossTable) newest(node, topic string, limit int) []LossRow {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := []LossRow{}
	for i := len(t.rows) - 1; i >= 0 && len(out) < limit; i-- {
		if r := t.rows[i]; (node == "" || r.Node == node) && (topic == "" || r.Topic == topic) {
			out = append(out, r)
		}
	}
	return out
}

func (t *lossTable) sums() map[LossKey]LossTotal {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := make(map[LossKey]LossTotal, len(t.totals))
	for k, v := range t.totals {
		out[k] = v
	}
	return out
}

func sortedLossKeys(m map[LossKey]LossTotal) []LossTotalInfo {
	out := make([]LossTotalInfo, 0, len(m))
	for k, v := range m {
		out = append(out, LossTotalInfo{k.Node, k.Topic, k.Reason, v.Ranges, v.Records})
	}
	slices.SortFunc(out, func(a, b LossTotalInfo) int {
		return cmp.Or(cmp.Compare(a.Node, b.Node), cmp.Compare(a.Topic, b.Topic), cmp.Compare(a.Reason, b.Reason))
	})
	return out
}
