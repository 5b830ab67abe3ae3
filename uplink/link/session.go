package link

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"tailrace/uplink"
	"tailrace/uplink/wire"
)

// session is the node's end of one session: it reads the Source for what the Sender
// says, and carries control messages. Its goroutines: one reads control, one writes
// it, one watches, one per lane writes data.
type session struct {
	c       *Client
	conn    carrier
	control controlStream
	reader  *wire.Reader
	hub     string
	id      wire.ID
	early   bool // Hello went as early data

	dialBulk func(context.Context) (carrier, error)
	welcome  wire.Welcome
	epoch    wire.ID // the current one of Hello; a node that begins another begins another session
	log      interface {
		Debug(msg string, args ...any)
		Warn(msg string, args ...any)
		Error(msg string, args ...any)
	}

	ctx    context.Context // ends when the session is over
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup
	done   chan struct{} // closed when every goroutine has ended; err is set before
	err    error

	measured  chan measurement // capacity 1
	progress  atomic.Int64     // raw bytes that became durable
	stall     chan struct{}    // capacity 1: the watchdog sees no progress
	recovered chan struct{}    // capacity 1: progress after a stall
	poke      chan struct{}    // capacity 1: probe the hub now
	isStalled atomic.Bool
	useful    atomic.Bool // something was acknowledged, or the session lived a while

	clockOffset atomic.Int64
	heartbeat   atomic.Uint64 // sequence of the last one sent
	answered    atomic.Uint64
	acks        atomic.Int64 // bumped by every Ack that covered something

	commands  chan wire.Command
	drainHubs []string // written by the control reader before done

	changed chan struct{} // capacity 1: the Source moved
	pacer   pacer

	liveBehind atomic.Bool // Sender.Behind, when the live lane looked last

	// Owned by samplePath, which the pacer calls one at a time.
	sampled []*worker // scratch
	onLink  int64     // bytes that bulk's connections sent

	mu         sync.Mutex // guards the following
	frame      int        // raw bytes of a frame that is not live
	mostFrame  int        // does not change
	sender     *uplink.Sender
	workers    []*worker
	partitions []uplinkPartition
	moved      []int // of advance
	generation uint64
	queue      []wire.Message // to write, bounded by maxQueued
	writeKick  chan struct{}  // capacity 1
}

type uplinkPartition struct {
	id          uint32
	topic       string
	index       int
	start, next int64
}

const (
	liveReadBytes = 64 << 10
	maxQueued     = 8192
	maxWants      = 4 * wire.MaxPartitions
	idleContext   = 30 * time.Second // a lane silent for so long gives its zstd context up
)

