package uplink

import (
	"fmt"
	"slices"
	"time"

	"tailrace/uplink/ranges"
	"tailrace/uplink/wire"
)

// SenderConfig bounds a Sender.
type SenderConfig struct {
	WindowBytes int64 // raw bytes outstanding at most, whatever the credit
	LiveBytes   int   // read size on the live lane
	FrameBytes  int   // read size on the other lanes
	MaxWants    int   // Wants held at most
}

// Sender is the node's half of one session: which bytes to read next, for whom,
// and what is outstanding. It is a plain value: feed it messages, reads and the
// time, and carry out what it says. Not safe for concurrent use.
//
//	Want, Ack, Cancel   what the hub said
//	Advance             what became durable at the node
//	Next -> Done        what to read, and what the read gave: a frame to write
//	Messages            what to tell the hub
//
// Invariants: sent[lane] <= credit[lane] + one frame; outstanding <= WindowBytes
// + one frame; a range is in at most one job at a time.
type Sender struct {
	cfg         SenderConfig
	epochs      epochTable
	parts       map[uint32]*senderPart
	byName      map[name]*senderPart
	wants       map[uint32]*senderWant
	checks      []*senderWant // read the batch that the hub named, first of all
	ready       [wire.Lanes]readyQueue
	resend      [wire.Lanes][]*slice
	credit      [wire.Lanes]uint64
	sent        [wire.Lanes]uint64
	rate        [wire.Lanes]uint64
	nextAt      [wire.Lanes]time.Time // when the rate allows the next frame
	floor       [wire.Lanes]int32     // least priority that may go
	outstanding int64
	carried     map[int]int64 // of outstanding, by connection
	late        []Acked       // acks that waited for a check
	skipping    []*senderWant // may pass over
	rtt         time.Duration // least round trip, 0 = not known
	failed      []Job         // reads that failed; Retry takes them up again
	out         []wire.Message
	gaps        []wire.Message // not said while holding

	// Nothing is sent before it is certain that all of the log is the one that the hub
	// holds: one log is not to be mixed with another topic by topic. The hub asks first
	// for what it can compare, and acknowledges what it holds after its first Wants.
	asked     bool // the hub has said something
	compare   bool // it holds something that can be compared
	heard     bool // it has told what it holds, so the Wants to compare are here
	comparing int  // wants in wantCheck
	forked    bool // the logs differ
}

// holding says whether nothing may be sent yet, or ever.
func (s *Sender) holding() bool {
	return s.forked || s.comparing > 0 || s.compare && !s.heard
}

// SetFrame changes SenderConfig.FrameBytes.
func (s *Sender) SetFrame(n int) { s.cfg.FrameBytes = n }

// Heard says that the hub has said something, whatever it was.
func (s *Sender) Heard() { s.asked = true }

type senderPart struct {
	id          uint32
	name        name
	priority    int32
	rank        rank // in ready queues
	start, next int64
	spans       []span
	wants       []*senderWant
	gone        map[int]*RangeSet // by epoch: proposed as gaps in this session
	forked      map[int]bool      // by epoch: the hub holds another log, its acks mean nothing here
}

// senderWant is one Want and where it is. Ranges in todo come first, then, with
// follow, everything from pos on.
type senderWant struct {
	id      uint32
	part    *senderPart
	epoch   int
	todo    RangeSet
	follow  bool
	pos     int64 // next offset to read
	end     int64 // of the range being read; Forever when following
	home    wire.Lane
	catchUp wire.Lane
	lane    wire.Lane // home or catchUp
	last    *wire.Held
	state   wantState
	waiting RangeSet // acks that mean nothing before the check
	flight  []*slice // sent and not acked, ascending
	skip    skipper
}

type wantState uint8

const (
	wantIdle   wantState = iota // nothing durable to send
	wantReady                   // in a ready queue
	wantCheck                   // in checks, or its check is being read
	wantBusy                    // its next range is being read
	wantFailed                  // its read failed; Retry
	wantHeld                    // its window is used; an ack
	wantDone                    // nothing left, forked or cancelled
)

