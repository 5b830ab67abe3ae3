package edge

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"tailrace/edge/sketch"
	"tailrace/storage"
	"tailrace/storage/record"
	"tailrace/uplink"
	"tailrace/uplink/wire"
)

// SketchConfig of a stream.
type SketchConfig struct {
	// Window of time that one row is of; default 1m, 1s to 24h.
	Window time.Duration `yaml:"window"`
}

// sketcher writes coarse accounts (package sketch) of what the hub lacks into the streams
// <stream>.sketch of this node's own log, from where they go to the hub like everything else,
// but before their stream's detail.
//
// It reads what became durable while the hub was away, or what the hub did not get within a
// window, and closes rows when a window of the clock ends, when they are many, and when the
// hub comes back after an outage worth the name. Rows and the offset up to which they tell
// are one commit: after a crash the rest is read again, and told once.
type sketcher struct {
	store     *storage.Store
	streams   *streams
	source    *source
	now       func() time.Time
	connected func() bool
	logger    *slog.Logger
	welcome   chan struct{} // capacity 1: the hub is back
	of        map[string]*sketched
	buf       []byte

	mu   sync.Mutex // guards the following
	rows map[string]*sketchRows
}

// sketchRows counts the rows of one stream since the start.
type sketchRows struct {
	made int64
	lost uplink.RangeSet // offsets of the sketch that were given up before the hub had them
}

// count is called for a stream that is new, and when rows were made.
func (k *sketcher) count(name string, made int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	c := k.rows[name]
	if c == nil {
		c = &sketchRows{}
		k.rows[name] = c
	}
	c.made += int64(made)
}

// countLost is called at each look, and when rows were made: the hub may know of a loss soon,
// and then it is told of no more.
func (k *sketcher) countLost() {
	losses := k.store.Losses()
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, l := range losses {
		if name, ok := strings.CutSuffix(l.Topic, wire.SketchSuffix); ok && k.rows[name] != nil {
			k.rows[name].lost.Add(l.From, l.To)
		}
	}
}

// counts tells of each stream how many rows were made and given up.
func (k *sketcher) counts(tell func(name string, made, lost int64)) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for name, c := range k.rows {
		tell(name, c.made, c.lost.Count())
	}
}

// sketched is one stream.
type sketched struct {
	part  *storage.Partition
	class string
	acc   *sketch.Sketch
	span  time.Duration
	began time.Time // of what is in acc

	// saved <= pos <= read. Below pos all is told, or at the hub; [pos, read) is in acc.
	saved, pos, read int64
	savedAt          time.Time
	seen             int64 // the end of the stream at seenAt
	seenAt           time.Time
	late             int64     // what lies below should be at the hub by now
	behind           time.Time // since when the hub lacks something; zero = it does not
	failing          bool
}

const (
	sketchTick   = time.Second
	sketchSave   = time.Minute      // how often the offset alone is saved
	sketchOutage = 10 * time.Second // when the hub comes back sooner, its detail is as fast
	sketchRead   = 256 << 10
	sketchKey    = "sketch/" // and the stream: a KindMeta entry, the offset as u64
)

// newSketcher returns nil when no stream is to be sketched. What streams hold before their
// first sketch is not told.
func newSketcher(n *Node) *sketcher {
	k := &sketcher{store: n.store, streams: n.streams, source: n.source, now: n.cfg.Now, logger: n.logger.With("part", "sketch"), welcome: make(chan struct{}, 1), of: map[string]*sketched{}, rows: map[string]*sketchRows{}}
	some := false
	for _, t := range n.cfg.Topics {
		some = some || t.Sketch != nil
	}
	if !some || len(n.cfg.Uplink.Hubs) == 0 {
		return nil
	}
	k.find(true)
	return k
}

// find takes up streams that are new. old: they were there before this start.
func (k *sketcher) find(old bool) {
	for _, t := range k.store.Topics() {
		name := t.Name()
		if k.of[name] != nil || strings.HasPrefix(name, "__") {
			continue
		}
		conf, p := k.streams.rule(name).Sketch, t.Partition(0)
		if conf == nil || p == nil {
			continue
		}
		s := &sketched{part: p, class: t.Config().Class, span: conf.Window, acc: sketch.New(conf.Window), seen: p.HighWatermark(), seenAt: k.now(), saved: -1}
		if v, ok := k.store.State(storage.KindMeta, sketchKey+name); ok && len(v) == 8 {
			s.saved = int64(binary.BigEndian.Uint64(v))
			s.pos = min(s.saved, s.seen) // the log may have lost its end
		} else if old {
			s.pos = s.seen
		}
		s.read = s.pos
		k.of[name] = s
		k.count(name, 0)
	}
}

// run works until ctx ends.
func (k *sketcher) run(ctx context.Context) {
	t := time.NewTimer(0)
	defer t.Stop()
	back := false
	for {
		now := k.now()
		k.find(false)
		k.countLost()
		next := sketchTick
		for name, s := range k.of {
			if err := k.step(ctx, name, s, now, back); err != nil && ctx.Err() == nil {
				if !s.failing {
					k.logger.Warn("a stream cannot be sketched now; tried again", "stream", name, "err", err)
				}
				s.failing = true
			} else {
				s.failing = false
			}
			next = min(next, time.UnixMilli((s.window(now)+1)*s.span.Milliseconds()).Sub(now)) // at the end of a window, too
		}
		back = false
		t.Reset(max(next, time.Millisecond))
		select {
		case <-ctx.Done():
			return
		case <-k.welcome:
			back = true
		case <-t.C:
		}
	}
}