// open says Hello on a fresh connection and starts the session once welcomed.
func open(ctx context.Context, c *Client, conn carrier, hub string, dialBulk func(context.Context) (carrier, error)) (*session, error) {
	var g *greeting
	said := false
	if e, ok := conn.(earlyConn); ok {
		conn, g, said = e.quicConn, e.greeting, true
	} else {
		sctx, cancel := context.WithTimeout(ctx, c.cfg.DialTimeout)
		st, err := conn.openControl(sctx)
		cancel()
		if err != nil {
			return nil, err
		}
		g = c.greet()
		g.control = st
	}
	st, inv, codecs := g.control, g.hello.Inventory, g.hello.Codecs
	s := &session{c: c, conn: conn, control: st, reader: wire.NewReader(st), hub: hub, dialBulk: dialBulk, id: g.hello.Session, early: said, generation: g.generation, done: make(chan struct{}),
		measured: make(chan measurement, 1), stall: make(chan struct{}, 1), recovered: make(chan struct{}, 1), poke: make(chan struct{}, 1), changed: make(chan struct{}, 1),
		writeKick: make(chan struct{}, 1), commands: make(chan wire.Command, 16),
		log: c.cfg.Logger.With("hub", hub)}
	if n := len(inv.Epochs); n > 0 {
		s.epoch = inv.Epochs[n-1].ID
	}
	if !said {
		if _, err := sendMessages(st, nil, []wire.Message{g.hello}); err != nil {
			return nil, err
		}
	}
	stop := patient(ctx, conn, st, c.cfg.DialTimeout)
	m, err := s.reader.Read()
	stop()
	if err != nil {
		return nil, err
	}
	switch m := m.(type) {
	case *wire.Welcome:
		s.welcome = *m
	case *wire.Error:
		return nil, &RemoteError{Code: m.Code, Message: m.Message, RetryAfter: time.Duration(m.RetryAfterMS) * time.Millisecond}
	case *wire.Drain:
		return nil, &RemoteError{Code: wire.CodeOverload, Message: m.Reason, RetryAfter: time.Duration(m.RetryAfterMS) * time.Millisecond, hubs: m.Hubs}
	default:
		return nil, fmt.Errorf("%w: message type %d where Welcome is expected", wire.ErrMalformed, m.Type())
	}
	st.SetReadDeadline(time.Time{})
	w := &s.welcome
	if w.Version != wire.Version || w.Session != s.id || !slices.Contains(codecs, w.Codec) {
		return nil, fmt.Errorf("%w: welcome of version %d, session %s, codec %d", wire.ErrMalformed, w.Version, w.Session, w.Codec)
	}
	if c.cfg.OnWelcome != nil {
		if err := c.cfg.OnWelcome(*w); err != nil {
			return nil, fmt.Errorf("hub of store %s is refused: %w", w.StoreID, err)
		}
	}
	frame := c.cfg.FrameBytes
	if w.FrameBytes > 0 {
		frame = min(frame, int(w.FrameBytes))
	}
	s.frame, s.mostFrame = min(frame, 64<<10), frame
	s.sender = uplink.NewSender(uplink.SenderConfig{WindowBytes: int64(c.cfg.WindowBytes), LiveBytes: min(liveReadBytes, frame), FrameBytes: s.frame, MaxWants: maxWants}, inv, w.Credit)
	s.pacer.sample, s.pacer.limit = s.samplePath, c.cfg.RateLimit
	c.traffic.track(conn)
	s.setPartitions(inv)
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	s.proposeGaps()
	s.setPolicy(c.register(s))
	s.wg.Go(s.readControl)
	s.wg.Go(s.writeControl)
	s.wg.Go(s.watch)
	s.wg.Go(s.watchSource)
	s.wg.Go(s.runCommands)
	for l := range wire.Lane(wire.Lanes) {
		w := s.newWorker(conn, 0, l, nil)
		s.wg.Go(func() {
			if err := w.run(s.ctx); err != nil {
				s.fail(err)
			}
		})
	}
	s.wg.Go(s.runStripes)
	go func() {
		<-s.ctx.Done()
		s.err = closeReason(context.Cause(s.ctx))
		var re *RemoteError
		code, text := codeOf(s.err), clip(s.err.Error())
		if errors.As(s.err, &re) {
			code, text = re.Code, ""
		}
		var le *localClose
		if errors.As(s.err, &le) {
			code, text = le.code, le.message
		}
		conn.close(code, text)
		s.wg.Wait()
		c.unregister(s)
		close(s.done)
	}()
	s.sourceChanged() // what became durable between Inventory and register
	return s, nil
}

// localClose is the reason of a session that this end closed.
type localClose struct {
	code    wire.Code
	message string
}

func (e *localClose) Error() string { return e.message }

func (s *session) close(code wire.Code, message string) { s.cancel(&localClose{code, message}) }

func (s *session) fail(err error) { s.cancel(err) }

func (s *session) stalled() bool { return s.isStalled.Load() }

