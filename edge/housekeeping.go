package edge

import (
	"context"
	"time"

	"tailrace/storage"
)

const (
	tickInterval = 5 * time.Second
	saveInterval = time.Minute
)

// housekeeping keeps rates up to date, writes the registry at most once a minute
// and settles losses that the hub has declared.
func (n *Node) housekeeping(ctx context.Context) {
	t := time.NewTicker(tickInterval)
	defer t.Stop()
	saved := n.cfg.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-n.source.settle:
			n.source.settleLosses(ctx)
		case <-t.C:
			now := n.cfg.Now()
			n.registry.Tick(now)
			if err := n.reloadAccess(false); err != nil {
				n.logger.Error("passwords or rules of access cannot be read again", "err", err)
			}
			n.wear.tick(now, n.store.Stats())
			n.checkAlarms()
			if now.Sub(saved) >= saveInterval {
				saved = now
				n.saveRegistry(ctx, false)
			}
		}
	}
}

const registryKey = "device/"

// saveRegistry writes what has changed. The append joins whatever commit is under
// way; without changes nothing is written, so an idle node leaves the flash alone.
func (n *Node) saveRegistry(ctx context.Context, all bool) {
	a := n.store.NewAppend(n.ingest.classes[0])
	entries := 0
	n.registry.Save(n.cfg.Now(), all, func(id string, value []byte) {
		a.Set(storage.KindRegistry, registryKey+id, value)
		entries++
	})
	if entries == 0 {
		return
	}
	if err := n.store.Commit(ctx, a); err != nil {
		n.logger.Warn("device registry is not saved; the next save writes it again if devices go on sending", "err", err)
	}
}

func (n *Node) loadRegistry() {
	forgotten, err := n.registry.Load(func(yield func(string, []byte) bool) {
		n.store.RangeState(storage.KindRegistry, func(key string, value []byte) bool {
			if len(key) < len(registryKey) {
				return true
			}
			return yield(key[len(registryKey):], value)
		})
	})
	if err != nil {
		n.logger.Warn("device registry: an entry is not understood and is forgotten", "err", err)
	}
	if len(forgotten) > 0 {
		a := n.store.NewAppend(n.cfg.Storage.Classes[0].Name)
		for _, id := range forgotten {
			a.Set(storage.KindRegistry, registryKey+id, nil)
		}
		n.store.Submit(a, func(*storage.Append, error) {})
	}
}

// progressWatch remembers the committers' counters between two looks.
type progressWatch struct {
	seen map[string]uint64
	wait map[string]bool
}

// healthy is asked by the watchdog, from one goroutine: false when some log had
// appends waiting at both looks and neither committed nor failed in between.
func (n *Node) healthy() bool {
	w := &n.committing
	if w.seen == nil {
		w.seen, w.wait = map[string]uint64{}, map[string]bool{}
	}
	ok := true
	for _, c := range n.store.Stats().Classes {
		done, waiting := c.Commits+c.Failures+c.Refused, c.WaitingBytes > 0
		if waiting && w.wait[c.Class] && w.seen[c.Class] == done {
			n.logger.Error("the committer makes no progress", "class", c.Class, "waiting_bytes", c.WaitingBytes)
			ok = false
		}
		w.seen[c.Class], w.wait[c.Class] = done, waiting
	}
	return ok
}
