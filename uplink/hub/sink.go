package hub

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"tailrace/storage"
	"tailrace/uplink"
	"tailrace/uplink/link"
	"tailrace/uplink/wire"
)

// sink is the hub as the link sees it.
type sink struct{ h *Hub }

var _ link.Sink = sink{}

func (s sink) Identity() (wire.ID, int32) { return s.h.central.Identity() }

// Hello admits a session or refuses it.
//
// Two processes with one identity: a newer boot takes over from an older one,
// since that is what a reboot looks like. A boot that was taken over from and
// comes back is no reboot: then two processes run at once, and the one that
// comes back is refused until it is restarted. Within one boot a lower session
// sequence never displaces a higher one.
//
// The Hello of a dead process may arrive after that of the next one: the last
// packets before a power cut can take the longer way. Only a boot that has said
// something after its Hello, so after it heard from us, takes over for good.
func (s sink) Hello(ctx context.Context, id string, h wire.Hello) (link.Plan, error) {
	if !validName(id) {
		return link.Plan{}, &link.RefuseError{Code: wire.CodeAuth, Message: fmt.Sprintf("node id %q: it has 1 to 249 of the characters a-z A-Z 0-9 . _ -", id)}
	}
	t := &s.h.nodes
	now := s.h.cfg.Now()
	t.mu.Lock()
	n := t.get(id, now)
	if h.Boot == n.boot && h.Sequence < n.sequence {
		t.mu.Unlock()
		return link.Plan{}, &link.RefuseError{Code: wire.CodeSuperseded, Message: "a later session of this node is in use"}
	}
	if slices.Contains(n.displaced, h.Boot) && n.answered {
		t.mu.Unlock()
		return s.fence(ctx, id, now, "a process of this node that a newer one had taken over from came back: two machines use one identity, or two processes run on one; stop one of them and restart the other", false)
	}
	// The link ends the older session before it asks, so "live" is "until just
	// now": a disk is not replaced within a second.
	live, accept := n.sessions > 0 || now.Sub(n.endedAt) < time.Second, n.saved.AcceptNext
	t.mu.Unlock()

	known := s.h.central.Epochs(id)
	v := decide(known, h.Inventory.Epochs, live, accept)
	if v.reason != "" {
		return s.fence(ctx, id, now, v.reason, true)
	}
	if v.adopt != nil {
		if err := s.h.central.Adopt(ctx, id, v.adopt); err != nil {
			return link.Plan{}, unavailable(err)
		}
		if len(known) > 0 {
			s.h.log.Warn("node has a new epoch", "node", id, "fresh", v.fresh, "epoch", h.Inventory.Epochs[len(h.Inventory.Epochs)-1].ID.String())
		}
	}
	progress, err := s.h.central.Progress(ctx, id)
	if err != nil {
		return link.Plan{}, unavailable(err)
	}
	if why := rolledBack(h.Inventory, progress); why != "" {
		return s.fence(ctx, id, now, why, true)
	}
	if err := s.closeEpochs(ctx, id, known, h.Inventory, v); err != nil {
		return link.Plan{}, unavailable(err)
	}

	t.mu.Lock()
	if n.boot != h.Boot && !n.boot.IsZero() {
		n.displaced = slices.DeleteFunc(n.displaced, func(b wire.ID) bool { return b == h.Boot })
		n.displaced = append(n.displaced, n.boot)
		if len(n.displaced) > maxDisplaced {
			n.displaced = n.displaced[1:]
		}
	}
	n.answered = n.answered && n.boot == h.Boot
	n.boot, n.sequence = h.Boot, h.Sequence
	n.forks = nil
	n.saved.Fenced, n.saved.FencedAt, n.saved.AcceptNext = "", 0, false
	n.saved.LastSeen, n.saved.Software = now.UnixMilli(), truncate(h.Software, 100)
	n.takeInventory(h.Inventory)
	t.mu.Unlock()
	if err := s.h.saveNode(ctx, id, false); err != nil {
		return link.Plan{}, unavailable(err)
	}
	return s.plan(ctx, id, h.Inventory)
}