func signal(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

func (s *session) sourceChanged() { signal(s.changed) }
func (s *session) probe()         { signal(s.poke) }

func (s *session) setPartitions(inv wire.Inventory) {
	s.partitions = s.partitions[:0]
	for i := range inv.Partitions {
		p := &inv.Partitions[i]
		s.partitions = append(s.partitions, uplinkPartition{p.ID, p.Topic, p.Partition, p.Start, p.Next})
	}
}

// send queues control messages. The queue is bounded: a hub that does not read its
// control stream loses the session.
func (s *session) send(msgs ...wire.Message) {
	s.mu.Lock()
	s.queue = append(s.queue, msgs...)
	over := len(s.queue) > maxQueued
	s.mu.Unlock()
	if over {
		s.fail(errors.New("the hub does not read its control stream"))
		return
	}
	signal(s.writeKick)
}

// settle carries out what a change of the Sender asks for. Called with mu held; it unlocks.
func (s *session) settle() {
	msgs, late := s.sender.Messages(), s.sender.Late()
	for _, w := range s.workers {
		signal(w.wake)
	}
	forks := s.forks(msgs)
	s.mu.Unlock()
	if len(msgs) > 0 {
		s.send(msgs...)
	}
	for _, f := range forks {
		s.log.Error("the hub holds another log of this partition: it gets nothing more of it in this session", "topic", f.topic, "partition", f.index, "offset", f.Offset)
		if s.c.cfg.OnFork != nil {
			s.c.cfg.OnFork(f.Fork, f.topic, f.index)
		}
	}
	s.acked(late)
}

type namedFork struct {
	wire.Fork
	topic string
	index int
}

func (s *session) forks(msgs []wire.Message) (out []namedFork) {
	for _, m := range msgs {
		f, ok := m.(*wire.Fork)
		if !ok {
			continue
		}
		for i := range s.partitions {
			if p := &s.partitions[i]; p.id == f.Partition {
				out = append(out, namedFork{*f, p.topic, p.index})
			}
		}
	}
	return out
}

// acked passes on what is durable at the hub.
func (s *session) acked(acked []uplink.Acked) {
	for i := range acked {
		a := &acked[i]
		s.acks.Add(1)
		s.c.acked.Add(a.Ranges.Count())
		s.c.cfg.Source.Acked(a.Topic, a.Index, a.Epoch, a.Ranges)
	}
}

func (s *session) writeControl() {
	var buf []byte
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-s.writeKick:
		}
		s.mu.Lock()
		msgs := s.queue
		s.queue = nil
		s.mu.Unlock()
		if len(msgs) == 0 {
			continue
		}
		var err error
		if buf, err = sendMessages(s.control, buf, msgs); err != nil {
			s.fail(fmt.Errorf("write control stream: %w", err))
			return
		}
		if cap(buf) > 64<<10 {
			buf = nil
		}
	}
}

// refresh tells the Sender what is durable of a partition now: the session before may have
// sent what came after this one's Hello, and a hub that holds it is no other log. Called with mu held.
func (s *session) refresh(partition uint32) {
	for i := range s.partitions {
		if s.partitions[i].id == partition {
			s.advance(i, i+1)
		}
	}
}

// advance tells the Sender how far the partitions [from, to) of the session reach now.
// Where a start has moved it hears first why: the Source has the reason before it moves the
// start, so the reasons are asked for after the bounds. Else the Sender would take what was
// evicted for expired. The caller has mu.
func (s *session) advance(from, to int) {
	src := s.c.cfg.Source
	changed, freed := s.moved[:0], false
	for i := from; i < to; i++ {
		p := &s.partitions[i]
		if start, next := src.Bounds(p.topic, p.index); start != p.start || next != p.next {
			freed = freed || start != p.start
			p.start, p.next = start, next
			changed = append(changed, i)
		}
	}
	if freed {
		s.propose(src.Gaps())
	}
	for _, i := range changed {
		p := &s.partitions[i]
		s.sender.Advance(p.topic, p.index, p.start, p.next)
	}
	s.moved = changed
}

// watchSource tells the Sender what became durable.
func (s *session) watchSource() {
	src := s.c.cfg.Source
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-s.changed:
		}
		s.mu.Lock()
		if g := src.Generation(); g != s.generation {
			s.generation = g
			inv := src.Inventory()
			if n := len(inv.Epochs); n == 0 || inv.Epochs[n-1].ID != s.epoch {
				s.mu.Unlock()
				s.close(wire.CodeShutdown, "the node's log began a new epoch")
				return
			}
			s.propose(src.Gaps())
			s.sender.Inventory(inv)
			s.setPartitions(inv)
			s.mu.Unlock()
			s.send(&inv)
			s.proposeGaps() // those of new partitions
			s.mu.Lock()
		}
		s.advance(0, len(s.partitions))
		s.settle()
	}
}

func (s *session) proposeGaps() {
	gaps := s.c.cfg.Source.Gaps()
	s.mu.Lock()
	s.propose(gaps)
	s.settle()
}