// slice is a range that was handed to a connection.
type slice struct {
	want     *senderWant
	from, to int64
	bytes    int64
	lane     wire.Lane
	conn     int
	acked    bool
	at       time.Time // when it was read, if it may be skipped
	wrote    time.Time // when the connection had all of it
	again    bool      // overdue: sent by another connection too
	queued   bool      // for that
}

// Job is one read of the node's log.
type Job struct {
	Topic    string
	Index    int
	From, To int64 // wanted is [From, To); To may be Forever
	MaxBytes int
	Lane     wire.Lane
	Check    bool // only the first batch is looked at

	want   *senderWant
	resend *slice
}

// Read is what a Job gave.
type Read struct {
	Batches []byte // whole batches
	Gone    bool   // the node no longer has Job.From
	Failed  bool   // could not be read now; try again after Retry
}

// Frame is one data frame to write.
type Frame struct {
	Header  wire.FrameHeader
	Batches []byte // aliases Read.Batches

	slice *slice
}

// Acked is what became durable at the hub.
type Acked struct {
	Topic  string
	Index  int
	Epoch  wire.ID
	Ranges RangeSet
}

// NewSender starts a session with what Hello offered and Welcome granted.
func NewSender(cfg SenderConfig, inv wire.Inventory, credit [wire.Lanes]uint64) *Sender {
	s := &Sender{cfg: cfg, credit: credit, parts: map[uint32]*senderPart{}, byName: map[name]*senderPart{}, wants: map[uint32]*senderWant{}, carried: map[int]int64{}, floor: [wire.Lanes]int32{NoFloor, NoFloor, NoFloor}}
	s.Inventory(inv)
	return s
}

// Inventory replaces the list of partitions. Epochs do not change within a session.
func (s *Sender) Inventory(inv wire.Inventory) {
	if s.epochs.list == nil {
		s.epochs = newEpochTable(inv.Epochs)
	}
	for i := range inv.Partitions {
		p := &inv.Partitions[i]
		if sp := s.parts[p.ID]; sp != nil {
			s.advance(sp, p.Start, p.Next)
			continue
		}
		n := name{p.Topic, p.Partition}
		sp := &senderPart{id: p.ID, name: n, priority: p.Priority, rank: rankOf(p.Topic, p.Priority), start: p.Start, next: p.Next, spans: s.epochs.spans(n), gone: map[int]*RangeSet{}, forked: map[int]bool{}}
		s.parts[p.ID], s.byName[n] = sp, sp
	}
}

// Advance reports a partition's bounds: [start, next) is durable and readable.
func (s *Sender) Advance(topic string, index int, start, next int64) {
	if p := s.byName[name{topic, index}]; p != nil {
		s.advance(p, start, next)
	}
}

func (s *Sender) advance(p *senderPart, start, next int64) {
	p.start, p.next = max(p.start, start), max(p.next, next)
	for _, w := range p.wants {
		if w.state == wantIdle {
			s.queue(w)
		}
	}
}

