package edge

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"tailrace/storage"
	"tailrace/storage/record"
)

// clockTopic holds the corrections of times that a clock without trust has written:
// a topic like any other, replicated as data. Its value is a ClockRow.
const clockTopic = "__tailrace_clock"

// ClockRow says by how much the times of a range of records were wrong. It concerns
// records whose time is that of their arrival (those without the header
// "event.time.ns"); the true time is the record's plus DeltaMS. Stored bytes never change.
type ClockRow struct {
	Node      string `json:"node"`
	Boot      string `json:"boot"` // the kernel's boot in which they were written
	Epoch     string `json:"epoch"`
	Topic     string `json:"topic"`
	Partition int    `json:"partition"` // the node's
	From      int64  `json:"from"`
	To        int64  `json:"to"` // exclusive
	DeltaMS   int64  `json:"delta_ms"`
	// Unknown: the machine was switched off before the time was known, or the records had
	// left the disk before it was found that the clock was set among them. Nothing can be
	// said but that the times are not to be trusted.
	Unknown bool  `json:"unknown,omitempty"`
	At      int64 `json:"at"` // ms since 1970, when it was found
}

const (
	clockTick     = time.Second
	stepThreshold = time.Second      // of the wall clock against the monotonic one
	hubTrust      = 2 * time.Second  // a clock so near to the hub's is right
	rowInterval   = time.Minute      // while the clock stays wrong and the hub knows better
	noteInterval  = time.Hour        // how often the last known time is written
	stepWait      = 10 * time.Second // for records to become durable, after a step
	hubSettle     = 45 * time.Second // after a step, until the hub's offset is measured anew (heartbeats are 15 s apart)
	maxSpans      = 64               // kept while the time is not known
	clockKey      = "clock"          // of a KindMeta entry
)

// clockSpan is a stretch in which wall and monotonic clock went together.
type clockSpan struct {
	Boot    string                        `json:"boot"`
	Shift   time.Duration                 `json:"shift"`           // wall minus monotonic
	From    map[storage.PartitionID]int64 `json:"from"`            // first offsets written in it
	Trusted bool                          `json:"trusted"`         // its times are right
	Doubt   bool                          `json:"doubt,omitempty"` // the clock was set somewhere in it, its records could not be asked where
}

// clockState is the durable part.
type clockState struct {
	Spans []clockSpan `json:"spans"` // not settled, oldest first; the last one is now
	Known int64       `json:"known"` // ms since 1970: a time that has certainly passed
}

// clock watches the wall clock. A board without a battery starts in 1970, or where it
// was switched off, and is set later, or never: then only the hub knows the time.
type clock struct {
	node   string
	wall   func() time.Time
	mono   func() time.Duration         // goes on over restarts of the process, not of the machine
	boot   string                       // the kernel's
	synced func() bool                  // the kernel says that somebody keeps the clock
	offset func() (time.Duration, bool) // hub's clock minus ours, when measured
	floor  time.Time                    // has certainly passed, whatever is known from earlier starts
	store  *storage.Store
	logger *slog.Logger
	made   func() // called after the topic was made; nil = nobody to tell

	mu      sync.Mutex // guards the fields below
	st      clockState
	trusted bool
	seen    map[storage.PartitionID]int64 // ends at the last look
	stepped map[storage.PartitionID]int64 // ends of what was appended when a step was found, until that is durable
	unsaved bool                          // the last save failed
	stepAt  time.Duration                 // monotonic, when the wall clock was set last; 0 = never
	rowsAt  time.Duration                 // of the last rows
	notedAt time.Duration
}

// clockTrusted says whether the wall clock is right, as far as the kernel or the hub
// can tell. Before the store is open: whether it is not certainly wrong.
func (n *Node) clockTrusted() bool {
	if n.clock != nil {
		return n.clock.isTrusted()
	}
	return n.uplinkTLS == nil || n.uplinkTLS.Time == nil || !n.uplinkTLS.Time().After(n.cfg.Now())
}