// propose needs mu.
func (s *session) propose(gaps []GapProposal) {
	for i := range gaps {
		g := &gaps[i]
		s.sender.Propose(g.Topic, g.Partition, g.Epoch, g.Gap)
	}
}

func (s *session) readControl() {
	for {
		m, err := s.reader.Read()
		if err != nil {
			s.fail(fmt.Errorf("control stream: %w", err))
			return
		}
		if err := s.handle(m); err != nil {
			s.fail(err)
			return
		}
	}
}

func (s *session) handle(m wire.Message) error {
	c := s.c
	switch m := m.(type) {
	case *wire.Want:
		s.mu.Lock()
		s.refresh(m.Partition)
		err := s.sender.Want(m)
		s.settle()
		return err
	case *wire.Cancel:
		s.mu.Lock()
		s.sender.Cancel(m.Want)
		s.settle()
	case *wire.Ack:
		s.mu.Lock()
		before := s.sender.Outstanding()
		acked := s.sender.Ack(m)
		if n := before - s.sender.Outstanding(); n > 0 {
			s.progress.Add(n)
			s.useful.Store(true)
		}
		s.settle()
		s.acked(acked)
	case *wire.Heartbeat:
		s.mu.Lock()
		s.sender.Heard()
		s.settle()
		if !m.Reply {
			s.send(&wire.Heartbeat{Sequence: m.Sequence, Sent: m.Sent, Reply: true, Clock: c.clock(), Pad: make([]byte, wire.HeartbeatPad)})
			return nil
		}
		if m.Sequence > s.answered.Load() && m.Sequence <= s.heartbeat.Load() {
			s.answered.Store(m.Sequence)
			now := time.Now().UnixNano()
			s.clockOffset.Store(m.Clock.UnixNano - (m.Sent + (now-m.Sent)/2))
		}
	case *wire.Refusals:
		s.refused(m)
	case *wire.Config:
		if c.cfg.OnConfig != nil {
			c.cfg.OnConfig(*m)
		}
	case *wire.Command:
		select {
		case s.commands <- *m:
		default:
			s.send(&wire.CommandResult{ID: m.ID, Error: "too many commands at once"})
		}
	case *wire.Drain:
		s.drainHubs = m.Hubs
		return &RemoteError{Code: wire.CodeShutdown, Message: m.Reason, RetryAfter: time.Duration(m.RetryAfterMS) * time.Millisecond}
	case *wire.Error:
		if m.Want == 0 {
			return &RemoteError{Code: m.Code, Message: m.Message, RetryAfter: time.Duration(m.RetryAfterMS) * time.Millisecond}
		}
		s.mu.Lock()
		s.sender.Cancel(m.Want)
		s.settle()
	case *wire.Hello, *wire.Welcome, *wire.Inventory, *wire.GapReport, *wire.Fork, *wire.Skip, *wire.Status, *wire.CommandResult:
		return fmt.Errorf("%w: message type %d from a hub within a session", wire.ErrMalformed, m.Type())
	}
	return nil
}

// runCommands runs one command at a time, over all sessions. One that hangs holds
// further commands, but neither data nor the end of the session.
func (s *session) runCommands() {
	for {
		select {
		case <-s.ctx.Done():
			return
		case m := <-s.commands:
			select {
			case s.c.command <- struct{}{}:
			case <-s.ctx.Done():
				return
			}
			done := make(chan struct{})
			go func() {
				r := wire.CommandResult{Error: "this node takes no commands"}
				switch {
				case m.ExpireMS > 0 && time.Now().UnixMilli() > m.ExpireMS:
					r.Error = "expired before it was run"
				case s.c.cfg.OnCommand != nil:
					r = s.c.cfg.OnCommand(m)
				default:
					if x, ok := s.c.cfg.Source.(Commander); ok {
						r = x.Command(m)
					}
				}
				r.ID = m.ID
				<-s.c.command
				s.send(&r)
				close(done)
			}()
			select {
			case <-done:
			case <-s.ctx.Done():
				return
			}
		}
	}
}

func (c *Client) clock() wire.Clock {
	return wire.Clock{UnixNano: time.Now().UnixNano(), Trusted: c.cfg.ClockTrusted == nil || c.cfg.ClockTrusted()}
}