// Want takes a Want. An error is about the hub's message and ends the session.
func (s *Sender) Want(m *wire.Want) error {
	p := s.parts[m.Partition]
	if p == nil {
		s.out = append(s.out, &wire.Error{Code: wire.CodeProtocol, Want: m.ID, Message: fmt.Sprintf("no partition with id %d", m.Partition)})
		return nil
	}
	e := s.epochs.find(m.Epoch)
	if e < 0 {
		s.out = append(s.out, &wire.Error{Code: wire.CodeProtocol, Want: m.ID, Message: "no epoch " + m.Epoch.String()})
		return nil
	}
	if s.wants[m.ID] != nil {
		return fmt.Errorf("%w: want %d came twice", wire.ErrMalformed, m.ID)
	}
	if len(s.wants) >= s.cfg.MaxWants {
		return fmt.Errorf("%w: more than %d wants", wire.ErrMalformed, s.cfg.MaxWants)
	}
	if m.Credit > s.credit[m.Lane] {
		s.credit[m.Lane] = m.Credit
	}
	if m.Rate > 0 {
		s.rate[m.Lane] = m.Rate
	}
	if m.SlowRate > 0 {
		s.rate[m.CatchUp] = m.SlowRate
	}
	w := &senderWant{id: m.ID, part: p, epoch: e, follow: m.Follow, home: m.Lane, catchUp: m.CatchUp, lane: m.Lane, last: m.Last}
	if !m.Follow {
		w.catchUp = m.Lane
	} else if m.SkipMS > 0 && m.Lane == wire.LaneLive && m.CatchUp == wire.LaneLive {
		w.skip = skipper{after: time.Duration(m.SkipMS) * time.Millisecond, window: firstLive, grow: firstLive, record: 200}
		s.skipping = append(s.skipping, w)
	}
	// Only what this epoch covers: the same offset in another epoch is another record.
	for _, sp := range p.spans {
		if sp.epoch != e {
			continue
		}
		w.todo = m.Ranges.Within(sp.from, sp.to)
		if m.Follow {
			w.todo = append(w.todo, Range{From: max(m.From, sp.from), To: sp.to}) // bounded for an older epoch
		}
	}
	s.wants[m.ID] = w
	p.wants = append(p.wants, w)
	s.asked, s.compare = true, s.compare || m.Last != nil
	if w.follow && m.From > p.next {
		s.fork(w, wire.Fork{Offset: m.From, Absent: true})
		return nil
	}
	w.nextRange()
	if n := len(m.Ranges); n > 0 || m.Follow && p.next-m.From > 256 {
		w.lane = w.catchUp
	}
	if w.last != nil && w.last.Offset >= p.start {
		if w.last.Offset >= p.next {
			s.fork(w, wire.Fork{Offset: w.last.Offset, Absent: true})
			return nil
		}
		w.state = wantCheck
		s.comparing++
		s.checks = append(s.checks, w)
		return nil
	}
	s.queue(w)
	return nil
}

// nextRange moves to the next wanted range; false when there is none.
func (w *senderWant) nextRange() bool {
	if len(w.todo) == 0 {
		w.state = wantDone
		return false
	}
	w.pos, w.end = w.todo[0].From, w.todo[0].To
	w.todo = w.todo[1:]
	return true
}

// queue makes w ready when it has something to send, idle otherwise.
func (s *Sender) queue(w *senderWant) {
	if w.state == wantDone {
		return
	}
	for w.pos >= w.end {
		if !w.nextRange() {
			s.drop(w)
			return
		}
	}
	if w.pos >= w.part.next {
		w.state = wantIdle
		w.lane = w.home // caught up
		return
	}
	w.state = wantReady
	s.ready[w.lane].push(w)
}

// drop forgets a finished want once nothing of it is outstanding.
func (s *Sender) drop(w *senderWant) {
	if w.state == wantCheck {
		s.comparing--
	}
	w.state = wantDone
	if len(w.flight) > 0 {
		return
	}
	delete(s.wants, w.id)
	s.skipping = slices.DeleteFunc(s.skipping, func(x *senderWant) bool { return x == w })
	for i, x := range w.part.wants {
		if x == w {
			w.part.wants = append(w.part.wants[:i], w.part.wants[i+1:]...)
			break
		}
	}
}

func (s *Sender) fork(w *senderWant, f wire.Fork) {
	f.Want, f.Partition, f.Epoch, f.Next = w.id, w.part.id, s.epochs.id(w.epoch), w.part.next
	s.out = append(s.out, &f)
	w.part.forked[w.epoch], s.forked = true, true
	for _, x := range slices.Clone(w.part.wants) {
		if x.epoch == w.epoch {
			s.drop(x)
		}
	}
}

// Cancel withdraws a Want.
func (s *Sender) Cancel(id uint32) {
	if w := s.wants[id]; w != nil {
		s.drop(w)
	}
}