// newClock watches the wall clock from the monotonic one.
func (n *Node) newClock() *clock {
	boot, up := n.cfg.KernelBoot()
	if boot == "" {
		id := n.store.Identity().BootID
		boot = hex.EncodeToString(id[:])
	}
	base := time.Now()
	c := &clock{node: n.cfg.Node, wall: n.cfg.Now, boot: boot, synced: n.cfg.ClockSynced, store: n.store, logger: n.logger.With("part", "clock"),
		mono: func() time.Duration { return up + time.Since(base) }}
	if n.uplinkTLS != nil {
		c.floor = certFloor(n.uplinkTLS.Certificates[0].Leaf, buildTime())
	}
	c.offset = func() (time.Duration, bool) {
		if n.link == nil {
			return 0, false
		}
		st := n.link.State()
		return st.ClockOffset + time.Since(n.cfg.Now()), st.Connected && time.Since(st.Since) > hubSettle // it is measured from time.Now, by heartbeats
	}
	c.load()
	return c
}

// nexts is the end of each partition that has one: what is durable (an offset that is not
// may be given to another record), or all that was appended.
func (c *clock) nexts(end func(*storage.Partition) int64) map[storage.PartitionID]int64 {
	out := map[storage.PartitionID]int64{}
	for _, t := range c.store.Topics() {
		if t.Name() == clockTopic {
			continue
		}
		for _, p := range t.Partitions() {
			if n := end(p); n > 0 {
				out[p.ID()] = n
			}
		}
	}
	return out
}

func (c *clock) durable() map[storage.PartitionID]int64 {
	return c.nexts((*storage.Partition).HighWatermark)
}

// load reads what is known from earlier starts, and begins a span.
func (c *clock) load() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if v, ok := c.store.State(storage.KindMeta, clockKey); ok {
		if err := json.Unmarshal(v, &c.st); err != nil {
			c.logger.Warn("what was known of the clock is not understood and is forgotten", "err", err)
			c.st = clockState{}
		}
	}
	c.seen = c.durable()
	c.trusted = c.kernelTrust()
	shift := time.Duration(c.wall().UnixNano()) - c.mono()
	if n := len(c.st.Spans); n > 0 && c.st.Spans[n-1].Boot == c.boot && near(c.st.Spans[n-1].Shift, shift) {
		return // the process was started again
	}
	c.begin(clockSpan{Shift: shift, From: c.seen, Trusted: c.trusted})
	if len(c.st.Spans) > 1 || !c.trusted { // else there is nothing to remember
		c.save()
	}
}

func near(a, b time.Duration) bool { return (a - b).Abs() < stepThreshold }

// kernelTrust: a clock before a time that has passed is wrong, whoever keeps it.
func (c *clock) kernelTrust() bool {
	return c.synced() && c.wall().UnixMilli() >= c.st.Known && !c.wall().Before(c.floor)
}

// begin starts a span of this boot.
func (c *clock) begin(s clockSpan) {
	s.Boot = c.boot
	c.st.Spans = append(c.st.Spans, s)
	if n := len(c.st.Spans) - maxSpans; n > 0 {
		c.st.Spans = c.st.Spans[n:]
	}
}

