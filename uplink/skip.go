package uplink

import (
	"fmt"
	"slices"
	"time"

	"tailrace/uplink/ranges"
	"tailrace/uplink/wire"
)

// A live-first topic on a link that is slower than what comes must not fall behind: what is
// too old when its turn comes is passed over, and the hub asks for it as backfill.
//
// For that the live Want of such a topic may not fill the queue of the link, in which its
// records would grow old: a window bounds what is under way, so that it is there soon.
const (
	skipAfter = 3 * time.Second // age at which a record is passed over, to begin with
	// Each passage is one more range in the hub's progress, of which there may be 4,096:
	// after each so many the age doubles.
	skipDouble = 256
	minLive    = 2 << 10  // of the window
	mostLive   = 64 << 10 // of a frame
	firstLive  = 16 << 10 // window to begin with
	maxMarks   = 128
)

// allowedAge is the age after n passages that made a hole each.
func allowedAge(first time.Duration, n int) time.Duration { return first << min(n/skipDouble, 16) }

// skipper is the part of a senderWant that passes over what is old. The zero value never does.
type skipper struct {
	after   time.Duration // 0 = never
	skips   int
	marks   []mark // the ends of the partition over time
	window  int64  // raw bytes that may be under way
	grow    int64  // of window, at a time
	full    bool   // window held something up since it was changed,
	changed time.Time
	record  float64 // raw bytes of one, lately
	usual   time.Duration
	settled time.Time // when the last frame that was acknowledged was handed over
	slow    time.Time // when something waited last
}

// mark says that a record at or above next became durable after at.
type mark struct {
	at   time.Time
	next int64
}

func (k *skipper) see(now time.Time, rtt time.Duration, pos, next int64) {
	if k.after == 0 {
		return
	}
	n := len(k.marks)
	switch {
	case n > 0 && k.marks[n-1].next == next:
		k.marks[n-1].at = now
	case n == 0 || now.Sub(k.marks[n-1].at) >= allowedAge(k.after, k.skips)/32:
		k.marks = append(k.marks, mark{now, next})
	}
	for len(k.marks) > 1 && k.marks[1].next <= pos {
		k.marks = k.marks[1:]
	}
	if len(k.marks) > maxMarks { // kept back for long: the first says how old pos is, the last ones where to go on
		k.marks = slices.Delete(k.marks, 1, 1+maxMarks/2)
	}
	if !k.settled.IsZero() {
		k.heard(now, now.Sub(k.settled), rtt)
		k.settled = time.Time{}
	}
}

// heard takes how long a frame took until it was acknowledged, and sets the window: what may
// be under way for a sixth of after above the usual.
func (k *skipper) heard(now time.Time, took, rtt time.Duration) {
	if k.usual == 0 || took < k.usual {
		k.usual = took
	}
	k.usual += (took - k.usual) / 256
	k.usual = min(max(k.usual, rtt), rtt+k.after/6) // a slow store is usual, a queue is not
	aim := k.after / 6
	late := took - k.usual
	if late > aim {
		k.slow = now
	}
	if !k.settled.After(k.changed) { // sent under another window
		return
	}
	switch {
	case late > aim:
		k.window = max(int64(float64(k.window)*(k.usual+aim).Seconds()/took.Seconds()), minLive)
		k.grow = k.window / 8
	case late < aim/2 && k.full:
		if k.window += k.grow; k.grow < k.window/16 {
			k.grow = k.window / 8
		}
	default:
		return
	}
	k.changed, k.full = now, false
}

// waits says whether nothing more may be handed over now. flight are the frames that are under way.
func (k *skipper) waits(flight []*slice) bool {
	under := int64(0)
	for _, x := range flight {
		if !x.acked {
			under += x.bytes
		}
	}
	k.full = k.full || under >= k.window
	return under >= k.window
}

// frame is how much is read at once.
func (k *skipper) frame() int { return int(min(max(k.window/2, minLive/2), mostLive)) }

