package hub

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"tailrace/storage"
	"tailrace/uplink"
	"tailrace/uplink/hub/relay"
	"tailrace/uplink/link"
	"tailrace/uplink/wire"
)

// sink is the hub as the link sees it.
type sink struct{ h *Hub }

var (
	_ link.Sink      = sink{}
	_ link.Previewer = sink{}
)

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
	if err := s.h.central.serves(ctx, id); err != nil {
		re := &link.RefuseError{Code: wire.CodeUnavailable, Message: err.Error(), RetryAfter: time.Second / 2}
		var elsewhere *relay.NotHereError
		if errors.As(err, &elsewhere) && elsewhere.Hub != "" {
			re.Hubs, re.RetryAfter = []string{elsewhere.Hub}, 0
		}
		return link.Plan{}, re
	}
	t := &s.h.nodes
	now := s.h.cfg.Now()
	t.mu.Lock()
	n := t.get(id, now)
	if h.Boot == n.boot && h.Sequence < n.sequence {
		t.mu.Unlock()
		return link.Plan{}, &link.RefuseError{Code: wire.CodeSuperseded, Message: "a later session of this node is in use"}
	}
	why, sameBoot := n.refusedBoot(h.Boot), h.Boot == n.boot
	if why != "" {
		t.mu.Unlock()
		return link.Plan{}, s.fence(id, now, why, false)
	}
	// The link ends the older session before it asks, so "live" is "until just
	// now": a disk is not replaced within a second.
	live, accept := n.sessions > 0 || now.Sub(n.endedAt) < time.Second, n.saved.AcceptNext
	t.mu.Unlock()

	n.adopting.Lock()
	defer n.adopting.Unlock()
	known, err := s.h.central.known(id)
	if err != nil {
		return link.Plan{}, unavailable(err)
	}
	v := decide(known, h.Inventory.Epochs, live, accept)
	if v.reason != "" {
		return link.Plan{}, s.fence(id, now, v.reason, true)
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
	// One process does not lose what it has: more may have come by its older session
	// since it said Hello.
	if why := rolledBack(h.Inventory, progress); why != "" && !sameBoot {
		return link.Plan{}, s.fence(id, now, why, true)
	}
	if err := s.noteStore(id, h, progress); err != nil {
		return link.Plan{}, unavailable(err)
	}
	if err := s.closeEpochs(ctx, id, known, v); err != nil {
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
	s.h.central.resume(id)
	return s.plan(ctx, id, h.Inventory)
}

// Preview implements link.Previewer: what Hello would answer where it has nothing to do but to answer.
func (s sink) Preview(ctx context.Context, id string, h wire.Hello) (link.Plan, bool) {
	if s.h.clustered() {
		return link.Plan{}, false
	}
	t := &s.h.nodes
	t.mu.Lock()
	n := t.nodes[id]
	ok := n != nil && n.refusedBoot(h.Boot) == "" && n.saved.Fenced == "" && (h.Boot != n.boot || h.Sequence > n.sequence)
	t.mu.Unlock()
	if !ok {
		return link.Plan{}, false
	}
	known, err := s.h.central.known(id)
	if err != nil {
		return link.Plan{}, false
	}
	if v := decide(known, h.Inventory.Epochs, false, false); v.reason != "" || v.adopt != nil {
		return link.Plan{}, false
	}
	progress, err := s.h.central.Progress(ctx, id)
	if err != nil || rolledBack(h.Inventory, progress) != "" || s.lacks(h, progress) != "" {
		return link.Plan{}, false // a node that was welcomed forgets which store it knew: the leader epoch is raised first
	}
	plan, err := s.plan(ctx, id, h.Inventory)
	return plan, err == nil
}

// refusedBoot says why nothing more is taken from a process, or "". Called with the
// table's mu held.
func (n *node) refusedBoot(boot wire.ID) string {
	if slices.Contains(n.displaced, boot) && n.answered {
		return "a process of this node that a newer one had taken over from came back: two machines use one identity, or two processes run on one. " +
			"Stop one of them, then restart the other"
	}
	return n.refused[boot]
}

// Admit implements link.Admitter: it refuses what Hello would refuse in any case,
// so that a copy that knocks every minute does not interrupt the node.
func (s sink) Admit(id string, h wire.Hello) error {
	t, now := &s.h.nodes, s.h.cfg.Now()
	t.mu.Lock()
	n := t.get(id, now)
	why, same, accept := n.refusedBoot(h.Boot), h.Boot == n.boot, n.saved.AcceptNext
	t.mu.Unlock()
	if why == "" && !same {
		known, err := s.h.central.known(id)
		if err != nil {
			return unavailable(err)
		}
		why = decide(known, h.Inventory.Epochs, false, accept).reason
	}
	if why == "" && !same {
		progress, err := s.h.central.Progress(context.Background(), id)
		if err != nil {
			return nil // Hello says so
		}
		why = rolledBack(h.Inventory, progress)
	}
	if why != "" {
		return s.fence(id, now, why, false)
	}
	return nil
}

// closeEpochs declares what of the node's former log the node can no longer
// send: the hub had heard that it existed. A child epoch that forks below what
// its parent had reported has lost that tail; a fresh log has lost all of it.
func (s sink) closeEpochs(ctx context.Context, id string, known []wire.EpochInfo, v verdict) error {
	if v.adopt == nil || len(known) == 0 {
		return nil
	}
	s.h.nodes.mu.Lock()
	had := slices.Clone(s.h.nodes.nodes[id].saved.Partitions)
	s.h.nodes.mu.Unlock()
	for _, p := range had {
		from := int64(0)
		if !v.fresh {
			from = v.adopt[len(known)].First(p.Topic, p.Partition)
		}
		to := p.Next
		for k := len(known) - 1; k >= 0 && from < to; k-- { // each epoch what lay in it
			begin := max(from, known[k].First(p.Topic, p.Partition))
			if begin >= to {
				continue
			}
			g := wire.Gap{Ranges: uplink.RangeSet{{From: begin, To: to}}, Reason: wire.GapMissing, At: s.h.cfg.Now().UnixMilli(),
				Detail: "the node had reported these offsets, and came back without them"}
			to = begin
			o := wire.Origin{Node: id, Epoch: known[k].ID, Topic: p.Topic, Partition: p.Partition}
			var bad *TopicError
			if _, err := s.h.central.Declare(ctx, o, []wire.Gap{g}); errors.As(err, &bad) {
				s.h.log.Warn("loss not declared", "origin", o.String(), "error", err)
			} else if err != nil {
				return err
			}
		}
	}
	return nil
}

// maxEpochLead bounds how far ahead of ours a store epoch is believed.
const maxEpochLead = 1 << 16

// lacks compares the store that the node knew with this one. When that one was
// further than this one is, or is another, this store lacks what consumers may have
// read: a disk was lost, or an older state restored. It says why, or "".
func (s sink) lacks(h wire.Hello, progress []Progress) (why string) {
	if h.Store == nil || s.h.clustered() { // a cluster keeps its own leader epochs
		return ""
	}
	own, epoch := s.h.central.Identity()
	known := h.Store
	switch {
	case known.Epoch < epoch || known.Epoch > epoch+maxEpochLead:
		return "" // noticed before, or nonsense
	case known.ID != own:
		return "the node was served by another store, " + known.ID.String() + ": its disk was lost or replaced; the node sends again what it still holds, the rest is declared lost"
	case known.Epoch > epoch:
		return "the node knew a later state of this store: an older backup of it was restored; nodes send again what they still hold, the rest is declared lost"
	}
	if r := behind(h.Inventory, progress); r != "" {
		return "the store lacks records that it had acknowledged (" + r + "): an older backup of it was restored; nodes send again what they still hold, the rest is declared lost"
	}
	return ""
}

// noteStore raises the leader epoch when this store lacks records. The nodes send again
// what they hold; consumers tell the difference by a leader epoch above every one they knew.
func (s sink) noteStore(id string, h wire.Hello, progress []Progress) error {
	known, why := h.Store, s.lacks(h, progress)
	if why == "" {
		return nil
	}
	s.h.raiseMu.Lock()
	defer s.h.raiseMu.Unlock()
	if _, now := s.h.central.Identity(); now > known.Epoch {
		return nil
	}
	// Once an hour is enough for every true case and bounds what a lying node can do.
	if !s.h.raisedAt.IsZero() && s.h.cfg.Now().Sub(s.h.raisedAt) < time.Hour {
		s.h.log.Warn("leader epoch not raised again within the hour", "node", id, "reason", why)
		return nil
	}
	if err := s.h.central.raise(known.Epoch + 1); err != nil {
		return err
	}
	s.h.raisedAt = s.h.cfg.Now()
	s.h.nodes.mu.Lock()
	s.h.storeNote = stamp(s.h.raisedAt.UnixMilli()) + ": " + why
	s.h.nodes.mu.Unlock()
	s.h.log.Error("records that this hub's store had held are not in it; new leader epoch", "node", id, "reason", why, "leader_epoch", known.Epoch+1)
	return nil
}

// behind names a partition of which the store has acknowledged more than it holds.
func behind(inv wire.Inventory, progress []Progress) string {
	type key struct {
		topic     string
		partition int
	}
	held := map[key]int64{}
	for _, p := range progress {
		k := key{p.Topic, p.Partition}
		held[k] = max(held[k], p.Held.End())
	}
	for _, p := range inv.Partitions {
		if have := held[key{p.Topic, p.Partition}]; p.Acked > have && p.Acked <= p.Next {
			return fmt.Sprintf("%s/%d: acknowledged to %d, held to %d", p.Topic, p.Partition, p.Acked, have)
		}
	}
	return ""
}

// remedy tells the operator of a fenced node what to do; both logs stay as they are.
const remedy = ". Both logs are kept. If this machine is the right one and its log has only lost its end: start it once with -new-epoch. " +
	"If the log went on by itself: move its data directory away (tailrace check describes it) and start it with an empty one"

// fence refuses a session and tells the operator. keep = the node stays marked
// until a Hello is accepted. While another machine of the name is connected, only a
// note of it is made: that one is served.
func (s sink) fence(id string, now time.Time, why string, keep bool) error {
	s.h.log.Error("node fenced", "node", id, "reason", why, "hint", "what to do stands in the README under \"Copies of a node\"")
	s.h.metrics.fenced.Inc()
	s.h.nodes.mu.Lock()
	n := s.h.nodes.get(id, now)
	if n.sessions > 0 {
		n.other, n.otherAt = why, now
		keep = false
	} else {
		n.saved.Fenced, n.saved.FencedAt = why+remedy, now.UnixMilli()
	}
	s.h.nodes.mu.Unlock()
	if keep {
		if err := s.h.saveNode(context.Background(), id, false); err != nil {
			s.h.log.Warn("fence not saved", "node", id, "error", err)
		}
	}
	return &link.RefuseError{Code: wire.CodeFenced, Message: why + remedy, RetryAfter: time.Minute}
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
	topics := make(map[string]bool, len(inv.Partitions))
	for i := range inv.Partitions {
		topics[inv.Partitions[i].Topic] = true
	}
	plan.Refused = s.refusals(id, inv)
	for _, p := range inv.Partitions {
		if plan.Refused[p.Topic] != "" {
			continue
		}
		mode, why := s.order(id, p, func(topic string) bool { return topics[topic] })
		if mode != p.Mode {
			if plan.Mode == nil {
				plan.Mode = map[string]wire.Mode{}
			}
			plan.Mode[p.Topic] = mode
			s.h.log.Warn("topic is not taken as the node wishes", "node", id, "topic", p.Topic, "wish", p.Mode.String(), "mode", mode.String(), "reason", why)
		}
	}
	return plan, nil
}

func (s sink) Append(ctx context.Context, o wire.Origin, batches []byte, done func(uplink.RangeSet, error)) {
	if err := s.mayWrite(o); err != nil {
		s.appendFailed(o, err)
		done(nil, err)
		return
	}
	s.h.central.Append(ctx, o, batches, func(held uplink.RangeSet, err error) {
		if err != nil {
			s.appendFailed(o, err)
		}
		done(held, err)
		s.h.fetches.poke()
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
	if err := s.mayWrite(o); err != nil {
		return nil, err
	}
	held, err := s.h.central.Declare(ctx, o, gaps)
	if err != nil {
		s.appendFailed(o, err)
		return nil, err
	}
	s.h.fetches.poke()
	for _, g := range gaps {
		s.h.log.Warn("records declared lost", "origin", o.String(), "ranges", g.Ranges.String(), "reason", g.Reason.String(), "detail", truncate(g.Detail, 200))
	}
	return held, nil
}

// Fork fences the whole node: its log is one, and where one partition differs the
// others only happen not to. The processes that this one took over from may come
// back: one of them has the log that is stored here.
func (s sink) Fork(id string, o wire.Origin, f wire.Fork) {
	now := s.h.cfg.Now()
	where := fmt.Sprintf("%s/%d at offset %d", o.Topic, o.Partition, f.Offset)
	why := "its log is not the one stored here, they differ in " + where + ": a restored or cloned copy of the log went on by itself"
	s.h.log.Error("node fenced: its log is not the one stored here", "node", id, "origin", o.String(), "offset", f.Offset, "absent", f.Absent, "node_next", f.Next)
	s.h.metrics.forks.Inc()
	s.h.metrics.fenced.Inc()
	s.h.nodes.mu.Lock()
	n := s.h.nodes.get(id, now)
	if len(n.forks) < maxForks && !slices.Contains(n.forks, where) {
		n.forks = append(n.forks, where)
	}
	if n.refused == nil || len(n.refused) >= maxDisplaced {
		n.refused = map[wire.ID]string{}
	}
	n.refused[n.boot] = why
	n.displaced, n.boot, n.sequence, n.answered = nil, wire.ID{}, 0, false
	n.saved.Fenced, n.saved.FencedAt = why+remedy, now.UnixMilli()
	s.h.nodes.mu.Unlock()
	if err := s.h.saveNode(context.Background(), id, false); err != nil {
		s.h.log.Warn("fence not saved", "node", id, "error", err)
	}
	if s.h.links != nil {
		_ = s.h.links.Disconnect(id, wire.CodeFenced, why+remedy) // it may have gone by itself
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
	n.drains = nil // a rate over an outage says nothing
	n.saved.LastSeen, n.saved.Remote = now.UnixMilli(), info.Remote
	s.h.nodes.mu.Unlock()
	s.h.fetches.poke()
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