// look is called every clockTick. It finds steps, and settles what is known.
func (c *clock) look() {
	c.mu.Lock()
	defer c.mu.Unlock()
	mono := c.mono()
	shift := time.Duration(c.wall().UnixNano()) - mono
	if c.unsaved {
		c.save()
	}
	cur := &c.st.Spans[len(c.st.Spans)-1]
	if near(cur.Shift, shift) {
		c.stepped = nil
	} else {
		old := cur.Shift
		if c.stepped == nil {
			c.logger.Warn("the wall clock was set", "by", (shift - old).String())
			c.trusted, c.stepAt = c.kernelTrust(), mono
			c.stepped = c.nexts((*storage.Partition).Next)
		}
		// Its place is found by the times of the records, which can be read when they are durable.
		if d := c.durable(); slices.ContainsFunc(slices.Collect(maps.Keys(c.stepped)), func(id storage.PartitionID) bool { return d[id] < c.stepped[id] }) && mono-c.stepAt < stepWait {
			return
		}
		from, doubt := c.boundary(c.stepped, time.UnixMilli(int64((old+mono)/time.Millisecond)), time.UnixMilli(int64((shift+mono)/time.Millisecond)))
		if doubt != nil {
			c.begin(clockSpan{Shift: old, From: doubt, Doubt: true})
		}
		c.begin(clockSpan{Shift: shift, From: from, Trusted: c.trusted})
		c.stepped = nil
		c.save()
		cur = &c.st.Spans[len(c.st.Spans)-1]
	}
	now := c.durable()
	// What is the time? The kernel's when it is kept; else the hub's, when it was asked.
	truth, known := shift, c.kernelTrust()
	if !known && (c.stepAt == 0 || mono-c.stepAt > hubSettle) {
		if off, ok := c.offset(); ok {
			truth, known = shift+off, true
		}
	}
	was := c.trusted
	c.trusted = known && (truth-shift).Abs() < hubTrust
	if c.trusted {
		cur.Trusted = true
	}
	if c.trusted != was {
		c.logger.Info("trust in the wall clock", "trusted", c.trusted, "time", c.wall().UTC())
	}
	if known {
		c.settle(truth, mono, now)
	}
	c.seen = now
}

// settle writes the rows of everything before now, and notes the time.
func (c *clock) settle(truth, mono time.Duration, now map[storage.PartitionID]int64) {
	last := c.st.Spans[len(c.st.Spans)-1]
	if len(c.st.Spans) == 1 && last.Trusted || !c.trusted && len(c.st.Spans) == 1 && mono-c.rowsAt < rowInterval && c.rowsAt > 0 {
		if c.trusted && (c.notedAt == 0 || mono-c.notedAt >= noteInterval) {
			c.notedAt, c.st.Known = mono, int64((truth+mono)/time.Millisecond)
			c.save()
		}
		return
	}
	var rows []ClockRow
	for i, s := range c.st.Spans {
		to := now
		if i+1 < len(c.st.Spans) {
			to = c.st.Spans[i+1].From
		}
		delta := truth - s.Shift
		if s.Trusted || s.Boot == c.boot && !s.Doubt && delta.Abs() < stepThreshold {
			continue
		}
		rows = append(rows, c.rows(s, to, delta, time.UnixMilli(int64((truth+mono)/time.Millisecond)))...)
	}
	before := c.st
	c.rowsAt, c.notedAt = mono, mono
	c.st.Known = int64((truth + mono) / time.Millisecond)
	c.st.Spans = []clockSpan{{Boot: c.boot, Shift: last.Shift, From: now, Trusted: c.trusted}}
	if err := c.write(rows); err != nil {
		c.logger.Warn("corrections of times cannot be written now", "err", err)
		c.st = before // tried again
		return
	}
	if len(rows) > 0 {
		c.logger.Warn("times of records were wrong; the corrections are on topic "+clockTopic, "ranges", len(rows), "delta_of_the_first", time.Duration(rows[0].DeltaMS)*time.Millisecond)
	}
}

// rows are those of one span, by partition and epoch.
func (c *clock) rows(s clockSpan, to map[storage.PartitionID]int64, delta time.Duration, at time.Time) []ClockRow {
	var out []ClockRow
	epochs := c.store.Epochs()
	for _, t := range c.store.Topics() {
		for _, p := range t.Partitions() {
			for k := range epochs {
				from, end := span(epochs, k, p)
				if from, end = max(from, s.From[p.ID()]), min(end, to[p.ID()]); from >= end {
					continue
				}
				r := ClockRow{Node: c.node, Boot: s.Boot, Epoch: hex.EncodeToString(epochs[k].ID[:]), Topic: t.Name(), Partition: p.Index(), From: from, To: end, At: at.UnixMilli()}
				if r.Unknown = s.Boot != c.boot || s.Doubt; !r.Unknown {
					r.DeltaMS = delta.Milliseconds()
				}
				out = append(out, r)
			}
		}
	}
	return out
}