// Next gives connection conn the next read for a lane. When there is none now, wait says how long
// the rate limit forbids it, 0 = until something is fed.
func (s *Sender) Next(lane wire.Lane, conn int, now time.Time) (j Job, ok bool, wait time.Duration) {
	for len(s.checks) > 0 {
		w := s.checks[0]
		s.checks = s.checks[1:]
		if w.state == wantCheck {
			return Job{Topic: w.part.name.topic, Index: w.part.name.index, From: w.last.Offset, To: w.last.Offset + 1, MaxBytes: 1, Lane: lane, Check: true, want: w}, true, 0
		}
	}
	if s.holding() {
		return Job{}, false, 0
	}
	if len(s.resend[lane]) > 0 { // paid for already
		if x := s.takeResend(lane, conn); x != nil {
			return Job{Topic: x.want.part.name.topic, Index: x.want.part.name.index, From: x.from, To: x.to, MaxBytes: int(x.bytes), Lane: lane, want: x.want, resend: x}, true, 0
		}
	}
	if lane == wire.LaneLive {
		for _, w := range s.skipping {
			w.skip.see(now, s.rtt, w.pos, w.part.next)
		}
	}
	for {
		w := s.ready[lane].peek(s.floor[lane])
		if w == nil {
			return Job{}, false, 0
		}
		if s.sent[lane] >= s.credit[lane] || s.outstanding >= s.cfg.WindowBytes {
			return Job{}, false, 0
		}
		if d := s.nextAt[lane].Sub(now); d > 0 && s.rate[lane] > 0 {
			return Job{}, false, d
		}
		s.ready[lane].pop()
		if g := w.part.gone[w.epoch]; g != nil && g.Contains(w.pos) {
			w.pos = min(g.Missing(w.pos, Forever)[0].From, w.end)
			s.queue(w)
			continue
		}
		n := s.cfg.FrameBytes
		if lane == wire.LaneLive {
			n = s.cfg.LiveBytes
		}
		if w.skip.after > 0 {
			if w.skip.waits(w.flight) {
				w.state = wantHeld
				continue
			}
			if s.passOver(w, now); w.pos >= w.part.next {
				s.queue(w)
				continue
			}
			n = min(n, w.skip.frame())
		}
		w.state = wantBusy
		return Job{Topic: w.part.name.topic, Index: w.part.name.index, From: w.pos, To: w.end, MaxBytes: n, Lane: lane, want: w}, true, 0
	}
}

// Done takes what a Job gave. With ok, f is to be written on the job's lane by
// connection conn, before anything else of that partition on that connection.
func (s *Sender) Done(j Job, r Read, conn int, now time.Time) (f Frame, ok bool) {
	w := j.want
	switch {
	case j.Check:
		s.checked(w, r)
		return Frame{}, false
	case j.resend != nil:
		return s.resent(j, r, conn)
	case w.state != wantBusy: // cancelled while it was read
		return Frame{}, false
	case r.Failed:
		w.state = wantFailed
		s.failed = append(s.failed, j)
		return Frame{}, false
	case r.Gone:
		s.gone(w, j)
		return Frame{}, false
	}
	first, next, n, err := runOf(r.Batches, j.From, j.To)
	if err != nil || n == 0 && first == Forever { // unreadable, or less there than Advance said
		w.state = wantFailed
		s.failed = append(s.failed, j)
		return Frame{}, false
	}
	if first > j.From { // a hole that the log does not explain
		s.propose(w.part, w.epoch, wire.Gap{Ranges: ranges.Of(j.From, min(first, j.To)), Reason: wire.GapMissing})
		w.pos = min(first, j.To)
	}
	if n == 0 {
		s.queue(w)
		return Frame{}, false
	}
	if n > wire.MaxFrameBytes {
		s.out = append(s.out, &wire.Error{Code: wire.CodeInternal, Want: w.id, Message: fmt.Sprintf("%s/%d: the batch at offset %d has %d bytes, a frame carries %d", j.Topic, j.Index, first, n, wire.MaxFrameBytes)})
		s.drop(w)
		return Frame{}, false
	}
	x := &slice{want: w, from: first, to: next, bytes: int64(n), lane: j.Lane, conn: conn}
	if w.skip.after > 0 {
		x.at = now
		w.skip.record += (float64(n)/float64(next-first) - w.skip.record) / 8
	}
	w.flight = append(w.flight, x)
	s.outstanding += x.bytes
	s.carried[conn] += x.bytes
	s.sent[j.Lane] += uint64(n)
	if rate := s.rate[j.Lane]; rate > 0 {
		at := s.nextAt[j.Lane]
		if at.Before(now) {
			at = now
		}
		s.nextAt[j.Lane] = at.Add(time.Duration(float64(n) / float64(rate) * float64(time.Second)))
	}
	w.pos = next
	if w.lane == w.home && n >= s.cfg.LiveBytes && w.pos < w.part.next {
		w.lane = w.catchUp // more than a frame behind
	}
	s.queue(w)
	return Frame{Header: wire.FrameHeader{Partition: w.part.id, Epoch: uint32(w.epoch), Base: first, Count: next - first}, Batches: r.Batches[:n], slice: x}, true
}