// closeEpochs declares what of the node's former log the node can no longer
// send: the hub had heard that it existed. A child epoch that forks below what
// its parent had reported has lost that tail; a fresh log has lost all of it.
func (s sink) closeEpochs(ctx context.Context, id string, known []wire.EpochInfo, inv wire.Inventory, v verdict) error {
	if v.adopt == nil || len(known) == 0 {
		return nil
	}
	last := known[len(known)-1].ID
	s.h.nodes.mu.Lock()
	had := slices.Clone(s.h.nodes.nodes[id].saved.Partitions)
	s.h.nodes.mu.Unlock()
	for _, p := range had {
		from := int64(0)
		if !v.fresh {
			if from = forkOf(v.adopt[len(known)], p.Topic, p.Partition); from >= p.Next {
				continue
			}
		}
		g := wire.Gap{Ranges: uplink.RangeSet{{From: from, To: p.Next}}, Reason: wire.GapMissing, At: s.h.cfg.Now().UnixMilli(),
			Detail: "the node had reported these offsets, and came back without them"}
		if p.Next <= from {
			continue
		}
		o := wire.Origin{Node: id, Epoch: last, Topic: p.Topic, Partition: p.Partition}
		var bad *TopicError
		if _, err := s.h.central.Declare(ctx, o, []wire.Gap{g}); errors.As(err, &bad) {
			s.h.log.Warn("loss not declared", "origin", o.String(), "error", err)
		} else if err != nil {
			return err
		}
	}
	return nil
}

func forkOf(ep wire.EpochInfo, topic string, partition int) int64 {
	for _, f := range ep.Forks {
		if f.Topic == topic && f.Partition == partition {
			return f.Offset
		}
	}
	return 0
}

// fence refuses a session and tells the operator. keep = the node stays marked
// until a Hello is accepted.
func (s sink) fence(ctx context.Context, id string, now time.Time, why string, keep bool) (link.Plan, error) {
	s.h.log.Error("node fenced", "node", id, "reason", why,
		"hint", "if this machine is the right one: POST /api/v1/nodes/"+id+"/accept, then restart it")
	s.h.metrics.fenced.Inc()
	s.h.nodes.mu.Lock()
	n := s.h.nodes.get(id, now)
	n.saved.Fenced, n.saved.FencedAt = why, now.UnixMilli()
	s.h.nodes.mu.Unlock()
	if keep {
		if err := s.h.saveNode(ctx, id, false); err != nil {
			s.h.log.Warn("fence not saved", "node", id, "error", err)
		}
	}
	return link.Plan{}, &link.RefuseError{Code: wire.CodeFenced, Message: why, RetryAfter: time.Minute}
}

// unavailable turns an error of the store into a refusal that the node retries.
func unavailable(err error) error {
	return &link.RefuseError{Code: wire.CodeUnavailable, Message: "the hub's store cannot take data now: " + err.Error(), RetryAfter: 5 * time.Second}
}

func (s sink) Inventory(ctx context.Context, id string, inv wire.Inventory) (link.Plan, error) {
	s.h.nodes.mu.Lock()
	n := s.h.nodes.get(id, s.h.cfg.Now())
	n.answered = true
	n.takeInventory(inv)
	s.h.nodes.mu.Unlock()
	return s.plan(ctx, id, inv)
}

func (s sink) plan(ctx context.Context, id string, inv wire.Inventory) (link.Plan, error) {
	progress, err := s.h.central.Progress(ctx, id)
	if err != nil {
		return link.Plan{}, unavailable(err)
	}
	var plan link.Plan
	for _, p := range progress {
		plan.Progress = append(plan.Progress, uplink.Progress{Epoch: p.Epoch, Topic: p.Topic, Partition: p.Partition, Held: p.Held.Clone(), Last: p.Last})
	}
	for _, p := range inv.Partitions {
		s.h.central.allowHoles(assignKey{id, p.Topic, p.Partition}, p.Mode == wire.ModeOnDemand)
		if p.Mode == wire.ModeLiveFirst {
			// The companion topic of a live-first topic is not kept by this
			// store: its records come in order, which is safe and later.
			if plan.Mode == nil {
				plan.Mode = map[string]wire.Mode{}
			}
			plan.Mode[p.Topic] = wire.ModeInOrder
		}
	}
	return plan, nil
}