// write makes rows and state durable in one step.
func (c *clock) write(rows []ClockRow) error {
	a := c.store.NewAppend("")
	if len(rows) > 0 {
		t, ok := c.store.Topic(clockTopic)
		if !ok {
			if _, err := c.store.CreateTopic(clockTopic, storage.TopicConfig{Partitions: 1}); err != nil && !errors.Is(err, storage.ErrExists) {
				return fmt.Errorf("make topic %s: %w", clockTopic, err)
			}
			if t, ok = c.store.Topic(clockTopic); !ok {
				return fmt.Errorf("topic %s is gone", clockTopic)
			}
			if c.made != nil {
				c.made()
			}
		}
		for _, r := range rows {
			v, err := json.Marshal(r)
			if err != nil {
				return err
			}
			if err := a.Record(t.Partition(0), r.At, []byte(c.node), v, nil); err != nil {
				return err
			}
		}
	}
	v, err := json.Marshal(c.st)
	if err != nil {
		return err
	}
	a.Set(storage.KindMeta, clockKey, v)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	return c.store.Commit(ctx, a)
}

// save is tried again at the next look when it fails.
func (c *clock) save() {
	err := c.write(nil)
	if err != nil && !c.unsaved {
		c.logger.Warn("the state of the clock is not saved", "err", err)
	}
	c.unsaved = err != nil
}

// boundary finds, among what was written since the last look, where the new time
// begins: the first record of a partition that is nearer to it than to the old one. What
// stands before that and cannot be read (drop-oldest or the hub's ack had it removed
// already) is in doubt from the offsets of the second result; nil = nothing is.
func (c *clock) boundary(now map[storage.PartitionID]int64, old, fresh time.Time) (from, doubt map[storage.PartitionID]int64) {
	from, doubt = map[storage.PartitionID]int64{}, map[storage.PartitionID]int64{}
	middle := old.UnixMilli()/2 + fresh.UnixMilli()/2
	lost := false
	for id, next := range now {
		from[id], doubt[id] = next, next
		p, ok := c.store.PartitionByID(id)
		if !ok {
			continue
		}
		before := c.seen[id] // the end of what is known to be older than the step
		for off := max(before, p.Start()); off < min(next, p.HighWatermark()) && from[id] == next; {
			b, n, err := p.Read(nil, off, 1<<20)
			if err != nil || n <= off {
				break
			}
			off = n
			for len(b) > 0 && from[id] == next {
				var batch record.Batch
				if batch, b, err = record.Next(b); err != nil {
					break
				}
				for it := batch.Iter(nil); it.Next(); {
					r := it.Record()
					if r.Offset < before || r.Offset >= next {
						continue
					}
					if (r.Timestamp > middle) == (fresh.UnixMilli() > middle) && !hasEventTime(r) {
						from[id] = r.Offset
						break
					}
					before = r.Offset + 1
				}
			}
		}
		if before < from[id] {
			doubt[id], lost = before, true
		}
	}
	if !lost {
		doubt = nil
	}
	return from, doubt
}

func hasEventTime(r *record.Record) bool {
	for _, h := range r.Headers {
		if h.Key == headerEventNanos {
			return true
		}
	}
	return false
}

// isTrusted is what the node tells the hub.
func (c *clock) isTrusted() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.trusted
}

// known is a time that has certainly passed, for certificates.
func (c *clock) known() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.UnixMilli(c.st.Known)
}

func (c *clock) run(ctx context.Context) {
	t := time.NewTicker(clockTick)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			c.look()
		}
	}
}