// runOf is the run of contiguous batches at the start of b that begin before to:
// its offsets and bytes. first is Forever when b is empty.
func runOf(b []byte, from, to int64) (first, next int64, n int, err error) {
	first = Forever
	for rest := b; len(rest) > 0; {
		var x wire.Batch
		if x, rest, err = wire.NextBatch(rest); err != nil {
			return first, next, n, err
		}
		if first == Forever {
			if x.Next <= from {
				return first, next, 0, fmt.Errorf("read at offset %d gave a batch that ends at %d", from, x.Next)
			}
			first, next = x.Base, x.Base
		}
		if x.Base != next || x.Base >= to {
			break
		}
		next, n = x.Next, n+len(x.Bytes)
	}
	return first, next, n, nil
}

func (s *Sender) checked(w *senderWant, r Read) {
	if w.state != wantCheck {
		return
	}
	if r.Failed {
		s.failed = append(s.failed, Job{want: w, Check: true})
		return
	}
	if !r.Gone { // gone: there is nothing left to compare
		x, _, err := wire.NextBatch(r.Batches)
		if err != nil || x.Base != w.last.Offset || x.CRC != w.last.CRC {
			s.fork(w, wire.Fork{Offset: w.last.Offset, CRC: x.CRC})
			return
		}
	}
	w.state = wantIdle
	s.comparing--
	if len(w.waiting) > 0 {
		s.late = append(s.late, s.acked(w.part, w.epoch, w.waiting))
		w.waiting = nil
	}
	s.queue(w)
}

// gone passes a range that the node no longer has, with the reason that Propose was
// told, or as expired when it lies below the start.
func (s *Sender) gone(w *senderWant, j Job) {
	if g := w.part.gone[w.epoch]; g != nil && g.Contains(w.pos) {
		s.queue(w) // Next skips it
		return
	}
	if w.pos < w.part.start {
		to := min(w.part.start, w.end)
		s.propose(w.part, w.epoch, wire.Gap{Ranges: ranges.Of(w.pos, to), Reason: wire.GapExpired})
		w.pos = to
		s.queue(w)
		return
	}
	w.state = wantFailed
	s.failed = append(s.failed, j)
}

// Retry takes failed reads up again.
func (s *Sender) Retry() {
	failed := s.failed
	s.failed = nil
	for _, j := range failed {
		switch {
		case j.resend != nil:
			if !j.resend.acked {
				s.resend[j.resend.lane] = append(s.resend[j.resend.lane], j.resend)
			}
		case j.Check && j.want.state == wantCheck:
			s.checks = append(s.checks, j.want)
		case j.want.state == wantFailed:
			s.queue(j.want)
		}
	}
}

// Messages hands out what there is to tell the hub.
func (s *Sender) Messages() []wire.Message {
	out := s.out
	s.out = nil
	if s.asked && !s.holding() {
		out, s.gaps = append(out, s.gaps...), nil
	}
	return out
}

// Outstanding is the number of raw bytes sent and not acked.
func (s *Sender) Outstanding() int64 { return s.outstanding }

// Carries is the number of raw bytes outstanding that a connection carried.
func (s *Sender) Carries(conn int) int64 { return s.carried[conn] }

// Pending says whether a lane has anything to send that may go, credit or not.
func (s *Sender) Pending(lane wire.Lane) bool {
	return s.ready[lane].peek(s.floor[lane]) != nil || slices.ContainsFunc(s.resend[lane], func(x *slice) bool { return !x.acked && x.want.part.priority >= s.floor[lane] })
}