func (s sink) Append(ctx context.Context, o wire.Origin, batches []byte, done func(uplink.RangeSet, error)) {
	s.h.central.Append(ctx, o, batches, func(held uplink.RangeSet, err error) {
		if err != nil {
			s.appendFailed(o, err)
		}
		done(held, err)
	})
}

func (s sink) appendFailed(o wire.Origin, err error) {
	var disk *storage.DiskError
	switch {
	case errors.Is(err, ErrStopped), errors.Is(err, storage.ErrClosed), errors.Is(err, context.Canceled):
	case errors.As(err, &disk), errors.Is(err, storage.ErrFull):
		s.h.log.Error("records not stored", "origin", o.String(), "error", err)
	default:
		s.h.log.Warn("records refused", "origin", o.String(), "error", err)
	}
}

func (s sink) Declare(ctx context.Context, o wire.Origin, gaps []wire.Gap) (uplink.RangeSet, error) {
	held, err := s.h.central.Declare(ctx, o, gaps)
	if err != nil {
		s.appendFailed(o, err)
		return nil, err
	}
	for _, g := range gaps {
		s.h.log.Warn("records declared lost", "origin", o.String(), "ranges", g.Ranges.String(), "reason", g.Reason.String(), "detail", truncate(g.Detail, 200))
	}
	return held, nil
}

func (s sink) Fork(id string, o wire.Origin, f wire.Fork) {
	s.h.log.Error("the node's log is not the one stored here", "origin", o.String(), "offset", f.Offset, "absent", f.Absent, "node_next", f.Next,
		"hint", "an older copy of the node's disk is in use; records of this partition are not taken")
	s.h.metrics.forks.Inc()
	s.h.nodes.mu.Lock()
	defer s.h.nodes.mu.Unlock()
	n := s.h.nodes.get(id, s.h.cfg.Now())
	if d := fmt.Sprintf("%s/%d at offset %d", o.Topic, o.Partition, f.Offset); len(n.forks) < maxForks && !slices.Contains(n.forks, d) {
		n.forks = append(n.forks, d)
	}
}

func (s sink) Status(id string, st wire.Status) {
	now := s.h.cfg.Now()
	s.h.nodes.mu.Lock()
	n := s.h.nodes.get(id, now)
	n.answered = true
	n.takeStatus(st, now)
	n.saved.LastSeen = now.UnixMilli()
	save := now.Sub(n.savedAt) >= saveInterval
	s.h.nodes.mu.Unlock()
	if save {
		s.h.saveNode(context.Background(), id, false)
	}
}

func (s sink) Connected(id string, info link.SessionInfo) {
	now := s.h.cfg.Now()
	s.h.nodes.mu.Lock()
	n := s.h.nodes.get(id, now)
	n.sessions++
	n.info = info
	n.saved.LastSeen, n.saved.Remote = now.UnixMilli(), info.Remote
	s.h.nodes.mu.Unlock()
	s.h.log.Info("node connected", "node", id, "remote", info.Remote, "software", info.Software)
	s.h.saveNode(context.Background(), id, false)
}

func (s sink) Disconnected(id string, info link.SessionInfo, reason error) {
	now := s.h.cfg.Now()
	s.h.nodes.mu.Lock()
	n := s.h.nodes.get(id, now)
	n.sessions = max(0, n.sessions-1)
	n.endedAt = now
	n.saved.LastSeen = now.UnixMilli()
	s.h.nodes.mu.Unlock()
	s.h.log.Info("node disconnected", "node", id, "remote", info.Remote, "reason", reason)
	s.h.saveNode(context.Background(), id, false)
}
