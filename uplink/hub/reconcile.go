package hub

import (
	"context"
	"fmt"

	"tailrace/storage"
)

// reconcile is called when the store had to repair damage: of the progress of a stream the
// newest entry may be gone, and the one before it lacks records that are stored; asked for
// again they would be stored twice. Every stored batch says where it comes from, and every
// row of the ledger what it declares, so all of it is read once and added to the progress.
func (e *Embedded) reconcile(ctx context.Context) error {
	damaged := false
	for _, r := range e.store.Identity().Recovered {
		switch r.What {
		case "rot", "missing", "unreadable", "tail-lost", "quarantined", "state-restored":
			damaged = true
		}
	}
	if !damaged {
		return nil
	}
	return e.regain(ctx)
}

// regain adds to the progress what is stored and declared.
func (e *Embedded) regain(ctx context.Context) error {
	changed := map[*stream]bool{}
	add := func(k streamKey, from, to, records int64) error {
		a, ok := e.assigns[assignKey{k.node, k.topic, k.partition}]
		if !ok {
			return nil
		}
		st := e.streams[k]
		if st == nil {
			base, err := e.base(k)
			if err != nil { // an epoch that nobody asks for any more
				return nil
			}
			st = e.newStream(k, a, base)
		}
		if len(st.prog.Held.Missing(from, to)) == 0 {
			return nil
		}
		held := st.prog.Held.Clone()
		held.Add(from, to)
		st.prog.Held = held
		st.prog.Stored += records
		st.held, st.pend = held, held.Clone()
		changed[st] = true
		return nil
	}
	for _, t := range e.store.Topics() {
		for _, p := range t.Partitions() {
			for off := p.Start(); off < p.HighWatermark(); {
				batch, next, err := p.Read(nil, off, 0)
				if err != nil {
					return fmt.Errorf("read %s/%d at %d: %w", t.Name(), p.Index(), off, err)
				}
				if next <= off {
					break
				}
				off = next
				if len(batch) == 0 {
					continue
				}
				if o, ok := p.Origin(next - 1); ok && o.Node != "" {
					if err := add(streamKey{o.Node, o.Epoch, o.Topic, o.Partition}, o.From, o.To, o.To-o.From); err != nil {
						return err
					}
				}
			}
		}
	}
	if err := eachLoss(e.ledger, func(r LossRow) error { // the table has the newest only
		epoch, err := parseID(r.Epoch)
		if err != nil {
			return nil // no row of ours
		}
		return add(streamKey{r.Node, epoch, r.Topic, r.Partition}, r.From, r.To, 0)
	}); err != nil {
		return err
	}
	for st := range changed {
		a := e.store.NewAppend(st.assign.Class)
		a.Set(storage.KindProgress, st.name, st.prog.encode(nil))
		if err := e.store.Commit(ctx, a); err != nil {
			return fmt.Errorf("progress of %q: %w", st.name, err)
		}
		e.cfg.Logger.Warn("progress that damage had taken back is restored from what is stored", "stream", st.name, "held", st.prog.Held.String())
	}
	return nil
}