// age is how old what is at pos may be; if it is from before the session, how old at least.
func (k *skipper) age(now time.Time) time.Duration {
	if len(k.marks) == 0 {
		return 0
	}
	return now.Sub(k.marks[0].at)
}

// over is where to go on from pos in a partition that ends at next: further on when what is
// at pos is too old and does not go with the newest in one frame.
func (k *skipper) over(now time.Time, pos, next int64) int64 {
	gap := pos < k.marks[0].next && next-pos > smallGap // from before the session, as in Receiver.plan
	if !gap && k.age(now) <= allowedAge(k.after, k.skips) {
		return pos
	}
	for _, m := range k.marks {
		if float64(next-m.next)*k.record <= float64(k.frame()) {
			return max(pos, m.next)
		}
	}
	return next
}

// passOver moves a live want on that has fallen behind.
func (s *Sender) passOver(w *senderWant, now time.Time) {
	to := w.skip.over(now, w.pos, w.part.next)
	if !w.follow || w.end != Forever || to <= w.pos {
		return
	}
	s.out = append(s.out, &wire.Skip{Want: w.id, From: w.pos, To: to})
	w.pos, w.skip.slow = to, now
	w.skip.skips++
	w.skip.see(now, s.rtt, w.pos, w.part.next)
}

// Skips says whether any want may pass over what is old: then SetRoundTrip is asked for.
func (s *Sender) Skips() bool { return len(s.skipping) > 0 }

// SetRoundTrip tells the least round trip of the connection that carries live.
func (s *Sender) SetRoundTrip(d time.Duration) { s.rtt = d }

// Behind says whether a want that may pass over what is old has, or had lately, something
// old to send: the link is its own.
func (s *Sender) Behind(now time.Time) bool {
	for _, w := range s.skipping {
		k := &w.skip
		switch {
		case w.state == wantHeld, !k.slow.IsZero() && now.Sub(k.slow) < 2*k.after:
			return true
		case k.usual == 0 && len(w.flight) > 0: // how fast the link is shows when the first frame has arrived
			return true
		case w.state == wantReady && w.part.priority >= s.floor[wire.LaneLive] && k.age(now) > k.after/3:
			return true
		}
	}
	return false
}

// Talks says whether Messages has something.
func (s *Sender) Talks() bool { return len(s.out) > 0 }

// Skip takes a Skip, and appends to out what may be stored now.
func (r *Receiver) Skip(out []Deliver, m *wire.Skip) ([]Deliver, error) {
	w := r.wants[m.Want]
	if w == nil { // cancelled or forked meanwhile
		return out, nil
	}
	if !w.mayskip || m.From >= m.To || m.From < 0 {
		return out, fmt.Errorf("%w: node %s passes over [%d,%d) of want %d", wire.ErrMalformed, r.cfg.Node, m.From, m.To, m.Want)
	}
	over := ranges.Of(max(m.From, w.next), max(m.To, w.next))
	over.RemoveSet(w.done)
	w.wanted.Remove(m.From, m.To)
	w.skipped.AddSet(over)
	w.skip()
	out, _, err := r.release(out, w)
	return out, err
}

// passed asks for what w has passed over, once everything below is delivered: in the
// companion topic, too, a node's offsets only ascend.
func (r *Receiver) passed(w *recvWant) {
	for len(w.skipped) > 0 && w.skipped[0].To <= w.next {
		x, p := w.skipped[0], w.part
		w.skipped = w.skipped[1:]
		if n := len(p.later); n > 0 && p.later[n-1].backfill && r.epochs.find(p.later[n-1].want.Epoch) == w.epoch && len(p.later[n-1].want.Ranges) < wire.MaxRanges {
			p.later[n-1].want.Ranges.Add(x.From, x.To)
			continue
		}
		p.later = append(p.later, laterWant{&wire.Want{Partition: p.info.ID, Epoch: r.epochs.id(w.epoch), Ranges: ranges.Of(x.From, x.To), Lane: wire.LaneBackfill, CatchUp: wire.LaneBackfill}, true})
	}
	r.ask(w.part)
}