// step brings one stream up to date. back: the hub has come back.
func (k *sketcher) step(ctx context.Context, name string, s *sketched, now time.Time, back bool) error {
	end := s.part.HighWatermark()
	lacks, _ := k.source.lacks(s.part, max(s.pos, s.part.Start()))
	if lacks >= s.read { // all of it is at the hub, or gone
		s.acc.Reset()
		s.pos, s.read = lacks, lacks
	}
	if now.Sub(s.seenAt) >= s.span {
		s.late, s.seen, s.seenAt = s.seen, end, now
	}
	if !back && k.connected() && lacks >= min(s.late, end) { // what it lacks is on its way
		s.acc.Reset()
		s.pos, s.read, s.behind = lacks, lacks, time.Time{}
		if s.pos != s.saved && now.Sub(s.savedAt) >= sketchSave {
			return k.save(ctx, name, s, k.store.NewAppend(s.class), now)
		}
		return nil
	}
	if s.behind.IsZero() {
		s.behind = now
	}
	if err := k.catchUp(ctx, name, s, end, now); err != nil {
		return err
	}
	if s.window(now) > s.window(s.began) || back && now.Sub(s.behind) >= sketchOutage {
		return k.write(ctx, name, s)
	}
	return nil
}

// window is the number of the window that a time lies in.
func (s *sketched) window(t time.Time) int64 { return t.UnixMilli() / s.span.Milliseconds() }

// catchUp reads up to end what the hub lacks.
func (k *sketcher) catchUp(ctx context.Context, name string, s *sketched, end int64, now time.Time) error {
	d := record.NewDecompressor(0)
	defer d.Close()
	for s.read < end && ctx.Err() == nil {
		from, to := k.source.lacks(s.part, max(s.read, s.part.Start()))
		if to = min(to, end); from > s.read { // a piece that is at the hub: rows tell what lies on one side of it
			if err := k.write(ctx, name, s); err != nil {
				return err
			}
			s.pos, s.read = from, from
		}
		if from >= to {
			return nil
		}
		if s.read == s.pos {
			s.began = now
		}
		b, _, err := s.part.Read(k.buf[:0], s.read, sketchRead)
		if errors.Is(err, storage.ErrOffsetOutOfRange) && s.read < s.part.Start() {
			continue // it was given up meanwhile
		}
		if err != nil {
			return err
		}
		k.buf = b
		before := s.read
		if err := k.add(ctx, name, s, b, to, d); err != nil {
			return err
		}
		if s.read == before {
			return nil
		}
	}
	return nil
}

// add takes batches in, up to an offset.
func (k *sketcher) add(ctx context.Context, name string, s *sketched, b []byte, to int64, d *record.Decompressor) error {
	for len(b) > 0 && s.read < to {
		batch, rest, err := record.Next(b)
		if err != nil {
			return err
		}
		b = rest
		it := batch.Iter(d)
		for it.Next() {
			r := it.Record()
			if r.Offset < s.read {
				continue
			}
			if r.Offset >= to {
				return nil
			}
			var topic []byte
			for i := range r.Headers {
				if string(r.Headers[i].Key) == headerTopic {
					topic = r.Headers[i].Value
				}
			}
			s.acc.Add(r.Key, topic, r.Timestamp, r.Value)
			s.read = r.Offset + 1
			if s.acc.Full() {
				if err := k.write(ctx, name, s); err != nil {
					return err
				}
			}
		}
		if err := it.Err(); err != nil {
			return err
		}
		s.read = max(s.read, min(batch.NextOffset(), to))
	}
	return nil
}

// write makes what was read durable, as rows.
func (k *sketcher) write(ctx context.Context, name string, s *sketched) error {
	if s.read == s.pos {
		return nil
	}
	out, _, err := k.streams.partition(name + wire.SketchSuffix)
	if err != nil {
		return err
	}
	a := k.store.NewAppend(s.class)
	rows := s.acc.Rows(name, s.pos, s.read)
	for i := range rows {
		r := &rows[i]
		v, err := r.Encode()
		if err == nil {
			err = a.Record(out, r.LastMS, r.Device, v, nil)
		}
		if err != nil {
			s.read = s.pos // from the log again
			return fmt.Errorf("a row for %q: %w", r.Device, err)
		}
	}
	before := s.pos
	s.pos = s.read
	if err := k.save(ctx, name, s, a, k.now()); err != nil {
		s.pos, s.read = before, before
		return err
	}
	k.count(name, len(rows))
	k.countLost()
	return nil
}

// save commits a with the offset up to which all is told.
func (k *sketcher) save(ctx context.Context, name string, s *sketched, a *storage.Append, now time.Time) error {
	pos := s.pos
	a.Set(storage.KindMeta, sketchKey+name, binary.BigEndian.AppendUint64(nil, uint64(pos)))
	if err := k.store.Commit(ctx, a); err != nil {
		return err
	}
	s.saved, s.savedAt = pos, now
	return nil
}

// lacks is the first run of offsets at or after from that the hub does not have, as far
// as it has said.
func (s *source) lacks(p *storage.Partition, from int64) (lo, hi int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.acked[p.ID()]
	if a == nil {
		return from, uplink.Forever
	}
	r := a.held.Missing(from, uplink.Forever)[0]
	return r.From, r.To
}
